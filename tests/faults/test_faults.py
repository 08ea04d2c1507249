"""A run survives what happens to machines; `benchmarks/faults.py` does it fifty times, at moments drawn over all stages."""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.network import problem
from tests.faults.runs import (
    FAKETIME,
    Clock,
    Command,
    Project,
    evaluations,
    halves,
    make_project,
    memory_disk,
    outcome,
    remount,
    same,
    search_while_cut,
)

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system, which needs root")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project, and one undisturbed run of it."""
    return make_project(tmp_path_factory.mktemp("faults"))


@pytest.fixture
def run(project: Project) -> Iterator[Path]:
    yield project.directory / "run"
    shutil.rmtree(project.directory / "run", ignore_errors=True)


def test_a_run_that_is_killed_and_goes_on_comes_to_the_same(project: Project, run: Path) -> None:
    """Killed twice; meanwhile a second process is refused, and a lock that its process left behind is free."""
    rng, known = random.Random(0), list[str]()
    for kill in range(2):
        command = Command(project.directory, run)
        ended = command.wait(rng.uniform(0.2, 0.4) * project.left_s(run))
        if kill == 1 and not ended:
            second = Command(project.directory, run)
            second.wait()
            assert second.code == 2 or command.code is not None
            assert "another process works on" in second.last or command.code is not None
        command.send(signal.SIGKILL)
        command.wait()
        assert (run / ".lock").exists()
        assert halves(run) == []
        assert evaluations(run)[: len(known)] == known
        known = evaluations(run)
    assert same(project, run, known) == ""


def test_the_comparison_sees_a_difference(project: Project) -> None:
    """Otherwise it would say nothing that two runs are the same."""
    changed = Path(shutil.copytree(project.directory / "undisturbed", project.directory / "changed"))
    assert outcome(changed) == project.expected
    with (changed / "evaluations.jsonl").open("r+b") as stream:
        stream.truncate(100)
    with (changed / "supernet" / "model.safetensors").open("r+b") as stream:
        stream.truncate(1000)
    found = outcome(changed)
    assert {key for key in found if found[key] != project.expected[key]} == {
        "evaluations",
        "supernet/model.safetensors",
    }
    assert any("supernet/model.safetensors" in line for line in halves(changed))


@needs_root
def test_a_full_disk_is_said_in_a_line(project: Project, run: Path) -> None:
    with memory_disk(run, project.bytes // 20) as disk:
        command = Command(project.directory, disk)
        command.wait()
        assert command.code == 1
        assert command.unclear() == ""
        assert "No space left on device" in command.last
        assert "free some, then call the same command again" in command.last
        assert halves(disk) == []


@needs_root
def test_a_read_only_disk_is_said_in_a_line(project: Project, run: Path) -> None:
    with memory_disk(run, 4 * project.bytes) as disk:
        remount(disk, "ro")
        command = Command(project.directory, disk)
        command.wait()
        assert command.code in (1, 2)
        assert command.unclear() == ""
        assert "Read-only file system" in command.last


def test_a_directory_that_is_removed_underneath_is_said_in_a_line(project: Project, run: Path) -> None:
    command = Command(project.directory, run)
    while not (run / "teacher").is_dir() and command.code is None:
        command.wait(0.05)
    shutil.rmtree(run, ignore_errors=True)
    command.wait()
    assert command.unclear() == ""


@pytest.mark.skipif(FAKETIME is None, reason="needs Debian's libfaketime")
def test_a_clock_that_jumps_changes_nothing_and_spoils_no_lock(project: Project) -> None:
    """The run is done: the command finds so, by keys and not by dates, and says it under a clock that is years off."""
    clock = Clock(project.directory / "clock")
    for offset in ("+400d", "-400d"):
        clock.jump(offset)
        command = Command(project.directory, project.directory / "undisturbed", clock.environment)
        command.wait()
        assert command.code == 0, command.text
    assert outcome(project.directory / "undisturbed") == project.expected


def test_a_network_that_is_cut_loses_no_evaluation(project: Project, run: Path) -> None:
    """A cluster's second machine is gone while it evaluates: what it had to do is done by the first."""
    if (why := problem()) is not None:
        pytest.skip(why)
    try:
        fault = search_while_cut(project, run, 0.5)
    except TimeoutError as error:
        pytest.skip(str(error))
    assert fault == ""
