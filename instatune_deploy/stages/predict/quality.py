"""How good a predictor is on networks it has not seen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.stats import kendalltau
from sklearn.metrics import r2_score


@dataclass(frozen=True)
class PredictorQuality:
    """How well networks that a fit has not seen are predicted, from k-fold cross-validation over all `n` of them.

    `kendall_tau` (-1..1, 0 where the measured values are all equal) is of the order, `mape_pct` (percent) and `r2` of
    the values; `metric` and `split` say what was measured on what. `member_taus` has the same Kendall tau of each model
    that the predictor blends, whatever it weighs; ``linear`` is the baseline, ridge.
    """

    kendall_tau: float
    mape_pct: float
    r2: float
    n: int
    folds: int
    metric: str
    split: str
    member_taus: dict[str, float]


def quality(
    measured: np.ndarray, predicted: np.ndarray, members: Mapping[str, np.ndarray], *, folds: int, metric: str, split: str
) -> PredictorQuality:  # fmt: skip
    """Of held-out predictions and those of each member, all of shape ``(n,)``."""
    nonzero = measured != 0
    errors = np.abs(predicted[nonzero] / measured[nonzero] - 1)
    return PredictorQuality(
        kendall_tau=_tau(measured, predicted),
        mape_pct=float(100 * errors.mean()) if len(errors) else 0.0,
        r2=float(r2_score(measured, predicted)),
        n=len(measured),
        folds=folds,
        metric=metric,
        split=split,
        member_taus={name: _tau(measured, found) for name, found in members.items()},
    )


def _tau(measured: np.ndarray, predicted: np.ndarray) -> float:
    tau = float(kendalltau(measured, predicted).statistic)
    return 0.0 if math.isnan(tau) else tau
