"""Stage `profile`: what each choice of a sub-network costs on one target and deployment.

A few whole networks (probes) are measured and ``fixed + sum over layers (attention[heads] + ffn[width])`` is fitted to
them; other whole networks, which no fit sees, say how well that predicts.
"""

from __future__ import annotations

import datetime
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Protocol

import numpy as np

from instatune_deploy.device.fingerprint import detect, runtime_versions
from instatune_deploy.device.timing import TimingSettings, measure
from instatune_deploy.values.latency import PERCENTILES, HeldOutError, LatencySample, LatencyTable
from instatune_deploy.values.macs import ModelShape, count_macs
from instatune_deploy.values.space import Architecture, LayerChoice, SearchSpace
from instatune_deploy.values.target import Deployment, Target


class ProbeSource(Protocol):
    """Where the files of networks to measure come from."""

    def path(self, architecture: Architecture, deployment: Deployment) -> Path:
        """The file of `architecture`, of any weights, that `deployment` loads."""
        ...


@dataclass(frozen=True)
class Fit:
    """Latency in ms: of what is outside the layers, of attention by heads, of an MLP by width, and of a layer's being
    unlike the one before."""

    fixed_ms: float
    attention_ms: dict[int, float]
    ffn_ms: dict[int, float]
    switch_ms: float

    def estimate_ms(self, architecture: Architecture) -> float:
        """Predicted latency of `architecture`."""
        layers = sum(self.attention_ms[heads] + self.ffn_ms[ffn] for heads, ffn in architecture.layers)
        return self.fixed_ms + layers + self.switch_ms * architecture.switches


def probe_architectures(space: SearchSpace) -> list[Architecture]:
    """The few networks whose latencies identify every entry of a table for `space`, and one more.

    Equal layers: every head count at full depth and full width, every other width at full depth with all heads, and the
    shallowest network at its widest. Unequal layers: two deep networks in which every layer differs from the one
    before. Choices are those of any layer, so where layers differ a probe may lie outside the space; it has the
    space's entries all the same.
    """
    deep, shallow = space.depths[-1], space.depths[0]
    heads, ffn = space.head_choices, space.ffn_choices
    probes = [Architecture.uniform(deep, count, ffn[-1]) for count in heads]
    probes += [Architecture.uniform(deep, heads[-1], width) for width in ffn]
    probes += [Architecture.uniform(shallow, heads[-1], ffn[-1])]
    rising = [LayerChoice(heads[i % len(heads)], ffn[i % len(ffn)]) for i in range(deep)]
    opposed = [LayerChoice(heads[-1 - i % len(heads)], ffn[(i + 1) % len(ffn)]) for i in range(deep)]
    probes += [Architecture(tuple(rising)), Architecture(tuple(opposed))]
    return list(dict.fromkeys(probes))


def heldout_architectures(space: SearchSpace, n: int = 12, *, seed: int) -> list[Architecture]:
    """Up to `n` different architectures of `space` that are not probes, drawn at random; none if all are probes."""
    probes = set(probe_architectures(space))
    drawn = space.sample(min(space.size, n + len(probes)), seed=seed)
    return [architecture for architecture in drawn if architecture not in probes][:n]


def fit_table(samples: Mapping[Architecture, float]) -> Fit:
    """Least squares of the relative error over measured networks, given as architecture: label in ms.

    Only sums that some network has are determined: moving a constant from every attention entry to every MLP entry
    changes no estimate, nor does moving one from the layers to `fixed_ms` if all networks are equally deep. The
    solution of least norm is taken; so the attention entries sum to what the MLP entries sum to, and whatever a
    degenerate space (one depth, one head count, one width) leaves open, estimates within it are right.
    """
    heads = sorted({choice.heads for architecture in samples for choice in architecture.layers})
    ffn = sorted({choice.ffn for architecture in samples for choice in architecture.layers})
    design = np.zeros((len(samples), 2 + len(heads) + len(ffn)))
    for row, architecture in zip(design, samples, strict=True):
        row[0] = 1
        for choice in architecture.layers:
            row[1 + heads.index(choice.heads)] += 1
            row[1 + len(heads) + ffn.index(choice.ffn)] += 1
        row[-1] = architecture.switches
    labels = np.fromiter(samples.values(), float, len(samples))
    # Row i over label i, so that residual i is the relative error of network i.
    solution = np.linalg.lstsq(design / labels[:, None], np.ones(len(labels)), rcond=1e-10)[0].tolist()
    attention, mlp = solution[1 : 1 + len(heads)], solution[1 + len(heads) : -1]
    return Fit(solution[0], dict(zip(heads, attention, strict=True)), dict(zip(ffn, mlp, strict=True)), solution[-1])


def heldout_error(fit: Fit, samples: Sequence[LatencySample], *, n: int) -> HeldOutError:
    """How far `fit` is from measured networks, and how far the two halves of their rounds are from each other.

    Args:
        samples: at least one.
        n: how many of them no fit has seen; 0 says that the errors are those of the fitted networks themselves.
    """
    labels = [sample.label_ms for sample in samples]
    estimates = [fit.estimate_ms(Architecture.parse(sample.architecture)) for sample in samples]
    errors = [100 * abs(e - m) / m for e, m in zip(estimates, labels, strict=True)]
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


def with_batch(inputs: Mapping[str, np.ndarray], batch: int) -> dict[str, np.ndarray]:
    """`inputs` (batch first) repeated or cut to `batch` samples."""
    return {name: array[np.arange(batch) % len(array)] for name, array in inputs.items()}


def profile(
    target: Target,
    deployment: Deployment,
    space: SearchSpace,
    shape: ModelShape,
    networks: ProbeSource,
    inputs: dict[str, np.ndarray],
    *,
    seed: int,
    settings: TimingSettings | None = None,
    heldout: int = 12,
) -> LatencyTable:
    """Measure probes and held-out networks of `space` under `deployment` and fit a table to the probes.

    Args:
        shape: of the full network; gives the table's signature.
        networks: gives the file of each network, of any weights.
        inputs: arrays by name, batch first, real in shape; repeated or cut to the deployment's batch.
        seed: of the held-out networks and of the order of visits.
        heldout: how many networks to hold out; fewer if the space is small.

    Raises:
        ArtifactError: a network cannot be exported or loaded.
        MeasurementError: measuring failed or gave impossible latencies.
    """
    machine = detect()  # before measuring, for its load is what others cause
    probes, held = probe_architectures(space), heldout_architectures(space, heldout, seed=seed)
    files = {str(network): networks.path(network, deployment) for network in (*probes, *held)}
    by_cost = sorted(probes, key=lambda architecture: count_macs(shape, architecture))
    measurement = measure(
        files,
        with_batch(inputs, deployment.batch),
        deployment,
        anchor=str(by_cost[len(by_cost) // 2]),
        seed=seed,
        settings=settings,
    )
    probe_samples, held_samples = ([measurement.samples[str(a)] for a in group] for group in (probes, held))
    fit = fit_table({a: sample.label_ms for a, sample in zip(probes, probe_samples, strict=True)})
    session = ", ".join(f"{name}={value}" for name, value in measurement.options.items())
    return LatencyTable(
        target=target.name,
        deployment=deployment,
        signature=shape.signature,
        fixed_ms=fit.fixed_ms,
        attention_ms=fit.attention_ms,
        ffn_ms=fit.ffn_ms,
        switch_ms=fit.switch_ms,
        percentile_ratio=_percentile_ratios([*probe_samples, *held_samples]),
        statistic=measurement.statistic,
        samples=tuple(probe_samples),
        heldout=tuple(held_samples),
        error=heldout_error(fit, held_samples or probe_samples, n=len(held_samples)),
        machine=machine,
        versions={**runtime_versions(), "session_options": session},
        date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        measure_s=round(measurement.elapsed_s, 2),
        rejected_rounds=measurement.rejected_rounds,
    )


def _percentile_ratios(samples: Sequence[LatencySample]) -> dict[str, float]:
    """What each percentile is of the label, in the median over networks."""
    return {p: statistics.median(getattr(s, f"{p}_ms") / s.label_ms for s in samples) for p in PERCENTILES}
