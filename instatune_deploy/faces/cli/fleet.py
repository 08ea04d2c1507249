"""`instatune-deploy fleet`: networks of one run for many devices, or several in one directory, to be served together."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from instatune_deploy.errors import InfeasibleBudgetError, UsageError
from instatune_deploy.faces.cli.app import (
    JsonOption,
    RayOption,
    RunOption,
    app,
    emit,
    find_run,
    missing_for_pages,
    progress,
)
from instatune_deploy.faces.cli.run import ForeignTablesOption
from instatune_deploy.faces.cli.select import check_percentile
from instatune_deploy.workspace import check_new


@app.command()
def fleet(
    out: Annotated[
        Path,
        typer.Argument(
            metavar="PLAN.yaml|DIRECTORY",
            help="A plan of targets and budgets; or the directory to write, which must not exist.",
        ),
    ],
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
    export: Annotated[
        bool, typer.Option(help="With a plan: export and measure. Without, every cell is predicted.")
    ] = True,
    ray: RayOption = None,
    as_json: JsonOption = False,
) -> None:
    """With a plan: a network of one run for each of its targets, batch sizes and budgets; what is done already is reused.
    A page and a JSON file of the same name in the run's `fleets` show them all.

    With a directory: gather artifacts of one run into a fleet, in which the weights that they share are stored once. Each
    member stays an artifact that Hugging Face, ONNX Runtime and OpenVINO load by itself.

    Exit code 3: nothing keeps one of the budgets; the others' networks are there.

    Example: instatune-deploy fleet fleet.yaml

    Example: instatune-deploy fleet my-fleet --run runs/minilm-sst2 --latency-budget 5ms --latency-budget 10ms

    Example: instatune-deploy fleet my-fleet --artifact fast=runs/a/artifacts/cpu/p50-5ms --artifact full=runs/a/artifacts/cpu/full
    """
    if out.suffix in (".yaml", ".yml"):
        said = {
            "--artifact": artifact,
            "--latency-budget": latency_budget,
            "--target": target,
            "--percentile": percentile,
            "--run": run,
        }
        if idle := [name for name, value in said.items() if value]:
            raise UsageError(f"{', '.join(idle)}: {out} says that itself; these go with a directory to write")
        _fill(out, foreign_tables, export, ray, as_json)
        return
    if not export:
        raise UsageError("--no-export goes with a plan, a .yaml file")
    if not artifact and not latency_budget:
        raise UsageError("a fleet of what? give --artifact DIR or --latency-budget 5ms, once for each member")
    selecting = {
        "--run": run,
        "--target": target,
        "--percentile": percentile,
        "--foreign-tables": foreign_tables,
        "--ray": ray,
    }
    if not latency_budget and (idle := [name for name, value in selecting.items() if value]):
        raise UsageError(
            f"{', '.join(idle)}: these say how to select a network, and none is asked for: give --latency-budget"
        )
    check_percentile(percentile)
    check_new(out)
    directories: dict[str, Path] = {}
    for given in artifact or []:
        name, separator, path = given.partition("=")
        directory = Path(path if separator else given)
        _add(directories, name if separator else directory.resolve().name, directory)

    from instatune_deploy.faces.tables import print_fleet
    from instatune_deploy.fleets import write_fleet

    report = progress()
    if latency_budget:
        from instatune_deploy.faces.api import open_run

        home = find_run(run)
        opened = open_run(home, foreign_tables=foreign_tables, ray=ray, report=report)
        chosen: dict[tuple[str, str], str] = {}
        for selection in opened.select_each(latency_budget, target, percentile=percentile):
            network = (selection.architecture, selection.deployment)
            if network in chosen:
                report(f"for {selection.budget} the same network is best as for {chosen[network]}: it is one member")
                continue
            chosen[network] = selection.budget
            _add(directories, Path(selection.artifact).name, home / selection.artifact)
    written = write_fleet(directories, out, report=report)
    emit(written.to_dict()) if as_json else print_fleet(written)


def _fill(path: Path, foreign_tables: bool, export: bool, ray: str | None, as_json: bool) -> None:
    """Fill the matrix of the plan in `path` and write its page."""
    from instatune_deploy.values.fleet_plan import read_fleet_plan

    plan = read_fleet_plan(path)
    if foreign_tables:
        plan = plan.model_copy(update={"foreign_tables": True})

    from instatune_deploy.faces.executors import executor_of
    from instatune_deploy.faces.tables import print_matrix
    from instatune_deploy.many_devices import fill_matrix
    from instatune_deploy.workspace import write_text

    report = progress()
    matrix, written = fill_matrix(plan, path.stem, report, export=export, executor=executor_of(ray, report))
    files = {"matrix": str(written)}
    if (missing := missing_for_pages()) is None:
        from instatune_deploy.reporting.matrix import matrix_page

        page = written.with_suffix(".html")
        write_text(page, matrix_page(path.stem, matrix))
        files["page"] = str(page)
    else:
        report(f"no page was written: {missing}")
    if as_json:
        emit({**files, **matrix.to_dict()})
    else:
        print_matrix(matrix)
        for file in files.values():
            typer.echo(file)
    if matrix.count("none"):
        raise typer.Exit(InfeasibleBudgetError.exit_code)


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
