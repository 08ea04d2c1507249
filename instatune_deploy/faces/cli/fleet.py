"""`instatune-deploy fleet`: several networks of one run in one directory, to be served together."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from instatune_deploy.errors import UsageError
from instatune_deploy.faces.cli.app import JsonOption, RunOption, app, emit, find_run, progress
from instatune_deploy.faces.cli.run import ForeignTablesOption
from instatune_deploy.faces.cli.select import check_percentile, job_to_select


@app.command()
def fleet(
    out: Annotated[Path, typer.Argument(help="Directory to write; must not exist.")],
    artifact: Annotated[
        list[str] | None,
        typer.Option(
            help="Directory that `run`, `select` or `export` wrote, or NAME=DIRECTORY; its name is the directory's "
            "otherwise. Repeat for each."
        ),
    ] = None,
    latency_budget: Annotated[
        list[str] | None, typer.Option(help="Select a network for it first, such as 5ms or 50%. Repeat for each.")
    ] = None,
    target: Annotated[str | None, typer.Option(help="To select for; default: the recipe's first.")] = None,
    percentile: Annotated[
        str | None, typer.Option(help="Of the budgets: p50, p90 or p99; default: the recipe's.")
    ] = None,
    run: RunOption = None,
    foreign_tables: ForeignTablesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Gather artifacts of one run into a fleet, in which the weights that they share are stored once.

    Each member stays an artifact that Hugging Face, ONNX Runtime and OpenVINO load by itself.

    Example: instatune-deploy fleet my-fleet --run runs/minilm-sst2 --latency-budget 5ms --latency-budget 10ms

    Example: instatune-deploy fleet my-fleet --artifact fast=runs/a/artifacts/cpu/p50-5ms --artifact full=runs/a/artifacts/cpu/full
    """
    if not artifact and not latency_budget:
        raise UsageError("a fleet of what? give --artifact DIR or --latency-budget 5ms, once for each member")
    selecting = {"--run": run, "--target": target, "--percentile": percentile, "--foreign-tables": foreign_tables}
    if not latency_budget and (idle := [name for name, value in selecting.items() if value]):
        raise UsageError(
            f"{', '.join(idle)}: these say how to select a network, and none is asked for: give --latency-budget"
        )
    check_percentile(percentile)
    if out.exists():
        raise UsageError(f"{out} exists already; name a new directory")
    directories: dict[str, Path] = {}
    for given in artifact or []:
        name, separator, path = given.partition("=")
        directory = Path(path if separator else given)
        _add(directories, name if separator else directory.resolve().name, directory)

    from instatune_deploy.faces.tables import print_fleet
    from instatune_deploy.fleets import write_fleet

    report = progress()
    if latency_budget:
        from instatune_deploy.pipeline import select
        from instatune_deploy.values.budget import Budget

        home = find_run(run)
        budgets = [Budget.parse(text) for text in latency_budget]
        job = job_to_select(home, report, percentile, foreign_tables)
        wanted = job.target(target or next(iter(job.recipe.targets)))
        front = job.search([wanted])[wanted.name]
        chosen: dict[tuple[str, str], str] = {}
        for budget in budgets:
            selection = select(job, wanted, front, budget)
            network = (selection.architecture, selection.deployment)
            if network in chosen:
                report(f"for {budget.text} the same network is best as for {chosen[network]}: it is one member")
                continue
            chosen[network] = budget.text
            _add(directories, Path(selection.artifact).name, home / selection.artifact)
    written = write_fleet(directories, out, report=report)
    emit(written.to_dict()) if as_json else print_fleet(written)


def _add(directories: dict[str, Path], name: str, directory: Path) -> None:
    """Take a member in.

    Raises:
        UsageError: another one has its name.
    """
    if name in directories:
        raise UsageError(
            f"{directories[name]} and {directory} are both called {name}: give --artifact NAME={directory}"
        )
    directories[name] = directory
