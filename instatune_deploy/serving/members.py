"""The artifacts behind a model's name: one, or the members of a fleet, of which each request gets one."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlserver.errors import InferenceError

from instatune_deploy.errors import InfeasibleBudgetError, UnknownNameError
from instatune_deploy.serving.hold import Hold
from instatune_deploy.stages.export import Artifact, open_artifact
from instatune_deploy.values.fleet import Fleet, is_fleet


@dataclass(frozen=True)
class Members:
    """Artifacts by the names of the members; that of an artifact without a fleet is empty."""

    artifacts: Mapping[str, Artifact]
    fleet: Fleet | None

    @property
    def first(self) -> Artifact:
        """Any of them, for what they have alike."""
        return next(iter(self.artifacts.values()))


def open_members(directory: Path) -> Members:
    """The artifact or the fleet in `directory`, all files checked against their hashes.

    Raises:
        ArtifactError: it is neither, or a file was changed.
    """
    if not is_fleet(directory):
        return Members({"": open_artifact(directory)}, None)
    fleet = Fleet.read(directory)
    return Members({member.name: open_artifact(directory / member.directory) for member in fleet.members}, fleet)


class Choice:
    """Which member answers a request: that of its parameter `member`; the most accurate whose measured p50 is at most its
    `latency_budget_ms`; or, without either, the one that the load allows, see `Hold`.

    Args:
        hold_ms: objective for the latency (p90) of requests that say neither, from their arrival to their answer.
        busy: see `Hold`.
    """

    def __init__(self, members: Members, hold_ms: float | None, busy: Callable[[], float]) -> None:
        self._fleet = members.fleet
        self._hold = None if members.fleet is None else Hold(members.fleet, hold_ms, busy=busy)

    def pick(self, parameters: Any) -> tuple[str, bool]:
        """The member for a request with these parameters, and whether the load decided.

        Raises:
            InferenceError: there is no such member, none is so fast, or there is no fleet to choose from.
        """
        name, budget = getattr(parameters, "member", None), getattr(parameters, "latency_budget_ms", None)
        if self._fleet is None or self._hold is None:
            if name is not None or budget is not None:
                raise InferenceError("member and latency_budget_ms are for fleets; this is one artifact")
            return "", False
        try:
            if name is not None and budget is not None:
                raise InferenceError("give member or latency_budget_ms, not both")
            if name is not None:
                return self._fleet.by_name(str(name)[:100]).name, False
            if budget is not None:
                return self._fleet.within(_milliseconds(budget)).name, False
        except (UnknownNameError, InfeasibleBudgetError) as error:
            raise InferenceError(str(error)) from None
        return self._hold.member.name, True

    def observe(self, started: float, by_load: bool) -> None:
        """Tell of a request that was answered just now; `started` is when it arrived, by `time.monotonic`."""
        if self._hold is not None and by_load:
            self._hold.observe(started, 1e3 * (time.monotonic() - started))


def _milliseconds(value: Any) -> float:
    """A latency from a parameter: a number, or a text of one, for gRPC's parameters have no fractions.

    Raises:
        InferenceError: it is none.
    """
    try:
        found = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        found = math.nan
    if not 0 < found < math.inf:
        raise InferenceError(f"latency_budget_ms is {value!r:.40}, not a number of milliseconds")
    return found
