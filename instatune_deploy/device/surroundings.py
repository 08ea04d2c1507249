"""What beside the CPU model decides how steady latencies are: clock governors, boost, sibling threads, CPU quotas. From
Linux's own books; what it does not say is None."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from instatune_deploy.device.control_groups import cpu_quota
from instatune_deploy.device.linux import text_of
from instatune_deploy.device.machine_facts import available_cpus
from instatune_deploy.device.topology import core_of

#: Where Linux shows its CPUs.
CPUS = Path("/sys/devices/system/cpu")


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
        governors = (text_of(CPUS / f"cpu{cpu}" / "cpufreq" / "scaling_governor") for cpu in cpus)
        return cls(
            allowed_cpus=tuple(cpus),
            online_cpus=os.cpu_count() or len(cpus),
            quota_cpus=cpu_quota(),
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
                f"a control group allows {self.quota_cpus:g} CPUs in the mean, so that runs of more threads are paused: "
                "measure where there is no quota, or pin whole CPUs (docker run --cpuset-cpus)"
            )
        if self.sibling_pairs:
            lines.append(
                "some of the CPUs are two threads of one core: one of each is measured on, and what runs on the other slows it: "
                "echo off | sudo tee /sys/devices/system/cpu/smt/control"
            )
        return lines


def _sibling_pairs(cpus: list[int]) -> bool | None:
    known = [core for core in map(core_of, cpus) if core is not None]
    return len(set(known)) < len(known) if known else None


def _boost() -> bool | None:
    boost, turbo_off = text_of(CPUS / "cpufreq" / "boost"), text_of(CPUS / "intel_pstate" / "no_turbo")
    if boost is not None:
        return boost == "1"
    return None if turbo_off is None else turbo_off == "0"


def _virtual() -> bool | None:
    text = text_of(Path("/proc/cpuinfo"))
    return None if text is None else " hypervisor" in text
