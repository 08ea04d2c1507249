"""Racing: which networks can be given up after a part of the samples, by bounds that say how sure that is.

Maron and Moore (1994) drop models whose bounds lie apart. Here all networks see the same samples, so that two are compared
on those where one is right and the other is wrong, and samples are drawn from a known number without putting back, so that
the tails are those of the hypergeometric distribution, exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import hypergeom

from instatune_deploy.values.space import Architecture

#: Shares of the samples after which networks are given up; then the rest is run.
LOOKS = (1 / 8, 1 / 4, 1 / 2)


@dataclass(frozen=True)
class Dropped:
    """A network that was given up: right on a share `value` of the `n` samples it had seen."""

    architecture: Architecture
    value: float
    n: int


def stratified_order(labels: np.ndarray, *, seed: int) -> np.ndarray:
    """The numbers of all samples in random order, such that every beginning of it holds each class in proportion.

    Args:
        labels: class indices, shape (samples,).
    """
    rng = np.random.default_rng(seed)
    place = np.empty(len(labels))
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        place[rng.permutation(own)] = (np.arange(len(own)) + rng.random()) / len(own)
    order: np.ndarray = np.argsort(place, kind="stable")
    return order


def hopeless(
    hits: np.ndarray, total: int, *, keep: int | None, floor: float | None, known: Sequence[float], chance: float
) -> np.ndarray:
    """Which networks are given up, each wrongly with a probability of at most `chance`.

    With `keep`, one is that so many others are better than, by one-sided tests; with `floor`, one that is below it.
    It holds for samples drawn at random; to draw from each class in proportion makes errors rarer still.

    Args:
        hits: whether each network is right on each sample so far, shape (networks, samples).
        total: samples there are.
        keep: how many of the best are wanted, `known` ones included.
        floor: the least value wanted.
        known: values on all samples of networks that no longer run.
        chance: for each network, of all comparisons with others together.

    Returns:
        Shape (networks,), true for those given up.
    """
    count, seen = hits.shape
    right = hits.sum(axis=1)
    given_up: np.ndarray = (
        np.zeros(count, dtype=bool) if floor is None else _is_below(right, seen, total, floor, chance)
    )
    if keep is None:
        return given_up
    each = chance / max(1, count - 1 + len(known))
    better = _is_beaten(hits, total, each).sum(axis=1)
    for value in known:
        better += _is_below(right, seen, total, value, each)
    return given_up | (better >= keep)


def _is_below(right: np.ndarray, seen: int, total: int, value: float, chance: float) -> np.ndarray:
    """Whether `right` of `seen` samples would have at most this chance if a share of at least `value` of all were right."""
    least = min(total, int(np.ceil(value * total - 1e-9)))
    below: np.ndarray = hypergeom.cdf(right, total, least, seen) <= chance
    return below


def _is_beaten(hits: np.ndarray, total: int, chance: float) -> np.ndarray:
    """For networks a (rows) and b (columns) whether what was seen would have at most this chance if a were as good as b.

    That is a sign test: if on all samples a is right alone at least as often as b is, then of those samples seen on which
    one of them is right alone, b has no more than drawn from as many of either kind. How many there are of either kind
    among all samples is not known; the most there can be is the least favourable.
    """
    as_numbers = hits.astype(np.float64)
    both = as_numbers @ as_numbers.T
    right = as_numbers.sum(axis=1)
    b_alone, a_alone = right[None, :] - both, right[:, None] - both
    differ = a_alone + b_alone
    half = np.ceil((differ + total - hits.shape[1]) / 2)
    beaten: np.ndarray = hypergeom.sf(b_alone - 1, 2 * half, half, differ) <= chance
    return beaten
