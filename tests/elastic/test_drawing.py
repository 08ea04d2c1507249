"""Which sub-networks a step trains."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch

from instatune_deploy.elastic.drawing import Drawer, DrawSettings, LossModel, narrowed, size_buckets
from instatune_deploy.values.macs import ModelShape, count_macs
from instatune_deploy.values.space import Architecture, SearchSpace

SPACE = SearchSpace.homogeneous(6, [3, 4, 5, 6], [6, 8, 10, 12], [512, 1024, 1536])
SHAPE = ModelShape("bert", 384, 32, 6, 12, 1536, 128, 150_000, 0)


def drawer(seed: int = 1, **settings: object) -> Drawer:
    return Drawer(SPACE, SHAPE, DrawSettings(**settings), seed=seed)  # type: ignore[arg-type]


@pytest.mark.parametrize("sampling", ["uniform", "sandwich", "macs", "front"])
def test_networks_depend_on_seed_and_step_alone(sampling: str) -> None:
    first = drawer(subnetworks=3, sampling=sampling).at(7, 0.5)
    random.seed(99)
    torch.manual_seed(99)
    assert drawer(subnetworks=3, sampling=sampling).at(7, 0.5) == first
    assert drawer(subnetworks=3, sampling=sampling).at(8, 0.5) != first
    assert drawer(2, subnetworks=3, sampling=sampling).at(7, 0.5) != first
    assert len(first) == 3
    assert all(architecture in SPACE for architecture in first)


def test_uniform_draws_every_depth() -> None:
    draws = drawer()
    assert {draws.at(step, 0)[0].depth for step in range(300)} == set(SPACE.depths[0])


def test_the_sandwich_trains_the_smallest_every_step_or_every_other() -> None:
    several = drawer(subnetworks=2, sampling="sandwich")
    assert all(several.at(step, 0)[0] == SPACE.smallest for step in range(10))
    alone = drawer(subnetworks=1, sampling="sandwich")
    assert [alone.at(step, 0)[0] == SPACE.smallest for step in range(6)] == [False, True] * 3


def test_by_size_small_and_large_networks_are_seen_alike() -> None:
    low, high = count_macs(SHAPE, SPACE.smallest), count_macs(SHAPE, SPACE.largest)

    def quarter(architecture: Architecture) -> int:
        return min(3, int(4 * (count_macs(SHAPE, architecture) - low) / (high - low)))

    by_size, uniform = drawer(sampling="macs"), drawer(sampling="uniform")
    found = Counter(quarter(by_size.at(step, 0)[0]) for step in range(2000))
    plain = Counter(quarter(uniform.at(step, 0)[0]) for step in range(2000))
    assert all(400 < found[q] < 600 for q in range(4)), found
    assert plain[3] < 150  # why it is done


def test_sizes_may_get_as_much_computing_as_any_other() -> None:
    low, high = count_macs(SHAPE, SPACE.smallest), count_macs(SHAPE, SPACE.largest)
    draws, spent = drawer(sampling="macs", size_power=1.0), [0.0] * 4
    for step in range(4000):
        macs = count_macs(SHAPE, draws.at(step, 0)[0])
        spent[min(3, int(4 * (macs - low) / (high - low)))] += macs
    assert max(spent) < 1.3 * min(spent)


def test_buckets_hold_deep_narrow_and_shallow_wide_networks() -> None:
    middle = size_buckets(SPACE, SHAPE, seed=0)[2]
    assert {architecture.depth for architecture in middle} >= {3, 4, 5}
    assert len(set(middle)) == len(middle) > 50


@pytest.mark.parametrize("sampling", ["uniform", "sandwich", "macs"])
def test_the_space_widens(sampling: str) -> None:
    draws = drawer(subnetworks=2, sampling=sampling, widen_epochs=2)
    assert draws.at(0, 0.0) == [SPACE.largest] * 2
    assert draws.space_at(1.0).depths == ((4, 5, 6),)
    assert {a for step in range(50) for a in draws.at(step, 1.0)} <= set(draws.space_at(1.0))
    assert draws.space_at(2.0) is SPACE
    assert SPACE.smallest in {a for step in range(2000) for a in draws.at(step, 2.5)} or sampling != "sandwich"


def test_a_narrowed_space_has_the_largest_choices() -> None:
    assert narrowed(SPACE, 0.0).size == 1
    assert narrowed(SPACE, 0.5).head_choices == (8, 10, 12)
    assert narrowed(SPACE, 0.999) == SPACE


def test_around_the_front_better_networks_of_a_size_are_drawn_more_often() -> None:
    rng = random.Random(0)
    draws = drawer(sampling="front")

    def excess(architecture: Architecture) -> float:
        """Heads of the first layer matter, nothing else does."""
        heads = dict(zip(SPACE.kept_layers(architecture.depths), architecture.layers, strict=True))
        return 1.0 - (heads[0][0] / 12 if 0 in heads else 0.0) + rng.gauss(0, 0.05)

    seen = []
    for step in range(400):
        drawn = draws.at(step, 0)
        draws.learn(drawn, [excess(a) for a in drawn])
        seen.append(drawn[0])
    assert sum(a.layers[0][0] == 12 for a in seen[200:]) > 1.5 * sum(a.layers[0][0] == 12 for a in seen[:64]) * 200 / 64
    copy = drawer(sampling="front")
    copy.restore(draws.state())
    assert [copy.at(step, 0) for step in range(400, 420)] == [draws.at(step, 0) for step in range(400, 420)]


def test_the_loss_model_learns_which_choices_cost() -> None:
    rng = random.Random(1)
    model = LossModel(SPACE)
    networks = [SPACE.sample_one(rng) for _ in range(400)]
    for network in networks:
        model.add(network, 0.1 * (6 - network.depth) + 0.01 * sum(c[0] < 12 for c in network.layers))
    model.add(networks[0], float("nan"))
    assert model.seen == 400
    deep, shallow = Architecture.uniform(6, 12, 1536), Architecture.uniform(3, 12, 1536)
    assert model.predict(shallow) - model.predict(deep) == pytest.approx(0.3, abs=0.05)
