"""Several predictors as one: fitted together, weighed by cross-validation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls
from sklearn.model_selection import KFold

from instatune_deploy.stages.predict.linear import Linear
from instatune_deploy.stages.predict.process import GaussianProcess
from instatune_deploy.stages.predict.trees import Trees
from instatune_deploy.values.features import Features
from instatune_deploy.values.space import Architecture

#: What members weigh before anything is known of them. Ridge comes in only where it is better.
FREE = {"process": 0.6, "boosted": 0.25, "forest": 0.15, "linear": 0.0}
#: The same of members that can be made to predict more for more, which the process cannot; with it goes what is
#: additive, so ridge, whose slopes are then not negative, takes its place.
MONOTONE = {"boosted": 0.4, "forest": 0.3, "linear": 0.3}
#: Prior deviation of a weight. Members err alike, so a few dozen values cannot tell their weights apart.
_DEVIATION = 0.1
#: Models of each kind of trees: for predictions, and for the folds, which only weigh them.
_MODELS, _FOLD_MODELS = 6, 2


@dataclass(frozen=True)
class Members:
    """All that is fitted to the same evaluations."""

    process: GaussianProcess
    boosted: Trees
    forest: Trees
    linear: Linear

    @classmethod
    def fit(
        cls,
        features: Features,
        known: tuple[Architecture, ...],
        values: np.ndarray,
        *,
        seed: int,
        monotone: bool,
        models: int = _MODELS,
        start: tuple[float, ...] | None = None,
    ) -> Members:
        """Fit each to `values`, shape ``(n,)``.

        Args:
            models: of each kind of trees.
            start: where the process begins to look for its parameters.
        """
        counts = features.counts(known)
        return cls(
            GaussianProcess.fit(features, known, values, start=start),
            Trees.boosted(counts, values, models=models, seed=seed, monotone=monotone),
            Trees.forest(counts, values, models=models, seed=seed, monotone=monotone),
            Linear.fit(features.steps(counts), values, monotone=monotone),
        )

    def predict(self, features: Features, counts: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """What each predicts, by name, and the deviation of the process, all of shape ``(n,)``."""
        mean, deviation = self.process.predict(counts)
        return {
            "process": mean,
            "boosted": self.boosted.predict(counts),
            "forest": self.forest.predict(counts),
            "linear": self.linear.predict(features.steps(counts)),
        }, deviation


@dataclass(frozen=True)
class HeldOut:
    """Predictions of networks by members that have not seen them.

    Args:
        members: by name, shape ``(n,)``; blended: by weights that have not seen them either.
        weights: of the members, from all of them.
    """

    members: dict[str, np.ndarray]
    blended: np.ndarray
    weights: dict[str, float]


def cross_validate(
    features: Features, known: tuple[Architecture, ...], values: np.ndarray, full: Members, *, seed: int, folds: int,
    monotone: bool,
) -> HeldOut:  # fmt: skip
    """Members fitted to all folds but one predict that one, and their errors weigh them.

    Args:
        full: members fitted to everything. Only where to begin to look for parameters is taken from them, which saves
            most of the time.
    """
    counts = features.counts(known)
    splits = list(KFold(folds, shuffle=True, random_state=seed % 2**32).split(counts))
    prior = MONOTONE if monotone else FREE
    predicted = {name: np.empty_like(values) for name in FREE}
    for fit, held in splits:
        members = Members.fit(
            features, tuple(known[i] for i in fit), values[fit], seed=seed, monotone=monotone,
            models=_FOLD_MODELS, start=full.process.logarithms,
        )  # fmt: skip
        for name, found in members.predict(features, counts[held])[0].items():
            predicted[name][held] = found
    blended = np.empty_like(values)
    for fit, held in splits:
        weights = weigh({name: predicted[name][fit] for name in prior}, values[fit], prior)
        blended[held] = blend({name: predicted[name][held] for name in prior}, weights)
    return HeldOut(predicted, blended, weigh({name: predicted[name] for name in prior}, values, prior))


def weigh(predicted: Mapping[str, np.ndarray], values: np.ndarray, prior: Mapping[str, float]) -> dict[str, float]:
    """The most probable weights of predictions (n,) of `values`: none negative, one in all, near the prior's."""
    columns = np.column_stack([predicted[name] for name in prior])
    before = np.array(list(prior.values()))
    noise = float(np.std(columns @ before - values))
    if noise == 0:
        return dict(prior)
    pull = noise / _DEVIATION
    # The sum is held at one by a row that outweighs all others; given that, values may be counted from anywhere.
    middle = float(values.mean())
    firm = 1e3 * max(float(np.abs(columns - middle).max()), pull) * np.sqrt(len(values))
    rows = np.vstack([columns - middle, pull * np.eye(len(before)), np.full((1, len(before)), firm)])
    found, _ = nnls(rows, np.concatenate([values - middle, pull * before, [firm]]))
    return dict(zip(prior, (found / found.sum()).tolist(), strict=True))


def blend(predicted: Mapping[str, np.ndarray], weights: Mapping[str, float]) -> np.ndarray:
    """The weighted mean, within -1..1 as every metric is (correlations may be negative), shape ``(n,)``."""
    total = sum(weight * predicted[name] for name, weight in weights.items())
    return np.clip(np.asarray(total), -1.0, 1.0)
