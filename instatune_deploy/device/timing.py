"""The measurement protocol: latency of whole networks under one deployment, in a process of their own.

Protocol:
  1. One process a deployment, pinned to as many CPUs as it has threads; nothing else runs in it.
  2. Every model is warmed up until its median settles.
  3. Rounds: each visits every model once, in a new random order, for a few runs, with visits to a fixed anchor model
     at its start, middle and end. Rounds in which the anchor was slow do not count and are run again.
  4. It ends when every label (mean of the fastest quarter) is known to within 1%, or at a time cap, which is reported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from instatune_deploy.device.fingerprint import available_cpus
from instatune_deploy.device.rounds import Round, calm_rounds, steadiest_statistic, summarize
from instatune_deploy.device.runtimes.base import get_runtime
from instatune_deploy.errors import MeasurementError, TargetError
from instatune_deploy.values.latency import LatencySample
from instatune_deploy.values.target import Deployment

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TBB_NUM_THREADS")

#: A session of a network that loads more slowly than this hangs.
SLOWEST_LOADING_BYTES_PER_S = 25e6


@dataclass(frozen=True)
class TimingSettings:
    """How long and how carefully to measure.

    Args:
        seconds: time cap a model; all models of a measurement share the sum of theirs.
        precision: half-width of the label's 95% confidence interval (fraction) at which a model is done.
        drift: how much slower than its fastest quarter of rounds (fraction) the anchor may be in a round that counts.
        min_rounds, max_rounds: calm rounds before it may end; rounds of any kind after which it ends.
        min_runs, max_runs: runs a visit; within these as many as take `visit_ms`.
        lead_ms: runs at the start of a visit that do not count: as many as take so long, at least one.
        anchor_visits: visits to the anchor in a round.
        warmup_runs, warmup_batches: runs between two looks at a model's median when warming up, and at most so many looks.
        timeout_s: after so long the process is stopped; None: 60 s, thrice the time cap, and what loading may take.
    """

    seconds: float = 6.0
    precision: float = 0.01
    drift: float = 0.05
    min_rounds: int = 6
    max_rounds: int = 200
    min_runs: int = 3
    max_runs: int = 30
    visit_ms: float = 30.0
    lead_ms: float = 5.0
    anchor_visits: int = 3
    warmup_runs: int = 4
    warmup_batches: int = 8
    timeout_s: float | None = None


@dataclass(frozen=True)
class Measurement:
    """What `measure` found.

    `samples` by model name; what their labels are (see `rounds.STATISTICS`); rounds that counted and rounds that were run again; seconds it took; the runtime's options;
    whether all sessions were live at once.
    """

    samples: dict[str, LatencySample]
    statistic: str
    rounds: int
    rejected_rounds: int
    elapsed_s: float
    options: dict[str, str]
    all_live: bool


def measure(
    models: dict[str, Path],
    inputs: dict[str, np.ndarray],
    deployment: Deployment,
    *,
    anchor: str,
    seed: int = 0,
    settings: TimingSettings | None = None,
) -> Measurement:
    """Measure the latency of `models` under `deployment`, in a process of their own.

    Args:
        models: the file of each model, by its name; architectures print as theirs.
        inputs: arrays by input name, batch first; used as they are.
        anchor: the name of the model that tells how calm the machine is.
        seed: of the order of visits.

    Raises:
        MeasurementError: the process died or took too long, or a latency is impossible.
        TargetError: this process may not use as many CPUs as the deployment has threads.
        UnknownNameError: there is no such runtime.
    """
    settings = settings or TimingSettings()
    if anchor not in models:
        raise MeasurementError(f"the anchor {anchor} is not among the models to measure")
    options = get_runtime(deployment.runtime).options(deployment)
    cpus = available_cpus()
    if deployment.threads > len(cpus):
        raise TargetError(f"{deployment.name} needs {deployment.threads} CPUs, this process may use {len(cpus)}")
    spec = {
        "models": {name: str(path.absolute()) for name, path in models.items()},
        "anchor": anchor,
        "deployment": asdict(deployment),
        # CPU 0 takes most interrupts, so the highest-numbered ones.
        "cpus": cpus[-deployment.threads :],
        "seed": seed,
        "settings": asdict(settings),
    }
    started = time.monotonic()
    timeout_s = settings.timeout_s or 60 + 3 * settings.seconds * len(models) + _loading_s(models, settings)
    result = _run_worker(spec, inputs, timeout_s, deployment)
    rounds = [Round(anchor, samples) for samples in result["rounds"]]
    calm = calm_rounds(rounds, drift=settings.drift, at_least=settings.min_rounds)
    statistic = steadiest_statistic(calm, list(models))
    return Measurement(
        samples={name: summarize(name, calm, statistic, precision=settings.precision, seed=seed) for name in models},
        statistic=statistic,
        rounds=len(calm),
        rejected_rounds=len(rounds) - len(calm),
        elapsed_s=time.monotonic() - started,
        options=options,
        all_live=result["all_live"],
    )


def total_bytes(models: dict[str, Path]) -> int:
    """Size of all models' files, an IR's weights included."""
    return sum(
        part.stat().st_size for path in models.values() for part in (path, path.with_suffix(".bin")) if part.is_file()
    )


def _loading_s(models: dict[str, Path], settings: TimingSettings) -> float:
    """Seconds that loading may take at most, where models too large to be live at once are loaded for each visit."""
    return (settings.min_rounds + 1) * total_bytes(models) / SLOWEST_LOADING_BYTES_PER_S


def _run_worker(
    spec: dict[str, Any], inputs: dict[str, np.ndarray], timeout_s: float, deployment: Deployment
) -> dict[str, Any]:
    """What the worker process writes for `spec`."""
    environment = {**os.environ, **dict.fromkeys(_THREAD_VARIABLES, str(deployment.threads))}
    # The worker imports this very package, wherever it was imported from.
    package_root = str(Path(__file__).resolve().parents[2])
    environment["PYTHONPATH"] = os.pathsep.join([package_root, *filter(None, [os.environ.get("PYTHONPATH")])])
    with tempfile.TemporaryDirectory(prefix="instatune-timing-") as name:
        directory = Path(name)
        (directory / "spec.json").write_text(json.dumps(spec), encoding="utf-8")
        arrays: dict[str, Any] = dict(inputs)
        np.savez(directory / "inputs.npz", **arrays)
        command = [sys.executable, "-m", "instatune_deploy.device.worker", str(directory)]
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False
            )
        except subprocess.TimeoutExpired:
            raise MeasurementError(f"measuring {deployment.name} took over {timeout_s:.0f} s and was stopped") from None
        if done.returncode != 0:
            how = f"exit code {done.returncode}" if done.returncode > 0 else f"signal {-done.returncode}"
            last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "it said nothing")
            raise MeasurementError(f"measuring {deployment.name} failed ({how}): {last.strip()}")
        try:
            result: dict[str, Any] = json.loads((directory / "result.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise MeasurementError(f"measuring {deployment.name} left no readable result: {error}") from None
        return result
