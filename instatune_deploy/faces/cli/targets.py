"""`instatune-deploy targets`: the kinds of devices there are, and which this machine can serve."""

from __future__ import annotations

from typing import Annotated

import typer

from instatune_deploy.errors import InstatuneError
from instatune_deploy.faces.cli.app import JsonOption, app, emit
from instatune_deploy.values.target import Target, find_target
from instatune_deploy.workspace import data_directories

targets = typer.Typer(help="List, show and detect targets.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(targets, name="targets")


def _all() -> list[Target]:
    places = data_directories("targets")
    names = {path.stem for place in places for path in place.glob("*.yaml")}
    return [find_target(name, places) for name in sorted(names)]


@targets.command("list")
def list_targets(as_json: JsonOption = False) -> None:
    """Name every target: those shipped, the user's, and those in ./targets.

    Example: instatune-deploy targets list
    """
    if as_json:
        emit({target.name: target.description for target in _all()})
        return
    for target in _all():
        typer.echo(f"{target.name:16} {target.description}")


@targets.command("show")
def show(
    name: Annotated[str, typer.Argument(help="A target, or the path of a YAML file.")], as_json: JsonOption = False
) -> None:
    """Show what a target needs and which deployments are tried on it.

    Example: instatune-deploy targets show cpu-avx512
    """
    target = find_target(name, data_directories("targets"))
    if as_json:
        emit(
            {"name": target.name, "needs": target.instruction_sets, "deployments": [d.name for d in target.deployments]}
        )
        return
    typer.echo(f"{target.name}: {target.description}")
    typer.echo(f"needs: {', '.join(target.instruction_sets) or 'nothing'}")
    for deployment in target.deployments:
        needs = f" (where the CPU has {', '.join(deployment.needs)})" if deployment.needs else ""
        typer.echo(
            f"deployment {deployment.name}: {deployment.runtime}, {deployment.precision}, {deployment.threads} threads{needs}"
        )


@targets.command("detect")
def detect_targets(as_json: JsonOption = False) -> None:
    """Say which targets this machine can serve, and why not the others.

    Example: instatune-deploy targets detect
    """
    from instatune_deploy.device.fingerprint import check_target, detect

    machine, found = detect(), {}
    for target in _all():
        try:
            check_target(target, machine)
            found[target.name] = "yes"
        except InstatuneError as error:
            found[target.name] = f"no: {error}"
    if as_json:
        emit(found)
        return
    for name, answer in found.items():
        typer.echo(f"{name:16} {answer}")
