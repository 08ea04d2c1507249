"""What is known of sub-networks: `Evaluation`, `Candidate` and the `ParetoFront` of the best of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from instatune_deploy.errors import InfeasibleBudgetError
from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.space import Architecture


@dataclass(frozen=True)
class Evaluation:
    """A measured task metric: `value` (fraction 0..1) of `architecture` on `n` samples of `split`.

    `precision` is the one of the deployment that it stands for. `computed_in` is the arithmetic it was computed in, which
    for a deployment in fp32 may be ``bf16``, where that was found to give the same values.
    """

    architecture: Architecture
    metric: str
    value: float
    split: str
    n: int
    precision: str = "fp32"
    computed_in: str = "fp32"

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "architecture": str(self.architecture)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Evaluation:
        return cls(**{**data, "architecture": Architecture.parse(data["architecture"])})


@dataclass(frozen=True)
class Predicted:
    """What the search believes: metric (fraction 0..1), multiply-accumulates of one sample, latency of a call
    (the percentile that was searched).

    `metric_source` says where the metric comes from: ``predictor``, or ``search split`` if it was evaluated there.
    """

    metric: float
    macs: int
    latency_ms: float
    metric_source: str


@dataclass(frozen=True)
class Measured:
    """What was measured on the exported file: metric on `n` samples of the report split, latency of a call in ms.

    `label_ms` is the mean of the fastest quarter or the median of `latency_n` runs; budgets are set on a percentile.
    """

    metric: float
    n: int
    label_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    latency_n: int

    def percentile_ms(self, percentile: str) -> float:
        """Measured latency at ``p50``, ``p90`` or ``p99``."""
        return {"p50": self.p50_ms, "p90": self.p90_ms, "p99": self.p99_ms}[percentile]


@dataclass(frozen=True)
class Candidate:
    """A network and a way to run it, with what is predicted and, once confirmed, what was measured."""

    architecture: Architecture
    deployment: Deployment
    predicted: Predicted
    measured: Measured | None = None

    @property
    def objectives(self) -> tuple[float, float, float]:
        """Predicted objectives, all to be made small: minus metric, MACs, latency."""
        return (-self.predicted.metric, self.predicted.macs, self.predicted.latency_ms)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "architecture": str(self.architecture)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Candidate:
        deployment = Deployment(**{**data["deployment"], "needs": tuple(data["deployment"]["needs"])})
        measured = Measured(**data["measured"]) if data["measured"] else None
        return cls(Architecture.parse(data["architecture"]), deployment, Predicted(**data["predicted"]), measured)


def dominates(first: Sequence[float], second: Sequence[float]) -> bool:
    """Whether `first` is nowhere larger than `second` and somewhere smaller."""
    return all(a <= b for a, b in zip(first, second, strict=True)) and tuple(first) != tuple(second)


def hypervolume(points: Iterable[Sequence[float]], reference: Sequence[float]) -> float:
    """Volume that `points` dominate below `reference`; every objective is to be made small.

    Exact, by slicing the last objective; meant for the few dozen points of a front.
    """
    inside = {tuple(p) for p in points if all(a < b for a, b in zip(p, reference, strict=True))}
    if not inside:
        return 0.0
    if len(reference) == 1:
        return reference[0] - min(p[0] for p in inside)
    levels = sorted({p[-1] for p in inside}) + [reference[-1]]
    return sum(
        (above - level) * hypervolume([p[:-1] for p in inside if p[-1] <= level], reference[:-1])
        for level, above in zip(levels, levels[1:], strict=False)
    )


@dataclass(frozen=True)
class ParetoFront:
    """Candidates none of which another dominates, ordered by predicted latency."""

    candidates: tuple[Candidate, ...]

    @classmethod
    def of(cls, candidates: Iterable[Candidate]) -> ParetoFront:
        """The front of `candidates`, whatever their order; of equal ones the first by name stays."""
        ordered = sorted(candidates, key=lambda c: (*c.objectives[::-1], str(c.architecture), c.deployment.name))
        best: list[Candidate] = []
        for candidate in ordered:
            # Sorted by latency, then MACs, then metric: nothing later can dominate something earlier.
            if not any(
                dominates(b.objectives, candidate.objectives) or b.objectives == candidate.objectives for b in best
            ):
                best.append(candidate)
        return cls(tuple(best))

    def ranked(self, budget_ms: float) -> list[Candidate]:
        """Candidates whose predicted latency is within `budget_ms`, the highest metric first, then the fastest.

        Raises:
            InfeasibleBudgetError: there is none; names the nearest three.
        """
        fits = [c for c in self.candidates if c.predicted.latency_ms <= budget_ms]
        if not fits:
            nearest = "; ".join(
                f"{c.architecture} on {c.deployment.name}: {c.predicted.latency_ms:.3g} ms predicted p50"
                for c in self.candidates[:3]
            )
            raise InfeasibleBudgetError(
                f"nothing is predicted to meet {budget_ms:.3g} ms; nearest: {nearest or 'none'}"
            )
        return sorted(fits, key=lambda c: (-c.predicted.metric, c.predicted.latency_ms, str(c.architecture)))

    def to_list(self) -> list[dict[str, Any]]:
        return [candidate.to_dict() for candidate in self.candidates]

    @classmethod
    def from_list(cls, data: list[dict[str, Any]]) -> ParetoFront:
        return cls(tuple(Candidate.from_dict(entry) for entry in data))
