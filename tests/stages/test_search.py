"""The search on spaces whose truth is known."""

from __future__ import annotations

import itertools
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

from instatune_deploy.errors import ArchitectureError, InfeasibleBudgetError, TableError, UsageError
from instatune_deploy.stages.predict import AccuracyPredictor, fit_predictor
from instatune_deploy.stages.search import RoundReport, SearchResult, SearchSettings, search
from instatune_deploy.stages.search.beliefs import Beliefs
from instatune_deploy.stages.search.choose import choose
from instatune_deploy.stages.search.strategies import STRATEGIES
from instatune_deploy.values.budget import Limit
from instatune_deploy.values.costs import Costs, Goal
from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.front import Evaluation, ParetoFront
from instatune_deploy.values.latency import LatencyTable
from instatune_deploy.values.macs import ModelShape, count_macs
from instatune_deploy.values.objectives import DEFAULT, Objective, parse_objectives
from instatune_deploy.values.space import Architecture, SearchSpace
from tests.dominance import dominates

SHAPE = ModelShape("bert", 64, 16, 6, 4, 256, 8, fixed_macs=10**5, fixed_parameters=10**4)
SPACE = SearchSpace.homogeneous(6, [3, 4, 5, 6], [1, 2, 4], [64, 128, 256])
TINY = SearchSpace.homogeneous(2, [1, 2], [2, 4], [64])
FEW = SearchSettings(population=24, generations=8, rounds=2, batch=6, warm_start=10)
ORT, OV = Deployment("onnxruntime"), Deployment("openvino", "bf16")
TWO = parse_objectives(["metric", "macs"])
MakeTable = Callable[..., LatencyTable]


def layers_ms(table: LatencyTable, dimension: str, ms: float) -> dict[str, float]:
    """The costs of a table's layers, all choices of a dimension alike."""
    return {name: ms if name.startswith(dimension) else own for name, own in table.layer_ms.items()}


def metric(architecture: Architecture) -> float:
    """More is better, less so later, and early layers want heads while late ones want neurons."""
    gain = sum(h / (i + 2) + f * (i + 1) / 1024 for i, (h, f) in enumerate(architecture.layers))
    return float(0.5 + 0.5 * (1 - np.exp(-gain / 4)))


class Truth:
    """A predictor that knows, and knows that it does."""

    def predict(self, architectures: Sequence[Architecture]) -> np.ndarray:
        return np.array([metric(a) for a in architectures])

    def predict_with_spread(self, architectures: Sequence[Architecture]) -> tuple[np.ndarray, np.ndarray]:
        return self.predict(architectures), np.zeros(len(architectures))


class Bench:
    """Evaluates, and remembers the order in which it was asked to."""

    def __init__(self) -> None:
        self.asked: list[Architecture] = []

    def __call__(self, architectures: list[Architecture]) -> list[Evaluation]:
        self.asked += architectures
        return [Evaluation(a, "accuracy", metric(a), "search", 100) for a in architectures]


def fit_truth(_: list[Evaluation]) -> Truth:
    return Truth()


def goal_of(
    tables: Sequence[LatencyTable], space: SearchSpace = SPACE, percentile: str = "p50", objectives=DEFAULT, limits=()
) -> Goal:
    parsed = tuple(Limit.parse(text) for text in limits)
    return Goal(Costs(space, SHAPE, tables, percentile), objectives, parsed)


def run(make_table: MakeTable, space: SearchSpace = SPACE, **changes: object) -> tuple[SearchResult, Bench]:
    bench = Bench()
    given_: dict = {
        "evaluate": bench,
        "fit": fit_truth,
        "evaluations": [],
        "settings": FEW,
        "seed": 0,
        **changes,
    }
    if "goals" not in given_:
        tables = given_.pop("tables", None) or [make_table(space, ORT), make_table(space, OV, 0.5)]
        about = {key: given_.pop(key) for key in ("percentile", "objectives", "limits") if key in given_}
        given_["goals"] = [goal_of(tables, space, **about)]
    return search(space, given_.pop("goals"), **given_), bench


def test_a_fresh_search_spends_its_budget_and_nothing_twice(make_table: MakeTable) -> None:
    result, bench = run(make_table)
    assert len(bench.asked) == len(set(bench.asked)) == 10 + 2 * 6
    assert all(a in SPACE for a in bench.asked)
    assert {SPACE.largest, SPACE.smallest} <= set(bench.asked[:10])
    assert any(len(set(a.layers)) == 1 for a in bench.asked[2:10])  # homogeneous ones
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
        assert candidate.predicted.metric_source == "search split and predictor"
        assert candidate.predicted.metric == pytest.approx(metric(candidate.architecture))
        assert candidate.predicted.macs == count_macs(SHAPE, candidate.architecture)
        assert candidate.deployment == OV  # half the latency, same accuracy
    assert not any(dominates(a.point(), b.point()) for a in front for b in front)


@settings(max_examples=10)
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


@pytest.mark.parametrize(
    "names", [["metric", "macs", "latency"], ["metric", "size"], ["metric", "memory", "parameters"]]
)
def test_the_order_of_objectives_does_not_matter(make_table: MakeTable, names: list[str]) -> None:
    few = replace(FEW, generations=3, rounds=1)
    objectives = [tuple(Objective(name) for name in order) for order in itertools.permutations(names)]
    results = [run(make_table, objectives=order, settings=few)[0] for order in objectives]
    assert all(result == results[0] for result in results[1:])


@pytest.mark.parametrize(("method", "inner"), [*((name, "nsga2") for name in sorted(STRATEGIES)), ("linas", "nsga3")])
def test_every_method_keeps_to_its_budget_and_repeats_itself(make_table: MakeTable, method: str, inner: str) -> None:
    for objectives in (TWO, DEFAULT):
        few = replace(FEW, method=method, inner=inner, evaluations=31, population=12, patience=0)
        result, bench = run(make_table, settings=few, objectives=objectives)
        again, repeated = run(make_table, settings=few, objectives=objectives)
        assert len(bench.asked) == len(set(bench.asked)) == 31
        assert all(a in SPACE for a in bench.asked)
        assert (result, bench.asked) == (again, repeated.asked)
        points = [c.point(objectives) for c in result.front.candidates]
        assert not any(dominates(a, b) for a in points for b in points)
        whole, _ = run(make_table, space=TINY, settings=replace(few, evaluations=50), objectives=objectives)
        assert len(whole.evaluations) == TINY.size


def test_linas_finds_better_fronts_than_what_it_is_compared_to(make_table: MakeTable) -> None:
    volumes = {}
    for method in STRATEGIES:
        few = replace(FEW, method=method, evaluations=40, population=20, generations=15, patience=0)
        result, _ = run(make_table, tables=[make_table(SPACE, ORT)], settings=few, objectives=TWO)
        volumes[method] = result.rounds[-1].hypervolume
    assert all(volumes["linas"] > volumes[method] for method in STRATEGIES if method != "linas")


def test_a_population_that_mutates_explores() -> None:
    rng = random.Random(0)
    parent = SPACE.sample_one(rng)
    children = {SPACE.mutate(parent, rng, probability=1 / (2 * parent.depth + 1)) for _ in range(50)}
    assert parent not in children
    assert len(children) > 10


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
    assert {c.predicted.metric_source for c in result.front.candidates} == {"search split"}
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
    for candidate in result.front.candidates:
        expected = "search split and predictor" if candidate.architecture in values else "predictor"
        assert candidate.predicted.metric_source == expected
    assert "predictor" in {c.predicted.metric_source for c in result.front.candidates}


def test_one_search_serves_several_targets_and_evaluates_nothing_twice(make_table: MakeTable) -> None:
    """On one target heads are what costs time, on the other neurons are."""
    slow_heads = replace(make_table(SPACE), layer_ms=layers_ms(make_table(SPACE), "ffn", 0.01), fixed_ms=0.0)
    slow_ffn = replace(
        make_table(SPACE), target="other", layer_ms=layers_ms(make_table(SPACE), "heads", 0.01), fixed_ms=0.0
    )
    objectives = parse_objectives(["metric", "latency"])
    goals = [goal_of([slow_heads], objectives=objectives), goal_of([slow_ffn], objectives=objectives)]
    few = replace(FEW, rounds=3, batch=8)
    result, bench = run(make_table, goals=goals, settings=few)
    assert len(bench.asked) == len(set(bench.asked)) == 10 + 3 * 8
    first, second = ([c.architecture for c in front.candidates] for front in result.fronts)
    assert set(first) <= set(bench.asked) >= set(second)
    assert set(first) != set(second)
    for goal, front in zip(goals, result.fronts, strict=True):
        everything = Beliefs(Truth(), result.evaluations).candidates(goal, bench.asked)
        assert front == ParetoFront.of(everything, objectives)


def test_a_deployment_takes_the_metric_measured_in_its_precision(make_table: MakeTable) -> None:
    fp32 = Bench()(list(TINY))
    bf16 = [replace(e, precision=OV.arithmetic, value=e.value - 0.25) for e in fp32]
    result, _ = run(make_table, space=TINY, evaluations=fp32 + bf16)
    for candidate in result.front.candidates:
        drop = 0.25 if candidate.deployment == OV else 0.0
        assert candidate.predicted.metric == pytest.approx(metric(candidate.architecture) - drop)
    assert {c.deployment for c in result.front.candidates} == {ORT, OV}


def test_what_a_precision_costs_counts_where_it_was_not_measured(make_table: MakeTable) -> None:
    class Precise(Truth):
        precisions = ("fp32", OV.arithmetic)

        def effect(self, architectures: Sequence[Architecture], predicted: np.ndarray, *, precision: str) -> np.ndarray:
            return np.full(len(architectures), -0.1 if precision == OV.arithmetic else 0.0)

    for evaluate in (Bench(), None):
        known = Bench()(SPACE.sample(20, seed=1))
        result, _ = run(make_table, fit=lambda _: Precise(), evaluate=evaluate, evaluations=known)
        assert {c.deployment for c in result.front.candidates} == {ORT, OV}
        for candidate in result.front.candidates:
            drop = 0.1 if candidate.deployment == OV else 0.0
            assert candidate.predicted.metric == pytest.approx(metric(candidate.architecture) - drop)


def test_some_networks_are_evaluated_in_other_precisions_and_the_rest_follow(make_table: MakeTable) -> None:
    """The first half of them when the search has begun, of every size; the others from the fronts."""
    deployed: list[list[Architecture]] = []

    def deploy(architectures: list[Architecture]) -> list[Evaluation]:
        deployed.append(architectures)
        return [replace(e, precision=OV.arithmetic, value=e.value - 0.2) for e in Bench()(architectures)]

    def fit(evaluations: list[Evaluation]) -> AccuracyPredictor:
        return fit_predictor(SPACE, evaluations, seed=0)

    settings = replace(FEW, warm_start=12, deployed=5)
    result, bench = run(make_table, fit=fit, settings=settings, deploy=deploy)
    first, last = deployed
    assert len(first) == 3
    assert len(last) <= 2
    assert {SPACE.largest, SPACE.smallest} < set(first) < set(bench.asked)
    assert not set(first) & set(last)
    assert set(last) <= set(bench.asked)
    assert [e for e in result.evaluations if e.precision == OV.arithmetic] == [*deploy(first), *deploy(last)]
    beliefs = Beliefs(fit(result.evaluations), result.evaluations)
    for architecture in set(bench.asked) - set(first) - set(last):
        lost = beliefs.metric(architecture, "fp32")[0] - beliefs.metric(architecture, OV.arithmetic)[0]
        assert lost == pytest.approx(0.2, abs=0.01)


def test_nothing_is_deployed_unless_asked_for(make_table: MakeTable) -> None:
    asked: list[Architecture] = []
    run(make_table, deploy=lambda architectures: asked.extend(architectures) or [])
    assert asked == []


def test_latency_is_the_percentile_asked_for(make_table: MakeTable) -> None:
    table = make_table(SPACE)
    result, _ = run(make_table, tables=[table], percentile="p90")
    for candidate in result.front.candidates:
        assert candidate.predicted.latency_ms == table.estimate_ms(candidate.architecture, "p90")
        assert candidate.predicted.latency_high_ms == table.estimate(candidate.architecture, "p90").high_ms


def test_what_is_unsure_and_far_is_looked_at_too(make_table: MakeTable) -> None:
    """A quarter of a batch is chosen for information: without anything to gain, the unsure come first."""

    class Unsure(Truth):
        def predict(self, architectures: Sequence[Architecture]) -> np.ndarray:
            return np.full(len(architectures), 0.5)

        def predict_with_spread(self, architectures: Sequence[Architecture]) -> tuple[np.ndarray, np.ndarray]:
            return self.predict(architectures), np.array([0.1 if a == odd else 0.001 for a in architectures])

    pool = SPACE.sample(40, seed=0)
    odd, known = pool[20], Bench()(SPACE.sample(400, seed=5)[360:])
    goal = goal_of([make_table(SPACE)], objectives=TWO)
    chosen = choose([goal], Beliefs(Unsure(), known), pool, 4)
    assert odd in chosen
    assert len(set(chosen)) == 4


def test_what_is_believed_of_the_measured_is_steadied_by_their_divergences() -> None:
    networks = SPACE.sample(12, seed=3)
    lucky = [
        Evaluation(a, "accuracy", 0.8 - 0.01 * i, "search", 100, divergence=0.01 * i) for i, a in enumerate(networks)
    ]
    lucky[-1] = replace(lucky[-1], value=0.81)
    beliefs = Beliefs(None, lucky)
    assert beliefs.metric(networks[-1], "fp32")[0] < beliefs.metric(networks[0], "fp32")[0]
    silent = Beliefs(None, [replace(evaluation, divergence=None) for evaluation in lucky])
    assert silent.metric(networks[-1], "fp32")[0] == 0.81


@pytest.mark.parametrize("method", ["linas", "nsga2", "random"])
def test_limits_are_kept_by_every_network_of_a_front(make_table: MakeTable, method: str) -> None:
    largest = count_macs(SHAPE, SPACE.largest)
    limits = ["macs<=60%", "loss<=15"]
    few = replace(FEW, method=method, evaluations=40, population=12)
    result, bench = run(make_table, limits=limits, settings=few)
    assert SPACE.largest in bench.asked
    assert result.front.candidates
    for candidate in result.front.candidates:
        assert candidate.predicted.macs <= 0.6 * largest
        assert candidate.predicted.metric >= metric(SPACE.largest) - 0.15
    if method == "linas":  # it looks where the limits are kept
        inside = [a for a in bench.asked[10:] if count_macs(SHAPE, a) <= 0.6 * largest]
        assert len(inside) > 0.7 * len(bench.asked[10:])


def test_limits_that_nothing_keeps_name_the_nearest_three(make_table: MakeTable) -> None:
    bench = Bench()
    with pytest.raises(InfeasibleBudgetError, match=r"no network of the space keeps the limits on cpu-test") as caught:
        run(make_table, limits=["latency<=0.001ms", "size<=1kB"], evaluate=bench)
    assert bench.asked == []
    assert str(caught.value).count(" on o") == 3
    assert str(SPACE.smallest) in str(caught.value)
    with pytest.raises(InfeasibleBudgetError, match=r"of \d+ candidates none keeps .* nearest: ") as caught:
        run(make_table, limits=["metric>=0.999"])
    assert str(caught.value).count(": metric 0.") == 3


def test_a_search_ends_when_its_front_stands_still_or_time_is_up(make_table: MakeTable) -> None:
    many = replace(FEW, rounds=60, batch=2, patience=3)
    result, _ = run(make_table, settings=many)
    assert 4 <= len(result.rounds) < 61
    assert len(run(make_table, settings=replace(many, patience=0, rounds=20))[0].rounds) == 21
    assert len(run(make_table, settings=replace(many, minutes=1e-9))[0].rounds) == 1


def test_rounds_are_reported_as_they_end(make_table: MakeTable) -> None:
    seen: list[RoundReport] = []
    result, _ = run(make_table, on_round=seen.append)
    assert tuple(seen) == result.rounds


def test_what_cannot_be_searched_is_refused_before_anything_is_evaluated(make_table: MakeTable) -> None:
    bench = Bench()
    narrow = make_table(TINY)
    with pytest.raises(TableError, match=r"heads=1, ffn=128, ffn=256"):
        goal_of([make_table(SPACE, OV), narrow])
    with pytest.raises(UsageError, match="table"):
        goal_of([])
    with pytest.raises(UsageError, match="goal"):
        run(make_table, goals=[], evaluate=bench)
    with pytest.raises(UsageError, match="two latency tables"):
        goal_of([make_table(SPACE), make_table(SPACE)])
    with pytest.raises(TableError, match="p95"):
        goal_of([make_table(SPACE)], percentile="p95")
    with pytest.raises(UsageError, match="no latency table of there:ort-fp32-1t"):
        goal_of([make_table(SPACE)], objectives=parse_objectives(["metric", "latency@there:ort-fp32-1t"]))
    with pytest.raises(ArchitectureError):
        run(make_table, evaluations=Bench()([Architecture.uniform(1, 1, 1)]), evaluate=bench)
    assert bench.asked == []


@pytest.mark.parametrize(
    "setting",
    [
        {"population": 3}, {"batch": 0}, {"rounds": -1}, {"warm_start": 1}, {"generations": 0}, {"evaluations": 0},
        {"minutes": 0.0}, {"patience": -1},
    ],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(setting: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=next(iter(setting))):
        SearchSettings(**setting)


def test_an_unknown_method_gets_the_nearest() -> None:
    with pytest.raises(UsageError, match="unknown search method 'lians'; did you mean 'linas'"):
        SearchSettings(method="lians")
    with pytest.raises(UsageError, match="unknown inner search 'nsga4'; did you mean"):
        SearchSettings(inner="nsga4")
