"""The networks a super-network holds: `Architecture`, one of them, and `SearchSpace`, all of them."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from instatune_deploy.errors import ArchitectureError, SpaceError, UnknownNameError


class LayerChoice(NamedTuple):
    """What one layer keeps: `heads` attention heads and `ffn` neurons of its MLP (counts)."""

    heads: int
    ffn: int


@dataclass(frozen=True)
class Architecture:
    """A sub-network: one `LayerChoice` a layer kept, first to last.

    It has no inactive genes: two equal networks are equal values with equal hashes. Prints as
    ``6L[12-1536 8-1024 ...]`` (layers, then heads-neurons of each) and parses back.
    """

    layers: tuple[LayerChoice, ...]

    def __post_init__(self) -> None:
        layers = tuple(c if isinstance(c, LayerChoice) else LayerChoice(*c) for c in self.layers)
        if not layers or any(choice.heads < 1 or choice.ffn < 1 for choice in layers):
            raise ArchitectureError(
                f"an architecture needs at least one layer, each with a head and a neuron: {layers}"
            )
        object.__setattr__(self, "layers", layers)

    @property
    def depth(self) -> int:
        """Number of layers kept."""
        return len(self.layers)

    @property
    def switches(self) -> int:
        """Number of layers that differ from the layer before."""
        return sum(a != b for a, b in zip(self.layers, self.layers[1:], strict=False))

    @classmethod
    def uniform(cls, depth: int, heads: int, ffn: int) -> Architecture:
        """`depth` equal layers."""
        return cls((LayerChoice(heads, ffn),) * depth)

    @classmethod
    def parse(cls, text: str) -> Architecture:
        """The architecture that prints as `text`.

        Raises:
            ArchitectureError: `text` is malformed, or its layer count differs from its layers.
        """
        match = re.fullmatch(r"\s*(\d+)L\[(\d+-\d+(?: +\d+-\d+)*)\]\s*", text)
        if match is None:
            raise ArchitectureError(f"cannot read architecture {text!r}: expected the form '2L[12-1536 8-1024]'")
        pairs = [pair.split("-") for pair in match[2].split()]
        if len(pairs) != int(match[1]):
            raise ArchitectureError(f"architecture {text!r} says {match[1]} layers but lists {len(pairs)}")
        return cls(tuple(LayerChoice(int(heads), int(ffn)) for heads, ffn in pairs))

    def __str__(self) -> str:
        return f"{self.depth}L[" + " ".join(f"{heads}-{ffn}" for heads, ffn in self.layers) + "]"


@dataclass(frozen=True)
class SearchSpace:
    """All sub-networks of a super-network.

    Args:
        depths: numbers of layers a sub-network may have, ascending.
        heads: for each layer of the full network, the head counts it may take, ascending.
        ffn: for each layer of the full network, the MLP widths it may take, ascending.
        drop_order: indices of the full network's layers, the first to go first; a sub-network of depth d lacks
            the first ``len(heads) - d`` of them.

    Raises:
        SpaceError: the parts contradict each other.
    """

    depths: tuple[int, ...]
    heads: tuple[tuple[int, ...], ...]
    ffn: tuple[tuple[int, ...], ...]
    drop_order: tuple[int, ...]

    def __post_init__(self) -> None:
        for name in ("depths", "drop_order"):
            object.__setattr__(self, name, tuple(int(value) for value in getattr(self, name)))
        for name in ("heads", "ffn"):
            object.__setattr__(self, name, tuple(tuple(int(v) for v in layer) for layer in getattr(self, name)))
        if len(self.heads) != len(self.ffn):
            raise SpaceError(f"heads are given for {len(self.heads)} layers but MLP widths for {len(self.ffn)}")
        for name, choices in [
            ("depths", self.depths),
            *(("heads", h) for h in self.heads),
            *(("ffn", f) for f in self.ffn),
        ]:
            if not choices or list(choices) != sorted(set(choices)) or choices[0] < 1:
                raise SpaceError(f"{name} must be positive, distinct and ascending, found {list(choices)}")
        if self.depths[-1] > self.layers:
            raise SpaceError(f"depth {self.depths[-1]} is more than the {self.layers} layers there are")
        if sorted(set(self.drop_order)) != sorted(self.drop_order) or not set(self.drop_order) <= set(
            range(self.layers)
        ):
            raise SpaceError(f"drop order {list(self.drop_order)} is not a list of distinct layers below {self.layers}")
        if len(self.drop_order) < self.layers - self.depths[0]:
            raise SpaceError(
                f"depth {self.depths[0]} drops {self.layers - self.depths[0]} layers, but the drop order names {len(self.drop_order)}"
            )

    @classmethod
    def homogeneous(cls, layers: int, depths: Sequence[int], heads: Sequence[int], ffn: Sequence[int]) -> SearchSpace:
        """The same choices in every layer; the last layers are dropped first."""
        return cls(
            tuple(sorted(set(depths))),
            (tuple(sorted(set(heads))),) * layers,
            (tuple(sorted(set(ffn))),) * layers,
            tuple(reversed(range(layers))),
        )

    @property
    def layers(self) -> int:
        """Number of layers of the full network."""
        return len(self.heads)

    def kept_layers(self, depth: int) -> tuple[int, ...]:
        """Indices of the full network's layers that a sub-network of `depth` keeps, ascending."""
        return self._kept[depth]

    @cached_property
    def _kept(self) -> tuple[tuple[int, ...], ...]:
        """The layers kept at every depth; a search asks for them hundreds of thousands of times."""
        dropped = [set(self.drop_order[: self.layers - depth]) for depth in range(self.layers + 1)]
        return tuple(tuple(i for i in range(self.layers) if i not in gone) for gone in dropped)

    def with_drop_order(self, drop_order: Sequence[int]) -> SearchSpace:
        """The same choices with another order in which layers go."""
        return SearchSpace(self.depths, self.heads, self.ffn, tuple(drop_order))

    @property
    def largest(self) -> Architecture:
        """The deepest and widest architecture."""
        kept = self.kept_layers(self.depths[-1])
        return Architecture(tuple(LayerChoice(self.heads[i][-1], self.ffn[i][-1]) for i in kept))

    @property
    def smallest(self) -> Architecture:
        """The shallowest and narrowest architecture."""
        kept = self.kept_layers(self.depths[0])
        return Architecture(tuple(LayerChoice(self.heads[i][0], self.ffn[i][0]) for i in kept))

    @property
    def head_choices(self) -> tuple[int, ...]:
        """Head counts that any layer may take, ascending."""
        return tuple(sorted({count for layer in self.heads for count in layer}))

    @property
    def ffn_choices(self) -> tuple[int, ...]:
        """MLP widths that any layer may take, ascending."""
        return tuple(sorted({width for layer in self.ffn for width in layer}))

    def __contains__(self, architecture: object) -> bool:
        if not isinstance(architecture, Architecture) or architecture.depth not in self.depths:
            return False
        kept = self.kept_layers(architecture.depth)
        return all(
            choice.heads in self.heads[i] and choice.ffn in self.ffn[i]
            for i, choice in zip(kept, architecture.layers, strict=True)
        )

    def check(self, architecture: Architecture) -> Architecture:
        """`architecture` itself.

        Raises:
            ArchitectureError: it is not in this space.
        """
        if architecture not in self:
            raise ArchitectureError(
                f"architecture {architecture} is not in the space (depths {list(self.depths)}, "
                f"heads {list(self.head_choices)}, MLP widths {list(self.ffn_choices)})"
            )
        return architecture

    @cached_property
    def size(self) -> int:
        """Number of different architectures."""
        return sum(
            math.prod(len(self.heads[i]) * len(self.ffn[i]) for i in self.kept_layers(depth)) for depth in self.depths
        )

    def sample_one(self, rng: random.Random) -> Architecture:
        """An architecture drawn uniformly over depth, then over each kept layer's choices."""
        kept = self.kept_layers(rng.choice(self.depths))
        return Architecture(tuple(LayerChoice(rng.choice(self.heads[i]), rng.choice(self.ffn[i])) for i in kept))

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

        def stacks(kept: tuple[int, ...]) -> Iterator[tuple[LayerChoice, ...]]:
            if not kept:
                yield ()
                return
            for heads in self.heads[kept[0]]:
                for ffn in self.ffn[kept[0]]:
                    for rest in stacks(kept[1:]):
                        yield (LayerChoice(heads, ffn), *rest)

        for depth in self.depths:
            for layers in stacks(self.kept_layers(depth)):
                yield Architecture(layers)

    def mutate(self, architecture: Architecture, rng: random.Random, *, probability: float) -> Architecture:
        """A different architecture of the space (unless it holds only one): each gene is redrawn with `probability`."""
        if self.size == 1:
            return architecture
        while True:
            depth = rng.choice(self.depths) if rng.random() < probability else architecture.depth
            inherited = dict(zip(self.kept_layers(architecture.depth), architecture.layers, strict=True))
            layers = []
            for i in self.kept_layers(depth):
                choice = inherited.get(i) or LayerChoice(rng.choice(self.heads[i]), rng.choice(self.ffn[i]))
                heads = rng.choice(self.heads[i]) if rng.random() < probability else choice.heads
                ffn = rng.choice(self.ffn[i]) if rng.random() < probability else choice.ffn
                layers.append(LayerChoice(heads, ffn))
            mutant = Architecture(tuple(layers))
            if mutant != architecture:
                return mutant
            probability = min(1.0, 2 * probability + 0.01)

    def crossover(self, first: Architecture, second: Architecture, rng: random.Random) -> Architecture:
        """A child with the depth of either parent and, layer by layer of the full network, the choice of either."""
        depth = rng.choice((first.depth, second.depth))
        parents = [dict(zip(self.kept_layers(p.depth), p.layers, strict=True)) for p in (first, second)]
        layers = []
        for i in self.kept_layers(depth):
            donors = [parent[i] for parent in parents if i in parent]
            layers.append(LayerChoice(rng.choice(donors).heads, rng.choice(donors).ffn))
        return Architecture(tuple(layers))

    def encode(self, architecture: Architecture) -> tuple[int, ...]:
        """Heads of every layer of the full network, then MLP widths; a dropped layer has 0 of both."""
        kept = dict(zip(self.kept_layers(architecture.depth), architecture.layers, strict=True))
        absent = LayerChoice(0, 0)
        choices = [kept.get(i, absent) for i in range(self.layers)]
        return (*(c.heads for c in choices), *(c.ffn for c in choices))

    def decode(self, genes: Sequence[int]) -> Architecture:
        """The architecture whose encoding is `genes`.

        Raises:
            ArchitectureError: `genes` is of another length or encodes nothing in this space.
        """
        if len(genes) != 2 * self.layers:
            raise ArchitectureError(f"expected {2 * self.layers} genes, found {len(genes)}")
        pairs = zip(genes[: self.layers], genes[self.layers :], strict=True)
        architecture = Architecture(tuple(LayerChoice(int(h), int(f)) for h, f in pairs if h or f))
        if self.encode(self.check(architecture)) != tuple(genes):
            raise ArchitectureError(f"genes {list(genes)} keep other layers than the drop order does")
        return architecture

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready description; `from_dict` reads it back."""
        return {"depths": self.depths, "heads": self.heads, "ffn": self.ffn, "drop_order": self.drop_order}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> SearchSpace:
        """The space that `to_dict` described.

        Raises:
            SpaceError: a field is missing or of the wrong form.
        """
        try:
            return cls(data["depths"], data["heads"], data["ffn"], data["drop_order"])
        except (KeyError, TypeError, ValueError) as error:
            raise SpaceError(f"not a search space: {error!r}") from None


@dataclass(frozen=True)
class SpacePreset:
    """A published space: the full model's layers, heads and MLP width, and the choices for it (counts)."""

    layers: int
    heads: int
    ffn: int
    depths: tuple[int, ...]
    head_choices: tuple[int, ...]
    ffn_choices: tuple[int, ...]

    def scaled(self, layers: int, heads: int, ffn: int) -> SearchSpace:
        """This preset for a model of another size, by ratio: depths rounded down, heads to the nearest count,
        MLP widths to the nearest multiple of 16; the full sizes are kept exactly."""

        def widths(choices: tuple[int, ...], full: int, size: int, step: int) -> list[int]:
            near = (max(step, step * round(size * choice / full / step)) for choice in choices)
            return [*(width for width in near if width < size), size]

        depths = [max(1, layers * depth // self.layers) for depth in self.depths]
        return SearchSpace.homogeneous(
            layers, depths, widths(self.head_choices, self.heads, heads, 1), widths(self.ffn_choices, self.ffn, ffn, 16)
        )


_VISION = SpacePreset(12, 12, 3072, (11, 12), (6, 8, 10, 12), (2048, 2560, 3072))
#: The spaces of InstaTune (arXiv 2308.15609).
PRESETS: dict[str, SpacePreset] = {
    "bert-base": SpacePreset(12, 12, 3072, (6, 7, 8, 9, 10, 11, 12), (6, 8, 10, 12), (1024, 2048, 3072)),
    "vit-base": _VISION,
    "beit3-base": _VISION,
}
#: What stands where a preset's name could: the choices are proposed for model and targets, see `values.proposal`.
AUTO = "auto"
#: The preset that ``paper`` stands for in each family.
FAMILY_PRESETS = {
    "beit": "beit3-base",
    "beit3": "beit3-base",
    "bert": "bert-base",
    "deberta-v2": "bert-base",
    "deit": "vit-base",
    "distilbert": "bert-base",
    "roberta": "bert-base",
    "vit": "vit-base",
}


def preset(name: str) -> SpacePreset:
    """The preset called `name`.

    Raises:
        UnknownNameError: there is none of that name.
    """
    if name not in PRESETS:
        raise UnknownNameError("space preset", name, PRESETS)
    return PRESETS[name]
