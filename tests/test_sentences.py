"""Encoders for Sentence Transformers: what it computes with either backend is what the network does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from instatune_deploy.elastic.subnetwork import load_subnetwork
from instatune_deploy.elastic.supernet import Supernet
from instatune_deploy.errors import UsageError
from instatune_deploy.repositories import write_repository
from instatune_deploy.sentences import write_sentence_encoder
from instatune_deploy.stages.export import Artifact
from instatune_deploy.values.deployment import Deployment
from tests.helpers import call_main, make_family, write_text_model
from tests.stages.test_export import export_tiny

TEXTS = ["a very good film", "bad", "poor sad plot very very awful cast film plot", ""]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return export_tiny("text", Deployment("openvino"), tmp_path_factory.mktemp("sentences"))


@pytest.fixture(scope="module")
def encoder(artifact: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("encoder") / "out"
    return write_repository(artifact.directory, "sentence-transformers", out, name="model")


@torch.inference_mode()
def mean_of_tokens(directory: Path, texts: list[str]) -> np.ndarray:
    """Sentence embeddings by the extracted network itself."""
    from transformers import AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(directory)(texts, padding=True, truncation=True, return_tensors="pt")
    hidden = load_subnetwork(directory).base_model(**tokens).last_hidden_state
    mask = tokens["attention_mask"].unsqueeze(-1)
    return ((hidden * mask).sum(1) / mask.sum(1)).numpy()


@pytest.mark.parametrize(
    ("backend", "options"), [("onnx", {}), ("openvino", {"ov_config": {"INFERENCE_PRECISION_HINT": "f32"}})]
)
def test_sentence_transformers_embeds_as_the_network_does(
    artifact: Artifact, encoder: Path, backend: str, options: dict
) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    pytest.importorskip("optimum.intel", reason="needs the extra optimum")
    model = sentence_transformers.SentenceTransformer(str(encoder), backend=backend, model_kwargs=options, device="cpu")
    found = model.encode(TEXTS)
    expected = mean_of_tokens(artifact.directory, TEXTS)
    assert np.abs(found - expected).max() <= 1e-4
    assert np.abs(expected[0] - expected[1]).max() > 0.01  # texts are told apart
    assert model.max_seq_length == 16
    assert model.get_sentence_embedding_dimension() == 32
    cosine = np.dot(expected[0], expected[1]) / np.linalg.norm(expected[0]) / np.linalg.norm(expected[1])
    assert float(model.similarity(found[0], found[1])) == pytest.approx(cosine, abs=1e-4)
    # What is longer than the network reads is cut.
    assert np.abs(model.encode("good " * 40) - mean_of_tokens(artifact.directory, ["good " * 14])[0]).max() <= 1e-4


@pytest.mark.parametrize("family", ["distilbert", "deberta-v2"])
def test_every_family_of_texts_has_its_encoder(family: str, tmp_path: Path) -> None:
    """The files are held against the network when they are written."""
    made, network, out = make_family(family), tmp_path / "network", tmp_path / "out"
    write_text_model(network)
    architecture = made.space.sample(5, seed=3)[-1]
    Supernet(made.model, made.space).extract(architecture).save_pretrained(network)
    out.mkdir()
    write_sentence_encoder(network, out)
    config = json.loads((out / "config.json").read_text())
    assert config["instatune_architecture"] == str(architecture)
    assert config["architectures"][0].endswith("Model")
    assert {"onnx/model.onnx", "openvino/openvino_model.xml", "openvino/openvino_model.bin"} <= {
        path.relative_to(out).as_posix() for path in out.rglob("*")
    }


def test_images_are_refused_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = export_tiny("image", Deployment("onnxruntime"), tmp_path).directory
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UsageError, match="reads images"):
        write_repository(directory, "sentence-transformers", tmp_path / "encoder", name="model")
    arguments = ("package", directory, "--for", "sentence-transformers", "--out", tmp_path / "encoder")
    code, _, error = call_main(monkeypatch, capsys, *arguments)
    assert code == 2
    assert "Sentence Transformers takes encoders of texts" in error
    assert sorted(tmp_path.iterdir()) == before
