"""Whether sub-networks are evaluated in bf16: only where it is faster and keeps their ranking."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from instatune_deploy.device.fingerprint import detect
from instatune_deploy.stages.evaluate.runs import Arithmetic, Batch, Found, Runs
from instatune_deploy.values.space import Architecture

Precision = Literal["fp32", "bf16", "auto"]

#: Sub-networks that both are tried on.
CHECKED = 5
#: A value may move by this share of the range that the values of the sub-networks tried span.
LARGEST_MOVE = 0.01
#: Instruction sets with products of bf16, by the names that CPUs give them.
BF16_INSTRUCTIONS = {"amx_bf16", "avx512_bf16", "bf16"}


@dataclass(frozen=True)
class PrecisionCheck:
    """How a few sub-networks fared in bf16 beside fp32.

    Args:
        chosen: what came of it.
        reason: why, for a reader.
        speedup: seconds in fp32 by seconds in bf16, rows computed again included; 0 where bf16 was not tried.
        largest_move: of a value, metric units; `span` is the range of the values in fp32.
    """

    chosen: Arithmetic
    reason: str
    speedup: float = 0.0
    largest_move: float = 0.0
    span: float = 0.0


def choose(runs: Runs, batches: Sequence[Batch], metric: str, wanted: Precision) -> PrecisionCheck:
    """The arithmetic for evaluating on `batches`, which are the whole split.

    ``bf16`` is taken as asked for, and looked at for how far its rows are in doubt. ``auto`` takes it where the processor
    has it, it is faster, and no value of the sub-networks tried moves by more than `LARGEST_MOVE` of their range.
    """
    if wanted == "fp32":
        return PrecisionCheck(Arithmetic(), "as asked for")
    auto = wanted == "auto"
    if auto and not _has_bf16(runs):
        return PrecisionCheck(Arithmetic(), "the processor has no bf16")
    space = runs.supernet.space
    tried = list(dict.fromkeys([space.smallest, *space.sample(CHECKED - 2, seed=0), space.largest]))
    speedup = _speedup(runs, tried, batches)
    if auto and speedup <= 1:
        return PrecisionCheck(Arithmetic(), f"bf16 is {speedup:.2f} times as fast here", speedup)
    exact, near = (runs.outputs(tried, batches, Arithmetic(name)) for name in ("fp32", "bf16"))
    doubt, share = _doubt(runs, exact, near)
    arithmetic = Arithmetic("bf16", doubt)
    if doubt:
        near = runs.outputs(tried, batches, arithmetic)
    right, found = (np.asarray([runs.split.score(metric, own) for own in side]) for side in (exact, near))
    move, span = float(np.abs(right - found).max()), float(np.ptp(right))
    speedup = 1 / (1 / speedup + share)
    if auto and (speedup <= 1 or move > LARGEST_MOVE * span):
        reason = f"bf16 is {speedup:.2f} times as fast here and moves a value by {move:.2g}, of a range of {span:.2g}"
        return PrecisionCheck(Arithmetic(), reason, speedup, move, span)
    reason = f"{speedup:.2f} times as fast; values move by {move:.2g} at most, of a range of {span:.2g}; "
    reason += f"{100 * share:.1f}% of rows are computed again in fp32"
    return PrecisionCheck(arithmetic, reason, speedup, move, span)


def _has_bf16(runs: Runs) -> bool:
    if next(runs.supernet.parameters()).device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return cpu_has_bf16()


def cpu_has_bf16() -> bool:
    """Whether this machine's processor computes in bf16; one that does not emulates it, many times as slowly as fp32."""
    return bool(BF16_INSTRUCTIONS & set(detect().instruction_sets))


def _speedup(runs: Runs, tried: Sequence[Architecture], batches: Sequence[Batch]) -> float:
    """Of bf16, on the batch in the middle: the better of two runs each, in turns, after one that does not count."""
    seconds: dict[str, list[float]] = {"fp32": [], "bf16": []}
    one = [batches[len(batches) // 2]]
    for _ in range(3):
        for name, spent in seconds.items():
            started = time.perf_counter()
            runs.outputs(tried, one, Arithmetic(name))
            spent.append(time.perf_counter() - started)
    return min(seconds["fp32"][1:]) / min(seconds["bf16"][1:])


def _doubt(runs: Runs, exact: Sequence[Sequence[Found]], near: Sequence[Sequence[Found]]) -> tuple[float, float]:
    """The margin below which bf16 may decide otherwise, the largest by which it moved one; and the share of rows that
    have less. Zeros where metrics follow from more than decisions."""

    def margins(side: Sequence[Sequence[Found]]) -> np.ndarray | None:
        own = [runs.split.head.margins(list(zip(*arrays, strict=True))) for found in side for _, arrays in found]
        return None if any(part is None for part in own) else np.concatenate(own)  # type: ignore[arg-type]

    ours, theirs = margins(exact), margins(near)
    if ours is None or theirs is None:
        return 0.0, 0.0
    doubt = float(np.abs(ours - theirs).max())
    return doubt, float((theirs < doubt).mean())
