"""`instatune-deploy export`: the ready-to-serve directory of a selected or a given network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from instatune_deploy.errors import UnknownNameError, UsageError
from instatune_deploy.faces.cli.app import JsonOption, RunOption, app, emit, find_run, progress

if TYPE_CHECKING:
    from instatune_deploy.job import Job
    from instatune_deploy.values.deployment import Deployment
    from instatune_deploy.values.fixed import FixedSizes


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
    if out.exists():
        raise UsageError(f"{out} exists already; name a new directory")
    directory = find_run(run)

    from instatune_deploy.device.lowering.onnx import OPSET
    from instatune_deploy.exporting import confirmed, export_network
    from instatune_deploy.pipeline import open_run
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
        opset=opset or OPSET,
        fixed=_fixed_sizes(job, chosen, fixed_length, batch=fixed_batch),
    )
    if confirm:
        artifact = confirmed(job, wanted, artifact)
    measured = artifact.manifest.measured
    found = {"artifact": str(out), "architecture": str(network), "macs": artifact.manifest.macs}
    if as_json:
        emit({**found, "measured": None if measured is None else measured.__dict__})
        return
    fixed = artifact.manifest.fixed
    sizes = "" if fixed is None else f", for {fixed} alone"
    typer.echo(f"{out}: {network}, {artifact.manifest.macs / 1e9:.3f} GMACs, opset {artifact.manifest.opset}{sizes}")
    if measured is not None:
        typer.echo(
            f"measured on {chosen.name}: p50 {measured.p50_ms:.3f} ms, p90 {measured.p90_ms:.3f} ms, "
            f"{job.recipe.metric} {100 * measured.metric:.2f}% on {measured.n} samples of the report split"
        )


def _fixed_sizes(job: Job, deployment: Deployment, tokens: int | None, *, batch: bool) -> FixedSizes | None:
    """The sizes to fix in a network's files: the deployment's batch, and the length of texts; None: nothing.

    Args:
        tokens: length of every text; None: any. Whoever fixes the length fixes the batch.
        batch: whether to fix the batch.

    Raises:
        UsageError: the run's network reads no texts, or not of that length.
    """
    from instatune_deploy.elastic.probing import longest_text
    from instatune_deploy.values.fixed import FixedSizes

    if tokens is None:
        return FixedSizes(deployment.batch) if batch else None
    if job.processor.head.reads == "image":
        raise UsageError(f"{job.recipe.task} has no texts whose length could be fixed: fix the batch")
    longest = longest_text(job.config)
    if tokens < job.recipe.data.sequence_length or (longest is not None and tokens > longest):
        most = "" if longest is None else f" and at most {longest}"
        raise UsageError(
            f"a length of {tokens} tokens will not do: texts of this run have up to {job.recipe.data.sequence_length}, so "
            f"fix at least that{most}"
        )
    return FixedSizes(deployment.batch, tokens)
