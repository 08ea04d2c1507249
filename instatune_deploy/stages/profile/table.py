"""From measured networks to a latency table that knows its own error."""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
from scipy.stats import t as student

from instatune_deploy.device.labels import find_labels
from instatune_deploy.device.samples import Samples
from instatune_deploy.device.timing import summarize
from instatune_deploy.stages.profile.fit import FIXED, fit_latency, tree_values
from instatune_deploy.values.latency import PERCENTILES, HeldOutError, LatencySample, LatencyTable
from instatune_deploy.values.layer_costs import SWITCH, CostsMs, features
from instatune_deploy.values.space import TRANSFORMER, Architecture

#: Standard error (%) that a label has at best: weights do not grow beyond it.
_BEST_INTERVAL_PCT = 0.3


@dataclass(frozen=True)
class TableFit:
    """Latency in ms: of what is outside the layers, of each choice of a layer by its name, and of a layer's being unlike
    the one before; trees of what is left over, relative; and how that was decided."""

    fixed_ms: float
    layer_ms: dict[str, float]
    switch_ms: float
    trees: tuple[Any, ...] = ()
    decision: str = ""
    dimensions: tuple[str, ...] = TRANSFORMER

    def estimate_ms(self, architecture: Architecture) -> float:
        """Predicted latency of `architecture`."""
        return CostsMs(self.fixed_ms, self.layer_ms, self.switch_ms, self.trees, self.dimensions).of(architecture)


def fit_table(
    samples: Mapping[Architecture, float],
    intervals_pct: Mapping[Architecture, float | None] | None = None,
    *,
    seed: int,
    dimensions: tuple[str, ...] = TRANSFORMER,
) -> TableFit:
    """The costs that explain measured networks, given as architecture: label in ms.

    Only sums that some network has are determined: moving a constant from every entry of heads to every one of MLP widths
    changes no estimate, nor does moving one from the layers to `fixed_ms` if all networks are equally deep. Of all
    solutions without negative costs the smallest is taken; whatever a degenerate space (one depth, one head count,
    one width) leaves open, estimates within it are right.

    Args:
        intervals_pct: half-width of each label's confidence interval (%); the surer count more. Equal if None.
        seed: of the cross-validation that decides on trees.
        dimensions: what the choices of a layer count.

    Raises:
        MeasurementError: a label is not a positive number.
    """
    counts = [features(architecture, dimensions) for architecture in samples]

    def order(name: str) -> tuple[str, int, int]:
        """By place, then dimension, then size."""
        which, _, count = name.partition("=")
        place, _, dimension = which.rpartition(".")
        return place, dimensions.index(dimension), int(count)

    names = [*sorted({name for found in counts for name in found} - {SWITCH}, key=order), SWITCH]
    matrix = np.array([[found.get(name, 0.0) for name in names] for found in counts])
    weights = None
    if intervals_pct is not None:
        known = np.array([np.nan if (pct := intervals_pct[a]) is None else pct for a in samples], float)
        if np.isfinite(known).all():
            weights = 1 / (known**2 + _BEST_INTERVAL_PCT**2)
    fit = fit_latency(matrix, names, np.fromiter(samples.values(), float, len(samples)), weights, seed=seed)
    costs = fit.linear
    return TableFit(
        fixed_ms=costs[FIXED],
        layer_ms={name: costs[name] for name in names if name != SWITCH},
        switch_ms=costs[SWITCH],
        trees=() if fit.trees is None else tree_values(fit.trees, names),
        decision=f"{fit.method} least relative errors of {len(samples)} probes; {fit.decision}",
        dimensions=dimensions,
    )


def refit(table: LatencyTable, raw: Samples) -> LatencyTable:
    """`table` fitted again to the runs it was made from, without measuring: probes stay probes, held-out stay held out.

    Raises:
        MeasurementError: a network of the table has no run, or a latency is impossible.
    """
    seed = int(table.settings.get("seed", 0))
    found = summarize(raw, find_labels(raw, seed=seed), precision=table.settings.get("precision", 0.0))
    probes = [found[sample.architecture] for sample in table.samples]
    held = [found[sample.architecture] for sample in table.heldout]
    return replace(table, **fitted_fields(probes, held, raw, seed=seed, dimensions=table.dimensions))


def fitted_fields(
    probes: Sequence[LatencySample], held: Sequence[LatencySample], raw: Samples, *, seed: int,
    dimensions: tuple[str, ...] = TRANSFORMER,
) -> dict[str, Any]:  # fmt: skip
    """The fields of a `LatencyTable` that follow from samples."""
    architectures = [Architecture.parse(sample.architecture) for sample in probes]
    fit = fit_table(
        {a: sample.label_ms for a, sample in zip(architectures, probes, strict=True)},
        {a: sample.interval_pct for a, sample in zip(architectures, probes, strict=True)},
        seed=seed,
        dimensions=dimensions,
    )
    ratio = percentile_ratio({sample.architecture: sample.label_ms for sample in (*probes, *held)}, raw)
    return {
        "fixed_ms": fit.fixed_ms,
        "layer_ms": fit.layer_ms,
        "dimensions": fit.dimensions,
        "switch_ms": fit.switch_ms,
        "trees": fit.trees,
        "fit": fit.decision,
        "percentile_ratio": ratio,
        "interval_pct": interval_pct(fit, held or probes, ratio),
        "samples": tuple(probes),
        "heldout": tuple(held),
        "error": heldout_error(fit, held or probes, n=len(held)),
        "raw_sha256": hashlib.sha256(raw.to_bytes()).hexdigest(),
    }


def percentile_ratio(labels_ms: Mapping[str, float], raw: Samples) -> dict[str, float]:
    """What each percentile of the runs of all networks is of their labels."""
    labels = np.array([labels_ms[name] for name in raw.names])
    ratios = np.percentile(raw.wall_ms / labels[raw.model], [int(name[1:]) for name in PERCENTILES])
    return dict(zip(PERCENTILES, ratios.tolist(), strict=True))


def interval_pct(fit: TableFit, samples: Sequence[LatencySample], ratio: Mapping[str, float]) -> dict[str, float]:
    """Half-width of the interval (% of the estimate) that 95% of networks' labels and percentiles are in, as far as
    `samples`, taken as normal, tell."""
    known = {"label": [sample.label_ms for sample in samples]}
    known.update({name: [sample.percentile_ms(name) for sample in samples] for name in PERCENTILES})
    estimates = np.array([fit.estimate_ms(Architecture.parse(sample.architecture)) for sample in samples])
    quantile = float(student.ppf(0.975, len(samples)))
    return {
        name: 100 * quantile * float(np.sqrt(np.mean((np.array(values) / (estimates * ratio.get(name, 1.0)) - 1) ** 2)))
        for name, values in known.items()
    }


def heldout_error(fit: TableFit, samples: Sequence[LatencySample], *, n: int) -> HeldOutError:
    """How far `fit` is from measured networks, and how far the two halves of their rounds are from each other.

    Args:
        samples: at least one.
        n: how many of them no fit has seen; 0 says that the errors are those of the fitted networks themselves.
    """
    labels = [sample.label_ms for sample in samples]
    estimates = [fit.estimate_ms(Architecture.parse(sample.architecture)) for sample in samples]
    errors = [100 * abs(e / m - 1) for e, m in zip(estimates, labels, strict=True)]
    noise = [200 * abs(first - second) / (first + second) for first, second in (s.half_labels_ms for s in samples)]
    return HeldOutError(
        mape_pct=statistics.fmean(errors),
        max_pct=max(errors),
        within_5_pct=100 * sum(error <= 5 for error in errors) / len(errors),
        kendall_tau=kendall_tau(estimates, labels),
        noise_floor_pct=statistics.fmean(noise),
        n=n,
    )


def kendall_tau(first: Sequence[float], second: Sequence[float]) -> float:
    """Kendall's tau-b of two rankings, -1..1; 1 where neither has two different values to rank."""

    def signs(values: Sequence[float]) -> list[int]:
        return [(a > b) - (a < b) for a, b in combinations(values, 2)]

    pairs = list(zip(signs(first), signs(second), strict=True))
    ranked = sum(a != 0 for a, _ in pairs) * sum(b != 0 for _, b in pairs)
    if not ranked:
        return 1.0 if all(a == b for a, b in pairs) else 0.0
    return float(sum(a * b for a, b in pairs) / ranked**0.5)
