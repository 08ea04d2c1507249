"""`Round`, one visit to every model, and what rounds say: which were calm, what a model's label is, how sure that is."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from instatune_deploy.errors import MeasurementError
from instatune_deploy.values.latency import LatencySample

_RESAMPLES = 200


@dataclass(frozen=True)
class Round:
    """Latencies in ms by model, in the order they were measured; `anchor` is the model that every round has most of."""

    anchor: str
    samples_ms: dict[str, list[float]]

    @property
    def level_ms(self) -> float:
        """How fast the machine was in this round: the median of its anchor runs."""
        return float(np.median(self.samples_ms[self.anchor]))


def schedule(models: Sequence[str], anchor: str, rng: random.Random, *, anchor_visits: int) -> list[str]:
    """The order of a round's visits: the other models once, shuffled, and the anchor at the start, at the end, and
    evenly between them for `anchor_visits` visits (at least two)."""
    gaps = max(1, anchor_visits - 1)
    others = [name for name in models if name != anchor]
    rng.shuffle(others)
    order = [anchor]
    for gap in range(gaps):
        order += [*others[len(others) * gap // gaps : len(others) * (gap + 1) // gaps], anchor]
    return order


def calm_rounds(rounds: Sequence[Round], *, drift: float, at_least: int = 0) -> list[Round]:
    """Those of `rounds` in which the anchor was within `drift` (fraction) of its level in the fastest quarter of rounds.

    If fewer than `at_least` are, the calmest so many, for a machine that is never calm must do as it is.
    """
    if not rounds:
        return []
    # One-sided: a round that is faster than the rest is calmer, not worse.
    levels = [r.level_ms for r in rounds]
    limit = (1 + drift) * float(np.quantile(levels, 0.25))
    if at_least > 0:
        limit = max(limit, sorted(levels)[min(at_least, len(levels)) - 1])
    return [r for r, level in zip(rounds, levels, strict=True) if level <= limit]


def fastest_quarter_ms(samples_ms: np.ndarray) -> np.ndarray:
    """Mean of the fastest quarter (at least one sample) along the last axis."""
    quarter = max(1, samples_ms.shape[-1] // 4)
    mean: np.ndarray = np.partition(samples_ms, quarter - 1, axis=-1)[..., :quarter].mean(axis=-1)
    return mean


def median_ms(samples_ms: np.ndarray) -> np.ndarray:
    """Median along the last axis."""
    median: np.ndarray = np.median(samples_ms, axis=-1)
    return median


#: What a label can be. On a calm machine the fastest quarter is steadier, for slower runs are not the model's doing; on
#: one that others use all the time the few fast runs are the accidents, and the median is.
STATISTICS = {"fastest quarter": fastest_quarter_ms, "median": median_ms}


def label_ms(samples_ms: Sequence[float], statistic: str = "fastest quarter") -> float:
    """The label that `samples_ms` give by one of `STATISTICS`."""
    return float(STATISTICS[statistic](np.asarray(samples_ms)))


def half_labels_ms(rounds: Sequence[Round], model: str, statistic: str) -> tuple[float, float]:
    """The label of the odd and of the even rounds alone."""
    groups = [r.samples_ms[model] for r in rounds if r.samples_ms.get(model)]
    halves = [[sample for group in groups[start::2] for sample in group] or groups[0] for start in (0, 1)]
    return label_ms(halves[0], statistic), label_ms(halves[1], statistic)


def steadiest_statistic(rounds: Sequence[Round], models: Sequence[str]) -> str:
    """Which of `STATISTICS` differs least between the odd and the even rounds, in the mean over models."""

    def noise(statistic: str) -> float:
        halves = [
            half_labels_ms(rounds, model, statistic) for model in models if any(model in r.samples_ms for r in rounds)
        ]
        return sum(abs(first - second) / (first + second) for first, second in halves)

    return min(STATISTICS, key=noise)


def label_interval(groups: Sequence[Sequence[float]], statistic: str = "fastest quarter", *, seed: int) -> float:
    """Half the width of the label's 95% confidence interval, as a fraction of the label.

    Whole rounds are resampled (bootstrap), for what disturbs one sample of a round disturbs its neighbours too.

    Args:
        groups: one model's samples, round by round; infinity is returned for fewer than two rounds.
    """
    if len(groups) < 2:
        return math.inf
    size = min(len(group) for group in groups)
    table = np.asarray([group[:size] for group in groups])  # (rounds, runs)
    picks = np.random.default_rng(seed).integers(len(table), size=(_RESAMPLES, len(table)))
    labels = STATISTICS[statistic](table[picks].reshape(_RESAMPLES, -1))
    low, high = np.quantile(labels, [0.025, 0.975])
    return float((high - low) / 2 / labels.mean())


def summarize(
    architecture: str, rounds: Sequence[Round], statistic: str = "fastest quarter", *, precision: float, seed: int
) -> LatencySample:
    """What `rounds` say of one model; its name is `architecture`.

    Args:
        statistic: what the label is, one of `STATISTICS`.
        precision: half-width of the label's confidence interval (fraction) up to which it counts as converged.

    Raises:
        MeasurementError: a sample is not a positive finite number, or there are none.
    """
    groups = [r.samples_ms[architecture] for r in rounds if r.samples_ms.get(architecture)]
    samples = [sample for group in groups for sample in group]
    if not samples:
        raise MeasurementError(f"no latency was measured for {architecture}")
    impossible = [sample for sample in samples if not (math.isfinite(sample) and sample > 0)]
    if impossible:
        raise MeasurementError(f"impossible latency for {architecture}: {impossible[0]} ms")
    p50, p90, p99 = (float(value) for value in np.percentile(samples, [50, 90, 99]))
    return LatencySample(
        architecture=architecture,
        label_ms=label_ms(samples, statistic),
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
        n=len(samples),
        half_labels_ms=half_labels_ms(rounds, architecture, statistic),
        converged=label_interval(groups, statistic, seed=seed) <= precision,
    )
