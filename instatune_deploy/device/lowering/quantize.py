"""From fp32 files to int8 files: ONNX Runtime's dynamic and static quantisation, and NNCF's of OpenVINO's IR.

Weights are quantised symmetrically to int8 with one scale an output channel, activations to uint8 with one scale a
tensor. On CPUs with VNNI such products do not saturate. On x86 CPUs without it sums of two products do where weights are large,
so files that are quantised for ONNX Runtime on one have weights of 7 bits; NNCF does so by itself.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from instatune_deploy.device.lowering.onnx import quiet
from instatune_deploy.device.machine_facts import machine_facts
from instatune_deploy.errors import ArtifactError

Calibration = Sequence[dict[str, np.ndarray]]

_MATRIX_OPS = ["MatMul", "Gemm"]


def quantize_onnx_dynamic(source: Path, destination: Path, *, keep: Sequence[str] = ()) -> None:
    """Write `source` to `destination` with int8 weights; activations are quantised run by run, by what they hold.

    For text: padding and length change what activations hold from call to call, and nothing needs calibrating. Only
    matrix products with constant weights change; attention, normalisation and embeddings stay fp32.

    Args:
        source: an fp32 ONNX file with its weights inside.
        destination: where to write; has either its old content or all of the new.
        keep: of `products`, those that stay fp32.

    Raises:
        ArtifactError: the file is unreadable or has no matrix products to quantise.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _onnx_draft(source, destination) as (readable, draft):
        quantize_dynamic(
            readable,
            draft,
            op_types_to_quantize=_MATRIX_OPS,
            per_channel=True,
            reduce_range=_saturates(),
            weight_type=QuantType.QInt8,
            nodes_to_exclude=_named_by_quantiser(keep),
        )


def quantize_onnx_static(
    source: Path, destination: Path, calibration: Calibration, *, keep: Sequence[str] = ()
) -> None:
    """Write `source` to `destination` with int8 weights and activations whose ranges `calibration` shows (QDQ format).

    For images, whose activations keep their ranges. Inputs of matrix products and convolutions are quantised, their
    outputs are not: ONNX Runtime then adds biases in fp32, which is more accurate and 5% faster on ViT-S. In networks of
    convolutions outputs are quantised as well, and all that stands between: ONNX Runtime computes convolutions in int8 only
    so. On a ResNet of 9 layers that halved the time of fp32; with fp32 outputs it took a seventh longer than fp32.

    Args:
        source: an fp32 ONNX file with its weights inside.
        destination: where to write; has either its old content or all of the new.
        calibration: samples, each inputs by name, batch first; those the network does not have are ignored.
        keep: of `products`, those that stay fp32.

    Raises:
        ArtifactError: the file is unreadable, has nothing to quantise, or cannot run on a sample; or there is none.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    quantized_ops: list[str] | None = [*_MATRIX_OPS, "Conv"]
    if _convolutional(source):
        quantized_ops = None  # all that there is a quantised form of
    with _onnx_draft(source, destination, calibration) as (readable, draft):
        quantize_static(
            readable,
            draft,
            _calibration_reader(readable, calibration),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=quantized_ops,
            nodes_to_exclude=_named_by_quantiser(keep),
            per_channel=True,
            reduce_range=_saturates(),
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={"OpTypesToExcludeOutputQuantization": quantized_ops or []},
        )


def _convolutional(source: Path) -> bool:
    """Whether most products of an ONNX file are convolutions; no if it cannot be read, which others say."""
    import onnx

    try:
        kinds = [node.op_type for node in onnx.load(source, load_external_data=False).graph.node]
    except Exception:  # protobuf's errors share no base class with others
        return False
    return kinds.count("Conv") > sum(kinds.count(kind) for kind in _MATRIX_OPS)


def quantize_openvino(
    source_xml: Path, destination_xml: Path, calibration: Calibration, *, fast: bool = False, keep: Sequence[str] = ()
) -> None:
    """Write the IR `source_xml` to `destination_xml` (weights beside it, same stem, ``.bin``), quantised by NNCF.

    Post-training quantisation for transformers: SmoothQuant, ranges from `calibration`, biases corrected.

    Args:
        source_xml: an fp32 IR.
        destination_xml: where to write.
        calibration: samples, each inputs by name, batch first; those the network does not have are ignored.
        fast: look at the first sample only and correct no biases. The graph is the same and so is its latency, only
            less accurate: for networks whose weights are random anyway.
        keep: of `products`, those that stay fp32.

    Raises:
        ArtifactError: the IR is unreadable, has nothing to quantise, or cannot run on a sample; or there is none.
    """
    import openvino

    destination_xml.parent.mkdir(parents=True, exist_ok=True)
    draft = destination_xml.with_name(f".{destination_xml.stem}.partial.xml")
    try:
        with _one_line_errors(source_xml, calibration), _quiet_nncf():
            openvino.save_model(
                _nncf_quantize(source_xml, calibration, fast=fast, keep=keep), draft, compress_to_fp16=False
            )
        # Weights first: who finds the .xml finds a complete network.
        os.replace(draft.with_suffix(".bin"), destination_xml.with_suffix(".bin"))
        os.replace(draft, destination_xml)
    finally:
        draft.unlink(missing_ok=True)
        draft.with_suffix(".bin").unlink(missing_ok=True)


def _nncf_quantize(source_xml: Path, calibration: Calibration, *, fast: bool, keep: Sequence[str]) -> Any:
    """The quantised `openvino.Model`."""
    import nncf
    import openvino

    model = openvino.Core().read_model(source_xml)
    names = [port.get_any_name() for port in model.inputs]
    samples = [{name: sample[name] for name in names} for sample in (calibration[:1] if fast else calibration)]
    quantized = nncf.quantize(
        model,
        nncf.Dataset(samples),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(samples),
        ignored_scope=nncf.IgnoredScope(names=list(keep)) if keep else None,
        advanced_parameters=nncf.AdvancedQuantizationParameters(disable_bias_correction=fast),
    )
    if all(op.get_type_name() != "FakeQuantize" for op in quantized.get_ops()):
        raise ArtifactError(f"{source_xml} has nothing that can be quantised")
    return quantized


def products(source: Path) -> list[str]:
    """Names of the operations with weights that quantising a file changes, in the order in which they run.

    Args:
        source: an fp32 ONNX file or IR.

    Raises:
        ArtifactError: it is unreadable.
    """
    with _one_line_errors(source):
        return _ir_products(source) if source.suffix == ".xml" else _onnx_products(source)


def _saturates() -> bool:
    """Whether this CPU sums products of 8 bits in 16."""
    machine = machine_facts(())
    vnni = any("vnni" in instructions for instructions in machine["instruction_sets"])
    return machine["architecture"] in ("x86_64", "AMD64") and not vnni


def _named_by_quantiser(names: Sequence[str]) -> list[str]:
    """ONNX Runtime's quantiser splits a Gemm into a product, of another name, and an addition before it looks at names."""
    return [*names, *(f"{name}_MatMul" for name in names)]


def _ir_products(source: Path) -> list[str]:
    import openvino

    model = openvino.Core().read_model(source)
    return [
        op.get_friendly_name() for op in model.get_ordered_ops()
        if op.get_type_name() in ("MatMul", "Convolution")
        and any(value.get_node().get_type_name() == "Constant" for value in op.input_values())
    ]  # fmt: skip


def _onnx_products(source: Path) -> list[str]:
    import onnx

    graph = onnx.load(source).graph
    weights = {weight.name for weight in graph.initializer}
    return [
        node.name for node in graph.node if node.op_type in (*_MATRIX_OPS, "Conv") and weights.intersection(node.input)
    ]


def _calibration_reader(onnx_path: Path, calibration: Calibration) -> Any:
    """`calibration` as ONNX Runtime's quantiser wants it: an iterator that ends with None."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader

    names = [value.name for value in onnx.load(onnx_path, load_external_data=False).graph.input]
    samples = iter([{name: sample[name] for name in names} for sample in calibration])

    class Reader(CalibrationDataReader):
        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(samples, None)

    return Reader()


@contextlib.contextmanager
def _onnx_draft(source: Path, destination: Path, calibration: Calibration | None = None) -> Iterator[tuple[Path, Path]]:
    """`source` under a path that the quantiser may litter around, and a draft that becomes `destination`.

    Raises:
        ArtifactError: the quantiser failed or quantised nothing, or `calibration` is empty or lacks an input.
    """
    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{destination.name}.", dir=destination.parent) as scratch:
        readable, draft = Path(scratch, "source.onnx"), Path(scratch, "draft.onnx")
        # The quantiser writes its notes beside the file that it reads.
        readable.symlink_to(source.absolute())
        with _one_line_errors(source, calibration), quiet():
            yield readable, draft
            _check_quantized(draft, source)
        os.replace(draft, destination)


def _check_quantized(draft: Path, source: Path) -> None:
    """Check that a quantised ONNX file has int8 weights.

    Raises:
        ArtifactError: it has none.
    """
    import onnx

    weights = onnx.load(draft).graph.initializer
    if all(weight.data_type != onnx.TensorProto.INT8 or not weight.dims for weight in weights):
        raise ArtifactError(f"{source} has nothing that can be quantised")


@contextlib.contextmanager
def _one_line_errors(source: Path, calibration: Calibration | None = None) -> Iterator[None]:
    """Turn a quantiser's failure into one line.

    Raises:
        ArtifactError: it failed, `calibration` is empty, or a sample lacks an input.
    """
    if calibration is not None and len(calibration) == 0:
        raise ArtifactError(f"cannot quantise {source}: there are no calibration samples")
    try:
        yield
    except ArtifactError:
        raise
    except KeyError as error:
        raise ArtifactError(f"cannot quantise {source}: a calibration sample has no input {error}") from error
    except Exception as error:  # onnx, onnxruntime, openvino and nncf raise a dozen types without a common base
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ArtifactError(f"cannot quantise {source}: {lines[-1] if lines else repr(error)}") from error


@contextlib.contextmanager
def _quiet_nncf() -> Iterator[None]:
    """Silence NNCF: its log and its progress bars, which are drawn on a console that it makes itself."""
    with quiet():
        import nncf  # noqa: F401  (its import sets its logger up)

        logger = logging.getLogger("nncf")
        before = logger.level
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(before)
