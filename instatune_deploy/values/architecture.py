"""`Architecture`: one of the networks that a super-network holds."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TypeAlias

from instatune_deploy.errors import ArchitectureError

#: What one layer keeps: a count for each of a space's dimensions, such as attention heads and neurons of the MLP.
LayerChoice: TypeAlias = tuple[int, ...]

_LAYER = r"\d+(?:-\d+)*"
_STAGE = rf"{_LAYER}(?: +{_LAYER})*"


@dataclass(frozen=True)
class Architecture:
    """A sub-network: a `LayerChoice` for each layer kept, first to last, in one stage or several.

    It has no inactive genes: two equal networks are equal values with equal hashes. Prints as
    ``6L[12-1536 8-1024 ...]`` (layers, then heads-neurons of each), in several stages as ``4L[64 32 | 128 96]``, and
    parses back.

    Args:
        depths: layers of each stage; none given: all layers are one stage.
    """

    layers: tuple[LayerChoice, ...]
    depths: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        layers = tuple(map(tuple, self.layers))
        object.__setattr__(self, "layers", layers)
        object.__setattr__(self, "depths", tuple(self.depths) or (len(layers),))
        if not layers or not all(layers) or min(map(min, layers)) < 1:
            raise ArchitectureError(
                f"an architecture needs at least one layer, and one unit of each kind in it: {layers}"
            )
        if len(set(map(len, layers))) > 1:
            raise ArchitectureError(f"the layers of an architecture must have as many counts each: {layers}")
        if sum(self.depths) != len(layers) or min(self.depths) < 1:
            raise ArchitectureError(f"stages of {list(self.depths)} layers cannot hold {len(layers)}")

    @property
    def depth(self) -> int:
        """Number of layers kept, of all stages."""
        return len(self.layers)

    @property
    def stages(self) -> tuple[tuple[LayerChoice, ...], ...]:
        """The layers of each stage."""
        if len(self.depths) == 1:
            return (self.layers,)
        ends = [sum(self.depths[: stage + 1]) for stage in range(len(self.depths))]
        return tuple(self.layers[end - depth : end] for end, depth in zip(ends, self.depths, strict=True))

    @property
    def switches(self) -> int:
        """Number of layers that differ from the layer before in their stage."""
        return sum(a != b for stage in self.stages for a, b in zip(stage, stage[1:], strict=False))

    @classmethod
    def uniform(cls, depth: int, *choice: int) -> Architecture:
        """`depth` equal layers in one stage, such as ``uniform(6, 12, 1536)`` of 12 heads and 1,536 neurons."""
        return cls((choice,) * depth)

    @classmethod
    def parse(cls, text: str) -> Architecture:
        """The architecture that prints as `text`.

        Raises:
            ArchitectureError: `text` is malformed, or its layer count differs from its layers.
        """
        match = re.fullmatch(rf"\s*(\d+)L\[({_STAGE}(?: *\| *{_STAGE})*)\]\s*", text)
        if match is None:
            raise ArchitectureError(f"cannot read architecture {text!r}: expected the form '2L[12-1536 8-1024]'")
        stages = [stage.split() for stage in match[2].split("|")]
        layers = tuple(tuple(map(int, layer.split("-"))) for stage in stages for layer in stage)
        if len(layers) != int(match[1]):
            raise ArchitectureError(f"architecture {text!r} says {match[1]} layers but lists {len(layers)}")
        return cls(layers, tuple(map(len, stages)))

    def __str__(self) -> str:
        stages = (" ".join("-".join(map(str, choice)) for choice in stage) for stage in self.stages)
        return f"{self.depth}L[" + " | ".join(stages) + "]"
