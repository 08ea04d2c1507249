"""What is believed of networks' metrics: what was measured, what a predictor says, what a precision costs."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from instatune_deploy.values.budget import Bound
from instatune_deploy.values.costs import Goal
from instatune_deploy.values.front import Candidate, Evaluation
from instatune_deploy.values.space import Architecture
from instatune_deploy.values.steadying import steadied


@runtime_checkable
class Predictor(Protocol):
    """Whatever predicts a metric (fraction 0..1), shape ``(n,)``, for n architectures."""

    def predict(self, architectures: Sequence[Architecture]) -> np.ndarray: ...


@runtime_checkable
class UncertainPredictor(Predictor, Protocol):
    """A predictor that knows how unsure it is: with each prediction comes its standard deviation, both of shape ``(n,)``."""

    def predict_with_spread(self, architectures: Sequence[Architecture]) -> tuple[np.ndarray, np.ndarray]: ...


@runtime_checkable
class PrecisePredictor(Predictor, Protocol):
    """A predictor that knows what each of `precisions` adds to what it has predicted."""

    @property
    def precisions(self) -> Sequence[str]: ...

    def effect(self, architectures: Sequence[Architecture], predicted: np.ndarray, *, precision: str) -> np.ndarray: ...


Fit = Callable[[list[Evaluation]], Predictor]


class Beliefs:
    """The metric of any architecture in any precision, as it is known now.

    What was measured counts steadied by what networks' distances from the full one say (see `values.steadying`). What was
    measured in the precision counts, else what was measured in others, corrected by what the predictor says of
    the difference, if it does. Beside a predictor, the belief of a measured network is the mean of measurement and
    prediction: the best of many measured networks is partly luck, and the prediction, which knows its neighbours, is not.

    Args:
        predictor: None: only what was measured is known.
        evaluations: of different architectures; several of one architecture and precision are averaged.
    """

    def __init__(self, predictor: Predictor | None, evaluations: Iterable[Evaluation]) -> None:
        self.predictor = predictor
        measured: dict[Architecture, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for evaluation in steadied(list(evaluations)):
            measured[evaluation.architecture][evaluation.precision].append(evaluation.value)
        self.measured = {
            architecture: {precision: math.fsum(values) / len(values) for precision, values in by_precision.items()}
            for architecture, by_precision in measured.items()
        }
        self._predicted: dict[Architecture, tuple[float, float]] = {}
        self._effects: dict[tuple[Architecture, str], float] = {}

    def look_at(self, architectures: Iterable[Architecture]) -> None:
        """Predict, in one go, those that were not predicted yet."""
        fresh = list(dict.fromkeys(a for a in architectures if a not in self._predicted))
        if self.predictor is None or not fresh:
            return
        if isinstance(self.predictor, UncertainPredictor):
            means, spreads = self.predictor.predict_with_spread(fresh)
        else:
            means = self.predictor.predict(fresh)
            spreads = np.zeros_like(means)
        self._predicted.update(zip(fresh, zip(means.tolist(), spreads.tolist(), strict=True), strict=True))
        if isinstance(self.predictor, PrecisePredictor) and len(self.predictor.precisions) > 1:
            for precision in self.predictor.precisions:
                effects = self.predictor.effect(fresh, means, precision=precision)
                self._effects.update(zip(((a, precision) for a in fresh), effects.tolist(), strict=True))

    def spread(self, architecture: Architecture) -> float:
        """How unsure the prediction of an architecture is, as a standard deviation; 0 where nobody says."""
        self.look_at([architecture])
        return self._predicted[architecture][1] if architecture in self._predicted else 0.0

    def metric(self, architecture: Architecture, precision: str, *, optimism: float = 0.0) -> tuple[float, str]:
        """What is believed of the metric, and where that comes from, as in `Predicted.metric_source`.

        Args:
            optimism: how many standard deviations are added to the prediction of a network that was not measured.
        """
        self.look_at([architecture])
        predicted = self._predicted.get(architecture)
        own = self._effect(architecture, precision)
        if architecture not in self.measured:
            if predicted is None:
                raise KeyError(f"{architecture} was neither measured nor predicted")
            return predicted[0] + own + optimism * predicted[1], "predictor"
        by_precision = self.measured[architecture]
        if precision in by_precision:
            value = by_precision[precision]
        else:
            corrected = [found - self._effect(architecture, other) for other, found in by_precision.items()]
            value = math.fsum(corrected) / len(corrected) + own
        if predicted is None:
            return value, "search split"
        return (value + predicted[0] + own) / 2, "search split and predictor"

    def _effect(self, architecture: Architecture, precision: str) -> float:
        """What a precision adds to the metric that the predictor predicts where it is asked for none; 0 if unknown."""
        return self._effects.get((architecture, precision), 0.0)

    def candidate(self, goal: Goal, architecture: Architecture, index: int, *, optimism: float = 0.0) -> Candidate:
        """An architecture in the deployment of table `index`."""
        precision = goal.costs.tables[index].deployment.arithmetic
        metric, source = self.metric(architecture, precision, optimism=optimism)
        return goal.costs.candidate(architecture, index, metric, source)

    def candidates(self, goal: Goal, architectures: Iterable[Architecture]) -> list[Candidate]:
        """Every architecture in every deployment of a goal's target."""
        architectures = list(architectures)
        self.look_at(architectures)
        return [self.candidate(goal, a, index) for a in architectures for index in range(len(goal.costs.tables))]

    def bounds(self, goal: Goal) -> list[Bound]:
        """What a goal's limits come to; losses are against the largest network."""
        return goal.bounds(lambda: self.metric(goal.costs.space.largest, "fp32")[0])
