"""Bytes of a deployed network in closed form: its file, and the memory it needs. Estimates both, and called so."""

from __future__ import annotations

from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.macs import NetworkShape, count_parameters
from instatune_deploy.values.space import Architecture

_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}


def file_bytes(shape: NetworkShape, architecture: Architecture, deployment: Deployment) -> int:
    """Bytes of the weights in the file that a deployment loads.

    ONNX Runtime's int8 files keep everything outside the layers in fp32 (the embeddings, mostly), OpenVINO's do not;
    OpenVINO computes in half precision from the fp32 file. On MiniLM-L6 the files were within 1% of this.
    """
    inside, outside = _BYTES[deployment.precision], _BYTES[deployment.precision]
    if deployment.precision == "int8" and deployment.runtime == "onnxruntime":
        outside = 4
    elif deployment.precision != "int8" and deployment.runtime == "openvino":
        inside = outside = 4
    return _weights(shape, architecture, inside, outside)


def memory_bytes(shape: NetworkShape, architecture: Architecture, deployment: Deployment) -> int:
    """Bytes that weights and the largest activations of one call need: an estimate, without what a runtime adds.

    Those of the layer with the largest ones are counted, in the deployment's precision, except int8, where they are kept
    in fp32 between products.
    """
    precision = _BYTES[deployment.precision]
    # Where embeddings stay fp32 in the file they do so in memory.
    outside = 4 if deployment.precision == "int8" and deployment.runtime == "onnxruntime" else precision
    largest = max(
        shape.activations_of(stage, choice, first=not place)
        for stage, layers in enumerate(architecture.stages)
        for place, choice in enumerate(layers)
    )
    activations = deployment.batch * largest * (4 if deployment.precision == "int8" else precision)
    return _weights(shape, architecture, precision, outside) + activations


def _weights(shape: NetworkShape, architecture: Architecture, inside: int, outside: int) -> int:
    layers = count_parameters(shape, architecture) - shape.fixed_parameters
    return inside * layers + outside * shape.fixed_parameters
