"""The axis map's vocabulary: which slice of which parameter each elastic dimension takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Axis:
    """Axis `dim` of `parameter` (its dotted name below one layer), such as ``Axis("output.dense.weight", 1)``; of a norm it
    may be a buffer.

    Along an axis of heads stand `head_size` entries for each head, or only one with `one_per_head`.
    """

    parameter: str
    dim: int
    one_per_head: bool = False


@dataclass(frozen=True)
class PositionTable:
    """A table of relative positions, outside the layers, that the heads of every layer compare with what they hold.

    Args:
        parameter: dotted name below the base model, of shape (rows, hidden size).
        listed_in: attribute below a layer that lists what is compared.
        products: those entries of the list for which each token is multiplied with every row.
    """

    parameter: str
    listed_in: str
    products: tuple[str, ...]


@dataclass(frozen=True)
class Dimension:
    """One count that a layer may keep fewer of.

    Args:
        name: such as ``heads``, as search spaces call it.
        units: the sets of units that it counts, each with the axes that hold them: a layer keeps as many of each set, and
            each is in an order of its own.
        size: the config's name of the full count: a number, or one for each stage.
        of_heads: whether a unit is an attention head, of `head_size` entries along an axis.
        fewer: a config's name and value with which the full count is only one in so many of `size`.
    """

    name: str
    units: tuple[tuple[Axis, ...], ...]
    size: str
    of_heads: bool = False
    fewer: tuple[str, str, int] | None = None

    @property
    def axes(self) -> tuple[Axis, ...]:
        """Those of all sets of units."""
        return tuple(axis for unit in self.units for axis in unit)


@dataclass(frozen=True)
class AxisMap:
    """What is elastic in one model family. It is data: forward, extraction and sorting all read it.

    Axes whose parameter a model lacks, by its config, are left out: see `subnetwork.present_axes`.

    Args:
        model_type: Hugging Face's name of the family.
        layers: dotted name of the list of layers below the base model; in networks of several stages with a ``*`` where the
            stage's number stands.
        inputs: what a sample is, tokens of a text or pixels of an image.
        heads: axes that hold one group of entries for each attention head.
        ffn: axes that hold one entry for each neuron of the MLP.
        filters: of layers without attention, what is elastic in them.
        head_counts: attributes below a layer that hold the number of heads.
        head_widths: attributes below a layer that hold the number of heads times the head size.
        attention: module below a layer whose output, or the first of its outputs, is that of the attention block, of
            shape (samples, tokens, hidden size).
        keys_values: linear modules below a layer that make keys and values of the attention block's first input, where the
            block can run on the first positions of that input alone while these read all of it; empty where it cannot.
        texts_too: the config's name of whether a sample is a text as well as an image.
        depth: the config's name of the number of layers, or of a list of those of each stage.
        ffn_size: the config's name of the number of neurons.
        embeddings: module below the base model that makes the first layer's input; None: the one with the model's input
            embeddings in it.
        channels: the config's names of the channels before the first stage and, a list, in each stage.
        traits: the config's names of what else the latency of layers depends on; what is unset or false is not named.
        token_types: whether the family's tokenizers tell the sentences of a pair apart (`token_type_ids`).
        positions_after_padding: whether positions are counted from the padding token's id plus one.
        extra_tokens: tokens of an image beside its patches, such as the class token.
        additive: whether what several heads, or neurons, put out is the sum of what each does; not where a norm stands between
            them and the projection after them.
        position_table: relative positions that attention reads, if it does.
        refused: attributes of a config that must be unset or zero, each with the reason.
    """

    model_type: str
    layers: str
    inputs: Literal["text", "image"]
    heads: tuple[Axis, ...] = ()
    ffn: tuple[Axis, ...] = ()
    filters: Dimension | None = None
    head_counts: tuple[str, ...] = ()
    head_widths: tuple[str, ...] = ()
    attention: str | None = None
    texts_too: str | None = None
    keys_values: tuple[str, ...] = ()
    depth: str = "num_hidden_layers"
    ffn_size: str = "intermediate_size"
    embeddings: str | None = None
    channels: tuple[str, str] | None = None
    traits: tuple[str, ...] = ()
    token_types: bool = False
    positions_after_padding: bool = False
    extra_tokens: int = 0
    additive: bool = True
    position_table: PositionTable | None = None
    refused: tuple[tuple[str, str], ...] = ()

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        """What a layer may keep fewer of, in the order of an architecture's counts."""
        if self.filters is not None:
            return (self.filters,)
        return (
            Dimension("heads", (self.heads,), "num_attention_heads", of_heads=True),
            Dimension("ffn", (self.ffn,), self.ffn_size),
        )

    @property
    def staged(self) -> bool:
        """Whether layers stand in several stages, of which the first layer changes the resolution and always stays."""
        return "*" in self.layers


def rows(*modules: str) -> tuple[Axis, ...]:
    """The output features of these linear modules: rows of the weight, entries of the bias."""
    return tuple(Axis(f"{module}.{parameter}", 0) for module in modules for parameter in ("weight", "bias"))


def columns(*modules: str) -> tuple[Axis, ...]:
    """The input features of these linear modules: columns of the weight."""
    return tuple(Axis(f"{module}.weight", 1) for module in modules)


def entries(*modules: str) -> tuple[Axis, ...]:
    """What these norms have for each entry that they normalise: of the weight, of the bias."""
    return tuple(Axis(f"{module}.{parameter}", 0) for module in modules for parameter in ("weight", "bias"))


def filters(convolution: str, norm: str, reader: str) -> tuple[Axis, ...]:
    """The output channels of a convolution without a bias: of its weight, of what the batch norm after it has for each, and
    of the convolution that reads them."""
    normed = tuple(Axis(f"{norm}.{name}", 0) for name in ("weight", "bias", "running_mean", "running_var"))
    return (Axis(f"{convolution}.weight", 0), *normed, *columns(reader))


def one_column_a_head(parameter: str) -> tuple[Axis, ...]:
    """The columns of a table in which each head has one."""
    return (Axis(parameter, 1, one_per_head=True),)
