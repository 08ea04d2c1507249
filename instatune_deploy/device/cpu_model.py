"""What a CPU is called; one of Arm's kind by the names of its cores, for it says none of its own."""

from __future__ import annotations

import functools
import platform
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence

#: Makers and their cores' names, by the numbers in the register MIDR_EL1, which /proc/cpuinfo shows.
CORES: Mapping[int, tuple[str, Mapping[int, str]]] = {
    0x41: ("Arm", {
        0xC07: "Cortex-A7", 0xC08: "Cortex-A8", 0xC09: "Cortex-A9", 0xC0F: "Cortex-A15", 0xD03: "Cortex-A53",
        0xD04: "Cortex-A35", 0xD05: "Cortex-A55", 0xD06: "Cortex-A65", 0xD07: "Cortex-A57", 0xD08: "Cortex-A72",
        0xD09: "Cortex-A73", 0xD0A: "Cortex-A75", 0xD0B: "Cortex-A76", 0xD0C: "Neoverse-N1", 0xD0D: "Cortex-A77",
        0xD0E: "Cortex-A76AE", 0xD40: "Neoverse-V1", 0xD41: "Cortex-A78", 0xD42: "Cortex-A78AE", 0xD43: "Cortex-A65AE",
        0xD44: "Cortex-X1", 0xD46: "Cortex-A510", 0xD47: "Cortex-A710", 0xD48: "Cortex-X2", 0xD49: "Neoverse-N2",
        0xD4A: "Neoverse-E1", 0xD4B: "Cortex-A78C", 0xD4C: "Cortex-X1C", 0xD4D: "Cortex-A715", 0xD4E: "Cortex-X3",
        0xD4F: "Neoverse-V2", 0xD80: "Cortex-A520", 0xD81: "Cortex-A720", 0xD82: "Cortex-X4", 0xD83: "Neoverse-V3AE",
        0xD84: "Neoverse-V3", 0xD85: "Cortex-X925", 0xD87: "Cortex-A725", 0xD89: "Cortex-A720AE", 0xD8E: "Neoverse-N3",
    }),
    0x43: ("Cavium", {0x0A1: "ThunderX", 0x0AF: "ThunderX2"}),
    0x46: ("Fujitsu", {0x001: "A64FX"}),
    0x48: ("HiSilicon", {0xD01: "TSV110"}),
    0x4E: ("NVIDIA", {0x004: "Carmel", 0x010: "Olympus"}),
    0x51: ("Qualcomm", {
        0x001: "Oryon", 0x802: "Kryo-3XX-Gold", 0x803: "Kryo-3XX-Silver", 0x804: "Kryo-4XX-Gold",
        0x805: "Kryo-4XX-Silver",
    }),
    0x61: ("Apple", {
        0x022: "Icestorm-M1", 0x023: "Firestorm-M1", 0x024: "Icestorm-M1-Pro", 0x025: "Firestorm-M1-Pro",
        0x028: "Icestorm-M1-Max", 0x029: "Firestorm-M1-Max", 0x032: "Blizzard-M2", 0x033: "Avalanche-M2",
        0x034: "Blizzard-M2-Pro", 0x035: "Avalanche-M2-Pro", 0x038: "Blizzard-M2-Max", 0x039: "Avalanche-M2-Max",
    }),
    0x6D: ("Microsoft", {0xD49: "Azure-Cobalt-100"}),
    0xC0: ("Ampere", {0xAC3: "Ampere-1", 0xAC4: "Ampere-1A"}),
}  # fmt: skip


def cpu_model(cpuinfo: Sequence[Mapping[str, str]], allowed: Collection[int]) -> str:
    """The CPU's name, or those of its kinds of cores, such as ``Arm Cortex-A55 + Arm Cortex-A76``.

    Args:
        cpuinfo: the blocks of /proc/cpuinfo, one a logical CPU, keys in lower case; none outside Linux.
        allowed: the logical CPUs that count, by number: where the big cores alone may be used, it is another machine than
            where the little ones may.
    """
    numbers = {str(number) for number in allowed}
    ours = [block for block in cpuinfo if block.get("processor") in numbers]
    # Old 32-bit kernels say it once, apart from the CPUs.
    cores = _cores(ours) or _cores(cpuinfo)
    said = " + ".join(dict.fromkeys(cores)) or next((b["model name"] for b in cpuinfo if b.get("model name")), "")
    return said or _apple_name() or platform.processor() or platform.machine() or "unknown"


def _cores(blocks: Sequence[Mapping[str, str]]) -> list[str]:
    return [_core(b["cpu implementer"], b["cpu part"]) for b in blocks if {"cpu implementer", "cpu part"} <= b.keys()]


def _core(implementer: str, part: str) -> str:
    """A core's name by its two numbers, ``0x41`` and ``0xd0c``; the numbers themselves where it has none."""
    try:
        maker, names = CORES[int(implementer, 16)]
        return f"{maker} {names[int(part, 16)]}"
    except (KeyError, ValueError):
        return f"Arm CPU of implementer {implementer}, part {part}"


@functools.cache
def _apple_name() -> str:
    """What macOS calls its CPU (``Apple M2``); empty elsewhere."""
    if sys.platform != "darwin":
        return ""
    command = ["sysctl", "-n", "machdep.cpu.brand_string"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
