"""`instatune-deploy runs`: listed, shown, and removed only when it is meant."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from instatune_deploy.reporting.summary import OWN, remove_run, summarise
from tests.helpers import COMMAND, call_main

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def made(copy_project: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    return copy_project(tmp_path_factory.mktemp("finished") / "project")


@pytest.fixture
def run(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it in ``runs`` of the current directory."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made, tmp_path / "runs" / "tiny")
    return Path("runs/tiny")


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    return lambda *arguments: call_main(monkeypatch, capsys, "runs", *arguments)


def test_runs_are_listed_with_what_is_done_and_what_they_take(run: Path, call: Call) -> None:
    (Path("runs") / "notes").mkdir()
    code, out, _ = call("list", "--json")
    assert code == 0
    (found,) = json.loads(out)["runs"]
    assert found["run"] == "runs/tiny"
    stages = [stage["stage"] for stage in found["stages"]]
    assert stages == [
        "teacher",
        "finetune",
        "evaluations",
        "search-cpu-test-p50",
        "full-cpu-test",
        "select-cpu-test-p50-90pct",
    ]
    assert found["size_bytes"] == sum(path.stat().st_size for path in run.rglob("*") if path.is_file())
    assert found["size_bytes"] == sum(found["sizes_bytes"].values())
    shown = call("list")[1]
    assert "runs/tiny" in shown
    assert "finetune" in shown
    assert call("list", "runs/tiny", "--json")[1] == out
    assert call("list", "runs/notes")[1].startswith("no runs in runs/notes")


def test_a_run_is_shown_by_its_name(run: Path, call: Call) -> None:
    shutil.rmtree(run / "selections")
    code, out, _ = call("show", "tiny", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["missing"] == ["nothing was selected for 90% on cpu-test yet"]
    assert "select-cpu-test-p50-90pct" not in [stage["stage"] for stage in found["stages"]]
    (run / "recipe.yaml").write_text("3")
    shown = call("show", "runs/tiny")[1]
    assert "finetune (supernet)" in shown
    assert "missing: runs/tiny/recipe.yaml: expected keys such as model" in shown


def test_removing_asks_and_takes_no_for_an_answer(run: Path) -> None:
    for answer, stays in (("n", True), ("y", False)):
        mine, theirs = pty.openpty()
        process = subprocess.Popen(
            [*COMMAND, "runs", "rm", "tiny"], stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        os.write(mine, f"{answer}\n".encode())
        _, said = process.communicate(timeout=120)
        os.close(mine)
        os.close(theirs)
        assert process.returncode == 0
        assert re.search(r"Remove runs/tiny \(\d\.\d MB, 6 stages done\)\?", said)
        assert run.exists() == stays


def test_nothing_is_removed_where_nobody_can_be_asked(run: Path, call: Call) -> None:
    assert call("rm", "tiny")[::2] == (2, "error: nobody is there to ask whether to remove them: give --yes")
    assert run.exists()


def test_what_is_no_run_is_refused_and_nothing_is_removed(
    run: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("mine").mkdir()
    (Path("mine") / "recipe.yaml").write_text("mine")
    Path("link").symlink_to(run.resolve())
    home = Path.cwd()
    before = sorted(home.rglob("*"))
    for name, message in (
        ("mine", "error: mine is not a run directory: `instatune-deploy run` makes those"),
        ("tinny", "error: there is no run tinny; did you mean 'runs/tiny'?"),
        ("link", f"error: link is a link: remove the run {run.resolve()} itself"),
    ):
        assert call("rm", name, "--yes")[::2] == (2, message)
    assert call("rm", "tiny", "mine", "--yes")[0] == 2  # and the other one stays
    monkeypatch.chdir(run / "artifacts")
    assert call("rm", "..", "--yes")[::2] == (2, "error: .. holds the current directory: change to another one first")
    assert sorted(home.rglob("*")) == before


def test_a_run_that_a_process_works_on_is_not_removed(run: Path, call: Call) -> None:
    holder = "import sys; from pathlib import Path; from instatune_deploy.workspace import Workspace\n"
    holder += "with Workspace(Path('runs/tiny')).locked(): print('held', flush=True); sys.stdin.read()"
    process = subprocess.Popen([sys.executable, "-c", holder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    before = sorted(run.rglob("*"))
    code, _, said = call("rm", "tiny", "--yes")
    process.communicate("")
    assert (code, said[:44]) == (2, "error: another process works on runs/tiny: w")
    assert sorted(run.rglob("*")) == before
    assert call("rm", "tiny", "--yes")[0] == 0
    assert not run.exists()


def test_what_a_run_did_not_make_stays(run: Path, call: Call) -> None:
    (run / "notes.txt").write_text("mine")
    recipe = (run / "recipe.yaml").read_text()
    code, out, _ = call("rm", "tiny", "--yes", "--json")
    assert code == 0
    assert json.loads(out) == {"removed": [{"run": "runs/tiny", "kept": ["notes.txt", "recipe.yaml"]}]}
    assert sorted(path.name for path in run.iterdir()) == ["notes.txt", "recipe.yaml"]
    assert (run / "recipe.yaml").read_text() == recipe


def test_all_that_a_run_makes_is_known(made: Path) -> None:
    assert {path.name for path in made.iterdir()} <= OWN
    assert {"supernet", "training", "artifacts"} <= summarise(made).sizes.keys()


def test_a_removal_that_is_stopped_leaves_a_run_with_nothing_done(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", stop)
        with pytest.raises(KeyboardInterrupt):
            remove_run(run)
    assert summarise(run).stages == ()
    assert remove_run(run) == []
    assert not run.exists()
