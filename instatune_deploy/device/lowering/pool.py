"""`WeightPool`: one file in which weights of several model files lie, each once."""

from __future__ import annotations

import os
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from instatune_deploy.device.lowering.external import move_out
from instatune_deploy.errors import ArtifactError

if TYPE_CHECKING:
    import onnx

#: The pool, as ONNX files know it, which have it beside them.
POOL = "weights.bin"
#: Weights of a page of memory and more begin with a page: who maps the file into memory reads nothing else.
_PAGE_BYTES = 4096
_ALIGNMENT_BYTES = 64


class WeightPool:
    """Puts weights into one file; a weight whose bytes another one begins with, or that equals it, is that one's.

    Rows of a matrix that is sorted by importance are such beginnings: a narrower network has the first ones of a wider.

    Args:
        stream: a new file, open for reading and writing.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._size = stream, 0
        self._known: dict[bytes, list[tuple[int, int]]] = {}

    def place(self, weight: bytes) -> int:
        """Where `weight` lies in the file, in bytes from its start."""
        places = self._known.setdefault(weight[:_ALIGNMENT_BYTES], [])
        for offset, size in places:
            if size >= len(weight) and os.pread(self._stream.fileno(), len(weight), offset) == weight:
                return offset
        step = _PAGE_BYTES if len(weight) >= _PAGE_BYTES else _ALIGNMENT_BYTES
        offset = -(-self._size // step) * step
        self._stream.seek(offset)
        self._stream.write(weight)
        self._stream.flush()
        self._size = offset + len(weight)
        places.append((offset, len(weight)))
        return offset


def pool_onnx(source: Path, destination: Path, pool: WeightPool) -> None:
    """Write the ONNX file `source` to `destination` with its weights of a page and more in `pool`.

    The result wants the pool's file beside it, under the name `POOL`.

    Raises:
        ArtifactError: it is unreadable, or its weights lie in a file of another name.
    """
    import onnx

    try:
        model = onnx.load(source, load_external_data=False)
        for tensor in model.graph.initializer:
            weight = _raw_bytes(tensor, source.parent)
            if len(weight) < _PAGE_BYTES:
                continue
            move_out(tensor, POOL, pool.place(weight), len(weight))
        onnx.save(model, destination)
    except ArtifactError:
        raise
    except Exception as error:  # protobuf and onnx have an error each
        raise ArtifactError(f"cannot read {source}: {' '.join(str(error).split())}") from error


def _raw_bytes(tensor: onnx.TensorProto, folder: Path) -> bytes:
    """A weight's bytes, wherever they are; none if it is stored as numbers, as small ones are.

    The onnx library reads no file that has several names, which a pool's file has.
    """
    from onnx.external_data_helper import ExternalDataInfo, uses_external_data

    if not uses_external_data(tensor):
        return bytes(tensor.raw_data)
    info = ExternalDataInfo(tensor)
    if info.location != POOL:
        raise ArtifactError(f"{folder}: weight {tensor.name} lies in {info.location}, not in {POOL}")
    with (folder / POOL).open("rb") as stream:
        stream.seek(info.offset or 0)
        return stream.read(info.length)


def pool_openvino(source: Path, destination: Path, pool: WeightPool) -> None:
    """Write the ``.xml`` of the IR `source` to `destination` with all its weights in `pool`.

    The result wants the pool's file beside it, under its own name with ``.bin``.

    Raises:
        ArtifactError: it is unreadable.
    """
    try:
        tree = ElementTree.parse(source)
        with source.with_suffix(".bin").open("rb") as stream:
            for layer in tree.iter("layer"):
                data = layer.find("data")
                if layer.get("type") != "Const" or data is None:
                    continue
                size = int(data.attrib["size"])
                stream.seek(int(data.attrib["offset"]))
                data.set("offset", str(pool.place(stream.read(size))))
        tree.write(destination, encoding="utf-8", xml_declaration=True)
    except (OSError, ElementTree.ParseError, KeyError, ValueError) as error:
        raise ArtifactError(f"cannot read {source}: {error}") from error
