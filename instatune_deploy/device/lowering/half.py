"""From an fp32 ONNX file to one whose weights and arithmetic are fp16, for GPUs."""

from __future__ import annotations

import os
from pathlib import Path

from instatune_deploy.device.lowering.onnx import quiet
from instatune_deploy.errors import ArtifactError


def to_fp16(onnx_path: Path, fp16_path: Path) -> None:
    """Convert `onnx_path` to `fp16_path`, with inputs and outputs of the same types as before.

    Numbers beyond fp16's range, such as the lowest one that masks attention, become the nearest in it.

    Args:
        fp16_path: where to write; has either its old content or all of the new.

    Raises:
        ArtifactError: the file is unreadable or cannot be converted.
    """
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    try:
        with quiet():
            model = OnnxModel(convert_float_to_float16(onnx.load(onnx_path), keep_io_types=True))
            model.topological_sort()  # casts of inputs were added at the end
    except Exception as error:  # protobuf, onnx and the converter have an error each
        first = next((line for line in str(error).splitlines() if line.strip()), repr(error))
        raise ArtifactError(f"cannot convert {onnx_path} to fp16: {first}") from error
    fp16_path.parent.mkdir(parents=True, exist_ok=True)
    draft = fp16_path.with_name(f".{fp16_path.name}.partial")
    try:
        onnx.save(model.model, draft)
        os.replace(draft, fp16_path)
    finally:
        draft.unlink(missing_ok=True)
