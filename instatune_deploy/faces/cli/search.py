"""`instatune-deploy search`: the front of a run on a target."""

from __future__ import annotations

from typing import Annotated

import typer

from instatune_deploy.faces.cli.app import JsonOption, RunOption, app, emit, find_run, progress
from instatune_deploy.faces.cli.run import ForeignTablesOption, with_foreign_tables


@app.command()
def search(
    target: Annotated[str | None, typer.Option(help="A target; default: the recipe's first.")] = None,
    run: RunOption = None,
    foreign_tables: ForeignTablesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Search a run's super-network for a target and print the front of metric, MACs and latency.

    Example: instatune-deploy search --target cpu-avx512
    """
    directory = find_run(run)

    from instatune_deploy.faces.tables import print_front
    from instatune_deploy.pipeline import open_run

    job = open_run(directory, progress())
    job.recipe = with_foreign_tables(job.recipe, foreign_tables)
    wanted = job.target(target or next(iter(job.recipe.targets)))
    front = job.search(wanted, job.tables(wanted))
    if as_json:
        emit({"target": wanted.name, "percentile": job.recipe.percentile, "front": front.to_list()})
    else:
        print_front(front, job.recipe.percentile)
