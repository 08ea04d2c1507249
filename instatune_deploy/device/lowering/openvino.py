"""From ONNX to OpenVINO's intermediate representation."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from instatune_deploy.device.lowering.lean import without_weights
from instatune_deploy.errors import ArtifactError


def to_openvino(onnx_path: Path, xml_path: Path) -> None:
    """Convert `onnx_path` to `xml_path` and the weights beside it (same stem, ``.bin``), which stay fp32.

    OpenVINO reads all weights into memory, twice for a while, unless they lie in another file than the graph: so it is
    given the graph alone, and maps the weights from `onnx_path`.

    Raises:
        ArtifactError: OpenVINO cannot read the network.
    """
    import openvino

    xml_path.parent.mkdir(parents=True, exist_ok=True)
    draft = xml_path.with_name(f".{xml_path.stem}.partial.xml")
    graph = onnx_path.with_name(f".{xml_path.stem}.partial.onnx")
    try:
        try:
            graph.write_bytes(without_weights(onnx_path).SerializeToString())
            model = openvino.Core().read_model(graph)
            _name_by_place(model)
            openvino.save_model(model, draft, compress_to_fp16=False)
        except (RuntimeError, ValueError, DecodeError) as error:
            reason = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise ArtifactError(f"openvino cannot convert {onnx_path}: {reason[-1] if reason else error!r}") from error
        # Weights first: who finds the .xml finds a complete network.
        os.replace(draft.with_suffix(".bin"), xml_path.with_suffix(".bin"))
        os.replace(draft, xml_path)
    finally:
        graph.unlink(missing_ok=True)
        draft.unlink(missing_ok=True)
        draft.with_suffix(".bin").unlink(missing_ok=True)


def _name_by_place(model: Any) -> None:
    """Name what the ONNX file has no names for by its place: OpenVINO counts what a process has made, so that the same file would
    give other bytes the second time."""
    operations = model.get_ordered_ops()
    unnamed = [operation.get_friendly_name() == operation.get_name() for operation in operations]
    known = {operation.get_friendly_name() for operation, free in zip(operations, unnamed, strict=True) if not free}
    for place, (operation, free) in enumerate(zip(operations, unnamed, strict=True)):
        if free:
            name = f"{operation.get_type_name()}_{place}"
            operation.set_friendly_name(name if name not in known else f"{name}_unnamed")
