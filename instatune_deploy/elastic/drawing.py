"""Which sub-networks an optimiser step trains: drawn uniformly, by size, or around the current front."""

from __future__ import annotations

import json
import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from instatune_deploy.values.macs import NetworkShape, count_macs
from instatune_deploy.values.space import Architecture, SearchSpace

Sampling = Literal["uniform", "sandwich", "macs", "front"]
#: Equal ranges of MACs that `macs` and `front` draw from in turn.
_BUCKETS = 8
_PER_BUCKET = 256
#: Candidates that `front` takes the best of.
_CANDIDATES = 8
#: Sub-networks seen before `front` trusts what it has learned.
_LEAST_SEEN = 64


@dataclass(frozen=True)
class DrawSettings:
    """How sub-networks are drawn.

    Args:
        subnetworks: M, sub-networks a step.
        sampling: ``uniform`` over depth, then over each layer's choices (the paper's); ``sandwich``: the smallest and
            uniform ones (Yu & Huang, 2019; with M = 1 in turn); ``macs``: every size is drawn, see `size_power`;
            ``front``: of several networks of a size drawn so, the one that has been the most accurate so far.
        size_power: with ``macs`` and ``front``, sizes are drawn in proportion to MACs to the minus this: 0 as often as any
            other, 1 as much computing for each, 2 mostly the small ones, which lose the most and cost the least.
        widen_epochs: over so many epochs the space grows from its largest choices to all of them (Cai et al.,
            2020, progressive shrinking); 0: it is whole from the start.
    """

    subnetworks: int = 1
    sampling: Sampling = "uniform"
    size_power: float = 0.0
    widen_epochs: float = 0.0


class Drawer:
    """Draws the sub-networks of each step; apart from ``front``, by seed and step alone.

    Args:
        space: what to draw from.
        shape: of the full network, for MACs.
        seed: of all draws.
    """

    def __init__(self, space: SearchSpace, shape: NetworkShape, settings: DrawSettings, *, seed: int) -> None:
        self.space, self.shape, self.settings, self.seed = space, shape, settings, seed
        by_size = settings.sampling in ("macs", "front")
        self._buckets = size_buckets(space, shape, seed=seed) if by_size else []
        means = [statistics.fmean(count_macs(shape, a) for a in bucket) for bucket in self._buckets]
        self._weights = [mean**-settings.size_power for mean in means]
        self.losses = LossModel(space) if settings.sampling == "front" else None

    def at(self, step: int, epoch: float) -> list[Architecture]:
        """The sub-networks of optimiser step `step` in epoch `epoch` (0 is the first)."""
        rng = random.Random(f"{self.seed}/{step}")
        space = self.space_at(epoch)
        wanted = self.settings.subnetworks
        if not self._buckets:
            drawn = [space.sample_one(rng) for _ in range(wanted)]
            if self.settings.sampling == "sandwich" and drawn and (wanted > 1 or step % 2):
                drawn[0] = space.smallest
            return drawn
        return [self._of_a_size(space, rng) for _ in range(wanted)]

    def space_at(self, epoch: float) -> SearchSpace:
        """The part of the space that is open in `epoch`."""
        if epoch >= self.settings.widen_epochs:
            return self.space
        return narrowed(self.space, epoch / self.settings.widen_epochs)

    def _of_a_size(self, space: SearchSpace, rng: random.Random) -> Architecture:
        """One from a bucket of those that the part of the space that is open has any of."""
        buckets, weights = self._buckets, self._weights
        if space is not self.space:
            buckets = [[a for a in bucket if a in space] for bucket in buckets]
            weights = [weight * bool(bucket) for weight, bucket in zip(weights, buckets, strict=True)]
            if not any(weights):
                return space.sample_one(rng)
        bucket = rng.choices(buckets, weights)[0]
        if self.losses is None or self.losses.seen < _LEAST_SEEN:
            return rng.choice(bucket)
        return min(rng.sample(bucket, min(_CANDIDATES, len(bucket))), key=self.losses.predict)

    @property
    def learns(self) -> bool:
        """Whether drawing depends on how the sub-networks have done."""
        return self.losses is not None

    def learn(self, architectures: Sequence[Architecture], excess: Sequence[float]) -> None:
        """Note how much larger the sub-networks' losses were than the full network's on the same samples."""
        if self.losses is not None:
            for architecture, loss in zip(architectures, excess, strict=True):
                self.losses.add(architecture, loss)

    def state(self) -> str:
        """What was learned, as text for a checkpoint."""
        return json.dumps(self.losses.to_dict() if self.losses is not None else {})

    def restore(self, text: str) -> None:
        """Take over what `state` gave."""
        if self.losses is not None:
            self.losses.restore(json.loads(text))


class LossModel:
    """Predicts a sub-network's loss in excess of the full network's: linear in what each layer keeps.

    A ridge regression on one indicator for each choice of each layer, over everything seen; what was seen long ago
    counts less, for the weights have moved on since.
    """

    _FORGET = 0.995
    _RIDGE = 1.0

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        self._columns: dict[tuple[int, int], int] = {}
        for index in range(space.layers):
            for gene in range(index, len(space.genes), space.layers):
                for value in (0, *space.genes[gene]):
                    self._columns[gene, value] = len(self._columns)
        size = len(self._columns)
        self._moments, self._target = np.zeros((size, size)), np.zeros(size)
        self.seen = 0
        self._weights: np.ndarray | None = None

    def _features(self, architecture: Architecture) -> np.ndarray:
        genes = self.space.encode(architecture)
        row = np.zeros(len(self._columns))
        for gene in enumerate(genes):
            row[self._columns[gene]] = 1
        return row

    def add(self, architecture: Architecture, excess: float) -> None:
        """Note one observation; what is not finite is left out."""
        if not math.isfinite(excess):
            return
        row = self._features(architecture)
        self._moments = self._FORGET * self._moments + np.outer(row, row)
        self._target = self._FORGET * self._target + excess * row
        self.seen, self._weights = self.seen + 1, None

    def predict(self, architecture: Architecture) -> float:
        """Predicted excess loss."""
        if self._weights is None:
            ridge = self._RIDGE * np.eye(len(self._target))
            self._weights = np.linalg.solve(self._moments + ridge, self._target)
        return float(self._features(architecture) @ self._weights)

    def to_dict(self) -> dict[str, object]:
        return {"seen": self.seen, "moments": self._moments.tolist(), "target": self._target.tolist()}

    def restore(self, data: dict[str, object]) -> None:
        """Take over what `to_dict` gave."""
        self.seen = int(str(data["seen"]))
        self._moments, self._target = np.array(data["moments"], float), np.array(data["target"], float)
        self._weights = None


def narrowed(space: SearchSpace, share: float) -> SearchSpace:
    """The largest choices of `space`: of each list the largest alone at `share` 0, all of it at 1."""

    def top(choices: tuple[int, ...]) -> tuple[int, ...]:
        return choices[len(choices) - 1 - int(share * len(choices)) :] if share < 1 else choices

    widths = tuple(tuple(map(top, kind)) for kind in space.widths)
    return replace(space, depths=tuple(map(top, space.depths)), widths=widths)


def size_buckets(space: SearchSpace, shape: NetworkShape, *, seed: int) -> list[list[Architecture]]:
    """Random architectures in equal ranges of MACs, from the smallest to the largest; a range without any is left out.

    Drawing every choice at random hardly ever gives a small or a large network, so each is drawn with a bias of its
    own toward small or large choices.
    """
    rng = random.Random(f"{seed}/buckets")
    low, high = count_macs(shape, space.smallest), count_macs(shape, space.largest)
    buckets: list[dict[Architecture, None]] = [{} for _ in range(_BUCKETS)]
    drawn = [space.smallest, space.largest] + [_biased(space, rng) for _ in range(8 * _BUCKETS * _PER_BUCKET)]
    for architecture in drawn:
        share = (count_macs(shape, architecture) - low) / max(1, high - low)
        bucket = buckets[min(_BUCKETS - 1, int(share * _BUCKETS))]
        if len(bucket) < _PER_BUCKET:
            bucket[architecture] = None
    return [list(bucket) for bucket in buckets if bucket]


def _biased(space: SearchSpace, rng: random.Random) -> Architecture:
    """An architecture whose choices are all rather small or all rather large; depth and each dimension have a bias of
    their own, so that a small network may be deep and narrow as well as shallow and wide."""
    common = rng.random()
    biases = [min(1.0, max(0.0, common + rng.uniform(-0.5, 0.5))) for _ in range(1 + len(space.dimensions))]

    def pick(choices: tuple[int, ...], bias: float) -> int:
        spot = rng.betavariate(1 + 4 * bias, 1 + 4 * (1 - bias))
        return choices[min(len(choices) - 1, int(spot * len(choices)))]

    depths = tuple(pick(stage, biases[0]) for stage in space.depths)
    layers = (zip(space.layer_choices[i], biases[1:], strict=True) for i in space.kept_layers(depths))
    return Architecture(tuple(tuple(pick(*known) for known in layer) for layer in layers), depths)
