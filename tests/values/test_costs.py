"""Costs of candidates in every deployment."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from instatune_deploy.errors import TableError, UsageError
from instatune_deploy.values.costs import Costs
from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.front import Evaluation
from instatune_deploy.values.latency import LatencyTable
from instatune_deploy.values.macs import ModelShape, count_macs
from instatune_deploy.values.space import SearchSpace

SHAPE = ModelShape("bert", 64, 16, 3, 4, 256, 8, fixed_macs=0, fixed_parameters=0)
SPACE = SearchSpace.homogeneous(3, [1, 2, 3], [2, 4], [64, 256])
ORT, OV = Deployment("onnxruntime"), Deployment("openvino", "bf16")


def test_a_candidate_has_the_macs_and_the_latency_of_its_table(make_table: Callable[..., LatencyTable]) -> None:
    tables = [make_table(SPACE, OV, 0.5), make_table(SPACE, ORT)]
    costs = Costs(SPACE, SHAPE, tables, "p90")
    assert [table.deployment for table in costs.tables] == sorted([ORT, OV])
    found = costs.candidate(SPACE.largest, 1, 0.75, "predictor")
    assert found.deployment == OV
    assert found.objectives == (-0.75, count_macs(SHAPE, SPACE.largest), tables[0].estimate_ms(SPACE.largest, "p90"))


def test_hypervolume_is_a_share_of_the_box(make_table: Callable[..., LatencyTable]) -> None:
    costs = Costs(SPACE, SHAPE, [make_table(SPACE)], "p50")
    assert costs.hypervolume([]) == 0.0
    largest = costs.measured_candidates([Evaluation(SPACE.largest, "accuracy", 0.5, "search", 10)])
    assert costs.hypervolume(largest) == pytest.approx(0.5 * (0.1 / 1.1) ** 2)
    both = largest + costs.measured_candidates([Evaluation(SPACE.smallest, "accuracy", 0.25, "search", 10)])
    assert costs.hypervolume(largest) < costs.hypervolume(both) < 1


def test_tables_must_cover_the_space_and_differ(make_table: Callable[..., LatencyTable]) -> None:
    narrow = make_table(SearchSpace.homogeneous(1, [1], [2], [64]))
    with pytest.raises(TableError, match="heads=4, ffn=256"):
        Costs(SPACE, SHAPE, [narrow], "p50")
    with pytest.raises(UsageError, match="needs a latency table"):
        Costs(SPACE, SHAPE, [], "p50")
    with pytest.raises(UsageError, match="ort-fp32-1t"):
        Costs(SPACE, SHAPE, [make_table(SPACE), make_table(SPACE, Deployment("onnxruntime", needs=("avx2",)))], "p50")
