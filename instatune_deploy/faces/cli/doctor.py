"""`instatune-deploy doctor`: what this machine and installation can do, what is missing, how steady latencies are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from instatune_deploy.faces.cli.app import JsonOption, app, emit, progress

if TYPE_CHECKING:
    from instatune_deploy.doctoring import Checkup


@app.command()
def doctor(
    seconds: Annotated[
        float, typer.Option(min=0, help="Seconds of measuring this machine's noise; 0: do not measure.")
    ] = 10,
    as_json: JsonOption = False,
) -> None:
    """Look at this machine: versions, runtimes that load, targets, what is missing, and how steady latencies are.

    Exit code 1: something that every run needs is missing.

    Example: instatune-deploy doctor --seconds 10
    """
    from instatune_deploy.doctoring import checkup

    found = checkup(seconds, progress())
    if as_json:
        emit(found.to_dict())
    else:
        typer.echo("\n".join(_lines(found)))
    if not found.is_well:
        raise typer.Exit(1)


def _lines(found: Checkup) -> list[str]:
    """All of it for people."""
    machine, around = found.machine, found.surroundings
    lines = ["versions"]
    lines += [f"  {name} {version}" for name, version in found.versions.items()]
    lines += ["machine"]
    lines.append(f"  {machine.cpu_model}, {machine.architecture}, {machine.memory_bytes / 2**30:.1f} GiB")
    lines.append(f"  instruction sets: {', '.join(machine.instruction_sets) or 'not known'}")
    cpus = ", ".join(map(str, around.allowed_cpus))
    quota = "" if around.quota_cpus is None else f"; a control group allows {around.quota_cpus:g} in the mean"
    lines.append(f"  threads: this process may use CPU {cpus} of {around.online_cpus}{quota}")
    clock = ", ".join(around.governors) or (
        "left to the host of this virtual machine" if around.virtual else "not said"
    )
    boost = {None: "", True: "; boost is on", False: "; boost is off"}[around.boost]
    lines.append(f"  frequency governor: {clock}{boost}; load {machine.load_1min:.2f} (1 minute)")
    lines.append(f"  accelerators: {', '.join(machine.accelerators) or 'none'}")
    lines += [f"  advice: {line}" for line in around.advice]
    lines.append("runtimes")
    lines += [f"  {trial.name:22} {'loads and runs' if trial.works else f'no: {trial.why}'}" for trial in found.trials]
    lines.append("targets")
    for target in found.targets:
        if target.reason is not None:
            lines.append(f"  {target.target.name:18} no: {target.reason}")
            continue
        lines.append(f"  {target.target.name:18} yes: {', '.join(d.name for d in target.deployments)}")
        lines += [f"  {'':18} {line}" for line in target.skipped]
    lines.append("packages")
    lines += [f"  {lack.what}; for {lack.needed_for}: {lack.install}" for lack in found.lacks] or ["  all there"]
    if found.noise is not None:
        lines.append(f"noise, measured on {found.noise.deployment}")
        lines += [f"  {line}" for line in found.meaning]
    return lines
