"""Objectives: what is written is what is searched, in whatever order, and what makes no sense is named."""

from __future__ import annotations

from itertools import permutations

import pytest

from instatune_deploy.errors import UnknownNameError, UsageError
from instatune_deploy.values.front import Predicted
from instatune_deploy.values.objectives import DEFAULT, Objective, parse_objectives

PREDICTED = Predicted(0.9, 10, 2.0, "predictor", 2.2, 30, 120, 200, (("there:ort-fp32-1t", 5.0),))


def test_objectives_are_the_same_in_any_order_and_under_the_metrics_own_name() -> None:
    for order in permutations(["metric", "macs", "latency"]):
        assert parse_objectives(order) == DEFAULT
    assert parse_objectives(["accuracy", " macs", "min latency"], metric="accuracy") == DEFAULT
    assert parse_objectives(["max f1", "size"], metric="f1") == parse_objectives(["size", "metric"])


def test_an_objective_is_a_number_to_be_made_small() -> None:
    values = {"metric": -0.9, "macs": 10, "latency": 2.0, "parameters": 30, "size": 120, "memory": 200}
    assert {kind: Objective(kind).value(PREDICTED) for kind in values} == values
    (elsewhere, _) = parse_objectives(["metric", "latency@there:ort-fp32-1t"])
    assert elsewhere.value(PREDICTED) == 5.0
    assert str(elsewhere) == "latency@there:ort-fp32-1t"
    with pytest.raises(UsageError, match="does not say the size of its candidates: search again"):
        Objective("size").value(Predicted(0.9, 10, 2.0, "predictor"))


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["metric", "mcas"], "unknown objective 'mcas'; did you mean 'macs'"),
        (["metric", "accurcy"], "unknown objective 'accurcy'; did you mean 'accuracy'"),
        (["metric", "macs", "macs"], "objectives repeat: macs is named twice"),
        (["metric", "accuracy", "macs"], "objectives repeat: metric and accuracy are the same"),
        (["metric", "max latency"], "objective 'max latency' contradicts itself: latency is made small"),
        (["min accuracy", "macs"], "objective 'min accuracy' contradicts itself: metric is made large"),
        (["metric"], "two or three objectives, found 1: metric"),
        (["metric", "macs", "latency", "size"], "two or three objectives, found 4"),
        (["macs", "latency"], "objectives macs, latency are all best at the smallest network: add accuracy"),
        (["metric", "macs@there:ort-fp32-1t"], "a place is written latency@TARGET:DEPLOYMENT, for latencies only"),
        (["metric", "latency@there"], "a place is written latency@TARGET:DEPLOYMENT"),
    ],
)
def test_what_makes_no_sense_is_named(texts: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_objectives(texts, metric="accuracy")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_metric_may_be_limited_instead() -> None:
    assert parse_objectives(["macs", "latency"], constrained=True) == (Objective("latency"), Objective("macs"))
    with pytest.raises(UnknownNameError):
        parse_objectives(["macs", "bleu"], constrained=True)
