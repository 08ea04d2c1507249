"""An artifact checked again, wherever it is: its files, their outputs, its metric, its latency."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from instatune_deploy.benching import artifact_inputs, check_machine_runs
from instatune_deploy.data.dataset import Split
from instatune_deploy.data.processor import Processor
from instatune_deploy.device.fingerprint import detect
from instatune_deploy.device.lowering.variants import parts
from instatune_deploy.device.settings import TimingSettings
from instatune_deploy.device.timing import measure
from instatune_deploy.elastic.subnetwork import load_subnetwork
from instatune_deploy.errors import ArtifactError, TargetError
from instatune_deploy.job import Job
from instatune_deploy.stages.confirm import measured_metric
from instatune_deploy.stages.export import Artifact, check_parity, expected_outputs, file_deployments, open_artifact
from instatune_deploy.values.latency import LatencySample, Machine
from instatune_deploy.values.manifest import Parity

Report = Callable[[str], None]

#: Inputs on which outputs are compared.
ROWS = 32
#: How far (a fraction) the metric may be below the manifest's: another CPU's arithmetic decides a few close rows otherwise.
METRIC_TOLERANCE = 0.005
#: How much (a fraction) the arg-max agreement of a file in a lower precision may be below the manifest's, on other inputs.
AGREEMENT_TOLERANCE = 0.1


@dataclass(frozen=True)
class CheckedFile:
    """A model file: its size, and its outputs against those of the network in ``model.safetensors``, found now."""

    name: str
    size_bytes: int
    parity: Parity


@dataclass(frozen=True)
class Verification:
    """What was found of an artifact whose files are those of its manifest.

    Args:
        metric: of the file of its deployment, on the report split; None: not measured.
        n: samples of the report split; None: there was none, and outputs were compared on synthetic inputs.
        latency: of that file on this machine; None: not measured.
        unchecked: a line for everything that could not be looked at here, and why.
        problems: a line for everything that does not hold.
    """

    artifact: Artifact
    files: tuple[CheckedFile, ...]
    metric: float | None
    n: int | None
    latency: LatencySample | None
    unchecked: tuple[str, ...]
    problems: tuple[str, ...]

    @property
    def inputs(self) -> str:
        """What outputs were compared on."""
        return "synthetic" if self.n is None else "report split"

    def to_dict(self) -> dict[str, Any]:
        """For one JSON object; `manifest` is what the artifact says of itself, all else was found now."""
        manifest, latency = self.artifact.manifest, self.latency
        return {
            "artifact": str(self.artifact.directory), "architecture": manifest.architecture,
            "deployment": manifest.deployment.name, "inputs": self.inputs,
            "files": [asdict(file) for file in self.files],
            "metric": None if self.metric is None else {
                "name": manifest.metric, "value": self.metric, "split": "report", "n": self.n,
            },
            "latency": None if latency is None else {
                "p50_ms": latency.p50_ms, "p90_ms": latency.p90_ms, "p99_ms": latency.p99_ms, "n": latency.n,
            },
            "unchecked": list(self.unchecked),
            "manifest": {
                "parity": {name: asdict(parity) for name, parity in manifest.parity.items()},
                "measured": None if manifest.measured is None else asdict(manifest.measured),
            },
            "problems": list(self.problems),
        }  # fmt: skip


def verify_artifact(
    directory: Path, *, job: Job | None = None, latency: bool = True, seconds: float = 10.0, seed: int = 0,
    report: Report,
) -> Verification:  # fmt: skip
    """Check the artifact in `directory`: hashes first, then outputs, metric and latency.

    Args:
        job: of the run that made it, for its report split; None: outputs are compared on synthetic inputs.
        latency: whether its latency is measured, for `seconds` at most.

    Raises:
        ArtifactError: it is not an artifact, a file was changed, or its outputs differ from its network's in fp32.
        CheckpointError: its weights are damaged.
    """
    artifact = open_artifact(directory)
    manifest = artifact.manifest
    report(f"{len(manifest.files)} files are those of the manifest")
    split = None if job is None else job.report_split
    tokens, synthetic = artifact_inputs(artifact, None, ROWS, seed=seed)
    # A text's length is that of the longest of the split where there is one.
    processor = Processor(str(directory), manifest.task, tokens or 1) if job is None else job.processor  # type: ignore[arg-type]
    samples = synthetic if split is None else next(processor.batches(split.rows, ROWS))[1]
    problems, unchecked = list[str](), list[str]()
    machine = detect()
    files = _check_files(artifact, processor, samples, machine, problems, unchecked, report)
    metric, sample = None, None
    try:
        check_machine_runs(manifest.deployment, machine)
    except TargetError as error:
        unchecked.append(f"metric and latency: {error}")
    else:
        if split is None:
            unchecked.append(f"{manifest.metric}: there is no report split; give the run that made it")
        else:
            metric = _metric(artifact, split, processor, problems, report)
        if latency:
            sample = _latency(artifact, seconds, seed)
    n = None if split is None else len(split)
    return Verification(artifact, tuple(files), metric, n, sample, tuple(unchecked), tuple(problems))


def _check_files(
    artifact: Artifact, processor: Processor, samples: dict[str, np.ndarray], machine: Machine, problems: list[str],
    unchecked: list[str], report: Report,
) -> list[CheckedFile]:  # fmt: skip
    """Each model file held against the network in the artifact's own weights."""
    network = load_subnetwork(artifact.directory)
    expected = expected_outputs(network, samples, processor.head)
    files = []
    for name, deployment in file_deployments(artifact.manifest.deployment).items():
        path = artifact.directory / name
        try:
            check_machine_runs(deployment, machine)
        except TargetError as error:
            unchecked.append(f"{name}: {error}")
            continue
        found = check_parity(path, deployment, samples, expected, processor.head)
        size = sum(part.stat().st_size for part in parts(path))
        files.append(CheckedFile(name, size, found))
        report(f"{name}: largest absolute error {found.max_abs_error:.2g} on {found.n} inputs")
        before = artifact.manifest.parity[name].argmax_agreement
        now = found.argmax_agreement
        if now is not None and before is not None and now < before - AGREEMENT_TOLERANCE:
            problems.append(
                f"{name}: decides {100 * now:.0f}% of {found.n} inputs as its network does, {100 * before:.0f}% when it was made"
            )
    return files


def _metric(artifact: Artifact, split: Split, processor: Processor, problems: list[str], report: Report) -> float:
    """The metric on the report split; a problem if it is not what the manifest says."""
    manifest = artifact.manifest
    value = measured_metric(artifact.model_file(), manifest.deployment, split, processor, manifest.metric)
    report(f"{manifest.metric} {value:.4f} on {len(split)} samples of the report split")
    if manifest.measured is None:
        return value
    if manifest.measured.n != len(split):
        problems.append(
            f"the manifest's {manifest.metric} is of {manifest.measured.n} samples, the split has {len(split)}"
        )
    elif value < manifest.measured.metric - METRIC_TOLERANCE:
        problems.append(f"{manifest.metric} is {value:.4f}, and {manifest.measured.metric:.4f} when it was made")
    return value


def _latency(artifact: Artifact, seconds: float, seed: int) -> LatencySample:
    """The latency of the deployment's file here."""
    deployment = artifact.manifest.deployment
    inputs = artifact_inputs(artifact, None, deployment.batch, seed=seed)[1]
    settings = TimingSettings(seconds=seconds, wait_s=0, min_rounds=12)
    return measure({"artifact": artifact.model_file()}, inputs, deployment, seed=seed, settings=settings).samples[
        "artifact"
    ]


def require(found: Verification) -> None:
    """Make sure that everything holds.

    Raises:
        ArtifactError: something does not; says what.
    """
    if found.problems:
        raise ArtifactError(f"{found.artifact.directory}: {'; '.join(found.problems)}")
