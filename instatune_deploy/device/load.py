"""How busy this machine is with other things, and how much memory it has left; by Linux's own books, without a library."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from instatune_deploy.device.control_groups import memory_left_bytes

_STAT, _MEMINFO = Path("/proc/stat"), Path("/proc/meminfo")
_CALM_LOOK_S = 0.5
#: Of all CPUs: what others may use, and what the hypervisor may take, of a machine that counts as calm.
CALM_OTHERS, CALM_STEAL = 0.1, 0.03


@dataclass(frozen=True)
class CpuTimes:
    """CPU seconds since boot (`busy`, `stolen`: taken by the hypervisor), of this process (`own`), and the time."""

    busy: float
    stolen: float
    own: float
    now: float

    @classmethod
    def read(cls) -> CpuTimes | None:
        """As they are now; None where the system does not say."""
        try:
            fields = _STAT.read_text(encoding="ascii").splitlines()[0].split()[1:]
        except (OSError, IndexError):
            return None
        ticks = [float(field) for field in fields] + [0.0] * 8
        user, nice, system, _, _, irq, softirq, steal = ticks[:8]
        second = os.sysconf("SC_CLK_TCK")
        busy = (user + nice + system + irq + softirq) / second
        return cls(busy, steal / second, time.process_time(), time.monotonic())

    def since(self, before: CpuTimes) -> Load:
        """What happened between two readings."""
        passed = max(self.now - before.now, 1e-6)
        others = (self.busy - before.busy) - (self.own - before.own)
        return Load(max(others, 0.0) / passed, max(self.stolen - before.stolen, 0.0) / passed)


@dataclass(frozen=True)
class Load:
    """CPUs that other processes used and that the hypervisor took, in the mean over some time."""

    others: float
    stolen: float

    @property
    def is_calm(self) -> bool:
        """Whether so little that measuring may begin."""
        cpus = os.cpu_count() or 1
        return self.others <= CALM_OTHERS * cpus and self.stolen <= CALM_STEAL * cpus


def wait_until_calm(limit_s: float) -> float:
    """Sleep until others leave the machine alone, for `limit_s` seconds at most; returns the seconds waited."""
    start = time.monotonic()
    while (passed := time.monotonic() - start) < limit_s:
        before = CpuTimes.read()
        time.sleep(min(_CALM_LOOK_S, limit_s))
        after = CpuTimes.read()
        if before is None or after is None or after.since(before).is_calm:
            break
    return passed


def available_memory_bytes() -> float:
    """Memory that can be had without swapping, within a container's limit; infinite where the system does not say."""
    try:
        lines = _MEMINFO.read_text(encoding="ascii").splitlines()
        machine = 1024 * float(next(line for line in lines if line.startswith("MemAvailable:")).split()[1])
    except (OSError, StopIteration, ValueError, IndexError):
        machine = float("inf")
    return min(machine, memory_left_bytes())
