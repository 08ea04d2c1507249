"""Multiply-accumulates and parameters of an architecture in closed form, and the sizes they follow from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from instatune_deploy.values.space import Architecture, LayerChoice


@dataclass(frozen=True)
class LayerCost:
    """What a layer costs: a fixed part, so much for each unit of each dimension, and so much for each pair of units of a
    dimension: a convolution between two elastic widths costs their product."""

    fixed: int
    each: tuple[int, ...]
    pair: tuple[int, ...]

    def of(self, choice: LayerChoice) -> int:
        """The cost of a layer that keeps `choice`."""
        units = zip(choice, self.each, self.pair, strict=True)
        return self.fixed + sum(count * (each + count * pair) for count, each, pair in units)


class NetworkShape(Protocol):
    """What of a network no choice of a sub-network changes, of whichever kind the network is."""

    @property
    def family(self) -> str:
        """Hugging Face's `model_type`, such as ``bert``."""
        ...

    @property
    def fixed_macs(self) -> int:
        """Multiply-accumulates outside the layers, for one sample."""
        ...

    @property
    def fixed_parameters(self) -> int:
        """Parameters outside the layers."""
        ...

    @property
    def signature(self) -> str:
        """Names the shapes that latency depends on; tables are found by it."""
        ...

    def full(self) -> Architecture:
        """The full network."""
        ...

    def macs_of(self, stage: int, *, first: bool) -> LayerCost:
        """Multiply-accumulates of a layer of a stage, its first one or another."""
        ...

    def parameters_of(self, stage: int, *, first: bool) -> LayerCost:
        """Parameters of a layer of a stage, its first one or another."""
        ...

    def activations_of(self, stage: int, choice: LayerChoice, *, first: bool) -> int:
        """The most numbers that one sample's activations need at a time in a layer."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready description; `shape_from_dict` reads it back."""
        ...


@dataclass(frozen=True)
class ModelShape:
    """What of a transformer no choice of a sub-network changes; all of its layers are shaped alike.

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

    def macs_of(self, stage: int, *, first: bool) -> LayerCost:
        """Projections, scores and mixtures of a head, what it compares with relative positions; both products of a neuron."""
        head = (4 * self.hidden + 2 * self.tokens + self.position_products * self.position_rows) * self.tokens
        return LayerCost(0, (head * self.head_size, 2 * self.hidden * self.tokens), (0, 0))

    def parameters_of(self, stage: int, *, first: bool) -> LayerCost:
        """Biases and norms included."""
        head, neuron, layer = self.head_parameters, self.neuron_parameters, self.layer_parameters
        if head is None:
            head = self.head_size * (4 * self.hidden + 3)
        if layer is None:
            layer = 6 * self.hidden
        if neuron is None:
            neuron = 2 * self.hidden + 1
        return LayerCost(layer, (head, neuron), (0, 0))

    def activations_of(self, stage: int, choice: LayerChoice, *, first: bool) -> int:
        """The larger of those of the attention (what goes in and comes out, queries, keys, values, and the scores of every
        head) and of the MLP (what goes in and comes out, and the neurons)."""
        heads, ffn = choice
        passed = 2 * self.tokens * self.hidden
        return max(
            passed + 3 * self.tokens * heads * self.head_size + heads * self.tokens**2, passed + self.tokens * ffn
        )


@dataclass(frozen=True)
class StageShape:
    """A stage of a convolutional network: `layers` of it, the filters of each (full count), their costs, and the most
    numbers that a layer's activations need beside `spots` for each filter. Its first layer, which may change the
    resolution, costs something else than the others."""

    layers: int
    filters: int
    macs: tuple[LayerCost, LayerCost]
    parameters: tuple[LayerCost, LayerCost]
    passed: tuple[int, int]
    spots: tuple[int, int]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> StageShape:
        """The shape that `dataclasses.asdict` described."""
        macs, parameters = (
            tuple(LayerCost(c["fixed"], tuple(c["each"]), tuple(c["pair"])) for c in data[name])
            for name in ("macs", "parameters")
        )
        passed, spots = tuple(data["passed"]), tuple(data["spots"])
        return cls(data["layers"], data["filters"], macs, parameters, passed, spots)  # type: ignore[arg-type]


@dataclass(frozen=True)
class ConvolutionalShape:
    """What of a convolutional network of several stages no choice of a sub-network changes.

    Args:
        family: Hugging Face's `model_type`, such as ``resnet``.
        traits: what else latency depends on, such as the kind of layers.
        image_size: pixels a side.
        channels: between the layers, before the first stage and in each.
        fixed_macs, fixed_parameters: outside the layers, for one sample.
    """

    family: str
    traits: tuple[str, ...]
    image_size: int
    channels: tuple[int, ...]
    stages: tuple[StageShape, ...]
    fixed_macs: int
    fixed_parameters: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ConvolutionalShape:
        """The shape that `to_dict` described."""
        stages = tuple(StageShape.from_dict(stage) for stage in data["stages"])
        rest = {"traits": tuple(data["traits"]), "channels": tuple(data["channels"]), "stages": stages}
        return cls(**{**data, **rest})

    @property
    def signature(self) -> str:
        """Names the shapes that latency depends on: channels before the stages, layers x filters x channels of each."""
        sizes = zip(self.stages, self.channels[1:], strict=True)
        stages = "-".join(f"{stage.layers}x{stage.filters}x{channels}" for stage, channels in sizes)
        return f"{self.family}-{'-'.join((*self.traits, str(self.channels[0]), stages))}-i{self.image_size}"

    def full(self) -> Architecture:
        """The full network."""
        layers = tuple((stage.filters,) for stage in self.stages for _ in range(stage.layers))
        return Architecture(layers, tuple(stage.layers for stage in self.stages))

    def macs_of(self, stage: int, *, first: bool) -> LayerCost:
        return self.stages[stage].macs[not first]

    def parameters_of(self, stage: int, *, first: bool) -> LayerCost:
        return self.stages[stage].parameters[not first]

    def activations_of(self, stage: int, choice: LayerChoice, *, first: bool) -> int:
        return self.stages[stage].passed[not first] + choice[0] * self.stages[stage].spots[not first]


def shape_from_dict(data: Mapping[str, Any]) -> NetworkShape:
    """The shape whose `to_dict` gave `data`.

    Raises:
        KeyError, TypeError: it is of another form.
    """
    return ConvolutionalShape.from_dict(data) if "stages" in data else ModelShape(**data)


def count_macs(shape: NetworkShape, architecture: Architecture) -> int:
    """Multiply-accumulates of one sample: those of matrix products and convolutions, as the paper counts them (BERT-base
    at 128 tokens: 11.17 G).

    Products of weights alone, such as projections of relative positions, do not count: an exported network holds their
    results.
    """
    return shape.fixed_macs + _sum_of(shape.macs_of, architecture)


def count_parameters(shape: NetworkShape, architecture: Architecture) -> int:
    """Parameters of a sub-network, biases and norms included."""
    return shape.fixed_parameters + _sum_of(shape.parameters_of, architecture)


def _sum_of(cost: Callable[..., LayerCost], architecture: Architecture) -> int:
    """The costs of all layers, `cost` giving that of a stage's first layer and of its others."""
    total = 0
    for stage, layers in enumerate(architecture.stages):
        first, other = cost(stage, first=True), cost(stage, first=False)
        total += first.of(layers[0]) + sum(other.of(choice) for choice in layers[1:])
    return total
