"""Multiply-accumulates counted on an exported graph, to hold the closed form against."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instatune_deploy.errors import ArtifactError

if TYPE_CHECKING:
    import onnx

_COUNTED = ("MatMul", "Gemm", "Conv", "Attention")


def count_macs_onnx(path: Path, input_shapes: dict[str, tuple[int, ...]]) -> int:
    """Multiply-accumulates of the matrix products, convolutions and attentions of an ONNX file.

    Those that read weights alone are not counted: runtimes compute them once, when they load the file.

    Args:
        input_shapes: the full shape of every input by its name, such as ``{"input_ids": (1, 128)}``.

    Raises:
        ArtifactError: an input has no shape given, or the network cannot run with those given.
    """
    import onnx

    model = onnx.load(path)
    from_inputs = {value.name for value in model.graph.input}
    nodes = []
    for node in model.graph.node:  # operands come first
        if from_inputs.intersection(node.input):
            from_inputs.update(node.output)
            if node.op_type in _COUNTED and node.domain in ("", "ai.onnx"):
                nodes.append(node)
    shapes = _shapes(
        model, {name for node in nodes for name in (*node.input, *node.output) if name}, input_shapes, path
    )
    total = 0
    for node in nodes:
        ins, out = [shapes[name] if name else () for name in node.input], shapes[node.output[0]]
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        total += _node_macs(node.op_type, ins, out, attributes)
    return total


def _node_macs(op: str, ins: list[tuple[int, ...]], out: tuple[int, ...], attributes: dict[str, Any]) -> int:
    """Multiply-accumulates of one node, given the shapes of its inputs and of its first output."""
    if op == "MatMul":
        return math.prod(out) * ins[0][-1]
    if op == "Gemm":
        return math.prod(out) * ins[0][0 if attributes.get("transA") else 1]
    if op == "Conv":
        return math.prod(out) * math.prod(ins[1][1:])  # a kernel's channels are already those of one group
    query, key, value = ins[:3]
    if len(query) == 4:  # (batch, heads, tokens, size); keys' heads may be shared
        return query[0] * query[1] * query[2] * key[2] * (query[3] + value[3])
    per_value_head = value[2] // attributes["kv_num_heads"]
    return query[0] * query[1] * key[1] * (query[2] + attributes["q_num_heads"] * per_value_head)


def _shapes(
    model: onnx.ModelProto, wanted: set[str], input_shapes: dict[str, tuple[int, ...]], path: Path
) -> dict[str, tuple[int, ...]]:
    """Shapes of the `wanted` tensors by name, found by running the graph: ONNX's own inference gives up at reshapes to
    computed sizes, which graphs with dynamic axes are full of."""
    import numpy as np
    import onnx
    import onnxruntime

    shapes = {weight.name: tuple(weight.dims) for weight in model.graph.initializer}
    inputs = {}
    for value in model.graph.input:
        if value.name not in input_shapes:
            raise ArtifactError(f"{path}: no shape is given for input {value.name}")
        dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        inputs[value.name] = np.ones(input_shapes[value.name], dtype)
    computed = sorted(wanted - shapes.keys() - inputs.keys())
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in computed)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # fused away, nothing counts
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        results = session.run(computed, inputs)
    except Exception as error:  # its errors share no base class
        raise ArtifactError(f"{path}: cannot find the shapes: {str(error).splitlines()[0]}") from error
    shapes.update({name: array.shape for name, array in inputs.items()})
    shapes.update({name: result.shape for name, result in zip(computed, results, strict=True)})
    return shapes
