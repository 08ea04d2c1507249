"""From a torch module to one self-contained ONNX file."""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from instatune_deploy.device.lowering.fold import fold_weights
from instatune_deploy.errors import ArtifactError
from instatune_deploy.values.fixed import FixedSizes

if TYPE_CHECKING:
    import onnx
    import torch

#: Native Attention and exact Gelu: 5% faster in ONNX Runtime than opset 18 on BERT-base, as fast in OpenVINO.
OPSET = 23
#: Those to choose from. The exporter makes 18 and converts it up or down; BEiT cannot be said in 17.
OPSETS = range(17, 24)
_PROTOBUF_LIMIT_BYTES = 2**31 - 1


def export_onnx(
    model: torch.nn.Module, example: dict[str, torch.Tensor], path: Path, *, outputs: Sequence[str] = ("logits",),
    opset: int = OPSET, fixed: FixedSizes | None = None,
) -> None:  # fmt: skip
    """Write `model` to `path` as ONNX.

    The first axis of every input is dynamic (``batch``), and the second of every integer matrix (``sequence``), unless
    they are fixed.

    Args:
        model: a module that takes the inputs of `example` by name; exported in evaluation mode, then put back.
        example: inputs by name, batch first; a batch of one is repeated, for axes of size one count as fixed.
        path: where to write; has either its old content or all of the new.
        outputs: names of the outputs in the order in which the module gives them, or of the first ones.
        opset: ONNX operator set, one of `OPSETS`.
        fixed: sizes that `example` has and that every call of the file will have; None: any.

    Raises:
        ArtifactError: the module cannot be traced with dynamic axes, cannot be said in the operator set, or is larger
            than one ONNX file can be (2 GB).
    """
    import torch

    if fixed is None or fixed.batch is None:
        example = {name: torch.cat([value, value]) if len(value) == 1 else value for name, value in example.items()}
    axes = {name: dynamic_axes(value, fixed) for name, value in example.items()}
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with quiet(), no_collection(), plain_functions(model), torch.no_grad():
            traced = torch.export.export(model, (), kwargs=example, dynamic_shapes=axes, strict=False)
            program = torch.onnx.export(
                traced,
                dynamo=True,
                opset_version=opset,
                input_names=list(example),
                output_names=list(outputs),
                verbose=False,
            )
            if program is not None:
                fold_weights(program.model)
    except Exception as error:  # the exporters raise a dozen types, most of them private
        first = next((line for line in str(error).splitlines() if line.strip()), repr(error))
        raise ArtifactError(f"cannot export {type(model).__name__} to ONNX: {first}") from error
    finally:
        for module, training in modes:
            module.training = training
    if program is None:
        raise ArtifactError(f"cannot export {type(model).__name__} to ONNX: the exporter made no program")
    made = program.model.graph.opset_imports[""]
    if made != opset:
        raise ArtifactError(f"cannot export {type(model).__name__} to ONNX in opset {opset}: it needs opset {made}")
    write_onnx(program.model, path)


def dynamic_axes(value: torch.Tensor, fixed: FixedSizes | None = None) -> dict[int, Any]:
    """Which axes of an input vary from call to call."""
    import torch

    dynamic, axes = torch.export.Dim.DYNAMIC, dict[int, Any]()
    if fixed is None or fixed.batch is None:
        axes[0] = dynamic
    if value.dim() == 2 and not value.is_floating_point() and (fixed is None or fixed.tokens is None):
        axes[1] = dynamic
    return axes


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings, logs below ERROR and stdout; exceptions pass."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def plain_functions(model: torch.nn.Module) -> Iterator[None]:
    """Put the Python functions they were made of in the place of those that torch.jit.script compiled, in the source
    files of `model`'s modules, such as DeBERTa's: tracing cannot look into compiled ones and fixes axes that they read."""
    import torch

    sources = {type(module).__module__ for module in model.modules()} & sys.modules.keys()
    compiled = [
        (vars(sys.modules[source]), name, function, plain)
        for source in sources
        for name, function in vars(sys.modules[source]).items()
        if isinstance(function, torch.jit.ScriptFunction) and (plain := getattr(function, "_torchdynamo_inline", None))
    ]
    try:
        for names, name, _, plain in compiled:
            names[name] = plain
        yield
    finally:
        for names, name, function, _ in compiled:
            names[name] = function


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Pause the garbage collector: it finds nothing in the millions of objects that tracing makes, and takes a fifth of
    the export's time looking."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def write_onnx(model: Any, path: Path) -> None:
    """Write an `onnx_ir.Model` to `path` as one file, weights included.

    The usual way copies all weights into one message and that into one string, which takes as long as the export
    itself. Here the message is written without weights, then every weight straight from its memory: repeated fields
    of a protobuf message may stand in any order.

    Args:
        model: loses its weights by this; nothing else may be done with it afterwards.

    Raises:
        ArtifactError: the network is larger than a protobuf message can be.
    """
    import onnx
    import onnx_ir

    weights = [(name, value.const_value) for name, value in model.graph.initializers.items()]
    model.graph.initializers.clear()
    proto = onnx_ir.to_proto(model)
    _name_axes(proto.graph)
    entries = []
    for name, weight in weights:
        head = onnx.TensorProto(name=name, dims=list(weight.shape.numpy()), data_type=int(weight.dtype))
        head_bytes = head.SerializeToString() + _prefix(onnx.TensorProto.RAW_DATA_FIELD_NUMBER, weight.nbytes)
        size = len(head_bytes) + weight.nbytes
        entries.append((_prefix(onnx.GraphProto.INITIALIZER_FIELD_NUMBER, size) + head_bytes, weight))
    graph_bytes = proto.graph.SerializeToString()
    proto.ClearField("graph")
    graph_size = len(graph_bytes) + sum(len(head) + weight.nbytes for head, weight in entries)
    if graph_size > _PROTOBUF_LIMIT_BYTES:
        raise ArtifactError(f"{path}: a network of {graph_size / 1e9:.1f} GB does not fit one ONNX file (2 GB)")

    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.partial")
    try:
        with draft.open("wb") as stream:
            stream.write(proto.SerializeToString())
            stream.write(_prefix(onnx.ModelProto.GRAPH_FIELD_NUMBER, graph_size))
            stream.write(graph_bytes)
            for head_bytes, weight in entries:
                stream.write(head_bytes)
                _write_weight(weight, stream)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def _write_weight(weight: Any, stream: BinaryIO) -> None:
    """Write a weight's raw bytes, little-endian and in row-major order."""
    import numpy as np

    array = weight.numpy()
    if array.dtype in (np.float32, np.float64, np.int64, np.int32) and np.little_endian:
        stream.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    else:  # packed or foreign element types know best how they are stored
        stream.write(weight.tobytes())


def _prefix(field: int, size: int) -> bytes:
    """Protobuf's tag and length of a length-delimited field."""
    prefix = bytearray()
    for number in (field << 3 | 2, size):
        while number > 0x7F:
            prefix.append(number & 0x7F | 0x80)
            number >>= 7
        prefix.append(number)
    return bytes(prefix)


def _name_axes(graph: onnx.GraphProto) -> None:
    """Call the dynamic axes ``batch`` and ``sequence`` instead of the tracer's symbols, such as s41."""
    names: dict[str, str] = {}
    for value in graph.input:
        for axis, name in zip(value.type.tensor_type.shape.dim, ("batch", "sequence"), strict=False):
            if axis.dim_param:
                names.setdefault(axis.dim_param, name)
    for value in (*graph.input, *graph.output, *graph.value_info):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param:
                axis.dim_param = re.sub(r"\w+", lambda m: names.get(m[0], m[0]), axis.dim_param)
