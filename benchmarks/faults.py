"""Claim: a run survives what happens to machines: killed at any moment, out of disk, read-only, its folder gone, a second process.

``python -m benchmarks.faults --kills 50 --others 5`` does to runs of a tiny model what each kind of fault says, at moments drawn at
random over the whole run, lets the same command go on, and holds what comes out against a run that nothing happened to: the
weights of teacher and super-network, every evaluation, the front, the tables' schema and the selected network's files must be the
same; latencies are measured anew. At the fault no file under a final name may be half, and no evaluation may be lost. What is told
must be one line, no traceback. A run is killed again and again until it ends, each time at a moment drawn over what is left of it.
Disks are made full or read-only as small file systems in memory, which needs root, as do two network namespaces with a Ray cluster
on them, whose cable is cut; clocks jump by Debian's libfaketime. It writes
results/faults.json; stopped at any point, the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.results import write_result
from instatune_deploy.workspace import write_json
from tests.faults.runs import (
    FAKETIME,
    Clock,
    Command,
    Project,
    evaluations,
    halves,
    make_project,
    memory_disk,
    remount,
    same,
    search_while_cut,
)

RUN = Path("runs/faults")
#: After so many kills a run is left in peace.
KILLS_A_RUN = 5
#: Of what is left of a run, the most until a kill: early stages and late ones all get theirs.
SHARES = (0.2, 0.5, 1.0)
#: How a clock may jump: to and fro, over summer time, a leap year, and to before files were made.
JUMPS = ("+1h", "-1h", "-3d", "+400d", "-400d", "+0")
#: What happened, where in the run, and what was wrong after it; empty: nothing.
Happened = tuple[str, str]


def killed(project: Project, run: Path, rng: random.Random) -> list[Happened]:
    """SIGKILL, again and again until the run is done."""
    found: list[Happened] = []
    known: list[str] = []
    while len(found) < KILLS_A_RUN:
        command = Command(project.directory, run)
        if command.wait(rng.uniform(0, rng.choice(SHARES)) * project.left_s(run)):
            if command.code != 0:
                found.append(("resumed", f"it ended with {command.code}: {command.last}"))
            break
        command.send(signal.SIGKILL)
        command.wait()
        now = evaluations(run)
        wrong = ["evaluations are lost"] if now[: len(known)] != known else []
        found.append((project.next_stage(run), "; ".join([*wrong, *halves(run)])))
        known = now
    fault = same(project, run, evaluations(run))
    # What is wrong in the end is wrong with every kill that led there.
    return [(stage, before or fault) for stage, before in found]


def _after(command: Command, project: Project, run: Path, rng: random.Random) -> bool:
    """Let a command work for a share of what a run takes; whether it has ended."""
    return command.wait(rng.uniform(0.02, 1.0) * project.seconds)


def interrupted(project: Project, run: Path, rng: random.Random) -> list[Happened]:
    """SIGINT, as by Ctrl-C."""
    command = Command(project.directory, run)
    ended = _after(command, project, run, rng)
    command.send(signal.SIGINT)
    if not command.wait(60):
        command.send(signal.SIGKILL)
        return [("interrupted", "it has not ended within a minute")]
    stage = project.next_stage(run)
    wrong = [] if ended or command.code == 130 or command.unclear() == "" else [command.unclear()]
    return [(stage, "; ".join([*wrong, *halves(run)]) or same(project, run, evaluations(run)))]


def second_process(project: Project, run: Path, rng: random.Random) -> list[Happened]:
    """The same command once more while the first is at work: it is refused, and the first goes on."""
    first = Command(project.directory, run)
    _after(first, project, run, rng)
    stage, second = project.next_stage(run), Command(project.directory, run)
    second.wait()
    refused = second.code == 2 and "another process works on" in second.last
    first_ended = first.code is not None
    first.wait()
    if not refused and not (first_ended and second.code == 0):
        return [(stage, f"the second ended with {second.code}: {second.last}")]
    return [(stage, first.unclear() or same(project, run))]


def full_disk(project: Project, run: Path, rng: random.Random) -> list[Happened]:
    """A disk that has room for a share of the run, and for all of it when the command goes on."""
    with memory_disk(run, max(65536, int(rng.uniform(0.02, 1.0) * project.bytes))) as disk:
        command = Command(project.directory, disk)
        command.wait()
        stage, known = project.next_stage(disk), evaluations(disk)
        fault = command.unclear() or "; ".join(halves(disk))
        remount(disk, f"size={4 * project.bytes}")
        return [(stage, fault or same(project, disk, known))]


def read_only(project: Project, run: Path, rng: random.Random) -> list[Happened]:
    """A disk that becomes read-only in the middle, as after errors, and can be written again when the command goes on."""
    with memory_disk(run, 4 * project.bytes) as disk:
        command = Command(project.directory, disk)
        _after(command, project, disk, rng)
        while not remount(disk, "ro") and command.code is None:  # refused while a file is open to be written
            time.sleep(0.05)
        command.wait()
        stage, known = project.next_stage(disk), evaluations(disk)
        fault = command.unclear() or "; ".join(halves(disk))
        remount(disk, "rw")
        return [(stage, fault or same(project, disk, known))]


def removed(project: Project, run: Path, rng: random.Random) -> list[Happened]:
    """The run directory is removed while it is worked on; then the command begins anew."""
    command = Command(project.directory, run)
    _after(command, project, run, rng)
    stage = project.next_stage(run)
    shutil.rmtree(run, ignore_errors=True)
    command.wait()
    fault = command.unclear()
    shutil.rmtree(run, ignore_errors=True)
    return [(stage, fault or same(project, run))]


def clock(project: Project, run: Path, rng: random.Random) -> list[Happened]:
    """The wall clock jumps four times, once across a kill."""
    jumping = Clock(run.parent / "clock")
    stages = []
    for sitting in range(2):
        command = Command(project.directory, run, jumping.environment)
        for _ in range(2):
            command.wait(rng.uniform(0, 0.5) * project.left_s(run))
            jumping.jump(rng.choice(JUMPS))
            stages.append(project.next_stage(run))
        if sitting == 0:
            command.send(signal.SIGKILL)
        command.wait()
    fault = command.unclear() or "; ".join(halves(run)) or same(project, run, evaluations(run))
    return [(", ".join(stages), fault)]


def network_cut(project: Project, run: Path, rng: random.Random) -> list[Happened]:
    """The second of two machines that evaluate is cut off for good."""
    return [("evaluations", search_while_cut(project, run, rng.uniform(0, 2)))]


KINDS: dict[str, Callable[[Project, Path, random.Random], list[Happened]]] = {
    "killed": killed, "interrupted": interrupted, "second process": second_process, "full disk": full_disk,
    "read-only disk": read_only, "directory removed": removed, "jumping clock": clock,
    "network cut": network_cut,
}  # fmt: skip


def attempt(project: Project, kind: str, number: int, directory: Path) -> list[dict[str, Any]]:
    """What happened to one run, at moments that its number decides: a row for each time."""
    run = directory / "run"
    shutil.rmtree(run, ignore_errors=True)
    began = time.monotonic()
    found = KINDS[kind](project, run, random.Random(f"{kind} {number}"))
    shutil.rmtree(run, ignore_errors=True)
    each_s = (time.monotonic() - began) / max(1, len(found))
    return [
        {
            "kind": kind, "seed": number, "stage": stage, "survived": not fault, "fault": fault, "seconds": each_s,
            "split": "none", "n": 1,
        }
        for stage, fault in found
    ]  # fmt: skip


def _rows(kind: str) -> list[dict[str, Any]]:
    """What was tried so far."""
    paths = sorted(RUN.glob(f"{kind.replace(' ', '-')}-*.json"))
    return [row for path in paths for row in json.loads(path.read_text(encoding="utf-8"))]


def _left(counts: dict[str, int], otherwise_s: float) -> str:
    """Time left, by what was tried so far."""
    seconds = 0.0
    for kind, count in counts.items():
        rows = _rows(kind)
        each_s = sum(row["seconds"] for row in rows) / len(rows) if rows else otherwise_s
        seconds += max(0, count - len(rows)) * each_s
    return f"about {seconds / 60:.0f} min left"


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--others", type=int, default=5, help="times of every other kind")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--write", action="store_true", help="write the result of what was tried, and try nothing")
    wanted = parser.parse_args(arguments)
    counts = {kind: wanted.kills if kind == "killed" else wanted.others for kind in wanted.kinds}
    if not wanted.write and any(len(_rows(kind)) < count for kind, count in counts.items()):
        with tempfile.TemporaryDirectory(prefix="instatune-faults-") as folder:
            project = make_project(Path(folder, "project"))
            print(f"undisturbed: {project.seconds:.0f} s; {_left(counts, 1.5 * project.seconds)}", flush=True)
            for kind, count in counts.items():
                if kind == "jumping clock" and FAKETIME is None:
                    print(f"{kind}: left out, for libfaketime is not installed: apt install libfaketime", flush=True)
                    continue
                number = 0
                while len(_rows(kind)) < count:
                    path = RUN / f"{kind.replace(' ', '-')}-{number}.json"
                    number += 1
                    if path.is_file():
                        continue
                    rows = attempt(project, kind, number - 1, Path(folder))
                    write_json(path, rows)
                    for row in rows:
                        print(f"{kind} {row['seed']} in {row['stage']}: {row['fault'] or 'survived'}", flush=True)
                    print(_left(counts, 1.5 * project.seconds), flush=True)
    tried = [row for kind in KINDS for row in _rows(kind)]
    figures: dict[str, float] = {"tried": len(tried), "survived": sum(row["survived"] for row in tried)}
    for kind in dict.fromkeys(row["kind"] for row in tried):
        mine = [row for row in tried if row["kind"] == kind]
        name = kind.replace(" ", "_").replace("-", "_")
        figures |= {f"{name}.tried": len(mine), f"{name}.survived": sum(row["survived"] for row in mine)}
    claim = "Whatever happens to a run, the same command goes on to the same networks, and what is told is one line."
    print(write_result("faults", claim, figures, tried))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
