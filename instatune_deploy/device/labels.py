"""Labels: how fast each network is, from runs of many networks on a machine whose speed changes all the time.

What slows a run - another tenant on the core's other thread, the clock, a neighbour's use of the cache - slows any network
by about the same factor. So the factor's distribution is shared: it is estimated from the runs of all networks together, and
each network's level is where its own runs fit that distribution best (maximum likelihood, found in turn until neither
moves). Against the mean of each network's fastest quarter this halved to quartered the noise on a machine in use, for
a network's slow runs say as much about its level as its fast ones once it is known how slow slow is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from instatune_deploy.device.samples import Samples
from instatune_deploy.errors import MeasurementError

_STEP = 0.002  # of the grid of log factors
_HALF_WIDTH = 0.8  # factors beyond exp(+-0.8) count as the farthest on the grid
_BANDWIDTH = 0.012  # of the kernel that smooths the distribution: about the width of an undisturbed machine's noise
_REACH = 60  # grid steps that a level may move in one turn
_TURNS = 20
_RESAMPLES = 100
#: Share of the density that lies evenly everywhere, so that a run unlike any other moves no level.
_UNIFORM = 0.02
_FEW_NETWORKS = 5
#: Fewer sessions a network do not tell how much sessions differ.
_FEW_SESSIONS = 3
#: CPU time of this share of the time that passed, or less, says that a run was interrupted.
_INTERRUPTED = 0.97
#: A run that nothing interrupts takes at most so much of its CPU time, or waits for at most so long.
_CALM, _LONGEST_WAIT_MS = 1.05, 0.3


@dataclass(frozen=True)
class Labels:
    """What runs of some networks say, in the order of `Samples.names`.

    `label_ms`: the network's level times the mean of the fastest quarter of the factors that all networks share.
    `interval`: half-width of its 95% confidence interval (fraction; bootstrap over sessions, or over rounds where each
    network had one or two).
    `half_label_ms`, shape (networks, 2): from the odd and the even sessions, or rounds, alone.
    Of both, what all networks have in common is taken out where there are several: it is the machine's.
    `factors`: how much slower than its network's label each run was; `round_factor`: the median of those in each round.
    """

    label_ms: np.ndarray
    interval: np.ndarray
    half_label_ms: np.ndarray
    factors: np.ndarray
    round_factor: np.ndarray


def undisturbed_ms(samples: Samples) -> np.ndarray:
    """Milliseconds each run would have taken had no other process interrupted it, shape (runs,).

    Known for runs on one thread, by their CPU time: it stands still while others run. Runs without CPU time stay as they are.
    """
    estimate = samples.wall_ms.copy()
    for model, overhead in _overheads(samples).items():
        mine = _with_cpu_time(samples, model)
        interrupted = mine & (samples.cpu_ms * overhead < _INTERRUPTED * samples.wall_ms)
        estimate[interrupted] = samples.cpu_ms[interrupted] * overhead
    return estimate


def _overheads(samples: Samples) -> dict[int, float]:
    """For each network whose runs have CPU times, what an uninterrupted run takes by its CPU time.

    A run on one thread waits for that thread to start, microseconds. A network whose runs all waited for longer was
    interrupted in each of them, as those of half a second are beside a busy process: others tell its overhead.
    """
    measured: list[int] = []
    calm: dict[int, float] = {}
    for model in range(len(samples.names)):
        mine = _with_cpu_time(samples, model)
        if not mine.any():
            continue
        measured.append(model)
        overhead = float(np.quantile(samples.wall_ms[mine] / samples.cpu_ms[mine], 0.05))
        waited_ms = (overhead - 1) * float(np.median(samples.cpu_ms[mine]))
        if overhead <= _CALM or waited_ms <= _LONGEST_WAIT_MS:
            calm[model] = overhead
    usual = float(np.median(list(calm.values()))) if calm else 1.0
    return {model: calm.get(model, usual) for model in measured}


def _with_cpu_time(samples: Samples, model: int) -> np.ndarray:
    """Which runs are those of a network, and have a CPU time."""
    return np.asarray((samples.model == model) & np.isfinite(samples.cpu_ms) & (samples.cpu_ms > 0))


def interrupted_share(samples: Samples) -> float:
    """Share of runs (0..1) that another process interrupted, as far as CPU time tells."""
    return float((undisturbed_ms(samples) < samples.wall_ms).mean())


def find_labels(samples: Samples, *, seed: int = 0) -> Labels:
    """The label of every network, and how sure it is.

    Fewer than five networks do not tell what they share: each one's label is then the mean of its own fastest quarter.

    Raises:
        MeasurementError: a network has no run, or a latency is not a positive finite number.
    """
    check(samples)
    count, values = len(samples.names), undisturbed_ms(samples)
    units = _units(samples)
    rng = np.random.default_rng(seed)
    # How often each unit (a session or a round) of each network counts: all once; drawn with replacement; even; odd.
    sizes = np.array([units[samples.model == number].max() + 1 for number in range(count)])
    number = np.arange(sizes.max())[:, None]
    every = (number < sizes).astype(int)
    draws = np.zeros((_RESAMPLES, *every.shape), int)
    for model, size in enumerate(sizes):
        draws[:, :size, model] = rng.multinomial(size, np.full(size, 1 / size), _RESAMPLES)
    halves = np.stack([every * (number % 2 == 0), every * ((number % 2 == 1) | (sizes == 1))])
    together = _pooled if count >= _FEW_NETWORKS else _separate
    label_ms, drawn_ms, half_label_ms = together(values, samples.model, units, every, draws, halves)
    # Few units vary less among themselves than about what they are drawn from.
    few = np.sqrt(sizes / np.maximum(sizes - 1, 1))
    factors = values / label_ms[samples.model]
    rounds = np.unique(samples.round, return_inverse=True)[1]
    return Labels(
        label_ms=label_ms,
        interval=np.where(sizes > 1, 1.96 * few * np.nanstd(np.log(drawn_ms), axis=0), np.inf),
        half_label_ms=half_label_ms.T,
        factors=factors,
        round_factor=np.array([np.median(factors[rounds == number]) for number in range(rounds.max() + 1)]),
    )


def _units(samples: Samples) -> np.ndarray:
    """What of a measurement is independent of the rest, numbered from 0 for each network, shape (runs,): sessions, for
    one is faster or slower than another for as long as it lives; rounds where a network had too few of them."""
    for unit in (samples.session, samples.round):
        found = np.zeros(len(unit), int)
        for model in range(len(samples.names)):
            mine = samples.model == model
            found[mine] = np.unique(unit[mine], return_inverse=True)[1]
        if min(found[samples.model == model].max() for model in range(len(samples.names))) + 1 >= _FEW_SESSIONS:
            return found
    return found


def _pooled(
    values: np.ndarray, model: np.ndarray, units: np.ndarray, every: np.ndarray, draws: np.ndarray, halves: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, labels where units count as in `draws` and as in `halves`, by maximum likelihood.

    Args:
        units: of each run; `every`: which units (rows) each network (columns) has.
        draws, halves: how often each counts, shapes (n, units, networks).

    Returns:
        Shapes (networks,), (draws, networks) and (2, networks).
    """
    logs = np.log(values)
    levels, scores = _fit_levels(logs, model, every.shape[1])
    fastest = np.sort(np.exp(logs - levels[model]))[: max(1, len(logs) // 4)].mean()
    by_unit = np.zeros((*every.shape, scores.shape[1]))
    np.add.at(by_unit, (units, model), scores)
    shifts = (_best_shift(np.einsum("dum,ums->dms", counts, by_unit)) for counts in (draws, halves))
    label_ms = np.exp(levels) * fastest
    # What all networks share is the machine's.
    return label_ms, *(label_ms * np.exp(s - np.median(s, axis=1, keepdims=True)) for s in shifts)


def _separate(
    values: np.ndarray, model: np.ndarray, units: np.ndarray, every: np.ndarray, draws: np.ndarray, halves: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As `_pooled`, each network by the mean of its own fastest quarter."""

    def labels(counts: np.ndarray) -> list[float]:
        found = []
        for number in range(every.shape[1]):
            # A unit that was drawn twice counts twice.
            runs = np.sort(np.repeat(values[model == number], counts[units[model == number], number]))
            found.append(float(runs[: max(1, len(runs) // 4)].mean()) if len(runs) else np.nan)
        return found

    return np.array(labels(every)), np.array([labels(d) for d in draws]), np.array([labels(half) for half in halves])


def check(samples: Samples) -> None:
    """Make sure that every network was measured and every latency can be one.

    Raises:
        MeasurementError: it cannot; names the network.
    """
    missing = sorted(set(range(len(samples.names))) - set(samples.model.tolist()))
    if missing:
        raise MeasurementError(f"no latency was measured for {samples.names[missing[0]]}")
    wrong = ~(np.isfinite(samples.wall_ms) & (samples.wall_ms > 0))
    if wrong.any():
        name, value = samples.names[samples.model[wrong][0]], samples.wall_ms[wrong][0]
        raise MeasurementError(f"impossible latency for {name}: {value} ms")


def _fit_levels(logs: np.ndarray, model: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The networks' log levels, and for each run its log likelihood where its network's level is moved by
    -`_REACH`..`_REACH` grid steps, shape (runs, 2 * `_REACH` + 1)."""
    levels = np.array([np.median(logs[model == number]) for number in range(count)])
    for turn in range(_TURNS):
        scores = _likelihoods(logs - levels[model])
        totals = np.zeros((count, scores.shape[1]))
        np.add.at(totals, model, scores)
        shifts = _best_shift(totals[None])[0]
        # A factor that all levels share is the distribution's own matter.
        shifts -= np.median(shifts)
        if turn == _TURNS - 1 or np.abs(shifts).max() < _STEP / 10:
            break
        levels = levels + shifts
    return levels, scores


def _likelihoods(residuals: np.ndarray) -> np.ndarray:
    """Log density of the residuals' own smoothed distribution at each residual less a shift, shape (runs, shifts)."""
    size = int(2 * _HALF_WIDTH / _STEP)
    bins = np.clip(((residuals + _HALF_WIDTH) / _STEP).astype(int), _REACH, size - 1 - _REACH)
    kernel = np.exp(-0.5 * (np.arange(-5 * _BANDWIDTH, 5 * _BANDWIDTH + _STEP, _STEP) / _BANDWIDTH) ** 2)
    density = np.convolve(np.bincount(bins, minlength=size), kernel / kernel.sum(), "same") / len(bins)
    log_density = np.log((1 - _UNIFORM) * density + _UNIFORM / size)
    # Window b holds the densities around bin b; reversed, for a higher level makes a run's factor smaller.
    windows = np.lib.stride_tricks.sliding_window_view(log_density, 2 * _REACH + 1)[:, ::-1]
    scores: np.ndarray = windows[bins - _REACH]
    return scores


def _best_shift(totals: np.ndarray) -> np.ndarray:
    """Where along the last axis (shifts) log likelihoods are highest, between grid points by a parabola."""
    best = np.clip(totals.argmax(-1), 1, totals.shape[-1] - 2)
    before, at, after = (np.take_along_axis(totals, (best + d)[..., None], -1)[..., 0] for d in (-1, 0, 1))
    curve = before - 2 * at + after
    offset = np.where(curve < 0, 0.5 * (before - after) / np.where(curve < 0, curve, -1), 0)
    shift: np.ndarray = (best - _REACH + np.clip(offset, -1, 1)) * _STEP
    return shift
