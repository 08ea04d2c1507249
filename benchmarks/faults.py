"""Claim: a run survives what happens to machines: killed at any moment, out of disk, read-only, its folder gone, a second process.

``python -m benchmarks.faults --kills 50 --others 5`` does to runs of a tiny model what each kind of fault says, at moments drawn at
random over the whole run, lets the same command go on, and holds what comes out against a run that nothing happened to: the
weights of teacher and super-network, every evaluation, the front, and the selected network's files must be the same; latencies are
measured anew. What is told must be one line, no traceback. Disks are made full or read-only as small file systems in memory, which
needs root. It writes results/faults.json; stopped at any point, the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.results import write_result
from instatune_deploy.values.hashing import sha256_file
from instatune_deploy.workspace import write_json
from tests.helpers import write_project

RUN = Path("runs/faults")
COMMAND = [sys.executable, "-m", "instatune_deploy", "run", "recipe.yaml", "--out"]
#: What latency has no say in, so that two runs can be the same.
INDEPENDENT = {
    "targets": {"cpu-test": ["macs<=60%"]},
    "search": {
        "objectives": ["metric", "macs"], "warm_start": 8, "rounds": 1, "batch": 4, "population": 20, "generations": 5,
        "deployed": 0,
    },
}  # fmt: skip
LIMIT_S = 600
Row = dict[str, Any]


@dataclass(frozen=True)
class Project:
    """A tiny model's project, and what a run of it comes to where nothing happens."""

    directory: Path
    expected: dict[str, Any]
    seconds: float
    bytes: int


def make_project(directory: Path) -> Project:
    """The project in `directory`, after one undisturbed run."""
    recipe_path = write_project(directory)
    target_path = directory / "targets" / "cpu-test.yaml"
    target = yaml.safe_load(target_path.read_text(encoding="utf-8"))
    target_path.write_text(yaml.safe_dump({**target, "deployments": [{"runtime": "onnxruntime"}]}), encoding="utf-8")
    recipe = yaml.safe_load(recipe_path.read_text(encoding="utf-8"))
    recipe["finetune"] = {**recipe["finetune"], "teacher": {"epochs": 2, "learning_rate": 3.0e-3}, "epochs": 1}
    recipe_path.write_text(yaml.safe_dump({**recipe, **INDEPENDENT}), encoding="utf-8")
    began = time.monotonic()
    run = directory / "undisturbed"
    code, text = started(directory, run)
    if code != 0:
        raise SystemExit(f"the undisturbed run failed:\n{text}")
    seconds = time.monotonic() - began
    size = sum(path.stat().st_size for path in run.rglob("*") if path.is_file())
    return Project(directory, outcome(run), seconds, size)


def outcome(run: Path) -> dict[str, Any]:
    """What two runs of one recipe must have alike."""
    front = json.loads(next((run / "fronts").iterdir()).read_text(encoding="utf-8"))["front"]
    (selection,) = json.loads((run / "result.json").read_text(encoding="utf-8"))
    artifact = run / selection["artifact"]
    table = json.loads(next((run / "tables").rglob("*.json")).read_text(encoding="utf-8"))
    files = ["teacher/model.safetensors", "supernet/model.safetensors", "supernet/search_space.json"]
    left = [p for p in run.rglob(".*") if p.name not in (".stages", ".lock") and ".probes" not in p.parts]
    return {
        **{name: sha256_file(run / name) for name in files},
        "evaluations": (run / "evaluations.jsonl").read_text(encoding="utf-8"),
        "front": [(c["architecture"], c["predicted"]["metric"], c["predicted"]["macs"]) for c in front],
        "selected": selection["architecture"],
        "table's keys": sorted(table),
        "artifact": {
            path.name: sha256_file(path) for path in sorted(artifact.iterdir()) if path.name != "instatune.json"
        },
        "left over": sorted(str(path.relative_to(run)) for path in left if path.is_file() or any(path.iterdir())),
    }  # fmt: skip


def started(directory: Path, run: Path) -> tuple[int, str]:
    """Exit code and stderr of the run's command."""
    found = subprocess.run(
        [*COMMAND, str(run)], cwd=directory, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    return found.returncode, found.stderr


@contextmanager
def going(project: Project, run: Path, share: float) -> Iterator[subprocess.Popen[bytes]]:
    """A run that has gone on for a share of the time that an undisturbed one takes, or has ended before."""
    process = subprocess.Popen(
        [*COMMAND, str(run)], cwd=project.directory, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    try:
        with suppress(subprocess.TimeoutExpired):
            process.wait(share * project.seconds)
        yield process
    finally:
        process.kill()
        process.wait()


@contextmanager
def memory_disk(path: Path, size: int) -> Iterator[Path]:
    """A file system of `size` bytes at `path`."""
    path.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "instatune-faults", str(path)], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def remount(path: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(path)], check=True)


def same(project: Project, run: Path) -> str:
    """Let the command go on and say in what its outcome differs; empty if in nothing."""
    code, text = started(project.directory, run)
    if code != 0 or "Traceback" in text:
        return f"resumed, it ended with {code}: {text.strip().splitlines()[-1:]}"
    found = outcome(run)
    return ", ".join(key for key in project.expected if found[key] != project.expected[key])


def killed(project: Project, run: Path, share: float) -> str:
    """SIGKILL."""
    with going(project, run, share) as process:
        process.kill()
        process.wait()
    return same(project, run)


def second_process(project: Project, run: Path, share: float) -> str:
    """The same command once more while the first is at work: it is refused, and the first goes on."""
    with going(project, run, share) as process:
        code, text = started(project.directory, run)
        if process.poll() is None and (code != 2 or "another process works on" not in text):
            return f"the second ended with {code}: {text.strip().splitlines()[-1:]}"
        process.wait(LIMIT_S)
    return same(project, run)


def interrupted(project: Project, run: Path, share: float) -> str:
    """SIGINT, as by Ctrl-C."""
    with going(project, run, share) as process:
        process.send_signal(signal.SIGINT)
        process.wait(60)
    return same(project, run)


def full_disk(project: Project, run: Path, share: float) -> str:
    """A disk that has room for a share of the run, and for all of it when the command goes on."""
    with memory_disk(run, max(65536, int(share * project.bytes))) as disk:
        code, text = started(project.directory, disk)
        if fault := unclear(code, text):
            return fault
        remount(disk, f"size={4 * project.bytes}")
        return same(project, disk)


def read_only(project: Project, run: Path, share: float) -> str:
    """A disk that becomes read-only in the middle, as after errors, and can be written again when the command goes on."""
    with memory_disk(run, 4 * project.bytes) as disk, tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen([*COMMAND, str(disk)], cwd=project.directory, stderr=log, stdout=subprocess.DEVNULL)
        time.sleep(share * project.seconds)
        if subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=False, capture_output=True).returncode == 0:
            process.wait(LIMIT_S)
            log.seek(0)
            if fault := unclear(process.returncode, log.read()):
                return fault
            remount(disk, "rw")
        else:  # a file is open to be written just now: the kernel refuses
            process.kill()
            process.wait()
        return same(project, disk)


def removed(project: Project, run: Path, share: float) -> str:
    """The run directory is removed while it is worked on; then the command begins anew."""
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen([*COMMAND, str(run)], cwd=project.directory, stderr=log, stdout=subprocess.DEVNULL)
        time.sleep(share * project.seconds)
        shutil.rmtree(run, ignore_errors=True)
        process.wait(LIMIT_S)
        log.seek(0)
        if fault := unclear(process.returncode, log.read()):
            return fault
    shutil.rmtree(run, ignore_errors=True)
    return same(project, run)


def unclear(code: int, text: str) -> str:
    """What is wrong with how a disturbed run ended; empty if it went well or said in a line what is wrong."""
    lines = text.strip().splitlines()
    if "Traceback" in text:
        return f"a traceback: {lines[-1]}"
    return "" if code == 0 or (lines and lines[-1].startswith("error: ")) else f"ended with {code}: {lines[-1:]}"


KINDS: dict[str, Callable[[Project, Path, float], str]] = {
    "killed": killed, "interrupted": interrupted, "second process": second_process, "full disk": full_disk,
    "read-only disk": read_only, "directory removed": removed,
}  # fmt: skip


def attempt(project: Project, kind: str, number: int, directory: Path) -> Row:
    """One fault, at a moment that its number decides."""
    share = random.Random(f"{kind} {number}").uniform(0.02, 1.0)
    run = directory / "run"
    shutil.rmtree(run, ignore_errors=True)
    fault = KINDS[kind](project, run, share)
    shutil.rmtree(run, ignore_errors=True)
    return {
        "kind": kind,
        "seed": number,
        "at_share_of_run": share,
        "survived": not fault,
        "fault": fault,
        "split": "none",
        "n": 1,
    }


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--others", type=int, default=5, help="times of every other kind")
    parser.add_argument("--write", action="store_true", help="write the result of what was tried, and try nothing")
    wanted = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="instatune-faults-") as folder:
        project = None if wanted.write else make_project(Path(folder, "project"))
        for kind in KINDS:
            for number in range(wanted.kills if kind == "killed" else wanted.others):
                path = RUN / f"{kind.replace(' ', '-')}-{number}.json"
                if project is None or path.is_file():
                    continue
                row = attempt(project, kind, number, Path(folder))
                print(f"{kind} {number} at {row['at_share_of_run']:.2f}: {row['fault'] or 'survived'}", flush=True)
                write_json(path, row)
    rows = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RUN.glob("*.json"))]
    figures: dict[str, float] = {"tried": len(rows), "survived": sum(row["survived"] for row in rows)}
    for kind in dict.fromkeys(row["kind"] for row in rows):
        mine = [row for row in rows if row["kind"] == kind]
        name = kind.replace(" ", "_")
        figures |= {f"{name}.tried": len(mine), f"{name}.survived": sum(row["survived"] for row in mine)}
    claim = "Whatever happens to a run, the same command goes on to the same networks, and what is told is one line."
    print(write_result("faults", claim, figures, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
