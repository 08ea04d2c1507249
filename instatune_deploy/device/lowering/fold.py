"""Computes what follows from a network's weights alone, when it is exported."""

from __future__ import annotations

from typing import Any


def fold_weights(model: Any) -> None:
    """Replace what an `onnx_ir.Model` computes from weights alone by its values.

    DeBERTa projects its relative positions and BEiT looks up biases by them. Not all runtimes would compute that once, when
    they load the network, and quantisers would make int8 products of it. The exporter folds only what is small, so that
    layers with more heads would have other operations.
    """
    import onnx_ir
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    from_inputs, constant = set(model.graph.inputs), []
    for node in model.graph:  # operands come first
        if from_inputs.isdisjoint(node.inputs):
            constant.append(node)
        else:
            from_inputs.update(node.outputs)
    if not constant:
        return
    inner = set(constant)
    wanted = [out for node in constant for out in node.outputs if any(use.node not in inner for use in out.uses())]
    for old, array in zip(wanted, _evaluate(constant, [out.name for out in wanted], model), strict=True):
        tensor = onnx_ir.Tensor(array)
        new = onnx_ir.Value(
            name=f"{old.name}_folded", const_value=tensor, type=onnx_ir.TensorType(tensor.dtype), shape=tensor.shape
        )
        model.graph.register_initializer(new)
        onnx_ir.convenience.replace_all_uses_with(old, new)
    RemoveUnusedNodesPass()(model)


def _evaluate(nodes: list[Any], wanted: list[str], model: Any) -> list[Any]:
    """Arrays of the `wanted` values, that `nodes` of `model` compute from its weights."""
    import onnx
    import onnx_ir
    import onnxruntime

    weights = {value.name: value for node in nodes for value in node.inputs if value is not None}
    graph = onnx.helper.make_graph(
        [onnx_ir.to_proto(node) for node in nodes],
        "weights",
        inputs=[],
        outputs=[onnx.ValueInfoProto(name=name) for name in wanted],
        initializer=[
            onnx.numpy_helper.from_array(value.const_value.numpy(), name)
            for name, value in weights.items()
            if value.is_initializer()
        ],
    )
    opsets = [onnx.helper.make_opsetid(domain, version) for domain, version in model.graph.opset_imports.items()]
    proto = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=model.ir_version)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(wanted, {}))
