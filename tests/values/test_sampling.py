"""Which architectures are looked at next."""

from __future__ import annotations

import random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.front import Candidate, Predicted
from instatune_deploy.values.sampling import next_batch, random_new, spread, warm_start
from instatune_deploy.values.space import SearchSpace

SPACE = SearchSpace.homogeneous(4, [2, 3, 4], [1, 2], [16, 32, 64])
TINY = SearchSpace.homogeneous(2, [1, 2], [1, 2], [16])
spaces = st.sampled_from([SPACE, TINY])
seeds = st.integers(0, 10**6)


@given(spaces, st.integers(0, 30), st.integers(0, 30), seeds)
def test_what_is_picked_is_new_different_and_as_many_as_there_are(
    space: SearchSpace, n_known: int, count: int, seed: int
) -> None:
    known = space.sample(n_known, seed=seed)
    left = space.size - len(known)
    points = space.sample(12, seed=seed + 1)
    candidates = [
        Candidate(a, Deployment("onnxruntime"), Predicted(i / 12, i, float(i), "predictor"))
        for i, a in enumerate(points)
    ]
    for fronts in ([], [candidates], [candidates[:5], candidates[5:]]):
        rng = random.Random(seed)
        batch = next_batch(space, fronts, known, count, rng)
        assert len(batch) == len(set(batch)) == min(count, left)
        assert not set(batch) & set(known)
        assert all(a in space for a in batch)
    assert len(random_new(space, known, count, random.Random(seed))) == min(count, left)


@given(spaces, st.integers(0, 30), st.integers(2, 60), seeds)
def test_a_warm_start_fills_up_and_holds_the_extremes(space: SearchSpace, n_known: int, count: int, seed: int) -> None:
    known = space.sample(n_known, seed=seed)
    start = warm_start(space, known, count, random.Random(seed))
    assert len({*start, *known}) == len(start) + len(known) == max(len(known), min(count, space.size))
    if len(start) >= 2:
        assert {space.largest, space.smallest} <= {*start, *known}


def test_the_best_front_comes_first() -> None:
    points = SPACE.sample(20, seed=0)
    candidates = [
        Candidate(a, Deployment("onnxruntime"), Predicted(0.5, i, float(-i), "predictor")) for i, a in enumerate(points)
    ]
    batch = next_batch(SPACE, [candidates[:4], candidates[4:]], points[:1], 8, random.Random(0))
    assert batch[:3] == points[1:4]
    assert set(batch) <= set(points)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=20), st.integers(0, 25))
def test_spread_gives_different_indices(points: list[tuple[int, int]], count: int) -> None:
    chosen = spread(points, [], count)
    assert len(chosen) == len(set(chosen)) == min(count, len(points))


def test_spread_keeps_away_from_what_is_placed() -> None:
    line = [(float(x), 0.0) for x in np.linspace(0, 10, 11)]
    assert spread(line, [], 3) == [0, 10, 5]
    assert spread(line, [(0.0, 0.0), (10.0, 0.0)], 1) == [5]
