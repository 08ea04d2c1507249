"""Runs of a tiny model that something happens to, and what they must come to all the same."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from safetensors import safe_open

from instatune_deploy.stages.export import open_artifact
from instatune_deploy.values.evaluations import read_evaluations
from instatune_deploy.values.hashing import sha256_file
from instatune_deploy.values.manifest import MANIFEST_NAME
from instatune_deploy.workspace import RECORDS
from tests.faults.network import two_machines
from tests.helpers import COMMAND, copy_unsearched, write_project

#: What latency has no say in, so that two runs can be the same; as short as a run of all stages can be.
RECIPE = {
    "targets": {"cpu-test": ["macs<=60%"]},
    "search": {
        "objectives": ["metric", "macs"], "warm_start": 8, "rounds": 1, "batch": 4, "population": 20, "generations": 5,
        "deployed": 0,
    },
    "profile": {"heldout": 3, "seconds": 0.2, "confirm_seconds": 0.2, "wait_seconds": 0},
}  # fmt: skip
LIMIT_S = 600
#: Debian's libfaketime: a program under it sees the wall clock that a file says; monotonic clocks never jump.
FAKETIME = next(iter(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")), None)
_FORKS = multiprocessing.get_context("forkserver")
_IMPORTED = ["instatune_deploy.faces.cli", "instatune_deploy.pipeline"]


@dataclass(frozen=True)
class Project:
    """A tiny model's project, and what a run of it comes to where nothing happens.

    Args:
        seconds: that the undisturbed run took; `marks`: after how many of them each stage was done. bytes: of its files.
    """

    directory: Path
    expected: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    marks: dict[str, float] = field(default_factory=dict)
    bytes: int = 0

    def left_s(self, run: Path) -> float:
        """Seconds that the stages which are not done would take."""
        done = [self.marks.get(path.stem, 0.0) for path in run.glob(f"{RECORDS}/*.json")]
        return max(self.seconds - max(done, default=0.0), 1.0)

    def next_stage(self, run: Path) -> str:
        """The first stage, in the order of the undisturbed run, that is not done."""
        done = {path.stem for path in run.glob(f"{RECORDS}/*.json")}
        return next((stage for stage in sorted(self.marks, key=self.marks.__getitem__) if stage not in done), "end")


class Command:
    """`instatune-deploy run` in a process of its own.

    It is forked off a process that has imported what it needs and computed nothing, which saves the seconds of a start; with
    `environment`, which such a process cannot take, it is started anew.
    """

    def __init__(self, directory: Path, run: Path, environment: Mapping[str, str] | None = None) -> None:
        self._log = directory / f"said-{time.monotonic_ns()}.txt"
        if environment is None:
            _FORKS.set_forkserver_preload(_IMPORTED)
            self._forked = _FORKS.Process(target=_run, args=(str(directory), str(run), str(self._log)))
            self._forked.start()
        else:
            code = f"from tests.faults.runs import _run; _run({str(directory)!r}, {str(run)!r}, {str(self._log)!r})"
            self._started = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, **environment})

    def wait(self, seconds: float = LIMIT_S) -> bool:
        """Give it time to end; whether it has."""
        if hasattr(self, "_forked"):
            self._forked.join(seconds)
        else:
            try:
                self._started.wait(seconds)
            except subprocess.TimeoutExpired:
                return False
        return self.code is not None

    def send(self, signal: int) -> None:
        """Send it a signal, if it has not ended."""
        if self.code is None:
            os.kill(self._forked.pid or 0 if hasattr(self, "_forked") else self._started.pid, signal)

    @property
    def code(self) -> int | None:
        """Its exit code; None: it goes on."""
        return self._forked.exitcode if hasattr(self, "_forked") else self._started.poll()

    @property
    def text(self) -> str:
        """What it has said on stderr so far."""
        return self._log.read_text(encoding="utf-8", errors="replace") if self._log.is_file() else ""

    @property
    def last(self) -> str:
        """The last line of it."""
        return next((line.strip() for line in reversed(re.split(r"[\r\n]", self.text)) if line.strip()), "")

    def unclear(self) -> str:
        """What is wrong with how it ended; empty if it went well, or said in a line what is wrong."""
        if "Traceback" in self.text:
            return f"a traceback: {self.last}"
        if "this should not happen" in self.last:
            return self.last
        return "" if self.code == 0 or self.last.startswith("error: ") else f"ended with {self.code}: {self.last}"


def _run(directory: str, run: str, log: str) -> None:
    """In the process of a `Command`."""
    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    os.chdir(directory)
    sys.argv = ["instatune-deploy", "run", "recipe.yaml", "--out", run]
    from instatune_deploy.faces.cli import main

    main()


def make_project(directory: Path) -> Project:
    """The project in `directory`, after one undisturbed run.

    Raises:
        RuntimeError: the undisturbed run failed.
    """
    recipe_path = write_project(directory)
    target_path = directory / "targets" / "cpu-test.yaml"
    target = yaml.safe_load(target_path.read_text(encoding="utf-8"))
    target_path.write_text(yaml.safe_dump({**target, "deployments": [{"runtime": "onnxruntime"}]}), encoding="utf-8")
    recipe = yaml.safe_load(recipe_path.read_text(encoding="utf-8"))
    recipe["finetune"] = {**recipe["finetune"], "teacher": {"epochs": 2, "learning_rate": 3.0e-3}, "epochs": 1}
    recipe_path.write_text(yaml.safe_dump({**recipe, **RECIPE}), encoding="utf-8")
    run, warm = directory / "undisturbed", Command(directory, directory / "missing" / "\0")
    warm.wait()  # the process that others are forked off has imported all it will
    began, clock = time.monotonic(), time.time()
    command = Command(directory, run)
    if not command.wait() or command.code != 0:
        raise RuntimeError(f"the undisturbed run failed:\n{command.text}")
    seconds = time.monotonic() - began
    marks = {path.stem: path.stat().st_mtime - clock for path in run.glob(f"{RECORDS}/*.json")}
    size = sum(path.stat().st_size for path in run.rglob("*") if path.is_file())
    return Project(directory, outcome(run), seconds, marks, size)


def outcome(run: Path) -> dict[str, Any]:
    """What two runs of one recipe must have alike: all but latencies and dates."""
    front = json.loads(next((run / "fronts").iterdir()).read_text(encoding="utf-8"))["front"]
    (selection,) = json.loads((run / "result.json").read_text(encoding="utf-8"))
    artifact = run / selection["artifact"]
    table = json.loads(next((run / "tables").rglob("*.json")).read_text(encoding="utf-8"))
    files = ["teacher/model.safetensors", "supernet/model.safetensors", "supernet/search_space.json"]
    left = [p for p in run.rglob(".*") if p.name not in (RECORDS, ".lock") and ".probes" not in p.parts]
    return {
        **{name: sha256_file(run / name) for name in files},
        "evaluations": evaluations(run),
        "front": sorted((c["architecture"], c["predicted"]["metric"], c["predicted"]["macs"]) for c in front),
        "selected": selection["architecture"],
        "table's schema": [sorted(table), table["schema_version"], sorted(s["architecture"] for s in table["samples"])],
        "artifact": {
            path.name: sha256_file(path) for path in sorted(artifact.iterdir()) if path.name != MANIFEST_NAME
        },
        "left over": sorted(str(path.relative_to(run)) for path in left if path.is_file() or any(path.iterdir())),
    }  # fmt: skip


def halves(run: Path) -> list[str]:
    """Files under their final names that are not whole; the last line of the evaluations may be half, for it is passed over."""
    found = []
    paths = [p for p in run.rglob("*") if p.is_file() and not any(part.startswith(".") for part in _hidden(p, run))]
    for path in paths:
        try:
            if path.suffix == ".json":
                json.loads(path.read_text(encoding="utf-8"))
            elif path.suffix == ".safetensors":
                with safe_open(path, framework="np") as opened:
                    opened.keys()
            elif path.suffix == ".onnx" and not (path.parent / MANIFEST_NAME).is_file():
                found.append(f"{path.relative_to(run)}: an artifact without a manifest")
            if path.name == MANIFEST_NAME:
                open_artifact(path.parent)
        except Exception as error:
            found.append(f"{path.relative_to(run)}: {error!r:.200}")
    return found


def _hidden(path: Path, run: Path) -> tuple[str, ...]:
    """The parts of a path by which a file is no final one; a run's records are."""
    return tuple(part for part in path.relative_to(run).parts if part != RECORDS)


def evaluations(run: Path) -> list[str]:
    """A run's evaluations, in the order of the file."""
    return [str(evaluation) for evaluation in read_evaluations(run / "evaluations.jsonl").values()]


def same(project: Project, run: Path, known: list[str] | None = None) -> str:
    """Let the command go on and say in what its outcome differs; empty if in nothing.

    Args:
        known: evaluations that it had when something happened to it.
    """
    command = Command(project.directory, run)
    if not command.wait() or command.code != 0 or "Traceback" in command.text:
        return f"resumed, it ended with {command.code}: {command.last}"
    if lost := set(known or []) - set(evaluations(run)):
        return f"{len(lost)} evaluations are lost"
    found = outcome(run)
    return ", ".join(key for key in project.expected if found[key] != project.expected[key])


@contextmanager
def memory_disk(path: Path, size: int) -> Iterator[Path]:
    """A file system of `size` bytes at `path`; needs root."""
    path.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "instatune-faults", str(path)], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def remount(path: Path, options: str) -> bool:
    """Change a file system's options; whether the kernel did, which does not make one read-only that is being written."""
    command = ["mount", "-o", f"remount,{options}", str(path)]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


class Clock:
    """A wall clock that jumps, for a `Command` with its `environment`: each by days to years, forward or back.

    Raises:
        FileNotFoundError: there is no libfaketime.
    """

    def __init__(self, file: Path) -> None:
        if FAKETIME is None:
            raise FileNotFoundError("libfaketime is not installed: apt install libfaketime")
        self._file = file
        self.jump("+0")
        self.environment = {
            "LD_PRELOAD": str(FAKETIME), "FAKETIME_TIMESTAMP_FILE": str(file), "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }  # fmt: skip

    def jump(self, offset: str) -> None:
        """Let the clock go wrong by `offset` from now on, such as ``-400d`` or ``+3h``."""
        draft = self._file.with_suffix(".draft")
        draft.write_text(offset, encoding="utf-8")
        os.replace(draft, self._file)


def search_while_cut(project: Project, run: Path, after_s: float) -> str:
    """Search on a cluster of two machines and cut the cable between them; what is wrong in the end, empty if nothing.

    Args:
        after_s: seconds to the cut from when evaluation is about to begin.
    """
    copy_unsearched(project.directory / "undisturbed", run)
    said = run.with_suffix(".said.txt")
    with two_machines("cpu-test") as machines, said.open("w") as stream:
        command = [*COMMAND, "search", "--run", str(run), "--ray", machines.address]
        search = subprocess.Popen(
            command, cwd=project.directory, env=machines.environment, stdout=stream, stderr=stream
        )
        try:
            while "latency table" not in said.read_text() and search.poll() is None:
                time.sleep(0.1)
            time.sleep(after_s)
            machines.cut()
            code = search.wait(LIMIT_S)
        finally:
            search.kill()
    text = said.read_text()
    if code != 0 or "Traceback" in text:
        return f"it ended with {code}: {text[-300:]}"
    return "" if evaluations(run) == project.expected["evaluations"] else "its evaluations are others"
