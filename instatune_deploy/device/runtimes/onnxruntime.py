"""ONNX Runtime on the CPU, and on NVIDIA GPUs by its CUDA and TensorRT providers."""

from __future__ import annotations

import contextlib
import importlib
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from instatune_deploy.device.runtimes.base import Session, check_deployment, feed
from instatune_deploy.device.runtimes.fixed import with_fixed_sizes
from instatune_deploy.device.runtimes.rows import RowSession
from instatune_deploy.errors import ArtifactError, TargetError
from instatune_deploy.values.deployment import Deployment

# Idle threads of the pool spin rather than sleep: the default, and what a server that owns its cores wants.
_SPINNING = "1"

#: Providers by device, the one that is wanted first. Shape arithmetic stays on the CPU, so its provider is always there.
_PROVIDERS = {
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"),
}
_INSTALL = {
    "cuda": "pip uninstall -y onnxruntime && pip install onnxruntime-gpu",
    "tensorrt": "pip uninstall -y onnxruntime && pip install onnxruntime-gpu tensorrt",
}
#: Where a network's time goes: on an accelerator's deployment none of these may be left to the CPU.
_HEAVY = {"Attention", "Conv", "FusedConv", "FusedMatMul", "Gemm", "MatMul", "MultiHeadAttention"}


class OnnxSession:
    """A network in ONNX Runtime.

    Inputs and outputs are in the host's memory, whatever the device: a served request starts and ends there, so copying
    them to a GPU and back is part of `run` and of its latency.
    """

    def __init__(self, path: Path, session: onnxruntime.InferenceSession) -> None:
        self._path = path
        self._session: onnxruntime.InferenceSession | None = session
        self._inputs = [node.name for node in session.get_inputs()]
        self._outputs = [node.name for node in session.get_outputs()]

    def run(self, inputs: dict[str, np.ndarray]) -> tuple[np.ndarray, ...]:
        """See `Session.run`."""
        if self._session is None:
            raise ArtifactError(f"{self._path} is closed")
        return tuple(self._session.run(self._outputs, feed(self._inputs, inputs, self._path)))

    def close(self) -> None:
        """See `Session.close`."""
        self._session = None


class OnnxRuntime:
    """Loads ``model.onnx`` for fp32, ``model_int8.onnx`` and ``model_fp16.onnx``; the file says what it computes in."""

    name = "onnxruntime"

    def model_file(self, deployment: Deployment) -> str:
        """See `Runtime.model_file`."""
        return "model.onnx" if deployment.precision == "fp32" else f"model_{deployment.precision}.onnx"

    def unavailable(self, deployment: Deployment) -> str | None:
        """See `Runtime.unavailable`."""
        wanted = _PROVIDERS[deployment.device][0]
        if wanted in onnxruntime.get_available_providers():
            return None
        return f"this ONNX Runtime has no {wanted}: {_INSTALL[deployment.device]}"

    def load(self, path: Path, deployment: Deployment) -> Session:
        """See `Runtime.load`."""
        check_deployment(self, deployment)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = deployment.threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.add_session_config_entry("session.intra_op.allow_spinning", _SPINNING)
        options.log_severity_level = 3
        if deployment.device != "cpu":
            options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
            _load_libraries(deployment)
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=_providers(deployment))
        except Exception as error:  # its errors share no base class
            raise ArtifactError(f"onnxruntime cannot load {path}: {str(error).splitlines()[0]}") from error
        if deployment.device != "cpu":
            _check_providers(session, path, deployment)
        inputs = {
            node.name: (tuple(size if isinstance(size, int) else -1 for size in node.shape), "int" in node.type)
            for node in session.get_inputs()
        }
        found = with_fixed_sizes(path, OnnxSession(path, session), inputs)
        image = not all(whole and len(shape) == 2 for shape, whole in inputs.values())
        return RowSession(path, found, inputs) if deployment.runs_rows_alone(image=image) else found

    def options(self, deployment: Deployment) -> dict[str, str]:
        """See `Runtime.options`."""
        options = {
            "intra_op_num_threads": str(deployment.threads),
            "inter_op_num_threads": "1",
            "execution_mode": "sequential",
            "allow_spinning": _SPINNING,
        }
        return {**options, **{key: value for _, own in _providers(deployment) for key, value in own.items()}}

    def clock(self) -> float:
        """See `Runtime.clock`."""
        return time.perf_counter()


def _providers(deployment: Deployment) -> list[tuple[str, dict[str, str]]]:
    """Providers and their options, the one that is wanted first.

    Raises:
        TargetError: the deployment's device is not one of ONNX Runtime's.
    """
    if deployment.misfit:
        raise TargetError(f"{deployment.name}: {deployment.misfit}")
    options = {
        # fp32 is fp32: the default, TF32, keeps 10 bits of the mantissa.
        "CUDAExecutionProvider": {"use_tf32": "0"},
        # Engines are built for the shapes of the first runs, which are those that warm up.
        "TensorrtExecutionProvider": {"trt_fp16_enable": "1" if deployment.precision == "fp16" else "0"},
    }
    return [(name, options.get(name, {})) for name in _PROVIDERS[deployment.device]]


def _load_libraries(deployment: Deployment) -> None:
    """Load CUDA's libraries, and TensorRT's, from the packages of pip, where there are such; the system's serve as well."""
    onnxruntime.preload_dlls()
    if deployment.device == "tensorrt":
        with contextlib.suppress(ImportError):
            importlib.import_module("tensorrt")


def _check_providers(session: Any, path: Path, deployment: Deployment) -> None:
    """Make sure that the deployment's provider runs the network: ONNX Runtime falls back to the CPU without a word.

    Raises:
        TargetError: it could not start the provider, or gave the heavy operators to the CPU.
    """
    wanted, *_ = _PROVIDERS[deployment.device]
    if session.get_providers()[0] != wanted:
        raise TargetError(
            f"{deployment.name}: ONNX Runtime could not start {wanted} and fell back to {session.get_providers()[0]}: "
            f"look for an NVIDIA driver and libraries of its CUDA version, or {_INSTALL[deployment.device]}"
        )
    on_cpu = {
        node.op_type
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name == "CPUExecutionProvider"
        for node in part.get_nodes()
    }
    if on_cpu & _HEAVY:
        raise TargetError(
            f"{deployment.name}: ONNX Runtime would run {', '.join(sorted(on_cpu & _HEAVY))} of {path} on the CPU, "
            f"for which {wanted} has no kernel: pip install --upgrade onnxruntime-gpu"
        )
