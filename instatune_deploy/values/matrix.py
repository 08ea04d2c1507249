"""`Matrix`: what each device of a fleet's plan gets for each budget."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

#: What became of a cell: measured to keep its budget; predicted to, not measured here; nothing keeps it.
State = Literal["measured", "predicted", "none"]


@dataclass(frozen=True)
class Cell:
    """What a fleet's device gets for a budget.

    Args:
        target: the plan's name of it; `batch`: samples a call; `budget`: as the plan has it.
        latency_ms: `percentile` of a call; `metric`: fraction 0..1 or a correlation. Of a cell that was ``measured`` they are
            the exported file's, the metric on `n` samples of the report split; of one that is ``predicted`` they are
            the table's and the search's.
        artifact: relative to the run's directory, of a cell that was measured.
        why: of another, why it was not, or what comes nearest.
    """

    target: str
    batch: int
    budget: str
    state: State
    architecture: str | None = None
    deployment: str | None = None
    latency_ms: float | None = None
    metric: float | None = None
    n: int | None = None
    artifact: str | None = None
    why: str | None = None


@dataclass(frozen=True)
class Matrix:
    """The cells of a plan, in its order: by target, then by batch, then by budget."""

    run: str
    metric: str
    percentile: str
    cells: tuple[Cell, ...]

    def count(self, state: State) -> int:
        """How many cells are in a state."""
        return sum(cell.state == state for cell in self.cells)

    def rows(self) -> Iterator[tuple[tuple[str, int], list[Cell]]]:
        """For each target and batch its cells, one a budget."""
        found: dict[tuple[str, int], list[Cell]] = {}
        for cell in self.cells:
            found.setdefault((cell.target, cell.batch), []).append(cell)
        yield from found.items()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Matrix:
        return cls(**{**data, "cells": tuple(Cell(**cell) for cell in data["cells"])})
