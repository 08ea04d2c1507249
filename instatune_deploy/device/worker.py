"""The process that measures, started by `process.run_worker`.

Reads ``spec.json`` and ``inputs.npz`` from the directory and appends every round to ``rounds.jsonl`` as soon as it is over; a
later process goes on from there. Needs NumPy and the runtime, nothing else, so that it can run on a device without the
rest of this package's dependencies.
"""

from __future__ import annotations

import json
import math
import os
import random
import sys
import time
from collections import OrderedDict
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from instatune_deploy.device.labels import find_labels
from instatune_deploy.device.load import CpuTimes, Load, available_memory_bytes, wait_until_calm
from instatune_deploy.device.machine_facts import memory_bytes
from instatune_deploy.device.process import ROUNDS_FILE
from instatune_deploy.device.runtimes.base import Runtime, Session, get_runtime
from instatune_deploy.device.samples import Samples
from instatune_deploy.device.settings import TimingSettings
from instatune_deploy.errors import InstatuneError, MeasurementError
from instatune_deploy.values.deployment import Deployment

# Left free for everything else when sessions are kept: of all memory, at most a share of it (machines and containers may be
# small), and of the next session's file.
_RESERVE_BYTES, _RESERVE_SHARE = 2e9, 0.25
_MEMORY_A_FILE_BYTE = 3
# Sessions on an accelerator are kept if their files are so small together that any accelerator holds them.
_ACCELERATOR_BYTES = 2e9
# Looks at how sure the labels are come at so much more rounds than the last one.
_LOOK_GROWTH = 1.15


def total_bytes(models: dict[str, Path]) -> int:
    """Size of all models' files, an IR's weights included."""
    return sum(_file_bytes(path) for path in models.values())


def _file_bytes(path: Path) -> int:
    return sum(part.stat().st_size for part in (path, path.with_suffix(".bin")) if part.is_file())


def schedule(visits: dict[str, int], rng: random.Random) -> list[str]:
    """The order of a round: every model as often as `visits` says, shuffled within each of so many passes, so that a
    model's visits are spread over the round."""
    order = []
    for number in range(max(visits.values())):
        models = [name for name, count in visits.items() if number < count]
        rng.shuffle(models)
        order += models
    return order


@dataclass
class Bench:
    """Models under measurement, and the sessions of theirs that are live, the one used last at the end."""

    runtime: Runtime
    deployment: Deployment
    models: dict[str, Path]
    inputs: dict[str, np.ndarray]
    settings: TimingSettings
    keeps: bool
    live: OrderedDict[str, Session] = field(default_factory=OrderedDict)
    runs: dict[str, int] = field(default_factory=dict)
    lead_runs: dict[str, int] = field(default_factory=dict)
    loads: dict[str, int] = field(default_factory=dict)
    renewals: dict[str, int] = field(default_factory=dict)

    @property
    def counts_cpu(self) -> bool:
        """Whether CPU time says if a run was interrupted: it does for one thread of a real runtime on a CPU."""
        deployment = self.deployment
        return deployment.threads == 1 and deployment.device == "cpu" and deployment.runtime != "fake"

    def time_runs(self, session: Session, count: int) -> tuple[list[float], list[float | None]]:
        """Milliseconds that passed in each of `count` runs, and milliseconds of CPU time.

        Raises:
            MeasurementError: the clock gave a latency that is not a positive number.
        """
        clock, cpu_clock, run, inputs = self.runtime.clock, time.process_time, session.run, self.inputs
        latencies, cpu = [], []
        for _ in range(count):
            cpu_start, start = cpu_clock(), clock()
            run(inputs)
            end, cpu_end = clock(), cpu_clock()
            latencies.append((end - start) * 1000)
            cpu.append((cpu_end - cpu_start) * 1000 if self.counts_cpu else None)
        for latency in latencies:
            if not (math.isfinite(latency) and latency > 0):
                raise MeasurementError(f"impossible latency: {latency} ms")
        return latencies, cpu

    def warm_up(self, session: Session) -> float:
        """Run until the median of a batch is within 3% of the last one's; returns that median in ms."""
        last = math.inf
        for _ in range(self.settings.warmup_batches):
            median = float(np.median(self.time_runs(session, self.settings.warmup_runs)[0]))
            if abs(median - last) <= 0.03 * median:
                break
            last = median
        return median

    def open(self, name: str) -> Session:
        """A warm session of model `name`; closes others where memory is short or they would disturb it."""
        if name in self.live:
            self.live.move_to_end(name)
            return self.live[name]
        path, start = self.models[name], time.perf_counter()
        free = min(_RESERVE_BYTES, _RESERVE_SHARE * (memory_bytes() or math.inf))
        reserve = free + _MEMORY_A_FILE_BYTE * _file_bytes(path)
        while self.live and not (self.keeps and available_memory_bytes() > reserve):
            self.live.popitem(last=False)[1].close()
        session = self.live[name] = self.runtime.load(path, self.deployment)
        self.loads[name] = self.loads.get(name, 0) + 1
        load_ms = (time.perf_counter() - start) * 1000
        if name in self.runs:
            self.time_runs(session, self.settings.warmup_runs)
        else:
            median = self.warm_up(session)
            # Where every visit loads the model anew, measuring may take as long as loading did.
            visit_ms = self.settings.visit_ms if self.keeps else max(self.settings.visit_ms, load_ms)
            self.lead_runs[name] = max(int(self.settings.lead_ms / median), 1)
            self.runs[name] = min(max(int(visit_ms / median), self.settings.min_runs), self.settings.max_runs)
        return session

    def renew(self, share: float, sure: Collection[str]) -> None:
        """Close the sessions that have had their share of the time, of which `share` (0..1) is over; they are loaded anew
        when they are visited next. Models take turns; those not in `sure` are loaded half as often."""
        for number, name in enumerate(self.models):
            sessions = self.settings.sessions / (1 if name in sure else 2)
            due = int(share * sessions + number / len(self.models))
            if name in self.live and self.renewals.get(name, 0) < due:
                self.live.pop(name).close()
                self.renewals[name] = due

    def close(self) -> None:
        """Close every session."""
        while self.live:
            self.live.popitem()[1].close()

    def visit_all(self, order: list[str]) -> list[list[Any]]:
        """For each visit that `order` lists: the model, when it began (s), its seconds, its runs' latencies and CPU times
        (ms), and which of the model's sessions it was made with (a number)."""
        found: list[list[Any]] = []
        clock, origin = self.runtime.clock, self.runtime.clock()
        for name in order:
            session, start = self.open(name), clock()
            # The model visited before left its own weights in the caches; a served model finds them warm.
            self.time_runs(session, self.lead_runs[name])
            walls, cpus = self.time_runs(session, self.runs[name])
            found.append([name, round(start - origin, 6), round(clock() - start, 6), walls, cpus, self.loads[name]])
        return found


def run_rounds(
    bench: Bench, visits: dict[str, int], sure: list[str], before: list[dict[str, Any]], *, seed: int
) -> Iterator[dict[str, Any]]:
    """Rounds after those `before`, until the labels of the models in `sure` are sure, or until the time cap.

    Each is ``{"visits": see Bench.visit_all, "others": CPUs that other processes used, "stolen": CPUs, "waited_s": s}``.
    """
    settings, rng = bench.settings, random.Random(f"{seed} {len(before)}")
    rounds = list(before)
    spent_s = sum(visit[2] for done in rounds for visit in done["visits"])
    wait_left_s = settings.wait_s - sum(done["waited_s"] for done in rounds)
    next_look = settings.min_rounds
    for done in rounds:
        for name, *_, session in done["visits"]:
            bench.loads[name] = max(session, bench.loads.get(name, 0))
    if bench.keeps:
        for name in bench.models:
            bench.open(name)
    calm = False
    while len(rounds) < settings.max_rounds:
        if len(rounds) >= settings.min_rounds and spent_s >= settings.seconds:
            break
        if len(rounds) >= next_look:
            if are_sure(rounds, sure, settings.precision, list(bench.models)):
                break
            next_look = int(len(rounds) * _LOOK_GROWTH) + 1
        waited_s = 0.0 if calm or wait_left_s <= 0 else wait_until_calm(wait_left_s)
        wait_left_s -= waited_s
        bench.renew(min(spent_s / settings.seconds, 1.0), sure)
        start = CpuTimes.read()
        found = bench.visit_all(schedule(visits, rng))
        end = CpuTimes.read()
        load = end.since(start) if start and end else Load(0.0, 0.0)
        calm = load.is_calm
        rounds.append(
            {"visits": found, "others": round(load.others, 3), "stolen": round(load.stolen, 3), "waited_s": waited_s}
        )
        spent_s += sum(visit[2] for visit in found)
        yield rounds[-1]
    bench.close()


def are_sure(rounds: list[dict[str, Any]], sure: list[str], precision: float, names: list[str]) -> bool:
    """Whether the confidence interval of each label in `sure` is as narrow as `precision` (fraction)."""
    interval = find_labels(Samples.of_rounds(names, rounds)).interval
    return bool(max(interval[names.index(name)] for name in sure) <= precision)


def read_rounds(path: Path) -> list[dict[str, Any]]:
    """The rounds in a file; a last line that was cut off is left out."""
    if not path.is_file():
        return []
    rounds = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rounds.append(json.loads(line))
        except ValueError:
            break
    return rounds


def work(directory: Path) -> None:
    """Measure what the directory's spec says and append it to its rounds."""
    spec = json.loads((directory / "spec.json").read_text(encoding="utf-8"))
    deployment = Deployment(**{**spec["deployment"], "needs": tuple(spec["deployment"]["needs"])})
    models = {name: directory / path for name, path in spec["models"].items()}
    with np.load(directory / "inputs.npz") as archive:
        inputs = dict(archive)
    # Pools of several threads spin after a run and would disturb the next model's.
    keeps = deployment.threads == 1 if deployment.device == "cpu" else total_bytes(models) < _ACCELERATOR_BYTES
    settings = TimingSettings(**spec["settings"])
    bench = Bench(get_runtime(deployment.runtime), deployment, models, inputs, settings, keeps)
    path = directory / ROUNDS_FILE
    before = read_rounds(path)
    # A line that was cut off must not stay in front of new ones.
    path.write_text("".join(json.dumps(done) + "\n" for done in before), encoding="utf-8")
    parent = os.getppid()
    with path.open("a", encoding="utf-8") as stream:
        for done in run_rounds(bench, spec["visits"], spec["sure"], before, seed=spec["seed"]):
            stream.write(json.dumps(done) + "\n")
            stream.flush()
            # Whoever goes on from here must not find an orphan on its CPUs and in its journal.
            if os.getppid() != parent:
                raise MeasurementError("the process that started this one is gone")


def main(place: str) -> int:
    """Work through the spec of the directory `place`; an expected failure is one line on stderr and exit code 1."""
    directory = Path(place)
    spec = json.loads((directory / "spec.json").read_text(encoding="utf-8"))
    if hasattr(os, "sched_setaffinity") and spec["cpus"]:
        os.sched_setaffinity(0, spec["cpus"])
    try:
        work(directory)
    except InstatuneError as error:
        print(error, file=sys.stderr)
        return 1
    return 0
