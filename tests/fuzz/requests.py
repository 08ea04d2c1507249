"""The requests that a server gets, read as it reads them, up to what the network is given.

MLServer's gRPC messages have the names of Triton's: a process that has one cannot know the other, so this is for processes of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from mlserver.errors import MLServerError
from mlserver.grpc import dataplane_pb2 as pb
from mlserver.types import InferenceRequest

from instatune_deploy.data.processor import Processor
from instatune_deploy.device.lowering.signature import Tensor
from instatune_deploy.serving.codecs import get_codec
from instatune_deploy.serving.grpc import read_message
from instatune_deploy.serving.rest import read_payload
from instatune_deploy.serving.tensors import check_ranges, read_inputs, read_numbers
from tests.fuzz.mutating import as_json
from tests.fuzz.readers import Reader
from tests.helpers import write_text_model

_TENSORS = [Tensor(name, "int64", (-1, -1)) for name in ("input_ids", "attention_mask", "token_type_ids")]
_LIMITS = {"input_ids": 16, "attention_mask": 2, "token_type_ids": 2}
_TEXTS = {"inputs": [{"name": "text", "shape": [2], "datatype": "BYTES", "data": ["good film", "a bad one"]}]}
_NUMBERS = {
    "id": "7",
    "inputs": [{"name": t.name, "shape": [2, 3], "datatype": "INT64", "data": [1, 0, 1, 1, 1, 0]} for t in _TENSORS],
    "outputs": [{"name": "logits"}], "parameters": {"latency_budget_ms": 8},
}  # fmt: skip
_PIXELS = [Tensor("pixel_values", "float32", (-1, 1, 2, 2))]


def request_reader(name: str, directory: Path) -> Reader:
    """That of REST or gRPC; the first line of a REST document is the header that says how much of the rest is JSON."""
    codec = get_codec(
        "text-classification",
        Processor(str(write_text_model(directory / "served")), "text-classification", 16),
        ["a", "b"],
    )

    def decode(payload: InferenceRequest) -> object:
        given = read_inputs(payload.inputs)
        if "text" in given:
            return codec.encode({name: one for name, one in given.items() if name in codec.words})
        arrays = {t.name: read_numbers(given[t.name], t) for t in (*_TENSORS, *_PIXELS) if t.name in given}
        check_ranges(arrays, _LIMITS)
        return arrays

    def rest(data: bytes) -> object:
        header, _, body = data.partition(b"\n")
        return decode(read_payload(body, header.decode("latin-1") or None))

    def grpc(data: bytes) -> object:
        try:
            message = pb.ModelInferRequest.FromString(data)
        except DecodeError:  # grpc itself refuses it
            return None
        return decode(read_message(message))

    nested = {
        "inputs": [{"name": "pixel_values", "shape": [1, 1, 2, 2], "datatype": "FP32", "data": [[[[0, 1], [2, 0.5]]]]}]
    }
    if name == "grpc":
        return Reader(name, [_message(_TEXTS), _message(_NUMBERS), _raw()], grpc, errors=(MLServerError,))
    seeds = [_TEXTS, _NUMBERS, nested, _binary()]
    return Reader(name, seeds, rest, lambda tree: b"\n" + as_json(tree), (MLServerError,))


def _binary() -> bytes:
    """A REST request whose tensors follow as bytes."""
    raw = np.arange(6, dtype=np.int64).tobytes()
    inputs = [
        {"name": t.name, "shape": [2, 3], "datatype": "INT64", "parameters": {"binary_data_size": len(raw)}} for t in _TENSORS
    ]  # fmt: skip
    text = json.dumps({"inputs": inputs}).encode()
    return str(len(text)).encode() + b"\n" + text + raw * 3


def _message(request: Mapping[str, Any]) -> bytes:
    """A gRPC request with typed contents."""
    message = pb.ModelInferRequest(model_name="model", id="1")
    for one in request["inputs"]:
        given = message.inputs.add(name=one["name"], datatype=one["datatype"], shape=one["shape"])
        if one["datatype"] == "BYTES":
            given.contents.bytes_contents.extend(text.encode() for text in one["data"])
            given.parameters["content_type"].string_param = "str"
        else:
            given.contents.int64_contents.extend(one["data"])
    return message.SerializeToString()


def _raw() -> bytes:
    """A gRPC request with raw contents."""
    message = pb.ModelInferRequest(model_name="model")
    for tensor in _TENSORS:
        message.inputs.add(name=tensor.name, datatype="INT64", shape=[2, 3])
        message.raw_input_contents.append(np.ones((2, 3), np.int64).tobytes())
    return message.SerializeToString()
