"""What a model file takes and gives: names, element types and sizes of its inputs and outputs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instatune_deploy.errors import ArtifactError

#: Element types by the names that ONNX Runtime and OpenVINO have for them.
_TYPES = {
    "tensor(int64)": "int64", "tensor(int32)": "int32", "tensor(float)": "float32", "tensor(float16)": "float16",
    "i64": "int64", "i32": "int32", "f32": "float32", "f16": "float16",
}  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """An input or output: NumPy's name of its element type, and its sizes, -1 where any will do."""

    name: str
    dtype: str
    dims: tuple[int, ...]


@dataclass(frozen=True)
class Signature:
    """The inputs and outputs of a model file, in its order."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


def read_signature(path: Path) -> Signature:
    """The signature of an ONNX file or an OpenVINO IR.

    Raises:
        ArtifactError: it is unreadable, or has a tensor of another type than numbers that networks take.
    """
    try:
        inputs, outputs = _openvino(path) if path.suffix == ".xml" else _onnx(path)
    except Exception as error:  # both runtimes raise several types without a common base
        raise ArtifactError(f"cannot read {path}: {' '.join(str(error).split())}") from error
    return Signature(tuple(map(_tensor, inputs)), tuple(map(_tensor, outputs)))


def _tensor(raw: tuple[str, str, list[Any]]) -> Tensor:
    name, kind, dims = raw
    if kind not in _TYPES:
        raise ArtifactError(f"tensor {name} is of type {kind}, known are {', '.join(sorted(set(_TYPES.values())))}")
    return Tensor(name, _TYPES[kind], tuple(size if isinstance(size, int) else -1 for size in dims))


def _onnx(path: Path) -> tuple[list[Any], list[Any]]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return tuple(
        [(v.name, v.type, v.shape) for v in values] for values in (session.get_inputs(), session.get_outputs())
    )  # type: ignore[return-value]


def _openvino(path: Path) -> tuple[list[Any], list[Any]]:
    import openvino

    model = openvino.Core().read_model(path)
    return tuple(  # type: ignore[return-value]
        [
            (
                port.get_any_name(), port.get_element_type().get_type_name(),
                [d.get_length() if d.is_static else None for d in port.get_partial_shape()],
            )
            for port in ports
        ]
        for ports in (model.inputs, model.outputs)
    )  # fmt: skip
