"""Steadier metrics of sub-networks: what their distance from the full network says of them.

The best of many networks measured on few samples is partly luck. How far a network's outputs are from the full network's
is nearly free of it, for it compares every output and not only which samples are right, and says as much about how well
the network will do on other samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from instatune_deploy.values.front import Evaluation
from instatune_deploy.values.space import Architecture

#: With fewer evaluations that say a distance, none is changed.
LEAST = 8
#: Powers of the distance that the metric may fall with.
_POWERS = (0.5, 1.0, 2.0)


def steadied(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """The same evaluations with steadier values, in the same order.

    Those that say no `divergence` stay as they are, but for those of a network in another precision: they move with the
    network's own, so that what the precision costs stays as it was measured.

    A line in a power of the divergence, never rising, is fitted to the values. What a network's value departs from it by
    is partly the network's own and partly sampling error, ``value * (1 - value) / n`` for a share of n samples; the
    value moves to the line by the share of the latter in all such departures (an empirical Bayes estimate, as in Efron
    and Morris, 1973). With few samples the order is thus that of the divergences, with many that of the values.

    Args:
        evaluations: of one metric and one split.
    """
    places = [i for i, evaluation in enumerate(evaluations) if evaluation.divergence is not None]
    if len(places) < LEAST:
        return list(evaluations)
    distances = np.array([evaluations[i].divergence for i in places], dtype=np.float64)
    values = np.array([evaluations[i].value for i in places])
    line = min(
        (_falling(distances**power, values) for power in _POWERS), key=lambda on: float(np.square(values - on).sum())
    )
    line = np.minimum(line, 1.0)  # of every metric 1 is perfect
    departures = float(np.square(values - line).sum()) / (len(places) - 2)
    sizes = np.array([evaluations[i].n for i in places])
    error = np.clip(line * (1 - line), 0.0, None) / sizes
    own = 0.0 if departures <= 0 else max(0.0, 1 - float(error.mean()) / departures)
    found = list(evaluations)
    moved: dict[Architecture, float] = {}
    for place, value in zip(places, (line + own * (values - line)).tolist(), strict=True):
        found[place] = replace(evaluations[place], value=value)
        moved[evaluations[place].architecture] = value - evaluations[place].value
    for place, evaluation in enumerate(evaluations):
        if evaluation.divergence is None and evaluation.architecture in moved:
            value = min(evaluation.value + moved[evaluation.architecture], 1.0)
            found[place] = replace(evaluation, value=value)
    return found


def _falling(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The least squares line of `y` over `x` at `x`; flat where it would rise."""
    spread = x - x.mean()
    total = float(spread @ spread)
    slope = min(0.0, float(spread @ y) / total) if total > 0 else 0.0
    fitted: np.ndarray = y.mean() + slope * spread
    return fitted
