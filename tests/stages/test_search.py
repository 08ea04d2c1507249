"""LINAS on spaces whose truth is known."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instatune_deploy.errors import ArchitectureError, TableError, UsageError
from instatune_deploy.stages.search import RoundReport, SearchResult, SearchSettings, search
from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.front import Evaluation, ParetoFront, dominates
from instatune_deploy.values.latency import LatencyTable
from instatune_deploy.values.macs import ModelShape, count_macs
from instatune_deploy.values.space import Architecture, SearchSpace

SHAPE = ModelShape("bert", 64, 16, 6, 4, 256, 8, fixed_macs=10**5, fixed_parameters=10**4)
SPACE = SearchSpace.homogeneous(6, [3, 4, 5, 6], [1, 2, 4], [64, 128, 256])
TINY = SearchSpace.homogeneous(2, [1, 2], [2, 4], [64])
FEW = SearchSettings(population=24, generations=8, rounds=2, batch=6, warm_start=10)
ORT, OV = Deployment("onnxruntime"), Deployment("openvino", "bf16")
MakeTable = Callable[..., LatencyTable]


def metric(architecture: Architecture) -> float:
    """More is better, less so later, and early layers want heads while late ones want neurons."""
    gain = sum(h / (i + 2) + f * (i + 1) / 1024 for i, (h, f) in enumerate(architecture.layers))
    return float(0.5 + 0.5 * (1 - np.exp(-gain / 4)))


class Truth:
    """A predictor that knows, and the log of what was asked of it."""

    def predict(self, architectures: Sequence[Architecture]) -> np.ndarray:
        return np.array([metric(a) for a in architectures])


class Bench:
    """Evaluates, and remembers the order in which it was asked to."""

    def __init__(self) -> None:
        self.asked: list[Architecture] = []

    def __call__(self, architectures: list[Architecture]) -> list[Evaluation]:
        self.asked += architectures
        return [Evaluation(a, "accuracy", metric(a), "search", 100) for a in architectures]


def fit_truth(_: list[Evaluation]) -> Truth:
    return Truth()


def run(make_table: MakeTable, space: SearchSpace = SPACE, **changes: object) -> tuple[SearchResult, Bench]:
    bench = Bench()
    given_: dict = {
        "evaluate": bench,
        "fit": fit_truth,
        "evaluations": [],
        "settings": FEW,
        "seed": 0,
        "tables": [make_table(space, ORT), make_table(space, OV, 0.5)],
        **changes,
    }
    return search(space, SHAPE, given_.pop("tables"), **given_), bench


def test_a_fresh_search_spends_its_budget_and_nothing_twice(make_table: MakeTable) -> None:
    result, bench = run(make_table)
    assert len(bench.asked) == len(set(bench.asked)) == 10 + 2 * 6
    assert all(a in SPACE for a in bench.asked)
    assert {SPACE.largest, SPACE.smallest} <= set(bench.asked[:10])
    assert [e.architecture for e in result.evaluations] == bench.asked
    assert [report.evaluated for report in result.rounds] == [10, 16, 22]
    assert [report.round for report in result.rounds] == [0, 1, 2]
    assert result.rounds[0].kendall_tau is None
    assert all(report.kendall_tau == pytest.approx(1.0) for report in result.rounds[1:])
    volumes = [report.hypervolume for report in result.rounds]
    assert 0 < volumes[0] <= volumes[1] <= volumes[2] < 1


def test_the_front_holds_only_what_was_evaluated(make_table: MakeTable) -> None:
    result, bench = run(make_table)
    front = result.front.candidates
    assert front
    for candidate in front:
        assert candidate.architecture in bench.asked
        assert candidate.predicted.metric_source == "search split"
        assert candidate.predicted.metric == metric(candidate.architecture)
        assert candidate.predicted.macs == count_macs(SHAPE, candidate.architecture)
        assert candidate.deployment == OV  # half the latency, same accuracy
    assert not any(dominates(a.objectives, b.objectives) for a in front for b in front)


@settings(max_examples=12)
@given(st.integers(0, 10**9), st.permutations([0, 1, 2]))
def test_same_seed_same_front_whatever_the_order_of_tables(make_table: MakeTable, seed: int, order: list[int]) -> None:
    tables = [make_table(SPACE, ORT), make_table(SPACE, OV, 0.5), make_table(SPACE, replace(ORT, threads=2), 0.7)]
    few = replace(FEW, generations=3, rounds=1)
    python, numpy = random.getstate(), np.random.get_state()[1].tolist()
    first, bench = run(make_table, tables=tables, seed=seed, settings=few)
    second, again = run(make_table, tables=[tables[i] for i in order], seed=seed, settings=few)
    assert first == second
    assert bench.asked == again.asked
    assert ParetoFront.of(first.front.candidates) == first.front
    # No global state is read or left behind.
    assert (random.getstate(), np.random.get_state()[1].tolist()) == (python, numpy)


def test_another_seed_looks_elsewhere(make_table: MakeTable) -> None:
    assert run(make_table, seed=1)[1].asked != run(make_table, seed=2)[1].asked


def test_nothing_depends_on_the_hash_seed() -> None:
    here = Path(__file__).parent
    code = (
        f"import runpy; make = runpy.run_path({str(here.parent / 'conftest.py')!r})['build_table'];"
        f"run = runpy.run_path({__file__!r})['run']; print(run(make, seed=5)[0].front)"
    )
    outputs = set()
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        outputs.add(done.stdout)
    assert len(outputs) == 1


def test_search_beats_random_sampling(make_table: MakeTable) -> None:
    tables = [make_table(SPACE, ORT)]
    found = run(make_table, tables=tables, settings=replace(FEW, generations=20, rounds=3, batch=10))[0]
    drawn = Bench()(SPACE.sample(len(found.evaluations), seed=0))
    random_one = run(make_table, tables=tables, evaluations=drawn, settings=replace(FEW, rounds=0))[0]
    assert len(random_one.evaluations) == len(found.evaluations)
    assert found.rounds[-1].hypervolume > random_one.rounds[-1].hypervolume + 0.01


def test_known_evaluations_count_towards_the_warm_start(make_table: MakeTable) -> None:
    known = Bench()(SPACE.sample(7, seed=3))
    result, bench = run(make_table, evaluations=known * 2)
    assert len(bench.asked) == 3 + 2 * 6
    assert not {e.architecture for e in known} & set(bench.asked)
    assert result.evaluations[:14] == known * 2
    _, bench = run(make_table, evaluations=Bench()(SPACE.sample(12, seed=3)))
    assert len(bench.asked) == 2 * 6


def test_a_small_space_is_exhausted_and_the_front_exact(make_table: MakeTable) -> None:
    result, bench = run(make_table, space=TINY, settings=replace(FEW, warm_start=3, batch=2, rounds=9))
    assert set(bench.asked) == set(TINY)
    assert len(bench.asked) == TINY.size == 6
    table = make_table(TINY, OV, 0.5)
    points = {a: (-metric(a), count_macs(SHAPE, a), table.estimate_ms(a, "p50")) for a in TINY}
    best = {a for a in TINY if not any(dominates(points[other], points[a]) for other in TINY)}
    assert {c.architecture for c in result.front.candidates} == best
    assert [c.predicted.latency_ms for c in result.front.candidates] == sorted(points[a][2] for a in best)


def test_a_space_of_one_needs_no_predictor(make_table: MakeTable) -> None:
    def refuse(_: list[Evaluation]) -> Truth:
        raise AssertionError

    only = SearchSpace.homogeneous(1, [1], [2], [64])
    for tables in ([make_table(only)], [make_table(only), make_table(only, OV)]):
        result, bench = run(make_table, space=only, tables=tables, fit=refuse)
        assert bench.asked == [only.largest]
        assert len(result.front.candidates) == 1
        assert len(result.rounds) == 1


@pytest.mark.parametrize("space", [SPACE, SearchSpace.homogeneous(3, [1, 2, 3], [1, 2], [64, 128])])
def test_without_evaluations_to_come_the_front_says_what_is_predicted(
    make_table: MakeTable, space: SearchSpace
) -> None:
    known = Bench()(space.sample(10, seed=0))
    result, bench = run(make_table, space=space, evaluate=None, evaluations=known)
    assert (bench.asked, result.evaluations, result.rounds) == ([], known, ())
    values = {e.architecture for e in known}
    sources = {"predictor": 0, "search split": 0}
    for candidate in result.front.candidates:
        sources[candidate.predicted.metric_source] += 1
        assert (candidate.predicted.metric_source == "search split") == (candidate.architecture in values)
    assert all(sources.values())


def test_a_deployment_takes_the_metric_measured_in_its_precision(make_table: MakeTable) -> None:
    fp32 = Bench()(list(TINY))
    bf16 = [replace(e, precision="bf16", value=e.value - 0.25) for e in fp32]
    result, _ = run(make_table, space=TINY, evaluations=fp32 + bf16)
    for candidate in result.front.candidates:
        drop = 0.25 if candidate.deployment == OV else 0.0
        assert candidate.predicted.metric == pytest.approx(metric(candidate.architecture) - drop)
    assert {c.deployment for c in result.front.candidates} == {ORT, OV}


def test_latency_is_the_percentile_asked_for(make_table: MakeTable) -> None:
    table = make_table(SPACE)
    result, _ = run(make_table, tables=[table], percentile="p90")
    for candidate in result.front.candidates:
        assert candidate.predicted.latency_ms == table.estimate_ms(candidate.architecture, "p90")


def test_rounds_are_reported_as_they_end(make_table: MakeTable) -> None:
    seen: list[RoundReport] = []
    result, _ = run(make_table, on_round=seen.append)
    assert tuple(seen) == result.rounds


def test_what_cannot_be_searched_is_refused_before_anything_is_evaluated(make_table: MakeTable) -> None:
    bench = Bench()
    narrow = make_table(TINY)
    with pytest.raises(TableError, match=r"heads=1, ffn=128, ffn=256"):
        run(make_table, tables=[make_table(SPACE, OV), narrow], evaluate=bench)
    with pytest.raises(UsageError, match="table"):
        run(make_table, tables=[], evaluate=bench)
    with pytest.raises(UsageError, match="two latency tables"):
        run(make_table, tables=[make_table(SPACE), make_table(SPACE)], evaluate=bench)
    with pytest.raises(TableError, match="p95"):
        run(make_table, percentile="p95", evaluate=bench)
    with pytest.raises(ArchitectureError):
        run(make_table, evaluations=Bench()([Architecture.uniform(1, 1, 1)]), evaluate=bench)
    assert bench.asked == []


@pytest.mark.parametrize(
    "setting", [{"population": 3}, {"batch": 0}, {"rounds": -1}, {"warm_start": 1}, {"generations": 0}]
)
def test_settings_that_make_no_sense_are_refused(setting: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=next(iter(setting))):
        SearchSettings(**setting)
