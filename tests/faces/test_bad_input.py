"""What users get wrong ends in one clear line and the right exit code, and changes no file; so does what nobody foresaw."""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from instatune_deploy.device.fingerprint import detect
from instatune_deploy.elastic.families import supported_families
from instatune_deploy.errors import InfeasibleBudgetError, UnknownNameError
from instatune_deploy.faces.cli import app, main
from instatune_deploy.faces.cli.failing import explain
from instatune_deploy.values.recipe import METRICS
from tests.faces.bad_inputs import CASES, Case, write_everything
from tests.helpers import call_command, call_main

Call = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("original")
    write_everything(directory)
    return directory


@pytest.fixture
def project(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of its own, as the current directory."""
    directory = Path(shutil.copytree(original, tmp_path / "project"))
    monkeypatch.chdir(directory)
    return directory


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    def run_main(*arguments: str) -> tuple[int, str]:
        """Exit code and last line of stderr; no traceback is in it."""
        code, _, last = call_main(monkeypatch, capsys, *arguments)
        return code, last

    return run_main


def snapshot(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def expected(case: Case, project: Path) -> str:
    """The line that the case says, for this machine and all that there is."""
    *tasks, last = (repr(task) for task in METRICS)
    names = {
        "HERE": str(project), "CPU": detect().cpu_model, "FAMILIES": ", ".join(supported_families()),
        "VERBS": ", ".join(verb_names()), "TASKS": f"{', '.join(tasks)} or {last}",
    }  # fmt: skip
    line = case.message
    for name, value in names.items():
        line = line.replace(name, value)
    return f"error: {line}"


def verb_names() -> list[str]:
    """Every verb, in the order in which the help has them."""
    commands = [command.name or command.callback.__name__ for command in app.registered_commands if command.callback]
    return [*commands, *(str(group.name) for group in app.registered_groups)]


def test_the_table_is_long_and_names_each_case_once() -> None:
    assert len(CASES) >= 60
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_wrong_input_ends_in_its_line_and_changes_no_file(project: Path, call: Call, case: Case) -> None:
    if case.spoil is not None:
        case.spoil()
    before, words = snapshot(project), case.call.split()
    if words[0] == "serve":  # a server's protobufs and a client's, which other tests load, do not go into one process
        found = call_command(project, *words)
        given = found.code, found.err.strip().splitlines()[-1]
    else:
        given = call(*words)
    assert given == (case.code, expected(case, project))
    assert snapshot(project) == before


@pytest.mark.parametrize(
    "name", ["a key that is none", "a tensor that is missing", "too few rows", "a run into a file"]
)
def test_a_dry_run_refuses_the_same(project: Path, call: Call, name: str) -> None:
    case = next(case for case in CASES if case.name == name)
    if case.spoil is not None:
        case.spoil()
    assert call(*case.call.split(), "--dry-run") == (case.code, expected(case, project))


def test_debug_shows_the_traceback_wherever_it_stands(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (("--debug", "run", "nowhere.yaml"), ("run", "nowhere.yaml", "--debug")):
        monkeypatch.setattr("sys.argv", ["instatune-deploy", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        assert caught.value.code == 2
        lines = capsys.readouterr().err.splitlines()
        assert lines[0] == "Traceback (most recent call last):"
        assert lines[-1] == "error: nowhere.yaml: no such file; `instatune-deploy init MODEL DATA` drafts a recipe"


@pytest.mark.parametrize(
    ("error", "line", "code"),
    [
        (UnknownNameError("target", "cpu-avx", ["cpu-avx2"]), "unknown target 'cpu-avx'; did you mean 'cpu-avx2'?", 2),
        (InfeasibleBudgetError("nothing meets 8ms"), "nothing meets 8ms", 3),
        (KeyboardInterrupt(), "stopped; the same command goes on from here", 130),
        (
            OSError(errno.ENOSPC, "No space left on device", "/x"),
            "/x: No space left on device: free some, then call the same command again, which goes on; `instatune-deploy run RECIPE "
            "--dry-run` says how much a run needs",
            1,
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "/x"),
            "/x: Permission denied: name a place that you may write to, or change its permissions",
            1,
        ),
        (OSError("odd"), "system: odd", 1),
        (
            RuntimeError("CUDA out of memory. Tried to allocate"),
            "memory ran out: lower finetune.batch_size (and raise finetune.gradient_accumulation as much), or set "
            "finetune.gradient_checkpointing: true",
            1,
        ),
        (
            ValueError("Error while serializing: I/O error: No space left on device (os error 28)"),
            "system: No space left on device: free some, then call the same command again, which goes on; `instatune-deploy run "
            "RECIPE --dry-run` says how much a run needs",
            1,
        ),
        (
            RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 57664 vs 57556"),
            "system: PyTorch could not write a whole file, as when no space is left: free some, then call the same command again, "
            "which goes on; `instatune-deploy run RECIPE --dry-run` says how much a run needs",
            1,
        ),
        (
            ModuleNotFoundError("No module named 'onnx'"),
            "No module named 'onnx': `instatune-deploy doctor` says which packages are missing",
            1,
        ),
        (
            ZeroDivisionError("division\nby zero"),
            "ZeroDivisionError: division by zero: this should not happen; `instatune-deploy --debug` before the verb shows where, "
            "for a bug report",
            1,
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)  # fmt: skip
def test_whatever_was_raised_is_a_line_and_a_code(error: BaseException, line: str, code: int) -> None:
    assert explain(error) == (line, code)


def test_what_nobody_foresaw_is_a_line_too(project: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("instatune_deploy.values.recipe.read_recipe", broken)
    code, line = call("run", "recipe.yaml")
    assert code == 1
    assert line.startswith("error: ZeroDivisionError: division by zero: this should not happen; ")


def test_quiet_leaves_results_and_errors(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["instatune-deploy", "run", "recipe.yaml", "--dry-run", "--quiet", "--json"])
    with pytest.raises(SystemExit) as caught:
        main()
    captured = capsys.readouterr()
    assert caught.value.code == 0
    assert re.search(r"\[ *\d+\.\d s\]", captured.err) is None  # how lines of progress begin
    assert captured.out.startswith("{")
