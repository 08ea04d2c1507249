"""`Selection`: the network that was chosen for a budget, with what was predicted and measured, and who else there was."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from instatune_deploy.values.budget import Budget
from instatune_deploy.values.front import Candidate, Measured, Predicted


@dataclass(frozen=True)
class Considered:
    """A candidate that was not selected: the metric (of the search split, or predicted) and the latency predicted of it,
    and why it was not."""

    architecture: str
    deployment: str
    metric: float
    latency_ms: float
    why: str

    @classmethod
    def of(cls, candidate: Candidate, why: str) -> Considered:
        predicted = candidate.predicted
        names = (str(candidate.architecture), candidate.deployment.name)
        return cls(*names, predicted.metric, predicted.latency_ms, why)

    def __str__(self) -> str:
        return (
            f"{self.architecture} on {self.deployment}, predicted {self.latency_ms:.3g} ms and metric {self.metric:.4f}: "
            f"{self.why}"
        )


@dataclass(frozen=True)
class Selection:
    """A network that met a budget: what was predicted of it, and what was measured of its exported file.

    `limit_ms` is the budget in ms that it was held against (None: there was none on latency); `runners_up` are those that
    would have been tried next, `fell` those that were tried before it or were predicted to miss the budget narrowly; `full` is the full network on the fastest deployment of the
    target, `full_beside` its latency (same percentile, ms) measured in the same rounds on the artifact's own deployment,
    and `full_beside_predicted_ms` what the table predicts of it (None where it has no entries for it).
    """

    target: str
    budget: str
    percentile: str
    limit_ms: float | None
    artifact: str
    architecture: str
    deployment: str
    macs: int
    full_macs: int
    predicted: Predicted
    measured: Measured
    full: Measured
    full_deployment: str
    full_beside_ms: float
    full_beside_predicted_ms: float | None
    tried: int
    runners_up: tuple[Considered, ...] = ()
    fell: tuple[Considered, ...] = ()

    @property
    def speed_drift(self) -> float | None:
        """How much slower the full network was beside the artifact than its table predicts (a fraction; negative where
        it was faster): what the machine, not the prediction, changed since the table was measured."""
        if self.full_beside_predicted_ms is None:
            return None
        return self.full_beside_ms / self.full_beside_predicted_ms - 1

    @property
    def prediction_error(self) -> float:
        """Predicted over measured latency, less one, at the speed the machine had when the artifact was measured."""
        predicted = self.predicted.latency_ms * (1 + (self.speed_drift or 0.0))
        return predicted / self.measured.percentile_ms(self.percentile) - 1

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Selection:
        parts = {"predicted": Predicted(**data["predicted"]), **{k: Measured(**data[k]) for k in ("measured", "full")}}
        # Selections of older releases do not say who else was considered.
        others = {k: tuple(Considered(**entry) for entry in data.get(k, ())) for k in ("runners_up", "fell")}
        return cls(**{**data, **parts, **others})


def selection_name(target: str, percentile: str, budget: Budget) -> str:
    """What a run calls what was selected for `budget` on the latency's `percentile` on the target called `target`."""
    return f"{target}-{percentile}-{budget.file_name}"


def reused_line(target: str, percentile: str, budget: Budget) -> str:
    """Says that what was selected before is what is asked for now."""
    return f"artifact for {percentile} {budget.text} on {target}: reused, its front and budget are the same"
