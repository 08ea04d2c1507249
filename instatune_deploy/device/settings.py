"""`TimingSettings`: how long and how carefully to measure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TimingSettings:
    """How long and how carefully to measure.

    Args:
        seconds: of measuring at most, loading and waiting not counted.
        precision: half-width of a label's 95% confidence interval (fraction) at which it is sure enough.
        wait_s: seconds at most to wait, in all, for other processes to leave the machine alone.
        sessions: how often each model whose label must be sure is loaded over `seconds`, others half as often: where
            its memory happens to lie makes a session faster or slower by a percent for as long as it lives.
        min_rounds, max_rounds: rounds before it may end, and after which it ends.
        min_runs, max_runs: runs a visit; within these as many as take `visit_ms`.
        lead_ms: runs at the start of a visit that do not count: as many as take so long, at least one.
        warmup_runs, warmup_batches: runs between two looks at a model's median when warming up, and at most so many looks.
        timeout_s: after so long the process is taken to hang and is stopped; None: ten minutes, thrice what measuring
            and waiting may take, and what loading may take.
    """

    seconds: float = 60.0
    precision: float = 0.005
    wait_s: float = 0.0
    sessions: int = 6
    min_rounds: int = 4
    max_rounds: int = 2000
    min_runs: int = 2
    max_runs: int = 30
    visit_ms: float = 60.0
    lead_ms: float = 5.0
    warmup_runs: int = 4
    warmup_batches: int = 8
    timeout_s: float | None = None
