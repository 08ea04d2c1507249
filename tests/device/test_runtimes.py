"""The seam: every runtime takes what it needs, says what is missing, and refuses what it cannot do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from instatune_deploy.device.runtimes.base import get_runtime
from instatune_deploy.errors import ArtifactError, MeasurementError, TargetError, UnknownNameError
from instatune_deploy.values.target import Deployment

RUNTIMES = ["onnxruntime", "openvino"]


def arrays(tiny: Any) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in tiny.inputs(2, 16).items()}


def file_for(tiny: Any, runtime: str) -> Path:
    return tiny.directory / get_runtime(runtime).model_file(Deployment(runtime))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_inputs_the_model_lacks_are_ignored_and_missing_ones_named(tiny_bert: Any, runtime: str) -> None:
    session = get_runtime(runtime).load(file_for(tiny_bert, runtime), Deployment(runtime))
    inputs = arrays(tiny_bert)
    expected = session.run(inputs)
    np.testing.assert_array_equal(session.run({**inputs, "labels": np.zeros(2)}), expected)
    del inputs["attention_mask"]
    with pytest.raises(MeasurementError, match=r"needs input attention_mask; given: input_ids, token_type_ids"):
        session.run(inputs)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_an_output_is_the_callers_own(tiny_bert: Any, runtime: str) -> None:
    session = get_runtime(runtime).load(file_for(tiny_bert, runtime), Deployment(runtime))
    first, inputs = session.run(arrays(tiny_bert)), arrays(tiny_bert)
    kept = first.copy()
    inputs["input_ids"] = (inputs["input_ids"] + 7) % 100
    assert not np.allclose(session.run(inputs), first)
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_threads_and_batches_change_no_result(tiny_bert: Any, runtime: str) -> None:
    results = [
        get_runtime(runtime)
        .load(file_for(tiny_bert, runtime), Deployment(runtime, threads=threads))
        .run(arrays(tiny_bert))
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


def test_precision_is_always_set_and_never_silently_another(tiny_bert: Any) -> None:
    openvino = get_runtime("openvino")
    assert openvino.options(Deployment("openvino"))["INFERENCE_PRECISION_HINT"] == "f32"
    assert openvino.options(Deployment("openvino", "bf16"))["INFERENCE_PRECISION_HINT"] == "bf16"
    with pytest.raises(TargetError, match="bf16"):
        get_runtime("onnxruntime").load(tiny_bert.onnx, Deployment("onnxruntime", "bf16"))
    with pytest.raises(TargetError, match="int4"):
        openvino.load(tiny_bert.xml, Deployment("openvino", "int4"))


def test_openvino_reads_onnx_too(tiny_bert: Any) -> None:
    sessions = [get_runtime("openvino").load(p, Deployment("openvino")) for p in (tiny_bert.onnx, tiny_bert.xml)]
    first, second = (session.run(arrays(tiny_bert)) for session in sessions)
    np.testing.assert_allclose(first, second, atol=1e-6)


def test_unknown_runtime_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'openvino'"):
        get_runtime("openvin")


def test_the_fakes_clock_moves_by_exactly_its_latencies(tmp_path: Path) -> None:
    path = tmp_path / "fake.json"
    path.write_text('{"ms": [1, 3], "inputs": ["x"]}')
    runtime = get_runtime("fake")
    session = runtime.load(path, Deployment("fake"))
    for seconds in (0.001, 0.004, 0.005):
        assert session.run({"x": np.zeros((4, 1))}).shape == (4, 2)
        assert runtime.clock() == pytest.approx(seconds)
    with pytest.raises(MeasurementError, match="needs input x"):
        session.run({})
