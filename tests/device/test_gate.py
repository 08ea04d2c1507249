"""int8 files that may lose only so much."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from instatune_deploy.device.lowering.gate import Gate, hold
from instatune_deploy.device.lowering.quantize import products
from instatune_deploy.device.lowering.variants import IR, ONNX, lower
from instatune_deploy.device.runtimes.base import get_runtime
from instatune_deploy.errors import ArtifactError, PrecisionLossError
from instatune_deploy.values.deployment import Deployment

ORT, OV = Deployment("onnxruntime", "int8"), Deployment("openvino", "int8")


def samples(count: int = 2) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    made = []
    for _ in range(count):
        ids = rng.integers(5, 100, (2, 16))
        made.append({"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)})
    return made


def outputs(path: Path, deployment: Deployment) -> np.ndarray:
    session = get_runtime(deployment.runtime).load(path, deployment)
    try:
        return np.concatenate([session.run(sample)[0] for sample in samples()])
    finally:
        session.close()


def nearness(folder: Path) -> Callable[[Path, Deployment], float]:
    """A score that is 1 for the fp32 file and lower, the further outputs are from its."""
    wanted = outputs(folder / ONNX, Deployment("onnxruntime"))
    return lambda path, deployment: 1 - float(np.abs(outputs(path, deployment) - wanted).max())


@pytest.fixture
def folder(tiny_bert: Any, tmp_path: Path) -> Path:
    (tmp_path / ONNX).write_bytes(tiny_bert.onnx.read_bytes())
    lower(tmp_path, IR, samples(), image=False)
    return tmp_path


def int8_weights(path: Path) -> int:
    return sum(w.data_type == onnx.TensorProto.INT8 and len(w.dims) == 2 for w in onnx.load(path).graph.initializer)


@pytest.mark.parametrize("source", [ONNX, IR])
def test_products_are_what_has_weights_in_order(folder: Path, source: str) -> None:
    found = products(folder / source)
    # Six a layer, the pooler's and the classifier's.
    assert len(found) == len(set(found)) == 2 * 6 + 2


@pytest.mark.parametrize("deployment", [ORT, OV], ids=lambda d: d.runtime)
def test_a_file_that_loses_little_is_left_as_it_is(folder: Path, deployment: Deployment) -> None:
    kept = hold(folder, deployment, samples(), Gate(1.0, nearness(folder)), image=False)
    assert (kept.names, kept.of) == ((), 14)
    assert 0 < kept.drop < 1
    file = get_runtime(deployment.runtime).model_file(deployment)
    before = outputs(folder / file, deployment)
    (folder / file).unlink()
    lower(folder, file, samples(), image=False)
    assert outputs(folder / file, deployment) == pytest.approx(before, abs=1e-6)


@pytest.mark.parametrize("deployment", [ORT, OV], ids=lambda d: d.runtime)
def test_what_is_most_sensitive_stays_fp32_until_the_gate_holds(folder: Path, deployment: Deployment) -> None:
    score = nearness(folder)
    all_int8 = hold(folder, deployment, samples(), Gate(1.0, score), image=False)
    said: list[str] = []
    kept = hold(folder, deployment, samples(), Gate(0.6 * all_int8.drop, score, said.append), image=False)
    assert 0 < len(kept.names) < 14
    assert set(kept.names) < set(products(folder / (ONNX if deployment == ORT else IR)))
    assert kept.drop <= 0.6 * all_int8.drop
    file = folder / get_runtime(deployment.runtime).model_file(deployment)
    assert 1 - score(file, deployment) == pytest.approx(kept.drop, abs=1e-6)  # NNCF is not exact to the bit
    assert "with 0 of 14 products in fp32" in said[0]
    if deployment == ORT:
        assert int8_weights(file) == 14 - len(kept.names)


def test_a_gate_that_nothing_passes_refuses_and_leaves_no_file(folder: Path) -> None:
    scores = iter([0.9] + [0.8] * 10)
    with pytest.raises(PrecisionLossError, match=r"model_int8\.onnx: loses 10\.00 points"):
        hold(folder, ORT, samples(), Gate(0.05, lambda path, deployment: next(scores)), image=False)
    assert not (folder / "model_int8.onnx").exists()
    assert (folder / ONNX).is_file()


def test_only_quantised_files_have_a_gate(folder: Path) -> None:
    with pytest.raises(ArtifactError, match="is not quantised"):
        hold(folder, Deployment("onnxruntime"), samples(), Gate(0.05, nearness(folder)), image=False)
