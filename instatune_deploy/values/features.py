"""Features: numbers that carry the structure of an architecture, for what learns from evaluated ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from instatune_deploy.errors import UsageError
from instatune_deploy.values.macs import NetworkShape, shape_from_dict
from instatune_deploy.values.space import TRANSFORMER, Architecture, SearchSpace

#: Kinds of steps: a layer is there, it keeps more of the first dimension of the space, more of the second.
PRESENCE, HEADS, NEURONS = range(3)


@dataclass(frozen=True)
class UnitScores:
    """How much each unit of the full network's layers matters, such as each head and each MLP neuron: for each dimension
    and each layer a score of each unit, the first kept first; larger matters more, none is negative.

    Raises:
        UsageError: a score is negative or not a number.
    """

    scores: tuple[tuple[tuple[float, ...], ...], ...]
    dimensions: tuple[str, ...] = TRANSFORMER

    def __post_init__(self) -> None:
        scores = tuple(tuple(tuple(float(score) for score in layer) for layer in kind) for kind in self.scores)
        for name, kind in zip(self.dimensions, scores, strict=True):
            if not all(score >= 0 and math.isfinite(score) for layer in kind for score in layer):
                raise UsageError(f"importance scores of {name} must be finite and not negative")
        object.__setattr__(self, "scores", scores)
        object.__setattr__(self, "dimensions", tuple(self.dimensions))

    @cached_property
    def genes(self) -> tuple[tuple[float, ...], ...]:
        """The scores of each gene, in the order of `SearchSpace.genes`."""
        return tuple(layer for kind in self.scores for layer in kind)

    def to_dict(self) -> dict[str, Any]:
        return dict(zip(self.dimensions, self.scores, strict=True))

    @classmethod
    def from_dict(cls, data: dict[str, Any], dimensions: Sequence[str] = TRANSFORMER) -> UnitScores:
        return cls(tuple(data[name] for name in dimensions), tuple(dimensions))


@dataclass(frozen=True)
class Features:
    """The features of the architectures of one space.

    Args:
        shape: where given, sums by block are of multiply-accumulates; otherwise layers are weighed as in a usual
            transformer, whose MLP is twice its attention.
        importance: where given, units count by the share of their layer's importance that they hold, otherwise all
            alike.

    Raises:
        UsageError: `importance` is of another number of layers, or scores fewer units than a layer may keep.
    """

    space: SearchSpace
    shape: NetworkShape | None = None
    importance: UnitScores | None = None

    def __post_init__(self) -> None:
        if self.importance is None:
            return
        for name, scores, kind in zip(self.space.dimensions, self.importance.scores, self.space.widths, strict=True):
            if len(scores) != len(kind):
                raise UsageError(
                    f"importance is given for the {name} of {len(scores)} layers, the space has {len(kind)}"
                )
            for layer, (found, choices) in enumerate(zip(scores, kind, strict=True)):
                if len(found) < choices[-1]:
                    raise UsageError(
                        f"importance is given for {len(found)} {name} of layer {layer}, the space keeps up to {choices[-1]}"
                    )

    @property
    def count_names(self) -> list[str]:
        """Names of the columns of `counts`."""
        return [*(f"{name}_{i}" for name in self.space.dimensions for i in range(self.space.layers)), "depth"]

    def counts(self, architectures: Sequence[Architecture]) -> np.ndarray:
        """The genes (of a transformer heads, then MLP widths of every layer of the full network), then depth.

        Returns:
            Shape ``(n, genes + 1)``, counts; a dropped layer has 0 of each.

        Raises:
            ArchitectureError: one is not in the space.
        """
        rows = [[*self.space.encode(self.space.check(a)), a.depth] for a in architectures]
        return np.array(rows, dtype=np.float64).reshape(len(rows), len(self.space.genes) + 1)

    @property
    def step_names(self) -> list[str]:
        """Names of the columns of `steps`."""
        return [f"{self.count_names[gene]}>={choice}" for gene, choice in self._steps]

    def steps(self, counts: np.ndarray) -> np.ndarray:
        """One column for each step from a choice of a gene to the next, 1 where it is taken.

        A layer's first choice of the first dimension means that the layer is there. Sums of columns are ordered as architectures
        are: one that has more of everything takes all the steps of one that has less.

        Args:
            counts: shape ``(n, genes + 1)``, of `counts`.

        Returns:
            Shape ``(n, len(step_names))``, 0 or 1.
        """
        choices = np.array([choice for _, choice in self._steps])
        return (counts[:, self.step_genes] >= choices).astype(np.float64)

    @cached_property
    def step_kinds(self) -> np.ndarray:
        """`PRESENCE`, `HEADS` or `NEURONS` for each step, shape ``(steps,)``."""
        first = {(gene, choices[0]) for gene, choices in enumerate(self.space.widths[0])}
        return np.array([PRESENCE if step in first else 1 + step[0] // self.space.layers for step in self._steps])

    @cached_property
    def step_genes(self) -> np.ndarray:
        """The gene of each step, a column of `counts`, shape ``(steps,)``."""
        return np.array([gene for gene, _ in self._steps])

    @cached_property
    def step_sizes(self) -> np.ndarray:
        """What each step adds to the share of the layer's units (or of their importance) that is kept, relative to the
        mean of its kind, shape ``(steps,)``; 1 where a layer appears."""
        sizes = np.ones(len(self._steps))
        for number, (gene, choice) in enumerate(self._steps):
            if self.step_kinds[number] != PRESENCE:
                choices = self.space.genes[gene]
                before = choices[choices.index(choice) - 1]
                sizes[number] = self._share(gene, choice) - self._share(gene, before)
        for kind in (HEADS, NEURONS):
            mean = sizes[self.step_kinds == kind].mean() if (self.step_kinds == kind).any() else 0.0
            if mean > 0:
                sizes[self.step_kinds == kind] /= mean
        return sizes

    @property
    def sum_names(self) -> list[str]:
        """Names of the columns of `sums`."""
        return ["macs", *(f"macs_block_{i}" for i in range(len(self._blocks))), "depth_share"]

    def sums(self, architectures: Sequence[Architecture]) -> np.ndarray:
        """Multiply-accumulates of all layers and of each third of them, then depth: shares of the largest network's.

        Returns:
            Shape ``(n, len(sum_names))``, 0..1.

        Raises:
            ArchitectureError: one is not in the space.
        """
        costs = self._layer_costs(self.counts(architectures))
        full = self._layer_costs(self.counts([self.space.largest]))
        columns = [costs.sum(1) / full.sum()]
        columns += [costs[:, block].sum(1) / full[:, block].sum() for block in self._blocks]
        depths = np.array([a.depth for a in architectures]) / self.space.largest.depth
        return np.column_stack([*columns, depths])

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready description; `from_dict` reads it back."""
        return {
            "space": self.space.to_dict(),
            "shape": None if self.shape is None else self.shape.to_dict(),
            "importance": None if self.importance is None else self.importance.to_dict(),
            "counts": self.count_names,
            "steps": self.step_names,
            "sums": self.sum_names,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Features:
        """The features that `to_dict` described.

        Raises:
            SpaceError: the space is missing or of the wrong form.
            KeyError, TypeError, ValueError: something else is.
            UsageError: the columns are not those that this release makes of the space.
        """
        shape, importance = data["shape"], data["importance"]
        space = SearchSpace.from_dict(data["space"])
        found = cls(
            space,
            None if shape is None else shape_from_dict(shape),
            None if importance is None else UnitScores.from_dict(importance, space.dimensions),
        )
        if (data["counts"], data["steps"], data["sums"]) != (found.count_names, found.step_names, found.sum_names):
            raise UsageError("its features are not those of its space")
        return found

    @cached_property
    def _steps(self) -> list[tuple[int, int]]:
        """Gene (a column of `counts`) and the choice that it reaches. A layer's first choices come with the layer."""
        first = self.space.layers
        return [
            (gene, choice)
            for gene, choices in enumerate(self.space.genes)
            for choice in (choices if gene < first else choices[1:])
        ]

    @cached_property
    def _blocks(self) -> list[np.ndarray]:
        """The layers of the largest network in up to three runs."""
        kept = np.array(self.space.kept_layers(self.space.largest.depths))
        return np.array_split(kept, min(3, len(kept)))

    def _share(self, gene: int, count: int) -> float:
        """Of the units that a gene keeps at most (or of their importance), what the first `count` are."""
        most = self.space.genes[gene][-1]
        if self.importance is not None:
            scores = self.importance.genes[gene][:most]
            if sum(scores) > 0:  # units that all score nothing are all alike
                return sum(scores[:count]) / sum(scores)
        return count / most

    def _layer_costs(self, counts: np.ndarray) -> np.ndarray:
        """Multiply-accumulates of each layer, or what stands for them, shape ``(n, layers)``; without what a layer costs
        whatever it keeps."""
        each, pair = self._unit_costs
        kept = counts[:, : each.size].reshape(len(counts), *each.shape)
        return np.asarray((kept * (each + kept * pair)).sum(1))

    @cached_property
    def _unit_costs(self) -> tuple[np.ndarray, np.ndarray]:
        """What a unit costs, and a pair of them, both of shape ``(dimensions, layers)``."""
        space = self.space
        if self.shape is None:
            most = [[max(c) for c, n in zip(space.stage_choices(d), space.stages, strict=True) for _ in range(n)]
                    for d in range(len(space.dimensions))]  # fmt: skip
            # A second dimension, the MLP, costs twice what the first does.
            each = (1 + np.arange(len(most)))[:, None] / np.array(most)
            return each, np.zeros_like(each)
        costs = [
            self.shape.macs_of(stage, first=not place)
            for stage, layers in enumerate(space.stages)
            for place in range(layers)
        ]
        return tuple(np.array([getattr(c, name) for c in costs], float).T for name in ("each", "pair"))  # type: ignore[return-value]
