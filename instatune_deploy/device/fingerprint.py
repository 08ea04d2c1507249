"""What this machine is, what it offers and how busy it is; whether a target can be served on it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from pathlib import Path

import psutil

from instatune_deploy.errors import TargetError
from instatune_deploy.values.latency import Machine
from instatune_deploy.values.target import Deployment, Target

_CPUINFO = Path("/proc/cpuinfo")
# Of the hundred flags of a CPU, those that name arithmetic a runtime picks its kernels by.
_INSTRUCTION_SET = re.compile(
    r"(avx|amx|sse|ssse|fma|f16c|vnni|bf16|i8mm|asimd|sve|sme|neon|fphp|dotprod).*|gfni|xop|bmi[12]"
)
_PACKAGES = ("onnxruntime", "openvino", "torch", "transformers")


def available_cpus() -> list[int]:
    """Numbers of the logical CPUs this process may run on, ascending."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def detect() -> Machine:
    """This machine, with the load it has now."""
    fields = _read_cpuinfo()
    # x86 says "flags" and "model name"; Arm says "Features" and often names no model.
    flags = (fields.get("flags") or fields.get("features") or "").lower().split()
    return Machine(
        cpu_model=fields.get("model name") or platform.processor() or platform.machine() or "unknown",
        architecture=platform.machine(),
        logical_cpus=len(available_cpus()),
        instruction_sets=tuple(sorted({flag for flag in flags if _INSTRUCTION_SET.fullmatch(flag)})),
        memory_bytes=int(psutil.virtual_memory().total),
        load_1min=round(psutil.getloadavg()[0], 2),
    )


def _read_cpuinfo() -> dict[str, str]:
    """Fields of the first CPU in /proc/cpuinfo, keys in lower case; empty where there is no such file."""
    try:
        text = _CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in text.split("\n\n", 1)[0].splitlines() if ":" in line)
    return {key.strip().lower(): value.strip() for key, value in pairs}


def runtime_versions() -> dict[str, str]:
    """Versions of what latency depends on, read without importing any of it; an absent package is left out."""
    versions = {"python": platform.python_version()}
    for package in (*_PACKAGES, "instatune-deploy"):
        try:
            versions[package.replace("-", "_")] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def check_target(target: Target, machine: Machine) -> None:
    """Make sure that `machine` has every instruction set that `target` needs.

    Raises:
        TargetError: it lacks some; names them.
    """
    lacking = [name for name in target.instruction_sets if name not in machine.instruction_sets]
    if lacking:
        raise TargetError(
            f"target {target.name} needs {', '.join(lacking)}, which this machine ({machine.cpu_model}) lacks"
        )


def usable_deployments(target: Target, machine: Machine) -> tuple[list[Deployment], list[str]]:
    """Deployments of `target` that make sense on `machine`, and for each of the others a line that says why not."""
    usable, skipped = [], []
    for deployment in target.deployments:
        lacking = [name for name in deployment.needs if name not in machine.instruction_sets]
        if lacking:
            skipped.append(f"{deployment.name} skipped: needs {', '.join(lacking)}, which {machine.cpu_model} lacks")
        elif deployment.threads > machine.logical_cpus:
            skipped.append(
                f"{deployment.name} skipped: needs {deployment.threads} CPUs, this process may use {machine.logical_cpus}"
            )
        else:
            usable.append(deployment)
    return usable, skipped
