"""The benchmark of the search: what it compares keeps to its rules, and its cells are measured once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from benchmarks import search_efficiency
from benchmarks.published_linas import OneHotPredictor, PublishedLinas
from benchmarks.search_cost import MINILM, made_up_accuracy
from benchmarks.search_efficiency import Bench, figures_of
from instatune_deploy.stages.search import SearchSettings, search
from instatune_deploy.values.costs import Costs, Goal
from instatune_deploy.values.front import Evaluation
from instatune_deploy.values.latency import LatencyTable
from instatune_deploy.values.objectives import parse_objectives
from instatune_deploy.values.presets import preset
from instatune_deploy.values.space import Architecture

SPACE = preset("bert-base").scaled(6, 12, 1536)


class MadeUp:
    """A setting that costs nothing, and counts."""

    prefix, space, shape = "hv", SPACE, MINILM

    def __init__(self) -> None:
        self.asked: list[Architecture] = []

    def measure(self, architectures: list[Architecture], *, seed: int) -> list[Evaluation]:
        self.asked += architectures
        return [Evaluation(a, "accuracy", made_up_accuracy(a), "search", 872) for a in architectures]

    def judge(self, architectures: Sequence[Architecture]) -> list[float]:
        return [made_up_accuracy(a) for a in architectures]


def test_one_hot_regression_orders_what_it_has_not_seen() -> None:
    known = MadeUp().measure(SPACE.sample(80, seed=0), seed=0)
    predicted = OneHotPredictor(SPACE, known).predict([SPACE.largest, SPACE.smallest])
    assert predicted[0] > predicted[1] + 0.05


def test_linas_as_published_evaluates_whole_populations(make_table: Callable[..., LatencyTable]) -> None:
    setting = MadeUp()
    goal = Goal(Costs(SPACE, MINILM, [make_table(SPACE)], "p50"), parse_objectives(["metric", "macs"]))

    def wanted(architectures: list[Architecture]) -> list[Evaluation]:
        sizes.append(len(architectures))
        return setting.measure(architectures, seed=0)

    sizes: list[int] = []
    settings = SearchSettings(population=16, generations=5, rounds=2, patience=0)
    task = {"evaluate": wanted, "fit": lambda known: OneHotPredictor(SPACE, known), "evaluations": [], "seed": 0}
    result = search(SPACE, [goal], settings=settings, strategy=PublishedLinas, **task)
    assert sizes[0] == 16
    assert all(0 < size <= 16 for size in sizes[1:])
    assert len(set(setting.asked)) == len(setting.asked) == sum(sizes)
    assert all(report.kendall_tau is not None for report in result.rounds[1:])


def test_a_cell_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_efficiency, "RUN", tmp_path)
    monkeypatch.setattr(search_efficiency, "COUNTS", (10, 20))
    setting = MadeUp()
    bench = Bench("real", setting, lambda line: None)
    rows = [row for method in ("random", "nsga2") for row in bench.cell(method, 0, 20)]
    assert len(setting.asked) == 40
    assert [(row["method"], row["evaluations"]) for row in rows] == [
        ("random", 10), ("random", 20), ("nsga2", 10), ("nsga2", 20),
    ]  # fmt: skip
    assert all(0 < row["hypervolume"] < 1 for row in rows)
    assert rows[0]["hypervolume"] <= rows[1]["hypervolume"]
    assert bench.cell("random", 0, 20) == rows[:2]
    assert len(setting.asked) == 40
    figures = figures_of("hv_real", rows)
    assert figures["hv_real.random.20.mean"] == rows[1]["hypervolume"]
    assert figures["hv_real.random.20.seeds"] == 1
