"""How well the accuracy of recorded sub-networks of BERT-base is ordered from a few of them.

The records (Intel Neural Compressor's examples) hold 1,000 different sub-networks of an elastic BERT-base with their
accuracy on the 872 validation sentences of SST-2. In every split 300 of them are held out; the first N of the others
are fitted to, so that a larger N only adds to a smaller one. All methods see the same rows.

    python -m benchmarks.predictor
"""

from __future__ import annotations

import json
import math
import random
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
from scipy.stats import kendalltau
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, DotProduct, Matern, WhiteKernel
from sklearn.linear_model import RidgeCV
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV
from sklearn.svm import SVR

from benchmarks.results import write_result
from instatune_deploy.stages.predict import fit_predictor
from instatune_deploy.values.front import Evaluation
from instatune_deploy.values.space import Architecture, SearchSpace, preset

RECORDS = Path(__file__).parent / "data" / "records" / "bert_base_sst2.jsonl"
SENTENCES = 872
TRAIN = (50, 100, 200, 500)
HELD_OUT = 300
SEEDS = range(10)
#: Figures to reach, by N.
WANTED = {50: 0.825, 100: 0.85, 200: 0.86, 500: 0.875}
#: Simulated records a split for the ceiling.
DRAWS = 20

#: From evaluations to fit to and architectures to predict, to predictions of shape (n,).
Method = Callable[[Sequence[Evaluation], Sequence[Architecture], int], np.ndarray]


def read(path: Path = RECORDS) -> tuple[SearchSpace, list[Evaluation]]:
    """BERT-base's space, and one evaluation a network, in the order of the file; equal networks are averaged."""
    values: dict[Architecture, list[float]] = defaultdict(list)
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        values[Architecture(tuple(zip(record["heads"], record["ffn"], strict=True)))].append(record["accuracy"])
    space = preset("bert-base").scaled(12, 12, 3072)
    return space, [
        Evaluation(space.check(a), "accuracy", math.fsum(found) / len(found), "validation", SENTENCES)
        for a, found in values.items()
    ]


def split(evaluations: Sequence[Evaluation], *, seed: int) -> tuple[list[Evaluation], list[Evaluation]]:
    """Rows to fit to, of which the first N are taken, and the held-out ones; no network is in both."""
    shuffled = random.Random(seed).sample(list(evaluations), len(evaluations))
    return shuffled[:-HELD_OUT], shuffled[-HELD_OUT:]


def one_hot(space: SearchSpace, architectures: Sequence[Architecture]) -> np.ndarray:
    """A column for each value that a layer's heads or width may take, absence included, shape ``(n, columns)``."""
    codes = np.array([space.encode(a) for a in architectures])
    choices = [(0, *values) for values in (*space.heads, *space.ffn)]
    return np.column_stack([codes[:, i] == value for i, values in enumerate(choices) for value in values]).astype(float)


def by_ridge(space: SearchSpace, known: Sequence[Evaluation], wanted: Sequence[Architecture], seed: int) -> np.ndarray:
    """Ridge on one-hot genes, its penalty by leave-one-out."""
    model = RidgeCV(np.logspace(-2, 3, 21)).fit(one_hot(space, [e.architecture for e in known]), _values(known))
    return np.asarray(model.predict(one_hot(space, wanted)))


def by_svr(space: SearchSpace, known: Sequence[Evaluation], wanted: Sequence[Architecture], seed: int) -> np.ndarray:
    """Support vector regression on one-hot genes, its cost and width by 5-fold cross-validation."""
    values = _values(known)
    grid = {"C": [0.3, 1, 3, 10, 30], "gamma": [0.003, 0.01, 0.03, 0.1]}
    model = GridSearchCV(SVR(epsilon=0.1), grid, cv=5, scoring="neg_mean_squared_error")
    model.fit(one_hot(space, [e.architecture for e in known]), (values - values.mean()) / values.std())
    return np.asarray(model.predict(one_hot(space, wanted)) * values.std() + values.mean())


def by_lightgbm(
    space: SearchSpace, known: Sequence[Evaluation], wanted: Sequence[Architecture], seed: int
) -> np.ndarray:
    """LightGBM on the encoding, with leaves as small as few samples need."""
    parameters: dict[str, Any] = {
        "objective": "regression", "learning_rate": 0.05, "num_leaves": 8, "min_data_in_leaf": max(2, len(known) // 20),
        "min_data_in_bin": 1, "seed": seed, "deterministic": True, "force_row_wise": True, "num_threads": 1, "verbose": -1,
    }  # fmt: skip
    table = np.array([space.encode(e.architecture) for e in known], float)
    booster = lightgbm.train(parameters, lightgbm.Dataset(table, _values(known), params=parameters), 200)
    return np.asarray(booster.predict(np.array([space.encode(a) for a in wanted], float), num_threads=1))


BASELINES = {"ridge": by_ridge, "svr": by_svr, "lightgbm": by_lightgbm}


def scores(predicted: np.ndarray, measured: np.ndarray) -> dict[str, float]:
    """Kendall's tau, mean absolute percentage error and R2."""
    return {
        "tau": float(kendalltau(predicted, measured).statistic),
        "mape_pct": float(100 * np.abs(predicted / measured - 1).mean()),
        "r2": float(r2_score(measured, predicted)),
    }


def evaluate(space: SearchSpace, evaluations: Sequence[Evaluation], *, seed: int) -> list[dict[str, Any]]:
    """A row a method and N: its scores on the held-out networks of one split."""
    fitted, held = split(evaluations, seed=seed)
    wanted, measured = [e.architecture for e in held], _values(held)
    rows = []
    for n in TRAIN:
        known, common = fitted[:n], {"seed": seed, "n_train": n, "n_heldout": len(held)}
        started = time.perf_counter()
        predictor = fit_predictor(space, known, seed=seed)
        fit_s = time.perf_counter() - started
        predicted, spread = predictor.predict(wanted), predictor.spread(wanted)
        rows.append(
            {
                "method": "ours", **common, **scores(predicted, measured), "fit_s": fit_s,
                "cross_validated_tau": predictor.quality.kendall_tau,
                "error_by_spread_tau": float(kendalltau(spread, np.abs(predicted - measured)).statistic),
            }
        )  # fmt: skip
        for name, predict in BASELINES.items():
            rows.append({"method": name, **common, **scores(predict(space, known, wanted, seed), measured)})
    return rows


def _values(evaluations: Sequence[Evaluation]) -> np.ndarray:
    return np.array([e.value for e in evaluations])
