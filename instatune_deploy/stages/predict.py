"""Predict accuracy: gradient-boosted trees from a few dozen evaluated sub-networks to all of a space."""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
from scipy.stats import kendalltau
from sklearn.metrics import r2_score
from sklearn.model_selection import KFold

from instatune_deploy.errors import SpaceError, UsageError
from instatune_deploy.values.front import Evaluation
from instatune_deploy.values.space import Architecture, SearchSpace
from instatune_deploy.workspace import write_json, write_text

SCHEMA_VERSION = 1
MIN_EVALUATIONS = 8
INDEX_NAME = "predictor.json"

_BOOSTERS = 5
_ROUNDS = 150


@dataclass(frozen=True)
class PredictorQuality:
    """How well networks that a fit has not seen are predicted, from k-fold cross-validation over all `n` of them.

    `kendall_tau` (-1..1, 0 where the measured values are all equal) is of the order, `mape_pct` (percent) and `r2` of
    the values; `metric` and `split` say what was measured on what.
    """

    kendall_tau: float
    mape_pct: float
    r2: float
    n: int
    folds: int
    metric: str
    split: str


@dataclass(frozen=True)
class AccuracyPredictor:
    """Predicts a task metric (fraction 0..1) for every architecture of `space`: the mean of a few LightGBM models.

    A value: `models` are LightGBM's own text format, so two equal predictors predict the same to the bit. Where
    `monotone`, a network with more heads, neurons or layers is never predicted lower, as suits a space sorted by
    importance.
    """

    space: SearchSpace
    models: tuple[str, ...]
    quality: PredictorQuality
    monotone: bool

    def predict(self, architectures: Sequence[Architecture]) -> np.ndarray:
        """Predicted metric of each architecture.

        Args:
            architectures: n of them, each in the space.

        Returns:
            Shape ``(n,)``, fractions 0..1.

        Raises:
            ArchitectureError: one is not in the space.
        """
        if not architectures:
            return np.empty(0)
        features = encode_features(self.space, architectures)
        return _mean_prediction(self._boosters, features)

    @cached_property
    def _boosters(self) -> list[lightgbm.Booster]:
        return [lightgbm.Booster(model_str=text) for text in self.models]

    def save(self, directory: Path) -> None:
        """Write the models as LightGBM text and `predictor.json`, their index, into `directory`."""
        for number, text in enumerate(self.models):
            write_text(directory / _model_name(number), text)
        index = {
            "schema_version": SCHEMA_VERSION,
            "features": feature_names(self.space),
            "monotone": self.monotone,
            "models_sha256": [_sha256(text) for text in self.models],
            "quality": asdict(self.quality),
            "space": self.space.to_dict(),
        }
        write_json(directory / INDEX_NAME, index)  # last: a directory with an index is whole

    @classmethod
    def load(cls, directory: Path, space: SearchSpace | None = None) -> AccuracyPredictor:
        """The predictor that `save` wrote to `directory`; where `space` is given it must be for that one.

        Raises:
            UsageError: it is missing, damaged or for another space.
        """
        path = directory / INDEX_NAME
        try:
            index = json.loads(path.read_text(encoding="utf-8"))
            if index["schema_version"] != SCHEMA_VERSION:
                raise UsageError(
                    f"{path}: schema version {index['schema_version']}, this release reads {SCHEMA_VERSION}"
                )
            saved = SearchSpace.from_dict(index["space"])
            quality = PredictorQuality(**index["quality"])
            digests, features, monotone = index["models_sha256"], index["features"], bool(index["monotone"])
            models = tuple(_read_exactly(directory / _model_name(i)) for i in range(len(digests)))
        except OSError as error:
            raise UsageError(f"no predictor in {directory}: {error.filename}: {error.strerror}; fit it again") from None
        except KeyError as error:
            raise UsageError(f"{path}: damaged: lacks {error}; fit the predictor again") from None
        except (TypeError, ValueError, SpaceError) as error:
            raise UsageError(f"{path}: damaged: {' '.join(str(error).split())}; fit the predictor again") from None
        if space is not None and space != saved:
            raise UsageError(f"{path}: fitted for another search space than the one asked for; fit it again")
        # LightGBM reads a changed digit without complaint and predicts something else, so texts are hashed.
        for number, (text, digest) in enumerate(zip(models, digests, strict=True)):
            if _sha256(text) != digest:
                raise UsageError(
                    f"{directory / _model_name(number)}: damaged: SHA-256 differs; fit the predictor again"
                )
        if not models or features != feature_names(saved):
            raise UsageError(f"{path}: damaged: models or features do not fit its space; fit the predictor again")
        return cls(saved, models, quality, monotone)


def feature_names(space: SearchSpace) -> list[str]:
    """Names of the columns of `encode_features`."""
    layers = range(space.layers)
    return [*(f"heads_{i}" for i in layers), *(f"ffn_{i}" for i in layers), "depth"]


def encode_features(space: SearchSpace, architectures: Sequence[Architecture]) -> np.ndarray:
    """What trees see of each architecture: heads, then MLP widths of every layer of the full network, then depth.

    Sums over layers are left out on purpose. Under monotone constraints a split on a sum cannot be taken back for the
    layers that matter less: held-out Kendall tau was 0.01 lower with sums, at 50 evaluations as at 500.

    Returns:
        Shape ``(n, 2 * layers + 1)``, counts; a dropped layer has 0 of both.

    Raises:
        ArchitectureError: one is not in the space.
    """
    return np.array([[*space.encode(space.check(a)), a.depth] for a in architectures], dtype=np.float64)


def fit_predictor(
    space: SearchSpace, evaluations: Sequence[Evaluation], *, seed: int, folds: int = 5, monotone: bool = True
) -> AccuracyPredictor:
    """Fit a predictor, the same for the same evaluations in any order, and cross-validate it.

    Args:
        space: the space that predictions are wanted for.
        evaluations: of one metric and split; those of the same architecture are averaged.
        seed: of bagging and folds.
        folds: of the cross-validation, at least 2; no more than there are architectures are used.
        monotone: whether more heads, neurons or layers must never predict lower.

    Raises:
        UsageError: too few evaluations, or of several metrics or splits.
        ArchitectureError: an evaluation is outside the space.
    """
    kinds = sorted({(e.metric, e.split) for e in evaluations})
    if len(kinds) > 1:
        listed = ", ".join(f"{metric} on {split}" for metric, split in kinds)
        raise UsageError(f"a predictor is fitted to one metric on one split, found {listed}")
    if folds < 2:
        raise UsageError(f"cross-validation needs at least 2 folds, found {folds}")
    values: dict[Architecture, list[float]] = defaultdict(list)
    for evaluation in evaluations:
        values[space.check(evaluation.architecture)].append(evaluation.value)
    if len(values) < MIN_EVALUATIONS:
        raise UsageError(
            f"a predictor needs at least {MIN_EVALUATIONS} different evaluated architectures, found {len(values)}: "
            f"evaluate {MIN_EVALUATIONS - len(values)} more"
        )
    # Sorted, so that bagging and folds do not depend on the order in which evaluations came.
    architectures = sorted(values, key=str)
    features = encode_features(space, architectures)
    target = np.array([math.fsum(sorted(values[a])) / len(values[a]) for a in architectures])
    folds = min(folds, len(architectures))
    held_out = np.empty_like(target)
    for fit, held in KFold(folds, shuffle=True, random_state=seed % 2**32).split(features):
        boosters = _train(features[fit], target[fit], seed=seed, monotone=monotone)
        held_out[held] = _mean_prediction(boosters, features[held])
    quality = _quality(target, held_out, folds, *kinds[0])
    boosters = _train(features, target, seed=seed, monotone=monotone)
    return AccuracyPredictor(space, tuple(b.model_to_string() for b in boosters), quality, monotone)


def _train(features: np.ndarray, target: np.ndarray, *, seed: int, monotone: bool) -> list[lightgbm.Booster]:
    """Boosters that differ in their bags of samples and features; their mean is steadier than any of them."""
    n, columns = features.shape
    parameters: dict[str, Any] = {
        "objective": "regression",
        "learning_rate": 0.05,
        "num_leaves": 4 if n < 200 else 8,
        "min_data_in_leaf": max(2, n // 50),
        "min_data_in_bin": 1,
        "min_sum_hessian_in_leaf": 0.0,
        "lambda_l2": 1.0,
        "bagging_fraction": 0.8,
        "bagging_freq": 1,
        "feature_fraction": 0.5,
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": 1,  # a few hundred rows: threads would only wait for each other
        "verbose": -1,
    }
    if monotone:
        parameters["monotone_constraints"] = [1] * columns
    boosters = []
    for number in range(_BOOSTERS):
        own = {**parameters, "seed": (seed * _BOOSTERS + number) % 2**31}
        data = lightgbm.Dataset(features, target, params=own)
        boosters.append(lightgbm.train(own, data, _ROUNDS))
    return boosters


def _mean_prediction(boosters: Sequence[lightgbm.Booster], features: np.ndarray) -> np.ndarray:
    predictions = [np.asarray(booster.predict(features, num_threads=1)) for booster in boosters]
    return np.clip(np.mean(predictions, axis=0), 0.0, 1.0)


def _quality(measured: np.ndarray, predicted: np.ndarray, folds: int, metric: str, split: str) -> PredictorQuality:
    tau = float(kendalltau(measured, predicted).statistic)
    nonzero = measured != 0
    errors = np.abs(predicted[nonzero] / measured[nonzero] - 1)
    return PredictorQuality(
        kendall_tau=0.0 if math.isnan(tau) else tau,
        mape_pct=float(100 * errors.mean()) if len(errors) else 0.0,
        r2=float(r2_score(measured, predicted)),
        n=len(measured),
        folds=folds,
        metric=metric,
        split=split,
    )


def _model_name(number: int) -> str:
    return f"model-{number}.txt"


def _read_exactly(path: Path) -> str:
    """The text of `path` with its line ends as they are: it is hashed."""
    return path.read_bytes().decode("utf-8")


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
