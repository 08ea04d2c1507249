"""What this machine is, what it offers and how busy it is; whether a target can be served on it."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from instatune_deploy.device import machine_facts
from instatune_deploy.device.machine_facts import available_cpus, check_machine, lacking_cpu, runtime_versions
from instatune_deploy.device.runtimes.base import get_runtime
from instatune_deploy.errors import TargetError
from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.latency import Machine
from instatune_deploy.values.target import Target

__all__ = [
    "Servable", "accelerators", "available_cpus", "check_target", "detect", "machine_key", "runtime_versions", "servable",
    "usable_deployments",
]  # fmt: skip


@functools.cache
def accelerators() -> tuple[str, ...]:
    """This machine's GPUs and NPUs, each kind once: ``cuda: NVIDIA H200``, ``openvino gpu: Intel(R) Arc(TM) A770``.

    Asked once a process; where there are none, it costs nothing.
    """
    return tuple(dict.fromkeys([*machine_facts.nvidia_gpus(), *machine_facts.openvino_devices()]))


def detect() -> Machine:
    """This machine, with the load it has now."""
    return Machine(**machine_facts.machine_facts(accelerators()))


def machine_key() -> dict[str, Any]:
    """What must be the same for measurements to go together: not the load, nor how much memory a container was given."""
    return {name: value for name, value in asdict(detect()).items() if name not in ("load_1min", "memory_bytes")}


def check_target(target: Target, machine: Machine) -> None:
    """Make sure that `machine` has the instruction sets and the accelerator that `target` needs, and a runtime for it.

    Raises:
        TargetError: it lacks some; names them, and what to install if that is all.
    """
    check_machine(target.name, target.device, target.instruction_sets, target.accelerator, asdict(machine))
    usable, skipped = usable_deployments(target, machine)
    if not usable:
        raise TargetError(f"target {target.name} has no deployment for this machine: {'; '.join(skipped)}")


@dataclass(frozen=True)
class Servable:
    """Whether a machine can serve `target`: by which `deployments`, why not by others (`skipped`, a line each), and why not
    at all (`reason`; None where it can)."""

    target: Target
    deployments: tuple[Deployment, ...] = ()
    skipped: tuple[str, ...] = ()
    reason: str | None = None


def servable(targets: Iterable[Target], machine: Machine) -> list[Servable]:
    """What `machine` can serve of `targets`, in their order."""
    found = []
    for target in targets:
        try:
            check_target(target, machine)
        except TargetError as error:
            found.append(Servable(target, reason=str(error)))
            continue
        usable, skipped = usable_deployments(target, machine)
        found.append(Servable(target, tuple(usable), tuple(skipped)))
    return found


def usable_deployments(target: Target, machine: Machine) -> tuple[list[Deployment], list[str]]:
    """Deployments of `target` that make sense on `machine`, and for each of the others a line that says why not.

    Whether a runtime has what it needs for a GPU or NPU is asked of the runtimes installed here.
    """
    usable, skipped = [], []
    for deployment in target.deployments:
        reason = _unusable(deployment, machine)
        if reason:
            skipped.append(f"{deployment.name} skipped: {reason}")
        else:
            usable.append(deployment)
    return usable, skipped


def _unusable(deployment: Deployment, machine: Machine) -> str | None:
    """Why `deployment` makes no sense on `machine`, or None."""
    reason = lacking_cpu(deployment, asdict(machine))
    if (
        reason or deployment.device == "cpu"
    ):  # what runs on CPUs is always installed, and importing it would take a while
        return reason
    return get_runtime(deployment.runtime).unavailable(deployment)
