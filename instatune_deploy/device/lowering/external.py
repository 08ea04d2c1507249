"""Where an ONNX file's weights lie: in itself, or in files beside it and nowhere else."""

from __future__ import annotations

from collections.abc import Container, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from instatune_deploy.errors import ArtifactError


def check_external(path: Path, known: Container[str]) -> None:
    """Make sure that the weights which an ONNX file has elsewhere are in files of its own folder.

    Args:
        known: names of files in that folder that may hold weights.

    Raises:
        ArtifactError: the file is unreadable, or a weight is in none of them; names it.
    """
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's DecodeError is one of another library
        raise ArtifactError(f"cannot read {path}: {' '.join(str(error).split()):.200}") from None
    for tensor in _tensors(model):
        for entry in tensor.external_data:
            if entry.key != "location":
                continue
            inner = PurePosixPath(entry.value)
            if inner.is_absolute() or ".." in inner.parts or "\\" in entry.value or str(inner) not in known:
                raise ArtifactError(
                    f"{path} is refused: weight {tensor.name!r:.100} lies in {entry.value!r:.100}, which is no file of the artifact"
                )


def move_out(tensor: Any, location: str, offset: int, length: int) -> None:
    """Say that a tensor's bytes lie at `offset` of the file `location` beside its own; it loses those that it has."""
    from onnx.external_data_helper import set_external_data

    tensor.raw_data = b""  # the onnx library looks for it before it lets data be elsewhere
    set_external_data(tensor, location, offset, length)
    tensor.ClearField("raw_data")


def _tensors(message: Any) -> Iterator[Any]:
    """Every tensor in a message of ONNX, wherever it stands: weights, attributes, functions, graphs in graphs."""
    import onnx
    from google.protobuf.message import Message

    left = [message]
    while left:
        found = left.pop()
        if isinstance(found, onnx.TensorProto):
            yield found
            continue
        for field, value in found.ListFields():
            if field.type == field.TYPE_MESSAGE:
                left += [value] if isinstance(value, Message) else value
