"""Laws of dominance, hypervolume and the Pareto front."""

from __future__ import annotations

import json
from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.front import (
    Candidate,
    Evaluation,
    Measured,
    ParetoFront,
    Predicted,
    hypervolume,
)
from instatune_deploy.values.objectives import Objective, parse_objectives
from instatune_deploy.values.space import Architecture
from tests.dominance import dominates

# Few different values, so that ties are common.
small = st.integers(0, 4)
vectors = st.tuples(small, small, small)


def candidate(metric: float, macs: int, latency_ms: float, heads: int = 1, runtime: str = "onnxruntime") -> Candidate:
    predicted = Predicted(metric, macs, latency_ms, "predictor")
    return Candidate(Architecture.uniform(1, heads, 16), Deployment(runtime), predicted)  # type: ignore[arg-type]


candidates = st.lists(
    st.builds(
        candidate,
        small.map(lambda v: v / 4),
        small,
        small.map(float),
        st.integers(1, 3),
        st.sampled_from(["onnxruntime", "openvino"]),
    ),
    max_size=20,
)


@given(candidates)
def test_the_front_has_no_dominated_member_and_covers_the_rest(given_: list[Candidate]) -> None:
    front = ParetoFront.of(given_).candidates
    assert not any(dominates(a.point(), b.point()) for a in front for b in front)
    assert len({c.point() for c in front}) == len(front)
    for other in given_:
        assert any(dominates(c.point(), other.point()) or c.point() == other.point() for c in front)
    assert [c.predicted.latency_ms for c in front] == sorted(c.predicted.latency_ms for c in front)


@given(candidates, st.randoms(use_true_random=False))
def test_the_front_does_not_depend_on_the_order_of_candidates(given_: list[Candidate], rng) -> None:
    shuffled = given_[:]
    rng.shuffle(shuffled)
    assert ParetoFront.of(shuffled) == ParetoFront.of(given_)
    assert ParetoFront.of(ParetoFront.of(given_).candidates) == ParetoFront.of(given_)


@given(st.lists(vectors, max_size=12))
def test_the_order_of_objectives_does_not_matter(points: list[tuple]) -> None:
    kept = {p for p in points if not any(dominates(other, p) for other in points)}
    for order in permutations(range(3)):
        turned = {tuple(p[i] for i in order) for p in points}
        best = {p for p in turned if not any(dominates(other, p) for other in turned)}
        assert best == {tuple(p[i] for i in order) for p in kept}
        assert hypervolume(list(turned), (4, 4, 4)) == pytest.approx(hypervolume(points, (4, 4, 4)))


@given(st.lists(vectors, max_size=12))
def test_hypervolume_counts_the_cells_that_a_point_dominates(points: list[tuple]) -> None:
    dominated = sum(any(all(np.less_equal(p, cell)) for p in points) for cell in product(range(4), repeat=3))
    assert hypervolume(points, (4, 4, 4)) == pytest.approx(dominated)


def test_hypervolume_of_two_boxes() -> None:
    assert hypervolume([(0.0, 0.5), (0.5, 0.0)], (1.0, 1.0)) == pytest.approx(0.75)
    assert hypervolume([(1.0, 0.0)], (1.0, 1.0)) == hypervolume([], (1.0, 1.0)) == 0.0


@given(candidates, st.permutations(["metric", "macs", "latency"]), st.integers(2, 3))
def test_a_front_does_not_depend_on_the_order_of_objectives(given_: list[Candidate], names: list[str], n: int) -> None:
    objectives = tuple(Objective(name) for name in names[:n])
    turned = ParetoFront.of(given_, objectives[::-1])
    assert turned.candidates == ParetoFront.of(given_, objectives).candidates


def test_of_candidates_that_are_alike_in_the_objectives_the_fastest_stays() -> None:
    two = (Objective("macs"), Objective("metric"))
    slow, fast, other = candidate(0.9, 5, 3.0), candidate(0.9, 5, 2.0, runtime="openvino"), candidate(0.8, 4, 9.0)
    assert ParetoFront.of([slow, fast, other], two).candidates == (fast, other)


@given(candidates)
def test_a_front_round_trips(given_: list[Candidate]) -> None:
    front = ParetoFront.of(given_)
    assert ParetoFront.from_list(json.loads(json.dumps(front.to_list()))) == front
    two = ParetoFront.of(given_, parse_objectives(["metric", "macs"]))
    assert ParetoFront.from_dict(json.loads(json.dumps(two.to_dict()))) == two
    # As an older release wrote it.
    assert ParetoFront.from_dict({"front": front.to_list()}) == front


def test_measured_values_and_evaluations_round_trip() -> None:
    measured = Measured(0.9, 872, 5.0, 5.1, 5.4, 6.0, 300)
    found = Candidate(
        Architecture.uniform(2, 4, 64),
        Deployment("openvino", "bf16", needs=("amx_bf16",)),
        Predicted(0.9, 10, 5.0, "search split", 5.5, 3, 12, 20, (("cpu-avx2:ort-fp32-1t", 7.0),)),
        measured,
    )
    assert Candidate.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    evaluation = Evaluation(found.architecture, "accuracy", 0.91, "search", 1000, "bf16")
    assert Evaluation.from_dict(json.loads(json.dumps(evaluation.to_dict()))) == evaluation
