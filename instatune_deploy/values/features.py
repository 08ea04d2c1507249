"""Features: numbers that carry the structure of an architecture, for what learns from evaluated ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from instatune_deploy.errors import UsageError
from instatune_deploy.values.macs import ModelShape, count_macs
from instatune_deploy.values.space import Architecture, SearchSpace

#: Kinds of steps: a layer is there, it keeps more heads, it keeps more neurons.
PRESENCE, HEADS, NEURONS = range(3)


@dataclass(frozen=True)
class UnitScores:
    """How much each head and each MLP neuron of the full network matters: for each layer a score of each, the first
    kept first; larger matters more, none is negative.

    Raises:
        UsageError: a score is negative or not a number.
    """

    heads: tuple[tuple[float, ...], ...]
    ffn: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        for name in ("heads", "ffn"):
            layers = tuple(tuple(float(score) for score in layer) for layer in getattr(self, name))
            if not all(score >= 0 and math.isfinite(score) for layer in layers for score in layer):
                raise UsageError(f"importance scores of {name} must be finite and not negative")
            object.__setattr__(self, name, layers)

    def to_dict(self) -> dict[str, Any]:
        return {"heads": self.heads, "ffn": self.ffn}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> UnitScores:
        return cls(data["heads"], data["ffn"])


@dataclass(frozen=True)
class Features:
    """The features of the architectures of one space.

    Args:
        shape: where given, sums by block are of multiply-accumulates; otherwise layers are weighed as in a usual
            transformer, whose MLP is twice its attention.
        importance: where given, heads and neurons count by the share of their layer's importance that they hold,
            otherwise all alike.

    Raises:
        UsageError: `importance` is of another number of layers, or scores fewer units than a layer may keep.
    """

    space: SearchSpace
    shape: ModelShape | None = None
    importance: UnitScores | None = None

    def __post_init__(self) -> None:
        if self.importance is None:
            return
        for name, scores, choices in (
            ("heads", self.importance.heads, self.space.heads),
            ("neurons", self.importance.ffn, self.space.ffn),
        ):
            if len(scores) != len(choices):
                raise UsageError(
                    f"importance is given for the {name} of {len(scores)} layers, the space has {len(choices)}"
                )
            for layer, (found, kept) in enumerate(zip(scores, choices, strict=True)):
                if len(found) < kept[-1]:
                    raise UsageError(
                        f"importance is given for {len(found)} {name} of layer {layer}, the space keeps up to {kept[-1]}"
                    )

    @property
    def count_names(self) -> list[str]:
        """Names of the columns of `counts`."""
        layers = range(self.space.layers)
        return [*(f"heads_{i}" for i in layers), *(f"ffn_{i}" for i in layers), "depth"]

    def counts(self, architectures: Sequence[Architecture]) -> np.ndarray:
        """Heads, then MLP widths of every layer of the full network, then depth.

        Returns:
            Shape ``(n, 2 * layers + 1)``, counts; a dropped layer has 0 of both.

        Raises:
            ArchitectureError: one is not in the space.
        """
        rows = [[*self.space.encode(self.space.check(a)), a.depth] for a in architectures]
        return np.array(rows, dtype=np.float64).reshape(len(rows), 2 * self.space.layers + 1)

    @property
    def step_names(self) -> list[str]:
        """Names of the columns of `steps`."""
        return [f"{self.count_names[gene]}>={choice}" for gene, choice in self._steps]

    def steps(self, counts: np.ndarray) -> np.ndarray:
        """One column for each step from a choice of a gene to the next, 1 where it is taken.

        A layer's first choice of heads means that the layer is there. Sums of columns are ordered as architectures
        are: one that has more of everything takes all the steps of one that has less.

        Args:
            counts: shape ``(n, 2 * layers + 1)``, of `counts`.

        Returns:
            Shape ``(n, len(step_names))``, 0 or 1.
        """
        choices = np.array([choice for _, choice in self._steps])
        return (counts[:, self.step_genes] >= choices).astype(np.float64)

    @cached_property
    def step_kinds(self) -> np.ndarray:
        """`PRESENCE`, `HEADS` or `NEURONS` for each step, shape ``(steps,)``."""
        first = {(gene, choices[0]) for gene, choices in enumerate(self.space.heads)}
        return np.array(
            [PRESENCE if step in first else HEADS if step[0] < self.space.layers else NEURONS for step in self._steps]
        )

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
                choices = (*self.space.heads, *self.space.ffn)[gene]
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
        depths = np.array([a.depth for a in architectures]) / self.space.depths[-1]
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
        found = cls(
            SearchSpace.from_dict(data["space"]),
            None if shape is None else ModelShape(**shape),
            None if importance is None else UnitScores.from_dict(importance),
        )
        if (data["counts"], data["steps"], data["sums"]) != (found.count_names, found.step_names, found.sum_names):
            raise UsageError("its features are not those of its space")
        return found

    @cached_property
    def _steps(self) -> list[tuple[int, int]]:
        """Gene (a column of `counts`) and the choice that it reaches. A layer's first MLP width comes with the layer."""
        heads = [(gene, choice) for gene, choices in enumerate(self.space.heads) for choice in choices]
        first = self.space.layers
        return heads + [(first + i, choice) for i, choices in enumerate(self.space.ffn) for choice in choices[1:]]

    @cached_property
    def _blocks(self) -> list[np.ndarray]:
        """The layers of the largest network in up to three runs."""
        kept = np.array(self.space.kept_layers(self.space.depths[-1]))
        return np.array_split(kept, min(3, len(kept)))

    def _share(self, gene: int, count: int) -> float:
        """Of the units that a gene keeps at most (or of their importance), what the first `count` are."""
        most = (*self.space.heads, *self.space.ffn)[gene][-1]
        if self.importance is not None:
            scores = (*self.importance.heads, *self.importance.ffn)[gene][:most]
            if sum(scores) > 0:  # units that all score nothing are all alike
                return sum(scores[:count]) / sum(scores)
        return count / most

    def _layer_costs(self, counts: np.ndarray) -> np.ndarray:
        """Multiply-accumulates of each layer, or what stands for them, shape ``(n, layers)``."""
        layers = self.space.layers
        if self.shape is None:
            head_cost, neuron_cost = 1 / max(self.space.head_choices), 2 / max(self.space.ffn_choices)
        else:
            one, head, neuron = (count_macs(self.shape, Architecture.uniform(1, *c)) for c in ((1, 1), (2, 1), (1, 2)))
            head_cost, neuron_cost = head - one, neuron - one
        return np.asarray(counts[:, :layers] * head_cost + counts[:, layers : 2 * layers] * neuron_cost)
