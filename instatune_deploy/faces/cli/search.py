"""`instatune-deploy search`: the fronts of a run on targets."""

from __future__ import annotations

from typing import Annotated

import typer

from instatune_deploy.faces.cli.app import JsonOption, RayOption, RunOption, app, emit, find_run, progress
from instatune_deploy.faces.cli.run import ForeignTablesOption


@app.command()
def search(
    target: Annotated[
        list[str] | None, typer.Option(help="A target, once or several times; default: the recipe's first.")
    ] = None,
    objective: Annotated[
        list[str] | None,
        typer.Option(
            help="Two or three times: metric, macs, parameters, size, latency, memory or latency@TARGET:DEPLOYMENT; "
            "default: the recipe's."
        ),
    ] = None,
    limit: Annotated[
        list[str] | None,
        typer.Option(help="Such as size<=30MB, latency<=50%, metric>=0.88, loss<=0.5; default: the recipe's."),
    ] = None,
    front: Annotated[
        bool, typer.Option("--front", help="Print the front that was found before; search nothing.")
    ] = False,
    run: RunOption = None,
    foreign_tables: ForeignTablesOption = False,
    ray: RayOption = None,
    as_json: JsonOption = False,
) -> None:
    """Search a run's super-network for one target or several and print the front of each.

    The first search of a run evaluates sub-networks, for all targets that it is for; later ones go by what it learnt.

    Example: instatune-deploy search --target cpu-avx512 --target cpu-avx2

    Example: instatune-deploy search --objective metric --objective size --limit "latency<=50%"
    """
    directory = find_run(run)

    from instatune_deploy.faces.api import open_run
    from instatune_deploy.faces.tables import print_front

    opened = open_run(directory, foreign_tables=foreign_tables, ray=ray, report=progress())
    fronts = opened.search(target or (), objectives=objective or (), limits=limit or (), found_before=front)
    percentile = opened.recipe.percentile
    if as_json:
        head = {"percentile": percentile, "objectives": [str(o) for o in next(iter(fronts.values())).objectives]}
        if len(fronts) == 1:
            ((name, found),) = fronts.items()
            emit({"target": name, **head, "front": found.to_list()})
        else:
            emit({**head, "fronts": {name: found.to_list() for name, found in fronts.items()}})
        return
    for name, found in fronts.items():
        print_front(name, found, percentile)
