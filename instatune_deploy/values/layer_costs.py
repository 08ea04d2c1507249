"""What a network's latency is made of: a cost for each choice of each layer, by the layer's place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from instatune_deploy.values.space import TRANSFORMER, Architecture, LayerChoice, SearchSpace
from instatune_deploy.values.trees import evaluate

#: The feature that counts layers unlike the one before.
SWITCH = "switch"


@dataclass(frozen=True)
class CostsMs:
    """The formula of `values.latency.LatencyTable`, in ms."""

    fixed: float
    layer: Mapping[str, float]
    switch: float
    trees: Sequence[Any] = ()
    dimensions: tuple[str, ...] = TRANSFORMER
    _known: dict[Any, float] = field(default_factory=dict, init=False, repr=False, compare=False)

    def of(self, architecture: Architecture) -> float:
        """Predicted latency of `architecture`.

        Raises:
            KeyError: a choice of it has no cost. ValueError: its layers have other dimensions.
        """
        several, total = len(architecture.depths) > 1, 0.0
        for stage, layers in enumerate(architecture.stages):
            for number, choice in enumerate(layers):
                key = (stage, not number, choice) if several else choice
                cost = self._known.get(key)
                if cost is None:
                    place = _place(stage, first=not number) if several else ""
                    cost = sum(self.layer[name] for name in _names(choice, self.dimensions, place))
                    self._known[key] = cost
                total += cost
        total = self.fixed + total + self.switch * architecture.switches
        if not self.trees:
            return total
        return total * (1 + evaluate(self.trees, features(architecture, self.dimensions)))


def features(architecture: Architecture, dimensions: Sequence[str] = TRANSFORMER) -> dict[str, float]:
    """What an estimate is made of: how many layers have each choice, and how many differ from the one before.

    A choice is named by its dimension, such as ``heads=12``; where there are several stages, by its layer's place too:
    ``stage2.filters=96``, of a stage's first layer ``stage2.first.filters=96``.
    """
    counts: dict[str, float] = {}
    several = len(architecture.depths) > 1
    for stage, layers in enumerate(architecture.stages):
        for place, choice in enumerate(layers):
            for name in _names(choice, dimensions, _place(stage, first=not place) if several else ""):
                counts[name] = counts.get(name, 0.0) + 1
    return {**counts, SWITCH: float(architecture.switches)}


def feature_names(space: SearchSpace) -> list[str]:
    """The features that any architecture of `space` may have."""
    several, names = len(space.stages) > 1, dict[str, None]()
    for stage, layers in enumerate(space.stage_layers):
        for dimension, kind in zip(space.dimensions, space.widths, strict=True):
            groups = [("", layers)] if not several else [
                (_place(stage, first=True), layers[:1]), (_place(stage, first=False), layers[1:])
            ]  # fmt: skip
            for place, group in groups:
                choices = sorted({count for i in group for count in kind[i]})
                names.update(dict.fromkeys(f"{place}{dimension}={count}" for count in choices))
    return [*names, SWITCH]


def _names(choice: LayerChoice, dimensions: Sequence[str], place: str) -> list[str]:
    return [f"{place}{dimension}={count}" for dimension, count in zip(dimensions, choice, strict=True)]


def _place(stage: int, *, first: bool) -> str:
    """A layer's place: of one stage, the first layer changes the resolution and the others are alike."""
    return f"stage{stage + 1}.{'first.' if first else ''}"
