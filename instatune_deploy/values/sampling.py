"""Samples of a space: the first to be evaluated, new ones at random, and what a batch is filled up with."""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Iterable, Sequence

from instatune_deploy.values.macs import NetworkShape, count_macs
from instatune_deploy.values.space import Architecture, SearchSpace


def warm_start(space: SearchSpace, known: Iterable[Architecture], count: int, rng: random.Random) -> list[Architecture]:
    """New architectures that make `known` up to `count`: the largest, the smallest, homogeneous and random ones.

    About a quarter are homogeneous (every layer of a stage alike), spread over the space's sizes.
    """
    seen = dict.fromkeys(known)
    uniform = [architecture for architecture in space.uniform() if architecture in space]
    most = [space.stage_choices(kind) for kind in range(len(space.dimensions))]

    def size(architecture: Architecture) -> float:
        """In full layers, by their units."""
        stages = enumerate(architecture.stages)
        return sum(
            len(layers) * sum(count / of[stage][-1] for count, of in zip(layers[0], most, strict=True))
            for stage, layers in stages
        )  # fmt: skip

    uniform.sort(key=lambda architecture: (size(architecture), str(architecture)))
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


def spread_by_macs(shape: NetworkShape, architectures: Iterable[Architecture], count: int) -> list[Architecture]:
    """Up to `count` of `architectures` that are spread evenly over their order by multiply-accumulates, the ends included."""
    ordered = sorted(architectures, key=lambda a: (count_macs(shape, a), str(a)))
    if count >= len(ordered):
        return ordered
    if count < 2:
        return ordered[len(ordered) // 2 :][:count]
    return [ordered[round(i * (len(ordered) - 1) / (count - 1))] for i in range(count)]


def fill_up(
    space: SearchSpace,
    chosen: Sequence[Architecture],
    parents: Sequence[Architecture],
    known: Collection[Architecture],
    count: int,
    rng: random.Random,
) -> list[Architecture]:
    """`chosen` made up to `count` different architectures that are not `known`, or all that are left if there are fewer:
    by mutants of `parents`, then at random."""
    batch = dict.fromkeys(chosen)
    for _ in range(10 * count if parents else 0):
        if len(batch) >= count:
            break
        mutant = space.mutate(rng.choice(parents), rng, probability=0.1)
        if mutant not in known:
            batch[mutant] = None
    return [*batch, *random_new(space, [*known, *batch], count - len(batch), rng)]
