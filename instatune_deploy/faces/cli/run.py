"""`instatune-deploy run`: a recipe, all stages, resumed where it was stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from instatune_deploy.faces.cli.app import DryRunOption, JsonOption, app, emit, progress


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file.")],
    out: Annotated[Path | None, typer.Option("--out", help="Run directory; default: runs/<recipe's name>.")] = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Do all a recipe asks for: fine-tune, profile, search, select, export, confirm.

    Stopped at any point, the same command goes on from there; what has not changed is reused.

    Example: instatune-deploy run recipe.yaml
    """
    from instatune_deploy.values.recipe import read_recipe

    checked = read_recipe(recipe)
    directory = out or Path("runs") / checked.name

    from instatune_deploy import pipeline
    from instatune_deploy.faces.tables import print_selections
    from instatune_deploy.job import Job
    from instatune_deploy.workspace import Workspace

    workspace = Workspace(directory)
    if dry_run:
        plan = Job(checked, workspace, progress()).plan()
        emit({"run": str(directory), "plan": plan}) if as_json else typer.echo("\n".join(plan))
        return
    selections = pipeline.run(checked, workspace, progress())
    if as_json:
        emit({"run": str(directory), "selections": [selection.to_dict() for selection in selections]})
    else:
        print_selections(selections, directory)
