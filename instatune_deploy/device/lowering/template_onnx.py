"""ONNX files as `template.Network`, and back."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Hashable
from pathlib import Path
from typing import Any

from instatune_deploy.device.lowering.onnx import write_onnx
from instatune_deploy.device.lowering.template import (
    Constant,
    Input,
    Network,
    NotUnderstoodError,
    Operation,
    Shape,
    Value,
)

#: Metadata in which the exporter says which modules an operation is of, outermost first.
_SCOPES = "pkg.torch.onnx.name_scopes"


def layer_exits(path: Path, layers: int) -> list[str]:
    """Names of the outputs of a network's layers, by what the exporter noted: the last value that each one makes.

    Args:
        path: what `export_onnx` wrote.
        layers: how many there are; the list of modules that has so many is taken for them.

    Raises:
        NotUnderstoodError: no list of modules has so many, or several have.
    """
    import onnx_ir

    last: dict[str, dict[int, str]] = defaultdict(dict)
    for node in onnx_ir.load(path).graph:
        for scope in ast.literal_eval(node.metadata_props.get(_SCOPES, "[]")):
            if match := re.fullmatch(r"(.+)\.(\d+)", scope):
                last[match[1]][int(match[2])] = str(node.outputs[0].name)
    stacks = [exits for exits in last.values() if sorted(exits) == list(range(layers))]
    if len(stacks) != 1:
        raise NotUnderstoodError(f"{len(stacks)} lists of modules have {layers} members")
    return [stacks[0][index] for index in range(layers)]


def read_onnx(path: Path) -> Network:
    """The network in an ONNX file.

    Raises:
        NotUnderstoodError: it has functions or control flow.
    """
    import onnx_ir

    model = onnx_ir.load(path)
    if model.functions:
        raise NotUnderstoodError("the network has functions")
    inputs = {value: Input(str(value.name)) for value in model.graph.inputs}
    values: dict[Any, Value] = {value: Value(node) for value, node in inputs.items()}
    for weight in model.graph.initializers.values():
        tensor = weight.const_value
        if tensor is None:
            raise NotUnderstoodError("a weight is not in the file")
        values[weight] = Value(Constant(tensor.numpy(), tensor.dtype.name))
    for node in model.graph:
        operands = tuple(None if value is None else values[value] for value in node.inputs)
        operation = Operation(_kind(node), operands, node, tuple(_shape(output) for output in node.outputs))
        values.update((output, Value(operation, port)) for port, output in enumerate(node.outputs))
    outputs = {str(value.name): values[value] for value in model.graph.outputs}
    named = {str(value.name): ours for value, ours in values.items() if value.name}
    return Network(tuple(inputs.values()), outputs, named)


def _kind(node: Any) -> Hashable:
    """What a node computes, apart from its operands."""
    import onnx_ir

    simple = {onnx_ir.AttributeType[name] for name in ("INT", "INTS", "FLOAT", "FLOATS", "STRING", "STRINGS")}
    attributes = []
    for attribute in node.attributes.values():
        if attribute.type not in simple:
            raise NotUnderstoodError(f"{node.op_type} has {attribute.name} of type {attribute.type}")
        value = attribute.value
        attributes.append((attribute.name, tuple(value) if isinstance(value, list) else value))
    return (node.domain, node.op_type, node.overload, len(node.outputs), tuple(sorted(attributes)))


def _shape(value: Any) -> Shape:
    """The shape that the file notes of a value."""
    if value.shape is None:
        return None
    return tuple(size if isinstance(size, int) else size.value for size in value.shape)


def write_network_onnx(network: Network, like: Path, path: Path) -> None:
    """Write `network` to `path` as ONNX; versions, inputs and outputs are those of the file `like`.

    Raises:
        ArtifactError: the network is larger than one ONNX file can be (2 GB).
    """
    import onnx_ir

    header = onnx_ir.load(like)
    values: dict[Value, Any] = {}
    for node, value in zip(network.inputs, header.graph.inputs, strict=True):
        values[Value(node)] = onnx_ir.Value(name=value.name, type=value.type, shape=value.shape)
    weights: list[Any] = []
    nodes = []
    for number, operation in enumerate(network.operations()):
        for operand in operation.inputs:
            if operand is not None and operand not in values and isinstance(operand.node, Constant):
                name = f"constant_{len(weights)}"
                tensor = onnx_ir.Tensor(operand.node.array, dtype=onnx_ir.DataType[operand.node.form], name=name)
                weights.append(onnx_ir.Value(name=name, const_value=tensor, type=onnx_ir.TensorType(tensor.dtype)))
                weights[-1].shape = tensor.shape
                values[operand] = weights[-1]
        source = operation.source
        name = f"{source.op_type}_{number}"
        outputs = [
            onnx_ir.Value(
                name=f"{name}_{port}", type=output.type, shape=None if shape is None else onnx_ir.Shape(shape)
            )
            for port, (output, shape) in enumerate(zip(source.outputs, operation.shapes, strict=True))
        ]
        nodes.append(
            onnx_ir.Node(
                source.domain,
                source.op_type,
                [None if operand is None else values[operand] for operand in operation.inputs],
                list(source.attributes.values()),
                overload=source.overload,
                outputs=outputs,
                name=name,
            )
        )
        values.update((Value(operation, port), output) for port, output in enumerate(outputs))
    for value in header.graph.outputs:
        output = values[network.outputs[str(value.name)]]
        output.name, output.type, output.shape = value.name, value.type, value.shape
    graph = onnx_ir.Graph(
        [values[Value(node)] for node in network.inputs],
        [values[network.outputs[str(value.name)]] for value in header.graph.outputs],
        nodes=nodes,
        initializers=weights,
        opset_imports=dict(header.graph.opset_imports),
        name=header.graph.name,
    )
    write_onnx(onnx_ir.Model(graph, ir_version=header.ir_version, producer_name=header.producer_name), path)
