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
from instatune_deploy.errors import MeasurementError
from instatune_deploy.values.deployment import Deployment

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TBB_NUM_THREADS")


def worker_spec(
    models: Mapping[str, str], visits: Mapping[str, int], sure: Sequence[str], deployment: Deployment, *,
    seed: int, settings: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """What `worker` reads from ``spec.json``; see `timing.measure` for the arguments."""
    return {
        "models": dict(models),
        "visits": dict(visits),
        "sure": list(sure),
        "deployment": asdict(deployment),
        # CPU 0 takes most interrupts, so the highest-numbered ones.
        "cpus": available_cpus()[-deployment.threads :] if deployment.device == "cpu" else [],
        "seed": seed,
        "settings": dict(settings),
    }


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
    environment = {**os.environ, **dict.fromkeys(_THREAD_VARIABLES, str(deployment.threads))}
    environment["PYTHONPATH"] = os.pathsep.join([str(package_root), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "instatune_deploy.device.worker", str(directory)]
    try:
        done = subprocess.run(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=timeout_s,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise MeasurementError(f"measuring {deployment.name} took over {timeout_s:.0f} s and was stopped") from None
    if done.returncode != 0:
        how = f"exit code {done.returncode}" if done.returncode > 0 else f"signal {-done.returncode}"
        last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "it said nothing")
        raise MeasurementError(f"measuring {deployment.name} failed ({how}): {last.strip()}")
