"""A look at this machine and installation: what is there, what is missing for which target, how steady latencies are."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from packaging.requirements import Requirement

from instatune_deploy.device.fingerprint import Servable, detect, runtime_versions, servable
from instatune_deploy.device.noise import Noise, measure_noise
from instatune_deploy.device.surroundings import Surroundings
from instatune_deploy.device.trial import Trial, try_runtimes
from instatune_deploy.values.deployment import Deployment, Runtime
from instatune_deploy.values.latency import Machine
from instatune_deploy.values.target import every_target
from instatune_deploy.workspace import data_directories

Report = Callable[[str], None]

_DISTRIBUTION = "instatune-deploy"
#: What each optional dependency is for, by the extra's name.
EXTRAS = {
    "token": "metric entity_f1 of token classification",
    "serve": "instatune-deploy serve",
    "ray": "--ray, to evaluate and measure on the nodes of a Ray cluster",
    "optimum": "Optimum's ORTModelFor... and OVModelFor..., to load artifacts with",
    "cuda": "ONNX Runtime on NVIDIA GPUs, in the place of onnxruntime",
}


@dataclass(frozen=True)
class Lack:
    """A package that is missing or of another version than it should be: what for, and the line that installs it."""

    what: str
    needed_for: str
    install: str
    required: bool


@dataclass(frozen=True)
class Checkup:
    """What `checkup` found; `noise` is None where it was not measured."""

    machine: Machine
    surroundings: Surroundings
    versions: dict[str, str]
    trials: tuple[Trial, ...]
    targets: tuple[Servable, ...]
    lacks: tuple[Lack, ...]
    noise: Noise | None

    @property
    def is_well(self) -> bool:
        """Whether what every run needs is there: the packages, a runtime on the CPU, a target."""
        on_cpu = any(trial.works for trial in self.trials if trial.deployment.device == "cpu")
        usable = any(found.reason is None for found in self.targets)
        return on_cpu and usable and not any(lack.required for lack in self.lacks)

    @property
    def meaning(self) -> list[str]:
        """What the noise says for profiling, a line each."""
        return [] if self.noise is None else meaning(self.noise)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "well": self.is_well,
            "versions": self.versions,
            "machine": asdict(self.machine),
            "surroundings": {**asdict(self.surroundings), "advice": self.surroundings.advice},
            "runtimes": {trial.name: {"works": trial.works, "why_not": trial.why or None} for trial in self.trials},
            "targets": {
                found.target.name: {
                    "servable": found.reason is None, "reason": found.reason,
                    "deployments": [d.name for d in found.deployments], "skipped": list(found.skipped),
                }
                for found in self.targets
            },
            "missing": [asdict(lack) for lack in self.lacks],
            "noise": None if self.noise is None else {
                **asdict(self.noise), "verdict": self.noise.verdict, "meaning": self.meaning,
            },
        }  # fmt: skip


def checkup(seconds: float, report: Report) -> Checkup:
    """Look at this machine.

    Args:
        seconds: of measuring its noise; 0 measures none.
        report: is told what is being looked at, a line each.

    Raises:
        MeasurementError: the noise could not be measured.
        TargetError: a target's file does not validate.
    """
    machine, surroundings = detect(), Surroundings.read()
    report("trying the runtimes")
    trials = try_runtimes()
    targets = servable(every_target(data_directories("targets")), machine)
    runtime = next((t.deployment.runtime for t in trials if t.works and t.deployment.runtime in _MEASURES), None)
    noise = None
    if seconds > 0 and runtime is not None:
        report(f"measuring how steady this machine is: {seconds:g} s, by {runtime}")
        noise = measure_noise(seconds, Deployment(runtime))
    lacks = missing(machine.accelerators)
    return Checkup(machine, surroundings, runtime_versions(), tuple(trials), tuple(targets), tuple(lacks), noise)


#: Runtimes that read the files the noise is measured with.
_MEASURES: tuple[Runtime, ...] = ("onnxruntime", "openvino")


def missing(accelerators: Sequence[str]) -> list[Lack]:
    """Dependencies, also optional ones, that are not installed or not in the versions that this package takes.

    Args:
        accelerators: this machine's; without one of CUDA's the extra `cuda` is of no use.
    """
    wanted = set(EXTRAS) - (set() if any(name.startswith("cuda") for name in accelerators) else {"cuda"})
    found: dict[tuple[str, str | None], Lack] = {}
    for text in _requirements():
        requirement = Requirement(text)
        extra = _extra(requirement)
        if extra is not None and extra not in wanted:
            continue
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra or ""}):
            continue
        problem = _problem(requirement)
        if problem is not None and (requirement.name, extra) not in found:
            needed_for = EXTRAS[extra] if extra else "everything"
            line = f"pip install '{_DISTRIBUTION}[{extra}]'" if extra else f"pip install '{_bare(requirement)}'"
            found[requirement.name, extra] = Lack(problem, needed_for, line, required=extra is None)
    return list(found.values())


def _requirements() -> list[str]:
    try:
        return importlib.metadata.requires(_DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:  # run from its source, it says nothing
        return []


def _problem(requirement: Requirement) -> str | None:
    """What is wrong with the installed version of a requirement, or None."""
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        # Either build of ONNX Runtime serves.
        if requirement.name == "onnxruntime" and _is_installed("onnxruntime-gpu"):
            return None
        return f"{requirement.name} is not installed"
    if not requirement.specifier.contains(version, prereleases=True):
        return f"{requirement.name} is {version}, not {requirement.specifier}"
    return None


def _is_installed(name: str) -> bool:
    return any(True for _ in importlib.metadata.distributions(name=name))


def _extra(requirement: Requirement) -> str | None:
    """The extra that a requirement belongs to."""
    found = re.search(r"extra\s*==\s*['\"]([^'\"]+)['\"]", str(requirement.marker or ""))
    return found[1] if found else None


def _bare(requirement: Requirement) -> str:
    return f"{requirement.name}{requirement.specifier}"


def meaning(noise: Noise) -> list[str]:
    """What a machine's noise says for latency tables, a line each."""
    lines = [
        f"{noise.verdict}: the same networks, loaded and measured again, differ by {noise.floor_pct:.2f}% (mean of "
        f"{noise.networks} networks, {noise.runs} runs in {noise.seconds:.0f} s)",
        "a latency table that is made now cannot tell networks apart that are closer than that; each table states its own "
        "noise floor",
        f"p90 is {noise.spread_pct:.0f}% above p50: budgets on p90 or p99 are {_tail(noise.spread_pct)}",
    ]
    disturbed = noise.disturbance
    if disturbed.others_cpus > 0.2 or disturbed.interrupted_pct > 10:
        lines.append(
            f"meanwhile other processes used {disturbed.others_cpus:.2f} CPUs and interrupted {disturbed.interrupted_pct:.0f}% of "
            "the runs: stop them, or leave a CPU to the measurement alone"
        )
    if disturbed.stolen_cpus > 0.05:
        lines.append(
            f"the hypervisor took {disturbed.stolen_cpus:.2f} CPUs away: a machine with CPUs of its own is steadier"
        )
    if noise.verdict == "noisy":
        lines.append(
            "profile at a quieter time or on another machine; profile.seconds: 240 helps where single runs differ"
        )
    return lines


def _tail(spread_pct: float) -> str:
    if spread_pct < 5:
        return "safe"
    return (
        "wider than on a quiet machine" if spread_pct < 20 else "about this machine's neighbours more than the network"
    )
