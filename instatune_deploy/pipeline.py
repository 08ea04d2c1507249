"""The whole job in order: `run` is the one screen; `select` exports, measures, and falls back to the next best."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from instatune_deploy.elastic.processes import is_main_process, process_count
from instatune_deploy.errors import InfeasibleBudgetError, PrecisionLossError, UsageError
from instatune_deploy.executor import LOCAL, Executor
from instatune_deploy.exporting import FullNetwork, confirm_beside, export_network, measured_value
from instatune_deploy.job import Job, Report
from instatune_deploy.planning.steps import Step, plan_steps
from instatune_deploy.recalling import RECIPE_FILE, run_recipe
from instatune_deploy.stages.export import Artifact
from instatune_deploy.values.budget import Budget, bounds_of, excess, improving, missed, nearest, shortlist, shown
from instatune_deploy.values.front import Candidate, Measured, ParetoFront
from instatune_deploy.values.progress import Begun
from instatune_deploy.values.recipe import Recipe
from instatune_deploy.values.selection import Considered, Selection, reused_line, selection_name
from instatune_deploy.values.target import Target
from instatune_deploy.values.turns import Turns
from instatune_deploy.workspace import (
    Workspace,
    move_directory,
    read_json,
    write_json,
    write_text,
)

#: How far below a limit on the metric a network may be predicted and still be tried where it is tuned alone first.
TUNING_GAIN = 0.01


def run(
    recipe: Recipe,
    workspace: Workspace,
    report: Report,
    *,
    planned: Callable[[Job, Sequence[Step]], None] | None = None,
    executor: Executor = LOCAL,
) -> list[Selection]:
    """Everything a recipe asks for, from the pre-trained model to verified artifacts; what `workspace` holds is reused.

    Args:
        executor: where sub-networks are evaluated and targets measured.
        planned: is told the stages before the first begins.

    Raises:
        InfeasibleBudgetError: no candidate meets a budget; what was made stays, and it has the selections for others.
        InstatuneError: anything else that is wrong; see `errors`.
    """
    if process_count() > 1:
        raise UsageError(
            "run is for one process: launch `instatune-deploy finetune` with several, then call run once, which goes on"
        )
    job, steps = _begin(recipe, workspace, report, executor)
    if planned is not None:
        planned(job, steps)
    stages = _Stages(steps, report)
    with workspace.locked():
        selections, unmet = list[Selection](), list[str]()
        targets = {name: job.target(name) for name in recipe.targets}
        stages.begin("teacher", "space", "super-network")
        job.supernet  # noqa: B018  makes it
        for target in targets.values():
            stages.begin("table", target=target.name)
            job.tables(target)
        stages.begin("front")
        fronts = job.search(list(targets.values()))
        for name, budgets in recipe.targets.items():
            target = targets[name]
            stages.begin("selection", target=target.name)
            for budget in (Budget.parse(text, metric=recipe.metric) for text in budgets):
                try:
                    selections.append(select(job, target, fronts[target.name], budget))
                except InfeasibleBudgetError as error:
                    unmet.append(f"{target.name}, {budget.text}: {error}")
                    report(unmet[-1])
        write_json(workspace.path("result.json"), [selection.to_dict() for selection in selections])
    if unmet:
        budgets_met = f"{len(selections)} of {len(selections) + len(unmet)} budgets are met"
        raise InfeasibleBudgetError(f"{budgets_met}; not {'; nor '.join(unmet)}", selections)
    return selections


def start_job(recipe: Recipe, workspace: Workspace, report: Report) -> Job:
    """The job of a recipe whose run directory is `workspace`, checked and with the recipe written down there.

    Raises:
        UsageError: something does not fit, or another process works on it; then nothing was written.
    """
    return _begin(recipe, workspace, report, LOCAL)[0]


def _begin(recipe: Recipe, workspace: Workspace, report: Report, executor: Executor) -> tuple[Job, list[Step]]:
    """See `start_job`; with the stages as they were before the first begins, where this is the main process."""
    job = Job(recipe, workspace, report, executor)
    job.check()
    steps: list[Step] = []
    if is_main_process():
        # One process reads and hashes all inputs; the others of a training that is distributed are told nothing.
        steps = plan_steps(job)
        for step in steps:
            report(f"plan: {step}")
        workspace.begin()
        with workspace.locked():
            # Elsewhere a path that is relative to this directory would name nothing, or something else.
            located = recipe.located().model_dump()
            write_text(workspace.path(RECIPE_FILE), yaml.safe_dump(located, sort_keys=False))
    return job, steps


class _Stages:
    """Says which stage begins, of those that are to be done."""

    def __init__(self, steps: Sequence[Step], report: Report) -> None:
        self.todo, self.report = [step for step in steps if step.state != "reused"], report

    def begin(self, *kinds: str, target: str | None = None) -> None:
        """The first stage of one of these kinds begins, of `target` if one is named."""
        for number, step in enumerate(self.todo, start=1):
            if step.kind in kinds and target in (None, step.target):
                self.report(Begun(step.name, number, len(self.todo)))
                return


def open_run(directory: Path, report: Report, executor: Executor = LOCAL) -> Job:
    """The job whose run directory is `directory`, its work done by `executor`.

    Raises:
        RecipeError: its recipe is missing or damaged.
    """
    return Job(run_recipe(directory), Workspace(directory), report, executor)


def select(job: Job, target: Target, front: ParetoFront, budget: Budget) -> Selection:
    """The candidate that `budget` prefers of those whose exported files keep it when they are measured.

    Those that are predicted to keep it even at the upper end of their latency's interval are tried first.

    Raises:
        TargetError: the target's machine cannot serve it, so that nothing can be measured.
        UsageError: the budget is on the latency in another place, which is not measured here; or another process works
            on the run.
        InfeasibleBudgetError: none does; names the nearest three.
    """
    job.executor.site(target).check(target)
    with job.workspace.locked():
        return _select(job, target, front, budget)


def _select(job: Job, target: Target, front: ParetoFront, budget: Budget) -> Selection:
    workspace, percentile = job.workspace, job.recipe.percentile
    if places := [limit.objective.place for limit in budget.limits if limit.objective.place]:
        raise UsageError(f"select measures on {target.name}: a budget cannot be on {places[0]}")
    name = f"{percentile}-{budget.file_name}"
    stage = job.selection_stage(target, budget)
    key = job.selection_key(front, budget)
    record_path = workspace.path("selections", f"{selection_name(target.name, percentile, budget)}.json")
    artifact_path = workspace.path("artifacts", target.name, name)
    if workspace.is_done(stage, key):
        job.report(reused_line(target.name, percentile, budget))
        return read_json(record_path, Selection.from_dict)
    reference = FullNetwork(job, target, front)
    promised = bounds_of(budget.limits, reference.predicted)
    gain = TUNING_GAIN if job.recipe.tune_epochs else 0.0
    # What a candidate must be predicted to keep to be tried.
    hoped = [replace(b, number=b.number - gain) if b.objective.kind == "metric" else b for b in promised]
    choices = shortlist(front.candidates, hoped, budget.prefer)
    if not choices:
        near = nearest(front.candidates, promised, percentile)
        raise InfeasibleBudgetError(f"nothing is predicted to meet {budget.text}; nearest: {near}")
    # Tuning a candidate takes minutes, and a limit on the metric is what the fastest and smallest miss.
    limited = any(bound.objective.kind == "metric" for bound in promised)
    halving = bool(job.recipe.tune_epochs) and limited and budget.prefer != "best"
    if halving:
        choices = improving(choices, budget.prefer)
    turns, fell = Turns(len(choices), halving=halving), list[tuple[float, Considered]]()
    best: Attempt | None = None
    while (number := turns.next()) is not None:
        candidate, draft = choices[number], workspace.path(".drafts", f"{name}-{number}")
        known = missed_before(job, target, candidate, budget, reference)
        try:
            if known is None:
                attempt = try_candidate(job, target, candidate, budget, reference, draft)
                miss, why, costs = attempt.excess, f"measured {attempt.text}", attempt.costs
            else:
                miss, why, costs = *known, False
        except PrecisionLossError as error:
            miss, why, costs = math.inf, str(error), False
            job.report(f"{candidate.architecture} on {candidate.deployment.name}: {error}")
        turns.tell(number, does=miss <= 0, costs=costs)
        if miss <= 0:
            best = attempt
        else:
            fell.append((miss, Considered.of(candidate, why)))
            shutil.rmtree(draft, ignore_errors=True)
    if best is None or turns.chosen is None:
        shutil.rmtree(workspace.path(".drafts"), ignore_errors=True)
        near = "; ".join(
            f"{c.architecture} on {c.deployment}: {c.why}" for _, c in sorted(fell, key=lambda p: p[0])[:3]
        )
        raise InfeasibleBudgetError(f"no candidate meets {budget.text}; nearest: {near}")
    candidate = choices[turns.chosen]
    best.artifact.with_measured(best.measured)
    move_directory(best.artifact.directory, artifact_path)
    shutil.rmtree(workspace.path(".drafts"), ignore_errors=True)
    beyond = sorted((c for c in front.candidates if excess(c, hoped) > 0), key=lambda c: excess(c, hoped))[:3]
    untried = [c for i, c in enumerate(choices) if i > turns.chosen and i not in turns.tried]
    manifest, full = best.artifact.manifest, reference.artifact.manifest
    selection = Selection(
        target=target.name, budget=budget.text, percentile=percentile, limit_ms=best.limit_ms,
        artifact=str(artifact_path.relative_to(workspace.root)), architecture=str(candidate.architecture),
        deployment=candidate.deployment.name, macs=manifest.macs, full_macs=full.macs,
        predicted=candidate.predicted, measured=best.measured, full=reference.figures,
        full_deployment=full.deployment.name, full_beside_ms=best.beside_ms,
        full_beside_predicted_ms=reference.predicted_ms.get(candidate.deployment.name), tried=len(turns.tried),
        runners_up=tuple(Considered.of(c, "next to be tried") for c in untried[:3]),
        fell=(
            *(considered for _, considered in fell),
            *(Considered.of(c, f"predicted to miss: {missed(c, promised)}") for c in beyond),
        ),
    )  # fmt: skip
    write_json(record_path, selection.to_dict())
    workspace.mark_done(stage, key, [artifact_path, record_path], made_from=job.selection_parts(front, budget))
    return selection


@dataclass(frozen=True)
class Attempt:
    """An exported candidate held against a budget: what was measured of it and, in the same rounds, of the full network
    (`beside_ms`), by what share it misses the limit it misses most (`excess`), whether it misses limits on costs alone
    (`costs`), and all that in words (`text`)."""

    artifact: Artifact
    measured: Measured
    beside_ms: float
    limit_ms: float | None
    excess: float
    costs: bool
    text: str


def missed_before(
    job: Job, target: Target, candidate: Candidate, budget: Budget, reference: FullNetwork
) -> tuple[float, str] | None:
    """By what share a candidate misses a limit on the metric, and that in words, if it was measured for another budget.

    What it costs is measured anew for every budget; its metric on the report split stays what it is.
    """
    metric = job.confirmed.get((target.name, candidate.architecture, candidate.deployment))
    if metric is None:
        return None
    limits = [limit for limit in budget.limits if limit.objective.kind == "metric"]
    missed_bounds = [bound for bound in bounds_of(limits, reference.measured) if bound.excess(metric) > 0]
    if not missed_bounds:
        return None
    text = ", ".join(f"{bound.objective} {shown(bound.objective, metric)} ({bound})" for bound in missed_bounds)
    job.report(f"measured for another budget: {text}: {candidate.architecture} on {candidate.deployment.name}")
    return max(bound.excess(metric) for bound in missed_bounds), f"measured {text}"


def try_candidate(
    job: Job, target: Target, candidate: Candidate, budget: Budget, reference: FullNetwork, draft: Path
) -> Attempt:
    """Export a candidate into `draft` and measure whether it keeps a budget."""
    deployment, percentile = candidate.deployment, job.recipe.percentile
    artifact = export_network(
        job, target, candidate.architecture, deployment, draft, candidate.predicted,
        tune_epochs=job.recipe.tune_epochs, max_drop=job.recipe.max_drop,
    )  # fmt: skip
    confirmation = confirm_beside(job, target, artifact, reference.file(deployment), deployment)
    measured, beside_ms = confirmation.measured, confirmation.reference.percentile_ms(percentile)
    job.confirmed[target.name, candidate.architecture, deployment] = measured.metric
    # A share is held against the full network as it ran in the same rounds, where both run alike.
    alike = deployment == reference.artifact.manifest.deployment
    bounds = bounds_of(budget.limits, lambda o: reference.measured(o, beside_ms if alike else None))
    values = [measured_value(job, artifact, measured, bound.objective) for bound in bounds]
    text = ", ".join(f"{b.objective} {shown(b.objective, v)} ({b})" for b, v in zip(bounds, values, strict=True))
    job.report(
        f"measured {percentile} {measured.percentile_ms(percentile):.3g} ms (predicted {candidate.predicted.latency_ms:.3g}), "
        f"{job.recipe.metric} {measured.metric:.4f} on {measured.n} samples of the report split; of the budget: {text}: "
        f"{candidate.architecture} on {deployment.name}"
    )
    limit_ms = next((bound.number for bound in bounds if bound.objective.kind == "latency"), None)
    excesses = [bound.excess(value) for bound, value in zip(bounds, values, strict=True)]
    missed_kinds = {b.objective.kind for b, excess in zip(bounds, excesses, strict=True) if excess > 0}
    costs = bool(missed_kinds) and "metric" not in missed_kinds
    return Attempt(artifact, measured, beside_ms, limit_ms, max(excesses), costs, text)
