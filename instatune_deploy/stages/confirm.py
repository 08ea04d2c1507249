"""Stage 6: an exported file is measured: its metric on the report split, its latency on a machine of its
target."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from instatune_deploy.data.dataset import Split
from instatune_deploy.data.processor import Processor
from instatune_deploy.device.settings import TimingSettings
from instatune_deploy.device.site import HERE, Site
from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.front import Measured
from instatune_deploy.values.latency import LatencySample


@dataclass(frozen=True)
class Confirmation:
    """What was measured of a file and, in the same rounds, of the full network's on the same deployment."""

    measured: Measured
    reference: LatencySample


def measured_metric(
    model_file: Path, deployment: Deployment, split: Split, processor: Processor, metric: str, site: Site = HERE
) -> float:
    """The metric of a file on all rows of `split`, computed at `site` by the runtime that will serve it."""
    return split.score(metric, site.outputs(model_file, deployment, processor.batches(split.rows, 8)))


def confirm(
    model_file: Path, full_file: Path, deployment: Deployment, split: Split, processor: Processor,
    inputs: dict[str, np.ndarray], *, metric: str, seed: int, settings: TimingSettings | None = None, site: Site = HERE,
) -> Confirmation:  # fmt: skip
    """Measure a file under `deployment`, its latency interleaved with that of the full network's file.

    Args:
        model_file, full_file: what the deployment's runtime loads; they may be the same.
        inputs: a batch by name, real in shape, for timing.
        site: where it is measured.

    Raises:
        MeasurementError: measuring failed or gave impossible latencies.
        ArtifactError: a file cannot be loaded.
    """
    value = measured_metric(model_file, deployment, split, processor, metric, site)
    files = {"full": full_file} if model_file == full_file else {"full": full_file, "artifact": model_file}
    samples = site.measure(files, inputs, deployment, seed=seed, settings=settings).samples
    sample = samples["full" if model_file == full_file else "artifact"]
    measured = Measured(
        value, len(split), sample.label_ms, sample.p50_ms, sample.p90_ms, sample.p99_ms, latency_n=sample.n
    )
    return Confirmation(measured, samples["full"])
