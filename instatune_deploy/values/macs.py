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
        tokens: sequence length, for images patches plus class and other tokens, and the text's if there is one with them.
        fixed_macs: multiply-accumulates outside the layers, for one sample.
        fixed_parameters: parameters outside the layers.
        head_parameters: parameters of one head; None: its query, key and value with biases, and its part of the output.
        neuron_parameters: parameters of one MLP neuron; None: a row with its bias, and a column.
        layer_parameters: parameters of one layer that belong to no head or neuron; None: two norms and two biases.
        position_products: with how many things of a head each of the relative positions is multiplied: its queries,
            its keys, or both.
        position_rows: how many relative positions that are.
        position_bias: whether heads add a learned bias to their attention scores.
        text_tokens: those of `tokens` that are of the text beside an image.
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
    head_parameters: int | None = None
    neuron_parameters: int | None = None
    layer_parameters: int | None = None
    position_products: int = 0
    position_rows: int = 0
    position_bias: bool = False
    text_tokens: int = 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def signature(self) -> str:
        """Names the shapes that latency depends on; tables are found by it, whatever task the model is for. A head is a
        negligible part of a network, also where it reads every position: 9 tags on BERT-base are 0.008% of its MACs."""
        tokens = f"{self.tokens - self.text_tokens}+{self.text_tokens}" if self.text_tokens else f"{self.tokens}"
        sizes = f"h{self.hidden}-d{self.head_size}-{self.layers}x{self.heads}x{self.ffn}-t{tokens}"
        positions = f"-p{self.position_products}x{self.position_rows}" if self.position_products else ""
        return f"{self.family}-{sizes}{positions}{'-bias' if self.position_bias else ''}"

    def full(self) -> Architecture:
        """The full network."""
        return Architecture.uniform(self.layers, self.heads, self.ffn)


def count_macs(shape: ModelShape, architecture: Architecture) -> int:
    """Multiply-accumulates of one sample of `shape.tokens` tokens: those of matrix products and convolutions,
    as the paper counts them (BERT-base at 128 tokens: 11.17 G).

    Products of weights alone, such as projections of relative positions, do not count: an exported network holds their
    results.
    """
    total = shape.fixed_macs
    for heads, ffn in architecture.layers:
        width = heads * shape.head_size
        projections = 4 * shape.hidden * width * shape.tokens
        attention = 2 * shape.tokens**2 * width
        positions = shape.position_products * shape.position_rows * shape.tokens * width
        mlp = 2 * shape.hidden * ffn * shape.tokens
        total += projections + attention + positions + mlp
    return total


def count_parameters(shape: ModelShape, architecture: Architecture) -> int:
    """Parameters of a sub-network, biases and layer norms included."""
    head, layer = shape.head_parameters, shape.layer_parameters
    if head is None:
        head = shape.head_size * (4 * shape.hidden + 3)
    if layer is None:
        layer = 6 * shape.hidden
    neuron = shape.neuron_parameters
    if neuron is None:
        neuron = 2 * shape.hidden + 1
    return shape.fixed_parameters + sum(layer + heads * head + ffn * neuron for heads, ffn in architecture.layers)
