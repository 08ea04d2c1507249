"""OpenVINO on the CPU."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import openvino

from instatune_deploy.device.runtimes.base import feed
from instatune_deploy.errors import ArtifactError, TargetError
from instatune_deploy.values.target import Deployment

_PRECISIONS = {"fp32": "f32", "bf16": "bf16"}


class OpenVinoSession:
    """A network in OpenVINO."""

    def __init__(self, path: Path, model: openvino.CompiledModel) -> None:
        self._path = path
        self._inputs = [port.get_any_name() for port in model.inputs]
        self._request: openvino.InferRequest | None = model.create_infer_request()

    def run(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """See `Session.run`."""
        if self._request is None:
            raise ArtifactError(f"{self._path} is closed")
        self._request.infer(feed(self._inputs, inputs, self._path), share_inputs=True, share_outputs=True)
        # The tensor is the request's own and is overwritten by the next run.
        output: np.ndarray = self._request.get_output_tensor(0).data.copy()
        return output

    def close(self) -> None:
        """See `Session.close`."""
        self._request = None


class OpenVino:
    """Loads ``openvino_model.xml`` (or an ONNX file); computes in fp32 or bf16."""

    name = "openvino"

    def model_file(self, deployment: Deployment) -> str:
        """See `Runtime.model_file`."""
        return "openvino_model_int8.xml" if deployment.precision == "int8" else "openvino_model.xml"

    def load(self, path: Path, deployment: Deployment) -> OpenVinoSession:
        """See `Runtime.load`."""
        options = self.options(deployment)
        try:
            core = openvino.Core()
            return OpenVinoSession(path, core.compile_model(core.read_model(path), "CPU", options))
        except RuntimeError as error:
            # The first lines say where in OpenVINO's sources it was thrown; the last ones say why.
            reason = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise ArtifactError(f"openvino cannot load {path}: {reason[-1] if reason else error!r}") from error

    def options(self, deployment: Deployment) -> dict[str, str]:
        """See `Runtime.options`."""
        if deployment.precision not in _PRECISIONS:
            raise TargetError(f"openvino is not set up for {deployment.precision}: known are {', '.join(_PRECISIONS)}")
        return {
            # Always set: on CPUs with bf16 the default would be bf16.
            "INFERENCE_PRECISION_HINT": _PRECISIONS[deployment.precision],
            "INFERENCE_NUM_THREADS": str(deployment.threads),
            "NUM_STREAMS": "1",
            "PERFORMANCE_HINT": "LATENCY",
        }

    def clock(self) -> float:
        """See `Runtime.clock`."""
        return time.perf_counter()
