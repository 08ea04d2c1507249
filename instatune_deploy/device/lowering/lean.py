"""Reading a large ONNX file without its weights: they stay in the file, and who wants them maps it into memory."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

import onnx

from instatune_deploy.device.lowering.external import move_out

#: Weights that are smaller stay in the message.
_LEAST_BYTES = 4096
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5


def without_weights(path: Path) -> onnx.ModelProto:
    """The model in `path`, each of its large weights as external data that lies in `path` itself.

    Saved beside `path`, the message is a network of the same weights, none of which was read.

    Raises:
        ValueError: the file is no protobuf message.
    """
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        model = onnx.ModelProto()
        rest, graph_rest, weights = bytearray(), bytearray(), []
        for field, begin, content, end in _fields(data, 0, len(data)):
            if field != onnx.ModelProto.GRAPH_FIELD_NUMBER:
                rest += data[begin:end]
                continue
            for inner, inner_begin, inner_content, inner_end in _fields(data, content, end):
                weight = _weight(data, inner_content, inner_end, path.name) if inner == onnx.GraphProto.INITIALIZER_FIELD_NUMBER else None  # fmt: skip
                if weight is None:
                    graph_rest += data[inner_begin:inner_end]
                else:
                    weights.append(weight)
        model.ParseFromString(bytes(rest))
        model.graph.ParseFromString(bytes(graph_rest))
        model.graph.initializer.extend(weights)
    return model


def _weight(data: mmap.mmap, begin: int, end: int, location: str) -> onnx.TensorProto | None:
    """The tensor between two places of `data` with its bytes left where they are; None: it has few, or none that can be."""
    rest, place = bytearray(), None
    for field, field_begin, content, field_end in _fields(data, begin, end):
        if field == onnx.TensorProto.RAW_DATA_FIELD_NUMBER and field_end - content >= _LEAST_BYTES:
            place = content, field_end - content
        else:
            rest += data[field_begin:field_end]
    if place is None:
        return None
    tensor = onnx.TensorProto.FromString(bytes(rest))
    move_out(tensor, location, *place)
    return tensor


def _fields(data: mmap.mmap, begin: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """The fields of the message between two places of `data`: number, where it begins, where its content does, its end."""
    place = begin
    while place < end:
        start = place
        tag, place = _varint(data, place)
        kind, content = tag & 7, place
        if kind == _VARINT:
            _, place = _varint(data, place)
        elif kind == _LENGTH:
            length, content = _varint(data, place)
            place = content + length
        elif kind in (_FIXED64, _FIXED32):
            place += 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"a field of the unknown kind {kind}")
        if place > end:
            raise ValueError("a field that is longer than its message")
        yield tag >> 3, start, content, place


def _varint(data: mmap.mmap, place: int) -> tuple[int, int]:
    """A number of protobuf's variable length, and where it ends."""
    value = shift = 0
    while True:
        if place >= len(data) or shift > 63:
            raise ValueError("a number that does not end")
        byte = data[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place
