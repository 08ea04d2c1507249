"""`instatune-deploy runs`: what run directories hold, and removing them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from instatune_deploy.errors import InstatuneError, UsageError
from instatune_deploy.faces.cli.app import JsonOption, app, emit

if TYPE_CHECKING:
    from datetime import datetime

runs = typer.Typer(help="List, show and remove runs.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(runs, name="runs")

RunArgument = Annotated[Path, typer.Argument(help="A run directory, or its name in ./runs.")]


@runs.command("list")
def list_runs(
    directory: Annotated[Path, typer.Argument(help="Where to look.")] = Path("runs"), as_json: JsonOption = False
) -> None:
    """List the runs in a directory: stages done, size on the disk, when the last stage was finished.

    Example: instatune-deploy runs list
    """
    from rich.console import Console
    from rich.table import Table

    from instatune_deploy.reporting.summary import runs_in, summarise

    if not directory.is_dir() and directory != Path("runs"):
        raise UsageError(f"{directory} is not a directory")
    found = [summarise(path) for path in runs_in(directory)]
    if as_json:
        emit({"runs": [summary.to_dict() for summary in found]})
        return
    if not found:
        typer.echo(f"no runs in {directory}: `instatune-deploy run RECIPE` makes one")
        return
    table = Table()
    for column in ("run", "MB on the disk", "last stage finished", "stages done"):
        table.add_column(column, justify="right" if column == "MB on the disk" else "left")
    for summary in found:
        stages = ", ".join(record.stage for record in summary.stages) or "none"
        table.add_row(str(summary.directory), _megabytes(summary.size_bytes), _when(summary.last), stages)
    Console(width=None if Console().is_terminal else 200).print(table)


@runs.command("show")
def show_run(run: RunArgument, as_json: JsonOption = False) -> None:
    """Show what a run has done, when, what it takes on the disk, and what its recipe asks for beyond that.

    Example: instatune-deploy runs show minilm-sst2
    """
    from instatune_deploy.reporting.record import read_run
    from instatune_deploy.reporting.summary import named_run, summarise

    directory = named_run(run)
    summary = summarise(directory)
    try:
        record = read_run(directory)
        missing = [*record.missing(), *record.faults]
    except InstatuneError as error:  # it may be looked at all the same
        missing = [str(error)]
    if as_json:
        emit({**summary.to_dict(), "missing": missing})
        return
    typer.echo(f"{directory}: {_megabytes(summary.size_bytes)} MB on the disk")
    for stage in summary.stages:
        typer.echo(f"done {_when(stage.finished)}: {stage.stage} ({', '.join(stage.outputs)})")
    for name, size in sorted(summary.sizes.items(), key=lambda pair: -pair[1]):
        typer.echo(f"{_megabytes(size):>10} MB  {name}")
    for line in missing:
        typer.echo(f"missing: {line}")


@runs.command("rm")
def remove_runs(
    run: Annotated[list[Path], typer.Argument(help="Run directories, or their names in ./runs.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove runs with all that they made. Asks first; files in their directories that no run makes stay.

    Example: instatune-deploy runs rm minilm-sst2
    """
    from instatune_deploy.reporting.summary import named_run, remove_run, summarise

    directories = list(dict.fromkeys(named_run(name) for name in run))
    if not yes and not sys.stdin.isatty():
        raise UsageError("nobody is there to ask whether to remove them: give --yes")
    removed = []
    for directory in directories:
        summary = summarise(directory)
        what = f"{directory} ({_megabytes(summary.size_bytes)} MB, {len(summary.stages)} stages done)"
        if not yes and not typer.confirm(f"Remove {what}?", err=True):
            typer.echo(f"{directory} stays", err=True)
            continue
        kept = remove_run(directory)
        removed.append({"run": str(directory), "kept": kept})
        if not as_json:
            typer.echo(f"removed {what}")
            if kept:
                typer.echo(f"left in {directory}, which no run made: {', '.join(kept)}")
    if as_json:
        emit({"removed": removed})


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f}"


def _when(time: datetime | None) -> str:
    return "" if time is None else f"{time:%Y-%m-%d %H:%M} UTC"
