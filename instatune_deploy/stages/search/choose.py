"""Which networks to evaluate next: those that should improve the front, and those that would teach the most."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from instatune_deploy.stages.search.beliefs import Beliefs
from instatune_deploy.values.budget import excess
from instatune_deploy.values.costs import REFERENCE, Goal
from instatune_deploy.values.front import ParetoFront, hypervolume
from instatune_deploy.values.space import Architecture

#: Of a batch, the share that is chosen for information alone.
EXPLORED = 0.25
#: Standard deviations by which a network that was not measured is hoped to be better than predicted.
OPTIMISM = 0.5
#: Gains of hypervolume, as shares of it, that are too small to count.
NEGLIGIBLE = 1e-9


@dataclass
class _View:
    """One goal's side of a choice: the front that is believed in, and each pooled network's points, shape ``(k, m)``,
    in its deployments that keep the limits; scaled, to be made small."""

    front: np.ndarray
    points: list[np.ndarray]
    reference: np.ndarray

    def gain(self, index: int) -> float:
        """What the front's hypervolume would grow by, as a share of it."""
        before = hypervolume(self.front, self.reference)
        after = hypervolume(np.vstack([self.front, self.points[index]]), self.reference)
        return (after - before) / max(before, NEGLIGIBLE)


def choose(goals: Sequence[Goal], beliefs: Beliefs, pool: Sequence[Architecture], count: int) -> list[Architecture]:
    """Up to `count` of `pool`, none of which has been measured.

    Three in four are those whose optimistic predictions improve the front most, one after the other: after each the
    front is taken to have it, so that the next improves another part of it. The others, and those left when nothing
    improves it any more, are the ones of which the least is known: unsure, and far from what was measured and chosen.
    With several goals a network counts for all of them at once.
    """
    beliefs.look_at(pool)
    views = [_view(goal, beliefs, pool) for goal in goals]
    chosen = _by_gain(views, len(pool), count - round(EXPLORED * count))
    chosen += _by_information(goals[0], beliefs, pool, chosen, count - len(chosen))
    return [pool[index] for index in chosen]


def _view(goal: Goal, beliefs: Beliefs, pool: Sequence[Architecture]) -> _View:
    bounds = beliefs.bounds(goal)
    tables = range(len(goal.costs.tables))
    measured = beliefs.candidates(goal, beliefs.measured)
    known = [candidate for candidate in measured if excess(candidate, bounds) <= 0]
    everything = goal.scaled(measured)
    points = []
    for architecture in pool:
        candidates = [beliefs.candidate(goal, architecture, index, optimism=OPTIMISM) for index in tables]
        points.append(goal.scaled([c for c in candidates if excess(c, bounds) <= 0]))
    # Beyond the worst that is known, so that the ends of the front count, too.
    worst, best = everything.max(axis=0), everything.min(axis=0)
    costs = np.array([objective.kind != "metric" for objective in goal.objectives])
    reference = np.where(costs, REFERENCE, worst + 0.1 * (worst - best) + NEGLIGIBLE)
    return _View(goal.scaled(ParetoFront.of(known, goal.objectives).candidates), points, reference)


def _by_gain(views: Sequence[_View], pooled: int, count: int) -> list[int]:
    """Greedy: the largest gain first. Gains only shrink while the front grows, so that one that is out of date and
    still is the largest is all that needs computing again."""
    heap = [(-sum(view.gain(index) for view in views), index, 0) for index in range(pooled)]
    heapq.heapify(heap)
    chosen: list[int] = []
    while heap and len(chosen) < count:
        gain, index, when = heapq.heappop(heap)
        if -gain <= NEGLIGIBLE:
            break
        if when < len(chosen):
            heapq.heappush(heap, (-sum(view.gain(index) for view in views), index, len(chosen)))
            continue
        chosen.append(index)
        for view in views:
            view.front = np.vstack([view.front, view.points[index]])
    return chosen


def _by_information(
    goal: Goal, beliefs: Beliefs, pool: Sequence[Architecture], chosen: Sequence[int], count: int
) -> list[int]:
    """The ones that are the least sure and the farthest from what is measured or chosen, both as shares of the most."""
    left = [index for index in range(len(pool)) if index not in set(chosen)]
    if count <= 0 or not left:
        return []
    places = goal.scaled([beliefs.candidate(goal, a, 0) for a in (*pool, *beliefs.measured)])
    places = (places - places.min(axis=0)) / np.maximum(np.ptp(places, axis=0), NEGLIGIBLE)
    placed = [*chosen, *range(len(pool), len(places))]
    spreads = np.array([beliefs.spread(architecture) for architecture in pool])
    distances = np.full(len(pool), np.inf)
    for index in placed:
        distances = np.minimum(distances, np.linalg.norm(places[: len(pool)] - places[index], axis=1))
    found: list[int] = []
    while left and len(found) < count:
        score = _share(spreads[left]) + _share(distances[left])
        index = left.pop(int(np.argmax(score)))
        found.append(index)
        distances = np.minimum(distances, np.linalg.norm(places[: len(pool)] - places[index], axis=1))
    return found


def _share(values: np.ndarray) -> np.ndarray:
    return values / max(float(values.max()), NEGLIGIBLE)
