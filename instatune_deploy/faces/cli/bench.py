"""`instatune-deploy bench`: how fast an exported artifact is on this machine, and whether `benchmark_app` agrees."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from instatune_deploy.errors import MeasurementError
from instatune_deploy.faces.cli.app import JsonOption, app, emit, progress

if TYPE_CHECKING:
    from instatune_deploy.benching import ArtifactBench


@app.command()
def bench(
    artifact: Annotated[Path, typer.Argument(help="Directory that `run`, `select` or `export` wrote.")],
    deployment: Annotated[str | None, typer.Option(help="Such as ort-fp32-2t; default: the artifact's own.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Samples a call; default: the deployment's.")] = None,
    sequence_length: Annotated[
        int | None, typer.Option(min=1, help="Tokens of a text; default: what the artifact was made for.")
    ] = None,
    compare: Annotated[Path | None, typer.Option(help="Another artifact, measured in the same rounds.")] = None,
    seconds: Annotated[float, typer.Option(min=1, help="Measuring time of an artifact at most.")] = 15,
    check: Annotated[bool, typer.Option(help="Have OpenVINO's benchmark_app measure an OpenVINO file, too.")] = True,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit code 1 where benchmark_app is over 10% off or cannot run.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1)] = 0,
    as_json: JsonOption = False,
) -> None:
    """Measure an artifact on this machine as latency tables are measured, its files checked first.

    An OpenVINO deployment is measured by OpenVINO's own benchmark_app as well, in turns with ours.

    Example: instatune-deploy bench runs/minilm-sst2/artifacts/cpu-avx512/p50-50pct --deployment ov-fp32-1t
    """
    from instatune_deploy.benching import bench_artifact

    found = bench_artifact(
        artifact, deployment=deployment, batch=batch, sequence_length=sequence_length, compare=compare, check=check,
        seconds=seconds, seed=seed, report=progress(),
    )  # fmt: skip
    emit(found.to_dict()) if as_json else typer.echo("\n".join(_lines(found)))
    outcome = found.found.check
    if strict and check and found.deployment.runtime == "openvino" and found.deployment.device == "cpu":
        if outcome is None:
            raise MeasurementError(f"nothing checked this: {found.unchecked}")
        if not outcome.within_10_pct:
            raise MeasurementError(
                f"benchmark_app disagrees: ours is {outcome.ratio:.3f} times its median, over 10% off"
            )


def _lines(bench: ArtifactBench) -> Iterator[str]:
    """What a person reads."""
    latency, found, machine = bench.latency, bench.found, bench.machine
    what = f"batch {bench.deployment.batch}" + (f", {bench.tokens} tokens" if bench.tokens else "")
    yield f"{bench.artifact.directory}: {bench.artifact.manifest.architecture} on {bench.deployment.name}, {what}"
    sure = (
        "converged"
        if latency.converged
        else "NOT converged: some process did not know its label to within half a percent in time"
    )
    yield f"measured in {latency.n} runs of {latency.processes} processes, {sure}"
    p50, label = latency.p50_ms, latency.label_ms
    yield (
        f"latency of a call: p50 {p50.value:.3f} ms (95% interval {p50.low:.3f} to {p50.high:.3f} ms), "
        f"p90 {latency.p90_ms:.3f} ms, p99 {latency.p99_ms:.3f} ms"
    )
    yield f"label, as tables predict it: {label.value:.3f} ms (95% interval {label.low:.3f} to {label.high:.3f} ms)"
    yield f"throughput: {bench.samples_per_s:.1f} samples/s, one call after the other at the p50"
    yield (
        f"machine: {machine.cpu_model}, {machine.logical_cpus} CPUs with a load of {machine.load_1min:.2f} before; "
        f"slow by 5% or more in {found.slow_rounds_pct:.0f}% of {found.rounds} rounds"
    )
    if bench.other is not None:
        ratio, other = found.ratio["other"], found.latency["other"]
        yield (
            f"{bench.other.directory}: p50 {other.p50_ms.value:.3f} ms, measured in {other.n} runs of the same rounds; "
            f"ours takes {ratio.value:.3f} times as long (95% interval {ratio.low:.3f} to {ratio.high:.3f})"
        )
    if found.check is not None:
        outcome = found.check
        verdict = "within 10%" if outcome.within_10_pct else "CHECK FAILED, over 10% off"
        yield (
            f"benchmark_app: median {outcome.median_ms:.3f} ms, measured in {outcome.n} runs of {outcome.processes} "
            f"processes in turns with ours; ours is {outcome.ratio:.3f} times that: {verdict}"
        )
    else:
        yield f"not checked: {bench.unchecked}"
