"""Where latency tables lie, and which of them holds for a machine."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from instatune_deploy.errors import TableError
from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.documents import parse_json
from instatune_deploy.values.latency import LatencyTable, Machine, read_text, table_file
from instatune_deploy.values.space import SearchSpace


def differences(table: LatencyTable, machine: Machine, versions: dict[str, str]) -> list[str]:
    """What a table was measured with that is not so here: machine, runtime version."""
    found, there = [], table.machine
    if (there.cpu_model, there.logical_cpus) != (machine.cpu_model, machine.logical_cpus):
        found.append(
            f"measured on {there.logical_cpus} x {there.cpu_model}, this is {machine.logical_cpus} x {machine.cpu_model}"
        )
    if table.deployment.device != "cpu" and there.accelerators != machine.accelerators:
        here = ", ".join(machine.accelerators) or "none"
        found.append(f"measured with {', '.join(there.accelerators) or 'no accelerator'}, here: {here}")
    runtime = table.deployment.runtime
    if table.versions.get(runtime) != versions.get(runtime):
        found.append(f"measured with {runtime} {table.versions.get(runtime)}, here: {versions.get(runtime)}")
    return found


def tables_for(directory: Path, target: str, signature: str, deployment: Deployment) -> list[tuple[Path, LatencyTable]]:
    """The tables below `directory` with this key, whatever their files are called.

    Raises:
        TableError: one of them, or a file where one should lie, is damaged; names the file and the field.
    """
    expected = directory / table_file(target, signature, deployment)
    wanted = (
        target, signature, deployment.runtime, deployment.precision, deployment.threads, deployment.batch, deployment.device,
    )  # fmt: skip
    found = []
    for path in sorted(directory.rglob("*.json")):
        if any(part.startswith(".") for part in path.relative_to(directory).parts):
            continue  # drafts and journals
        try:
            state = path.stat()
        except OSError as error:
            raise TableError(f"{path}: cannot be read: {error}") from None
        if path != expected and _key_of(path, state.st_ino, state.st_mtime_ns, state.st_size) != wanted:
            continue
        table = LatencyTable.from_json(read_text(path), str(path))
        if (table.target, table.signature, table.deployment.name) == (target, signature, deployment.name):
            found.append((path, table))
        elif path == expected:
            raise TableError(
                f"{path}: target, signature, deployment: holds the table of {table.file_name}, not what its place says"
            )
    return found


@cache
def _key_of(path: Path, inode: int, written_ns: int, size: int) -> tuple[Any, ...] | None:
    """Target, signature and deployment that a file says it is the table of; None: it says no such thing, and a damaged one of
    another key is nobody's problem here. Read once as long as the file stays what it is: it is asked for every key there is."""
    try:
        data = parse_json(read_text(path))
        deployment = data["deployment"]
        found = tuple(deployment[name] for name in ("runtime", "precision", "threads", "batch"))
        return data["target"], data["signature"], *found, deployment.get("device", "cpu")
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def find_table(
    target: str,
    signature: str,
    deployment: Deployment,
    space: SearchSpace,
    directories: Sequence[Path],
    *,
    machine: Machine,
    versions: dict[str, str],
    foreign: bool = False,
) -> tuple[LatencyTable | None, list[str]]:
    """The first table in `directories` that covers `space` and was measured on a machine and runtime like this one.

    Args:
        foreign: whether a table of another machine or runtime version will do where there is none of this.

    Returns:
        The table or None, and lines for the user: for each table passed over why, or what differs about the one found.

    Raises:
        TableError: a table is damaged, or a directory has two for one key.
    """
    lines: list[str] = []
    others: list[tuple[LatencyTable, str]] = []
    for directory in directories:
        tables = tables_for(directory, target, signature, deployment)
        if len(tables) > 1:
            paths = " and ".join(str(path) for path, _ in tables[:2])
            raise TableError(f"two latency tables for {target}, {deployment.name}, {signature}: {paths}; remove one")
        for path, table in tables:
            lacking = [f"no entry for {', '.join(missing)}"] if (missing := table.missing(space)) else []
            foreignness = differences(table, machine, versions)
            if not lacking and not foreignness:
                return table, lines
            if not lacking:
                others.append((table, f"{path}: {', '.join(foreignness)}"))
            lines.append(f"{path} passed over: {', '.join([*lacking, *foreignness])}")
    if foreign and others:
        table, what = others[0]
        return table, [f"warning: a foreign latency table is used as asked: {what}"]
    return None, lines
