"""A job's networks as files: exported, measured beside the full network, and the full network that budgets are relative to."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from instatune_deploy.data.dataset import Split
from instatune_deploy.data.processor import Processor
from instatune_deploy.device.lowering.gate import Gate
from instatune_deploy.device.lowering.onnx import OPSET
from instatune_deploy.device.lowering.variants import ONNX, parts
from instatune_deploy.device.settings import TimingSettings
from instatune_deploy.job import Job
from instatune_deploy.stages.confirm import Confirmation, confirm, measured_metric
from instatune_deploy.stages.evaluate.runs import metric_of
from instatune_deploy.stages.export import Artifact, export, open_artifact, write_file
from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.fixed import FixedSizes
from instatune_deploy.values.front import Measured, ParetoFront, Predicted
from instatune_deploy.values.hashing import content_key
from instatune_deploy.values.objectives import Objective
from instatune_deploy.values.sizes import memory_bytes
from instatune_deploy.values.space import Architecture
from instatune_deploy.values.target import Target
from instatune_deploy.workspace import move_directory


class FullNetwork:
    """What budgets are relative to: the full network on its fastest deployment of a target, its file and its figures."""

    def __init__(self, job: Job, target: Target, front: ParetoFront) -> None:
        self.job, self.front = job, front
        self.artifact, self.figures = full_artifact(job, target, front)
        self._spare = tempfile.TemporaryDirectory(prefix="instatune-full-")
        self.predicted_ms = {
            table.deployment.name: table.estimate_ms(job.supernet.full, job.recipe.percentile)
            for table in job.tables(target)
            if not table.missing(job.supernet.full)
        }

    def file(self, deployment: Deployment) -> Path:
        """What `deployment` loads of the full network; made for as long as this lives where the artifact has no such file."""
        own = self.artifact.model_file(deployment)
        if own.is_file():
            return own
        folder = Path(self._spare.name)
        if not (folder / ONNX).is_file():
            shutil.copyfile(self.artifact.directory / ONNX, folder / ONNX)
        tensors = {name: torch.from_numpy(array) for name, array in _samples(self.job).items()}
        network = self.job.supernet.extract(self.job.supernet.full)
        return write_file(network, tensors, folder, deployment, self.job.calibration)

    def predicted(self, objective: Objective) -> float:
        """The value to hold predictions against: a machine's speed drifts, so a share of the latency is a share of what
        the same table predicts, and a loss is against the metric that the search knows."""
        if objective.kind == "metric":
            return full_metric(self.job, self.front)
        if objective.kind == "latency":
            return self.predicted_ms.get(self.artifact.manifest.deployment.name, self.measured(objective))
        return self.measured(objective)

    def measured(self, objective: Objective, beside_ms: float | None = None) -> float:
        """The value to hold measurements against; `beside_ms` is its latency in their own rounds, if it was in them.

        What is lost is lost against fp32, as in the search: the fastest deployment may have lost a part of it itself.
        """
        if objective.kind == "metric" and self.artifact.manifest.deployment.arithmetic != "fp32":
            return self.job.full_metric
        if objective.kind == "latency" and beside_ms is not None:
            return beside_ms
        return measured_value(self.job, self.artifact, self.figures, objective)


def full_metric(job: Job, front: ParetoFront) -> float:
    """The full network's metric as the search knows it, on the search split."""
    largest = job.supernet.space.largest
    known = [
        c.predicted.metric for c in front.candidates if c.architecture == largest and c.deployment.arithmetic == "fp32"
    ]
    return max(known) if known else job.evaluator([largest])[0].value


def measured_value(job: Job, artifact: Artifact, measured: Measured, objective: Objective) -> float:
    """A value of an exported file: measured, but for multiply-accumulates and parameters, which are exact, and the
    memory, which is an estimate."""
    manifest = artifact.manifest
    if objective.kind == "metric":
        return measured.metric
    if objective.kind == "latency":
        return measured.percentile_ms(job.recipe.percentile)
    if objective.kind == "memory":
        return memory_bytes(job.shape, Architecture.parse(manifest.architecture), manifest.deployment)
    if objective.kind == "size":
        return sum(part.stat().st_size for part in parts(artifact.model_file()))
    return {"macs": manifest.macs, "parameters": manifest.parameters}[objective.kind]


def full_artifact(job: Job, target: Target, front: ParetoFront) -> tuple[Artifact, Measured]:
    """The full network's artifact and what was measured of it on its fastest deployment for `target`.

    It is measured anew for every front, so that a run's comparisons are of one time and machine.
    """
    percentile = job.recipe.percentile
    stage, path = f"full-{target.name}", job.workspace.path("artifacts", target.name, "full")
    key = content_key(job.supernet_key, front.to_list(), percentile, job.confirmed_by)
    if job.workspace.is_done(stage, key):
        artifact = open_artifact(path)
        if artifact.manifest.measured is not None:
            return artifact, artifact.manifest.measured
    largest = job.supernet.space.largest
    fastest = min(job.tables(target), key=lambda table: table.estimate_ms(largest, percentile)).deployment
    draft = job.workspace.path(".drafts", "full")
    artifact = export_network(job, target, job.supernet.full, fastest, draft, None)
    measured = confirm_beside(job, target, artifact, artifact.model_file(fastest), fastest).measured
    artifact.with_measured(measured)
    move_directory(draft, path)
    job.workspace.mark_done(stage, key, [path])
    job.report(
        f"full network on {fastest.name}: measured {percentile} {measured.percentile_ms(percentile):.3g} ms, "
        f"{job.recipe.metric} {measured.metric:.4f} on {measured.n} samples of the report split"
    )
    return open_artifact(path), measured


def export_network(
    job: Job, target: Target, architecture: Architecture, deployment: Deployment, directory: Path,
    predicted: Predicted | None, *, tune_epochs: float = 0, max_drop: float | None = None, opset: int = OPSET,
    fixed: FixedSizes | None = None,
) -> Artifact:  # fmt: skip
    """The artifact of any architecture of the space, or of the full network, in `directory`.

    Args:
        tune_epochs: passes over the training rows for which it is tuned alone first; where it does better then (`better_of`), its
            weights are its own.
        max_drop: the most points that an int8 file may lose against fp32, on the search split; None: whatever it does.
        opset: ONNX operator set, see `export_onnx`.
        fixed: sizes that every call of its files will have; None: any.
    """
    gate = None
    if max_drop is not None:
        gate = Gate(
            max_drop / 100,
            lambda file, how: measured_metric(
                file, how, job.data.search, job.processor, job.recipe.metric, job.executor.site(target)
            ),
            job.report,
        )
    job.report(f"exporting {architecture} for {deployment.name}")
    return export(
        _network(job, architecture, tune_epochs), architecture, deployment, job.shape, job.processor, _samples(job),
        job.calibration, directory,
        target=target.name, metric=job.recipe.metric, predicted=predicted, gate=gate, opset=opset, fixed=fixed,
        doc_stride=job.recipe.data.doc_stride if job.processor.head.traces == "characters" else None,
        made_from=job.contents | {"super-network": job.supernet_key},
    )  # fmt: skip


def _network(job: Job, architecture: Architecture, tune_epochs: float) -> PreTrainedModel:
    """As it is in the super-network, or tuned alone."""
    shared = job.supernet.extract(architecture)
    if not tune_epochs:
        return shared
    return better_of(
        job.tuned(architecture, tune_epochs), shared, job.data.search, job.processor, job.recipe.metric, name=str(architecture),
        report=job.report,
    )  # fmt: skip


def better_of(
    tuned: PreTrainedModel, before: PreTrainedModel, split: Split, processor: Processor, metric: str, *, name: str,
    report: Callable[[str], None],
) -> PreTrainedModel:  # fmt: skip
    """The one of two networks that does better on `split`, and `tuned` where both do as well.

    A network that lost little to the sharing of weights loses more to one training of its own than it gains: of five networks
    of MiniLM-L6 on SST-2 one gained, by this split as by the report split.

    Args:
        split: the search split: what is reported later must not choose.
        metric: one that fits the task, the more the better, see `data.metrics`.
        name: of the network, for the report.
    """
    after, shared = (metric_of(network, split, processor, metric) for network in (tuned, before))
    kept = "" if after >= shared else "; it keeps what it had"
    report(
        f"{name}: {metric} {after:.4f} tuned alone, {shared:.4f} before, on {len(split)} samples of the {split.name} split{kept}"
    )
    return before if kept else tuned


def _samples(job: Job) -> dict[str, np.ndarray]:
    """Real inputs by name, batch first, to export with and to compare outputs on."""
    rows = job.data.search.rows.select(range(min(32, len(job.data.search))))
    return next(job.processor.batches(rows, 32))[1]


def confirmed(job: Job, target: Target, artifact: Artifact) -> Artifact:
    """The same artifact after it was measured on the report split and on the target's machine."""
    deployment = artifact.manifest.deployment
    found = confirm_beside(job, target, artifact, artifact.model_file(deployment), deployment)
    return artifact.with_measured(found.measured)


def confirm_beside(
    job: Job, target: Target, artifact: Artifact, full_file: Path, deployment: Deployment
) -> Confirmation:
    """An artifact's file measured on the report split and, in the same rounds as the full network's, on the target's
    machine."""
    return confirm(
        artifact.model_file(deployment), full_file, deployment, job.report_split, job.processor,
        job.prober.inputs(deployment), metric=job.recipe.metric, seed=job.recipe.seed,
        settings=TimingSettings(
            seconds=job.recipe.profile.confirm_seconds, wait_s=job.recipe.profile.wait_seconds, min_rounds=12
        ),
        site=job.executor.site(target),
    )  # fmt: skip
