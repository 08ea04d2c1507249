"""Every error this package raises on purpose.

InstatuneError                    exit code 1
|-- UsageError                    exit code 2: what was asked for cannot be done as asked
|   |-- UnknownNameError          a name nobody knows; carries the nearest known ones
|   |-- ArchitectureError         an architecture that is malformed or outside its space
|   |-- SpaceError                a search space that contradicts itself or its model
|   |-- TargetError               a target this machine cannot serve, or a malformed one
|   |-- FamilyError               a model family without an axis map
|   |-- CheckpointError           a checkpoint whose tensors do not fit
|   |-- DatasetError              an empty, mislabelled or unreadable dataset
|   |-- RecipeError               a recipe that does not validate
|   |-- TableError                a latency table that is damaged, missing or lacks an entry
|   `-- MissingExtraError         an optional dependency that is not installed
|-- InfeasibleBudgetError         exit code 3: no candidate meets the budget
|-- MeasurementError              a measurement that failed or gave impossible samples
|-- TrainingError                 training that diverged or cannot go on
`-- ArtifactError                 an artifact that is damaged or whose outputs differ
    `-- PrecisionLossError        an int8 file that loses more than it may
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any


class InstatuneError(Exception):
    """Base of all errors raised on purpose; its text is one line for the user."""

    exit_code = 1


class UsageError(InstatuneError):
    """What was asked for cannot be done as asked."""

    exit_code = 2


class UnknownNameError(UsageError):
    """A name that is not among the known ones."""

    def __init__(self, what: str, name: str, known: Iterable[str]) -> None:
        self.name, self.known = name, sorted(known)
        super().__init__(f"unknown {what} {name!r}{did_you_mean(name, self.known)}")


class ArchitectureError(UsageError):
    """An architecture that is malformed or outside its search space."""


class SpaceError(UsageError):
    """A search space that contradicts itself or the model it is for."""


class TargetError(UsageError):
    """A target that this machine cannot serve, or a malformed target file."""


class FamilyError(UsageError):
    """A model family for which there is no axis map."""


class CheckpointError(UsageError):
    """A checkpoint whose tensors do not fit the network they are loaded into."""


class DatasetError(UsageError):
    """A dataset that is empty, mislabelled or unreadable."""


class RecipeError(UsageError):
    """A recipe that does not validate."""


class TableError(UsageError):
    """A latency table that is damaged, missing or lacks an entry."""


class MissingExtraError(UsageError):
    """An optional dependency that is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed: pip install 'instatune-deploy[{extra}]'")


class InfeasibleBudgetError(InstatuneError):
    """No candidate meets the budget; `met` are the `Selection`s for other budgets, where a run had several."""

    exit_code = 3

    def __init__(self, text: str, met: Sequence[Any] = ()) -> None:
        super().__init__(text)
        self.met = tuple(met)


class MeasurementError(InstatuneError):
    """A measurement that failed or gave impossible samples."""


class TrainingError(InstatuneError):
    """Training that diverged or cannot go on."""


class ArtifactError(InstatuneError):
    """An artifact that is damaged, or whose outputs differ from the network it was made of."""


class PrecisionLossError(ArtifactError):
    """An int8 file that loses more of its metric than the accuracy gate allows."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'a' or 'b'?` for the nearest of `known`, else `; known: ...`."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if near:
        return "; did you mean " + " or ".join(repr(n) for n in near) + "?"
    return "; known: " + ", ".join(known) if known else ""
