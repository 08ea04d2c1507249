"""Features of architectures."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instatune_deploy.errors import ArchitectureError, UsageError
from instatune_deploy.values.features import HEADS, NEURONS, PRESENCE, Features, UnitScores
from instatune_deploy.values.macs import ModelShape, count_macs
from instatune_deploy.values.space import Architecture, SearchSpace

SPACE = SearchSpace.homogeneous(4, [2, 3, 4], [2, 4], [64, 128, 256])
UNEVEN = SearchSpace.stack((1, 2), ((1, 3), (2,), (4,)), ((8,), (8, 16), (4, 8, 24)), (1, 0))


def test_counts_are_the_encoding_and_the_depth() -> None:
    features = Features(SPACE)
    counts = features.counts([Architecture.parse("2L[4-64 2-256]")])
    assert counts.tolist() == [[4, 2, 0, 0, 64, 256, 0, 0, 2]]
    assert len(features.count_names) == counts.shape[1]
    assert features.counts([]).shape == (0, 9)
    with pytest.raises(ArchitectureError):
        features.counts([Architecture.parse("1L[4-64]")])


def test_steps_say_how_far_each_layer_goes() -> None:
    features = Features(SPACE)
    (steps,) = features.steps(features.counts([Architecture.parse("2L[4-64 2-256]")]))
    taken = {name for name, step in zip(features.step_names, steps, strict=True) if step}
    assert taken == {"heads_0>=2", "heads_0>=4", "heads_1>=2", "ffn_1>=128", "ffn_1>=256"}
    kinds = dict(zip(features.step_names, features.step_kinds, strict=True))
    assert (kinds["heads_0>=2"], kinds["heads_0>=4"], kinds["ffn_1>=128"]) == (PRESENCE, HEADS, NEURONS)


@given(st.integers(0, 10**9), st.sampled_from([SPACE, UNEVEN]))
def test_more_of_everything_takes_every_step_and_no_sum_falls(seed: int, space: SearchSpace) -> None:
    rng, features = random.Random(seed), Features(space)
    first, second = (space.encode(space.sample_one(rng)) for _ in range(2))
    small, large = space.decode(first), space.decode([max(pair) for pair in zip(first, second, strict=True)])
    counts = features.counts([small, large])
    for table in (counts, features.steps(counts), features.sums([small, large])):
        assert (table[0] <= table[1]).all()


@given(st.integers(0, 10**9), st.sampled_from([SPACE, UNEVEN]))
def test_steps_tell_all_architectures_apart(seed: int, space: SearchSpace) -> None:
    rng, features = random.Random(seed), Features(space)
    first, second = space.sample_one(rng), space.sample_one(rng)
    steps = features.steps(features.counts([first, second]))
    assert np.array_equal(steps[0], steps[1]) == (first == second)


def test_steps_of_a_kind_count_one_in_the_mean() -> None:
    for features in (Features(SPACE), Features(UNEVEN)):
        for kind in (PRESENCE, HEADS, NEURONS):
            assert features.step_sizes[features.step_kinds == kind].mean() == pytest.approx(1)


def test_steps_are_as_large_as_the_importance_they_capture() -> None:
    scores = UnitScores((((6, 2, 1, 1),) * 4, ((1.0,) * 256,) * 2 + ((1.0,) * 128 + (0.0,) * 128,) * 2))
    features = Features(SPACE, importance=scores)
    sizes = dict(zip(features.step_names, features.step_sizes, strict=True))
    assert sizes["heads_0>=4"] == pytest.approx(1)  # alike in all layers
    assert sizes["ffn_0>=256"] == pytest.approx(2 * sizes["ffn_0>=128"])
    assert sizes["ffn_2>=256"] == 0
    assert sizes["ffn_2>=128"] == pytest.approx(2 * sizes["ffn_0>=128"])


def test_units_that_score_nothing_are_all_alike() -> None:
    nothing = UnitScores((((0,) * 4,) * 4, ((0,) * 256,) * 4))
    assert Features(SPACE, importance=nothing).step_sizes.tolist() == Features(SPACE).step_sizes.tolist()


def test_sums_are_shares_of_the_largest_network() -> None:
    shape = ModelShape("bert", 64, 16, 4, 4, 256, 8, fixed_macs=10**5, fixed_parameters=0)
    small = Architecture.parse("2L[2-64 4-128]")
    for features in (Features(SPACE), Features(SPACE, shape), Features(UNEVEN)):
        largest = features.sums([features.space.largest])
        assert largest.tolist() == [[1.0] * len(features.sum_names)]
    macs = Features(SPACE, shape).sums([small])[0, 0]
    layers = [count_macs(shape, a) - shape.fixed_macs for a in (small, SPACE.largest)]
    assert macs == pytest.approx(layers[0] / layers[1], rel=1e-9)


def test_features_survive_json() -> None:
    shape = ModelShape("bert", 64, 16, 4, 4, 256, 8, fixed_macs=10**5, fixed_parameters=0)
    scores = UnitScores((((3, 2, 1, 0.5),) * 4, ((1.0,) * 256,) * 4))
    for features in (Features(SPACE), Features(SPACE, shape, scores)):
        assert Features.from_dict(json.loads(json.dumps(features.to_dict()))) == features
    changed = {**Features(SPACE).to_dict(), "steps": []}
    with pytest.raises(UsageError, match="not those of its space"):
        Features.from_dict(changed)


@pytest.mark.parametrize(
    ("heads", "ffn", "message"),
    [
        (((1,) * 4,) * 3, ((1,) * 256,) * 4, "heads of 3 layers, the space has 4"),
        (((1,) * 4,) * 4, ((1,) * 100,) * 4, "100 ffn of layer 0, the space keeps up to 256"),
        (((-1,) * 4,) * 4, ((1,) * 256,) * 4, "not negative"),
        (((float("nan"),) * 4,) * 4, ((1,) * 256,) * 4, "finite"),
    ],
)
def test_importance_that_does_not_fit_is_refused(heads: tuple, ffn: tuple, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Features(SPACE, importance=UnitScores((heads, ffn)))
