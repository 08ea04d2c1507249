"""Claim: the command line answers at once, and what users get wrong ends in one clear line.

Times `--help`, the import of the package and verbs that need no network, each in processes of their own; then goes through the
table of wrong inputs of the tests. An input counts as clear that ends in exactly the line and the exit code that the table
says, without a traceback, and changes no file. Last comes the walk-through of the tests, from a model to a served artifact, whose
commands are counted, and its run is asked again for what it selected. Writes results/experience.json.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.results import write_result
from instatune_deploy.faces.cli import main as console_script
from tests.faces.bad_inputs import CASES, Case, write_everything
from tests.faces.test_bad_input import expected, snapshot
from tests.walkthrough import walk

#: Processes a call is timed in: the first ones fill the disk's cache.
PROCESSES, WARM_UP = 15, 2
COMMAND = [sys.executable, "-m", "instatune_deploy"]
CALLS = {
    "help": [*COMMAND, "--help"],
    "import": [sys.executable, "-c", "import instatune_deploy"],
    "select_help": [*COMMAND, "select", "--help"],
    "targets_list": [*COMMAND, "targets", "list"],
    "bare_python": [sys.executable, "-c", "pass"],
}


def timed(command: list[str], directory: Path | None = None) -> tuple[list[float], list[float]]:
    """Seconds of the whole process, its start included: that passed, and of CPU time, which others on the machine do not
    lengthen."""
    passed, cpu = [], []
    for _ in range(WARM_UP + PROCESSES):
        started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=directory)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        passed.append(time.perf_counter() - started)
        cpu.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return passed[WARM_UP:], cpu[WARM_UP:]


def time_row(name: str, command: list[str], directory: Path | None = None) -> dict[str, Any]:
    """What `timed` finds of a call, for the result."""
    seconds, cpu = timed(command, directory)
    print(name, f"{statistics.median(seconds):.3f} s, CPU {statistics.median(cpu):.3f} s", flush=True)
    return {"what": "time", "call": name, "n": len(seconds), "seconds": seconds, "cpu_seconds": cpu}


def tried(case: Case, original: Path, directory: Path) -> dict[str, Any]:
    """How a wrong input ends, in a project of its own."""
    project = Path(shutil.copytree(original, directory / "project"))
    before_there, arguments = Path.cwd(), sys.argv
    os.chdir(project)
    stderr, code = io.StringIO(), 0
    try:
        with contextlib.redirect_stderr(stderr), contextlib.redirect_stdout(io.StringIO()):
            if case.spoil is not None:
                case.spoil()
            before = snapshot(project)
            sys.argv = ["instatune-deploy", *case.call.split()]
            try:
                console_script()
            except SystemExit as ended:
                code = int(ended.code or 0)
        unchanged = snapshot(project) == before
        said = [line for line in stderr.getvalue().splitlines() if line.strip()]
        line = said[-1] if said else ""
        right = (code, line) == (case.code, expected(case, project))
    finally:
        os.chdir(before_there)
        sys.argv = arguments
        shutil.rmtree(project)
    clear = right and unchanged and "Traceback" not in stderr.getvalue()
    return {
        "input": case.name, "call": case.call, "code": code, "line": line.replace(str(project), "HERE"),
        "files_changed": not unchanged, "clear": clear,
    }  # fmt: skip


def main() -> int:
    rows: list[dict[str, Any]] = []
    rows += [time_row(name, command) for name, command in CALLS.items()]
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        with contextlib.redirect_stderr(io.StringIO()):
            write_everything(directory / "original")
        for case in CASES:
            rows.append({"what": "wrong input", **tried(case, directory / "original", directory)})
            if not rows[-1]["clear"]:
                print(json.dumps(rows[-1]), flush=True)
        walked = directory / "walked"
        walked.mkdir()
        commands, answer = walk(walked)
        rows.append({"what": "walk-through", "commands": commands, "answer": answer})
        rows.append(time_row("select_again", [*COMMAND, "select", "--latency-budget", "95%"], walked))
    inputs = [row for row in rows if row["what"] == "wrong input"]
    figures = {
        f"{row['call']}{name}_s": statistics.median(row[key])
        for row in rows if row["what"] == "time" for name, key in (("", "seconds"), ("_cpu", "cpu_seconds"))
    } | {"bad_inputs_tried": len(inputs), "bad_inputs_clear": sum(row["clear"] for row in inputs), "walkthrough_commands": len(commands)}  # fmt: skip
    claim = (
        "The package's import and `instatune-deploy --help` take under 0.5 s, the start of Python included; each of at least 60 "
        "wrong inputs ends in one line that says what is wrong, and changes no file; five commands or fewer lead from a model and "
        "data to the answer of a server."
    )
    print(write_result("experience", claim, figures, rows), json.dumps(figures, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
