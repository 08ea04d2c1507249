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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
from scipy.stats import kendalltau
from sklearn.linear_model import RidgeCV
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV
from sklearn.svm import SVR

from benchmarks.results import write_result
from instatune_deploy.stages.predict import fit_predictor
from instatune_deploy.stages.predict.process import GaussianProcess
from instatune_deploy.values.features import PRESENCE, Features
from instatune_deploy.values.front import Evaluation
from instatune_deploy.values.presets import preset
from instatune_deploy.values.space import Architecture, SearchSpace

RECORDS = Path(__file__).parent / "data" / "records" / "bert_base_sst2.jsonl"
SENTENCES = 872
TRAIN = (50, 100, 200, 500)
HELD_OUT = 300
SEEDS = range(10)
#: Figures to reach, by N.
WANTED = {50: 0.825, 100: 0.85, 200: 0.86, 500: 0.875}
#: Simulated records a split for the ceiling.
DRAWS = 20


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
    choices = [(0, *values) for values in space.genes]
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
METHODS = ("ours", *BASELINES)
CLAIM = (
    "From 50 to 500 evaluated sub-networks the predictor orders 300 unseen ones of BERT-base better than ridge, support "
    "vector regression and LightGBM, in every mean over the same ten splits."
)


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
        # The records' super-network was not sorted by importance, so more need not be better in it.
        predictor = fit_predictor(space, known, seed=seed, monotone=False)
        fit_s = time.perf_counter() - started
        predicted, spread = predictor.predict(wanted), predictor.spread(wanted)
        errors = np.abs(predicted - measured)
        monotone = fit_predictor(space, known, seed=seed, monotone=True).predict(wanted)
        rows.append(
            {
                "method": "ours", **common, **scores(predicted, measured), "fit_s": fit_s,
                "cross_validated_tau": predictor.quality.kendall_tau, "within_spread": float(np.mean(errors < spread)),
                "error_by_spread_tau": float(kendalltau(spread, errors).statistic),
                "weights": predictor.weights, "monotone_tau": scores(monotone, measured)["tau"],
            }
        )  # fmt: skip
        for name, predict in BASELINES.items():
            rows.append({"method": name, **common, **scores(predict(space, known, wanted, seed), measured)})
    return rows


def noise_of(space: SearchSpace, evaluations: Sequence[Evaluation]) -> tuple[np.ndarray, float]:
    """A smooth truth under the records, shape ``(n,)``, and the deviation of their noise around it (a fraction).

    Both are what a Gaussian process makes of all records: its mean, and the part of the variance that it finds even in
    networks that differ in next to nothing. Networks share most of their mistakes on the same sentences, so that is far
    less than the binomial deviation of one accuracy; what is shared can be learnt and is no noise here.
    """
    values = _values(evaluations)
    networks = tuple(e.architecture for e in evaluations)
    features = Features(space)
    process = GaussianProcess.fit(features, networks, values)
    return process.predict(features.counts(networks))[0], process.noise


def noise_of_neighbours(space: SearchSpace, evaluations: Sequence[Evaluation]) -> float:
    """An upper bound of the same deviation that needs no model: of networks that are one step of one layer apart."""
    values = _values(evaluations)
    features = Features(space)
    steps = features.steps(features.counts([e.architecture for e in evaluations]))
    inside = features.step_kinds != PRESENCE
    apart = (steps[:, None, :] != steps[None, :, :]).sum(2)
    layers_apart = (steps[:, None, ~inside] != steps[None, :, ~inside]).sum(2)
    first, second = np.nonzero(np.triu((apart == 1) & (layers_apart == 0)))
    return float(np.sqrt(np.mean((values[first] - values[second]) ** 2) / 2))


def ceiling(truth: np.ndarray, noise: float, *, seed: int) -> float:
    """Kendall's tau of the truth itself against records of it, each a count of right sentences: the mean of some."""
    rng = np.random.default_rng(seed)
    taus = []
    for _ in range(DRAWS):
        records = np.round((truth + rng.normal(0, noise, len(truth))) * SENTENCES)
        taus.append(float(kendalltau(truth, records).statistic))
    return statistics.fmean(taus)


def main() -> int:
    if not RECORDS.is_file():
        print(f"no records in {RECORDS}: run make bench-setup", file=sys.stderr)
        return 2
    space, evaluations = read()
    truth, noise = noise_of(space, evaluations)
    noise_at_most = noise_of_neighbours(space, evaluations)
    place = {e.architecture: number for number, e in enumerate(evaluations)}
    rows: list[dict[str, Any]] = []
    for seed in SEEDS:
        rows += evaluate(space, evaluations, seed=seed)
        held = [place[e.architecture] for e in split(evaluations, seed=seed)[1]]
        for method, deviation in (("ceiling", noise), ("ceiling_at_least", noise_at_most)):
            tau = ceiling(truth[held], deviation, seed=seed)
            rows.append({"method": method, "seed": seed, "n_heldout": len(held), "draws": DRAWS, "tau": tau})
        print(f"split {seed} done", file=sys.stderr, flush=True)
    figures = summary(rows)
    figures["noise_sentences"] = noise * SENTENCES
    figures["noise_sentences.at_most"] = noise_at_most * SENTENCES
    print("| N | " + " | ".join(METHODS) + " | wanted | share of ceiling |\n" + "|---" * (len(METHODS) + 3) + "|")
    for n in TRAIN:
        taus = " | ".join(f"{figures[f'tau.{method}.{n}']:.4f}" for method in METHODS)
        print(f"| {n} | {taus} | {WANTED[n]} | {figures[f'share.ours.{n}']:.3f} |")
    write_result("predictor", CLAIM, figures, rows)
    return 0


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Means over the splits: of every method and N, of the ceiling, and each tau as a share of that."""

    def mean(name: str, **wanted: Any) -> float:
        return statistics.fmean(row[name] for row in rows if all(row.get(k) == v for k, v in wanted.items()))

    top = mean("tau", method="ceiling")
    figures = {"ceiling": top, "ceiling_at_least": mean("tau", method="ceiling_at_least")}
    for n in TRAIN:
        for method in METHODS:
            tau = mean("tau", method=method, n_train=n)
            figures |= {f"tau.{method}.{n}": tau, f"share.{method}.{n}": tau / top}
            figures[f"mape_pct.{method}.{n}"] = mean("mape_pct", method=method, n_train=n)
            figures[f"r2.{method}.{n}"] = mean("r2", method=method, n_train=n)
        for name in ("cross_validated_tau", "within_spread", "error_by_spread_tau", "fit_s"):
            figures[f"{name}.{n}"] = mean(name, method="ours", n_train=n)
        figures[f"tau.monotone.{n}"] = mean("monotone_tau", method="ours", n_train=n)
        figures[f"ceiling.{n}"] = top  # the records' noise is the same whatever was fitted to
    return figures


def _values(evaluations: Sequence[Evaluation]) -> np.ndarray:
    return np.array([e.value for e in evaluations])


if __name__ == "__main__":
    sys.exit(main())
