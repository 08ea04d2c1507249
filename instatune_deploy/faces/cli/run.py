"""`instatune-deploy run`: a recipe, all stages, resumed where it was stopped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from instatune_deploy.faces.cli.app import (
    DryRunOption,
    JsonOption,
    RayOption,
    app,
    emit,
    end_progress,
    progress,
)

if TYPE_CHECKING:
    from instatune_deploy.job import Job
    from instatune_deploy.planning.steps import Step
    from instatune_deploy.values.selection import Selection

ForeignTablesOption = Annotated[
    bool,
    typer.Option(
        "--foreign-tables",
        help="Where there is no latency table of this machine and runtime version, use one of another, with a warning.",
    ),
]


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file.")],
    out: Annotated[Path | None, typer.Option("--out", help="Run directory; default: runs/<recipe's name>.")] = None,
    foreign_tables: ForeignTablesOption = False,
    ray: RayOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Do all a recipe asks for: fine-tune, profile, search, select, export, confirm.

    Stopped at any point, the same command goes on from there; what has not changed is reused.

    Example: instatune-deploy run recipe.yaml
    """
    from instatune_deploy.values.recipe import read_recipe

    checked = read_recipe(recipe).with_foreign_tables(foreign_tables)
    directory = out or Path("runs") / checked.name

    from instatune_deploy import pipeline
    from instatune_deploy.errors import InfeasibleBudgetError
    from instatune_deploy.faces.executors import executor_of
    from instatune_deploy.faces.tables import print_selections
    from instatune_deploy.job import Job
    from instatune_deploy.workspace import Workspace

    workspace = Workspace(directory)
    if dry_run:
        from instatune_deploy.planning.estimate import make_plan

        lines = progress()
        job = Job(checked, workspace, lines, executor_of(ray, lines))
        job.check()
        plan = make_plan(job)
        emit({"run": str(directory), **plan.to_dict()}) if as_json else typer.echo("\n".join(plan.lines))
        return
    lines = progress()

    def expect(job: Job, steps: Sequence[Step]) -> None:
        """On a terminal, where the time left is shown, estimate how long the stages take."""
        if not lines.draws:
            return
        from instatune_deploy.planning.estimate import make_plan

        plan = make_plan(job, steps)
        lines(plan.lines[-1])
        lines.expect({found.step.name: found.seconds for found in plan.steps if found.step.state != "reused"})

    def show(selections: Sequence[Selection]) -> None:
        end_progress()
        if as_json:
            emit({"run": str(directory), "selections": [selection.to_dict() for selection in selections]})
        else:
            print_selections(selections, directory)

    try:
        show(pipeline.run(checked, workspace, lines, planned=expect, executor=executor_of(ray, lines)))
    except InfeasibleBudgetError as error:
        if error.met:
            show(error.met)
        raise
