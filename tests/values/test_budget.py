"""Budgets: what they mean, who keeps them, who is tried first."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instatune_deploy.errors import UsageError
from instatune_deploy.values.budget import (
    Bound,
    Budget,
    Limit,
    bounds_of,
    excess,
    improving,
    missed,
    nearest,
    shortlist,
)
from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.front import Candidate, Predicted
from instatune_deploy.values.objectives import Objective
from instatune_deploy.values.space import Architecture

LATENCY, SIZE, METRIC = Objective("latency"), Objective("size"), Objective("metric")


def candidate(metric: float, ms: float, megabytes: float = 1, high: float = 1.1, heads: int = 1) -> Candidate:
    predicted = Predicted(metric, 10, ms, "predictor", ms * high, 30, int(1e6 * megabytes), 200)
    return Candidate(Architecture.uniform(1, heads, 16), Deployment("onnxruntime"), predicted)


@pytest.mark.parametrize(
    ("text", "limits", "prefer"),
    [
        ("8ms", [Limit(LATENCY, 8.0)], "best"),
        (8, [Limit(LATENCY, 8.0)], "best"),
        (" 2.5 ms ", [Limit(LATENCY, 2.5)], "best"),
        ("50%", [Limit(LATENCY, 0.5, "share")], "best"),
        ("8ms, size<=30MB", [Limit(LATENCY, 8.0), Limit(SIZE, 3e7)], "best"),
        ("size <= 1MiB, fastest", [Limit(SIZE, 2**20)], "fastest"),
        ("loss<=0.5", [Limit(METRIC, 0.005, "loss")], "fastest"),
        ("loss<=0.5, smallest", [Limit(METRIC, 0.005, "loss")], "smallest"),
        ("accuracy>=0.88, best", [Limit(METRIC, 0.88)], "best"),
        (
            "macs<=2G, parameters<=50%",
            [Limit(Objective("macs"), 2e9), Limit(Objective("parameters"), 0.5, "share")],
            "best",
        ),
        ("memory<=200MB", [Limit(Objective("memory"), 2e8)], "best"),
    ],
)
def test_a_budget_is_written_in_a_line(text: str | float, limits: list[Limit], prefer: str) -> None:
    budget = Budget.parse(text, metric="accuracy")
    assert set(budget.limits) == set(limits)
    assert [limit.number for limit in budget.limits] == pytest.approx([limit.number for limit in sorted(limits)])
    assert budget.prefer == prefer


@given(st.permutations(["8ms", "size<=30MB", "loss<=0.5", "smallest"]))
def test_the_order_of_a_budgets_parts_does_not_matter(parts: list[str]) -> None:
    whole, turned = Budget.parse("8ms, size<=30MB, loss<=0.5, smallest"), Budget.parse(", ".join(parts))
    assert (turned.limits, turned.prefer) == (whole.limits, whole.prefer)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *((wrong, "neither milliseconds such as 8ms nor a share such as 50%") for wrong in
          ("", "0", "0ms", "ms", "8 s", "-1", "nan", "fast", "-3ms")),
        ("size<=30ms", "budget '30ms' is neither a size such as 30MB"),
        ("metric>=88%", "budget '88%' is neither a fraction such as 0.88"),
        ("metric>=88", "budget '88': no metric is above 1: a fraction is meant, such as 0.88"),
        ("latncy<=8ms", "unknown limit 'latncy'; did you mean 'latency'"),
        ("latency>=8ms", "limit 'latency>=8ms' contradicts itself: latency is made small"),
        ("metric<=0.9", "contradicts itself: metric is made large"),
        ("8ms, latency<=9ms", "limits latency twice"),
        ("metric>=0.8, loss<=1", "limits metric twice"),
        ("smallest", "budget 'smallest' limits nothing"),
        ("8ms, size<=a<=b", "is not written like latency<=8ms"),
    ],
)  # fmt: skip
def test_what_is_no_budget_is_named(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        Budget.parse(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_budgets_name_is_a_file_name() -> None:
    assert Budget.parse("50%").file_name == "50pct"
    assert Budget.parse("8 ms").file_name == "8ms"
    assert Budget.parse("loss<=0.5, smallest").file_name == "loss-0.5_smallest"


def test_limits_come_to_bounds_against_the_full_network() -> None:
    full = {LATENCY: 20.0, SIZE: 100.0, METRIC: 0.9}
    budget = Budget.parse("50%, size<=30, loss<=1")
    bounds = bounds_of(budget.limits, full.__getitem__)
    assert {bound.objective: pytest.approx(bound.number) for bound in bounds} == {
        LATENCY: 10.0,
        SIZE: 30.0,
        METRIC: 0.89,
    }

    def refuse(_: Objective) -> float:
        raise AssertionError

    assert bounds_of(Budget.parse("8ms").limits, refuse) == [Bound(LATENCY, 8.0)]


def test_all_limits_hold_together() -> None:
    bounds = [Bound(LATENCY, 8.0), Bound(SIZE, 2e6), Bound(METRIC, 0.8)]
    assert excess(candidate(0.8, 8.0, 2), bounds) <= 0
    for other in (candidate(0.79, 8.0, 2), candidate(0.8, 8.1, 2), candidate(0.8, 8.0, 2.1)):
        assert excess(other, bounds) > 0
    assert excess(candidate(0.8, 12.0, 3), bounds) == pytest.approx(0.5)
    assert missed(candidate(0.8, 12.0, 2), bounds) == "latency 12 ms (at most 8 ms)"


def test_what_is_preferred_less_and_predicted_no_better_is_left_out() -> None:
    fast, slow, better = candidate(0.7, 2.0), candidate(0.7, 3.0), candidate(0.8, 4.0)
    assert improving([better, slow, fast], "fastest") == [fast, better]
    assert improving([better, candidate(0.9, 1.0)], "fastest") == [candidate(0.9, 1.0)]
    assert improving([], "fastest") == []


def test_those_within_their_interval_are_tried_first_then_the_preferred() -> None:
    bounds = [Bound(LATENCY, 10.0)]
    risky, best, fast = candidate(0.9, 9.8), candidate(0.8, 9.0, 5), candidate(0.7, 2.0, 1)
    everything = [fast, risky, best, candidate(0.95, 10.1)]
    assert shortlist(everything, bounds, "best") == [best, fast, risky]
    assert shortlist(everything, bounds, "fastest") == [fast, best, risky]
    assert shortlist(everything, bounds, "smallest") == [fast, best, risky]
    assert shortlist(everything, [], "best")[0].predicted.metric == 0.95
    # Without an interval, as in a front of an older release, a prediction is taken at its word.
    plain = Candidate(best.architecture, best.deployment, Predicted(0.99, 10, 9.9, "predictor"))
    assert shortlist([*everything, plain], bounds, "best")[0] == plain


def test_the_nearest_three_are_named_with_what_they_miss() -> None:
    bounds = [Bound(LATENCY, 1.0), Bound(SIZE, 1e6)]
    line = nearest([candidate(0.9, ms, heads=int(ms)) for ms in (4.0, 2.0, 5.0, 3.0)], bounds, "p90")
    assert line.startswith("1L[2-16] on ort-fp32-1t: latency 2 ms, size 1 MB; 1L[3-16]")
    assert line.endswith("(predicted; latency p90)")
    assert line.count(" on ort") == 3
    assert nearest([], bounds, "p50") == "none"
