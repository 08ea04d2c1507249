"""What the control groups that this process is in (a container's, a slice's, a job's) let it use of the machine."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from instatune_deploy.device.linux import text_of

#: Where Linux shows the groups' limits, and which groups a process is in.
GROUPS, OURS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def cpu_quota() -> float | None:
    """CPUs that the groups allow in the mean; None where they set no limit."""
    quotas = []
    for directory in _directories("cpu"):
        fields = (text_of(directory / "cpu.max") or "").split()
        if not fields:
            fields = [text_of(directory / f"cpu.cfs_{name}_us") or "" for name in ("quota", "period")]
        try:
            quota, period = (float(field) for field in fields)
        except ValueError:  # "max" is no limit, and some systems say nothing
            continue
        if quota > 0 and period > 0:
            quotas.append(quota / period)
    return min(quotas, default=None)


def memory_limit_bytes() -> float:
    """Memory that the groups allow; infinite where they set no limit."""
    return min((limit for limit, _ in _memory()), default=math.inf)


def memory_left_bytes() -> float:
    """Memory that can be had below the groups' limits, for which cached files are given up; infinite where there are none."""
    return min((limit - used for limit, used in _memory()), default=math.inf)


def _memory() -> Iterator[tuple[float, float]]:
    """Bytes allowed and bytes in use, of each group with a limit."""
    for directory in _directories("memory"):
        said = [text_of(directory / f"memory.{name}") or "" for name in ("max", "high", "limit_in_bytes")]
        limits = [float(text) for text in said if text.isdecimal()]
        if not limits:
            continue
        used = text_of(directory / "memory.current") or text_of(directory / "memory.usage_in_bytes") or "0"
        lines = (text_of(directory / "memory.stat") or "").splitlines()
        counts = {name: float(count) for name, _, count in (line.partition(" ") for line in lines)}
        # Version 1 counts a group with those in it under names of its own.
        cached = [counts.get(f"total_{name}", counts.get(name, 0.0)) for name in ("active_file", "inactive_file")]
        yield min(limits), float(used) - sum(cached)


def _directories(controller: str) -> Iterator[Path]:
    """Of the group that this process is in, and of those around it: each may set a limit.

    Both versions are looked at, for a system may have both. What a container sees as outermost is often its own group.
    """
    groups = {"": "/", controller: "/"}  # version 2 has one group for all controllers
    for line in (text_of(OURS) or "").splitlines():
        _, names, path = line.split(":", 2)
        groups.update({name: path for name in names.split(",") if name in groups and "/.." not in path})
    for name, path in groups.items():
        here = PurePosixPath(path.lstrip("/"))
        yield from (GROUPS / name / directory for directory in (here, *here.parents))
