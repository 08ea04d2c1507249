"""`instatune-deploy profile`: latency tables of a run, a model or the BERT-base preset, for this machine or another."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from instatune_deploy.errors import UsageError
from instatune_deploy.faces.cli.app import JsonOption, RayOption, app, emit, progress

if TYPE_CHECKING:
    from instatune_deploy.values.latency import LatencyTable

PackOption = Annotated[
    Path | None, typer.Option("--pack", help="Write a kit to this zip, to measure a device without PyTorch.")
]
ImportOption = Annotated[
    Path | None, typer.Option("--import", help="Make tables of the results.zip that a kit wrote on its device.")
]
RefitOption = Annotated[
    Path | None, typer.Option("--refit", help="Fit this table again to the runs kept beside it; measures nothing.")
]


@app.command()
def profile(
    target: Annotated[str | None, typer.Option(help="A target, or the path of its YAML file.")] = None,
    model: Annotated[str | None, typer.Option(help="Model directory or hub name; its weights do not matter.")] = None,
    space: Annotated[
        str | None,
        typer.Option(
            help="Preset of choices to cover, or auto: those that `space: auto` needs; default: the run's space, or the "
            "family's preset."
        ),
    ] = None,
    sequence_length: Annotated[int | None, typer.Option(min=1, help="Tokens of a text; default: the target's.")] = None,
    seconds: Annotated[
        float, typer.Option(min=0.1, help="Seconds of measuring the probes of a deployment at most.")
    ] = 60,
    heldout: Annotated[int, typer.Option(min=1, help="Networks to test the table on.")] = 12,
    wait_seconds: Annotated[
        float, typer.Option(min=0, help="Seconds at most to wait for other processes to leave the machine alone.")
    ] = 30,
    spare_probes: Annotated[int, typer.Option(min=0, help="Probes beyond those that a table needs.")] = 1,
    out: Annotated[Path, typer.Option("--out", help="Directory of tables to write to.")] = Path("latency_tables"),
    pack: PackOption = None,
    import_: ImportOption = None,
    refit: RefitOption = None,
    ray: RayOption = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1)] = 0,
    as_json: JsonOption = False,
) -> None:
    """Measure this machine and write a latency table for each deployment of a target.

    Without --model it is for the run or model in this directory and, where there is none, for BERT-base. No trained
    weights are needed. `run` and `search` find tables in ./latency_tables.

    A device without PyTorch: --pack here, unzip and `python run.py` there, --import its results here.

    Example: instatune-deploy profile --target cpu-avx512
    """
    given = [
        name
        for name, value in (("--pack", pack), ("--import", import_), ("--refit", refit), ("--ray", ray))
        if value is not None
    ]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} exclude each other: give one")
    if import_ is not None or refit is not None:
        asked = (("--target", target), ("--model", model), ("--space", space), ("--sequence-length", sequence_length))
        if odd := [name for name, value in asked if value is not None]:
            raise UsageError(f"{given[0]} takes no {', '.join(odd)}: the file says it itself")
    if import_ is not None:
        from instatune_deploy.kit import import_results

        tables = import_results(import_, out, report=progress())
        _print_tables(tables, [out / table.file_name for table in tables], as_json=as_json)
        return
    if refit is not None:
        from instatune_deploy.profiling import refit_table

        _print_tables([refit_table(refit)], [refit], as_json=as_json)
        return
    if target is None:
        raise UsageError("which target? give --target NAME; `instatune-deploy targets list` names them")

    from instatune_deploy.values.recipe import ProfileSection

    settings = ProfileSection(heldout=heldout, seconds=seconds, wait_seconds=wait_seconds, spare_probes=spare_probes)
    if pack is None:
        from instatune_deploy.faces.executors import executor_of
        from instatune_deploy.profiling import profile_model
        from instatune_deploy.values.target import find_target
        from instatune_deploy.workspace import data_directories

        lines = progress()
        place = executor_of(ray, lines)
        site = place.site(find_target(target, data_directories("targets")))
        tables = profile_model(
            target, model, space, sequence_length, settings, out, seed=seed, report=lines, site=site,
            prober_of=place.prober,
        )  # fmt: skip
        _print_tables(tables, [out / table.file_name for table in tables], as_json=as_json)
        return
    from instatune_deploy.kit import pack as pack_kit

    kit = pack_kit(target, model, space, sequence_length, settings, pack, seed=seed, report=progress())
    names, size = [deployment.name for deployment in kit.deployments], pack.stat().st_size
    if as_json:
        emit({"kit": str(pack), "bytes": size, "target": kit.target, "deployments": names, "networks": len(kit.visits)})
    else:
        typer.echo(f"{pack} ({size / 1e6:.1f} MB)\n  unzip it on the device and call: python run.py")


def _print_tables(tables: list[LatencyTable], paths: list[Path], *, as_json: bool) -> None:
    from instatune_deploy.profiling import describe_table
    from instatune_deploy.values.latency import table_statistics

    if as_json:
        both = zip(tables, paths, strict=True)
        emit({"tables": [{"path": str(path), **table_statistics(table)} for table, path in both]})
        return
    for table, path in zip(tables, paths, strict=True):
        typer.echo(f"{path}\n  {describe_table(table)}")
