"""The latency fit: costs come back, strays and light samples matter less, trees only where they are sure to help."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from benchmarks.recorded_latency import evaluate, features, read
from instatune_deploy.errors import MeasurementError, TableError
from instatune_deploy.stages.profile.fit import FIXED, FOLDS, MIN_SAMPLES, FittedLatency, fit_latency

NAMES = ("layers", "heads", "neurons")
COSTS = {FIXED: 2.0, "layers": 0.5, "heads": 0.25, "neurons": 1e-3}
RECORDS = Path(__file__).parents[3] / "shared" / "data" / "records"


def networks(n: int, seed: int = 0) -> np.ndarray:
    """Features of `n` random networks, shape ``(n, 3)``."""
    random = np.random.default_rng(seed)
    layers = random.integers(1, 13, n)
    return np.column_stack([layers, layers * random.integers(1, 13, n), layers * random.integers(64, 3073, n)])


def additive_ms(matrix: np.ndarray) -> np.ndarray:
    return COSTS[FIXED] + matrix @ np.array([COSTS[name] for name in NAMES])


def noise(n: int, share: float, seed: int = 1) -> np.ndarray:
    return 1 + share * np.random.default_rng(seed).standard_normal(n)


def error_pct(fit: FittedLatency, matrix: np.ndarray, true_ms: np.ndarray) -> float:
    return float(100 * np.abs(fit.estimate_all_ms(matrix) / true_ms - 1).mean())


@pytest.mark.parametrize("n", [8, 60])
def test_additive_latencies_are_recovered(n: int) -> None:
    matrix = networks(n)
    fit = fit_latency(matrix, NAMES, additive_ms(matrix), seed=0)
    assert fit.linear == pytest.approx(COSTS, rel=1e-5)
    assert list(fit.linear) == [FIXED, *NAMES]
    assert fit.trees is None
    new = networks(20, seed=7)
    assert fit.estimate_all_ms(new) == pytest.approx(additive_ms(new), rel=1e-6)
    assert fit.estimate_ms(dict(zip(NAMES, new[0].tolist(), strict=True))) == pytest.approx(additive_ms(new)[0])


def test_a_negative_cost_needs_proof() -> None:
    matrix = networks(60)
    true_ms = 30 + 0.01 * matrix[:, 2] - 0.1 * matrix[:, 1]
    fit = fit_latency(matrix, NAMES, true_ms * noise(60, 0.01), seed=0)
    assert fit.method.startswith("signed")
    assert fit.linear["heads"] < 0
    plain = fit_latency(matrix, NAMES, additive_ms(matrix) * noise(60, 0.05), seed=0)
    assert plain.method.startswith("nonnegative")


def test_what_the_samples_leave_open_does_not_break_a_fit() -> None:
    """A constant column is the same as what is fixed, a column of zeros costs nothing, two equal ones share."""
    matrix = networks(8)
    wide = np.column_stack([matrix, np.full(8, 6.0), np.zeros(8), matrix[:, 0]])
    names = [*NAMES, "encoder_layers", "absent", "layers_again"]
    fit = fit_latency(wide, names, additive_ms(matrix), seed=0)
    assert fit.estimate_all_ms(wide) == pytest.approx(additive_ms(matrix), rel=1e-6)
    assert fit.linear["absent"] == 0
    assert fit.linear["layers_again"] == pytest.approx(fit.linear["layers"]) == pytest.approx(COSTS["layers"] / 2)


def test_trees_learn_a_real_nonlinearity_where_samples_are_enough() -> None:
    def stepped_ms(matrix: np.ndarray) -> np.ndarray:
        return additive_ms(matrix) * np.where(matrix[:, 2] > 8000, 1.4, 1.0)  # as if a cache were full

    matrix, new = networks(200), networks(200, seed=7)
    fit = fit_latency(matrix, NAMES, stepped_ms(matrix) * noise(200, 0.01), seed=0)
    assert fit.trees is not None
    assert fit.decision.startswith("trees")
    record = fit.cross_validation
    assert record["residual_mape_pct"] < record["linear_mape_pct"]
    assert (record["n"], record["folds"]) == (200, FOLDS)
    alone = FittedLatency(fit.linear, None, fit.method, fit.decision, record)
    assert error_pct(fit, new, stepped_ms(new)) < error_pct(alone, new, stepped_ms(new)) / 2
    assert fit.estimate_ms(dict(zip(NAMES, new[0].tolist(), strict=True))) == pytest.approx(fit.estimate_all_ms(new)[0])

    few = fit_latency(matrix[:9], NAMES, stepped_ms(matrix[:9]), seed=0)
    assert few.trees is None
    assert few.cross_validation == {"n": 9, "folds": 0}
    assert few.decision == f"no trees: 9 samples are too few to cross-validate, {MIN_SAMPLES} are needed"


@pytest.mark.parametrize("seed", range(3))
def test_trees_are_refused_on_pure_noise(seed: int) -> None:
    matrix = networks(100, seed)
    fit = fit_latency(matrix, NAMES, additive_ms(matrix) * noise(100, 0.05, seed), seed=seed)
    assert fit.trees is None
    assert fit.decision.startswith("no trees: held-out error")


def test_a_sample_counts_by_its_weight() -> None:
    matrix = networks(12)
    labels = additive_ms(matrix)
    labels[3] *= 2
    errors = []
    for weight in (1.0, 0.1, 1e-9):
        weights = np.ones(12)
        weights[3] = weight
        errors.append(error_pct(fit_latency(matrix, NAMES, labels, weights, seed=0), matrix, additive_ms(matrix)))
        scaled = fit_latency(matrix, NAMES, labels, 7 * weights, seed=0)
        assert error_pct(scaled, matrix, additive_ms(matrix)) == pytest.approx(errors[-1])
    assert errors[0] > 2 * errors[1]
    assert errors[2] == pytest.approx(0, abs=1e-4)


def test_stray_measurements_are_seen_through() -> None:
    """As on a device that was slower for a while: a fifth of the labels are a quarter too high."""
    matrix = networks(100)
    labels = additive_ms(matrix) * noise(100, 0.01)
    labels[::5] *= 1.25
    fit = fit_latency(matrix, NAMES, labels, seed=0)
    assert not fit.method.endswith("squares")
    assert error_pct(fit, matrix, additive_ms(matrix)) < 1
    record = fit.cross_validation
    assert record["linear_mape_pct"] < record["nonnegative_squares_mape_pct"]


def test_same_samples_same_seed_same_fit_and_it_goes_through_json() -> None:
    matrix = networks(200)
    labels = additive_ms(matrix) * np.where(matrix[:, 2] > 8000, 1.4, 1.0) * noise(200, 0.02)
    fit = fit_latency(matrix, NAMES, labels, seed=3)
    assert fit.trees is not None
    assert fit == fit_latency(matrix, NAMES, labels, seed=3)
    back = FittedLatency(**json.loads(json.dumps(asdict(fit))))
    assert back == fit
    assert (back.estimate_all_ms(matrix) == fit.estimate_all_ms(matrix)).all()
    assert list(back.linear) == [FIXED, *NAMES]


@pytest.mark.parametrize("label", [0.0, -1.0, float("nan"), float("inf")])
def test_an_impossible_latency_is_refused(label: float) -> None:
    matrix = networks(8)
    labels = additive_ms(matrix)
    labels[5] = label
    with pytest.raises(MeasurementError, match=f"sample 5 is {label} ms"):
        fit_latency(matrix, NAMES, labels, seed=0)


def test_what_does_not_fit_together_is_refused() -> None:
    matrix, labels = networks(8), additive_ms(networks(8))
    with pytest.raises(MeasurementError, match="at least one"):
        fit_latency(matrix[:0], NAMES, labels[:0], seed=0)
    with pytest.raises(ValueError, match="do not fit"):
        fit_latency(matrix, NAMES[:2], labels, seed=0)
    with pytest.raises(ValueError, match="do not fit"):
        fit_latency(matrix, NAMES, labels, np.ones(3), seed=0)
    with pytest.raises(ValueError, match="different"):
        fit_latency(matrix, ("layers", "heads", FIXED), labels, seed=0)
    with pytest.raises(ValueError, match="different"):
        fit_latency(matrix, ("layers", "heads", "heads"), labels, seed=0)
    with pytest.raises(ValueError, match="finite"):
        fit_latency(np.where(matrix == matrix[0, 0], np.nan, matrix), NAMES, labels, seed=0)
    with pytest.raises(ValueError, match="weight not"):
        fit_latency(matrix, NAMES, labels, np.zeros(8), seed=0)
    fit = fit_latency(matrix, NAMES, labels, seed=0)
    with pytest.raises(TableError, match="missing or unknown: depth, neurons"):
        fit.estimate_ms({"layers": 1, "heads": 2, "depth": 3})
    with pytest.raises(ValueError, match=r"expected \(n, 3\)"):
        fit.estimate_all_ms(matrix[:, :2])


@pytest.mark.skipif(not RECORDS.is_dir(), reason="no recorded devices")
def test_recorded_devices_are_predicted_from_a_hundred_networks() -> None:
    """All held-out rows count. On two devices some were recorded while it was slowed down, so there the median."""
    xeon, pi, titan = (
        evaluate(RECORDS / f"hat_{name}_all.csv", train=100, seeds=[0])[0]
        for name in ("wmt14enfr_cpu_xeon", "wmt14ende_cpu_raspberrypi", "iwslt14deen_gpu_titanxp")
    )
    assert (xeon["n_train"], xeon["n_heldout"]) == (100, 1900)
    assert xeon["mape_pct"] <= 4.6
    assert xeon["kendall_tau"] >= 0.89
    assert pi["median_ape_pct"] <= 0.7
    assert titan["median_ape_pct"] <= 2.1
    assert titan["steady_mape_pct"] <= 2.1
    for row in (xeon, pi, titan):
        assert row["mape_pct"] < row["lightgbm_mape_pct"]
        assert row["kendall_tau"] > row["lightgbm_kendall_tau"]


@pytest.mark.skipif(not RECORDS.is_dir(), reason="no recorded devices")
def test_recorded_features_are_sums_over_layers() -> None:
    frame = read(RECORDS / "hat_wmt14enfr_cpu_xeon_all.csv")
    matrix, names = features(frame)
    assert matrix.shape == (2000, len(names))
    row = dict(zip(names, matrix[0].tolist(), strict=True))
    assert row["decoder_ffn"] == pytest.approx(6 * 512 * 1536)
    assert row["encoder_ffn"] == pytest.approx(6 * 640 * 1621.3333333333333)
