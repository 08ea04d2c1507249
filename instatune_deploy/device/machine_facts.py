"""What a machine says of itself, as plain values and by the standard library alone: kits take this file to devices."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from instatune_deploy.device.control_groups import memory_limit_bytes
from instatune_deploy.device.cpu_model import cpu_model
from instatune_deploy.device.linux import text_of
from instatune_deploy.errors import TargetError
from instatune_deploy.values.deployment import Deployment

CPUINFO = Path("/proc/cpuinfo")
# Of the hundred flags of a CPU, those that name arithmetic a runtime picks its kernels by.
_INSTRUCTION_SET = re.compile(
    r"(avx|amx|sse|ssse|fma|f16c|vnni|bf16|i8mm|asimd|sve|sme|neon|fphp|dotprod).*|gfni|xop|bmi[12]"
)
#: What each version is of, by the distributions that bring it, the first that is installed.
PACKAGES = {
    "onnxruntime": ("onnxruntime-gpu", "onnxruntime"),
    "openvino": ("openvino",),
    "torch": ("torch",),
    "transformers": ("transformers",),
    "instatune_deploy": ("instatune-deploy",),
}
#: Where Linux shows GPUs and NPUs, those of WSL too; without any, OpenVINO need not be asked.
DEVICES = Path("/dev")
_DEVICE_NODES = ("dri/renderD*", "accel/accel*", "dxg")


def available_cpus() -> list[int]:
    """Numbers of the logical CPUs this process may run on, ascending."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def machine_facts(accelerators: Iterable[str]) -> dict[str, Any]:
    """The fields of `values.latency.Machine`, with the load there is now."""
    cpuinfo, cpus = _read_cpuinfo(), available_cpus()
    # x86 says "flags", Arm "Features".
    texts = (block.get("flags") or block.get("features") for block in cpuinfo)
    flags = next(filter(None, texts), "").lower().split()
    return {
        "cpu_model": cpu_model(cpuinfo, cpus),
        "architecture": platform.machine(),
        "logical_cpus": len(cpus),
        "instruction_sets": tuple(sorted({flag for flag in flags if _INSTRUCTION_SET.fullmatch(flag)})),
        "memory_bytes": memory_bytes(),
        "load_1min": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else 0.0,
        "accelerators": tuple(accelerators),
    }


def _read_cpuinfo() -> list[dict[str, str]]:
    """The blocks of /proc/cpuinfo, one a logical CPU, keys in lower case; none where there is no such file."""
    blocks = (text_of(CPUINFO) or "").split("\n\n")
    pairs = [[line.split(":", 1) for line in block.splitlines() if ":" in line] for block in blocks]
    return [{key.strip().lower(): value.strip() for key, value in fields} for fields in pairs if fields]


def memory_bytes() -> int:
    """Memory of this machine, or as much of it as a container was given; 0 where it cannot be told."""
    try:
        return int(min(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), memory_limit_bytes()))
    except (AttributeError, OSError, ValueError):  # no such names outside Unix
        return 0


def nvidia_gpus() -> list[str]:
    """NVIDIA's GPUs as their driver names them (``cuda: NVIDIA H200``); none without it."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [f"cuda: {line.strip()}" for line in done.stdout.splitlines() if line.strip()]


def openvino_devices() -> list[str]:
    """GPUs and NPUs that OpenVINO finds (``openvino gpu: Intel(R) Arc(TM) A770``), none without it; imports it only where
    Linux shows any of them."""
    if not any(path for pattern in _DEVICE_NODES for path in DEVICES.glob(pattern)):
        return []
    try:
        import openvino
    except ImportError:  # a device may have ONNX Runtime alone
        return []
    core = openvino.Core()
    found = [device for device in core.available_devices if device != "CPU"]
    names = [str(core.get_property(device, "FULL_DEVICE_NAME")) for device in found]
    return [f"openvino {device.split('.')[0].lower()}: {name}" for device, name in zip(found, names, strict=True)]


def runtime_versions() -> dict[str, str]:
    """Versions of what latency depends on, read without importing any of it; an absent package is left out."""
    versions = {"python": platform.python_version()}
    for name, distributions in PACKAGES.items():
        for distribution in distributions:
            try:
                versions[name] = importlib.metadata.version(distribution)
                break
            except importlib.metadata.PackageNotFoundError:
                continue
    return versions


def check_machine(
    target: str, device: str, instruction_sets: Iterable[str], accelerator: str | None, facts: dict[str, Any]
) -> None:
    """Make sure that a machine has the instruction sets and the accelerator that a target needs.

    Args:
        device, instruction_sets, accelerator: of the target called `target`, see `values.target.Target`.
        facts: what `machine_facts` says of the machine.

    Raises:
        TargetError: it lacks some; names them.
    """
    lacking = [name for name in instruction_sets if name not in facts["instruction_sets"]]
    if lacking:
        raise TargetError(
            f"target {target} needs {', '.join(lacking)}, which this machine ({facts['cpu_model']}) lacks"
        )
    wanted = (accelerator or "").lower()
    if device != "cpu" and not any(wanted in name.lower() for name in facts["accelerators"]):
        kind = "an NPU" if device == "npu" else "a GPU"
        named = f" with {accelerator!r} in its name" if accelerator else ""
        found = ", ".join(facts["accelerators"]) or "none"
        raise TargetError(f"target {target} needs {kind}{named}, which this machine lacks; found: {found}")


def lacking_cpu(deployment: Deployment, facts: dict[str, Any]) -> str | None:
    """Which instruction sets or how many CPUs a machine lacks for `deployment`, or None."""
    lacking = [name for name in deployment.needs if name not in facts["instruction_sets"]]
    if lacking:
        return f"needs {', '.join(lacking)}, which {facts['cpu_model']} lacks"
    if deployment.threads > facts["logical_cpus"]:
        return f"needs {deployment.threads} CPUs, this process may use {facts['logical_cpus']}"
    return None
