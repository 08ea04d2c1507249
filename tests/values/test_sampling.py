"""Which architectures are looked at next."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from instatune_deploy.values.macs import ModelShape, count_macs
from instatune_deploy.values.sampling import fill_up, random_new, spread_by_macs, warm_start
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
    fresh = [a for a in space.sample(12, seed=seed + 1) if a not in known][:count]
    for chosen, parents in (([], []), ([], fresh), (fresh, fresh), (fresh, known)):
        batch = fill_up(space, chosen, parents, known, count, random.Random(seed))
        assert batch[: len(chosen)] == chosen
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


@given(spaces, st.integers(1, 20), st.integers(0, 20), seeds)
def test_what_is_spread_has_the_ends_and_as_many_as_there_are(
    space: SearchSpace, known: int, count: int, seed: int
) -> None:
    shape = ModelShape("bert", 64, 16, 4, 4, 256, 8, fixed_macs=10**5, fixed_parameters=10**4)
    pool = space.sample(known, seed=seed)
    chosen = spread_by_macs(shape, pool, count)
    assert len(chosen) == len(set(chosen)) == min(count, len(pool))
    assert set(chosen) <= set(pool)
    macs = [count_macs(shape, a) for a in chosen]
    assert macs == sorted(macs)
    if count >= 2:
        everything = [count_macs(shape, a) for a in pool]
        assert (macs[0], macs[-1]) == (min(everything), max(everything))
