"""`instatune-deploy targets`: the kinds of devices there are, and which this machine can serve."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from instatune_deploy.faces.cli.app import JsonOption, app, emit
from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.target import every_target, find_target
from instatune_deploy.workspace import data_directories

if TYPE_CHECKING:
    from instatune_deploy.device.fingerprint import Servable

targets = typer.Typer(help="List, show and detect targets.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(targets, name="targets")


@targets.command("list")
def list_targets(as_json: JsonOption = False) -> None:
    """Name every target: those shipped, the user's, and those in ./targets.

    Example: instatune-deploy targets list
    """
    known = every_target(data_directories("targets"))
    if as_json:
        emit({target.name: target.description for target in known})
        return
    for target in known:
        typer.echo(f"{target.name:16} {target.description}")


@targets.command("show")
def show(
    name: Annotated[str, typer.Argument(help="A target, or the path of a YAML file.")], as_json: JsonOption = False
) -> None:
    """Show what a target needs, which deployments are tried on it and with which inputs.

    Example: instatune-deploy targets show cpu-avx512
    """
    target = find_target(name, data_directories("targets"))
    if as_json:
        fields = asdict(target)
        fields["deployments"] = [{"name": d.name, **asdict(d)} for d in target.deployments]
        emit(fields)
        return
    typer.echo(f"{target.name}: {target.description}")
    typer.echo(f"device: {target.device}")
    typer.echo(f"needs: {', '.join(target.instruction_sets) or 'no instruction sets'}")
    if target.device != "cpu":
        typer.echo(f"accelerator: {target.accelerator or 'any'}")
    typer.echo(f"workload: {target.workload.sequence_length} tokens, {target.workload.image_size} pixels a side")
    for deployment in target.deployments:
        typer.echo(f"deployment {deployment.name}: {_describe(deployment)}")


def _describe(deployment: Deployment) -> str:
    """A deployment's fields in words."""
    threads = f"{deployment.threads} thread{'s' if deployment.threads > 1 else ''}"
    needs = f" (where the CPU has {', '.join(deployment.needs)})" if deployment.needs else ""
    return f"{deployment.runtime} on {deployment.device}, {deployment.precision}, {threads}, batch {deployment.batch}{needs}"


@targets.command("detect")
def detect_targets(as_json: JsonOption = False) -> None:
    """Say which targets this machine can serve, by which deployments, and why not the others.

    Example: instatune-deploy targets detect
    """
    from instatune_deploy.device import fingerprint

    found = fingerprint.servable(every_target(data_directories("targets")), fingerprint.detect())
    if as_json:
        emit({answer.target.name: _answer(answer) for answer in found})
        return
    for answer in found:
        if answer.reason is not None:
            typer.echo(f"{answer.target.name:16} no: {answer.reason}")
            continue
        typer.echo(f"{answer.target.name:16} yes: {', '.join(d.name for d in answer.deployments)}")
        for line in answer.skipped:
            typer.echo(f"{'':16} {line}")


def _answer(found: Servable) -> dict[str, Any]:
    """For JSON."""
    if found.reason is not None:
        return {"servable": False, "reason": found.reason}
    return {"servable": True, "deployments": [d.name for d in found.deployments], "skipped": list(found.skipped)}
