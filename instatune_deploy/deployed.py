"""The task metric of sub-networks as they will be deployed: exported, quantised and run by the runtime that serves them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from instatune_deploy.data.dataset import Split
from instatune_deploy.data.processor import Processor
from instatune_deploy.device.lowering.onnx import export_onnx
from instatune_deploy.device.lowering.variants import ONNX
from instatune_deploy.device.site import HERE, Site
from instatune_deploy.elastic.supernet import Supernet
from instatune_deploy.errors import ArtifactError
from instatune_deploy.stages.confirm import measured_metric
from instatune_deploy.stages.export import write_file
from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.evaluations import append_evaluations, read_evaluations
from instatune_deploy.values.front import Evaluation
from instatune_deploy.values.space import Architecture

Report = Callable[[str], None]


class DeployedEvaluator:
    """Measures sub-networks in other precisions than fp32 on one split, and remembers what it measured, line by line.

    Args:
        supernet: holds the sub-networks.
        split: rows to measure on.
        metric: one that fits the task, see `data.metrics`.
        path: JSON lines, one an `Evaluation`; those in fp32 are others' business. What stands there is not measured again.
        calibration: real training inputs, batches of them, from which quantisation learns how large activations are.
        site_of: says where the files of a deployment are run.
        report: is told what is measured, and what could not be.
    """

    def __init__(
        self, supernet: Supernet, split: Split, processor: Processor, *, metric: str, path: Path,
        calibration: Callable[[], Sequence[dict[str, np.ndarray]]],
        site_of: Callable[[Deployment], Site] = lambda deployment: HERE, report: Report = lambda line: None,
    ) -> None:  # fmt: skip
        self.supernet, self.split, self.processor, self.metric = supernet, split, processor, metric
        self.path, self.calibration, self.site_of, self.report = path, calibration, site_of, report
        wanted = (metric, split.name, len(split))
        self.known = {
            (found.architecture, found.precision): found
            for found in read_evaluations(path).values()
            if found.precision != "fp32" and (found.metric, found.split, found.n) == wanted
        }

    def __call__(self, architectures: Iterable[Architecture], deployments: Iterable[Deployment]) -> list[Evaluation]:
        """An evaluation of each of `architectures` in each arithmetic of `deployments` but fp32, measured now unless it is
        known. A network that cannot be exported or run so has none; why is reported."""
        ways: dict[str, Deployment] = {}
        for deployment in sorted(deployments):
            ways.setdefault(deployment.arithmetic, deployment)
        ways.pop("fp32", None)
        found = []
        for architecture in architectures:
            missing = {name: way for name, way in ways.items() if (architecture, name) not in self.known}
            if missing:
                self._measure(architecture, missing)
            found += [self.known[architecture, name] for name in ways if (architecture, name) in self.known]
        return found

    def _measure(self, architecture: Architecture, ways: dict[str, Deployment]) -> None:
        """Export a network once and measure it in each of `ways`."""
        network = self.supernet.extract(architecture)
        calibration = self.calibration()
        tensors = {name: torch.from_numpy(array) for name, array in calibration[0].items()}
        with tempfile.TemporaryDirectory(dir=self.path.parent, prefix=".deployed-") as name:
            folder = Path(name)
            export_onnx(network, tensors, folder / ONNX, outputs=self.processor.head.outputs)
            for precision, deployment in ways.items():
                try:
                    file = write_file(network, tensors, folder, deployment, calibration)
                    site = self.site_of(deployment)
                    value = measured_metric(file, deployment, self.split, self.processor, self.metric, site)
                except ArtifactError as error:
                    self.report(f"{architecture} was not evaluated in {precision}: {error}")
                    continue
                evaluation = Evaluation(
                    architecture, self.metric, value, self.split.name, len(self.split), precision=precision,
                    computed_in=deployment.precision,
                )  # fmt: skip
                append_evaluations(self.path, [evaluation])
                self.known[architecture, precision] = evaluation
                self.report(f"evaluated as {deployment.name}: {self.metric} {value:.4f} of {architecture}")
