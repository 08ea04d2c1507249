"""`instatune-deploy export`: the ready-to-serve directory of a selected or a given network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from instatune_deploy.errors import UnknownNameError, UsageError
from instatune_deploy.faces.cli.app import JsonOption, RunOption, app, emit, find_run, progress


@app.command()
def export(
    out: Annotated[Path, typer.Option("--out", help="Directory to write; must not exist.")],
    architecture: Annotated[str, typer.Option(help="Such as '6L[12-1536 ...]', or 'full'.")],
    deployment: Annotated[str | None, typer.Option(help="Such as ov-fp32-1t; default: the target's first.")] = None,
    target: Annotated[str | None, typer.Option(help="A target; default: the recipe's first.")] = None,
    confirm: Annotated[bool, typer.Option(help="Measure its metric on the report split and its latency here.")] = True,
    tune_epochs: Annotated[
        float, typer.Option(min=0, help="Tune it alone for so many passes over the training data first; 0: do not.")
    ] = 0,
    max_drop: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Points that an int8 file may lose against fp32 on the search split: what it is most sensitive in stays "
            "fp32 until it does; default: the recipe's.",
        ),
    ] = None,
    run: RunOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write any network of a run as ONNX and OpenVINO IR, with its processor, config and manifest.

    `select` exports what it selects; this is for a network that you choose.

    Example: instatune-deploy export --architecture "4L[12-512 8-512 8-512 6-512]" --out my-model
    """
    if out.exists():
        raise UsageError(f"{out} exists already; name a new directory")
    directory = find_run(run)

    from instatune_deploy.pipeline import confirmed, export_network, open_run
    from instatune_deploy.values.space import Architecture

    job = open_run(directory, progress())
    wanted = job.target(target or next(iter(job.recipe.targets)))
    known = {found.name: found for found in wanted.deployments}
    if deployment is not None and deployment not in known:
        raise UnknownNameError("deployment", deployment, known)
    chosen = known[deployment] if deployment else wanted.deployments[0]
    network = job.supernet.full if architecture == "full" else Architecture.parse(architecture)
    artifact = export_network(
        job,
        wanted,
        network,
        chosen,
        out,
        None,
        tune_epochs=tune_epochs,
        max_drop=job.recipe.max_drop if max_drop is None else max_drop,
    )
    if confirm:
        artifact = confirmed(job, artifact)
    measured = artifact.manifest.measured
    found = {"artifact": str(out), "architecture": str(network), "macs": artifact.manifest.macs}
    if as_json:
        emit({**found, "measured": None if measured is None else measured.__dict__})
        return
    typer.echo(f"{out}: {network}, {artifact.manifest.macs / 1e9:.3f} GMACs")
    if measured is not None:
        typer.echo(
            f"measured on {chosen.name}: p50 {measured.p50_ms:.3f} ms, p90 {measured.p90_ms:.3f} ms, "
            f"{job.recipe.metric} {100 * measured.metric:.2f}% on {measured.n} samples of the report split"
        )
