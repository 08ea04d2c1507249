"""ONNX Runtime on the CPU."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import onnxruntime

from instatune_deploy.device.runtimes.base import feed
from instatune_deploy.errors import ArtifactError, TargetError
from instatune_deploy.values.target import Deployment

# Idle threads of the pool spin rather than sleep: the default, and what a server that owns its cores wants.
_SPINNING = "1"


class OnnxSession:
    """A network in ONNX Runtime."""

    def __init__(self, path: Path, session: onnxruntime.InferenceSession) -> None:
        self._path = path
        self._session: onnxruntime.InferenceSession | None = session
        self._inputs = [node.name for node in session.get_inputs()]
        self._outputs = [session.get_outputs()[0].name]

    def run(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """See `Session.run`."""
        if self._session is None:
            raise ArtifactError(f"{self._path} is closed")
        output: np.ndarray = self._session.run(self._outputs, feed(self._inputs, inputs, self._path))[0]
        return output

    def close(self) -> None:
        """See `Session.close`."""
        self._session = None


class OnnxRuntime:
    """Loads ``model.onnx``; computes in fp32."""

    name = "onnxruntime"

    def model_file(self, deployment: Deployment) -> str:
        """See `Runtime.model_file`."""
        return "model.onnx" if deployment.precision == "fp32" else f"model_{deployment.precision}.onnx"

    def load(self, path: Path, deployment: Deployment) -> OnnxSession:
        """See `Runtime.load`."""
        if deployment.precision != "fp32":
            raise TargetError(f"onnxruntime does not compute in {deployment.precision} on CPUs: use openvino for it")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = deployment.threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.add_session_config_entry("session.intra_op.allow_spinning", _SPINNING)
        options.log_severity_level = 3
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors share no base class
            raise ArtifactError(f"onnxruntime cannot load {path}: {str(error).splitlines()[0]}") from error
        return OnnxSession(path, session)

    def options(self, deployment: Deployment) -> dict[str, str]:
        """See `Runtime.options`."""
        return {
            "intra_op_num_threads": str(deployment.threads),
            "inter_op_num_threads": "1",
            "execution_mode": "sequential",
            "allow_spinning": _SPINNING,
        }

    def clock(self) -> float:
        """See `Runtime.clock`."""
        return time.perf_counter()
