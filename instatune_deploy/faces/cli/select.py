"""`instatune-deploy select`: the best network for a budget, confirmed by measurement."""

from __future__ import annotations

from typing import Annotated

import typer

from instatune_deploy.errors import UsageError
from instatune_deploy.faces.cli.app import JsonOption, RunOption, app, emit, find_run, progress
from instatune_deploy.faces.cli.run import ForeignTablesOption, with_foreign_tables


@app.command()
def select(
    latency_budget: Annotated[str, typer.Option(help="Such as 8ms, or 50% of the full network's latency.")],
    target: Annotated[str | None, typer.Option(help="A target; default: the recipe's first.")] = None,
    percentile: Annotated[str | None, typer.Option(help="p50, p90 or p99; default: the recipe's.")] = None,
    run: RunOption = None,
    foreign_tables: ForeignTablesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Pick the most accurate network of a run within a latency budget, export it and measure that it keeps to it.

    Where the measured latency misses the budget, the next best is tried. Exit code 3: none keeps to it.

    Example: instatune-deploy select --latency-budget 8ms --percentile p90
    """
    from instatune_deploy.values.recipe import parse_budget

    try:
        parse_budget(latency_budget)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if percentile not in (None, "p50", "p90", "p99"):
        raise UsageError(f"unknown percentile {percentile!r}; known: p50, p90, p99")
    directory = find_run(run)

    from instatune_deploy.faces.tables import print_selections
    from instatune_deploy.pipeline import open_run
    from instatune_deploy.pipeline import select as select_network

    job = open_run(directory, progress())
    job.recipe = with_foreign_tables(job.recipe, foreign_tables)
    if percentile is not None:
        job.recipe = job.recipe.model_copy(update={"percentile": percentile})
    wanted = job.target(target or next(iter(job.recipe.targets)))
    selection = select_network(job, wanted, job.search(wanted, job.tables(wanted)), latency_budget)
    if as_json:
        emit(selection.to_dict())
    else:
        print_selections([selection], directory)
