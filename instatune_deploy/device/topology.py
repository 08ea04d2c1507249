"""Which logical CPUs are threads of one core, which cores are the fast ones, and which CPUs threads are pinned to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from instatune_deploy.device.linux import numbers_of, text_of

#: Where Linux shows CPUs (``system/cpu``) and, on Intel's hybrid ones, which are efficiency cores (``cpu_atom``).
DEVICES = Path("/sys/devices")
# Cores whose speeds differ by less are of one kind: a good sample of it is a few percent faster than the others.
_ALIKE = 0.9


@dataclass(frozen=True)
class Core:
    """A physical core.

    Args:
        cpus: the numbers of its logical CPUs that count, ascending.
        efficiency: whether Intel calls it an efficiency core.
        speed: beside the fastest core's (0..1); 1 where it is not said.
    """

    cpus: tuple[int, ...]
    efficiency: bool = False
    speed: float = 1.0


def core_of(cpu: int) -> str | None:
    """The logical CPUs of the core that `cpu` is a thread of, as Linux writes them (``0,32``); None where it says none."""
    topology = _of_cpu(cpu, "topology")
    # Linux before 5.3 knows the second name alone.
    return text_of(topology / "core_cpus_list") or text_of(topology / "thread_siblings_list") or None


def read_cores(cpus: Iterable[int]) -> list[Core]:
    """The cores that these logical CPUs are threads of; each a core of its own where Linux does not say."""
    siblings: dict[str, list[int]] = {}
    for cpu in sorted(cpus):
        siblings.setdefault(core_of(cpu) or str(cpu), []).append(cpu)
    efficiency = numbers_of(DEVICES / "cpu_atom" / "cpus")
    firsts = [threads[0] for threads in siblings.values()]
    return [
        Core(tuple(threads), threads[0] in efficiency, speed)
        for threads, speed in zip(siblings.values(), _speeds(firsts), strict=True)
    ]


def pick_cpus(cores: Sequence[Core], threads: int) -> list[int]:
    """The logical CPUs to pin `threads` threads to, ascending: one of each core, fast cores first; the second ones only where
    there are not so many cores."""
    # CPU 0 takes most interrupts, so of like cores the highest-numbered ones.
    ranked = sorted(cores, key=lambda core: (not core.efficiency, min(core.speed, _ALIKE), core.cpus[-1]), reverse=True)
    turns = zip_longest(*(reversed(core.cpus) for core in ranked))
    order = [cpu for turn in turns for cpu in turn if cpu is not None]
    return sorted(order[:threads])


def _of_cpu(cpu: int, name: str) -> Path:
    return DEVICES / "system" / "cpu" / f"cpu{cpu}" / name


def _speeds(cpus: Sequence[int]) -> list[float]:
    """How fast CPUs are beside the fastest of them, by their capacity, else by their highest clock."""
    for name in ("cpu_capacity", "cpufreq/cpuinfo_max_freq"):
        said = [text_of(_of_cpu(cpu, name)) or "" for cpu in cpus]
        if len(set(said)) > 1 and all(text.isdecimal() for text in said):
            speeds = [int(text) for text in said]
            return [speed / max(speeds) for speed in speeds]
    return [1.0] * len(cpus)
