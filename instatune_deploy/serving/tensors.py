"""Tensors of the Open Inference Protocol, as clients send them, checked: what is wrong with one is said and never gets further."""

from __future__ import annotations

import base64
import binascii
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from mlserver.errors import InferenceError
from mlserver.types import Datatype, MetadataTensor, Parameters, RequestInput, ResponseOutput, TensorData

from instatune_deploy.device.lowering.signature import Tensor

#: The protocol's names of NumPy's element types.
DATATYPES = {"int64": "INT64", "int32": "INT32", "float32": "FP32", "float16": "FP16"}
_DTYPES = {
    "BOOL": "?", "UINT8": "u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8", "INT8": "i1", "INT16": "<i2",
    "INT32": "<i4", "INT64": "<i8", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8",
}  # fmt: skip


@dataclass(frozen=True)
class Input:
    """An input as it was sent: `values` are flat or nested lists, or an array where they came as bytes.

    `content_type` is MLServer's: ``base64`` says that the elements of a BYTES input are.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: Any
    content_type: str | None

    @property
    def elements(self) -> list[Any]:
        """The elements of a BYTES input of one a row, whose data may be nested; none if it has no such data."""
        if not isinstance(self.values, list):
            return []
        return [value[0] if isinstance(value, list) and len(value) == 1 else value for value in self.values]


@dataclass(frozen=True)
class Output:
    """An output: an array of numbers, or of objects that are texts."""

    name: str
    array: np.ndarray

    def message(self) -> ResponseOutput:
        """As MLServer sends it."""
        if self.array.dtype == object:
            kind, values = "BYTES", [text.encode() for text in self.array.ravel()]
        else:
            kind, values = DATATYPES[self.array.dtype.name], self.array.ravel().tolist()
        return ResponseOutput(
            name=self.name, shape=list(self.array.shape), datatype=Datatype(kind), data=TensorData(root=values)
        )


def read_inputs(given: Sequence[RequestInput]) -> dict[str, Input]:
    """The inputs of a request by name, all of one number of rows, at least one.

    Raises:
        InferenceError: there are none, or one is twice or has no such shape.
    """
    found: dict[str, Input] = {}
    for raw in given:
        if raw.name in found:
            raise InferenceError(f"input {raw.name!r:.100} is given twice")
        if not raw.shape or any(size < 1 for size in raw.shape):
            raise InferenceError(f"input {raw.name!r:.100}: shape {list(raw.shape)!r:.100} has no elements")
        values = raw.data.root if isinstance(raw.data, TensorData) else raw.data
        content_type = raw.parameters.content_type if raw.parameters else None
        found[raw.name] = Input(raw.name, str(raw.datatype), tuple(raw.shape), values, content_type)
    rows = {name: one.shape[0] for name, one in found.items()}
    if len(set(rows.values())) != 1:
        raise InferenceError(f"inputs must have one number of rows, found {str(rows) if rows else 'no inputs':.200}")
    return found


def read_numbers(given: Input, wanted: Tensor) -> np.ndarray:
    """The array of a tensor that goes into the network.

    Raises:
        InferenceError: it is of another type or shape than the network's, or not as many numbers as its shape says.
    """
    kind = DATATYPES[wanted.dtype]
    if given.datatype != kind:
        raise InferenceError(f"input {given.name}: datatype {given.datatype!r:.20}, the network reads {kind}")
    fits = len(given.shape) == len(wanted.dims) and all(
        size in (-1, found) for size, found in zip(wanted.dims[1:], given.shape[1:], strict=True)
    )
    if not fits:
        raise InferenceError(f"input {given.name}: shape {list(given.shape)!r:.100}, wanted {list(wanted.dims)}")
    try:
        # A list that is nested deeper than NumPy's arrays, ragged or mixed makes no array of numbers.
        array = np.asarray(given.values)
    except (ValueError, TypeError, OverflowError, RecursionError):
        array = np.asarray(None)
    if array.dtype.kind not in ("iu" if wanted.dtype.startswith("int") else "iuf"):
        raise InferenceError(f"input {given.name}: its data is no array of numbers of type {kind}")
    if array.size != math.prod(given.shape) or array.shape not in (given.shape, (array.size,)):
        raise InferenceError(
            f"input {given.name}: data of shape {list(array.shape)!r:.100} is not of the shape {list(given.shape)!r:.100}"
        )
    with np.errstate(over="ignore"):
        cast = array.reshape(given.shape).astype(wanted.dtype)
    if wanted.dtype.startswith("float") and not np.isfinite(cast).all():
        raise InferenceError(f"input {given.name}: holds numbers that are not finite in {kind}")
    if wanted.dtype.startswith("int") and not np.array_equal(cast, array.reshape(given.shape)):
        raise InferenceError(f"input {given.name}: holds numbers that do not fit {kind}")
    return np.ascontiguousarray(cast)


def read_bytes(given: Input, *, base64_text: bool = False) -> list[bytes]:
    """The elements of a BYTES input, one a row.

    Args:
        base64_text: whether elements that came as text are base64, for that is how JSON carries bytes.

    Raises:
        InferenceError: it is of another type or shape, or an element is neither text nor bytes.
    """
    if given.datatype != "BYTES":
        raise InferenceError(f"input {given.name}: datatype {given.datatype!r:.20}, wanted BYTES")
    rows = given.shape[0]
    if given.shape not in ((rows,), (rows, 1)):
        raise InferenceError(
            f"input {given.name}: shape {list(given.shape)!r:.100}, wanted [{rows}]: one element a row"
        )
    if len(given.elements) != rows:
        raise InferenceError(f"input {given.name}: its data is no list of {rows} elements")
    return [_element(given, value, base64_text) for value in given.elements]


def _element(given: Input, value: Any, base64_text: bool) -> bytes:
    if not isinstance(value, (str, bytes)):
        raise InferenceError(f"input {given.name}: an element is {value!r:.40}, neither text nor bytes")
    if given.content_type == "base64" or (base64_text and isinstance(value, str)):
        try:
            return base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            raise InferenceError(f"input {given.name}: an element is not base64") from None
    try:
        return value.encode() if isinstance(value, str) else value
    except UnicodeEncodeError:  # half a surrogate pair
        raise InferenceError(f"input {given.name}: an element is not Unicode text") from None


def read_texts(given: Input) -> list[str]:
    """The elements of a BYTES input as texts.

    Raises:
        InferenceError: as `read_bytes`, or one is not UTF-8.
    """
    try:
        return [value.decode() for value in read_bytes(given)]
    except UnicodeDecodeError:
        raise InferenceError(f"input {given.name}: an element is not UTF-8 text") from None


def from_raw(name: str, datatype: str, shape: Sequence[int], raw: bytes) -> Any:
    """The values of an input that came as bytes: rows in C order, little-endian; of BYTES each after its length in 4 bytes.

    Raises:
        InferenceError: the datatype is unknown, or there are not as many bytes as it needs.
    """
    if datatype == "BYTES":
        elements, offset = [], 0
        while offset < len(raw):
            (size,) = struct.unpack_from("<I", raw, offset) if offset + 4 <= len(raw) else (len(raw),)
            if offset + 4 + size > len(raw):
                raise InferenceError(f"input {name!r:.100}: its bytes end within an element")
            elements.append(raw[offset + 4 : offset + 4 + size])
            offset += 4 + size
        return elements
    if datatype not in _DTYPES:
        raise InferenceError(f"input {name!r:.100}: unknown datatype {datatype!r:.20}")
    dtype = np.dtype(_DTYPES[datatype])
    if any(size < 1 for size in shape) or len(raw) != math.prod(shape) * dtype.itemsize:
        raise InferenceError(
            f"input {name!r:.100}: {len(raw)} bytes are not those of shape {list(shape)!r:.100} in {datatype}"
        )
    return np.frombuffer(raw, dtype)


def metadata(name: str, datatype: str, shape: Sequence[int], **parameters: Any) -> MetadataTensor:
    """A tensor in a model's metadata; `parameters` are what a client should know beside its type."""
    extra = Parameters(**parameters) if parameters else None
    return MetadataTensor(name=name, datatype=Datatype(datatype), shape=list(shape), parameters=extra)


def check_ranges(arrays: Mapping[str, np.ndarray], limits: Mapping[str, int]) -> None:
    """Make sure that whole numbers are from 0 to below their limit.

    Raises:
        InferenceError: one is not.
    """
    for name, limit in limits.items():
        if name in arrays and not (int(arrays[name].min()) >= 0 and int(arrays[name].max()) < limit):
            raise InferenceError(f"input {name}: holds numbers outside 0..{limit - 1}")
