"""`instatune-deploy select`: the best network for a budget, confirmed by measurement."""

from __future__ import annotations

from typing import Annotated

import typer

from instatune_deploy.errors import UsageError
from instatune_deploy.faces.cli.app import JsonOption, RayOption, RunOption, app, emit, find_run, progress
from instatune_deploy.faces.cli.run import ForeignTablesOption


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
            min=0,
            help="Tune it alone for so many passes over the training data first, and keep the better; default: the recipe's.",
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
    budget = ", ".join([*given, *([prefer] if prefer else [])])
    Budget.parse(budget)  # raises where it is none, before any file is read
    check_percentile(percentile)
    directory, report = find_run(run), progress()

    from instatune_deploy import recalling
    from instatune_deploy.faces.tables import print_selections
    from instatune_deploy.values.selection import reused_line
    from instatune_deploy.values.target import find_target
    from instatune_deploy.workspace import Workspace, data_directories

    recipe, workspace = recalling.run_recipe(directory), Workspace(directory)
    asked = recipe.with_foreign_tables(foreign_tables).changed(percentile=percentile, tune_epochs=tune_epochs)
    wanted = Budget.parse(budget, metric=recipe.metric)
    named = find_target(target or next(iter(recipe.targets)), data_directories("targets"))
    question = workspace, asked, named, wanted
    selection = recalling.recall(*question) if ray is None else None
    if selection is not None:
        report(reused_line(selection.target, selection.percentile, wanted))
    else:
        from instatune_deploy.faces.api import open_run

        opened = open_run(directory, foreign_tables=foreign_tables, ray=ray, report=report)
        selection = opened.select(budget, target, percentile=percentile, tune_epochs=tune_epochs)
        if ray is None:
            recalling.remember(*question)
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
