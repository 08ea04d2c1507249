"""From a network's fp32 ONNX file to the file that a deployment loads: IR, int8, half precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from instatune_deploy.device.lowering.half import to_fp16
from instatune_deploy.device.lowering.openvino import to_openvino
from instatune_deploy.device.lowering.pool import POOL
from instatune_deploy.device.lowering.quantize import (
    Calibration,
    quantize_onnx_dynamic,
    quantize_onnx_static,
    quantize_openvino,
)

#: The fp32 files of every network.
ONNX, IR = "model.onnx", "openvino_model.xml"
_ONNX_INT8, _ONNX_FP16, _IR_INT8 = "model_int8.onnx", "model_fp16.onnx", "openvino_model_int8.xml"
#: What each file is made from.
_SOURCES = {_ONNX_INT8: ONNX, _ONNX_FP16: ONNX, IR: ONNX, _IR_INT8: IR}
#: Every file that ONNX Runtime or OpenVINO loads.
FILES = (ONNX, *_SOURCES)


def parts(path: Path) -> list[Path]:
    """The files that a model file is made of, those that are there: itself and the weights beside it, of an IR or, in a
    fleet, of an ONNX file."""
    weights = path.with_name(POOL) if path.suffix == ".onnx" else path.with_suffix(".bin")
    return [part for part in (path, weights) if part.is_file()]


def reads_images(inputs: Mapping[str, Any]) -> bool:
    """Whether a network with these inputs, torch tensors by name, takes images; texts are whole numbers."""
    return any(tensor.is_floating_point() for tensor in inputs.values())


def source_of(file: str) -> str | None:
    """The file that `file` is converted or quantised from; None: it is exported."""
    return _SOURCES.get(file)


def lower(
    folder: Path, file: str, calibration: Calibration, *, image: bool, fast: bool = False, keep: Sequence[str] = ()
) -> Path:
    """`file` in `folder`, converted and quantised from the ``model.onnx`` there; what is there already is used.

    Args:
        file: one of `FILES`, as a runtime's `model_file` names it.
        calibration: samples, each inputs by name, batch first; those the network does not have are ignored.
        image: whether the network takes images: ONNX Runtime's int8 is then static, else dynamic.
        fast: quantise OpenVINO's file for its latency alone, see `quantize_openvino`.
        keep: of the operations that `file` would quantise, those that stay fp32, by their names in `source_of(file)`.

    Raises:
        ArtifactError: a file cannot be converted or quantised, or there is no ``model.onnx``.
    """
    path = folder / file
    if path.is_file() or file == ONNX:
        return path
    source = lower(folder, _SOURCES[file], calibration, image=image, fast=fast)
    if file == IR:
        to_openvino(source, path)
    elif file == _ONNX_FP16:
        to_fp16(source, path)
    elif file == _IR_INT8:
        quantize_openvino(source, path, calibration, fast=fast, keep=keep)
    elif image:
        quantize_onnx_static(source, path, calibration, keep=keep)
    else:
        quantize_onnx_dynamic(source, path, keep=keep)
    return path
