"""Limits of containers, slices and jobs, in the books of both versions of control groups."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from instatune_deploy.device import control_groups
from instatune_deploy.device.control_groups import cpu_quota, memory_left_bytes, memory_limit_bytes

GIB = 2**30
Write = Callable[[str, dict[str, str]], None]


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes the files of a machine, and the groups that this process is in."""

    def write(ours: str, files: dict[str, str]) -> None:
        (tmp_path / "ours").write_text(ours)
        for name, text in files.items():
            path = tmp_path / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")

    monkeypatch.setattr(control_groups, "GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(control_groups, "OURS", tmp_path / "ours")
    return write


def test_where_nothing_is_said_nothing_is_limited(groups: Write) -> None:
    assert (cpu_quota(), memory_limit_bytes(), memory_left_bytes()) == (None, math.inf, math.inf)
    groups("0::/\n", {"cpu.max": "max 100000", "memory.max": "max", "memory.high": "max", "memory.current": "77"})
    assert (cpu_quota(), memory_limit_bytes(), memory_left_bytes()) == (None, math.inf, math.inf)


def test_a_container_of_version_2_sees_its_own_group_as_the_outermost(groups: Write) -> None:
    stat = f"anon 5\ninactive_file {GIB // 4}\nactive_file {GIB // 4}\nslab 7"
    files = {"cpu.max": "150000 100000", "memory.max": str(2 * GIB), "memory.current": str(GIB), "memory.stat": stat}
    groups("0::/\n", files)
    assert (cpu_quota(), memory_limit_bytes()) == (1.5, 2 * GIB)
    # Files that are only cached are given up before anything is killed.
    assert memory_left_bytes() == 1.5 * GIB


def test_the_tightest_of_the_groups_around_a_process_counts(groups: Write) -> None:
    groups(
        "0::/jobs.slice/job 7/step\n",
        {
            "jobs.slice/memory.max": str(8 * GIB), "jobs.slice/memory.current": str(7 * GIB),
            "jobs.slice/job 7/memory.max": "max", "jobs.slice/job 7/memory.high": str(4 * GIB),
            "jobs.slice/job 7/memory.current": str(GIB), "jobs.slice/job 7/cpu.max": "200000 100000",
            "jobs.slice/job 7/step/cpu.max": "max 100000", "other/cpu.max": "1000 100000",
        },
    )  # fmt: skip
    assert (cpu_quota(), memory_limit_bytes(), memory_left_bytes()) == (2, 4 * GIB, GIB)


@pytest.mark.parametrize("place", ["", "docker/0123/"])
def test_version_1_has_a_group_for_each_controller(groups: Write, place: str) -> None:
    stat = f"inactive_file 1\nactive_file 1\ntotal_inactive_file {GIB // 2}\ntotal_active_file 0"
    groups(
        "9:memory:/docker/0123\n5:cpu,cpuacct:/docker/0123\n1:name=systemd:/\n0::/\n",
        {
            f"memory/{place}memory.limit_in_bytes": str(2 * GIB), f"memory/{place}memory.usage_in_bytes": str(GIB),
            f"memory/{place}memory.stat": stat,
            f"cpu/{place}cpu.cfs_quota_us": "50000", f"cpu/{place}cpu.cfs_period_us": "100000",
        },
    )  # fmt: skip
    assert (cpu_quota(), memory_limit_bytes(), memory_left_bytes()) == (0.5, 2 * GIB, 1.5 * GIB)
    groups("", {f"cpu/{place}cpu.cfs_quota_us": "-1"})
    assert cpu_quota() is None


def test_a_group_beyond_what_a_container_sees_is_not_looked_for(groups: Write, tmp_path: Path) -> None:
    groups("0::/../sibling\n", {"memory.max": str(GIB), "../sibling/memory.max": "1"})
    assert memory_limit_bytes() == GIB
