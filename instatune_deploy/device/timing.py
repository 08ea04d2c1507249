"""The measurement protocol: latency of whole networks under one deployment, in a process of their own.

Protocol:
  1. One process a deployment, pinned to as many CPUs as it has threads; nothing else runs in it.
  2. A busy machine is waited out, up to a limit.
  3. Every model is warmed up until its median settles.
  4. Rounds: each visits every model, in a new random order, for a few runs.
  5. It ends when the labels that count are known to within half a percent, or at a time cap, which is reported.
  6. Labels are found from all runs together (see `labels`): every model is the others' anchor.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from instatune_deploy.device.fingerprint import machine_key, runtime_versions
from instatune_deploy.device.labels import Labels, find_labels, interrupted_share
from instatune_deploy.device.process import ROUNDS_FILE, keep_rounds_of, run_worker, worker_spec
from instatune_deploy.device.runtimes.base import get_runtime
from instatune_deploy.device.samples import Samples
from instatune_deploy.device.settings import TimingSettings
from instatune_deploy.device.worker import read_rounds, total_bytes
from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.latency import Disturbance, LatencySample

#: A session of a network that loads more slowly than this hangs.
SLOWEST_LOADING_BYTES_PER_S = 25e6
#: A round whose runs are by this factor slower than those of the fastest quarter of rounds counts as slow.
DRIFT = 1.05


@dataclass(frozen=True)
class Measurement:
    """What `measure` found: samples by model name, every run, how disturbed it was, the seconds that each model's visits
    took, the rounds, and the runtime's options."""

    samples: dict[str, LatencySample]
    raw: Samples
    disturbance: Disturbance
    seconds: dict[str, float]
    rounds: int
    options: dict[str, str]


def measure(
    models: Mapping[str, Path],
    inputs: dict[str, np.ndarray],
    deployment: Deployment,
    *,
    visits: Mapping[str, int] | None = None,
    sure: Sequence[str] | None = None,
    seed: int = 0,
    settings: TimingSettings | None = None,
    journal: Path | None = None,
) -> Measurement:
    """Measure the latency of `models` under `deployment`, in a process of their own.

    Args:
        models: the file of each model, by its name; architectures print as theirs.
        inputs: arrays by input name, batch first; used as they are.
        visits: visits to each model in a round; one if not given.
        sure: the models whose labels must be sure before it may end; all if not given.
        seed: of the order of visits.
        journal: a directory that keeps every round as soon as it is over; a measurement of the same that was
            interrupted goes on from there. The caller removes it.

    Raises:
        MeasurementError: the process died or took too long, or a latency is impossible; the journal stays.
        TargetError: this process may not use as many CPUs as the deployment has threads.
        UnknownNameError: there is no such runtime.
    """
    settings = settings or TimingSettings()
    options = get_runtime(deployment.runtime).options(deployment)
    spec = worker_spec(
        {name: str(path.absolute()) for name, path in models.items()},
        {name: (visits or {}).get(name, 1) for name in models},
        list(models if sure is None else sure),
        deployment,
        seed=seed,
        settings=asdict(settings),
    )
    loading_s = total_bytes(dict(models)) / SLOWEST_LOADING_BYTES_PER_S
    timeout_s = settings.timeout_s or (
        600 + 3 * (settings.seconds + settings.wait_s) + (settings.min_rounds + 1) * loading_s
    )
    with _directory(journal, spec, options) as directory:
        arrays: dict[str, Any] = dict(inputs)
        np.savez(directory / "inputs.npz", **arrays)
        # The worker imports this very package, wherever it was imported from.
        root = Path(__file__).resolve().parents[2]
        run_worker(directory, spec, deployment, package_root=root, timeout_s=timeout_s)
        rounds = read_rounds(directory / ROUNDS_FILE)
    return evaluate_rounds(list(models), rounds, options, precision=settings.precision, seed=seed)


def evaluate_rounds(
    names: list[str], rounds: list[dict[str, Any]], options: dict[str, str], *, precision: float, seed: int = 0
) -> Measurement:
    """What rounds say, as the worker writes them.

    Raises:
        MeasurementError: a model has no run, or a latency is impossible.
    """
    seconds = dict.fromkeys(names, 0.0)
    for done in rounds:
        for name, _, spent_s, *_ in done["visits"]:
            seconds[name] += spent_s
    raw = Samples.of_rounds(names, rounds)
    labels = find_labels(raw, seed=seed)
    disturbance = Disturbance(
        others_cpus=_mean([done["others"] for done in rounds]),
        stolen_cpus=_mean([done["stolen"] for done in rounds]),
        interrupted_pct=round(100 * interrupted_share(raw), 2),
        slow_rounds_pct=round(100 * slow_share(labels.round_factor), 2),
        waited_s=round(sum(done["waited_s"] for done in rounds), 1),
    )
    return Measurement(summarize(raw, labels, precision=precision), raw, disturbance, seconds, len(rounds), options)


def summarize(raw: Samples, labels: Labels, *, precision: float) -> dict[str, LatencySample]:
    """What runs say of each model, by its name.

    Args:
        labels: what `find_labels` found in them.
        precision: half-width of a label's 95% confidence interval (fraction) up to which it counts as converged.
    """
    samples = {}
    for number, name in enumerate(raw.names):
        p50, p90, p99 = (float(value) for value in np.percentile(raw.wall_ms[raw.model == number], [50, 90, 99]))
        samples[name] = LatencySample(
            architecture=name,
            label_ms=float(labels.label_ms[number]),
            interval_pct=float(100 * labels.interval[number]) if np.isfinite(labels.interval[number]) else None,
            p50_ms=p50,
            p90_ms=p90,
            p99_ms=p99,
            n=int((raw.model == number).sum()),
            half_labels_ms=(float(labels.half_label_ms[number, 0]), float(labels.half_label_ms[number, 1])),
            converged=bool(labels.interval[number] <= precision),
        )
    return samples


def slow_share(round_factor: np.ndarray) -> float:
    """Share of rounds (0..1) that were slower by `DRIFT` than the fastest quarter of rounds."""
    return float((round_factor > DRIFT * np.quantile(round_factor, 0.25)).mean())


def _mean(values: list[float]) -> float:
    return round(float(np.mean(values)), 3) if values else 0.0


@contextmanager
def _directory(journal: Path | None, spec: dict[str, Any], options: dict[str, str]) -> Iterator[Path]:
    """The journal, or a directory that goes; rounds of other networks, versions, options or machines are not kept."""
    key = {name: value for name, value in spec.items() if name not in ("settings", "cpus")}
    key |= {"options": options, "versions": runtime_versions(), "machine": machine_key()}
    with tempfile.TemporaryDirectory(prefix="instatune-timing-") if journal is None else nullcontext(journal) as name:
        keep_rounds_of(Path(name), key)
        yield Path(name)
