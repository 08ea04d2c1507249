"""`Template`: a network of a few layers, from which networks of any depth and any choices a layer follow.

Exporting a network takes seconds, whatever its weights; measuring latency needs dozens of networks, whatever their
weights. So one network of few, unequal layers is exported for real. A layer in it is the expression that computes the
layer's output from the one before. Laid beside each other, the layers' expressions must be the same but for their
constants, and every number in these - a size along an axis, or an integer such as a head count - must follow from the
layer's choice: be the same in all layers, or proportional to the heads, or to the neurons. Then the layer of another
choice is known, and a network is such layers stacked. What does not fit raises `NotUnderstoodError`: nothing is guessed.

Equal operations on equal inputs are made once, as the exporter does.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from instatune_deploy.values.space import LayerChoice

# Integers up to so many are a shape or another parameter of an operation; more of them are data.
_PARAMETERS = 16
_DIGITS = re.compile(r"\d+")


class NotUnderstoodError(Exception):
    """The network is not a stack of layers whose constants follow from their choices; it must be exported for real."""


@dataclass(frozen=True, eq=False)
class Input:
    """An input of the network."""

    name: str


@dataclass(frozen=True, eq=False)
class Constant:
    """A weight or parameter; `form` is the file format's name of its element type."""

    array: np.ndarray
    form: str


#: Sizes along the axes of a value, dynamic ones by name; None where the file does not say.
Shape: TypeAlias = "tuple[int | str | None, ...] | None"


@dataclass(frozen=True, eq=False, repr=False)  # printed with its operands it would be endless
class Operation:
    """An operation on `inputs`, of which optional ones may be None.

    Operations of equal `kind` compute the same; `source` is what the file format needs to write another one. `shapes`
    are what the file says of its outputs: they do not change what it computes, but ONNX Runtime fuses by them.
    """

    kind: Hashable
    inputs: tuple[Value | None, ...]
    source: Any = None
    shapes: tuple[Shape, ...] = ()


class Value(NamedTuple):
    """An output of an operation, an input, or a constant (`port` 0)."""

    node: Operation | Input | Constant
    port: int = 0


@dataclass(frozen=True)
class Network:
    """A network as an expression: its outputs by name, and the values within that have a name."""

    inputs: tuple[Input, ...]
    outputs: dict[str, Value]
    named: dict[str, Value]

    def operations(self) -> list[Operation]:
        """Every operation that the outputs need, operands first."""
        found: dict[Operation, None] = {}

        def visit(value: Value | None) -> None:
            if value is not None and isinstance(value.node, Operation) and value.node not in found:
                for operand in value.node.inputs:
                    visit(operand)
                found[value.node] = None

        for value in self.outputs.values():
            visit(value)
        return list(found)


class _Place(NamedTuple):
    """An input of an operation of the reference layer."""

    operation: Operation
    operand: int


class Template:
    """What a network's layers have in common, learned from a network with unequal ones.

    Args:
        network: of at least two layers.
        exits: names of the layers' outputs, the first layer's first.
        choices: the layers' heads and neurons.

    Raises:
        NotUnderstoodError: the layers differ in more than their sizes.
    """

    def __init__(self, network: Network, exits: Sequence[str], choices: Sequence[LayerChoice]) -> None:
        if len(exits) != len(choices) or len(exits) < 2 or any(name not in network.named for name in exits):
            raise NotUnderstoodError(f"found {len(exits)} of {len(choices)} layers, need two")
        self._network, self._choices = network, tuple(choices)
        self._exits = [network.named[name] for name in exits]
        # The second layer: what the first one reads is not known before the two are compared.
        self._reference = self._exits[1]
        comparisons = [_Comparison(self._exits, layer) for layer in range(len(exits))]
        self._constants = {place: [c.constants[place] for c in comparisons] for place in comparisons[0].constants}
        self._shapes = {a: [c.pairs[a].shapes for c in comparisons] for a in comparisons[0].pairs}
        entries = [comparison.entry for comparison in comparisons]
        if entries[0] is None or any(a != b for a, b in zip(entries[1:], self._exits, strict=False)):
            raise NotUnderstoodError("a layer reads another one than the one before")
        self._entry = entries[0]

    def network(self, layers: Sequence[LayerChoice]) -> Network:
        """The network of these layers.

        Raises:
            NotUnderstoodError: the template does not tell how large a constant must be for them.
        """
        builder = _Builder()
        hidden = builder.copy(self._entry, {}, self._exits)
        for position, choice in enumerate(layers):
            hidden = _LayerBuilder(self, builder, hidden, choice, position).build(self._reference)
        known = {self._exits[-1]: hidden}
        outputs = {name: builder.copy(value, known, self._exits) for name, value in self._network.outputs.items()}
        return Network(self._network.inputs, outputs, {})

    @property
    def first_exit(self) -> Value:
        """What the reference layer reads."""
        return self._exits[0]

    def constant(self, place: _Place, choice: LayerChoice, position: int) -> Constant:
        """The constant at `place` in a layer of `choice`.

        Args:
            position: the layer's index in the network; layers that are alike otherwise get different weights, since
                runtimes store equal ones once.

        Raises:
            NotUnderstoodError: see `network`.
        """
        seen = self._constants[place]
        if all(constant is seen[0] for constant in seen):
            return seen[0]
        arrays = [constant.array for constant in seen]
        if any(a.dtype != arrays[0].dtype or a.ndim != arrays[0].ndim for a in arrays):
            raise NotUnderstoodError("layers have constants of different types")
        shape = [self._number(sizes, choice) for sizes in zip(*(a.shape for a in arrays), strict=True)]
        is_integer = arrays[0].dtype.kind == "i" and arrays[0].itemsize >= 4
        if is_integer and arrays[0].size <= _PARAMETERS:
            numbers = [self._number(n, choice) for n in zip(*(a.ravel().tolist() for a in arrays), strict=True)]
            return Constant(np.array(numbers, arrays[0].dtype).reshape(shape), seen[0].form)
        if is_integer and all(np.array_equal(a, arrays[0]) for a in arrays):
            return seen[0]  # an index, such as that of relative positions: layers of other choices have the same
        repeats, layer = divmod(position, len(arrays))
        # Values do not matter but for being different and of the right magnitude.
        values = np.resize(np.roll(arrays[layer], repeats) if repeats else arrays[layer], shape)
        return Constant(values, seen[0].form)

    def shapes(self, operation: Operation, choice: LayerChoice) -> tuple[Shape, ...]:
        """Shapes of what `operation` of the reference layer makes in a layer of `choice`; None if that is not sure."""
        shapes = zip(*self._shapes[operation], strict=True)
        return tuple(self._shape(seen, choice) for seen in shapes)

    def _shape(self, seen: tuple[Shape, ...], choice: LayerChoice) -> Shape:
        known = [shape for shape in seen if shape is not None]
        if len(known) < len(seen) or len({len(shape) for shape in known}) > 1:
            return None
        sizes: list[int | str | None] = []
        for axis in zip(*known, strict=True):
            numbers = tuple(size for size in axis if isinstance(size, int))
            if len(numbers) == len(axis):
                sizes.append(self._number(numbers, choice))
            else:
                sizes.append(self._symbol(axis, choice))
        return tuple(sizes)

    def _symbol(self, seen: tuple[int | str | None, ...], choice: LayerChoice) -> str | None:
        """What a dynamic size such as ``12*batch`` is in a layer of `choice`; None if that is not sure."""
        if len(set(seen)) == 1 and not isinstance(seen[0], int):
            return seen[0]
        texts = [text for text in seen if isinstance(text, str)]
        if len(texts) < len(seen) or len({_DIGITS.sub("", text) for text in texts}) > 1:
            return None
        numbers = iter(
            [self._number(n, choice) for n in zip(*(map(int, _DIGITS.findall(t)) for t in texts), strict=True)]
        )
        return _DIGITS.sub(lambda _: str(next(numbers)), texts[0])

    def _number(self, seen: tuple[int, ...], choice: LayerChoice) -> int:
        """What a number that was `seen` in the template's layers is in a layer of `choice`."""
        possible: set[float] = {seen[0]} if len(set(seen)) == 1 else set()
        for axis in range(len(choice)):
            first, wanted = self._choices[0][axis], choice[axis]
            if all(n * first == seen[0] * c[axis] for n, c in zip(seen, self._choices, strict=True)):
                possible.add(seen[0] * wanted / first)
        if len(possible) != 1 or not float(next(iter(possible))).is_integer():
            raise NotUnderstoodError(f"{seen} in layers {self._choices} tells nothing about {choice}")
        return int(possible.pop())


class _Comparison:
    """The reference layer, the second, laid beside another one.

    `pairs` are the reference's operations and the other's; `constants` are the other's, by their place in the
    reference; `entry` is what the other layer reads where the reference reads the first layer's output.
    """

    def __init__(self, exits: list[Value], layer: int) -> None:
        self._first = exits[0]
        self._stops = {exit_ for index, exit_ in enumerate(exits) if index != layer}
        self.pairs: dict[Operation, Operation] = {}
        self.constants: dict[_Place, Constant] = {}
        self.entry: Value | None = None
        self._compare(exits[1], exits[layer])

    def _compare(self, reference: Value, other: Value) -> None:
        if reference == self._first:
            if self.entry not in (None, other):
                raise NotUnderstoodError("a layer reads two others")
            self.entry = other
            return
        a, b = reference.node, other.node
        if not isinstance(a, Operation):
            if a is not b:
                raise NotUnderstoodError("layers read different inputs")
            return
        if not isinstance(b, Operation) or reference.port != other.port or a.kind != b.kind or other in self._stops:
            raise NotUnderstoodError("layers consist of different operations")
        if a in self.pairs:
            if self.pairs[a] is not b:
                raise NotUnderstoodError("layers share operations differently")
            return
        self.pairs[a] = b
        if len(a.inputs) != len(b.inputs):
            raise NotUnderstoodError("layers consist of different operations")
        for index, (x, y) in enumerate(zip(a.inputs, b.inputs, strict=True)):
            if x is None or y is None:
                if x is not y:
                    raise NotUnderstoodError("layers consist of different operations")
            elif isinstance(x.node, Constant) and isinstance(y.node, Constant):
                self.constants[_Place(a, index)] = y.node
            else:
                self._compare(x, y)


@dataclass
class _Builder:
    """Makes operations, equal ones once."""

    made: dict[Hashable, Operation] = field(default_factory=dict)
    small: dict[Hashable, Constant] = field(default_factory=dict)

    def operation(self, like: Operation, inputs: Iterable[Value | None], shapes: tuple[Shape, ...]) -> Operation:
        """An operation such as `like` on other inputs, that makes `shapes`."""
        operation = Operation(like.kind, tuple(inputs), like.source, shapes)
        return self.made.setdefault((operation.kind, operation.inputs), operation)

    def constant(self, constant: Constant) -> Value:
        """`constant`, or the one of equal type and value that there is already, for those that hold parameters."""
        array = constant.array
        if array.size <= _PARAMETERS:
            constant = self.small.setdefault((constant.form, array.shape, array.tobytes()), constant)
        return Value(constant)

    def copy(self, value: Value, known: dict[Value, Value], exits: Sequence[Value]) -> Value:
        """`value` with those in `known` replaced.

        Raises:
            NotUnderstoodError: it needs one of `exits` that is not known.
        """
        if value in known:
            return known[value]
        if value in exits:
            raise NotUnderstoodError("something beside the layers reads one in the middle")
        if isinstance(value.node, Operation):
            inputs = [None if x is None else self.copy(x, known, exits) for x in value.node.inputs]
            known[value] = Value(self.operation(value.node, inputs, value.node.shapes), value.port)
        else:
            known[value] = self.constant(value.node) if isinstance(value.node, Constant) else value
        return known[value]


@dataclass
class _LayerBuilder:
    """Makes one layer, by the reference layer."""

    template: Template
    builder: _Builder
    hidden: Value
    choice: LayerChoice
    position: int
    made: dict[Operation, Operation] = field(default_factory=dict)

    def build(self, reference: Value) -> Value:
        """This layer's value that stands where the reference layer has `reference`."""
        if reference == self.template.first_exit:
            return self.hidden
        if not isinstance(reference.node, Operation):
            return reference
        operation = reference.node
        if operation not in self.made:
            inputs: list[Value | None] = []
            for index, operand in enumerate(operation.inputs):
                if operand is not None and isinstance(operand.node, Constant):
                    constant = self.template.constant(_Place(operation, index), self.choice, self.position)
                    inputs.append(self.builder.constant(constant))
                else:
                    inputs.append(None if operand is None else self.build(operand))
            shapes = self.template.shapes(operation, self.choice)
            self.made[operation] = self.builder.operation(operation, inputs, shapes)
        return Value(self.made[operation], reference.port)
