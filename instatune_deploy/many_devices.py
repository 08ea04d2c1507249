"""One super-network for many devices: a network for every target, batch size and budget of a fleet's plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from instatune_deploy.errors import InfeasibleBudgetError, TargetError, UsageError
from instatune_deploy.executor import LOCAL, Executor
from instatune_deploy.exporting import full_metric
from instatune_deploy.job import Job
from instatune_deploy.pipeline import open_run, select
from instatune_deploy.values.budget import Budget, bounds_of, nearest, shortlist
from instatune_deploy.values.costs import Costs
from instatune_deploy.values.fleet_plan import FleetPlan
from instatune_deploy.values.front import ParetoFront
from instatune_deploy.values.matrix import Cell, Matrix
from instatune_deploy.values.progress import Begun
from instatune_deploy.values.target import Target, in_batches
from instatune_deploy.workspace import check_run, write_json

Report = Callable[[str], None]


def fill_matrix(
    plan: FleetPlan, name: str, report: Report, *, export: bool = True, executor: Executor = LOCAL
) -> tuple[Matrix, Path]:
    """A network for every cell of a plan called `name`, and the file in the run's directory that the matrix was written to.

    The run's evaluations serve all targets. Each gets a table for its deployments, found or measured now, a front, and
    for each budget an artifact that was measured to keep it. What was done before is reused, also where this was stopped.
    A target that no site serves is predicted by foreign tables, where the plan allows them.

    Args:
        export: whether to export and measure; else all cells are predicted.
        executor: where targets are measured.

    Raises:
        UsageError: the run was not searched, or the plan does not fit it.
        TargetError: there is no table of a target that no site serves.
    """
    job = _searched(plan, report, executor)
    budgets = plan.wanted(job.recipe.metric)
    if placed := [b.text for b in budgets if any(limit.objective.place for limit in b.limits)]:
        raise UsageError(f"budget {placed[0]!r}: a fleet's budgets hold on each of its targets, not in one place")
    named = [(given, job.target(given)) for given in plan.targets]
    rows = [(given, batch, in_batches(target, batch)) for given, target in named for batch in plan.batches]
    _check_names([target for _, _, target in rows])
    cells: list[Cell] = []
    with job.workspace.locked():
        for number, (given, batch, target) in enumerate(rows, start=1):
            report(Begun(target.name, number, len(rows)))
            cells += _row(job, given, batch, target, budgets, export)
        matrix = Matrix(plan.run, job.recipe.metric, job.recipe.percentile, tuple(cells))
        path = job.workspace.path("fleets", f"{name}.json")
        write_json(path, matrix.to_dict())
    return matrix, path


def _searched(plan: FleetPlan, report: Report, executor: Executor) -> Job:
    """The job of the plan's run.

    Raises:
        UsageError: there is no such run, or none of its sub-networks was evaluated yet.
    """
    check_run(Path(plan.run))
    job = open_run(Path(plan.run), report, executor)
    job.recipe = job.recipe.with_foreign_tables(plan.foreign_tables).changed(percentile=plan.percentile or None)
    if not job.workspace.path("evaluations.jsonl").is_file():
        raise UsageError(
            f"{plan.run}: its sub-networks were not searched yet: `instatune-deploy run {plan.run}/recipe.yaml --out {plan.run}`"
        )
    return job


def _check_names(targets: Sequence[Target]) -> None:
    """Make sure that no two targets would overwrite each other's files.

    Raises:
        UsageError: two have one name.
    """
    names = [target.name for target in targets]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"two targets of the plan are called {twice[0]}: give them different names")


def _row(
    job: Job, name: str, batch: int, target: Target, budgets: Sequence[Budget], export: bool
) -> Iterator[Cell]:  # fmt: skip
    """The cells of a target and batch."""
    front = job.search([target], evaluate=False)[target.name]
    why = "as asked for, nothing was exported" if not export else None
    try:
        job.executor.site(target).check(target)
    except TargetError as error:
        why = f"{error}; measured where it can be served"
    costs = Costs(job.supernet.space, job.shape, job.tables(target), job.recipe.percentile)
    for budget in budgets:
        cell = _predicted(job, costs, front, budget) if why else _measured(job, target, front, budget)
        yield Cell(name, batch, budget.text, **{"why": why, **cell})


def _measured(job: Job, target: Target, front: ParetoFront, budget: Budget) -> dict[str, Any]:
    """A cell's fields, from what was selected for a budget and measured."""
    try:
        chosen = select(job, target, front, budget)
    except InfeasibleBudgetError as error:
        return {"state": "none", "why": str(error)}
    return {
        "state": "measured", "architecture": chosen.architecture, "deployment": chosen.deployment,
        "latency_ms": chosen.measured.percentile_ms(chosen.percentile), "metric": chosen.measured.metric,
        "n": chosen.measured.n, "artifact": chosen.artifact,
    }  # fmt: skip


def _predicted(job: Job, costs: Costs, front: ParetoFront, budget: Budget) -> dict[str, Any]:
    """A cell's fields, from what `select` would try first."""
    bounds = bounds_of(budget.limits, lambda o: full_metric(job, front) if o.kind == "metric" else costs.full(o))
    choices = shortlist(front.candidates, bounds, budget.prefer)
    if not choices:
        near = nearest(front.candidates, bounds, job.recipe.percentile)
        return {"state": "none", "why": f"nothing is predicted to meet {budget.text}; nearest: {near}"}
    best = choices[0]
    return {
        "state": "predicted", "architecture": str(best.architecture), "deployment": best.deployment.name,
        "latency_ms": best.predicted.latency_ms, "metric": best.predicted.metric,
    }  # fmt: skip
