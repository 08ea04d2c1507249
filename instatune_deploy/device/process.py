"""Starts the process that measures, here and on devices; needs nothing but the standard library."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from instatune_deploy.device.machine_facts import available_cpus
from instatune_deploy.device.topology import pick_cpus, read_cores
from instatune_deploy.errors import MeasurementError, TargetError
from instatune_deploy.values.deployment import Deployment

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TBB_NUM_THREADS")
#: In a measurement's directory: its rounds, a line each, and what says that it is over.
ROUNDS_FILE, DONE_FILE = "rounds.jsonl", "done.json"
_KEY_FILE = "key.json"


def pinned_cpus(deployment: Deployment) -> list[int]:
    """The CPUs that a measurement of `deployment` is pinned to, see `pick_cpus`; none where a device computes.

    Raises:
        TargetError: this process may not use as many CPUs as the deployment has threads.
    """
    if deployment.device != "cpu":
        return []
    cpus = available_cpus()
    if deployment.threads > len(cpus):
        raise TargetError(f"{deployment.name} needs {deployment.threads} CPUs, this process may use {len(cpus)}")
    return pick_cpus(read_cores(cpus), deployment.threads)


def thread_environment(deployment: Deployment) -> dict[str, str]:
    """This process' environment with as many threads as the deployment has, for libraries that read it when they load."""
    return {**os.environ, **dict.fromkeys(_THREAD_VARIABLES, str(deployment.threads))}


def module_environment(deployment: Deployment, package_root: Path) -> dict[str, str]:
    """`thread_environment` for a process that imports this package from `package_root`."""
    places = [str(package_root), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**thread_environment(deployment), "PYTHONPATH": os.pathsep.join(places)}


def module_command(module: str, *arguments: str) -> list[str]:
    """The command that calls a module's ``main`` with `arguments`, and exits with what it returns.

    Unlike ``python -m``, it imports nothing from the working directory, which is the user's and may hold a ``numpy.py``;
    Python 3.10 has no option for that.
    """
    code = f"import sys; sys.path[:] = filter(None, sys.path); from {module} import main; sys.exit(main(*sys.argv[1:]))"
    return [sys.executable, "-c", code, *arguments]


def how_it_ended(returncode: int) -> str:
    """A failed process' exit code or signal in words."""
    return f"exit code {returncode}" if returncode > 0 else f"signal {-returncode}"


def worker_spec(
    models: Mapping[str, str], visits: Mapping[str, int], sure: Sequence[str], deployment: Deployment, *,
    seed: int, settings: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """What `worker` reads from ``spec.json``; see `timing.measure` for the arguments.

    Raises:
        TargetError: this process may not use as many CPUs as the deployment has threads.
    """
    return {
        "models": dict(models),
        "visits": dict(visits),
        "sure": list(sure),
        "deployment": asdict(deployment),
        "cpus": pinned_cpus(deployment),
        "seed": seed,
        "settings": dict(settings),
    }


def keep_rounds_of(directory: Path, key: Mapping[str, Any]) -> None:
    """Make `directory` if need be, and keep the rounds in it only if they were measured under the same `key`.

    Args:
        key: all that makes rounds comparable: networks, machine, runtime versions and options.
    """
    directory.mkdir(parents=True, exist_ok=True)
    text, path = json.dumps(key, sort_keys=True), directory / _KEY_FILE
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        for name in (ROUNDS_FILE, DONE_FILE):
            (directory / name).unlink(missing_ok=True)
        path.write_text(text, encoding="utf-8")


def run_worker(
    directory: Path, spec: Mapping[str, Any], deployment: Deployment, *, package_root: Path, timeout_s: float | None
) -> None:
    """Let a process of its own work through `directory`, which holds ``inputs.npz``; its rounds are in there afterwards.

    Args:
        package_root: where this package lies, for the process to import it from there.
        timeout_s: seconds after which the process is stopped; None: never.

    Raises:
        MeasurementError: it failed or took too long; what it measured stays.
    """
    (directory / "spec.json").write_text(json.dumps(spec), encoding="utf-8")
    command = module_command("instatune_deploy.device.worker", str(directory))
    try:
        done = subprocess.run(
            command, env=module_environment(deployment, package_root), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            text=True, timeout=timeout_s, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise MeasurementError(f"measuring {deployment.name} took over {timeout_s:.0f} s and was stopped") from None
    if done.returncode != 0:
        last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "it said nothing")
        raise MeasurementError(f"measuring {deployment.name} failed ({how_it_ended(done.returncode)}): {last.strip()}")
