"""What beside the CPU model decides how steady latencies are: clock governors, boost, sibling threads, CPU quotas. From
Linux's own books; what it does not say is None."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from instatune_deploy.device.machine_facts import available_cpus

#: Where Linux shows its CPUs and the limits of control groups.
CPUS, CGROUPS = Path("/sys/devices/system/cpu"), Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Surroundings:
    """What a process may use of this machine, and what the machine does with its clock.

    Args:
        allowed_cpus: logical CPUs this process may run on, by number; `online_cpus`: how many the machine has.
        quota_cpus: CPUs a control group (a container) lets it use in the mean; None where there is no limit.
        sibling_pairs: whether two of the allowed CPUs are threads of one core; None where it is not said.
        governors: frequency governors of the allowed CPUs, each kind once; none on most virtual machines.
        boost: whether clocks may go beyond the nominal one.
        virtual: whether a hypervisor runs this machine.
    """

    allowed_cpus: tuple[int, ...]
    online_cpus: int
    quota_cpus: float | None
    sibling_pairs: bool | None
    governors: tuple[str, ...]
    boost: bool | None
    virtual: bool | None

    @classmethod
    def read(cls) -> Surroundings:
        """As they are now."""
        cpus = available_cpus()
        governors = (_text(CPUS / f"cpu{cpu}" / "cpufreq" / "scaling_governor") for cpu in cpus)
        return cls(
            allowed_cpus=tuple(cpus),
            online_cpus=os.cpu_count() or len(cpus),
            quota_cpus=_quota(),
            sibling_pairs=_sibling_pairs(cpus),
            governors=tuple(sorted({governor for governor in governors if governor})),
            boost=_boost(),
            virtual=_virtual(),
        )

    @property
    def advice(self) -> list[str]:
        """What would make latencies steadier, a line each."""
        lines = []
        slow = [governor for governor in self.governors if governor != "performance"]
        if slow:
            lines.append(
                f"the governor {', '.join(slow)} changes the clock with the load: sudo cpupower frequency-set -g performance"
            )
        if self.quota_cpus is not None and self.quota_cpus < len(self.allowed_cpus):
            lines.append(
                f"a control group allows {self.quota_cpus:g} CPUs in the mean, so that runs are paused: measure where there "
                "is no quota, or pin whole CPUs (docker run --cpuset-cpus)"
            )
        if self.sibling_pairs:
            lines.append(
                "some of the CPUs are two threads of one core, which slow each other down: taskset -c with one of each pair"
            )
        return lines


def _text(path: Path) -> str | None:
    """The stripped text of a file; None where it cannot be read."""
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None


def _quota() -> float | None:
    """CPUs in the mean that a control group allows (version 2, else 1); None where there is no limit."""
    fields = (_text(CGROUPS / "cpu.max") or "").split()
    if not fields:
        fields = [_text(CGROUPS / "cpu" / f"cpu.cfs_{name}_us") or "" for name in ("quota", "period")]
    try:
        quota, period = (float(field) for field in fields)
    except ValueError:  # "max" is no limit, and some systems say nothing
        return None
    return quota / period if quota > 0 and period > 0 else None


def _sibling_pairs(cpus: list[int]) -> bool | None:
    siblings = [_text(CPUS / f"cpu{cpu}" / "topology" / "thread_siblings_list") for cpu in cpus]
    known = [text for text in siblings if text is not None]
    return len(set(known)) < len(known) if known else None


def _boost() -> bool | None:
    boost, turbo_off = _text(CPUS / "cpufreq" / "boost"), _text(CPUS / "intel_pstate" / "no_turbo")
    if boost is not None:
        return boost == "1"
    return None if turbo_off is None else turbo_off == "0"


def _virtual() -> bool | None:
    text = _text(Path("/proc/cpuinfo"))
    return None if text is None else " hypervisor" in text
