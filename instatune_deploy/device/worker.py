"""The process that measures: ``python -m instatune_deploy.device.worker DIRECTORY``, started by `timing.measure`.

Reads ``spec.json`` and ``inputs.npz`` from the directory and writes ``result.json`` there: the latencies of every round.
"""

from __future__ import annotations

import json
import math
import os
import random
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from instatune_deploy.device.rounds import STATISTICS, Round, calm_rounds, label_interval, schedule
from instatune_deploy.device.runtimes.base import Runtime, Session, get_runtime
from instatune_deploy.device.timing import TimingSettings, total_bytes
from instatune_deploy.errors import InstatuneError, MeasurementError
from instatune_deploy.values.target import Deployment

# A session holds the weights, often a second time in the layout its kernels want, and room for activations.
_MEMORY_A_FILE_BYTE = 3
_MEMORY_SHARE = 0.4


@dataclass
class Bench:
    """Models under measurement, and the sessions of theirs that are live."""

    runtime: Runtime
    deployment: Deployment
    models: dict[str, Path]
    inputs: dict[str, np.ndarray]
    settings: TimingSettings
    keeps_all: bool
    live: dict[str, Session] = field(default_factory=dict)
    runs: dict[str, int] = field(default_factory=dict)
    lead_runs: dict[str, int] = field(default_factory=dict)

    def time_runs(self, session: Session, count: int) -> list[float]:
        """Latency in ms of each of `count` runs.

        Raises:
            MeasurementError: the clock gave a latency that is not a positive number.
        """
        clock, run, inputs = self.runtime.clock, session.run, self.inputs
        latencies = []
        for _ in range(count):
            start = clock()
            run(inputs)
            latencies.append((clock() - start) * 1000)
        for latency in latencies:
            if not (math.isfinite(latency) and latency > 0):
                raise MeasurementError(f"impossible latency: {latency} ms")
        return latencies

    def warm_up(self, session: Session) -> float:
        """Run until the median of a batch is within 3% of the last one's; returns that median in ms."""
        last = float(np.median(self.time_runs(session, self.settings.warmup_runs)))
        for _ in range(self.settings.warmup_batches - 1):
            median = float(np.median(self.time_runs(session, self.settings.warmup_runs)))
            if abs(median - last) <= 0.03 * last:
                return median
            last = median
        return last

    def open(self, name: str) -> Session:
        """A warm session of model `name`; closes the others unless all are kept."""
        if name not in self.live:
            if not self.keeps_all:
                self.close()
            start = time.perf_counter()
            session = self.live[name] = self.runtime.load(self.models[name], self.deployment)
            load_ms = (time.perf_counter() - start) * 1000
            if name in self.runs:
                self.time_runs(session, self.settings.warmup_runs)
            else:
                median = self.warm_up(session)
                # Where every visit loads the model anew, measuring may take as long as loading did.
                visit_ms = self.settings.visit_ms if self.keeps_all else max(self.settings.visit_ms, load_ms)
                self.lead_runs[name] = max(int(self.settings.lead_ms / median), 1)
                self.runs[name] = min(max(int(visit_ms / median), self.settings.min_runs), self.settings.max_runs)
        return self.live[name]

    def close(self) -> None:
        """Close every session."""
        while self.live:
            self.live.popitem()[1].close()

    def visit_all(self, order: list[str]) -> dict[str, list[float]]:
        """Latencies in ms by model, of the visits that `order` lists."""
        samples: dict[str, list[float]] = {}
        for name in order:
            session = self.open(name)
            # The model visited before left its own weights in the caches; a served model finds them warm.
            self.time_runs(session, self.lead_runs[name])
            samples.setdefault(name, []).extend(self.time_runs(session, self.runs[name]))
        return samples


def run_rounds(bench: Bench, anchor: str, *, seed: int) -> list[Round]:
    """Rounds until every model's label is sure among the calm ones, or until the time cap."""
    settings, rng = bench.settings, random.Random(seed)
    cap_s, start = settings.seconds * len(bench.models), bench.runtime.clock()
    if bench.keeps_all:
        for name in bench.models:
            bench.open(name)
    rounds: list[Round] = []
    while len(rounds) < settings.max_rounds:
        order = schedule(list(bench.models), anchor, rng, anchor_visits=settings.anchor_visits)
        rounds.append(Round(anchor, bench.visit_all(order)))
        calm = calm_rounds(rounds, drift=settings.drift)
        if len(calm) >= settings.min_rounds and any(
            all(
                label_interval([r.samples_ms[name] for r in calm], statistic, seed=seed) <= settings.precision
                for name in bench.models
            )
            for statistic in STATISTICS
        ):
            break
        if len(rounds) >= settings.min_rounds and bench.runtime.clock() - start >= cap_s:
            break
    bench.close()
    return rounds


def fits_in_memory(models: dict[str, Path], available_bytes: int) -> bool:
    """Whether sessions of all `models` can be live at once with memory to spare."""
    return total_bytes(models) * _MEMORY_A_FILE_BYTE < _MEMORY_SHARE * available_bytes


def work(spec: dict[str, Any], inputs: dict[str, np.ndarray]) -> dict[str, Any]:
    """The result for `spec`: rounds, each a mapping of model to latencies in ms, and whether all sessions were live."""
    deployment = Deployment(**{**spec["deployment"], "needs": tuple(spec["deployment"]["needs"])})
    models = {name: Path(path) for name, path in spec["models"].items()}
    # Pools of several threads spin after a run and would disturb the next model's.
    keeps_all = deployment.threads == 1 and fits_in_memory(models, int(psutil.virtual_memory().available))
    bench = Bench(
        get_runtime(deployment.runtime), deployment, models, inputs, TimingSettings(**spec["settings"]), keeps_all
    )
    rounds = run_rounds(bench, spec["anchor"], seed=spec["seed"])
    return {"rounds": [r.samples_ms for r in rounds], "all_live": keeps_all}


def main(directory: Path) -> int:
    """Work through the directory's spec; an expected failure is one line on stderr and exit code 1."""
    spec = json.loads((directory / "spec.json").read_text(encoding="utf-8"))
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, spec["cpus"])
    try:
        with np.load(directory / "inputs.npz") as archive:
            result = work(spec, dict(archive))
    except InstatuneError as error:
        print(error, file=sys.stderr)
        return 1
    (directory / "result.json").write_text(json.dumps(result), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
