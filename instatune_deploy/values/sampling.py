"""Which architectures to evaluate next: a first sample of a space, and batches spread along a predicted front."""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Iterable, Sequence

import numpy as np

from instatune_deploy.values.front import Candidate
from instatune_deploy.values.space import Architecture, SearchSpace


def warm_start(space: SearchSpace, known: Iterable[Architecture], count: int, rng: random.Random) -> list[Architecture]:
    """New architectures that make `known` up to `count`: the largest, the smallest, homogeneous and random ones.

    About a quarter are homogeneous (every layer alike), spread over the space's sizes.
    """
    seen = dict.fromkeys(known)
    uniform = [
        architecture
        for depth in space.depths
        for heads in space.head_choices
        for ffn in space.ffn_choices
        if (architecture := Architecture.uniform(depth, heads, ffn)) in space
    ]
    uniform.sort(
        key=lambda a: (
            a.depth * (a.layers[0].heads / space.head_choices[-1] + a.layers[0].ffn / space.ffn_choices[-1]),
            str(a),
        )
    )
    step = max(1, math.ceil(len(uniform) / max(1, count // 4)))
    wanted = dict.fromkeys([space.largest, space.smallest, *uniform[step // 2 :: step]])
    chosen = [architecture for architecture in wanted if architecture not in seen][: max(0, count - len(seen))]
    return chosen + random_new(space, [*seen, *chosen], count - len(seen) - len(chosen), rng)


def random_new(
    space: SearchSpace, known: Collection[Architecture], count: int, rng: random.Random
) -> list[Architecture]:
    """`count` different architectures that are not `known`, or all that are left if there are fewer."""
    if count <= 0:
        return []
    seen = set(known)
    if space.size <= 4 * (len(seen) + count):  # drawing would mostly hit what is known already
        left = [architecture for architecture in space if architecture not in seen]
        return rng.sample(left, min(count, len(left)))
    fresh: list[Architecture] = []
    while len(fresh) < count:
        architecture = space.sample_one(rng)
        if architecture not in seen:
            seen.add(architecture)
            fresh.append(architecture)
    return fresh


def next_batch(
    space: SearchSpace,
    fronts: Sequence[Sequence[Candidate]],
    known: Collection[Architecture],
    count: int,
    rng: random.Random,
) -> list[Architecture]:
    """`count` different architectures that are not `known`, or all that are left if there are fewer.

    They come from `fronts`, the best front first, spread along the front that does not fit whole; then from mutants
    of the best front's; then at random.
    """
    batch: dict[Architecture, Sequence[float]] = {}
    for front in fronts:
        fresh: dict[Architecture, Sequence[float]] = {}
        for candidate in front:
            if candidate.architecture not in known and candidate.architecture not in batch:
                fresh.setdefault(candidate.architecture, candidate.objectives)
        names = list(fresh)
        for index in spread(list(fresh.values()), list(batch.values()), count - len(batch)):
            batch[names[index]] = fresh[names[index]]
    chosen = dict.fromkeys(batch)
    parents = [candidate.architecture for candidate in fronts[0]] if fronts else []
    for _ in range(10 * count if parents else 0):
        if len(chosen) >= count:
            break
        mutant = space.mutate(rng.choice(parents), rng, probability=0.1)
        if mutant not in known:
            chosen[mutant] = None
    return [*chosen, *random_new(space, [*known, *chosen], count - len(chosen), rng)]


def spread(points: Sequence[Sequence[float]], placed: Sequence[Sequence[float]], count: int) -> list[int]:
    """Indices of `count` of `points`, each in turn the farthest from those `placed` or chosen before it.

    Distances are in units of the points' range in each objective. With nothing placed, the first is the one lowest in
    the first objective.
    """
    if count <= 0 or len(points) <= count:
        return list(range(len(points))) if count > 0 else []
    values = np.array(points, dtype=np.float64)
    low, span = values.min(axis=0), np.ptp(values, axis=0)
    scale = np.where(span > 0, span, 1.0)
    values = (values - low) / scale
    distances = np.full(len(points), np.inf)
    for other in placed:
        distances = np.minimum(distances, np.linalg.norm(values - (np.array(other) - low) / scale, axis=1))
    chosen: list[int] = []
    while len(chosen) < count:
        first = not placed and not chosen
        index = int(np.argmin(values[:, 0])) if first else int(np.argmax(distances))
        chosen.append(index)
        distances = np.minimum(distances, np.linalg.norm(values - values[index], axis=1))
        distances[index] = -1.0  # never again, even among equal points
    return chosen
