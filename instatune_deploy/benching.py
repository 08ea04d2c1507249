"""An artifact on the bench: opened, its files checked, measured under any deployment that it has a file for."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, get_args

import numpy as np
from transformers import PretrainedConfig

from instatune_deploy.device.benchmark_app import find_benchmark_app
from instatune_deploy.device.fingerprint import detect, runtime_versions
from instatune_deploy.device.runtimes.base import check_deployment, get_runtime
from instatune_deploy.elastic.families import inputs_of
from instatune_deploy.elastic.pretrained import load_config
from instatune_deploy.elastic.probing import longest_text, synthetic_inputs
from instatune_deploy.errors import TargetError, UnknownNameError, UsageError
from instatune_deploy.stages.bench import PROCESSES, Bench, Latency, bench
from instatune_deploy.stages.export import Artifact, open_artifact
from instatune_deploy.values.deployment import Deployment, Device, Precision, Runtime
from instatune_deploy.values.latency import Machine

Report = Callable[[str], None]

#: Runtimes that artifacts have files for.
_FILE_RUNTIMES: tuple[Runtime, ...] = ("onnxruntime", "openvino")


@dataclass(frozen=True)
class ArtifactBench:
    """What was measured of an artifact.

    Args:
        other: the artifact it was compared with.
        tokens: length of the texts; None for images.
        found: the measurements, under the names ``artifact`` and ``other``.
        unchecked: why `benchmark_app` did not check the measurement; None where it did.
        machine: this machine, with the load it had before.
    """

    artifact: Artifact
    other: Artifact | None
    deployment: Deployment
    tokens: int | None
    found: Bench
    unchecked: str | None
    machine: Machine

    @property
    def latency(self) -> Latency:
        """The artifact's."""
        return self.found.latency["artifact"]

    @property
    def samples_per_s(self) -> float:
        """Throughput of one call after the other, each as long as the p50."""
        return 1000 * self.deployment.batch / self.latency.p50_ms.value

    def to_dict(self) -> dict[str, Any]:
        """For one JSON object; everything in it but `machine` and the names was measured now."""
        found, check, manifest = self.found, self.found.check, self.artifact.manifest
        data: dict[str, Any] = {
            "artifact": str(self.artifact.directory),
            "architecture": manifest.architecture,
            "deployment": self.deployment.name,
            "batch": self.deployment.batch,
            "sequence_length": self.tokens,
            "measured": {
                **_latency_dict(self.latency), "samples_per_s": self.samples_per_s,
                "rounds": found.rounds, "slow_rounds_pct": found.slow_rounds_pct,
            },
            "compare": None,
            "benchmark_app": None,
            "unchecked": self.unchecked,
            "options": found.options,
            "machine": asdict(self.machine),
            "versions": runtime_versions(),
        }  # fmt: skip
        if self.other is not None:
            ratio = found.ratio["other"]
            data["compare"] = {
                "artifact": str(self.other.directory),
                "architecture": self.other.manifest.architecture,
                "measured": _latency_dict(found.latency["other"]),
                "p50_ratio": ratio.value,
                "p50_ratio_interval": [ratio.low, ratio.high],
            }
        if check is not None:
            data["benchmark_app"] = {**asdict(check), "within_10_pct": check.within_10_pct}
        return data


def _latency_dict(latency: Latency) -> dict[str, Any]:
    p50, label = latency.p50_ms, latency.label_ms
    return {
        "p50_ms": p50.value,
        "p50_interval_ms": [p50.low, p50.high],
        "p90_ms": latency.p90_ms,
        "p99_ms": latency.p99_ms,
        "label_ms": label.value,
        "label_interval_ms": [label.low, label.high],
        "n": latency.n,
        "processes": latency.processes,
        "converged": latency.converged,
    }


def bench_artifact(
    directory: Path,
    *,
    deployment: str | None = None,
    batch: int | None = None,
    sequence_length: int | None = None,
    compare: Path | None = None,
    check: bool = True,
    seconds: float = 15.0,
    processes: int = PROCESSES,
    seed: int = 0,
    report: Report,
) -> ArtifactBench:
    """Measure the artifact in `directory`, after its files were checked against their hashes.

    Args:
        deployment: a name such as ``ort-fp32-1t``; None is the artifact's own.
        batch: samples a call; None is the deployment's.
        sequence_length: tokens of a text; None is what the artifact was made for.
        compare: another artifact, measured in the same rounds.
        check: whether `benchmark_app` checks an OpenVINO deployment.
        seconds: measuring time of a file at most; loading, warming up and the check come on top.
        processes: how many to measure in, at least two.

    Raises:
        ArtifactError: it is not an artifact, or a file was changed.
        UsageError: the deployment is unknown or has no file here, or an artifact cannot read such inputs.
        TargetError: this machine cannot run the deployment.
        MeasurementError: measuring failed or gave impossible latencies.
    """
    artifact = open_artifact(directory)
    other = None if compare is None else open_artifact(compare)
    machine = detect()
    wanted = _wanted(artifact, deployment, batch, machine)
    files = {"artifact": _file(artifact, wanted)}
    tokens, inputs = artifact_inputs(artifact, sequence_length, wanted.batch, seed=seed)
    for measured in (artifact, other):
        _check_sizes(measured, tokens, wanted.batch)
    if other is not None:
        files["other"] = _file(other, wanted)
        theirs = artifact_inputs(other, tokens, wanted.batch, seed=seed)[1]
        if theirs.keys() != inputs.keys() or any(not np.array_equal(theirs[name], inputs[name]) for name in inputs):
            raise UsageError(f"{directory} and {compare} read different inputs, so there is nothing to compare")
    app = find_benchmark_app()
    unchecked = None
    if wanted.runtime != "openvino" or wanted.device != "cpu":
        unchecked = "benchmark_app checks OpenVINO deployments on CPUs only"
    elif not check:
        unchecked = "benchmark_app was not asked for"
    elif app is None:
        unchecked = "benchmark_app is not installed; it comes with the package openvino"
    report(f"measuring {wanted.name}, batch {wanted.batch}, for {seconds * len(files):g} s at most, and loading")
    found = bench(
        files, inputs, wanted, app=None if unchecked else app, seconds=seconds, processes=processes, seed=seed,
        report=report,
    )  # fmt: skip
    return ArtifactBench(artifact, other, wanted, tokens, found, unchecked or found.check_failure, machine)


def parse_deployment(name: str) -> Deployment | None:
    """The deployment that is called `name`, such as ``ov-bf16-2t`` or ``ort-fp32-1t-b8``; None if none is.

    Instruction sets that a deployment needs are not in its name.
    """
    threads, batch = re.search(r"-([1-9]\d*)t\b", name), re.search(r"-b([1-9]\d*)$", name)
    counts = int(threads[1]) if threads else 1, int(batch[1]) if batch else 1
    for runtime, precision, device in product(get_args(Runtime), get_args(Precision), get_args(Device)):
        found = Deployment(runtime, precision, *counts, device=device)
        if found.name == name:
            return found
    return None


def _wanted(artifact: Artifact, name: str | None, batch: int | None, machine: Machine) -> Deployment:
    """The deployment of that name, or the artifact's own, if `machine` can run it."""
    own = artifact.manifest.deployment
    found = own if name in (None, own.name) else parse_deployment(str(name))
    if found is None:
        raise UnknownNameError("deployment", str(name), _runnable(artifact))
    if batch is not None:
        found = replace(found, batch=batch)
    check_machine_runs(found, machine)
    return found


def check_machine_runs(deployment: Deployment, machine: Machine) -> None:
    """Make sure that this machine can run a deployment.

    Raises:
        TargetError: it cannot; says what it lacks.
    """
    check_deployment(get_runtime(deployment.runtime), deployment)
    computes_bf16 = any("bf16" in instructions for instructions in machine.instruction_sets)
    if deployment.device == "cpu" and deployment.precision == "bf16" and not computes_bf16:
        # The runtime would emulate it and say nothing.
        raise TargetError(f"{deployment.name} needs a CPU that computes in bf16, which {machine.cpu_model} does not")


def _runnable(artifact: Artifact) -> list[str]:
    """Names of deployments, with the artifact's own number of threads, that it has a file for."""
    own = artifact.manifest.deployment
    found = {own.name}
    for runtime, precision in product(_FILE_RUNTIMES, get_args(Precision)):
        deployment = Deployment(runtime, precision, own.threads)
        try:
            get_runtime(runtime).options(deployment)
        except TargetError:
            continue
        if artifact.model_file(deployment).is_file():
            found.add(deployment.name)
    return sorted(found)


def _file(artifact: Artifact, deployment: Deployment) -> Path:
    """The file that `deployment` runs."""
    path = artifact.model_file(deployment)
    if not path.is_file():
        raise UsageError(
            f"{artifact.directory} has no {path.name}, which {deployment.name} runs; "
            f"it has files for {', '.join(_runnable(artifact))}"
        )
    return path


def _check_sizes(artifact: Artifact | None, tokens: int | None, batch: int) -> None:
    """Make sure that an artifact whose sizes are fixed is timed with these and nothing else.

    Raises:
        UsageError: it would be timed with others.
    """
    fixed = None if artifact is None else artifact.manifest.fixed
    if artifact is None or fixed is None:
        return
    if fixed.batch not in (None, batch) or fixed.tokens not in (None, tokens):
        raise UsageError(f"{artifact.directory} was made for {fixed} alone, not batch {batch}, {tokens} tokens")


def artifact_inputs(
    artifact: Artifact, sequence_length: int | None, batch: int, *, seed: int
) -> tuple[int | None, dict[str, np.ndarray]]:
    """Tokens of a text (None for images), and a batch of synthetic inputs by name.

    Raises:
        UsageError: the artifact reads no texts of that length, or does not say which it was made for.
    """
    config: PretrainedConfig = load_config(str(artifact.directory))
    if inputs_of(config) == "image":
        if sequence_length is not None:
            raise UsageError(f"{artifact.directory} reads images, which have no sequence length")
        return None, synthetic_inputs(config, 0, batch, seed=seed)
    fixed = artifact.manifest.fixed
    tokens = sequence_length or (fixed and fixed.tokens) or artifact.sequence_length
    if tokens is None:
        raise UsageError(f"{artifact.directory} does not say its sequence length: give --sequence-length")
    most = longest_text(config)
    if most is not None and tokens > most:
        raise UsageError(f"{artifact.directory} reads at most {most} tokens, not {tokens}")
    return tokens, synthetic_inputs(config, tokens, batch, seed=seed)
