"""Task metrics, all fractions where more is better."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from sklearn import metrics

from instatune_deploy.errors import UnknownNameError

_METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": lambda labels, found: float(metrics.accuracy_score(labels, found)),
    "f1": lambda labels, found: float(metrics.f1_score(labels, found, average="macro")),
    "matthews": lambda labels, found: float(metrics.matthews_corrcoef(labels, found)),
}


def score(metric: str, labels: np.ndarray, logits: np.ndarray) -> float:
    """`metric` (accuracy, macro-averaged f1, or matthews) of the largest logits against the labels.

    Args:
        labels: class indices, shape (samples,).
        logits: shape (samples, classes).

    Raises:
        UnknownNameError: there is no such metric.
    """
    if metric not in _METRICS:
        raise UnknownNameError("metric", metric, _METRICS)
    return _METRICS[metric](labels, logits.argmax(axis=-1))
