"""What a network's distance from the full one says of its metric."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from instatune_deploy.values.front import Evaluation
from instatune_deploy.values.space import Architecture
from instatune_deploy.values.steadying import LEAST, steadied


def measured(values: np.ndarray, divergences: np.ndarray, n: int) -> list[Evaluation]:
    networks = [Architecture.parse(f"1L[2-{width}]") for width in range(1, len(values) + 1)]
    rows = zip(networks, values.tolist(), divergences.tolist(), strict=True)
    return [Evaluation(a, "accuracy", value, "search", n, divergence=d) for a, value, d in rows]


@pytest.mark.parametrize("n", [200, 20_000])
def test_values_come_nearer_to_the_truth_with_few_and_with_many_samples(n: int) -> None:
    rng = np.random.default_rng(0)
    divergences = rng.uniform(0.05, 0.2, 60)
    truth = 0.92 - 0.4 * divergences + rng.normal(0, 0.005, 60)
    values = rng.binomial(n, truth) / n
    found = np.array([evaluation.value for evaluation in steadied(measured(values, divergences, n))])
    before, after = np.square(values - truth).mean(), np.square(found - truth).mean()
    assert after < (0.3 if n == 200 else 1.001) * before
    assert truth[found.argmax()] >= truth[values.argmax()] - 1e-12


def test_with_many_samples_values_stay_as_they_were_measured() -> None:
    divergences = np.linspace(0.1, 0.2, 20)
    values = 0.9 - divergences + 0.02 * (np.arange(20) % 2)
    found = [evaluation.value for evaluation in steadied(measured(values, divergences, 10**9))]
    assert found == pytest.approx(values, abs=1e-6)


def test_nearer_is_never_worse_where_samples_are_few() -> None:
    rng = np.random.default_rng(1)
    divergences = np.sort(rng.uniform(0, 0.3, 30))
    found = [evaluation.value for evaluation in steadied(measured(rng.uniform(0.6, 0.8, 30), divergences, 50))]
    assert all(one >= other for one, other in zip(found, found[1:], strict=False))


def test_only_values_change_and_only_of_those_that_say_a_distance() -> None:
    rng = np.random.default_rng(2)
    given = measured(rng.uniform(0.6, 0.8, 12), rng.uniform(0, 0.3, 12), 100)
    silent = [
        replace(evaluation, divergence=None, architecture=Architecture.parse("1L[1-9]")) for evaluation in given[:3]
    ]
    found = steadied([*silent, *given])
    assert found[:3] == silent
    assert [replace(one, value=other.value) for one, other in zip(found[3:], given, strict=True)] == given
    assert found[3:] != given


def test_what_a_precision_costs_stays_as_it_was_measured() -> None:
    rng = np.random.default_rng(2)
    given = measured(rng.uniform(0.6, 0.8, 12), rng.uniform(0, 0.3, 12), 100)
    int8 = [replace(e, divergence=None, precision="ort-int8", value=e.value - 0.01) for e in given[:3]]
    found = steadied([*int8, *given])
    for moved, own in zip(found[:3], found[3:], strict=False):
        assert own.value - moved.value == pytest.approx(0.01)
    assert [replace(one, value=other.value) for one, other in zip(found[:3], int8, strict=True)] == int8


def test_too_few_or_equal_evaluations_are_left_alone() -> None:
    rng = np.random.default_rng(3)
    few = measured(rng.uniform(0.6, 0.8, LEAST - 1), rng.uniform(0, 0.3, LEAST - 1), 100)
    assert steadied(few) == few
    assert steadied([]) == []
    equal = measured(np.full(10, 0.75), np.zeros(10), 100)
    assert [evaluation.value for evaluation in steadied(equal)] == pytest.approx([0.75] * 10)
