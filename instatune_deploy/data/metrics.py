"""Task metrics: of each, more is better and 1 is perfect."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats
from scipy.special import log_softmax
from sklearn import metrics
from transformers.data.metrics.squad_metrics import compute_exact, compute_f1

from instatune_deploy.errors import MissingExtraError, UnknownNameError

_OF_CLASSES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": lambda labels, found: float(metrics.accuracy_score(labels, found)),
    "f1": lambda labels, found: float(metrics.f1_score(labels, found, average="macro")),
    "matthews": lambda labels, found: float(metrics.matthews_corrcoef(labels, found)),
}
_OF_NUMBERS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "pearson": lambda labels, found: float(stats.pearsonr(labels, found).statistic),
    "spearman": lambda labels, found: float(stats.spearmanr(labels, found).statistic),
}
#: SQuAD's, as transformers ships its evaluation script: case, punctuation and articles do not count.
_OF_ANSWERS: dict[str, Callable[[str, str], float]] = {"exact_match": compute_exact, "answer_f1": compute_f1}


def score(metric: str, labels: np.ndarray, logits: np.ndarray) -> float:
    """`metric` (accuracy, macro-averaged f1, or matthews) of the largest logits against the labels.

    Args:
        labels: class indices, shape (samples,).
        logits: shape (samples, classes).

    Raises:
        UnknownNameError: there is no such metric.
    """
    if metric not in _OF_CLASSES:
        raise UnknownNameError("metric", metric, _OF_CLASSES)
    return _OF_CLASSES[metric](labels, logits.argmax(axis=-1))


def mean_divergence(logits: np.ndarray, reference: np.ndarray) -> float:
    """The mean over rows of KL(reference || found) of the class probabilities, in nats.

    Args:
        logits, reference: shape (rows, classes).
    """
    found, wanted = (log_softmax(side.astype(np.float64), axis=-1) for side in (logits, reference))
    return float(np.maximum((np.exp(wanted) * (wanted - found)).sum(axis=-1), 0.0).mean())


def correlation(metric: str, labels: np.ndarray, found: np.ndarray) -> float:
    """`metric` (pearson or spearman) of predicted numbers with the right ones, -1..1; 0 where either are all equal.

    Args:
        labels, found: shape (samples,).

    Raises:
        UnknownNameError: there is no such metric.
    """
    if metric not in _OF_NUMBERS:
        raise UnknownNameError("metric", metric, _OF_NUMBERS)
    if np.ptp(labels) == 0 or np.ptp(found) == 0:
        return 0.0
    return _OF_NUMBERS[metric](labels, found)


def check_entity_f1() -> None:
    """Make sure that `entity_f1` can be computed.

    Raises:
        MissingExtraError: seqeval is not installed.
    """
    try:
        import seqeval  # noqa: F401
    except ImportError:
        raise MissingExtraError("seqeval", "token") from None


def entity_f1(tags: Sequence[Sequence[str]], found: Sequence[Sequence[str]]) -> float:
    """F1 of named entities, micro-averaged: one is right where its first word, its last word and its kind are (CoNLL-2003's
    conlleval, as seqeval computes it).

    Args:
        tags, found: for each text the right and the predicted tag of each word, such as B-PER, I-PER and O.

    Raises:
        MissingExtraError: seqeval is not installed.
    """
    check_entity_f1()
    from seqeval.metrics import f1_score

    return float(f1_score([list(text) for text in tags], [list(text) for text in found], zero_division=0))


def answer_score(metric: str, answers: Sequence[Sequence[str]], found: Sequence[str]) -> float:
    """`metric` of predicted answers, mean over questions; of several right answers the nearest counts (Rajpurkar et al.,
    2016, Sec. 6.1).

    Args:
        metric: exact_match, or answer_f1: the F1 of the words in an answer.
        answers: the right answers to each question, at least one; `found`: the predicted one.

    Raises:
        UnknownNameError: there is no such metric.
    """
    if metric not in _OF_ANSWERS:
        raise UnknownNameError("metric", metric, _OF_ANSWERS)
    compare = _OF_ANSWERS[metric]
    best = [max(compare(right, answer) for right in texts) for texts, answer in zip(answers, found, strict=True)]
    return float(np.mean(best))
