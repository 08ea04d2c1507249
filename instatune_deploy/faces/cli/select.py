"""`instatune-deploy select`: the best network for a budget, confirmed by measurement."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from instatune_deploy.errors import UsageError
from instatune_deploy.faces.cli.app import JsonOption, RayOption, RunOption, app, emit, find_run, progress
from instatune_deploy.faces.cli.run import ForeignTablesOption, with_foreign_tables

if TYPE_CHECKING:
    from instatune_deploy.executor import Executor
    from instatune_deploy.job import Job


@app.command()
def select(
    latency_budget: Annotated[
        str | None, typer.Option(help="Such as 8ms, or 50% of the full network's latency.")
    ] = None,
    macs_budget: Annotated[str | None, typer.Option(help="Multiply-accumulates: 2G, or a share such as 50%.")] = None,
    parameters_budget: Annotated[str | None, typer.Option(help="Parameters: 20M, or a share such as 50%.")] = None,
    size_budget: Annotated[str | None, typer.Option(help="The exported file: 30MB, or a share such as 50%.")] = None,
    memory_budget: Annotated[str | None, typer.Option(help="Peak memory, an estimate: 200MB, or a share.")] = None,
    min_metric: Annotated[str | None, typer.Option(help="The metric at least, a fraction: 0.88.")] = None,
    max_loss: Annotated[
        str | None, typer.Option(help="Points that the metric may be below the full network's: 0.5.")
    ] = None,
    prefer: Annotated[
        str | None,
        typer.Option(
            help="best (metric), fastest or smallest of those within budget; default: the fastest where the metric is "
            "limited, else the best."
        ),
    ] = None,
    target: Annotated[str | None, typer.Option(help="A target; default: the recipe's first.")] = None,
    percentile: Annotated[str | None, typer.Option(help="p50, p90 or p99; default: the recipe's.")] = None,
    tune_epochs: Annotated[
        float | None,
        typer.Option(
            min=0, help="Tune it alone for so many passes over the training data first; default: the recipe's."
        ),
    ] = None,
    run: RunOption = None,
    foreign_tables: ForeignTablesOption = False,
    ray: RayOption = None,
    as_json: JsonOption = False,
) -> None:
    """Pick the network of a run that is preferred within a budget, export it and measure that it keeps to it.

    Several budgets hold together. Where a measurement misses one, the next best is tried. Exit code 3: none keeps to them;
    the nearest three are named.

    Example: instatune-deploy select --latency-budget 8ms --percentile p90

    Example: instatune-deploy select --max-loss 0.5 --prefer smallest
    """
    from instatune_deploy.values.budget import PREFERENCES, Budget

    limits = {
        "macs<=": macs_budget, "parameters<=": parameters_budget, "size<=": size_budget, "memory<=": memory_budget,
        "metric>=": min_metric, "loss<=": max_loss,
    }  # fmt: skip
    parts = [latency_budget, *(f"{what}{value}" for what, value in limits.items() if value is not None)]
    given = [part for part in parts if part is not None]
    if not given:
        raise UsageError("which budget? give --latency-budget 8ms, --size-budget 30MB, --max-loss 0.5 or others")
    if prefer not in (None, *PREFERENCES):
        raise UsageError(f"unknown preference {prefer!r}; known: {', '.join(PREFERENCES)}")
    budget = Budget.parse(", ".join([*given, *([prefer] if prefer else [])]))
    check_percentile(percentile)
    directory = find_run(run)

    from instatune_deploy.faces.executors import executor_of
    from instatune_deploy.faces.tables import print_selections
    from instatune_deploy.pipeline import select as select_network

    lines = progress()
    job = job_to_select(directory, lines, percentile, foreign_tables, tune_epochs, executor_of(ray, lines))
    wanted = job.target(target or next(iter(job.recipe.targets)))
    selection = select_network(job, wanted, job.search([wanted])[wanted.name], budget)
    if as_json:
        emit(selection.to_dict())
    else:
        print_selections([selection], directory)


def check_percentile(percentile: str | None) -> None:
    """Make sure that a percentile is one that is measured; None: the recipe's.

    Raises:
        UsageError: it is another.
    """
    from instatune_deploy.values.latency import PERCENTILES

    if percentile not in (None, *PERCENTILES):
        raise UsageError(f"unknown percentile {percentile!r}; known: {', '.join(PERCENTILES)}")


def job_to_select(
    directory: Path, report: Callable[[str], None], percentile: str | None, foreign_tables: bool,
    tune_epochs: float | None = None, executor: Executor | None = None,
) -> Job:  # fmt: skip
    """The job of the run in `directory`, with what is asked for in the place of what its recipe says; None: the recipe's,
    and for `executor` this machine."""
    from instatune_deploy.executor import LOCAL
    from instatune_deploy.pipeline import open_run

    job = open_run(directory, report, executor or LOCAL)
    asked = {"percentile": percentile, "tune_epochs": tune_epochs}
    changes = {key: value for key, value in asked.items() if value is not None}
    job.recipe = with_foreign_tables(job.recipe, foreign_tables).model_copy(update=changes)
    return job
