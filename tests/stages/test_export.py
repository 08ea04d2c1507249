"""Artifacts hold the file of the deployment they are for, and it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoModelForVisualQuestionAnswering,
)

from benchmarks.shapes_task import write_shapes_model
from instatune_deploy.benching import bench_artifact
from instatune_deploy.data.processor import Processor
from instatune_deploy.device.lowering.onnx import OPSET
from instatune_deploy.device.lowering.signature import read_signature
from instatune_deploy.device.runtimes.base import get_runtime
from instatune_deploy.elastic.probing import synthetic_inputs
from instatune_deploy.elastic.shapes import model_shape
from instatune_deploy.elastic.subnetwork import load_subnetwork
from instatune_deploy.elastic.supernet import Supernet
from instatune_deploy.errors import ArtifactError, UsageError
from instatune_deploy.stages import export as stage
from instatune_deploy.stages.export import export, open_artifact
from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.fixed import FixedSizes
from instatune_deploy.values.recipe import Task
from instatune_deploy.values.space import Architecture, SearchSpace
from instatune_deploy.verifying import verify_artifact
from tests.helpers import write_image_model, write_text_model

SPACE = SearchSpace.homogeneous(3, [2, 3], [2, 4], [16, 64])
#: What makes a model, what loads it, and its task.
KINDS: dict[str, tuple[Callable[[Path], Path], Any, Task]] = {
    "text": (write_text_model, AutoModelForSequenceClassification, "text-classification"),
    "image": (write_image_model, AutoModelForImageClassification, "image-classification"),
    "image-text": (
        lambda path: write_shapes_model(path, side=8, patch=4, hidden=32, layers=3, ffn=64),
        AutoModelForVisualQuestionAnswering,
        "visual-question-answering",
    ),
}
ARCHITECTURE = Architecture.parse("2L[4-16 2-64]")


def export_tiny(
    kind: str, deployment: Deployment, directory: Path, *, opset: int = OPSET, fixed: FixedSizes | None = None
) -> stage.Artifact:
    """The artifact of an untrained sub-network of unequal layers."""
    write, auto, task = KINDS[kind]
    path = write(directory / "model")
    model = auto.from_pretrained(path)
    samples = synthetic_inputs(model.config, 8, 4, seed=0)
    processor = Processor(str(path), task, 16)
    network = Supernet(model, SPACE).extract(ARCHITECTURE)
    return export(
        network, ARCHITECTURE, deployment, model_shape(model, 8), processor, samples, [samples], directory / "out",
        target="cpu-test", metric="accuracy", predicted=None, opset=opset, fixed=fixed,
    )  # fmt: skip


def error_share(artifact: stage.Artifact) -> float:
    """How far the deployment's file is off, as a share of the largest logit of the network."""
    network = load_subnetwork(artifact.directory)
    inputs = synthetic_inputs(network.config, 8, 4, seed=0)
    with torch.inference_mode():
        logits = network(**{name: torch.from_numpy(array) for name, array in inputs.items()}).logits
    return artifact.manifest.parity[artifact.model_file().name].max_abs_error / float(logits.abs().max())


@pytest.mark.parametrize(
    ("kind", "deployment", "file"),
    [
        ("text", Deployment("onnxruntime", "int8"), "model_int8.onnx"),
        ("image", Deployment("onnxruntime", "int8"), "model_int8.onnx"),
        ("text", Deployment("openvino", "int8"), "openvino_model_int8.xml"),
        ("text", Deployment("torch", "bf16"), "model_bf16.pt2"),
        ("image-text", Deployment("onnxruntime", "int8"), "model_int8.onnx"),
        ("image-text", Deployment("openvino", "int8"), "openvino_model_int8.xml"),
        ("image-text", Deployment("torch", "bf16"), "model_bf16.pt2"),
        ("text", Deployment("openvino", "bf16"), "openvino_model.xml"),
    ],
)
def test_an_artifact_holds_its_deployments_file(tmp_path: Path, kind: str, deployment: Deployment, file: str) -> None:
    artifact = open_artifact(export_tiny(kind, deployment, tmp_path).directory)
    assert artifact.model_file().name == file
    assert set(artifact.manifest.parity) == {"model.onnx", "openvino_model.xml", file}
    assert file in artifact.manifest.files
    # Fewer bits may move untrained logits by a part of them, on CPUs without VNNI by up to a fifth, and must move them at all.
    assert error_share(artifact) < 0.25
    if deployment.precision == "int8":
        assert artifact.manifest.parity[file].max_abs_error > artifact.manifest.parity["model.onnx"].max_abs_error
    assert {path.name for path in artifact.directory.iterdir()} >= {
        "config.json",
        "model.safetensors",
        "instatune.json",
    }


def test_outputs_that_are_no_numbers_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = get_runtime("onnxruntime")

    class Broken:
        def run(self, inputs: dict[str, np.ndarray]) -> tuple[np.ndarray, ...]:
            return (np.full((4, 2), np.nan, np.float32),)

        def close(self) -> None: ...

    monkeypatch.setattr(type(runtime), "load", lambda *_: Broken())
    with torch.no_grad(), pytest.raises(ArtifactError, match="no finite numbers"):
        export_tiny("text", Deployment("onnxruntime", "int8"), tmp_path)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("kind", "deployment", "fixed"),
    [
        ("text", Deployment("openvino", "int8"), FixedSizes(1, 16)),
        ("image", Deployment("openvino", "int8"), FixedSizes(2)),
        ("image-text", Deployment("openvino", "int8"), FixedSizes(1, 14)),
    ],
)
def test_an_artifact_of_fixed_sizes(tmp_path: Path, kind: str, deployment: Deployment, fixed: FixedSizes) -> None:
    artifact = open_artifact(export_tiny(kind, deployment, tmp_path, opset=18, fixed=fixed).directory)
    assert (artifact.manifest.opset, artifact.manifest.fixed) == (18, fixed)
    assert {
        entry.version for entry in onnx.load(artifact.directory / "model.onnx").opset_import if not entry.domain
    } == {18}
    for file in artifact.manifest.parity:
        for tensor in read_signature(artifact.directory / file).inputs:
            assert tensor.dims[0] == fixed.batch
            assert fixed.tokens is None or len(tensor.dims) == 4 or tensor.dims == (1, fixed.tokens)
    # Calibrated on cut samples, on CPUs without VNNI: 0.3 of the largest logit.
    assert error_share(artifact) < 0.35
    if kind == "text":
        found = bench_artifact(artifact.directory, seconds=1, processes=2, check=False, report=lambda line: None)
        assert (found.tokens, found.deployment.batch) == (16, 1)
        verified = verify_artifact(artifact.directory, latency=False, report=lambda line: None)
        assert verified.problems == ()
    if fixed.tokens is not None:
        with pytest.raises(UsageError, match=f"batch 1, {fixed.tokens} tokens alone"):
            bench_artifact(artifact.directory, sequence_length=8, report=lambda line: None)


@pytest.mark.parametrize(
    ("kind", "deployment", "said"),
    [
        ("text", Deployment("torch", "bf16"), "ONNX Runtime and OpenVINO only"),
        ("image", Deployment("onnxruntime", "int8"), "is not fixed"),
        ("image-text", Deployment("onnxruntime", "int8"), "is not fixed"),
    ],
)
def test_files_that_cannot_do_with_fixed_sizes(tmp_path: Path, kind: str, deployment: Deployment, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        export_tiny(kind, deployment, tmp_path, fixed=FixedSizes(1))


def test_the_same_network_gives_the_same_bytes(tmp_path: Path) -> None:
    """All files; of the manifest all but the date."""
    deployment = Deployment("onnxruntime", "int8")
    first, second = (export_tiny("text", deployment, tmp_path / name).directory for name in ("first", "second"))
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in second.iterdir())
    differing = [name for name in names if (first / name).read_bytes() != (second / name).read_bytes()]
    manifests = [replace(open_artifact(directory).manifest, date="") for directory in (first, second)]
    assert differing in ([], ["instatune.json"])
    assert manifests[0] == manifests[1]
