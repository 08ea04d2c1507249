"""Stage `predict`: from a few dozen evaluated sub-networks to the accuracy of all of a space.

Boosted trees and a forest (LightGBM), a Gaussian process and ridge regression are fitted to the same evaluations, and
cross-validation says what each weighs. The process says how sure the prediction is.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from instatune_deploy.errors import UsageError
from instatune_deploy.stages.predict.ensemble import Members, blend, cross_validate
from instatune_deploy.stages.predict.files import read_predictor, write_predictor
from instatune_deploy.stages.predict.linear import PrecisionOffset
from instatune_deploy.stages.predict.quality import PredictorQuality, quality
from instatune_deploy.stages.predict.threads import one_thread
from instatune_deploy.values.evaluations import MIN_EVALUATIONS
from instatune_deploy.values.features import Features, UnitScores
from instatune_deploy.values.front import Evaluation
from instatune_deploy.values.macs import NetworkShape
from instatune_deploy.values.space import Architecture, SearchSpace

__all__ = ["MIN_EVALUATIONS", "AccuracyPredictor", "PredictorQuality", "fit_predictor"]

#: Architectures predicted at a time: each is compared with all evaluated ones.
_CHUNK = 1000


@dataclass(frozen=True)
class AccuracyPredictor:
    """Predicts a task metric (fraction 0..1) of every architecture of a space, and how far that may be off.

    A value: two equal predictors predict the same to the bit. Where `monotone`, a network with more heads, neurons or
    layers is never predicted lower, as suits a space sorted by importance.

    Args:
        members: the models, fitted to evaluations in precision `reference`.
        weights: of the members whose mean is predicted.
        offsets: for each other precision that was evaluated, what it adds.
        quality: on networks that a fit has not seen, in precision `reference`.
    """

    features: Features
    members: Members
    weights: dict[str, float]
    reference: str
    offsets: dict[str, PrecisionOffset]
    quality: PredictorQuality
    monotone: bool

    @property
    def space(self) -> SearchSpace:
        """The space whose architectures are predicted."""
        return self.features.space

    @property
    def precisions(self) -> tuple[str, ...]:
        """Those that can be predicted: `reference`, then the others."""
        return (self.reference, *self.offsets)

    def predict(self, architectures: Sequence[Architecture], *, precision: str | None = None) -> np.ndarray:
        """Predicted metric of each architecture.

        Args:
            architectures: n of them, each in the space.
            precision: of the deployment; None: `reference`.

        Returns:
            Shape ``(n,)``, fractions 0..1.

        Raises:
            ArchitectureError: one is not in the space.
            UsageError: nothing was evaluated in that precision.
        """
        return self.predict_with_spread(architectures, precision=precision)[0]

    def spread(self, architectures: Sequence[Architecture], *, precision: str | None = None) -> np.ndarray:
        """How far each prediction may be off: standard deviation of the metric, without the noise of measuring it.

        It has the deviation of the Gaussian process, what the members disagree by, and in another precision than
        `reference` the held-out error of its offset. Arguments and errors are those of `predict`.

        Returns:
            Shape ``(n,)``, fractions, not negative.
        """
        return self.predict_with_spread(architectures, precision=precision)[1]

    def predict_with_spread(
        self, architectures: Sequence[Architecture], *, precision: str | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """What `predict` and `spread` return, for the price of one."""
        precision = self.reference if precision is None else precision
        if precision not in self.precisions:
            raise UsageError(
                f"cannot predict {self.quality.metric} in {precision}: evaluations are in {', '.join(self.precisions)}; "
                f"evaluate some networks in {precision}"
            )
        with one_thread():
            chunks = [
                self._predict_chunk(architectures[begin : begin + _CHUNK], precision)
                for begin in range(0, len(architectures), _CHUNK)
            ]
        if not chunks:
            return np.empty(0), np.empty(0)
        mean, spread = (np.concatenate(parts) for parts in zip(*chunks, strict=True))
        return mean, spread

    def _predict_chunk(self, architectures: Sequence[Architecture], precision: str) -> tuple[np.ndarray, np.ndarray]:
        predicted, deviation = self.members.predict(self.features, self.features.counts(architectures))
        mean = blend(predicted, self.weights)
        variance = deviation**2
        for name, weight in self.weights.items():
            variance += weight * (predicted[name] - mean) ** 2
        if precision != self.reference:
            offset = self.offsets[precision]
            mean = mean + self.effect(architectures, mean, precision=precision)
            variance += offset.error**2
        return mean, np.sqrt(variance)

    def effect(self, architectures: Sequence[Architecture], predicted: np.ndarray, *, precision: str) -> np.ndarray:
        """What `precision` adds to what is `predicted` in precision `reference`; the sum is within -1..1, too.

        Returns:
            Shape ``(n,)``.
        """
        if precision == self.reference:
            return np.zeros_like(predicted)
        offsets = self.offsets[precision].linear.predict(self.features.sums(architectures))
        return np.asarray(np.clip(predicted + offsets, -1.0, 1.0) - predicted)

    def save(self, directory: Path) -> None:
        """Write trees as LightGBM text, all else and the feature schema as `predictor.json` into `directory`."""
        write_predictor(
            directory, features=self.features, members=self.members, weights=self.weights, reference=self.reference,
            offsets=self.offsets, quality=self.quality, monotone=self.monotone,
        )  # fmt: skip

    @classmethod
    def load(cls, directory: Path, space: SearchSpace | None = None) -> AccuracyPredictor:
        """The predictor that `save` wrote to `directory`; where `space` is given it must be for that one.

        Raises:
            UsageError: it is missing, damaged or for another space.
        """
        return cls(**read_predictor(directory, space))


def fit_predictor(
    space: SearchSpace,
    evaluations: Sequence[Evaluation],
    *,
    seed: int,
    folds: int = 5,
    monotone: bool = True,
    shape: NetworkShape | None = None,
    importance: UnitScores | None = None,
) -> AccuracyPredictor:
    """Fit a predictor, the same for the same evaluations in any order, and cross-validate it.

    Monotone predictors are blended of monotone models alone. Where more need not be better, as without sorting by
    importance, the free one is better from about a hundred evaluations on (recorded sub-networks of BERT-base).

    Args:
        space: the space that predictions are wanted for.
        evaluations: of one metric and split; those of the same architecture and precision are averaged.
        seed: of bagging and folds.
        folds: of the cross-validation, at least 2; no more than there are architectures are used.
        monotone: whether more heads, neurons or layers must never predict lower.
        shape: sizes of the model, for its multiply-accumulates.
        importance: of heads and neurons, in the order in which they are kept.

    Raises:
        UsageError: too few evaluations in any one precision, or of several metrics or splits; importance does not fit
            the space.
        ArchitectureError: an evaluation is outside the space.
    """
    kinds = sorted({(e.metric, e.split) for e in evaluations})
    if len(kinds) > 1:
        listed = ", ".join(f"{metric} on {split}" for metric, split in kinds)
        raise UsageError(f"a predictor is fitted to one metric on one split, found {listed}")
    if folds < 2:
        raise UsageError(f"cross-validation needs at least 2 folds, found {folds}")
    features = Features(space, shape, importance)
    measured = _means(space, evaluations)
    # The precision that was evaluated most has the most to learn from; of equal ones fp32, which others are made of.
    reference = max(measured, key=lambda p: (len(measured[p]), p == "fp32", p), default="fp32")
    found = measured.pop(reference, {})
    least = max(2, min(MIN_EVALUATIONS, space.size))  # of a space that is smaller all are known
    if len(found) < least:
        missing = least - len(found)
        raise UsageError(
            f"a predictor needs at least {least} different evaluated architectures in one precision, "
            f"found {len(found)} in {reference}: evaluate {missing} more"
        )
    known, values = tuple(found), np.array(list(found.values()))
    folds = min(folds, len(known))
    with one_thread():
        members = Members.fit(features, known, values, seed=seed, monotone=monotone)
        held_out = cross_validate(features, known, values, members, seed=seed, folds=folds, monotone=monotone)
    ((metric, split),) = kinds
    offsets = {}
    for precision in sorted(measured):
        others = list(measured[precision])
        predicted = blend(members.predict(features, features.counts(others))[0], held_out.weights)
        # What a network has in both precisions says most: the noise of measuring is mostly the same in both.
        base = np.array([found.get(a, guess) for a, guess in zip(others, predicted.tolist(), strict=True)])
        differences = np.array(list(measured[precision].values())) - base
        offsets[precision] = PrecisionOffset.fit(features.sums(others), differences, monotone=monotone)
    return AccuracyPredictor(
        features, members, held_out.weights, reference, offsets,
        quality(values, held_out.blended, held_out.members, folds=folds, metric=metric, split=split), monotone,
    )  # fmt: skip


def _means(space: SearchSpace, evaluations: Sequence[Evaluation]) -> dict[str, dict[Architecture, float]]:
    """The mean of the evaluations of each architecture in each precision, sorted: bagging and folds must not depend on
    the order in which evaluations came."""
    values: dict[str, dict[Architecture, list[float]]] = defaultdict(lambda: defaultdict(list))
    for evaluation in evaluations:
        values[evaluation.precision][space.check(evaluation.architecture)].append(evaluation.value)
    return {
        precision: {a: math.fsum(sorted(group[a])) / len(group[a]) for a in sorted(group, key=str)}
        for precision, group in values.items()
    }
