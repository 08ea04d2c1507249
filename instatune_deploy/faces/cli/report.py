"""`instatune-deploy report`: a run, or two side by side, as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from instatune_deploy.errors import UsageError
from instatune_deploy.faces.cli.app import JsonOption, app, emit, find_run, missing_for_pages


@app.command()
def report(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RUN",
            help="Run directory, or its name in ./runs; default: this directory, or the only one in ./runs.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", help="File to write; default: report.html in the run, or compare.html here."),
    ] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Show two runs side by side.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write what a run did as one HTML page that needs nothing else: its front to choose from, latency tables with
    their errors, training curves, what was measured of what was exported. Nothing is made or measured for it.

    Of a run that is not finished it shows what there is, and says what is missing. Needs the extra `report`.

    Example: instatune-deploy report runs/minilm-sst2

    Example: instatune-deploy report --compare runs/first runs/second --output both.html
    """
    given = runs or []
    if compare and len(given) != 2:
        raise UsageError(f"--compare takes two run directories, found {len(given)}")
    if not compare and len(given) > 1:
        raise UsageError(f"one run directory, please, found {len(given)}; --compare shows two side by side")
    if (lacking := missing_for_pages()) is not None:
        raise lacking

    from instatune_deploy.reporting.comparison import comparison_page
    from instatune_deploy.reporting.page import is_page, run_page
    from instatune_deploy.reporting.record import read_run
    from instatune_deploy.reporting.summary import named_run
    from instatune_deploy.workspace import write_text

    directories = [named_run(name) for name in given] or [find_run(None)]
    path = output or (Path("compare.html") if compare else directories[0] / "report.html")
    if path.exists() and not is_page(path):
        raise UsageError(f"{path} exists already and is no report: name another file")
    records = [read_run(directory) for directory in directories]
    text = comparison_page(*records) if compare else run_page(records[0])
    write_text(path, text)
    missing = {str(record.directory): [*record.missing(), *record.faults] for record in records}
    if as_json:
        emit({"report": str(path), "size_bytes": path.stat().st_size, "missing": missing})
        return
    typer.echo(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    for directory, lines in missing.items():
        for line in lines:
            typer.echo(f"not in it: {line}" if not compare else f"not in it, of {directory}: {line}")
