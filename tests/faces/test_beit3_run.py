"""The whole job on a tiny BEiT-3, which is not a model of transformers: its parts find it in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from instatune_deploy.device.runtimes.base import get_runtime
from instatune_deploy.elastic.models.beit3 import Beit3Config, Beit3ForImageClassification
from instatune_deploy.elastic.subnetwork import load_subnetwork
from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.selection import Selection
from tests.helpers import write_project


def call(directory: Path, *arguments: str) -> Any:
    """What `instatune-deploy` prints as JSON."""
    found = subprocess.run(
        [sys.executable, "-m", "instatune_deploy", *arguments, "--json"],
        cwd=directory, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout)


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
    selection = Selection.from_dict(call(project, "run", "recipe.yaml")["selections"][0])
    assert selection.measured.metric > 0.9
    assert selection.measured.p50_ms <= selection.limit_ms
    artifact = project / "runs" / "tiny" / selection.artifact
    manifest = json.loads((artifact / "instatune.json").read_text())
    assert manifest["signature"] == "beit3-h32-d8-3x4x64-t5"
    network = load_subnetwork(artifact)
    pixels = np.random.default_rng(0).standard_normal((2, 3, 8, 8), dtype=np.float32)
    with torch.inference_mode():
        expected = network(torch.from_numpy(pixels)).logits.numpy()
    for runtime in map(get_runtime, ("onnxruntime", "openvino")):
        deployment = Deployment(runtime.name)
        session = runtime.load(artifact / runtime.model_file(deployment), deployment)
        assert np.abs(session.run({"pixel_values": pixels})[0] - expected).max() <= 1e-4
        session.close()
    verified = call(project, "verify", str(artifact), "--run", "runs/tiny", "--no-latency")
    assert verified["problems"] == []
    assert verified["metric"]["value"] == pytest.approx(selection.measured.metric)
