"""The accuracy predictor: what it promises, what it refuses, what of it survives a file."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau

from instatune_deploy.errors import ArchitectureError, UsageError
from instatune_deploy.stages.predict import AccuracyPredictor, fit_predictor
from instatune_deploy.stages.predict.ensemble import blend, weigh
from instatune_deploy.stages.predict.linear import PrecisionOffset
from instatune_deploy.stages.predict.process import GaussianProcess
from instatune_deploy.values.features import Features, UnitScores
from instatune_deploy.values.front import Evaluation
from instatune_deploy.values.macs import ModelShape
from instatune_deploy.values.presets import preset
from instatune_deploy.values.space import Architecture, SearchSpace

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


def in_int8(evaluations: Sequence[Evaluation], offset: float = -0.05) -> list[Evaluation]:
    return [replace(e, precision="int8", value=e.value + offset) for e in evaluations]


@pytest.fixture(scope="module")
def predictor() -> AccuracyPredictor:
    return fit_predictor(SPACE, evaluate(SPACE.sample(60, seed=0)), seed=1)


@pytest.fixture(scope="module")
def free() -> AccuracyPredictor:
    evaluations = evaluate(SPACE.sample(60, seed=0))
    return fit_predictor(SPACE, evaluations + in_int8(evaluations[:12]), seed=1, monotone=False)


@pytest.mark.parametrize("kind", ["predictor", "free"])
def test_unseen_networks_are_ordered_and_quality_is_held_out(kind: str, request: pytest.FixtureRequest) -> None:
    fitted = request.getfixturevalue(kind)
    unseen = evaluate(SPACE.sample(400, seed=9)[60:], noise=0)
    predicted = fitted.predict([e.architecture for e in unseen])
    assert predicted.shape == (340,)
    assert kendalltau(predicted, [e.value for e in unseen]).statistic > 0.75
    quality = fitted.quality
    assert (quality.n, quality.folds, quality.metric, quality.split) == (60, 5, "accuracy", "search")
    assert 0.3 < quality.kendall_tau < 1
    assert 0 < quality.mape_pct < 10
    assert set(quality.member_taus) == {"process", "boosted", "forest", "linear"}
    assert sum(fitted.weights.values()) == pytest.approx(1)
    assert all(weight >= 0 for weight in fitted.weights.values())
    assert fitted.predict([]).shape == fitted.spread([]).shape == (0,)


@given(st.integers(0, 10**6))
def test_more_is_never_predicted_lower(predictor: AccuracyPredictor, seed: int) -> None:
    rng = random.Random(seed)
    smaller, other = (SPACE.encode(SPACE.sample_one(rng)) for _ in range(2))
    larger = SPACE.decode([max(pair) for pair in zip(smaller, other, strict=True)])
    low, high = predictor.predict([SPACE.decode(smaller), larger])
    assert low <= high
    assert 0 <= low <= high <= 1


def test_more_is_never_predicted_lower_in_another_precision() -> None:
    # Quantisation costs the larger networks more than they gain: the law holds all the same.
    evaluations = evaluate(SPACE.sample(60, seed=0))
    worse = [replace(e, precision="int8", value=1 - e.value) for e in evaluations[:30]]
    fitted = fit_predictor(SPACE, evaluations + worse, seed=1)
    rng = random.Random(0)
    pairs = [[SPACE.encode(SPACE.sample_one(rng)) for _ in range(2)] for _ in range(60)]
    smaller = [SPACE.decode(a) for a, _ in pairs]
    larger = [SPACE.decode([max(genes) for genes in zip(a, b, strict=True)]) for a, b in pairs]
    assert (fitted.predict(smaller, precision="int8") <= fitted.predict(larger, precision="int8")).all()


def test_what_was_evaluated_is_surer_than_what_is_far_from_it() -> None:
    shallow = SearchSpace.homogeneous(4, [2], [2, 4], [64, 128, 256])
    known = shallow.sample(20, seed=0)
    fitted = fit_predictor(SPACE, evaluate(known, noise=0.001), seed=0, monotone=False)
    near, far = fitted.spread(known), fitted.spread([a for a in SPACE.sample(60, seed=1) if a.depth == 4])
    assert near.shape == (20,)
    assert (near >= 0).all()
    assert near.max() < far.min()


def test_more_evaluations_make_it_surer() -> None:
    wanted = SPACE.sample(300, seed=5)[200:]
    few, many = (fit_predictor(SPACE, evaluate(SPACE.sample(n, seed=0)), seed=0, monotone=False) for n in (15, 120))
    assert many.spread(wanted).mean() < few.spread(wanted).mean()


def test_spread_is_as_large_as_errors_are(free: AccuracyPredictor) -> None:
    unseen = evaluate(SPACE.sample(400, seed=9)[60:], noise=0)
    networks = [e.architecture for e in unseen]
    errors = np.abs(free.predict(networks) - [e.value for e in unseen])
    assert 0.4 < np.mean(errors < free.spread(networks)) < 0.97


def test_pure_noise_has_no_held_out_quality() -> None:
    rng = random.Random(0)
    noise = [Evaluation(a, "accuracy", rng.random(), "search", 500) for a in SPACE.sample(60, seed=0)]
    quality = fit_predictor(SPACE, noise, seed=0, monotone=False).quality
    assert abs(quality.kendall_tau) < 0.3
    assert quality.r2 < 0.1


@pytest.mark.parametrize("monotone", [True, False])
def test_equal_values_have_no_order(monotone: bool) -> None:
    flat = [Evaluation(a, "accuracy", 0.75, "search", 500) for a in SPACE.sample(12, seed=0)]
    fitted = fit_predictor(SPACE, flat, seed=0, monotone=monotone)
    assert fitted.quality.kendall_tau == 0.0
    assert fitted.predict(SPACE.sample(5, seed=2)) == pytest.approx(0.75)


def test_the_same_evaluations_give_the_same_predictor(predictor: AccuracyPredictor) -> None:
    evaluations = evaluate(SPACE.sample(60, seed=0))
    assert fit_predictor(SPACE, evaluations[::-1], seed=1) == predictor
    assert fit_predictor(SPACE, evaluations, seed=2) != predictor


def test_evaluations_of_one_architecture_are_averaged() -> None:
    once = evaluate(SPACE.sample(10, seed=0))
    shift = [replace(e, value=e.value + sign / 64) for e in once for sign in (1, -1)]
    assert fit_predictor(SPACE, shift, seed=0).quality.n == 10
    assert fit_predictor(SPACE, shift, seed=0).predict(SPACE.sample(50, seed=1)) == pytest.approx(
        fit_predictor(SPACE, once, seed=0).predict(SPACE.sample(50, seed=1))
    )


def test_a_space_of_one_depth_and_uneven_layers_is_predicted() -> None:
    space = SearchSpace.stack((3,), ((2, 4), (4,), (1, 2, 3)), ((64,), (32, 64), (16, 48, 64)), ())
    fitted = fit_predictor(space, evaluate(space.sample(20, seed=0), noise=0), seed=0, monotone=False)
    assert fitted.quality.kendall_tau > 0.5
    assert fitted.predict(list(space)).shape == (space.size,)


def test_importance_and_shape_are_kept(tmp_path: Path) -> None:
    scores = UnitScores((((8, 1, 1, 0),) * 4, (tuple(range(256, 0, -1)),) * 4))
    shape = ModelShape("bert", 64, 16, 4, 4, 256, 8, fixed_macs=0, fixed_parameters=0)
    evaluations = evaluate(SPACE.sample(30, seed=0))
    fitted = fit_predictor(SPACE, evaluations, seed=0, monotone=False, shape=shape, importance=scores)
    fitted.save(tmp_path)
    assert AccuracyPredictor.load(tmp_path).features == Features(SPACE, shape, scores)
    plain = fit_predictor(SPACE, evaluations, seed=0, monotone=False)
    assert not np.array_equal(fitted.predict(list(SPACE)), plain.predict(list(SPACE)))
    with pytest.raises(UsageError, match="3 layers, the space has 4"):
        fit_predictor(SPACE, evaluations, seed=0, importance=UnitScores((((1,) * 4,) * 3, ((1,) * 256,) * 3)))


# -- precisions --------------------------------------------------------------------------------------------------------


def test_a_precision_is_an_offset_learnt_from_few(free: AccuracyPredictor) -> None:
    everything = list(SPACE)
    assert free.reference == "fp32"
    assert free.precisions == ("fp32", "int8")
    assert free.offsets["int8"].n == 12
    assert free.predict(everything, precision="int8") == pytest.approx(free.predict(everything) - 0.05)
    assert np.array_equal(free.predict(everything, precision="fp32"), free.predict(everything))


def test_an_offset_may_grow_with_the_network() -> None:
    evaluations = evaluate(SPACE.sample(60, seed=0))
    rough = [replace(e, precision="int8", value=e.value - 0.02 * (4 - e.architecture.depth)) for e in evaluations[:20]]
    fitted = fit_predictor(SPACE, evaluations + rough, seed=0)
    lost = fitted.predict(list(SPACE)) - fitted.predict(list(SPACE), precision="int8")
    depths = np.array([a.depth for a in SPACE])
    assert lost[depths == 2].mean() > lost[depths == 3].mean() > lost[depths == 4].mean()
    assert lost[depths == 2] == pytest.approx(0.04, abs=0.015)


def test_one_network_in_a_precision_is_enough_and_unsure() -> None:
    evaluations = evaluate(SPACE.sample(20, seed=0))
    fitted = fit_predictor(SPACE, evaluations + in_int8(evaluations[:1]), seed=0)
    networks = SPACE.sample(30, seed=3)
    assert fitted.predict(networks, precision="int8") == pytest.approx(fitted.predict(networks) - 0.05)
    assert (fitted.spread(networks, precision="int8") > fitted.spread(networks)).all()


def test_the_precision_with_most_evaluations_is_the_reference() -> None:
    evaluations = evaluate(SPACE.sample(20, seed=0))
    fitted = fit_predictor(SPACE, evaluations[:5] + in_int8(evaluations), seed=0)
    assert fitted.precisions == ("int8", "fp32")
    assert fitted.quality.n == 20


def test_many_are_predicted_as_each_is_alone(free: AccuracyPredictor) -> None:
    many = (list(SPACE) * 3)[:2100]
    together = free.predict(many), free.spread(many)
    assert together[0][[0, 1000, 2099]] == pytest.approx([free.predict([many[i]])[0] for i in (0, 1000, 2099)])
    assert together[1][[0, 1000, 2099]] == pytest.approx([free.spread([many[i]])[0] for i in (0, 1000, 2099)])


def test_a_precision_without_evaluations_is_refused(free: AccuracyPredictor) -> None:
    with pytest.raises(UsageError, match="evaluate some networks in bf16"):
        free.predict([SPACE.largest], precision="bf16")
    with pytest.raises(UsageError, match="bf16"):
        free.spread([SPACE.largest], precision="bf16")


# -- members -----------------------------------------------------------------------------------------------------------


def test_a_process_without_noise_goes_through_what_it_knows() -> None:
    features, known = Features(SPACE), tuple(SPACE.sample(30, seed=0))
    values = np.array([e.value for e in evaluate(known, noise=0)])
    fitted = GaussianProcess.fit(features, known, values)
    mean, deviation = fitted.predict(features.counts(known))
    assert mean == pytest.approx(values, abs=0.01)
    assert (deviation < values.std()).all()


def test_weights_follow_what_predicts_and_stay_where_nothing_does() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(0.5, 0.1, 400)
    predicted = {"good": values + rng.normal(0, 0.01, 400), "bad": rng.normal(0.5, 0.1, 400)}
    prior = {"good": 0.5, "bad": 0.5}
    assert weigh(predicted, values, prior)["good"] > 0.9
    assert weigh({name: found[:1] for name, found in predicted.items()}, values[:1], prior)["good"] < 0.95
    same = {"good": values, "bad": values}
    assert weigh(same, values, prior) == prior
    assert blend(same, prior) == pytest.approx(np.clip(values, 0, 1))
    assert blend({"one": np.array([-0.3, -1.2, 1.1])}, {"one": 1.0}).tolist() == [-0.3, -1, 1]  # correlations


def test_an_offset_is_judged_on_networks_it_has_not_seen() -> None:
    rng = np.random.default_rng(0)
    sums = rng.random((30, 3))
    learnt = PrecisionOffset.fit(sums, 0.1 * sums[:, 0] - 0.2, monotone=False)
    noise = PrecisionOffset.fit(sums, rng.normal(0, 0.1, 30), monotone=False)
    assert learnt.error < 0.01
    assert noise.error > 0.08


# -- bad input, files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "more"), [(0, 8), (5, 3), (7, 1)])
def test_too_few_evaluations_say_how_many_more(count: int, more: int) -> None:
    evaluations = evaluate(SPACE.sample(count, seed=0))
    with pytest.raises(UsageError, match=f"evaluate {more} more"):
        fit_predictor(SPACE, evaluations * 3, seed=0)
    assert fit_predictor(SPACE, evaluate(SPACE.sample(8, seed=0)), seed=0).quality.n == 8


@pytest.mark.parametrize("depths", [[1, 2], [1, 2, 3], [1, 2, 3, 4, 5, 6, 7]])
@pytest.mark.parametrize("monotone", [True, False])
def test_a_space_of_few_networks_asks_for_no_more_than_there_are(depths: list[int], monotone: bool) -> None:
    space = SearchSpace.homogeneous(len(depths), depths, [4], [64])
    evaluations = [Evaluation(a, "accuracy", 0.8 + 0.01 * a.depth, "search", 500) for a in space]
    with pytest.raises(UsageError, match="evaluate 1 more"):
        fit_predictor(space, evaluations[1:], seed=0, monotone=monotone)
    predictor = fit_predictor(space, evaluations, seed=0, monotone=monotone)
    found, spread = predictor.predict_with_spread([e.architecture for e in evaluations])
    assert found == pytest.approx([e.value for e in evaluations], abs=0.03)
    assert np.isfinite(spread).all()


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


@pytest.mark.parametrize("kind", ["predictor", "free"])
def test_a_saved_predictor_is_the_same_value(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    fitted = request.getfixturevalue(kind)
    fitted.save(tmp_path / "predictor")
    loaded = AccuracyPredictor.load(tmp_path / "predictor", SPACE)
    assert loaded == fitted
    everything = list(SPACE)
    for precision in fitted.precisions:
        assert np.array_equal(
            loaded.predict(everything, precision=precision), fitted.predict(everything, precision=precision)
        )
        assert np.array_equal(
            loaded.spread(everything, precision=precision), fitted.spread(everything, precision=precision)
        )


def test_a_predictor_for_another_space_is_refused(predictor: AccuracyPredictor, tmp_path: Path) -> None:
    predictor.save(tmp_path)
    with pytest.raises(UsageError, match="another search space"):
        AccuracyPredictor.load(tmp_path, SPACE.with_drop_order([0, 1, 2, 3]))


@pytest.mark.parametrize(
    "damage",
    [
        "no index",
        "no trees",
        "flipped",
        "cut",
        "not json",
        "no key",
        "features",
        "version",
        "space",
        "digit",
        "network",
    ],
)
def test_a_damaged_predictor_is_refused_in_one_line(predictor: AccuracyPredictor, tmp_path: Path, damage: str) -> None:
    predictor.save(tmp_path)
    index, trees = tmp_path / "predictor.json", tmp_path / "boosted-1.txt"
    data = json.loads(index.read_text())
    if damage == "no index":
        index.unlink()
    elif damage == "no trees":
        trees.unlink()
    elif damage == "flipped":
        trees.write_text(trees.read_text().replace("leaf_value=0.5", "leaf_value=0.9").replace("=1", "=2", 1))
    elif damage == "cut":
        trees.write_text(trees.read_text()[:1000])
    elif damage == "not json":
        index.write_text(index.read_text()[:-40])
    elif damage == "no key":
        del data["quality"]["n"]
        index.write_text(json.dumps(data))
    elif damage == "features":
        data["features"]["counts"].reverse()
        index.write_text(json.dumps(data))
    elif damage == "version":
        index.write_text(json.dumps({**data, "schema_version": 1}))
    elif damage == "space":
        data["features"]["space"] = {"depths": [9]}
        index.write_text(json.dumps(data))
    elif damage == "digit":
        data["process"]["values"][3] += 0.01
        index.write_text(json.dumps(data))
    elif damage == "network":
        data["process"]["known"][3] = "1L[2-64]"
        index.write_text(json.dumps(data))
    with pytest.raises(UsageError) as caught:
        AccuracyPredictor.load(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not RECORDS.is_file(), reason=f"needs recorded BERT sub-networks in {RECORDS}")
@pytest.mark.parametrize(("n", "least"), [(50, 0.78), (200, 0.82)])
def test_recorded_sub_networks_of_bert_are_ordered(n: int, least: float) -> None:
    space = preset("bert-base").scaled(12, 12, 3072)
    evaluations = []
    for line in RECORDS.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        architecture = Architecture(tuple(zip(record["heads"], record["ffn"], strict=True)))
        evaluations.append(Evaluation(architecture, "accuracy", record["accuracy"], "validation", 872))
    shuffled = random.Random(0).sample(evaluations, len(evaluations))
    held_out = shuffled[-300:]
    fitted = fit_predictor(space, shuffled[:n], seed=0, monotone=False)
    predicted = fitted.predict([e.architecture for e in held_out])
    tau = kendalltau(predicted, [e.value for e in held_out]).statistic
    assert tau > least
    assert abs(fitted.quality.kendall_tau - tau) < 0.12
