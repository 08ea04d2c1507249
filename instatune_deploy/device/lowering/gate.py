"""The accuracy gate: an int8 file keeps in fp32 what it must so as not to lose too much."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from instatune_deploy.device.lowering.quantize import Calibration, products
from instatune_deploy.device.lowering.variants import lower, parts, source_of
from instatune_deploy.device.runtimes.base import get_runtime
from instatune_deploy.errors import ArtifactError, PrecisionLossError
from instatune_deploy.values.deployment import Deployment

#: Operations are judged in runs of neighbours, so many runs at most: each takes a quantisation.
RUNS = 12


@dataclass(frozen=True)
class Gate:
    """What an int8 file may lose.

    Args:
        max_drop: the most that `score` may be below that of the fp32 file (a fraction).
        score: the metric (fraction 0..1) of a file that a deployment loads.
        report: is told what was tried.
    """

    max_drop: float
    score: Callable[[Path, Deployment], float]
    report: Callable[[str], None] = lambda line: None


@dataclass(frozen=True)
class Kept:
    """How an int8 file passed: the operations that stay fp32, of how many, and the metric lost against fp32 (a fraction)."""

    names: tuple[str, ...]
    of: int
    drop: float


def hold(folder: Path, deployment: Deployment, calibration: Calibration, gate: Gate, *, image: bool) -> Kept:
    """Make the int8 file of `deployment` in `folder` pass `gate`.

    The file that quantises everything is taken if it does. If not, runs of neighbouring matrix products and convolutions are
    quantised alone, to see how far each moves the outputs on the calibration samples; those that move them the most stay fp32,
    one run, then two, four, and so on, until the gate holds.

    Args:
        folder: holds the fp32 file. The int8 file is made there; if it is there already, it quantises everything.
        calibration, image: see `lower`.

    Raises:
        PrecisionLossError: the gate does not hold with all but the least sensitive run in fp32; the int8 file is removed.
    """
    file = get_runtime(deployment.runtime).model_file(deployment)
    source = source_of(file)
    if source is None:
        raise ArtifactError(f"{file} is not quantised")
    fp32 = Deployment(deployment.runtime, threads=deployment.threads)
    names = products(folder / source)
    runs = [list(run) for run in np.array_split(np.array(names), min(RUNS, len(names)))]
    base = gate.score(folder / source, fp32)

    def quantised(keep: Sequence[str]) -> Path:
        _remove(folder / file)
        return lower(folder, file, calibration, image=image, keep=keep)

    def drop(path: Path, keep: Sequence[str]) -> float:
        lost = base - gate.score(path, deployment)
        gate.report(f"{file}: {100 * lost:.2f} points below fp32 with {len(keep)} of {len(names)} products in fp32")
        return lost

    lost = drop(lower(folder, file, calibration, image=image), [])
    if lost <= gate.max_drop:
        return Kept((), len(names), lost)
    wanted = _outputs(folder / source, fp32, calibration)
    moved = []
    for run in runs:
        alone = quantised([name for name in names if name not in run])
        found = _outputs(alone, deployment, calibration)
        moved.append(float(np.mean([np.square(a - b).mean() for a, b in zip(found, wanted, strict=True)])))
    order = sorted(range(len(runs)), key=lambda i: -moved[i])
    most = len(runs) - 1
    for count in sorted({min(2**i, most) for i in range(len(runs).bit_length() + 1)} - {0}):
        keep = [name for i in sorted(order[:count]) for name in runs[i]]
        lost = drop(quantised(keep), keep)
        if lost <= gate.max_drop:
            return Kept(tuple(keep), len(names), lost)
    _remove(folder / file)
    raise PrecisionLossError(
        f"{file}: loses {100 * lost:.2f} points against fp32 even with most products in fp32, "
        f"over {100 * gate.max_drop:g}; use another precision"
    )


def _remove(path: Path) -> None:
    for part in parts(path):
        part.unlink()


def _outputs(path: Path, deployment: Deployment, calibration: Calibration) -> list[np.ndarray]:
    """All outputs of a file for the calibration samples."""
    session = get_runtime(deployment.runtime).load(path, deployment)
    try:
        return [output for sample in calibration for output in session.run(sample)]
    finally:
        session.close()
