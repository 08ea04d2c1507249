"""What was selected before is said again at once, as long as nothing that it follows from has changed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from instatune_deploy import recalling
from instatune_deploy.errors import UsageError
from instatune_deploy.values.budget import Budget
from instatune_deploy.values.selection import Selection
from instatune_deploy.values.target import find_target
from instatune_deploy.workspace import Workspace, data_directories
from tests.faces.conftest import CopyProject
from tests.faces.test_imports import CODE, HEAVY
from tests.helpers import call_command


@dataclass(frozen=True)
class Selected:
    """A project whose run has selected for `budget`, and noted on what grounds."""

    project: Path
    run: Path
    budget: str
    selection: Selection

    def recall(self, **changes: object) -> Selection | None:
        """What is said of that budget, in the project's directory."""
        recipe = recalling.run_recipe(self.run).model_copy(update=changes)
        budget = Budget.parse(self.budget, metric=recipe.metric)
        target = find_target(self.selection.target, data_directories("targets"))
        return recalling.recall(Workspace(self.run), recipe, target, budget)


@pytest.fixture(scope="module")
def selected(copy_project: CopyProject, tmp_path_factory: pytest.TempPathFactory) -> Selected:
    project = tmp_path_factory.mktemp("recalled") / "project"
    run = copy_project(project)
    budget = json.loads((run / "result.json").read_text())[0]["budget"]
    found = call_command(project, "select", "--latency-budget", budget, "--json")
    assert found.code == 0, found.err
    assert "front of" in found.err
    return Selected(project, run, budget, Selection.from_dict(found.json))


def test_it_is_said_without_anything_heavy(selected: Selected) -> None:
    command = [sys.executable, "-c", CODE, "select", "--latency-budget", selected.budget, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=selected.project)
    code, modules = json.loads(done.stderr.splitlines()[-1])
    assert code in (None, 0)
    assert HEAVY.isdisjoint(modules)
    assert Selection.from_dict(json.loads(done.stdout)) == selected.selection
    assert "reused, its front and budget are the same" in done.stderr


def spoil(pattern: str) -> Callable[[Selected], None]:
    """Adds a byte to each file that matches."""

    def change(selected: Selected) -> None:
        paths = [path for path in selected.project.glob(pattern) if path.is_file()]
        assert paths, pattern
        for path in paths:
            path.write_bytes(path.read_bytes() + b" ")

    return change


def remove(pattern: str) -> Callable[[Selected], None]:
    """Removes a file or directory that matches."""

    def change(selected: Selected) -> None:
        (path,) = selected.project.glob(pattern)
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


@pytest.mark.parametrize(
    "change",
    [
        spoil("runs/tiny/supernet/*.safetensors"), spoil("runs/tiny/tables/**/*.json"), spoil("runs/tiny/fronts/*.json"),
        spoil("runs/tiny/.stages/search-*.json"), spoil("targets/*.yaml"), spoil("model/config.json"),
        spoil("*.parquet"), remove("runs/tiny/artifacts/*/p*"), remove("runs/tiny/selections/*.json"),
        remove("runs/tiny/.recalled/*.json"), remove("runs/tiny/.stages/select-*.json"),
        lambda selected: (next(selected.run.glob("selections/*.json"))).write_text("{"),
        lambda selected: (next(selected.run.glob(".recalled/*.json"))).write_text("["),
    ],
    ids=[
        "super-network", "table", "front", "stage", "target", "model", "data", "artifact", "record", "note", "stage gone",
        "record damaged", "note damaged",
    ],
)  # fmt: skip
def test_what_has_changed_is_looked_at_again(
    change: Callable[[Selected], None], selected: Selected, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(selected.project)
    assert selected.recall() == selected.selection
    shutil.copytree(selected.project, tmp_path / "as-it-was")
    try:
        change(selected)
        assert selected.recall() is None
    finally:
        shutil.rmtree(selected.project)
        shutil.copytree(tmp_path / "as-it-was", selected.project)
        monkeypatch.chdir(selected.project)  # for it is another directory now
    assert selected.recall() == selected.selection


def test_another_question_is_another_answer(selected: Selected, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(selected.project)
    assert selected.recall(percentile="p99") is None
    assert selected.recall(tune_epochs=1.0) is None
    assert selected.recall(seed=12345) is None
    with monkeypatch.context() as patched:
        patched.setattr(recalling, "runtime_versions", lambda: {"onnxruntime": "0.1"})
        assert selected.recall() is None
    assert selected.recall() == selected.selection


def test_it_waits_for_no_one(selected: Selected, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(selected.project)
    code = (
        "import sys; from pathlib import Path; from instatune_deploy.workspace import Workspace\n"
        "with Workspace(Path(sys.argv[1])).locked(): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(selected.run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(UsageError, match="another process works on"):
            selected.recall()
        holder.communicate()
    assert selected.recall() == selected.selection
