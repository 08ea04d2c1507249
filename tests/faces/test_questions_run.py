"""Questions about pictures, the whole job: both are read, learnt, searched, quantised, exported, verified and packaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from transformers import AutoModelForVisualQuestionAnswering, ViTImageProcessor

from benchmarks.shapes_task import accuracy, hide, learn, shapes_batch, write_shapes, write_shapes_model
from instatune_deploy.data.processor import Processor
from instatune_deploy.device.lowering.signature import read_signature
from instatune_deploy.stages.export import open_artifact
from instatune_deploy.values.selection import Selection
from tests.helpers import assert_files_compute, call_json, call_main, write_image_model

TASK = "visual-question-answering"
TARGET = {
    "name": "cpu-test", "description": "any CPU", "device": "cpu",
    "deployments": [{"runtime": "onnxruntime", "precision": "int8"}],
}  # fmt: skip


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model, data, target and recipe; the model has learnt from pictures and questions together."""
    directory = tmp_path_factory.mktemp("questions")
    model = write_shapes_model(directory / "model", layers=2, hidden=48, heads=4, ffn=96)
    batch = shapes_batch(2000, 3, Processor(str(model), TASK, 16))
    learn(AutoModelForVisualQuestionAnswering.from_pretrained(model), batch, steps=250).save_pretrained(model)
    for name, rows, seed in (("train", 600, 1), ("report", 200, 2)):
        write_shapes(directory / f"{name}.parquet", rows, seed)
    (directory / "targets").mkdir()
    (directory / "targets" / "cpu-test.yaml").write_text(yaml.safe_dump(TARGET), encoding="utf-8")
    recipe = {
        "name": "tiny", "model": "./model", "task": TASK,
        "data": {"train": "./train.parquet", "report": "./report.parquet", "search_rows": 200, "sequence_length": 12},
        "space": {"depths": [1, 2], "heads": [2, 4], "ffn": [48, 96]},
        "finetune": {"teacher": None, "epochs": 1, "importance_rows": 64},
        "search": {"warm_start": 8, "rounds": 1, "batch": 2, "population": 10, "generations": 3, "deployed": 0},
        "profile": {"heldout": 2, "seconds": 1, "confirm_seconds": 1, "wait_seconds": 0},
        "targets": {"cpu-test": ["macs<=90%"]},  # which no latency has a say in
    }  # fmt: skip
    (directory / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return directory


@pytest.fixture
def call(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """See `call_main`; called in the project."""
    monkeypatch.chdir(project)
    return lambda *arguments: call_main(monkeypatch, capsys, *arguments)


def test_the_picture_and_the_question_are_both_needed(project: Path) -> None:
    processor = Processor(str(project / "model"), TASK, 16)
    seen, unseen = shapes_batch(1000, 4, processor), shapes_batch(500, 5, processor)
    both = accuracy(AutoModelForVisualQuestionAnswering.from_pretrained(project / "model"), unseen)
    for hidden in ("image", "text"):
        blind = AutoModelForVisualQuestionAnswering.from_config(
            AutoModelForVisualQuestionAnswering.from_pretrained(project / "model").config
        )
        learn(blind, hide(seen, hidden), steps=80)  # type: ignore[arg-type]
        alone = accuracy(blind, hide(unseen, hidden))  # type: ignore[arg-type]
        assert 0.2 < alone < both - 0.2, hidden


def test_questions_go_all_the_way(project: Path, call: Callable[..., tuple[int, str, str]]) -> None:
    selection = Selection.from_dict(call_json(project, "run", "recipe.yaml")["selections"][0])
    assert selection.deployment == "ort-int8-1t"
    assert selection.measured.metric > 0.4  # one of both alone reaches 0.36
    artifact = open_artifact(project / "runs" / "tiny" / selection.artifact)
    assert (artifact.manifest.signature, artifact.manifest.task) == ("beit3-h48-d12-2x4x96-t5+12", TASK)
    signature = read_signature(artifact.model_file())
    assert {tensor.name: tensor.dims for tensor in signature.inputs} == {
        "input_ids": (-1, -1), "attention_mask": (-1, -1), "pixel_values": (-1, 3, 32, 32),
    }  # fmt: skip
    # Another number of rows and a longer text than any that it was exported or calibrated with.
    batch = {
        "input_ids": np.full((2, 14), 4), "attention_mask": np.tril(np.ones((14, 14), dtype=np.int64))[[13, 5]],
        "pixel_values": np.random.default_rng(0).standard_normal((2, 3, 32, 32), dtype=np.float32),
    }  # fmt: skip
    assert_files_compute(artifact.directory, batch)
    verified = call_json(project, "verify", str(artifact.directory), "--run", "runs/tiny", "--no-latency")
    assert verified["problems"] == []
    assert verified["metric"]["value"] == pytest.approx(selection.measured.metric)
    code, _, line = call("package", artifact.directory, "--for", "triton", "--out", project / "triton")
    assert code == 0, line
    assert 'name: "pixel_values" data_type: TYPE_FP32 dims: [ 3, 32, 32 ]' in (
        project / "triton" / "model" / "config.pbtxt"
    ).read_text(encoding="utf-8")
    code, _, line = call("package", artifact.directory, "--for", "sentence-transformers", "--out", project / "encoder")
    assert (code, "reads images: Sentence Transformers takes encoders of texts" in line) == (2, True)


def changed(project: Path, name: str, **changes: Any) -> None:
    """A recipe beside the project's own."""
    recipe = yaml.safe_load((project / "recipe.yaml").read_text())
    recipe["data"] |= changes.pop("data", {})
    (project / name).write_text(yaml.safe_dump({**recipe, **changes}))


def copied(project: Path, name: str) -> Path:
    """The model once more, to be spoilt."""
    (project / name).mkdir()
    for path in (project / "model").iterdir():
        (project / name / path.name).write_bytes(path.read_bytes())
    return project / name


def odd_patches(project: Path) -> None:
    path = copied(project, "odd") / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "patch_size": 12}))
    changed(project, "bad.yaml", model="./odd")


def other_images(project: Path) -> None:
    ViTImageProcessor(size={"height": 48, "width": 48}).save_pretrained(copied(project, "large"))
    changed(project, "bad.yaml", model="./large")


def long_texts(project: Path) -> None:
    changed(project, "bad.yaml", data={"sequence_length": 20})


def no_questions(project: Path) -> None:
    changed(project, "bad.yaml", data={"text": "question"})


def no_images(project: Path) -> None:
    changed(project, "bad.yaml", data={"image": "picture"})


def a_vit(project: Path) -> None:
    write_image_model(project / "vit")
    for path in (project / "model").glob("*token*"):
        (project / "vit" / path.name).write_bytes(path.read_bytes())
    changed(project, "bad.yaml", model="./vit", space={"depths": [3], "heads": [4], "ffn": [64]})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (odd_patches, "image size 32 is not a multiple of the patch size 12"),
        (other_images, "its image processor makes images of 48x48 pixels, but the model reads 32x32"),
        (long_texts, "data.sequence_length is 20, but"),
        (no_questions, "has no column 'question'; its columns: image, text, label"),
        (no_images, "has no column 'picture'; its columns: image, text, label"),
        (a_vit, "a vit model cannot do visual-question-answering"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_does_not_fit_is_one_line(
    project: Path, call: Callable[..., tuple[int, str, str]], spoil: Callable[[Path], None], message: str
) -> None:
    spoil(project)
    code, out, line = call("run", "bad.yaml", "--dry-run")
    assert (code, out) == (2, "")
    assert line.startswith("error: ")
    assert message in line
