"""What is known of sub-networks: `Evaluation`, `Candidate` and the `ParetoFront` of the best of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import moocore
import numpy as np
import numpy.typing as npt

from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.html import html_table
from instatune_deploy.values.objectives import DEFAULT, Objectives, parse_objectives
from instatune_deploy.values.space import Architecture


@dataclass(frozen=True)
class Evaluation:
    """A measured task metric: `value` (fraction 0..1) of `architecture` on `n` samples of `split`.

    `precision` is `Deployment.arithmetic` of the deployments that it stands for. `computed_in` is what it was computed in, which
    for a deployment in fp32 may be ``bf16``, where that was found to give the same values. `divergence` is how far its
    outputs are from the full network's on the same samples, as `data.heads.Head.divergence` has it; None: not looked at.
    """

    architecture: Architecture
    metric: str
    value: float
    split: str
    n: int
    precision: str = "fp32"
    computed_in: str = "fp32"
    divergence: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "architecture": str(self.architecture)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Evaluation:
        return cls(**{**data, "architecture": Architecture.parse(data["architecture"])})


@dataclass(frozen=True)
class Predicted:
    """What the search believes: metric (fraction 0..1), multiply-accumulates of one sample, latency of a call
    (the percentile that was searched) and the upper end of the interval that 95% of networks are in.

    `metric_source` says where the metric comes from: ``predictor``, ``search split`` if it was evaluated there, or
    ``search split and predictor``, the mean of both; what was measured counts as `values.steadying` has it. `file_bytes`
    and `memory_bytes` are estimates, see `values.sizes`;
    `elsewhere_ms` holds latencies in other places, (``target:deployment``, ms). None: not predicted.
    """

    metric: float
    macs: int
    latency_ms: float
    metric_source: str
    latency_high_ms: float | None = None
    parameters: int | None = None
    file_bytes: int | None = None
    memory_bytes: int | None = None
    elsewhere_ms: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        if self.elsewhere_ms != ():  # lists, where they come from JSON
            object.__setattr__(self, "elsewhere_ms", tuple((place, ms) for place, ms in self.elsewhere_ms))


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

    def point(self, objectives: Objectives = DEFAULT) -> tuple[float, ...]:
        """The predicted objectives, all to be made small: costs, and minus the metric."""
        return tuple(objective.value(self.predicted) for objective in objectives)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "architecture": str(self.architecture)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Candidate:
        deployment = Deployment(**{**data["deployment"], "needs": tuple(data["deployment"]["needs"])})
        measured = Measured(**data["measured"]) if data["measured"] else None
        return cls(Architecture.parse(data["architecture"]), deployment, Predicted(**data["predicted"]), measured)


def hypervolume(points: npt.ArrayLike, reference: npt.ArrayLike) -> float:
    """Volume that `points`, shape ``(n, objectives)``, dominate below `reference`; every objective is to be made small."""
    array = np.asarray(points, dtype=np.float64)
    return float(moocore.hypervolume(array, ref=np.asarray(reference))) if len(array) else 0.0


@dataclass(frozen=True)
class ParetoFront:
    """Candidates none of which another dominates in `objectives`, ordered by predicted latency."""

    candidates: tuple[Candidate, ...]
    objectives: Objectives = DEFAULT

    @classmethod
    def of(cls, candidates: Iterable[Candidate], objectives: Objectives = DEFAULT) -> ParetoFront:
        """The front of `candidates`, whatever their order; of equal ones the fastest stays, then the first by name."""
        shown = sorted(candidates, key=_presented)  # of equal points the first is kept
        if not shown:
            return cls((), objectives)
        points = np.array([c.point(objectives) for c in shown], dtype=np.float64)
        kept = moocore.is_nondominated(points, keep_weakly=False)
        return cls(tuple(c for c, keep in zip(shown, kept, strict=True) if keep), objectives)

    def _repr_html_(self) -> str:
        """For notebooks."""
        columns = ["network", "deployment", "GMACs", "latency, ms (predicted)", "metric, %", "metric is of"]
        rows = [
            (
                c.architecture, c.deployment.name, c.predicted.macs / 1e9, c.predicted.latency_ms, 100 * c.predicted.metric,
                c.predicted.metric_source,
            )
            for c in self.candidates
        ]  # fmt: skip
        return html_table(f"front of {', '.join(map(str, self.objectives))}", columns, rows)

    def to_dict(self) -> dict[str, Any]:
        return {"objectives": [str(objective) for objective in self.objectives], "front": self.to_list()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ParetoFront:
        """The front that `to_dict` described; one of an older release, which names no objectives, had the usual ones."""
        objectives = parse_objectives(data["objectives"], constrained=True) if "objectives" in data else DEFAULT
        return cls.from_list(data["front"], objectives)

    def to_list(self) -> list[dict[str, Any]]:
        return [candidate.to_dict() for candidate in self.candidates]

    @classmethod
    def from_list(cls, data: list[dict[str, Any]], objectives: Objectives = DEFAULT) -> ParetoFront:
        return cls(tuple(Candidate.from_dict(entry) for entry in data), objectives)


def _presented(candidate: Candidate) -> tuple[float, float, float, str, str]:
    """The order in which candidates are shown, which has nothing to do with the objectives."""
    predicted = candidate.predicted
    names = (str(candidate.architecture), candidate.deployment.name)
    return (predicted.latency_ms, predicted.macs, -predicted.metric, *names)
