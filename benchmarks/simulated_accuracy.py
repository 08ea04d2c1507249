"""A BERT-base space whose accuracy is a model of recorded ones: `Simulation`, truth and noise of every sub-network."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.ensemble import HistGradientBoostingRegressor, VotingRegressor
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, DotProduct, WhiteKernel
from sklearn.linear_model import Ridge
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from instatune_deploy.values.front import Evaluation
from instatune_deploy.values.macs import ModelShape
from instatune_deploy.values.presets import preset
from instatune_deploy.values.space import Architecture, SearchSpace

RECORDS = Path(__file__).parent / "data" / "records" / "bert_base_sst2.jsonl"
#: BERT-base at 128 tokens; what is outside its layers is the pooler and the head.
SHAPE = ModelShape("bert", 768, 64, 12, 12, 3072, 128, fixed_macs=768 * 770, fixed_parameters=24_428_546)
#: Sentences that the recorded accuracies were measured on.
SENTENCES = 872


def read_records(path: Path = RECORDS) -> list[Evaluation]:
    """The recorded sub-networks with their accuracies."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        layers = tuple((h, f) for h, f in zip(record["heads"], record["ffn"], strict=True))
        found.append(Evaluation(Architecture(layers), "accuracy", record["accuracy"], "validation", SENTENCES))
    return found


def _model(layers: int) -> BaseEstimator:
    """What predicts held-out records best: the mean of a Gaussian process, ridge and monotone trees.

    Kin of every predictor that is compared has a part in it, so that none is at home in the truth.
    """
    kernel = ConstantKernel(1.0) * RBF(5.0) + DotProduct(1.0) + WhiteKernel(0.3)
    process = GaussianProcessRegressor(kernel, normalize_y=True, random_state=0)
    trees = HistGradientBoostingRegressor(
        learning_rate=0.05, max_iter=200, max_leaf_nodes=8, monotonic_cst=[1] * (2 * layers), random_state=0
    )
    ridge = make_pipeline(OneHotEncoder(handle_unknown="ignore"), Ridge(10.0))
    return VotingRegressor([("process", make_pipeline(StandardScaler(), process)), ("ridge", ridge), ("trees", trees)])


class Simulation:
    """Accuracies that are true, by a model fitted to all records, and measured, with noise on top.

    The noise is as large as the model's error on held-out records, which is noise of the records for the most part: an
    upper bound.
    """

    def __init__(self, records: Sequence[Evaluation]) -> None:
        self.space: SearchSpace = preset("bert-base").scaled(12, 12, 3072)
        self.genes = np.array([self.space.encode(e.architecture) for e in records], dtype=np.float64)
        self.values = np.array([e.value for e in records])
        self._true: dict[Architecture, float] = {}

    @cached_property
    def model(self) -> BaseEstimator:
        return _model(self.space.layers).fit(self.genes, self.values)

    @cached_property
    def noise(self) -> float:
        """Standard deviation of what a measurement adds to the truth."""
        folds = KFold(10, shuffle=True, random_state=0)
        predicted = cross_val_predict(_model(self.space.layers), self.genes, self.values, cv=folds)
        return float(np.std(self.values - predicted))

    def true(self, architectures: Sequence[Architecture]) -> np.ndarray:
        """Noise-free accuracies, shape ``(n,)``."""
        fresh = [a for a in dict.fromkeys(architectures) if a not in self._true]
        if fresh:
            genes = np.array([self.space.encode(a) for a in fresh], dtype=np.float64)
            self._true.update(zip(fresh, self.model.predict(genes).tolist(), strict=True))
        return np.array([self._true[a] for a in architectures])

    def measure(self, architectures: Sequence[Architecture], *, seed: int) -> list[Evaluation]:
        """Noisy accuracies; those of a network are the same for the same seed, whoever asks and whenever."""
        noisy = [
            value + random.Random(f"{seed}/{architecture}").gauss(0.0, self.noise)
            for architecture, value in zip(architectures, self.true(architectures).tolist(), strict=True)
        ]
        return [Evaluation(a, "accuracy", v, "search", SENTENCES) for a, v in zip(architectures, noisy, strict=True)]
