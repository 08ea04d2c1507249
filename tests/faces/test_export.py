"""`instatune-deploy export`: what it says of operator sets and fixed sizes, and refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from transformers import AutoModelForSequenceClassification

from instatune_deploy import exporting
from instatune_deploy.data.heads import get_head
from instatune_deploy.device.lowering.signature import read_signature
from instatune_deploy.elastic.supernet import Supernet, save_supernet
from instatune_deploy.pipeline import start_job
from instatune_deploy.stages.export import open_artifact
from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.fixed import FixedSizes
from instatune_deploy.values.hashing import content_key
from instatune_deploy.values.recipe import Task, read_recipe
from instatune_deploy.workspace import Workspace
from tests.helpers import call_main, write_project

NETWORK = "2L[4-16 2-64]"
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose super-network is untrained."""
    project = tmp_path_factory.mktemp("export") / "project"
    recipe = read_recipe(write_project(project))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        job = start_job(recipe, Workspace(project / "runs" / "tiny"), lambda line: None)
        path = job.workspace.path("supernet")
        save_supernet(Supernet(AutoModelForSequenceClassification.from_pretrained(project / "model"), job.space), path)
        key = content_key(job.inputs_key, recipe.finetune.model_dump(exclude={"preset"}), job.space.to_dict())
        job.workspace.mark_done("finetune", key, [path])
    return job.workspace.root


@pytest.fixture
def call(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    monkeypatch.chdir(run.parents[1])
    return lambda *arguments: call_main(
        monkeypatch, capsys, "export", "--run", run, "--architecture", NETWORK, *arguments
    )


def test_opset_and_sizes_are_what_was_asked_for(call: Call, tmp_path: Path) -> None:
    code, out, error = call("--out", tmp_path / "made", "--opset", 18, "--fixed-length", 16, "--json")
    assert code == 0, error
    assert json.loads(out)["measured"]["n"] == 100
    artifact = open_artifact(tmp_path / "made")
    assert (artifact.manifest.opset, artifact.manifest.fixed) == (18, FixedSizes(1, 16))
    assert {tensor.dims for tensor in read_signature(artifact.model_file()).inputs} == {(1, 16)}


@pytest.mark.parametrize(("task", "stride"), [("question-answering", 7), ("text-classification", None)])
def test_the_stride_of_windows_goes_with_what_answers_questions(
    task: Task, stride: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, given = MagicMock(), dict[str, Any]()
    job.recipe.data.doc_stride, job.processor.head = 7, get_head(task)
    monkeypatch.setattr(exporting, "export", lambda *_, **options: given.update(options))
    monkeypatch.setattr(exporting, "_samples", lambda _: {})
    exporting.export_network(job, MagicMock(), MagicMock(), Deployment("onnxruntime"), Path("made"), None)
    assert given["doc_stride"] == stride


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--fixed-length", 8), "fix at least that and at most"),
        (("--fixed-length", 100_000), "fix at least that and at most"),
        (("--opset", 16), "greater than or equal to 17"),
    ],
)
def test_what_cannot_be_is_refused(call: Call, tmp_path: Path, options: tuple[object, ...], said: str) -> None:
    code, _, error = call("--out", tmp_path / "made", *options)
    assert code == 2
    assert said in error
    assert not (tmp_path / "made").exists()
