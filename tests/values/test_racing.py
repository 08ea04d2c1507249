"""Racing: who is given up, and how often that is wrong."""

from __future__ import annotations

import numpy as np
import pytest

from instatune_deploy.values.racing import LOOKS, hopeless, stratified_order


def race(right: np.ndarray, order: np.ndarray, *, confidence: float, **aim: object) -> set[int]:
    """Which networks stay to the end, of a table (networks, samples) of right answers."""
    running = np.arange(len(right))
    for share in LOOKS:
        hits = right[running][:, order[: int(share * len(order))]]
        chance = (1 - confidence) / len(LOOKS)
        lost = hopeless(hits, len(order), chance=chance, **{"keep": None, "floor": None, "known": [], **aim})  # type: ignore[arg-type]
        running = running[~lost]
    return set(running.tolist())


def table(values: np.ndarray, samples: int, rng: np.random.Generator) -> np.ndarray:
    """Networks that are right on just these shares of the samples: mostly on the same, as real ones are."""
    hard = rng.random(samples)
    right = np.zeros((len(values), samples), dtype=bool)
    for row, value in zip(right, values, strict=True):
        row[np.argsort(hard + 0.3 * rng.random(samples))[: round(value * samples)]] = True
    return right


def test_the_hopeless_are_given_up_and_the_best_stay() -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([np.linspace(0.88, 0.90, 5), np.linspace(0.5, 0.7, 20)])
    right = table(values, 800, rng)
    for aim in ({"keep": 5}, {"floor": 0.85}):
        assert race(right, rng.permutation(800), confidence=0.95, **aim) == set(range(5))


@pytest.mark.parametrize("aim", ["keep", "floor"])
def test_a_wanted_network_is_seldom_given_up(aim: str) -> None:
    """The chance that is allowed, one in ten, is an upper bound, here to three standard deviations of the count."""
    rng = np.random.default_rng(1)
    lost, trials = 0, 400
    right = table(np.linspace(0.78, 0.80, 21), 400, rng)
    value = float(right[-1].mean())
    for _ in range(trials):
        stay = race(right, rng.permutation(400), confidence=0.9, **({"keep": 1} if aim == "keep" else {"floor": value}))
        lost += 20 not in stay
    assert lost <= 0.1 * trials + 3 * (0.09 * trials) ** 0.5


def test_known_values_count_among_the_best() -> None:
    rng = np.random.default_rng(2)
    right = table(np.asarray([0.9, 0.6]), 800, rng)
    hits = right[:, rng.permutation(800)[:400]]
    assert hopeless(hits, 800, keep=1, floor=None, known=[0.95], chance=0.01).tolist() == [True, True]
    assert hopeless(hits, 800, keep=2, floor=None, known=[0.95], chance=0.01).tolist() == [False, True]
    assert hopeless(hits, 800, keep=3, floor=None, known=[0.95], chance=0.01).tolist() == [False, False]


def test_equal_networks_stay_and_one_alone_too() -> None:
    hits = np.tile(np.arange(100) % 3 > 0, (6, 1))
    assert not hopeless(hits, 200, keep=1, floor=None, known=[], chance=0.05).any()
    assert not hopeless(hits[:1], 200, keep=1, floor=None, known=[], chance=0.05).any()


def test_once_all_samples_are_seen_a_floor_is_exact() -> None:
    hits = np.asarray([[True] * 80 + [False] * 20, [True] * 79 + [False] * 21])
    assert hopeless(hits, 100, keep=None, floor=0.8, known=[], chance=0.01).tolist() == [False, True]


def test_every_beginning_of_a_stratified_order_holds_each_class_in_proportion() -> None:
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [600, 300, 100]))
    order = stratified_order(labels, seed=3)
    assert sorted(order) == list(range(1000))
    for count in (50, 125, 500):
        shares = np.bincount(labels[order[:count]], minlength=3) / count
        assert np.abs(shares - [0.6, 0.3, 0.1]).max() <= 2 / count + 1e-9
    assert (order == stratified_order(labels, seed=3)).all()
    assert (order != stratified_order(labels, seed=4)).any()
