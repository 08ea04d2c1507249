"""`instatune-deploy verify`: whether an artifact still is what its manifest says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from instatune_deploy.faces.cli.app import JsonOption, app, emit, find_run, progress

if TYPE_CHECKING:
    from instatune_deploy.verifying import Verification


@app.command()
def verify(
    artifact: Annotated[Path, typer.Argument(help="Directory that `run`, `select`, `export` or `fleet` wrote.")],
    run: Annotated[
        Path | None,
        typer.Option("--run", help="The run that made it, for its report split; default: the one it lies in, if any."),
    ] = None,
    latency: Annotated[bool, typer.Option(help="Measure its latency on this machine.")] = True,
    seconds: Annotated[float, typer.Option(min=1, help="Measuring time at most.")] = 10,
    as_json: JsonOption = False,
) -> None:
    """Repeat every check of an artifact, or of every member of a fleet: hashes, outputs against its own weights, metric,
    latency.

    Exit code 1 where something does not hold. Without a run's report split, outputs are compared on synthetic inputs and
    the metric is not measured.

    Example: instatune-deploy verify runs/minilm-sst2/artifacts/cpu-avx512/p50-50pct
    """
    from instatune_deploy.pipeline import open_run
    from instatune_deploy.values.fleet import Fleet, is_fleet
    from instatune_deploy.verifying import require, verify_artifact
    from instatune_deploy.workspace import is_run

    report = progress()
    home = run or next((parent for parent in artifact.resolve().parents if is_run(parent)), None)
    job = None if home is None else open_run(find_run(home), report)
    whole = is_fleet(artifact)
    directories = [artifact / member.directory for member in Fleet.read(artifact).members] if whole else [artifact]
    verified = [
        verify_artifact(directory, job=job, latency=latency, seconds=seconds, report=report)
        for directory in directories
    ]
    if as_json:
        found = [verification.to_dict() for verification in verified]
        emit({"fleet": str(artifact), "members": found} if whole else found[0])
    else:
        typer.echo("\n".join(line for verification in verified for line in _lines(verification)))
    for verification in verified:
        require(verification)


def _lines(found: Verification) -> Iterator[str]:
    """What a person reads."""
    manifest, measured = found.artifact.manifest, found.artifact.manifest.measured
    yield f"{found.artifact.directory}: {manifest.architecture} on {manifest.deployment.name}"
    yield f"hashes: the {len(manifest.files)} files of the manifest, unchanged"
    for file in found.files:
        parity = file.parity
        same = "" if parity.argmax_agreement is None else f", {100 * parity.argmax_agreement:.1f}% of decisions alike"
        yield (
            f"{file.name}: {file.size_bytes / 1e6:.2f} MB, largest absolute error {parity.max_abs_error:.2g}{same} "
            f"(measured on {parity.n} inputs, {found.inputs})"
        )
    if found.metric is not None:
        before = "" if measured is None else f" (manifest: {100 * measured.metric:.2f}%)"
        yield f"{manifest.metric}: measured {100 * found.metric:.2f}% on {found.n} samples of the report split{before}"
    if found.latency is not None:
        before = "" if measured is None else f" (manifest: p50 {measured.p50_ms:.3f} ms, where it was made)"
        yield (
            f"latency: measured p50 {found.latency.p50_ms:.3f} ms, p90 {found.latency.p90_ms:.3f} ms, "
            f"{found.latency.n} runs here{before}"
        )
    for line in found.unchecked:
        yield f"not checked: {line}"
    yield "what was checked holds" if not found.problems else f"{len(found.problems)} problems"
