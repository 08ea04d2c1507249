"""An exported file is measured on its own: percentiles, their intervals, and whether `benchmark_app` agrees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from instatune_deploy.device.benchmark_app import run_benchmark_app
from instatune_deploy.device.settings import TimingSettings
from instatune_deploy.device.timing import Measurement, measure
from instatune_deploy.errors import MeasurementError
from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.latency import LatencySample

#: Processes a file is measured in, one after the other. Two processes differ by more than the runs of one do.
PROCESSES = 5
#: Seconds that a process waits at most for others to leave the machine alone.
_WAIT_S = 5.0
#: How far `benchmark_app` may be from us (fraction).
TOLERANCE = 0.10
_FEWEST_APP_RUNS, _MOST_APP_RUNS = 20, 20_000


@dataclass(frozen=True)
class Estimate:
    """The median over processes, and the 95% interval of what processes like them tend to."""

    value: float
    low: float
    high: float

    @staticmethod
    def of(values: Sequence[float]) -> Estimate:
        """From one positive number a process, at least two.

        The one place where intervals come from: Student's t on the logarithms. It holds the differences between processes and the
        drift of the machine, which an interval from the runs of one process does not.
        """
        logs = np.log(values)
        half = float(stats.t.ppf(0.975, len(logs) - 1)) * float(logs.std(ddof=1)) / len(logs) ** 0.5
        middle = float(logs.mean())
        return Estimate(float(np.median(values)), float(np.exp(middle - half)), float(np.exp(middle + half)))


@dataclass(frozen=True)
class Latency:
    """Measured latency of a file in ms for one call: each number the median of what the processes found.

    Args:
        p50_ms: median; `label_ms`: what latency tables predict, see `labels`.
        p90_ms, p99_ms: percentiles of a process's runs.
        n: runs that counted, of all processes together.
        converged: whether every process knew its label to within half a percent before its time was over.
    """

    p50_ms: Estimate
    label_ms: Estimate
    p90_ms: float
    p99_ms: float
    n: int
    processes: int
    converged: bool

    @staticmethod
    def of(samples: Sequence[LatencySample]) -> Latency:
        """From what each process found."""
        return Latency(
            p50_ms=Estimate.of([sample.p50_ms for sample in samples]),
            label_ms=Estimate.of([sample.label_ms for sample in samples]),
            p90_ms=float(np.median([sample.p90_ms for sample in samples])),
            p99_ms=float(np.median([sample.p99_ms for sample in samples])),
            n=sum(sample.n for sample in samples),
            processes=len(samples),
            converged=all(sample.converged for sample in samples),
        )


@dataclass(frozen=True)
class Check:
    """What `benchmark_app` found in between.

    Args:
        median_ms: median over its processes of the median latency that it printed.
        ratio: our p50 by its median, the median over neighbours in time.
        n: runs it timed, of all processes together.
        processes: how often it was started.
    """

    median_ms: float
    ratio: float
    n: int
    processes: int

    @property
    def within_10_pct(self) -> bool:
        """Whether the two agree."""
        return abs(self.ratio - 1) <= TOLERANCE


@dataclass(frozen=True)
class Bench:
    """What was measured of some files in the same rounds.

    Args:
        latency: by file name; the first file's is what `check` is of.
        ratio: p50 of the first file by that of each other one, from the same processes.
        check: None where `benchmark_app` did not run.
        check_failure: why it did not, where it was to run.
        rounds: of all processes together; `slow_rounds_pct`: share of those in which the machine was slow by 5% or more (%).
        options: the runtime's.
    """

    latency: dict[str, Latency]
    ratio: dict[str, Estimate]
    check: Check | None
    check_failure: str | None
    rounds: int
    slow_rounds_pct: float
    options: dict[str, str]


def bench(
    files: dict[str, Path],
    inputs: dict[str, np.ndarray],
    deployment: Deployment,
    *,
    app: Path | None,
    seconds: float,
    seed: int,
    report: Callable[[str], None],
    processes: int = PROCESSES,
) -> Bench:
    """Measure `files` in the same rounds of `processes` processes, and have `benchmark_app` measure the first in between.

    Args:
        files: what the deployment's runtime loads, by name.
        inputs: a batch by input name, real in shape.
        app: the executable of `benchmark_app`; None leaves the check out.
        seconds: time cap a file, of all processes together; loading and warming up come on top.
        processes: at least two.

    Raises:
        MeasurementError: measuring failed or gave impossible latencies. That `benchmark_app` failed is no error.
        ArtifactError: a file cannot be loaded.
        TargetError: this process may not use as many CPUs as the deployment has threads.
    """
    first = next(iter(files))
    settings = TimingSettings(seconds=seconds / processes * len(files), wait_s=_WAIT_S)
    ours: list[Measurement] = []
    medians_ms: list[float] = []
    app_runs, failure = 0, None
    for number in range(processes):
        ours.append(measure(files, inputs, deployment, seed=seed + number, settings=settings))
        p50_ms = ours[-1].samples[first].p50_ms
        report(f"process {number + 1}/{processes}: p50 {p50_ms:.3f} ms, measured in {ours[-1].samples[first].n} runs")
        if app is None or failure is not None or number + 1 == processes:
            continue
        # As long as ours measured this file, which shares the time with the others.
        runs = min(max(round(1000 * seconds / processes / p50_ms), _FEWEST_APP_RUNS), _MOST_APP_RUNS)
        timeout_s = 120 + 10 * runs * p50_ms / 1000
        try:
            median_ms = run_benchmark_app(app, files[first], inputs, deployment, runs=runs, timeout_s=timeout_s)
        except MeasurementError as error:
            failure = str(error)
            continue
        report(f"benchmark_app: median {median_ms:.3f} ms, measured in {runs} runs")
        medians_ms.append(median_ms)
        app_runs += runs
    samples = {name: [measurement.samples[name] for measurement in ours] for name in files}
    check = None
    if medians_ms and failure is None:
        ratio = neighbour_ratio([sample.p50_ms for sample in samples[first]], medians_ms)
        check = Check(float(np.median(medians_ms)), ratio, app_runs, len(medians_ms))
    return Bench(
        latency={name: Latency.of(found) for name, found in samples.items()},
        ratio={
            name: Estimate.of([a.p50_ms / b.p50_ms for a, b in zip(samples[first], found, strict=True)])
            for name, found in samples.items()
            if name != first
        },
        check=check,
        check_failure=failure,
        rounds=sum(measurement.rounds for measurement in ours),
        slow_rounds_pct=float(np.mean([measurement.disturbance.slow_rounds_pct for measurement in ours])),
        options=ours[0].options,
    )


def neighbour_ratio(ours_ms: Sequence[float], theirs_ms: Sequence[float]) -> float:
    """The median ratio of ours to theirs, each of theirs compared with ours before and after it.

    A machine that grows slower or faster moves the two ratios of a neighbourhood in opposite directions.

    Args:
        ours_ms: one more than `theirs_ms`, which were measured in between.
    """
    pairs = [(ours, theirs) for i, theirs in enumerate(theirs_ms) for ours in ours_ms[i : i + 2]]
    return float(np.median([ours / theirs for ours, theirs in pairs]))
