"""Decision trees by LightGBM on the counts of every layer: boosted ones, and a forest.

Trees see counts and depth only. With sums over layers beside them (multiply-accumulates, thirds of the network) held-out
Kendall tau on recorded sub-networks of BERT-base was 0.01 lower, at 50 evaluations as at 200: a split on a sum says
little of the layers that matter and takes the place of one that does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import lightgbm
import numpy as np

_COMMON: dict[str, Any] = {
    "objective": "regression",
    "min_data_in_bin": 1,
    "min_sum_hessian_in_leaf": 0.0,
    "bagging_freq": 1,
    "deterministic": True,
    "force_row_wise": True,
    "num_threads": 1,  # a few hundred rows: threads would only wait for each other
    "verbose": -1,
}
#: Few features a tree, as of many layers only some matter: each gets its chance.
_BOOSTED = {"learning_rate": 0.06, "num_leaves": 8, "lambda_l2": 1.0, "bagging_fraction": 0.8, "feature_fraction": 0.2}
_FOREST = {"boosting": "rf", "num_leaves": 31, "min_data_in_leaf": 1, "bagging_fraction": 0.63, "feature_fraction": 0.3}
_BOOSTED_ROUNDS, _FOREST_ROUNDS = 150, 75
_FEWEST = 6


@dataclass(frozen=True)
class Trees:
    """The mean of a few models that differ in their bags of rows and features, each LightGBM's own text, on top of
    `middle`: a tree of LightGBM's forests that finds nothing to split is worth 0, not the mean."""

    middle: float
    texts: tuple[str, ...]

    @classmethod
    def boosted(cls, counts: np.ndarray, values: np.ndarray, *, models: int, seed: int, monotone: bool) -> Trees:
        """Gradient boosting.

        Args:
            counts: shape ``(n, 2 * layers + 1)``, of `Features.counts`.
            values: shape ``(n,)``.
            models: how many; the more, the steadier is their mean.
            monotone: whether a larger count must never be predicted lower.
        """
        own = {"min_data_in_leaf": max(2, len(values) // 50)}
        return cls(*_train(counts, values, {**_BOOSTED, **own}, models, _BOOSTED_ROUNDS, seed, monotone))

    @classmethod
    def forest(cls, counts: np.ndarray, values: np.ndarray, *, models: int, seed: int, monotone: bool) -> Trees:
        """A random forest; arguments as of `boosted`."""
        return cls(*_train(counts, values, _FOREST, models, _FOREST_ROUNDS, seed, monotone))

    def predict(self, counts: np.ndarray) -> np.ndarray:
        """Mean over the models, shape ``(n,)``."""
        predictions = [booster.predict(counts, num_threads=1) for booster in self._boosters]
        return np.asarray(self.middle + np.mean(predictions, axis=0))

    @cached_property
    def _boosters(self) -> list[lightgbm.Booster]:
        return [lightgbm.Booster(model_str=text) for text in self.texts]


def _train(
    counts: np.ndarray,
    values: np.ndarray,
    own: dict[str, Any],
    models: int,
    rounds: int,
    seed: int,
    monotone: bool,
) -> tuple[float, tuple[str, ...]]:
    middle = float(values.mean())
    # Of fewer rows LightGBM can draw a bag without any, which ends it or predicts NaN.
    times = math.ceil(_FEWEST / len(values))
    counts, values = np.repeat(counts, times, axis=0), np.repeat(values, times)
    parameters = {**_COMMON, **own}
    if monotone:
        parameters["monotone_constraints"] = [1] * counts.shape[1]
    texts = []
    for number in range(models):
        seeded = {**parameters, "seed": (seed * 101 + number) % 2**31}
        data = lightgbm.Dataset(counts, values - middle, params=seeded)
        texts.append(lightgbm.train(seeded, data, rounds).model_to_string())
    return middle, tuple(texts)
