"""`ProbeFiles`: files of networks with random weights, made when first asked for and shared by all deployments."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from instatune_deploy.device.lowering.onnx import export_onnx
from instatune_deploy.device.lowering.openvino import to_openvino
from instatune_deploy.device.runtimes.base import get_runtime
from instatune_deploy.errors import MeasurementError
from instatune_deploy.values.space import Architecture
from instatune_deploy.values.target import Deployment

if TYPE_CHECKING:
    import torch


class ProbeFiles:
    """Networks of one model signature, as files that runtimes load.

    Args:
        build: makes a network of an architecture; its weights do not matter.
        example_inputs: inputs by name, batch first, to trace it with.
        directory: where the files go; those already there are used, so it must belong to this signature alone.
    """

    def __init__(
        self,
        build: Callable[[Architecture], torch.nn.Module],
        example_inputs: dict[str, torch.Tensor],
        directory: Path,
    ) -> None:
        self._build = build
        self._example_inputs = example_inputs
        self._directory = directory

    def path(self, architecture: Architecture, deployment: Deployment) -> Path:
        """The file of `architecture` that `deployment` loads; makes it if it is not there yet.

        Raises:
            ArtifactError: the network cannot be exported.
            MeasurementError: networks cannot be lowered for this runtime.
        """
        runtime = deployment.runtime
        name = f"{architecture.depth}L-{hashlib.sha256(str(architecture).encode()).hexdigest()[:16]}"
        wanted = self._directory / name / get_runtime(runtime).model_file(deployment)
        onnx_path = wanted.with_name("model.onnx")
        if runtime not in ("onnxruntime", "openvino"):
            raise MeasurementError(f"networks cannot be lowered for runtime {runtime!r}")
        if not onnx_path.is_file():
            export_onnx(self._build(architecture), self._example_inputs, onnx_path)
        if runtime == "openvino" and not wanted.is_file():
            to_openvino(onnx_path, wanted)
        return wanted
