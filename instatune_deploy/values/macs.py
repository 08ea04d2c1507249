"""Multiply-accumulates and parameters of an architecture in closed form, and the sizes they follow from."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from instatune_deploy.values.space import Architecture


@dataclass(frozen=True)
class ModelShape:
    """What of a network no choice of a sub-network changes.

    Args:
        family: Hugging Face's `model_type`, such as ``bert``.
        hidden: hidden size; `head_size`: size of one attention head.
        layers, heads, ffn: of the full network (counts).
        tokens: sequence length, for images patches plus class token.
        fixed_macs: multiply-accumulates outside the layers, for one sample.
        fixed_parameters: parameters outside the layers.
        qkv_bias: whether query, key and value have biases.
    """

    family: str
    hidden: int
    head_size: int
    layers: int
    heads: int
    ffn: int
    tokens: int
    fixed_macs: int
    fixed_parameters: int
    qkv_bias: bool = True

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def signature(self) -> str:
        """Names the shapes that latency depends on; tables are found by it, whatever task the model is for. A head is a
        negligible part of a network, also where it reads every position: 9 tags on BERT-base are 0.008% of its MACs."""
        return f"{self.family}-h{self.hidden}-d{self.head_size}-{self.layers}x{self.heads}x{self.ffn}-t{self.tokens}"

    def full(self) -> Architecture:
        """The full network."""
        return Architecture.uniform(self.layers, self.heads, self.ffn)


def count_macs(shape: ModelShape, architecture: Architecture) -> int:
    """Multiply-accumulates of one sample of `shape.tokens` tokens: those of matrix products and convolutions,
    as the paper counts them (BERT-base at 128 tokens: 11.17 G)."""
    total = shape.fixed_macs
    for heads, ffn in architecture.layers:
        width = heads * shape.head_size
        projections = 4 * shape.hidden * width * shape.tokens
        attention = 2 * shape.tokens**2 * width
        mlp = 2 * shape.hidden * ffn * shape.tokens
        total += projections + attention + mlp
    return total


def count_parameters(shape: ModelShape, architecture: Architecture) -> int:
    """Parameters of a sub-network, biases and layer norms included."""
    total = shape.fixed_parameters
    for heads, ffn in architecture.layers:
        width = heads * shape.head_size
        attention = 4 * shape.hidden * width + (3 * width if shape.qkv_bias else 0) + shape.hidden
        mlp = 2 * shape.hidden * ffn + ffn + shape.hidden
        total += attention + mlp + 4 * shape.hidden
    return total
