"""LINAS as published (arXiv 2205.10358), a strategy to compare ours with."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
from sklearn.linear_model import RidgeCV
from sklearn.preprocessing import OneHotEncoder
from sklearn.svm import SVR

from instatune_deploy.stages.search.beliefs import Beliefs, Predictor
from instatune_deploy.stages.search.strategies import Task, search_beliefs
from instatune_deploy.values.front import Evaluation
from instatune_deploy.values.sampling import random_new
from instatune_deploy.values.space import Architecture, SearchSpace


class OneHotPredictor:
    """Ridge regression and a support vector machine on one-hot genes; their mean is predicted."""

    def __init__(self, space: SearchSpace, evaluations: Sequence[Evaluation]) -> None:
        self.space = space
        layers = [sorted({0, *choices}) for choices in space.genes]
        self.encoder = OneHotEncoder(categories=layers, sparse_output=False)
        genes = self.encoder.fit_transform([space.encode(e.architecture) for e in evaluations])
        values = np.array([e.value for e in evaluations])
        self.mean, self.scale = values.mean(), values.std() or 1.0
        scaled = (values - self.mean) / self.scale
        self.models = [
            RidgeCV(alphas=np.logspace(-1, 3, 9)).fit(genes, scaled),
            SVR(C=1.0, epsilon=0.1).fit(genes, scaled),
        ]

    def predict(self, architectures: Sequence[Architecture]) -> np.ndarray:
        """Shape ``(n,)``, fractions."""
        genes = self.encoder.transform([self.space.encode(a) for a in architectures])
        return self.mean + self.scale * np.mean([model.predict(genes) for model in self.models], axis=0)


class PublishedLinas:
    """A random population, then over and over all of the last population of NSGA-II on predictions.

    Kinder to it than its implementation (DyNAS-T): its genes have no inactive layers, its mutation mutates, and what it
    proposes a second time costs it nothing.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.predictor: Predictor | None = None

    def begin(self, known: Sequence[Evaluation], rng: random.Random) -> list[Architecture]:
        return random_new(self.task.space, [e.architecture for e in known], self.task.population, rng)

    def propose(self, known: Sequence[Evaluation], rng: random.Random) -> list[Architecture]:
        self.predictor = OneHotPredictor(self.task.space, known)
        beliefs = Beliefs(self.predictor, [])  # every objective is predicted, also of what was measured
        points = search_beliefs(self.task, self.task.goals[0], beliefs, rng, optimism=0.0)
        return list(dict.fromkeys(architecture for architecture, _ in points))
