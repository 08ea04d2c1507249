"""Which networks to measure: the fewest probes that tell most about a space, and networks that no fit sees."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from instatune_deploy.values.layer_costs import feature_names, features
from instatune_deploy.values.space import Architecture, SearchSpace

_CANDIDATES = 300
_SWEEPS = 6
#: Makes every design invertible; too small to change which is best.
_RIDGE = 1e-6


def probe_architectures(space: SearchSpace, spare: int = 1) -> list[Architecture]:
    """The networks of `space` whose latencies determine those of all others best, the largest and the smallest first.

    As many as the table has independent entries, and `spare` more, so that one that is off shows. Which ones: those that
    minimise the mean variance of predictions over the space (an I-optimal design), found by exchanging one at a time.
    Networks of equal layers, the obvious probes, give predictions with four times that variance.
    """
    seed = 0  # the probes of a space are always the same
    pool = list(
        dict.fromkeys([space.largest, space.smallest, *_covering(space), *_some(space, _CANDIDATES, seed=seed)])
    )
    rows = _relative_rows(pool, space)
    rank = int(np.linalg.matrix_rank(rows, tol=1e-8))
    count = min(len(pool), rank + spare)
    kept = 2 if len(pool) > 1 else 1
    chosen = _exchange(rows, count, kept=min(kept, count), rng=np.random.default_rng(seed))
    return [pool[number] for number in chosen]


def heldout_architectures(
    space: SearchSpace, n: int = 12, *, seed: int, probes: Sequence[Architecture]
) -> list[Architecture]:
    """Up to `n` different architectures of `space` that are not among `probes`, drawn at random; none if all are."""
    drawn = _some(space, n + len(probes), seed=seed)
    return [architecture for architecture in drawn if architecture not in set(probes)][:n]


def _some(space: SearchSpace, n: int, *, seed: int) -> list[Architecture]:
    return space.sample(min(space.size, n), seed=seed)


def _covering(space: SearchSpace) -> list[Architecture]:
    """For each choice of each layer a network that has it, for a random sample may lack a rare one."""
    found, deepest = [], space.largest.depths
    for stage, depth in ((stage, depth) for stage, depths in enumerate(space.depths) for depth in depths):
        depths = (*deepest[:stage], depth, *deepest[stage + 1 :])
        kept = space.kept_layers(depths)
        widest = [tuple(choices[-1] for choices in space.layer_choices[layer]) for layer in kept]
        for place, layer in enumerate(kept):
            for kind, counts in enumerate(space.layer_choices[layer]):
                for count in counts:
                    choice = (*widest[place][:kind], count, *widest[place][kind + 1 :])
                    found.append(Architecture((*widest[:place], choice, *widest[place + 1 :]), depths))
    return found


def _relative_rows(architectures: Sequence[Architecture], space: SearchSpace) -> np.ndarray:
    """The features of each architecture, over what it costs by a rough guess: errors count relative to the latency."""
    names = feature_names(space)
    counts = [features(architecture, space.dimensions) for architecture in architectures]
    table = np.array([[1.0, *(found.get(name, 0.0) for name in names)] for found in counts])
    most = [space.stage_choices(kind) for kind in range(len(space.dimensions))]
    guess = [
        0.3 + sum(
            sum(count / of[stage][-1] for count, of in zip(choice, most, strict=True))
            for stage, layers in enumerate(a.stages) for choice in layers
        )
        for a in architectures
    ]  # fmt: skip
    return table / np.array(guess)[:, None]


def _exchange(rows: np.ndarray, count: int, *, kept: int, rng: np.random.Generator) -> list[int]:
    """`count` rows, the first `kept` among them, with the least mean variance of predictions for all rows."""
    moments = rows.T @ rows / len(rows)
    chosen = [*range(kept), *(kept + rng.permutation(len(rows) - kept)[: count - kept]).tolist()]
    best = np.inf
    for _ in range(_SWEEPS):
        before = best
        for place in range(kept, count):
            others = [row for number, row in enumerate(chosen) if number != place]
            information = rows[others].T @ rows[others] + _RIDGE * np.eye(rows.shape[1])
            # All candidates at once: adding a row to a design changes its inverse by a rank-one term.
            inverse = np.linalg.inv(information)
            moved = rows @ inverse
            gain = np.einsum("ij,jk,ik->i", moved, moments, moved) / (1 + np.einsum("ij,ij->i", moved, rows))
            gain[others] = -np.inf
            chosen[place] = int(np.argmax(gain))
            best = float(np.trace(inverse @ moments) - gain[chosen[place]])
        if best > 0.999 * before:
            break
    return chosen
