"""The whole job in order: `run` is the one screen; `select` exports, measures, and falls back to the next best."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import yaml

from instatune_deploy.device.fingerprint import check_target, detect
from instatune_deploy.device.settings import TimingSettings
from instatune_deploy.elastic.processes import process_count
from instatune_deploy.errors import InfeasibleBudgetError, UsageError
from instatune_deploy.job import Job, Report
from instatune_deploy.stages.confirm import Confirmation, confirm
from instatune_deploy.stages.export import Artifact, export, open_artifact
from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.front import Measured, ParetoFront, Predicted
from instatune_deploy.values.recipe import Recipe, parse_budget, read_recipe
from instatune_deploy.values.selection import Selection
from instatune_deploy.values.space import Architecture
from instatune_deploy.values.target import Target
from instatune_deploy.workspace import (
    Workspace,
    content_key,
    move_directory,
    write_json,
    write_text,
)

RECIPE_FILE = "recipe.yaml"
#: Training rows that quantisation is calibrated on.
CALIBRATION_ROWS = 128


def run(recipe: Recipe, workspace: Workspace, report: Report) -> list[Selection]:
    """Everything a recipe asks for, from the pre-trained model to verified artifacts; what `workspace` holds is reused.

    Raises:
        InfeasibleBudgetError: no candidate meets a budget; what was made stays.
        InstatuneError: anything else that is wrong; see `errors`.
    """
    if process_count() > 1:
        raise UsageError(
            "run is for one process: launch `instatune-deploy finetune` with several, then call run once, which goes on"
        )
    job = start_job(recipe, workspace, report)
    selections = []
    for name, budgets in recipe.targets.items():
        target = job.target(name)
        front = job.search(target, job.tables(target))
        selections += [select(job, target, front, str(budget)) for budget in budgets]
    write_json(workspace.path("result.json"), [selection.to_dict() for selection in selections])
    return selections


def start_job(recipe: Recipe, workspace: Workspace, report: Report) -> Job:
    """The job of a recipe whose run directory is `workspace`, checked and with the recipe written down there.

    Raises:
        UsageError: something does not fit; then nothing was written.
    """
    job = Job(recipe, workspace, report)
    job.check()
    write_text(workspace.path(RECIPE_FILE), yaml.safe_dump(recipe.model_dump(), sort_keys=False))
    return job


def open_run(directory: Path, report: Report) -> Job:
    """The job whose run directory is `directory`.

    Raises:
        RecipeError: its recipe is missing or damaged.
    """
    return Job(read_recipe(directory / RECIPE_FILE), Workspace(directory), report)


def select(job: Job, target: Target, front: ParetoFront, budget: str) -> Selection:
    """The most accurate candidate whose exported file meets `budget` when it is measured.

    Raises:
        TargetError: this machine cannot serve the target, so that nothing can be measured.
        InfeasibleBudgetError: none does; names the nearest three.
    """
    check_target(target, detect())
    recipe, workspace, percentile = job.recipe, job.workspace, job.recipe.percentile
    name = f"{percentile}-{budget.strip().replace('%', 'pct').replace(' ', '')}"
    stage = f"select-{target.name}-{name}"
    key = content_key(job.supernet_key, front.to_list(), budget, percentile, job.inputs_key)
    record_path = workspace.path("selections", f"{target.name}-{name}.json")
    artifact_path = workspace.path("artifacts", target.name, name)
    if workspace.is_done(stage, key):
        job.report(f"artifact for {percentile} {budget} on {target.name}: reused")
        return Selection.from_dict(json.loads(record_path.read_text(encoding="utf-8")))
    full, full_measured = full_artifact(job, target, front)
    number, unit = parse_budget(budget)
    budget_ms = number if unit == "ms" else number * full_measured.percentile_ms(percentile)
    full_predicted = {
        table.deployment.name: table.estimate_ms(job.supernet.full, percentile)
        for table in job.tables(target)
        if not table.missing(job.supernet.full)
    }
    # A machine's speed drifts, so a share is a share of what the same table predicts of the full network.
    predicted_limit_ms = budget_ms
    if unit == "share":
        predicted_limit_ms = number * full_predicted.get(full.manifest.deployment.name, budget_ms / number)
    missed: list[tuple[float, str]] = []
    for candidate in front.ranked(predicted_limit_ms):
        deployment, draft = candidate.deployment, workspace.path(".drafts", name)
        artifact = export_network(job, target, candidate.architecture, deployment, draft, candidate.predicted)
        confirmation = _confirm(job, artifact, full, deployment)
        measured, beside_ms = confirmation.measured, confirmation.reference.percentile_ms(percentile)
        # A share is held against the full network as it ran in the same rounds, where both run alike.
        same = unit == "share" and deployment == full.manifest.deployment
        limit_ms = number * beside_ms if same else budget_ms
        job.report(
            f"measured {percentile} {measured.percentile_ms(percentile):.3g} ms (limit {limit_ms:.3g}, predicted "
            f"{candidate.predicted.latency_ms:.3g}), {recipe.metric} {measured.metric:.4f} on {measured.n} samples of the "
            f"report split: {candidate.architecture} on {deployment.name}"
        )
        if measured.percentile_ms(percentile) > limit_ms:
            missed.append((measured.percentile_ms(percentile), f"{candidate.architecture} on {deployment.name}"))
            continue
        artifact.with_measured(measured)
        move_directory(draft, artifact_path)
        selection = Selection(
            target=target.name, budget=budget, percentile=percentile, limit_ms=limit_ms,
            artifact=str(artifact_path.relative_to(workspace.root)), architecture=str(candidate.architecture),
            deployment=deployment.name, macs=artifact.manifest.macs, full_macs=full.manifest.macs,
            predicted=candidate.predicted, measured=measured, full=full_measured,
            full_deployment=full.manifest.deployment.name, full_beside_ms=beside_ms,
            full_beside_predicted_ms=full_predicted.get(deployment.name), tried=len(missed) + 1,
        )  # fmt: skip
        write_json(record_path, selection.to_dict())
        workspace.mark_done(stage, key, [artifact_path, record_path])
        return selection
    shutil.rmtree(workspace.path(".drafts"), ignore_errors=True)
    nearest = "; ".join(f"{what}: {value:.3g} ms measured {percentile}" for value, what in sorted(missed)[:3])
    raise InfeasibleBudgetError(f"no candidate meets {budget} ({budget_ms:.3g} ms); nearest: {nearest}")


def full_artifact(job: Job, target: Target, front: ParetoFront) -> tuple[Artifact, Measured]:
    """The full network's artifact and what was measured of it on its fastest deployment for `target`.

    It is measured anew for every front, so that a run's comparisons are of one time and machine.
    """
    percentile = job.recipe.percentile
    stage, path = f"full-{target.name}", job.workspace.path("artifacts", target.name, "full")
    key = content_key(job.supernet_key, front.to_list(), percentile, job.inputs_key)
    if job.workspace.is_done(stage, key):
        artifact = open_artifact(path)
        if artifact.manifest.measured is not None:
            return artifact, artifact.manifest.measured
    largest = job.supernet.space.largest
    fastest = min(job.tables(target), key=lambda table: table.estimate_ms(largest, percentile)).deployment
    draft = job.workspace.path(".drafts", "full")
    artifact = export_network(job, target, job.supernet.full, fastest, draft, None)
    measured = _confirm(job, artifact, artifact, fastest).measured
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
    predicted: Predicted | None, *, tune_epochs: float = 0,
) -> Artifact:  # fmt: skip
    """The artifact of any architecture of the space, or of the full network, in `directory`.

    Args:
        tune_epochs: passes over the training rows for which it is tuned alone first; its weights are then its own.
    """
    rows = job.data.search.rows.select(range(min(32, len(job.data.search))))
    _, samples = next(job.processor.batches(rows, 32))
    train = job.data.train.rows.select(range(min(CALIBRATION_ROWS, len(job.data.train))))
    calibration = [inputs for _, inputs in job.processor.batches(train, 8)]
    job.report(f"exporting {architecture} for {deployment.name}")
    return export(
        job.tuned(architecture, tune_epochs) if tune_epochs else job.supernet.extract(architecture), architecture, deployment, job.shape, job.processor, samples, calibration,
        directory,
        target=target.name, metric=job.recipe.metric, predicted=predicted,
    )  # fmt: skip


def confirmed(job: Job, artifact: Artifact) -> Artifact:
    """The same artifact after it was measured on the report split and on this machine."""
    return artifact.with_measured(_confirm(job, artifact, artifact, artifact.manifest.deployment).measured)


def _confirm(job: Job, artifact: Artifact, full: Artifact, deployment: Deployment) -> Confirmation:
    return confirm(
        artifact.model_file(deployment), full.model_file(deployment), deployment, job.report_split, job.processor,
        job.prober.inputs(deployment), metric=job.recipe.metric, seed=job.recipe.seed,
        settings=TimingSettings(
            seconds=job.recipe.profile.confirm_seconds, wait_s=job.recipe.profile.wait_seconds, min_rounds=12
        ),
    )  # fmt: skip
