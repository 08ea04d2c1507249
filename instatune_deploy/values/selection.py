"""`Selection`: the network that was chosen for a budget, with what was predicted and what was measured."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from instatune_deploy.values.front import Measured, Predicted


@dataclass(frozen=True)
class Selection:
    """A network that met a budget: what was predicted of it, and what was measured of its exported file.

    `limit_ms` is the budget in ms that it was held against; `full` is the full network on the fastest deployment of the
    target, `full_beside` its latency (same percentile, ms) measured in the same rounds on the artifact's own deployment,
    and `full_beside_predicted_ms` what the table predicts of it (None where it has no entries for it).
    """

    target: str
    budget: str
    percentile: str
    limit_ms: float
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
        parts = {"predicted": Predicted(**data["predicted"])}
        return cls(**{**data, **parts, **{k: Measured(**data[k]) for k in ("measured", "full")}})
