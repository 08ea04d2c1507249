"""`Hold`: which member of a fleet answers requests that name none, so that their latency stays within an objective."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from instatune_deploy.values.fleet import Fleet, FleetMember

#: Without an objective: how many times the latency (p90) of a call of the most accurate member a request may take.
TIMES_ITS_OWN = 5
#: A decision is made on so many requests within so many seconds at least; or after so many seconds on what there is.
_REQUESTS, _SECONDS, _IDLE_SECONDS = 20, 0.5, 5.0
#: A slower member must be expected to take no more than this share of the objective.
_ROOM = 0.8
#: So busy a slower member may be expected to be.
_BUSY = 0.5
#: Seconds that all must be well before a slower member takes over. Where it may be too busy it is tried all the same, for
#: clients that wait for an answer before they ask again keep every member busy: after twice as many seconds each time that
#: it failed, up to the last.
_CALM_S, _LONGEST_CALM_S = 3.0, 60.0


class Hold:
    """Goes to a faster member as soon as the p90 of requests, from their arrival to their answer, is over the objective, and
    back to a more accurate one when there has been room for it for a while.

    Members that are neither faster nor more accurate than another have no part in it.

    Args:
        objective_ms: for the p90; None: `TIMES_ITS_OWN` the p90 of the most accurate member's calls.
        busy: seconds that calls have taken so far, as a mean over those that may run at once.
        clock: seconds.
    """

    def __init__(
        self, fleet: Fleet, objective_ms: float | None = None, *, busy: Callable[[], float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        steps: list[FleetMember] = []
        for member in fleet.members:  # the fastest first
            if not steps or member.metric > steps[-1].metric:
                steps.append(member)
        self._steps = steps[::-1]
        self.objective_ms = objective_ms or TIMES_ITS_OWN * self._steps[0].p90_ms
        self._busy, self._clock, self._step, self._latencies = busy, clock, 0, list[float]()
        self._since = self._stepped = clock()
        self._busy_before, self._calm_s, self._needed_s = busy(), 0.0, _CALM_S

    @property
    def member(self) -> FleetMember:
        """Who answers now."""
        self._decide()
        return self._steps[self._step]

    def observe(self, arrived: float, latency_ms: float) -> None:
        """Tell of a request that was answered; `arrived` is when, by the clock. Those from before the last step say nothing
        of the member that answers now."""
        if arrived >= self._stepped:
            self._latencies.append(latency_ms)

    def _decide(self) -> None:
        now = self._clock()
        lasted = now - self._since
        if lasted < _SECONDS or (len(self._latencies) < _REQUESTS and lasted < _IDLE_SECONDS):
            return
        p90 = float(np.percentile(self._latencies, 90)) if self._latencies else 0.0
        busy = (self._busy() - self._busy_before) / lasted
        self._latencies, self._since, self._busy_before = [], now, self._busy()
        if p90 > self.objective_ms:
            if self._step + 1 < len(self._steps):
                if now - self._stepped < _LONGEST_CALM_S:  # it was only tried
                    self._needed_s = min(2 * self._needed_s, _LONGEST_CALM_S)
                self._go(self._step + 1, now)
            self._calm_s = 0.0
        elif self._step and p90 * self._slowdown <= _ROOM * self.objective_ms:
            self._calm_s += lasted
            if self._calm_s >= (_CALM_S if busy * self._slowdown <= _BUSY else self._needed_s):
                self._go(self._step - 1, now)
        else:
            self._calm_s = 0.0
        if now - self._stepped > _LONGEST_CALM_S:
            self._needed_s = _CALM_S

    @property
    def _slowdown(self) -> float:
        """How much longer the calls of the next slower member take."""
        return self._steps[self._step - 1].p90_ms / self._steps[self._step].p90_ms

    def _go(self, step: int, now: float) -> None:
        self._step, self._stepped, self._calm_s = step, now, 0.0
