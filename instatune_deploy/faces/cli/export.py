"""`instatune-deploy export`: the ready-to-serve directory of a selected or a given network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from instatune_deploy.faces.cli.app import JsonOption, RunOption, app, emit, find_run, progress
from instatune_deploy.workspace import check_new


@app.command()
def export(
    out: Annotated[Path, typer.Option("--out", help="Directory to write; must not exist.")],
    architecture: Annotated[str, typer.Option(help="Such as '6L[12-1536 ...]', or 'full'.")],
    deployment: Annotated[str | None, typer.Option(help="Such as ov-fp32-1t; default: the target's first.")] = None,
    target: Annotated[str | None, typer.Option(help="A target; default: the recipe's first.")] = None,
    confirm: Annotated[bool, typer.Option(help="Measure its metric on the report split and its latency here.")] = True,
    tune_epochs: Annotated[
        float,
        typer.Option(
            min=0, help="Tune it alone for so many passes over the training data first, and keep the better; 0: do not."
        ),
    ] = 0,
    max_drop: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Points that an int8 file may lose against fp32 on the search split: what it is most sensitive in stays "
            "fp32 until it does; default: the recipe's.",
        ),
    ] = None,
    opset: Annotated[
        int | None,
        typer.Option(min=17, max=23, help="ONNX operator set; default: the one that was measured fastest, 23."),
    ] = None,
    fixed_length: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Fix the length of texts to so many tokens, and the batch to the deployment's: faster in OpenVINO; "
            "shorter texts are padded by whoever calls.",
        ),
    ] = None,
    fixed_batch: Annotated[bool, typer.Option("--fixed-batch", help="Fix the batch to the deployment's.")] = False,
    run: RunOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write any network of a run as ONNX and OpenVINO IR, with its processor, config and manifest.

    `select` exports what it selects; this is for a network that you choose.

    Example: instatune-deploy export --architecture "4L[12-512 8-512 8-512 6-512]" --out my-model
    """
    check_new(out)
    directory = find_run(run)

    from instatune_deploy.device.lowering.onnx import OPSET
    from instatune_deploy.faces.api import open_run

    opened = open_run(directory, report=progress())
    artifact = opened.export(
        architecture, out, target=target, deployment=deployment, confirm=confirm, tune_epochs=tune_epochs,
        max_drop=max_drop, opset=opset or OPSET, fixed_length=fixed_length, fixed_batch=fixed_batch,
    )  # fmt: skip
    manifest = artifact.manifest
    measured = manifest.measured
    found = {"artifact": str(out), "architecture": manifest.architecture, "macs": manifest.macs}
    if as_json:
        emit({**found, "measured": None if measured is None else measured.__dict__})
        return
    sizes = "" if manifest.fixed is None else f", for {manifest.fixed} alone"
    typer.echo(f"{out}: {manifest.architecture}, {manifest.macs / 1e9:.3f} GMACs, opset {manifest.opset}{sizes}")
    if measured is not None:
        typer.echo(
            f"measured on {manifest.deployment.name}: p50 {measured.p50_ms:.3f} ms, p90 {measured.p90_ms:.3f} ms, "
            f"{opened.recipe.metric} {100 * measured.metric:.2f}% on {measured.n} samples of the report split"
        )
