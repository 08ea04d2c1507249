"""`SearchSpace`: all the networks that a super-network holds."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any

from instatune_deploy.errors import ArchitectureError, SpaceError
from instatune_deploy.values.architecture import Architecture, LayerChoice

__all__ = ["TRANSFORMER", "Architecture", "LayerChoice", "SearchSpace"]

#: The dimensions of a transformer's layers.
TRANSFORMER = ("heads", "ffn")


@dataclass(frozen=True)
class SearchSpace:
    """All sub-networks of a super-network, whose layers stand in one stage (transformers) or in several (convolutional
    networks, in which each stage halves the resolution).

    Layers have the numbers that they have in the full network, over all stages. A gene is one dimension of one layer.

    Args:
        depths: for each stage, numbers of layers a sub-network may have in it, ascending.
        widths: for each dimension and each layer of the full network, the counts it may take, ascending.
        drop_order: the full network's layers, the first to go first: a sub-network lacks the first of them that belong
            to a stage, as many as its depth there asks for. A layer that is not among them always stays.
        stages: numbers of layers of the full network in each stage; none given: all layers are one stage.
        dimensions: names of what the widths count.

    Raises:
        SpaceError: the parts contradict each other.
    """

    depths: tuple[tuple[int, ...], ...]
    widths: tuple[tuple[tuple[int, ...], ...], ...]
    drop_order: tuple[int, ...]
    stages: tuple[int, ...] = ()
    dimensions: tuple[str, ...] = TRANSFORMER

    def __post_init__(self) -> None:
        object.__setattr__(self, "depths", tuple(tuple(int(d) for d in stage) for stage in self.depths))
        object.__setattr__(
            self, "widths", tuple(tuple(tuple(int(w) for w in layer) for layer in kind) for kind in self.widths)
        )
        object.__setattr__(self, "drop_order", tuple(int(layer) for layer in self.drop_order))
        object.__setattr__(self, "dimensions", tuple(self.dimensions))
        if len(self.widths) != len(self.dimensions) or not self.widths:
            raise SpaceError(f"a space of {', '.join(self.dimensions)} has widths of {len(self.widths)} kinds")
        object.__setattr__(self, "stages", tuple(int(count) for count in self.stages) or (len(self.widths[0]),))
        for name, kind in zip(self.dimensions, self.widths, strict=True):
            if len(kind) != self.layers:
                raise SpaceError(f"{name} are given for {len(kind)} layers, but there are {self.layers}")
        if len(self.depths) != len(self.stages) or min(self.stages) < 1:
            raise SpaceError(f"depths are given for {len(self.depths)} stages of {list(self.stages)} layers")
        named = ((name, choices) for name, kind in zip(self.dimensions, self.widths, strict=True) for choices in kind)
        for name, choices in [*(("depths", stage) for stage in self.depths), *named]:
            if not choices or list(choices) != sorted(set(choices)) or choices[0] < 1:
                raise SpaceError(f"{name} must be positive, distinct and ascending, found {list(choices)}")
        order = list(self.drop_order)
        if sorted(set(order)) != sorted(order) or not set(order) <= set(range(self.layers)):
            raise SpaceError(f"drop order {order} is not a list of distinct layers below {self.layers}")
        for stage, (layers, depths) in enumerate(zip(self.stages, self.depths, strict=True)):
            there, droppable = (f" of stage {stage + 1}" if len(self.stages) > 1 else ""), len(self._drops[stage])
            if depths[-1] > layers:
                raise SpaceError(f"depth {depths[-1]}{there} is more than the {layers} layers there are")
            if droppable < layers - depths[0]:
                raise SpaceError(
                    f"depth {depths[0]}{there} drops {layers - depths[0]} layers, but the drop order names {droppable}"
                )

    @classmethod
    def stack(
        cls, depths: Sequence[int], heads: Sequence[Sequence[int]], ffn: Sequence[Sequence[int]],
        drop_order: Sequence[int],
    ) -> SearchSpace:  # fmt: skip
        """The space of a transformer: one stage, with the head counts and MLP widths that each layer may take."""
        widths = (tuple(map(tuple, heads)), tuple(map(tuple, ffn)))
        return cls((tuple(depths),), widths, tuple(drop_order))

    @classmethod
    def homogeneous(cls, layers: int, depths: Sequence[int], heads: Sequence[int], ffn: Sequence[int]) -> SearchSpace:
        """The same choices in every layer of a transformer; the last layers are dropped first."""
        return cls.stack(
            sorted(set(depths)), (sorted(set(heads)),) * layers, (sorted(set(ffn)),) * layers, range(layers)[::-1]
        )

    @cached_property
    def layers(self) -> int:
        """Number of layers of the full network."""
        return sum(self.stages)

    @cached_property
    def genes(self) -> tuple[tuple[int, ...], ...]:
        """The choices of each gene, in the order of `encode`."""
        return tuple(choices for kind in self.widths for choices in kind)

    @cached_property
    def layer_choices(self) -> tuple[tuple[tuple[int, ...], ...], ...]:
        """For each layer of the full network and each dimension the counts it may take."""
        return tuple(zip(*self.widths, strict=True))

    @cached_property
    def stage_layers(self) -> tuple[tuple[int, ...], ...]:
        """The full network's layers in each stage."""
        ends = [sum(self.stages[: stage + 1]) for stage in range(len(self.stages))]
        return tuple(tuple(range(end - count, end)) for end, count in zip(ends, self.stages, strict=True))

    @cached_property
    def _drops(self) -> tuple[tuple[int, ...], ...]:
        """The drop order of each stage."""
        return tuple(tuple(i for i in self.drop_order if i in layers) for layers in self.stage_layers)

    @cached_property
    def _kept(self) -> dict[tuple[int, ...], tuple[int, ...]]:
        """What `kept_layers` has found; a search asks for it hundreds of thousands of times."""
        return {}

    def kept_layers(self, depths: Sequence[int]) -> tuple[int, ...]:
        """The full network's layers, ascending, that a sub-network with `depths` layers in its stages keeps."""
        depths = tuple(depths)
        if depths not in self._kept:
            parts = zip(self.stage_layers, self._drops, depths, strict=True)
            self._kept[depths] = tuple(
                i for layers, drops, depth in parts for i in layers if i not in drops[: len(layers) - depth]
            )
        return self._kept[depths]

    def with_drop_order(self, drop_order: Sequence[int]) -> SearchSpace:
        """The same choices with another order in which layers go."""
        return replace(self, drop_order=tuple(drop_order))

    @cached_property
    def probing(self) -> SearchSpace:
        """Any depth, and in every layer any choice that its stage has in some layer: what tables are measured with.
        The last layers go first, of those that may go."""
        widths = tuple(
            tuple(self.stage_choices(kind)[stage] for stage, layers in enumerate(self.stage_layers) for _ in layers)
            for kind in range(len(self.dimensions))
        )
        # A layer that may not go at the smallest depth may at none.
        first = (layers[0] for layers in self.stage_layers)
        stays = {i for i in first if i not in self.drop_order} if len(self.stages) > 1 else set()
        order = tuple(i for i in reversed(range(self.layers)) if i not in stays)
        depths = tuple(tuple(range(1, layers + 1)) for layers in self.stages)
        return replace(self, depths=depths, widths=widths, drop_order=order)

    def _at(self, place: int) -> Architecture:
        """The architecture whose depths and choices are all the first (0) or the last (-1)."""
        depths = tuple(stage[place] for stage in self.depths)
        kept = self.kept_layers(depths)
        return Architecture(tuple(tuple(c[place] for c in self.layer_choices[i]) for i in kept), depths)

    @property
    def largest(self) -> Architecture:
        """The deepest and widest architecture."""
        return self._at(-1)

    @property
    def smallest(self) -> Architecture:
        """The shallowest and narrowest architecture."""
        return self._at(0)

    def stage_choices(self, dimension: int) -> list[tuple[int, ...]]:
        """For each stage the counts of a dimension that any of its layers may take, ascending."""
        kind = self.widths[dimension]
        return [tuple(sorted({count for i in layers for count in kind[i]})) for layers in self.stage_layers]

    def _choices(self, name: str) -> tuple[int, ...]:
        kind = self.widths[self.dimensions.index(name)]
        return tuple(sorted({count for layer in kind for count in layer}))

    @property
    def heads(self) -> tuple[tuple[int, ...], ...]:
        """For each layer of a transformer the head counts it may take, ascending."""
        return self.widths[self.dimensions.index("heads")]

    @property
    def ffn(self) -> tuple[tuple[int, ...], ...]:
        """For each layer of a transformer the MLP widths it may take, ascending."""
        return self.widths[self.dimensions.index("ffn")]

    @property
    def head_choices(self) -> tuple[int, ...]:
        """Head counts that any layer of a transformer may take, ascending."""
        return self._choices("heads")

    @property
    def ffn_choices(self) -> tuple[int, ...]:
        """MLP widths that any layer of a transformer may take, ascending."""
        return self._choices("ffn")

    def __contains__(self, architecture: object) -> bool:
        if not isinstance(architecture, Architecture) or len(architecture.depths) != len(self.stages):
            return False
        if any(depth not in known for depth, known in zip(architecture.depths, self.depths, strict=True)):
            return False
        if len(architecture.layers[0]) != len(self.dimensions):
            return False
        for i, choice in zip(self.kept_layers(architecture.depths), architecture.layers, strict=True):
            for count, choices in zip(choice, self.layer_choices[i], strict=True):
                if count not in choices:
                    return False
        return True

    def check(self, architecture: Architecture) -> Architecture:
        """`architecture` itself.

        Raises:
            ArchitectureError: it is not in this space.
        """
        if architecture not in self:
            raise ArchitectureError(f"architecture {architecture} is not in the space ({self.describe()})")
        return architecture

    def describe(self) -> str:
        """The choices in words."""
        names = [("depths", self.depths), *((n, self.stage_choices(d)) for d, n in enumerate(self.dimensions))]
        return ", ".join(f"{name} {' | '.join(str(list(stage)) for stage in stages)}" for name, stages in names)

    @cached_property
    def size(self) -> int:
        """Number of different architectures."""

        def choices(depths: Sequence[int], drops: Sequence[int], layers: Sequence[int]) -> int:
            kept = ([i for i in layers if i not in drops[: len(layers) - depth]] for depth in depths)
            return sum(math.prod(len(c) for i in stage for c in self.layer_choices[i]) for stage in kept)

        return math.prod(map(choices, self.depths, self._drops, self.stage_layers))

    def _draw(self, layer: int, rng: random.Random) -> LayerChoice:
        return tuple([rng.choice(choices) for choices in self.layer_choices[layer]])

    def sample_one(self, rng: random.Random) -> Architecture:
        """An architecture drawn uniformly over the depth of each stage, then over each kept layer's choices."""
        depths = tuple(rng.choice(stage) for stage in self.depths)
        return Architecture(tuple(self._draw(i, rng) for i in self.kept_layers(depths)), depths)

    def sample(self, n: int, *, seed: int) -> list[Architecture]:
        """Up to `n` different architectures (all of them if the space is smaller), the same for the same seed."""
        rng, found = random.Random(seed), dict[Architecture, None]()
        if n >= self.size:
            found = dict.fromkeys(self)
        while len(found) < min(n, self.size):
            found[self.sample_one(rng)] = None
        return list(found)

    def __iter__(self) -> Iterator[Architecture]:
        """Every architecture of the space once."""
        for depths in product(*self.depths):
            layers = (product(*self.layer_choices[i]) for i in self.kept_layers(depths))
            for stack in product(*map(tuple, layers)):
                yield Architecture(stack, depths)

    def uniform(self) -> Iterator[Architecture]:
        """The architectures whose layers are alike in each stage, which takes the smallest, the next... of its choices
        as the other stages do; some may not be in the space, where layers may not take all of their stage's choices."""
        kinds = (_ranks(self.stage_choices(kind)) for kind in range(len(self.dimensions)))
        for depths, *counts in product(_ranks(self.depths), *kinds):
            choices = zip(*counts, strict=True)
            layers = (choice for choice, depth in zip(choices, depths, strict=True) for _ in range(depth))
            yield Architecture(tuple(layers), depths)

    def mutate(self, architecture: Architecture, rng: random.Random, *, probability: float) -> Architecture:
        """A different architecture of the space (unless it holds only one): each gene is redrawn with `probability`."""
        if self.size == 1:
            return architecture
        while True:
            depths = tuple(
                rng.choice(choices) if rng.random() < probability else depth
                for choices, depth in zip(self.depths, architecture.depths, strict=True)
            )
            inherited = dict(zip(self.kept_layers(architecture.depths), architecture.layers, strict=True))
            layers = []
            for i in self.kept_layers(depths):
                genes = zip(self.layer_choices[i], inherited.get(i) or self._draw(i, rng), strict=True)
                layers.append(
                    tuple([rng.choice(choices) if rng.random() < probability else count for choices, count in genes])
                )
            mutant = Architecture(tuple(layers), depths)
            if mutant != architecture:
                return mutant
            probability = min(1.0, 2 * probability + 0.01)

    def crossover(self, first: Architecture, second: Architecture, rng: random.Random) -> Architecture:
        """A child with the depth of either parent in each stage and, gene by gene of the full network's layers, the count
        of either."""
        depths = tuple(rng.choice(pair) for pair in zip(first.depths, second.depths, strict=True))
        parents = [dict(zip(self.kept_layers(p.depths), p.layers, strict=True)) for p in (first, second)]
        layers = []
        for i in self.kept_layers(depths):
            donors = [parent[i] for parent in parents if i in parent]
            layers.append(tuple([rng.choice(donors)[kind] for kind in range(len(self.dimensions))]))
        return Architecture(tuple(layers), depths)

    def encode(self, architecture: Architecture) -> tuple[int, ...]:
        """The genes: of each dimension the count of every layer of the full network; a dropped layer has 0 of each."""
        kept = dict(zip(self.kept_layers(architecture.depths), architecture.layers, strict=True))
        absent = (0,) * len(self.dimensions)
        choices = [kept.get(i, absent) for i in range(self.layers)]
        return tuple(count for kind in zip(*choices, strict=True) for count in kind)

    def decode(self, genes: Sequence[int]) -> Architecture:
        """The architecture whose encoding is `genes`.

        Raises:
            ArchitectureError: `genes` is of another length or encodes nothing in this space.
        """
        if len(genes) != len(self.genes):
            raise ArchitectureError(f"expected {len(self.genes)} genes, found {len(genes)}")
        counts, layers = list(map(int, genes)), self.layers
        choices = list(zip(*(counts[start : start + layers] for start in range(0, len(counts), layers)), strict=True))
        depths = tuple([sum(any(choices[i]) for i in stage) for stage in self.stage_layers])
        if not all(depths):
            raise ArchitectureError(f"genes {list(genes)} keep no layer")
        architecture = Architecture(tuple([choice for choice in choices if any(choice)]), depths)
        if self.encode(self.check(architecture)) != tuple(genes):
            raise ArchitectureError(f"genes {list(genes)} keep other layers than the drop order does")
        return architecture

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready description; `from_dict` reads it back. One stage is not written as a list of one, and a
        transformer's dimensions are not named: spaces were written so before there were others."""
        one = len(self.stages) == 1
        names: dict[str, Any] = {} if self.dimensions == TRANSFORMER else {"dimensions": self.dimensions}
        return {
            "depths": self.depths[0] if one else self.depths,
            **dict(zip(self.dimensions, self.widths, strict=True)),
            "drop_order": self.drop_order,
            **({} if one else {"stages": self.stages}),
            **names,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> SearchSpace:
        """The space that `to_dict` described.

        Raises:
            SpaceError: a field is missing or of the wrong form.
        """
        try:
            names, stages = data.get("dimensions", TRANSFORMER), data.get("stages", ())
            depths = data["depths"] if stages else (data["depths"],)
            return cls(depths, tuple(data[name] for name in names), data["drop_order"], stages, names)
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise SpaceError(f"not a search space: {error!r}") from None


def _ranks(stages: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """For each rank, from the smallest to the largest, the choice of each stage; a stage with fewer choices than another
    takes some of them for several ranks."""
    most = max(map(len, stages))
    return [tuple(c[rank * (len(c) - 1) // max(1, most - 1)] for c in stages) for rank in range(most)]
