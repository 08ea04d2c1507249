"""Which member of a fleet answers: a queue in simulated time, with quiet and busy minutes."""

from __future__ import annotations

import random

import numpy as np
import pytest

from instatune_deploy.serving.hold import TIMES_ITS_OWN, Hold
from instatune_deploy.values.fleet import Fleet, FleetMember


def member(name: str, p50_ms: float, metric: float) -> FleetMember:
    return FleetMember(
        name=name, directory=name, deployment="ort-fp32-1t", architecture="1L[1-1]", p50_ms=p50_ms, p90_ms=1.1 * p50_ms,
        p99_ms=1.3 * p50_ms, metric=metric, n=100, split="report", manifest_sha256="0" * 64,
    )  # fmt: skip


FLEET = Fleet(
    "text-classification", "bert-t8", "accuracy",
    (member("20ms", 20, 0.92), member("10ms", 10, 0.91), member("odd", 12, 0.90), member("5ms", 5, 0.88)),
)  # fmt: skip


class Queue:
    """One server, first come first served, whose clock the `Hold` reads."""

    def __init__(self, objective_ms: float) -> None:
        self.now, self.free, self.busy, self.rng = 0.0, 0.0, 0.0, random.Random(0)
        self.answers: list[tuple[float, float, str]] = []
        self.done: list[tuple[float, float]] = []
        self.hold = Hold(
            FLEET, objective_ms, busy=lambda: self.busy - max(0.0, self.free - self.now), clock=lambda: self.now
        )

    def run(self, seconds: float, requests_per_s: float) -> list[tuple[float, float, str]]:
        """Arrival, latency (ms) and member of every request of a time."""
        end, first = self.now + seconds, len(self.answers)
        while True:
            self.now += self.rng.expovariate(requests_per_s)
            if self.now > end:
                return self.answers[first:]
            for finished, arrived in [pair for pair in self.done if pair[0] <= self.now]:
                self.hold.observe(arrived, 1e3 * (finished - arrived))
                self.done.remove((finished, arrived))
            chosen = self.hold.member
            service = chosen.p50_ms / 1e3 * self.rng.uniform(0.95, 1.1)
            self.free, self.busy = max(self.now, self.free) + service, self.busy + service
            self.done.append((self.free, self.now))
            self.answers.append((self.now, 1e3 * (self.free - self.now), chosen.name))


def share(answers: list[tuple[float, float, str]], name: str) -> float:
    return sum(found == name for _, _, found in answers) / len(answers)


def test_load_is_answered_by_faster_members_and_quiet_by_the_most_accurate() -> None:
    queue = Queue(objective_ms=60)
    assert share(queue.run(60, 5), "20ms") > 0.95
    busy = queue.run(300, 75)  # 1.5 times what the slowest can do, three quarters of what the next can
    assert share(busy, "10ms") + share(busy, "5ms") > 0.85
    latencies = [latency for _, latency, _ in busy]
    assert np.percentile(latencies, 90) <= 60
    assert share(queue.run(30, 5)[-50:], "20ms") == 1
    assert share(queue.answers, "odd") == 0  # slower than a more accurate one


def test_it_does_not_go_to_and_fro() -> None:
    queue = Queue(objective_ms=60)
    answers = queue.run(600, 75)
    changes = sum(before[2] != after[2] for before, after in zip(answers, answers[1:], strict=False))
    assert 1 <= changes <= 60  # a try a minute of a slower one, and back, at the longest pause
    quiet = queue.run(120, 5)
    assert sum(before[2] != after[2] for before, after in zip(quiet, quiet[1:], strict=False)) <= 2


def test_the_fastest_stays_when_nothing_holds() -> None:
    queue = Queue(objective_ms=1)
    assert share(queue.run(30, 20)[-100:], "5ms") == 1


def test_without_an_objective_it_follows_from_the_most_accurate() -> None:
    assert Hold(FLEET, busy=lambda: 0.0).objective_ms == pytest.approx(TIMES_ITS_OWN * 22)
