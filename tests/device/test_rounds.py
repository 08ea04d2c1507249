"""What rounds say: which count, what the label is, how sure it is."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instatune_deploy.device.rounds import (
    Round,
    calm_rounds,
    label_interval,
    label_ms,
    schedule,
    steadiest_statistic,
    summarize,
)
from instatune_deploy.errors import MeasurementError


def make_round(anchor_ms: float, model_ms: float = 1.0) -> Round:
    return Round("anchor", {"anchor": [anchor_ms] * 3, "model": [model_ms] * 3})


@given(st.integers(0, 20), st.integers(1, 6), st.integers())
def test_every_round_visits_every_model_once_and_the_anchor_at_both_ends(others: int, visits: int, seed: int) -> None:
    models = ["anchor", *(str(i) for i in range(others))]
    order = schedule(models, "anchor", random.Random(seed), anchor_visits=visits)
    assert sorted(name for name in order if name != "anchor") == sorted(models[1:])
    assert order.count("anchor") == max(2, visits)
    assert (order[0], order[-1]) == ("anchor", "anchor")


def test_rounds_in_which_the_anchor_was_slow_do_not_count() -> None:
    rounds = [make_round(level) for level in (10.0, 10.2, 13.0, 10.4, 10.5, 9.9)]
    assert [r.level_ms for r in calm_rounds(rounds, drift=0.05)] == [10.0, 10.2, 10.4, 10.5, 9.9]


def test_rounds_before_the_machine_calmed_down_stop_counting() -> None:
    rounds = [make_round(level) for level in (15.0, 15.0, 10.0)]
    assert len(calm_rounds(rounds[:2], drift=0.05)) == 2
    assert [r.level_ms for r in calm_rounds(rounds, drift=0.05, at_least=1)] == [10.0]


def test_a_machine_that_is_never_calm_gives_its_calmest_rounds() -> None:
    rounds = [make_round(level) for level in (10.0, 20.0, 30.0, 40.0, 50.0)]
    assert [r.level_ms for r in calm_rounds(rounds, drift=0.05, at_least=3)] == [10.0, 20.0, 30.0]
    assert len(calm_rounds(rounds, drift=0.05, at_least=9)) == 5
    assert calm_rounds([], drift=0.05, at_least=3) == []


@given(st.lists(st.floats(0.1, 100), min_size=1, max_size=60))
def test_label_is_the_mean_of_the_fastest_quarter(samples: list[float]) -> None:
    quarter = sorted(samples)[: max(1, len(samples) // 4)]
    assert label_ms(samples) == pytest.approx(sum(quarter) / len(quarter))


def test_the_interval_closes_with_agreement_and_is_open_without_a_second_round() -> None:
    noise = np.random.default_rng(0).normal(10, 1, (6, 4)).tolist()
    assert label_interval([[10.0] * 4] * 6, seed=0) == 0
    assert label_interval(noise, seed=0) > 0.005
    assert label_interval(noise[:1], seed=0) == math.inf
    assert label_interval(noise, seed=3) == label_interval(noise, seed=3)


def test_summary_of_a_model() -> None:
    rounds = [make_round(1, model_ms) for model_ms in (10.0, 11.0, 10.0, 11.0)]
    sample = summarize("model", rounds, precision=0.01, seed=0)
    assert (sample.label_ms, sample.p50_ms, sample.n) == (10.0, 10.5, 12)
    assert sample.half_labels_ms == (10.0, 11.0)
    assert sample.p50_ms <= sample.p90_ms <= sample.p99_ms <= 11


@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.0, -1.0])
def test_impossible_latencies_are_refused(bad: float) -> None:
    with pytest.raises(MeasurementError, match="impossible latency for model"):
        summarize("model", [make_round(1), make_round(1, bad)], precision=0.01, seed=0)


def test_a_model_without_samples_is_refused() -> None:
    with pytest.raises(MeasurementError, match="other"):
        summarize("other", [make_round(1)], precision=0.01, seed=0)


def test_the_label_is_what_is_steadier_between_odd_and_even_rounds() -> None:
    rng = random.Random(0)

    def of(samples: list[float]) -> Round:
        return Round("anchor", {"anchor": [1.0], "model": samples})

    # Mostly quiet, slowed now and then by others: the fastest quarter is the model.
    quiet = [of([10.0, 10.0, 10.0 + 9 * rng.random(), 10.0 + 9 * rng.random()]) for _ in range(12)]
    # Always slowed by others but for a rare accident: the median is what a user gets.
    busy = [of([6.0 if n == 4 else 15.0, 15.0, 15.0, 15.0]) for n in range(12)]
    assert steadiest_statistic(quiet, ["model"]) == "fastest quarter"
    assert steadiest_statistic(busy, ["model"]) == "median"
    assert summarize("model", busy, "median", precision=0.01, seed=0).label_ms == 15.0
