"""Quantised files hold int8 weights, say nearly what the fp32 ones say, and appear complete or not at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest

from instatune_deploy.device.lowering.onnx import export_onnx
from instatune_deploy.device.lowering.quantize import quantize_onnx_dynamic, quantize_onnx_static, quantize_openvino
from instatune_deploy.device.runtimes.base import get_runtime
from instatune_deploy.errors import ArtifactError
from instatune_deploy.values.target import Deployment
from tests.helpers import make_family

Samples = list[dict[str, np.ndarray]]


def samples(tiny: Any, count: int = 4) -> Samples:
    rng = np.random.default_rng(0)
    if "pixel_values" in tiny.example:
        return [{"pixel_values": rng.standard_normal((2, 3, 32, 32), np.float32)} for _ in range(count)]
    made = []
    for _ in range(count):
        ids = rng.integers(5, 100, (2, 16))
        made.append({"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)})
    return made


def run(path: Path, deployment: Deployment, inputs: dict[str, np.ndarray]) -> np.ndarray:
    session = get_runtime(deployment.runtime).load(path, deployment)
    try:
        return session.run(inputs)[0]
    finally:
        session.close()


def assert_near(path: Path, fp32: Path, runtime: Any, inputs: Samples) -> None:
    """Outputs are within a tenth of the spread of the fp32 ones.

    Rounding to 8 bits is off by 1/510 of a tensor's range in the worst case, some 1% of the values' spread; over the
    dozen products one after the other in these networks, errors of random sign add up to a few percent of it.
    """
    for sample in inputs:
        expected = run(fp32, Deployment(runtime), sample)
        found = run(path, Deployment(runtime, "int8"), sample)
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() < 0.1 * max(np.ptp(expected), 0.1)
        assert np.abs(found - expected).max() > 0  # it is another network


def optimised_operations(path: Path, directory: Path) -> Counter[str]:
    """Operations by type after ONNX Runtime's own optimisations."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(directory / "optimised.onnx")
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(directory / "optimised.onnx").graph.node)


def test_dynamic(tiny_bert: Any, tmp_path: Path) -> None:
    path = tmp_path / "new" / "model_int8.onnx"
    quantize_onnx_dynamic(tiny_bert.onnx, path)
    assert [p.name for p in path.parent.iterdir()] == ["model_int8.onnx"]
    assert_near(path, tiny_bert.onnx, "onnxruntime", samples(tiny_bert))
    operations = optimised_operations(path, tmp_path)
    # Six products a layer, the pooler's and the classifier's; attention's own two stay in fp32.
    assert operations["DynamicQuantizeMatMul"] + operations["MatMulIntegerToFloat"] == 2 * 6 + 2
    assert operations["Attention"] == 2
    assert not operations["MatMul"] + operations["Gemm"] + operations["MatMulInteger"]
    for batch, tokens in ((1, 5), (3, 40)):
        inputs = {name: value.numpy() for name, value in tiny_bert.inputs(batch, tokens).items()}
        assert run(path, Deployment("onnxruntime", "int8"), inputs).shape == (batch, 3)


def test_a_row_of_dynamic_int8_is_answered_as_it_is_alone(tiny_bert: Any, tmp_path: Path) -> None:
    path = tmp_path / "model_int8.onnx"
    quantize_onnx_dynamic(tiny_bert.onnx, path)
    inputs = {name: value.numpy() for name, value in tiny_bert.inputs(5, 20).items()}
    lengths = [20, 3, 11, 20, 7]
    for row, length in enumerate(lengths):
        inputs["attention_mask"][row, length:] = 0
    rows = [
        {name: array[row : row + 1, :length] for name, array in inputs.items()} for row, length in enumerate(lengths)
    ]
    own = Deployment("onnxruntime", "int8")
    alone = np.concatenate([run(path, own, row) for row in rows])
    assert np.array_equal(run(path, own, inputs), alone)
    # A deployment of several samples a call is run as it was measured: its scales are those of the whole call.
    assert not np.array_equal(run(path, Deployment("onnxruntime", "int8", batch=5), inputs), alone)


def test_static(tiny_vit: Any, tmp_path: Path) -> None:
    path = tmp_path / "new" / "model_int8.onnx"
    quantize_onnx_static(tiny_vit.onnx, path, [{**sample, "unused": np.ones(1)} for sample in samples(tiny_vit)])
    assert [p.name for p in path.parent.iterdir()] == ["model_int8.onnx"]
    assert_near(path, tiny_vit.onnx, "onnxruntime", samples(tiny_vit))
    operations = optimised_operations(path, tmp_path)
    assert operations["MatMulIntegerToFloat"] == 2 * 6
    assert operations["QGemm"] == 1
    assert not operations["MatMul"] + operations["Gemm"]
    inputs = {"pixel_values": np.ones((5, 3, 32, 32), np.float32)}
    assert run(path, Deployment("onnxruntime", "int8"), inputs).shape == (5, 5)


@pytest.mark.parametrize("family", ["bert", "vit"])
def test_openvino_and_its_fast_mode_make_the_same_graph(
    family: str, request: pytest.FixtureRequest, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tiny = request.getfixturevalue(f"tiny_{family}")
    accurate, fast = tmp_path / "new" / "accurate.xml", tmp_path / "new" / "fast.xml"
    quantize_openvino(tiny.xml, accurate, [{**sample, "unused": np.ones(1)} for sample in samples(tiny)])
    quantize_openvino(tiny.xml, fast, samples(tiny)[:1], fast=True)
    assert capfd.readouterr() == ("", "")
    assert sorted(p.name for p in fast.parent.iterdir()) == ["accurate.bin", "accurate.xml", "fast.bin", "fast.xml"]
    assert_near(accurate, tiny.xml, "openvino", samples(tiny))
    assert graph(accurate) == graph(fast)
    assert executed(accurate) == executed(fast)
    assert executed(fast)["FullyConnected int8"] >= 2 * 6 + 1  # six products a layer and the classifier's


def graph(path: Path) -> list[object]:
    """Every operation in order: type, shapes and types of what it makes, and which operations it reads."""
    operations = openvino.Core().read_model(path).get_ordered_ops()
    numbers = {op.get_friendly_name(): number for number, op in enumerate(operations)}
    return [
        (
            op.get_type_name(),
            [(str(port.get_partial_shape()), port.get_element_type().get_type_name()) for port in op.outputs()],
            [numbers[port.get_source_output().get_node().get_friendly_name()] for port in op.inputs()],
        )
        for op in operations
    ]


def executed(path: Path) -> Counter[str]:
    """Operations that OpenVINO runs on this CPU, by type and precision; without constants, some of which it shares.

    Whether 8 bits are signed follows from the range that the samples showed, and is not told apart.
    """
    model = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}).get_runtime_model()
    kinds = [tuple(str(op.rt_info[key].value) for key in ("layerType", "runtimePrecision")) for op in model.get_ops()]
    signless = {"i8": "int8", "u8": "int8"}
    return Counter(f"{kind} {signless.get(precision, precision)}" for kind, precision in kinds if kind != "Const")


Quantise = Callable[[Path, Path], None]
FAILURES: dict[str, tuple[Quantise, str]] = {
    "dynamic": (quantize_onnx_dynamic, "broken"),
    "static": (lambda source, to: quantize_onnx_static(source, to, [{"x": np.ones(1)}]), "broken"),
    "static without samples": (lambda source, to: quantize_onnx_static(source, to, []), "no calibration samples"),
    "openvino": (lambda source, to: quantize_openvino(source, to, [{"x": np.ones(1)}]), "broken"),
    "openvino without samples": (lambda source, to: quantize_openvino(source, to, []), "no calibration samples"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_failures_are_one_line_and_leave_no_file(case: str, tmp_path: Path) -> None:
    quantize, message = FAILURES[case]
    (tmp_path / "broken").write_bytes(b"nothing of the kind")
    with pytest.raises(ArtifactError, match=message) as caught:
        quantize(tmp_path / "broken", tmp_path / "model_int8.xml")
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["broken"]


def test_a_sample_must_have_every_input(tiny_bert: Any, tmp_path: Path) -> None:
    ids = {"input_ids": np.ones((2, 16), np.int64)}
    with pytest.raises(ArtifactError, match="attention_mask"):
        quantize_onnx_static(tiny_bert.onnx, tmp_path / "model_int8.onnx", [ids])
    with pytest.raises(ArtifactError, match="attention_mask"):
        quantize_openvino(tiny_bert.xml, tmp_path / "model_int8.xml", [ids])
    assert list(tmp_path.iterdir()) == []


def test_a_network_without_products_is_refused(tmp_path: Path) -> None:
    value = [onnx.helper.make_tensor_value_info(name, 1, ["batch", 4]) for name in "xy"]
    nodes = [onnx.helper.make_node("Relu", ["x"], ["y"])]
    model = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "relu", value[:1], value[1:]),
        opset_imports=[onnx.helper.make_opsetid("", 23)],
        ir_version=10,
    )
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(ArtifactError, match="nothing that can be quantised"):
        quantize_onnx_dynamic(tmp_path / "model.onnx", tmp_path / "model_int8.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_a_network_of_convolutions_computes_them_in_int8(tmp_path: Path) -> None:
    """ONNX Runtime does so where their outputs are quantised as well."""
    family = make_family("resnet")
    export_onnx(family.model, family.inputs, tmp_path / "model.onnx")
    made = [{name: value.numpy() for name, value in family.inputs.items()}]
    quantize_onnx_static(tmp_path / "model.onnx", tmp_path / "int8.onnx", made)
    convolutions = Counter(node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node)["Conv"]
    found = optimised_operations(tmp_path / "int8.onnx", tmp_path)
    assert convolutions > 5
    assert (found["QLinearConv"], found["Conv"]) == (convolutions, 0)
    assert_near(tmp_path / "int8.onnx", tmp_path / "model.onnx", "onnxruntime", made)
