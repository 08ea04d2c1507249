"""`TrainingHistory`: how the loss of a training fell, as its trainer logged it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class TrainingPoint:
    """What was logged at a step: passes over the data so far, the training loss (mean over the steps since the point
    before), the learning rate (None: not logged)."""

    step: int
    epoch: float
    loss: float
    learning_rate: float | None


@dataclass(frozen=True)
class TrainingHistory:
    """The points of one training, in the order of their steps.

    Args:
        trained: what was trained: ``full model``, ``super-network``, or an architecture that was tuned alone.
        samples: of the training split.
    """

    trained: str
    samples: int
    points: tuple[TrainingPoint, ...]

    @classmethod
    def of(cls, trained: str, samples: int, log: Iterable[Mapping[str, Any]]) -> TrainingHistory:
        """The history in a trainer's log, `transformers.TrainerState.log_history`.

        Entries without a finite loss are left out, such as the summary at the end.
        """
        points = []
        for entry in log:
            loss, rate = entry.get("loss"), entry.get("learning_rate")
            if loss is not None and math.isfinite(loss):
                points.append(TrainingPoint(int(entry["step"]), float(entry["epoch"]), float(loss), rate))
        return cls(trained, samples, tuple(points))

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready description; `from_dict` reads it back."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TrainingHistory:
        """The history that `to_dict` described.

        Raises:
            ValueError: it is of another version; KeyError, TypeError: it is none.
        """
        if data["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema_version: is {data['schema_version']!r}, this release reads {SCHEMA_VERSION}")
        return cls.of(str(data["trained"]), int(data["samples"]), data["points"])
