"""The whole job on a tiny BEiT-3, which is not a model of transformers: its parts find it in processes of their own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from instatune_deploy.elastic.models.beit3 import Beit3Config, Beit3ForImageClassification
from instatune_deploy.values.selection import Selection
from tests.helpers import assert_files_compute, call_json, write_project


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("beit3")
    write_project(directory, "image-classification")
    torch.manual_seed(0)
    config = Beit3Config(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64, image_size=8, patch_size=4,
        num_labels=2,
    )  # fmt: skip
    Beit3ForImageClassification(config).save_pretrained(directory / "model")  # beside ViT's image processor
    return directory


def test_a_beit3_goes_all_the_way(project: Path) -> None:
    selection = Selection.from_dict(call_json(project, "run", "recipe.yaml")["selections"][0])
    assert selection.measured.metric > 0.9
    assert selection.measured.p50_ms <= selection.limit_ms
    artifact = project / "runs" / "tiny" / selection.artifact
    manifest = json.loads((artifact / "instatune.json").read_text())
    assert manifest["signature"] == "beit3-h32-d8-3x4x64-t5"
    assert_files_compute(
        artifact, {"pixel_values": np.random.default_rng(0).standard_normal((2, 3, 8, 8), dtype=np.float32)}
    )
    verified = call_json(project, "verify", str(artifact), "--run", "runs/tiny", "--no-latency")
    assert verified["problems"] == []
    assert verified["metric"]["value"] == pytest.approx(selection.measured.metric)
