"""The axis map's vocabulary: which slice of which parameter each elastic dimension takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Axis:
    """Axis `dim` of `parameter` (its dotted name below one layer), such as ``Axis("output.dense.weight", 1)``."""

    parameter: str
    dim: int


@dataclass(frozen=True)
class AxisMap:
    """What is elastic in one model family. It is data: forward, extraction and sorting all read it.

    Args:
        model_type: Hugging Face's name of the family.
        layers: dotted name of the list of layers below the base model.
        heads: axes that hold one group of `head_size` entries for each attention head.
        ffn: axes that hold one entry for each neuron of the MLP.
        head_counts: attributes below a layer that hold the number of heads.
        head_widths: attributes below a layer that hold the number of heads times the head size.
        attention: below a layer, the module whose (first) output is that of the attention block, of the hidden size.
        inputs: what a sample is, tokens of a text or pixels of an image.
    """

    model_type: str
    layers: str
    heads: tuple[Axis, ...]
    ffn: tuple[Axis, ...]
    head_counts: tuple[str, ...]
    head_widths: tuple[str, ...]
    attention: str
    inputs: Literal["text", "image"]


def rows(*modules: str) -> tuple[Axis, ...]:
    """The output features of these linear modules: rows of the weight, entries of the bias."""
    return tuple(Axis(f"{module}.{parameter}", 0) for module in modules for parameter in ("weight", "bias"))


def columns(module: str) -> tuple[Axis, ...]:
    """The input features of this linear module: columns of the weight."""
    return (Axis(f"{module}.weight", 1),)
