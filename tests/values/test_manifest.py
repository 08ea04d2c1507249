"""An artifact is what its manifest says, byte for byte."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from instatune_deploy.errors import ArtifactError
from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.front import Measured, Predicted
from instatune_deploy.values.manifest import MANIFEST_NAME, Manifest, Parity

FILES = {"config.json": b'{"a": 1}\n', "model.onnx": bytes(range(256)), "tokenizer/vocab.txt": b"one\ntwo\n"}


def make_artifact(directory: Path) -> Manifest:
    for name, content in FILES.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)
    Manifest(
        architecture="1L[12-3072]",
        task="text-classification",
        metric="accuracy",
        target="cpu-avx2",
        deployment=Deployment("onnxruntime", needs=("avx2",)),
        signature="bert-h768-d64-12x12x3072-t128",
        macs=10**9,
        parameters=10**7,
        parity={"model.onnx": Parity(1e-6, 1.0, 32)},
        predicted=Predicted(0.9, 10**9, 4.2, "search split"),
        measured=Measured(0.91, 872, 4.1, 4.2, 4.4, 5.0, 400),
        versions={"onnxruntime": "1.22.0"},
        date="2025-01-01",
        files={},
    ).write(directory)
    return Manifest.read(directory)


def test_a_manifest_covers_every_file_and_round_trips(tmp_path: Path) -> None:
    manifest = make_artifact(tmp_path)
    assert set(manifest.files) == set(FILES)
    assert manifest.parity["model.onnx"].n == 32
    manifest.verify(tmp_path)
    manifest.write(tmp_path)
    assert Manifest.read(tmp_path) == manifest


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(st.sampled_from(sorted(FILES)), st.integers(0, 10**4), st.integers(0, 7))
def test_one_flipped_bit_is_refused(tmp_path: Path, name: str, position: int, bit: int) -> None:
    manifest = make_artifact(tmp_path)
    content = bytearray(FILES[name])
    content[position % len(content)] ^= 1 << bit
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=name):
        manifest.verify(tmp_path)


def test_a_file_that_is_missing_or_added_is_named(tmp_path: Path) -> None:
    manifest = make_artifact(tmp_path)
    (tmp_path / "extra.bin").touch()
    with pytest.raises(ArtifactError, match=r"extra\.bin"):
        manifest.verify(tmp_path)
    (tmp_path / "extra.bin").unlink()
    (tmp_path / "config.json").unlink()
    with pytest.raises(ArtifactError, match=r"config\.json"):
        manifest.verify(tmp_path)


def test_a_damaged_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=MANIFEST_NAME):
        Manifest.read(tmp_path)
    make_artifact(tmp_path)
    path = tmp_path / MANIFEST_NAME
    whole = path.read_text()
    path.write_text(whole[:-20])
    with pytest.raises(ArtifactError, match="not JSON"):
        Manifest.read(tmp_path)
    data = json.loads(whole)
    del data["deployment"]["runtime"]
    path.write_text(json.dumps(data))
    with pytest.raises(ArtifactError, match=r"deployment\.runtime"):
        Manifest.read(tmp_path)
