"""`instatune-deploy profile`: latency tables of a run, a model or the BERT-base preset on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from instatune_deploy.faces.cli.app import JsonOption, app, emit, progress


@app.command()
def profile(
    target: Annotated[str, typer.Option(help="A target, or the path of its YAML file.")],
    model: Annotated[str | None, typer.Option(help="Model directory or hub name; its weights do not matter.")] = None,
    space: Annotated[
        str | None, typer.Option(help="Preset of choices to cover; default: the run's space, or the family's preset.")
    ] = None,
    sequence_length: Annotated[int | None, typer.Option(min=1, help="Tokens of a text; default: the target's.")] = None,
    seconds: Annotated[float, typer.Option(min=1, help="Measuring time of a deployment at most.")] = 60,
    heldout: Annotated[int, typer.Option(min=1, help="Networks to test the table on.")] = 12,
    out: Annotated[Path, typer.Option("--out", help="Directory of tables to write to.")] = Path("latency_tables"),
    seed: int = 0,
    as_json: JsonOption = False,
) -> None:
    """Measure this machine and write a latency table for each deployment of a target.

    Without --model it is for the run or model in this directory and, where there is none, for BERT-base. No trained
    weights are needed. `run` and `search` find tables in ./latency_tables.

    Example: instatune-deploy profile --target cpu-avx512
    """
    from instatune_deploy.profiling import describe_table, profile_model
    from instatune_deploy.values.latency import table_statistics
    from instatune_deploy.values.recipe import ProfileSection

    settings = ProfileSection(heldout=heldout, seconds=seconds)
    tables = profile_model(target, model, space, sequence_length, settings, out, seed=seed, report=progress())
    if as_json:
        emit({"tables": [{"path": str(out / table.file_name), **table_statistics(table)} for table in tables]})
        return
    for table in tables:
        typer.echo(f"{out / table.file_name}\n  {describe_table(table)}")
