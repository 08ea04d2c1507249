"""The whole job on a tiny ResNet: stages of convolutions, whose batch norms need statistics of their own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessor

from instatune_deploy.data.dataset import open_task_data
from instatune_deploy.data.processor import Processor
from instatune_deploy.elastic.subnetwork import load_subnetwork
from instatune_deploy.elastic.training import CALIBRATION_BATCH, calibration_batches
from instatune_deploy.values.manifest import Manifest
from instatune_deploy.values.recipe import DataSection
from instatune_deploy.values.selection import Selection
from instatune_deploy.values.space import Architecture
from tests.helpers import TARGET, assert_files_compute, call_main, write_project


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("resnet")
    recipe = write_project(directory, "image-classification")
    torch.manual_seed(0)
    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[2, 2], layer_type="basic", num_labels=2,
    )  # fmt: skip
    for file in (directory / "model").iterdir():
        file.unlink()
    ResNetForImageClassification(config).save_pretrained(directory / "model")
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(directory / "model")
    whole = yaml.safe_load(recipe.read_text())
    del whole["space"]  # the family's own
    whole["profile"]["heldout"] = 1
    # Of a network of 60 microseconds most is the runtime's own, and on a busy machine nothing is surely faster than the full one.
    whole["targets"] = {"cpu-test": ["200%"]}
    recipe.write_text(yaml.safe_dump(whole))
    ways = [{"runtime": "onnxruntime"}, *({"runtime": r, "precision": "int8"} for r in ("onnxruntime", "openvino"))]
    (directory / "targets" / "cpu-test.yaml").write_text(yaml.safe_dump({**TARGET, "deployments": ways}))
    return directory


def test_a_resnet_goes_all_the_way(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project)
    code, out, last = call_main(monkeypatch, capsys, "run", "recipe.yaml", "--json")
    assert code == 0, last
    selection = Selection.from_dict(json.loads(out)["selections"][0])
    assert selection.measured.metric > 0.9
    assert selection.measured.p50_ms <= selection.limit_ms
    artifact = project / "runs" / "tiny" / selection.artifact
    manifest = Manifest.read(artifact)
    assert manifest.signature == "resnet-basic-8-2x8x8-2x16x16-i16"
    network = load_subnetwork(artifact)
    assert network.config.depths == list(Architecture.parse(manifest.architecture).depths)
    assert_files_compute(
        artifact, {"pixel_values": np.random.default_rng(0).standard_normal((2, 3, 16, 16), dtype=np.float32)}
    )
    tables = sorted(path.stem for path in (project / "runs" / "tiny" / "tables").rglob("*.json"))
    assert tables == ["ort-fp32-1t", "ort-int8-1t", "ov-int8-1t"]
    code, out, last = call_main(monkeypatch, capsys, "verify", artifact, "--run", "runs/tiny", "--no-latency", "--json")
    assert code == 0, last
    verified = json.loads(out)
    assert verified["problems"] == []
    assert verified["metric"]["value"] == pytest.approx(selection.measured.metric)


def test_computing_layers_again_is_refused_before_anything_is_trained(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project)
    whole = yaml.safe_load((project / "recipe.yaml").read_text())
    whole["finetune"]["gradient_checkpointing"] = True
    (project / "again.yaml").write_text(yaml.safe_dump(whole))
    code, _, last = call_main(monkeypatch, capsys, "run", "again.yaml", "--out", "runs/again")
    assert code == 2
    assert "finetune.gradient_checkpointing: a resnet has batch norms" in last
    assert not (project / "runs" / "again").exists()


def test_rows_that_statistics_are_measured_on_follow_from_the_seed(project: Path) -> None:
    processor = Processor(str(project / "model"), "image-classification", 16)
    section = DataSection(train=str(project / "train.parquet"), search_rows=100, report_rows=10)
    rows = open_task_data(section, "image-classification", processor, seed=0).train
    one, again, other = (
        torch.cat([batch["pixel_values"] for batch in calibration_batches(rows, processor, seed=seed)])
        for seed in (0, 0, 1)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert len(one) == len(rows) // CALIBRATION_BATCH * CALIBRATION_BATCH  # every batch counts alike
    assert "labels" not in calibration_batches(rows, processor, seed=0)[0]
