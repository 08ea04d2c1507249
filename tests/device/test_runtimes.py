"""The seam: every runtime takes what it needs, says what is missing, and refuses what it cannot do."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import openvino
import pytest
import torch

from instatune_deploy.device.lowering.onnx import export_onnx
from instatune_deploy.device.lowering.openvino import to_openvino
from instatune_deploy.device.lowering.torch import export_torch
from instatune_deploy.device.runtimes.base import get_runtime
from instatune_deploy.device.runtimes.openvino import FixedShapeSession
from instatune_deploy.device.runtimes.rows import RowSession
from instatune_deploy.errors import ArtifactError, MeasurementError, TargetError, UnknownNameError
from instatune_deploy.values.deployment import Deployment

RUNTIMES = ["onnxruntime", "openvino"]


def arrays(tiny: Any) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in tiny.inputs(2, 16).items()}


def file_for(tiny: Any, runtime: str) -> Path:
    return tiny.directory / get_runtime(runtime).model_file(Deployment(runtime))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_inputs_the_model_lacks_are_ignored_and_missing_ones_named(tiny_bert: Any, runtime: str) -> None:
    session = get_runtime(runtime).load(file_for(tiny_bert, runtime), Deployment(runtime))
    inputs = arrays(tiny_bert)
    (expected,) = session.run(inputs)
    np.testing.assert_array_equal(session.run({**inputs, "labels": np.zeros(2)})[0], expected)
    del inputs["attention_mask"]
    with pytest.raises(MeasurementError, match=r"needs input attention_mask; given: input_ids, token_type_ids"):
        session.run(inputs)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_an_output_is_the_callers_own(tiny_bert: Any, runtime: str) -> None:
    session = get_runtime(runtime).load(file_for(tiny_bert, runtime), Deployment(runtime))
    (first,), inputs = session.run(arrays(tiny_bert)), arrays(tiny_bert)
    kept = first.copy()
    inputs["input_ids"] = (inputs["input_ids"] + 7) % 100
    assert not np.allclose(session.run(inputs)[0], first)
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_threads_and_batches_change_no_result(tiny_bert: Any, runtime: str) -> None:
    results = [
        get_runtime(runtime)
        .load(file_for(tiny_bert, runtime), Deployment(runtime, threads=threads))
        .run(arrays(tiny_bert))[0]
        for threads in (1, 2)
    ]
    np.testing.assert_allclose(*results, atol=1e-5)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_closed_session_does_not_run(tiny_bert: Any, runtime: str) -> None:
    session = get_runtime(runtime).load(file_for(tiny_bert, runtime), Deployment(runtime))
    session.close()
    with pytest.raises(ArtifactError, match="closed"):
        session.run(arrays(tiny_bert))


@pytest.mark.parametrize("runtime", [*RUNTIMES, "fake"])
def test_damaged_and_absent_files_are_one_line(tmp_path: Path, runtime: str) -> None:
    path = tmp_path / get_runtime(runtime).model_file(Deployment(runtime))
    for content in (None, b"nothing of the kind"):
        if content:
            path.write_bytes(content)
        with pytest.raises(ArtifactError, match=path.name) as caught:
            get_runtime(runtime).load(path, Deployment(runtime))
        assert "\n" not in str(caught.value)


class OfTokens:
    """A session with outputs of tokens, one number each and two, and how often it has run."""

    def __init__(self) -> None:
        self.runs = 0

    def run(self, inputs: dict[str, np.ndarray]) -> tuple[np.ndarray, ...]:
        self.runs += 1
        ids = inputs["input_ids"].astype(np.float32)
        return ids, np.stack([ids, -ids], axis=-1)

    def close(self) -> None: ...


def test_rows_alone_give_outputs_of_tokens_in_their_places() -> None:
    inner = OfTokens()
    session = RowSession(Path("model_int8.onnx"), inner, ["input_ids", "attention_mask"])
    mask = np.array([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 1, 0]])
    inputs = {"input_ids": np.arange(1, 13).reshape(3, 4), "attention_mask": mask}
    numbers, pairs = session.run(inputs)
    assert numbers.tolist() == [[1, 2, 0, 0], [5, 6, 7, 8], [9, 10, 11, 0]]
    np.testing.assert_array_equal(pairs, np.stack([numbers, -numbers], axis=-1))
    assert inner.runs == 3
    with pytest.raises(MeasurementError, match="needs input attention_mask"):
        session.run({"input_ids": inputs["input_ids"]})


def test_precision_is_always_set_and_never_silently_another(tiny_bert: Any) -> None:
    runtime = get_runtime("openvino")
    for device, precision, hint in (
        ("cpu", "fp32", "f32"), ("cpu", "bf16", "bf16"), ("cpu", "int8", "f32"),
        ("gpu", "fp32", "f32"), ("gpu", "fp16", "f16"), ("gpu", "int8", "f16"), ("npu", "int8", "f16"),
    ):  # fmt: skip
        deployment = Deployment("openvino", precision, device=device)
        assert runtime.options(deployment)["INFERENCE_PRECISION_HINT"] == hint
    with pytest.raises(TargetError, match="does not compute in bf16"):
        get_runtime("onnxruntime").load(tiny_bert.onnx, Deployment("onnxruntime", "bf16"))
    with pytest.raises(TargetError, match="int4"):
        runtime.load(tiny_bert.xml, Deployment("openvino", "int4"))


def test_options_are_those_of_the_device() -> None:
    ov, onnx = get_runtime("openvino"), get_runtime("onnxruntime")
    assert ov.options(Deployment("openvino", threads=3))["INFERENCE_NUM_THREADS"] == "3"
    assert "INFERENCE_NUM_THREADS" not in ov.options(Deployment("openvino", "fp16", device="gpu"))
    assert onnx.options(Deployment("onnxruntime", device="cuda"))["use_tf32"] == "0"
    assert onnx.options(Deployment("onnxruntime", "fp16", device="tensorrt"))["trt_fp16_enable"] == "1"
    with pytest.raises(TargetError, match="does not compute on npu"):
        onnx.options(Deployment("onnxruntime", device="npu"))


def test_a_runtime_names_the_file_of_each_precision() -> None:
    onnx, ov, torch = (get_runtime(name) for name in ("onnxruntime", "openvino", "torch"))
    assert onnx.model_file(Deployment("onnxruntime", "fp16", device="cuda")) == "model_fp16.onnx"
    assert ov.model_file(Deployment("openvino", "fp16", device="gpu")) == "openvino_model.xml"
    assert torch.model_file(Deployment("torch", "bf16", device="cuda")) == "model_bf16.pt2"


class FallenBack:
    """A session of which ONNX Runtime gave `providers`, and some operators to the CPU."""

    def __init__(self, providers: list[str], on_cpu: list[str]) -> None:
        self._providers, self._on_cpu = providers, on_cpu

    def get_providers(self) -> list[str]:
        return self._providers

    def get_provider_graph_assignment_info(self) -> list[SimpleNamespace]:
        nodes = [SimpleNamespace(op_type=name) for name in self._on_cpu]
        return [SimpleNamespace(ep_name="CPUExecutionProvider", get_nodes=lambda: nodes)]


def test_what_the_cpu_would_do_instead_of_the_gpu_is_refused() -> None:
    from instatune_deploy.device.runtimes.onnxruntime import _check_providers

    cuda, path = Deployment("onnxruntime", device="cuda"), Path("model.onnx")
    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    _check_providers(FallenBack(both, ["Shape", "Gather"]), path, cuda)
    with pytest.raises(TargetError, match=r"could not start CUDAExecutionProvider and fell back to CPU.*pip install"):
        _check_providers(FallenBack(both[1:], []), path, cuda)
    with pytest.raises(TargetError, match=r"would run Attention, MatMul of model\.onnx on the CPU"):
        _check_providers(FallenBack(both, ["MatMul", "Shape", "Attention"]), path, cuda)


def test_operators_are_told_apart_by_where_they_run(tiny_bert: Any) -> None:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = onnxruntime.InferenceSession(str(tiny_bert.onnx), options, providers=["CPUExecutionProvider"])
    parts = session.get_provider_graph_assignment_info()
    assert {part.ep_name for part in parts} == {"CPUExecutionProvider"}
    assert {"Attention", "MatMul"} <= {node.op_type for part in parts for node in part.get_nodes()}


@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this ONNX Runtime has the CUDA provider"
)
def test_a_missing_provider_is_named_and_the_cpu_does_not_step_in(tiny_bert: Any, device: str) -> None:
    provider = {"cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}[device]
    with pytest.raises(
        TargetError, match=f"no {provider}: pip uninstall -y onnxruntime && pip install onnxruntime-gpu"
    ):
        get_runtime("onnxruntime").load(tiny_bert.onnx, Deployment("onnxruntime", device=device))


@pytest.mark.parametrize("device", ["gpu", "npu"])
def test_a_missing_openvino_device_is_named_and_the_cpu_does_not_step_in(tiny_bert: Any, device: str) -> None:
    runtime, deployment = get_runtime("openvino"), Deployment("openvino", "fp16", device=device)
    if runtime.unavailable(deployment) is None:
        pytest.skip(f"OpenVINO finds a {device} here")
    with pytest.raises(TargetError, match=rf"OpenVINO finds no {device.upper()}, only CPU.*: install Intel's"):
        runtime.load(tiny_bert.xml, deployment)


def test_a_device_of_fixed_shapes_runs_any_shape(tiny_bert: Any) -> None:
    dynamic = get_runtime("openvino").load(tiny_bert.xml, Deployment("openvino"))
    options = get_runtime("openvino").options(Deployment("openvino"))
    fixed = FixedShapeSession(tiny_bert.xml, openvino.Core().read_model(tiny_bert.xml), "CPU", options)
    for batch, tokens in ((1, 16), (3, 7), (3, 7), (1, 16)):
        inputs = {name: value.numpy() for name, value in tiny_bert.inputs(batch, tokens).items()}
        np.testing.assert_allclose(fixed.run(inputs)[0], dynamic.run(inputs)[0], atol=1e-5)
    with pytest.raises(MeasurementError, match="needs input input_ids"):
        fixed.run({})
    fixed.close()
    with pytest.raises(ArtifactError, match="closed"):
        fixed.run(inputs)


def test_openvino_reads_onnx_too(tiny_bert: Any) -> None:
    sessions = [get_runtime("openvino").load(p, Deployment("openvino")) for p in (tiny_bert.onnx, tiny_bert.xml)]
    first, second = (session.run(arrays(tiny_bert))[0] for session in sessions)
    np.testing.assert_allclose(first, second, atol=1e-6)


def test_sessions_give_every_output_in_the_order_of_the_file(tmp_path: Path) -> None:
    class Two(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x.sum(dim=-1), 2 * x

    example, inputs = {"x": torch.zeros(2, 3)}, {"x": np.ones((4, 3), np.float32)}
    export_onnx(Two(), example, tmp_path / "model.onnx", outputs=("first", "second"))
    to_openvino(tmp_path / "model.onnx", tmp_path / "openvino_model.xml")
    export_torch(Two(), example, tmp_path / "model_fp32.pt2", precision="fp32")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == ["first", "second"]
    for name in (*RUNTIMES, "torch"):
        runtime = get_runtime(name)
        first, second = runtime.load(tmp_path / runtime.model_file(Deployment(name)), Deployment(name)).run(inputs)
        assert first.tolist() == [3.0] * 4
        assert second.tolist() == [[2.0] * 3] * 4


def test_unknown_runtime_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'openvino'"):
        get_runtime("openvin")


def test_the_fakes_clock_moves_by_exactly_its_latencies(tmp_path: Path) -> None:
    path = tmp_path / "fake.json"
    path.write_text('{"ms": [1, 3], "inputs": ["x"]}')
    runtime = get_runtime("fake")
    session = runtime.load(path, Deployment("fake"))
    for seconds in (0.001, 0.004, 0.005):
        assert session.run({"x": np.zeros((4, 1))})[0].shape == (4, 2)
        assert runtime.clock() == pytest.approx(seconds)
    with pytest.raises(MeasurementError, match="needs input x"):
        session.run({})
