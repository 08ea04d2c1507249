"""Latency of a network from a few numbers about it, fitted on measured networks.

An additive model in ms, and gradient-boosted trees for what it leaves over, where cross-validation says they help.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

import lightgbm
import numpy as np
from scipy.optimize import nnls
from sklearn.model_selection import KFold

from instatune_deploy.errors import MeasurementError, TableError
from instatune_deploy.values.trees import Tree

FIXED = "fixed"
"""The feature that is 1 in every network: what does not depend on the others."""
FOLDS = 5
MIN_SAMPLES = 20
"""Fewer are not cross-validated, nor are fewer than two for each feature."""

#: How many standard deviations an error may be before it counts by its size, no longer by its square.
LOSSES = {"squares": math.inf, "huber": 1.345, "absolute": 0.05}
SIGNS = ("nonnegative", "signed")
#: What is taken where nothing can be cross-validated: costs are not negative, which holds the most where samples are few.
DEFAULT = ("nonnegative", "squares")

_ROUNDS = 100
_REWEIGHTINGS = 30
_SURE = 2.0  # standard errors: on pure noise a gain is seldom as large
_WORTH = 1e-3  # of the latency: less is below the noise of any measurement


@dataclass(frozen=True)
class FittedLatency:
    """Latency in ms as ``fixed + sum of cost * feature``, times ``1 + trees`` where there are trees.

    Plain values: it goes into JSON and comes back equal.
    """

    linear: dict[str, float]
    """ms for one of each feature, `FIXED` first, then in the order of the columns it was fitted to."""
    trees: str | None
    """LightGBM's text of what is left over, relative to the linear estimate; None where it does not help."""
    method: str
    """How the linear part was fitted, such as ``nonnegative huber``; see `SIGNS` and `LOSSES`."""
    decision: str
    """Why there are trees or none, for people."""
    cross_validation: dict[str, float]
    """`n` samples, `folds` (0: too few samples), and where there are folds the mean absolute relative errors:
    `linear_mape_pct`, `residual_mape_pct` (with trees) and `<method>_mape_pct` of every way to fit the linear part."""

    @property
    def names(self) -> list[str]:
        """The features, in the order of the columns."""
        return [name for name in self.linear if name != FIXED]

    def estimate_ms(self, features: Mapping[str, float]) -> float:
        """Predicted latency of one network.

        Raises:
            TableError: a feature is missing or unknown; nothing is assumed.
        """
        wrong = sorted(set(features) ^ set(self.names))
        if wrong:
            raise TableError(f"a latency fit needs {', '.join(self.names)}; missing or unknown: {', '.join(wrong)}")
        return float(self.estimate_all_ms(np.array([[features[name] for name in self.names]], float))[0])

    def estimate_all_ms(self, features: np.ndarray) -> np.ndarray:
        """Predicted latencies, shape ``(n,)``, of the networks in the rows of `features`, shape ``(n, k)``.

        Raises:
            ValueError: there are not as many columns as the fit has features.
        """
        if features.ndim != 2 or features.shape[1] != len(self.names):
            raise ValueError(f"features have shape {features.shape}, expected (n, {len(self.names)})")
        estimates = _with_fixed(features) @ np.array(list(self.linear.values()))
        return estimates if self._booster is None else estimates * _correction(self._booster, features)

    @cached_property
    def _booster(self) -> lightgbm.Booster | None:
        return None if self.trees is None else lightgbm.Booster(model_str=self.trees)


def fit_latency(
    features: np.ndarray, names: Sequence[str], labels_ms: np.ndarray, weights: np.ndarray | None = None, *, seed: int
) -> FittedLatency:
    """Fit latencies of measured networks: the same samples in the same order and seed give the same fit.

    The linear part minimises relative errors. How much a stray measurement counts, whether costs may be negative and
    whether trees are added are decided by cross-validation, in which every sample is predicted by a fit that has not
    seen it; the last two only if that lowers the error by two standard errors. Where samples are too few for that,
    non-negative least squares it is. Costs that the samples leave open are the smallest ones.

    Args:
        features: shape ``(n, k)``, finite; in what grows with latency (layers, layers * width), not in ratios.
        names: of the k columns, different, none of them `FIXED`, which is added.
        labels_ms: shape ``(n,)``.
        weights: shape ``(n,)``, positive, such as one over the variance of a label's relative error; equal if None.
        seed: of the folds and the trees.

    Raises:
        MeasurementError: no samples, or a label that is not a positive number.
        ValueError: shapes or names do not fit, or a feature or weight is impossible.
    """
    features, labels = np.asarray(features, float), np.asarray(labels_ms, float)
    weights = np.ones(len(labels)) if weights is None else np.asarray(weights, float)
    _check(features, names, labels, weights)
    weights = weights / weights.mean()
    n, k = features.shape
    chosen, helps, record = DEFAULT, False, {"n": float(n), "folds": 0.0}
    enough = max(MIN_SAMPLES, 2 * (k + 1))
    if n < enough:
        decision = f"no trees: {n} samples are too few to cross-validate, {enough} are needed"
    else:
        chosen, helps, record = _cross_validate(features, labels, weights, seed=seed)
        error, with_trees = record["linear_mape_pct"], record["residual_mape_pct"]
        decision = f"{'trees' if helps else 'no trees'}: held-out error {with_trees:.2f}% with, {error:.2f}% without"
    costs = _fit_linear(features, labels, weights, *chosen)
    booster = _fit_trees(features, labels, _with_fixed(features) @ costs, weights, seed=seed) if helps else None
    trees = None if booster is None else booster.model_to_string()
    linear = dict(zip([FIXED, *names], costs.tolist(), strict=True))
    return FittedLatency(linear, trees, " ".join(chosen), decision, record)


def tree_values(text: str, names: Sequence[str]) -> tuple[Tree, ...]:
    """LightGBM's text as plain values, which `trees.evaluate` reads without the library.

    Args:
        names: the features, in the order of the columns it was fitted to.
    """

    def value(node: dict[str, Any]) -> Tree:
        if "leaf_value" in node:
            return float(node["leaf_value"])
        low, high = value(node["left_child"]), value(node["right_child"])
        threshold = float(node["threshold"])
        return {"feature": names[node["split_feature"]], "threshold": threshold, "low": low, "high": high}

    dump = lightgbm.Booster(model_str=text).dump_model()
    return tuple(value(tree["tree_structure"]) for tree in dump["tree_info"])


def _check(features: np.ndarray, names: Sequence[str], labels: np.ndarray, weights: np.ndarray) -> None:
    if labels.ndim != 1 or not len(labels):
        raise MeasurementError("a latency fit needs at least one measured network")
    bad = [(row, float(label)) for row, label in enumerate(labels) if not (math.isfinite(label) and label > 0)]
    if bad:
        raise MeasurementError(f"latency of sample {bad[0][0]} is {bad[0][1]} ms, expected a positive number")
    if features.shape != (len(labels), len(names)) or weights.shape != labels.shape:
        raise ValueError(
            f"features {features.shape}, {len(names)} names, labels {labels.shape}, weights {weights.shape} do not fit"
        )
    if len({*names, FIXED}) != len(names) + 1:
        raise ValueError(f"names must be different and not {FIXED!r}, found {', '.join(names)}")
    if not (np.isfinite(features).all() and np.isfinite(weights).all() and (weights > 0).all()):
        raise ValueError("a feature is not a finite number or a weight not a positive one")


def _cross_validate(
    features: np.ndarray, labels: np.ndarray, weights: np.ndarray, *, seed: int
) -> tuple[tuple[str, str], bool, dict[str, float]]:
    """The best way to fit the linear part, whether trees help it, and the record of held-out errors."""
    folds = list(KFold(FOLDS, shuffle=True, random_state=seed % 2**32).split(features))
    methods = list(product(SIGNS, LOSSES))
    held_out = {method: np.empty_like(labels) for method in methods}
    for (fit, held), method in product(folds, methods):
        costs = _fit_linear(features[fit], labels[fit], weights[fit], *method)
        held_out[method][held] = _with_fixed(features[held]) @ costs
    errors = {method: np.abs(estimates / labels - 1) for method, estimates in held_out.items()}
    mape_pct = {method: 100 * float(np.average(each, weights=weights)) for method, each in errors.items()}
    # What is freer fits noise too, so it has to be better for sure: negative costs, and then trees.
    best, free = (min(product([sign], LOSSES), key=lambda method: mape_pct[method]) for sign in SIGNS)
    if _surely_lower(errors[free], errors[best], weights):
        best = free
    corrected = held_out[best].copy()
    for fit, held in folds:
        linear = _with_fixed(features[fit]) @ _fit_linear(features[fit], labels[fit], weights[fit], *best)
        booster = _fit_trees(features[fit], labels[fit], linear, weights[fit], seed=seed)
        corrected[held] *= _correction(booster, features[held])
    with_trees = np.abs(corrected / labels - 1)
    record = {"n": float(len(labels)), "folds": float(FOLDS), "linear_mape_pct": mape_pct[best]}
    record["residual_mape_pct"] = 100 * float(np.average(with_trees, weights=weights))
    record.update({f"{'_'.join(method)}_mape_pct": error for method, error in mape_pct.items()})
    return best, _surely_lower(with_trees, errors[best], weights), record


def _surely_lower(errors: np.ndarray, than: np.ndarray, weights: np.ndarray) -> bool:
    """Whether relative errors are lower than others of the same samples, by more than chance and worth it."""
    gains = weights * (than - errors)
    return bool(gains.mean() > max(_WORTH, _SURE * gains.std() / math.sqrt(len(gains))))


def _fit_linear(features: np.ndarray, labels: np.ndarray, weights: np.ndarray, sign: str, loss: str) -> np.ndarray:
    """Costs in ms, `FIXED` first, that minimise the weighted relative errors; see `SIGNS` and `LOSSES`."""
    # Row i over label i, so that residual i is the relative error of sample i; columns of like size, so that
    # "smallest costs" means the smallest shares of the latency.
    design = _with_fixed(features) / labels[:, None]
    scale = np.abs(design).mean(axis=0)
    scale[scale == 0] = 1
    design = design / scale
    solve = _nonnegative if sign == "nonnegative" else _signed
    solution = solve(design, weights)
    threshold = LOSSES[loss]
    if math.isinf(threshold):
        return solution / scale
    for _ in range(_REWEIGHTINGS):
        strays = np.abs(design @ solution - 1) * np.sqrt(weights)
        deviation = max(1.4826 * float(np.median(strays)), 1e-9)  # 1.4826 medians of a normal error are one sigma
        damped = weights / np.maximum(1, strays / (threshold * deviation))
        before, solution = solution, solve(design, damped / damped.mean())
        if np.abs(design @ (solution - before)).max() < 1e-5:
            break
    return solution / scale


def _signed(design: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Least squares of ``design @ x = 1``, of the solutions the one of least norm."""
    roots = np.sqrt(weights)
    return np.linalg.lstsq(design * roots[:, None], roots, rcond=1e-10)[0]


def _nonnegative(design: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Least squares of ``design @ x = 1`` with no x below zero; as good as the one of least norm."""
    roots = np.sqrt(weights)
    # A pull to zero, 1e-8 of the squares: enough to choose among equal solutions, too little to move a determined one.
    pull = 1e-4 * np.eye(design.shape[1])
    targets = np.concatenate([roots, np.zeros(len(pull))])
    return np.asarray(nnls(np.vstack([design * roots[:, None], pull]), targets)[0])


def _fit_trees(
    features: np.ndarray, labels: np.ndarray, linear: np.ndarray, weights: np.ndarray, *, seed: int
) -> lightgbm.Booster:
    """Trees for ``labels / linear - 1``."""
    parameters: dict[str, Any] = {
        "objective": "l1",  # a stray measurement must not make a leaf
        "learning_rate": 0.1,
        "num_leaves": 4,
        "min_data_in_leaf": max(3, len(labels) // 20),
        "min_data_in_bin": 1,
        "min_sum_hessian_in_leaf": 0.0,
        "seed": seed % 2**31,
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": 1,  # a few hundred rows: threads would only wait for each other
        "verbose": -1,
    }
    # A signed fit may estimate nothing or less for some sample; what is relative to that means nothing.
    usable = linear > 0
    target = np.where(usable, labels / np.where(usable, linear, 1), 1) - 1
    data = lightgbm.Dataset(features, target, weight=weights * usable, params=parameters)
    return lightgbm.train(parameters, data, _ROUNDS)


def _correction(booster: lightgbm.Booster, features: np.ndarray) -> np.ndarray:
    """What the trees multiply the linear estimates by."""
    return 1 + np.asarray(booster.predict(features, num_threads=1))


def _with_fixed(features: np.ndarray) -> np.ndarray:
    return np.column_stack([np.ones(len(features)), features])
