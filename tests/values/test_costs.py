"""Costs of candidates in every deployment."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from instatune_deploy.errors import TableError, UsageError
from instatune_deploy.values.budget import Limit
from instatune_deploy.values.costs import Costs, Goal
from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.latency import LatencyTable
from instatune_deploy.values.macs import ModelShape, count_macs, count_parameters
from instatune_deploy.values.objectives import parse_objectives
from instatune_deploy.values.sizes import file_bytes, memory_bytes
from instatune_deploy.values.space import SearchSpace

SHAPE = ModelShape("bert", 64, 16, 3, 4, 256, 8, fixed_macs=0, fixed_parameters=0)
SPACE = SearchSpace.homogeneous(3, [1, 2, 3], [2, 4], [64, 256])
ORT, OV = Deployment("onnxruntime"), Deployment("openvino", "bf16")


def test_a_candidate_has_the_costs_of_its_network_and_the_latency_of_its_table(
    make_table: Callable[..., LatencyTable],
) -> None:
    tables, elsewhere = (
        [make_table(SPACE, OV, 0.5), make_table(SPACE, ORT)],
        {"there:ort-fp32-1t": make_table(SPACE, ms=3)},
    )
    costs = Costs(SPACE, SHAPE, tables, "p90", elsewhere)
    assert [table.deployment for table in costs.tables] == sorted([ORT, OV])
    found = costs.candidate(SPACE.largest, 1, 0.75, "predictor")
    assert found.deployment == OV
    assert found.point() == (tables[0].estimate_ms(SPACE.largest, "p90"), count_macs(SHAPE, SPACE.largest), -0.75)
    predicted = found.predicted
    assert predicted.latency_high_ms == tables[0].estimate(SPACE.largest, "p90").high_ms
    assert predicted.parameters == count_parameters(SHAPE, SPACE.largest)
    assert predicted.file_bytes == file_bytes(SHAPE, SPACE.largest, OV)
    assert predicted.memory_bytes == memory_bytes(SHAPE, SPACE.largest, OV)
    there = elsewhere["there:ort-fp32-1t"].estimate_ms(SPACE.largest, "p90")
    assert predicted.elsewhere_ms == (("there:ort-fp32-1t", there),)
    goal = Goal(costs, parse_objectives(["metric", "latency@there:ort-fp32-1t"]))
    assert goal.scaled([found]).tolist() == [[1.0, pytest.approx(0.25)]]
    assert goal.hypervolume([found]) == pytest.approx(0.75 * 0.1 / 1.1)


def test_hypervolume_is_a_share_of_the_box(make_table: Callable[..., LatencyTable]) -> None:
    goal = Goal(Costs(SPACE, SHAPE, [make_table(SPACE)], "p50"))
    assert goal.hypervolume([]) == 0.0
    largest = goal.costs.candidate(SPACE.largest, 0, 0.5, "search split")
    assert goal.hypervolume([largest]) == pytest.approx(0.5 * (0.1 / 1.1) ** 2)
    both = [largest, goal.costs.candidate(SPACE.smallest, 0, 0.25, "search split")]
    assert goal.hypervolume([largest]) < goal.hypervolume(both) < 1


def test_shares_are_of_the_largest_network_where_it_is_fastest(make_table: Callable[..., LatencyTable]) -> None:
    costs = Costs(SPACE, SHAPE, [make_table(SPACE, OV, 0.5), make_table(SPACE, ORT)], "p50")
    limits = tuple(Limit.parse(text) for text in ("latency<=50%", "macs<=2K", "loss<=1"))
    bounds = {bound.objective.kind: bound.number for bound in Goal(costs, limits=limits).bounds(lambda: 0.9)}
    fastest = make_table(SPACE, OV, 0.5).estimate_ms(SPACE.largest, "p50")
    assert bounds == {"latency": pytest.approx(fastest / 2), "macs": 2000, "metric": pytest.approx(0.89)}


def test_tables_must_cover_the_space_and_differ(make_table: Callable[..., LatencyTable]) -> None:
    narrow = make_table(SearchSpace.homogeneous(1, [1], [2], [64]))
    with pytest.raises(TableError, match="heads=4, ffn=256"):
        Costs(SPACE, SHAPE, [narrow], "p50")
    with pytest.raises(TableError, match="heads=4, ffn=256"):
        Costs(SPACE, SHAPE, [make_table(SPACE)], "p50", {"there:ort-fp32-1t": narrow})
    with pytest.raises(UsageError, match="needs a latency table"):
        Costs(SPACE, SHAPE, [], "p50")
    with pytest.raises(UsageError, match="ort-fp32-1t"):
        Costs(SPACE, SHAPE, [make_table(SPACE), make_table(SPACE, Deployment("onnxruntime", needs=("avx2",)))], "p50")
