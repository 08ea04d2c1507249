"""`instatune-deploy finetune`: the elastic super-network of a recipe, and nothing more."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from instatune_deploy.faces.cli.app import JsonOption, app, emit, progress


@app.command()
def finetune(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file.")],
    out: Annotated[Path | None, typer.Option("--out", help="Run directory; default: runs/<recipe's name>.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Fine-tune a recipe's model into an elastic super-network; `run`, `search` and `select` go on from it.

    Several processes train together if launched so, with `accelerate launch` on GPUs or `torchrun` on CPUs:
    torchrun --nproc_per_node 2 -m instatune_deploy finetune recipe.yaml

    Example: instatune-deploy finetune recipe.yaml
    """
    from instatune_deploy.values.recipe import read_recipe

    checked = read_recipe(recipe)
    directory = out or Path("runs") / checked.name

    from instatune_deploy import pipeline
    from instatune_deploy.elastic.processes import is_main_process
    from instatune_deploy.workspace import Workspace

    job = pipeline.start_job(checked, Workspace(directory), progress())
    with job.workspace.locked() if is_main_process() else nullcontext():
        supernet = job.supernet
    if not is_main_process():
        return
    found = {"run": str(directory), "supernet": str(directory / "supernet"), "subnetworks": supernet.space.size}
    if as_json:
        emit(found)
    else:
        typer.echo(f"{found['supernet']}: {found['subnetworks']:,} sub-networks")
