"""The accuracy predictor: what it promises, what it refuses, what of it survives a file."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau

from instatune_deploy.errors import ArchitectureError, UsageError
from instatune_deploy.stages.predict import AccuracyPredictor, encode_features, feature_names, fit_predictor
from instatune_deploy.values.front import Evaluation
from instatune_deploy.values.space import Architecture, SearchSpace, preset

RECORDS = Path(__file__).parents[2].parent / "shared" / "data" / "records" / "bert_base_sst2.jsonl"
SPACE = SearchSpace.homogeneous(4, [2, 3, 4], [2, 4], [64, 128, 256])


def evaluate(architectures: Sequence[Architecture], noise: float = 0.01) -> list[Evaluation]:
    found = []
    for architecture in architectures:
        # Seeded by text, which Python hashes the same way in every process.
        jitter = random.Random(str(architecture)).gauss(0, noise)
        value = 0.5 + 0.1 * np.log2(sum(h * 64 + f for h, f in architecture.layers) / 256) / 2 + jitter
        found.append(Evaluation(architecture, "accuracy", float(np.clip(value, 0, 1)), "search", 500))
    return found


@pytest.fixture(scope="module")
def predictor() -> AccuracyPredictor:
    return fit_predictor(SPACE, evaluate(SPACE.sample(60, seed=0)), seed=1)


def test_features_are_the_encoding_and_the_depth() -> None:
    features = encode_features(SPACE, [Architecture.parse("2L[4-64 2-256]")])
    assert features.tolist() == [[4, 2, 0, 0, 64, 256, 0, 0, 2]]
    assert len(feature_names(SPACE)) == features.shape[1]
    with pytest.raises(ArchitectureError):
        encode_features(SPACE, [Architecture.parse("1L[4-64]")])


def test_unseen_networks_are_ordered_and_quality_is_held_out(predictor: AccuracyPredictor) -> None:
    unseen = evaluate(SPACE.sample(400, seed=9)[60:], noise=0)
    predicted = predictor.predict([e.architecture for e in unseen])
    assert predicted.shape == (340,)
    assert kendalltau(predicted, [e.value for e in unseen]).statistic > 0.75
    quality = predictor.quality
    assert (quality.n, quality.folds, quality.metric, quality.split) == (60, 5, "accuracy", "search")
    assert 0.3 < quality.kendall_tau < 1
    assert 0 < quality.mape_pct < 10
    assert predictor.predict([]).shape == (0,)


@given(st.integers(0, 10**6))
def test_more_is_never_predicted_lower(predictor: AccuracyPredictor, seed: int) -> None:
    rng = random.Random(seed)
    smaller, other = (SPACE.encode(SPACE.sample_one(rng)) for _ in range(2))
    larger = SPACE.decode([max(pair) for pair in zip(smaller, other, strict=True)])
    low, high = predictor.predict([SPACE.decode(smaller), larger])
    assert low <= high
    assert 0 <= low <= high <= 1


def test_pure_noise_has_no_held_out_quality() -> None:
    rng = random.Random(0)
    noise = [Evaluation(a, "accuracy", rng.random(), "search", 500) for a in SPACE.sample(60, seed=0)]
    quality = fit_predictor(SPACE, noise, seed=0, monotone=False).quality
    assert abs(quality.kendall_tau) < 0.3
    assert quality.r2 < 0.1


def test_equal_values_have_no_order() -> None:
    flat = [Evaluation(a, "accuracy", 0.75, "search", 500) for a in SPACE.sample(12, seed=0)]
    fitted = fit_predictor(SPACE, flat, seed=0)
    assert fitted.quality.kendall_tau == 0.0
    assert fitted.predict(SPACE.sample(5, seed=2)) == pytest.approx(0.75)


def test_the_same_evaluations_give_the_same_predictor(predictor: AccuracyPredictor) -> None:
    evaluations = evaluate(SPACE.sample(60, seed=0))
    assert fit_predictor(SPACE, evaluations[::-1], seed=1) == predictor
    assert fit_predictor(SPACE, evaluations, seed=2) != predictor


def test_evaluations_of_one_architecture_are_averaged() -> None:
    once = evaluate(SPACE.sample(10, seed=0))
    shift = [Evaluation(e.architecture, e.metric, e.value + sign / 64, e.split, e.n) for e in once for sign in (1, -1)]
    assert fit_predictor(SPACE, shift, seed=0).quality.n == 10
    assert fit_predictor(SPACE, shift, seed=0).predict(SPACE.sample(50, seed=1)) == pytest.approx(
        fit_predictor(SPACE, once, seed=0).predict(SPACE.sample(50, seed=1))
    )


@pytest.mark.parametrize(("count", "more"), [(0, 8), (5, 3), (7, 1)])
def test_too_few_evaluations_say_how_many_more(count: int, more: int) -> None:
    evaluations = evaluate(SPACE.sample(count, seed=0))
    with pytest.raises(UsageError, match=f"evaluate {more} more"):
        fit_predictor(SPACE, evaluations * 3, seed=0)
    assert fit_predictor(SPACE, evaluate(SPACE.sample(8, seed=0)), seed=0).quality.n == 8


def test_evaluations_that_do_not_belong_together_are_refused() -> None:
    evaluations = evaluate(SPACE.sample(20, seed=0))
    outside = Evaluation(Architecture.parse("1L[2-64]"), "accuracy", 0.5, "search", 500)
    with pytest.raises(ArchitectureError, match="not in the space"):
        fit_predictor(SPACE, [*evaluations, outside], seed=0)
    report = Evaluation(SPACE.largest, "accuracy", 0.5, "report", 500)
    with pytest.raises(UsageError, match="accuracy on report, accuracy on search"):
        fit_predictor(SPACE, [*evaluations, report], seed=0)
    with pytest.raises(UsageError, match="folds"):
        fit_predictor(SPACE, evaluations, seed=0, folds=1)


def test_a_saved_predictor_is_the_same_value(predictor: AccuracyPredictor, tmp_path: Path) -> None:
    predictor.save(tmp_path / "predictor")
    loaded = AccuracyPredictor.load(tmp_path / "predictor", SPACE)
    assert loaded == predictor
    everything = list(SPACE)
    assert np.array_equal(loaded.predict(everything), predictor.predict(everything))


def test_a_predictor_for_another_space_is_refused(predictor: AccuracyPredictor, tmp_path: Path) -> None:
    predictor.save(tmp_path)
    with pytest.raises(UsageError, match="another search space"):
        AccuracyPredictor.load(tmp_path, SPACE.with_drop_order([0, 1, 2, 3]))


@pytest.mark.parametrize(
    "damage", ["no index", "no model", "flipped", "cut", "not json", "no key", "features", "version", "space"]
)
def test_a_damaged_predictor_is_refused_in_one_line(predictor: AccuracyPredictor, tmp_path: Path, damage: str) -> None:
    predictor.save(tmp_path)
    index, model = tmp_path / "predictor.json", tmp_path / "model-3.txt"
    data = json.loads(index.read_text())
    if damage == "no index":
        index.unlink()
    elif damage == "no model":
        model.unlink()
    elif damage == "flipped":
        model.write_text(model.read_text().replace("leaf_value=0.5", "leaf_value=0.9").replace("=1", "=2", 1))
    elif damage == "cut":
        model.write_text(model.read_text()[:1000])
    elif damage == "not json":
        index.write_text(index.read_text()[:-40])
    elif damage == "no key":
        del data["quality"]["n"]
        index.write_text(json.dumps(data))
    elif damage == "features":
        index.write_text(json.dumps({**data, "features": data["features"][::-1]}))
    elif damage == "version":
        index.write_text(json.dumps({**data, "schema_version": 2}))
    elif damage == "space":
        index.write_text(json.dumps({**data, "space": {"depths": [9]}}))
    with pytest.raises(UsageError) as caught:
        AccuracyPredictor.load(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not RECORDS.is_file(), reason=f"needs recorded BERT sub-networks in {RECORDS}")
@pytest.mark.parametrize(("n", "least"), [(50, 0.80), (100, 0.82), (200, 0.83), (500, 0.84)])
def test_recorded_sub_networks_of_bert_are_ordered(n: int, least: float) -> None:
    space = preset("bert-base").scaled(12, 12, 3072)
    evaluations = []
    for line in RECORDS.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        architecture = Architecture(tuple(zip(record["heads"], record["ffn"], strict=True)))
        evaluations.append(Evaluation(architecture, "accuracy", record["accuracy"], "validation", 872))
    taus, started = [], time.perf_counter()
    for seed in range(3):
        shuffled = random.Random(seed).sample(evaluations, len(evaluations))
        held_out = shuffled[-300:]
        fitted = fit_predictor(space, shuffled[:n], seed=seed)
        predicted = fitted.predict([e.architecture for e in held_out])
        taus.append(kendalltau(predicted, [e.value for e in held_out]).statistic)
        assert abs(fitted.quality.kendall_tau - taus[-1]) < 0.12
    assert np.mean(taus) > least
    assert time.perf_counter() - started < 60
