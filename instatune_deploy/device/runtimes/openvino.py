"""OpenVINO on CPUs, and on Intel's GPUs and NPUs."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import openvino

from instatune_deploy.device.runtimes.base import Session, check_deployment, feed
from instatune_deploy.device.runtimes.fixed import with_fixed_sizes
from instatune_deploy.errors import ArtifactError, TargetError
from instatune_deploy.values.deployment import Deployment

_DEVICES = {"cpu": "CPU", "gpu": "GPU", "npu": "NPU"}
# What layers compute in that the file has not quantised: an int8 network says itself which of them run in int8.
_UNQUANTISED = {"cpu": "f32", "gpu": "f16", "npu": "f16"}
_PRECISIONS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
_INSTALL = {
    "gpu": "install Intel's GPU driver (apt install intel-opencl-icd), and join the group render",
    "npu": "install Intel's NPU driver (https://github.com/intel/linux-npu-driver), and join the group render",
}


class OpenVinoSession:
    """A network in OpenVINO. Inputs and outputs are in the host's memory: copying them is part of `run`."""

    def __init__(self, path: Path, model: openvino.CompiledModel) -> None:
        self._path = path
        self._inputs = [port.get_any_name() for port in model.inputs]
        self._outputs = len(model.outputs)
        self._request: openvino.InferRequest | None = model.create_infer_request()

    def run(self, inputs: dict[str, np.ndarray]) -> tuple[np.ndarray, ...]:
        """See `Session.run`."""
        if self._request is None:
            raise ArtifactError(f"{self._path} is closed")
        self._request.infer(feed(self._inputs, inputs, self._path), share_inputs=True, share_outputs=True)
        # The tensors are the request's own and are overwritten by the next run.
        return tuple(self._request.get_output_tensor(index).data.copy() for index in range(self._outputs))

    def close(self) -> None:
        """See `Session.close`."""
        self._request = None


class FixedShapeSession:
    """A network on a device without dynamic shapes: compiled at the first run, and anew when the inputs' shapes change."""

    def __init__(self, path: Path, model: openvino.Model, device: str, options: dict[str, str]) -> None:
        self._path, self._device, self._options = path, device, options
        self._model: openvino.Model | None = model
        self._inputs = [port.get_any_name() for port in model.inputs]
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._session: OpenVinoSession | None = None

    def run(self, inputs: dict[str, np.ndarray]) -> tuple[np.ndarray, ...]:
        """See `Session.run`."""
        if self._model is None:
            raise ArtifactError(f"{self._path} is closed")
        arrays = feed(self._inputs, inputs, self._path)
        shapes = {name: array.shape for name, array in arrays.items()}
        if self._session is None or shapes != self._shapes:
            self._session, self._shapes = self._compiled(self._model, shapes), shapes
        return self._session.run(arrays)

    def _compiled(self, model: openvino.Model, shapes: dict[str, tuple[int, ...]]) -> OpenVinoSession:
        """A session of the network for inputs of these shapes.

        Raises:
            ArtifactError: the device cannot run the network at these shapes.
        """
        try:
            model.reshape({name: list(shape) for name, shape in shapes.items()})
            return OpenVinoSession(self._path, openvino.Core().compile_model(model, self._device, self._options))
        except RuntimeError as error:
            raise ArtifactError(f"openvino cannot compile {self._path} for {shapes}: {_reason(error)}") from error

    def close(self) -> None:
        """See `Session.close`."""
        self._model = self._session = None


class OpenVino:
    """Loads ``openvino_model.xml`` (or an ONNX file) and ``openvino_model_int8.xml``.

    Weights are fp32 or int8 in the file; which floating-point precision it computes in is an option.
    """

    name = "openvino"

    def model_file(self, deployment: Deployment) -> str:
        """See `Runtime.model_file`."""
        return "openvino_model_int8.xml" if deployment.precision == "int8" else "openvino_model.xml"

    def unavailable(self, deployment: Deployment) -> str | None:
        """See `Runtime.unavailable`."""
        if deployment.device == "cpu":
            return None
        device = _DEVICES[deployment.device]
        found = openvino.Core().available_devices
        if any(name.split(".")[0] == device for name in found):  # several of a kind are GPU.0, GPU.1
            return None
        return f"OpenVINO finds no {device}, only {', '.join(found)}: {_INSTALL[deployment.device]}"

    def load(self, path: Path, deployment: Deployment) -> Session:
        """See `Runtime.load`."""
        check_deployment(self, deployment)
        options, device = self.options(deployment), _DEVICES[deployment.device]
        try:
            core = openvino.Core()
            model = core.read_model(path)
            inputs = {
                port.get_any_name(): (_sizes(port), port.get_element_type().is_integral()) for port in model.inputs
            }
            session: Session
            if deployment.device == "npu":
                session = FixedShapeSession(path, model, device, options)
            else:
                session = OpenVinoSession(path, core.compile_model(model, device, options))
            return with_fixed_sizes(path, session, inputs)
        except RuntimeError as error:
            raise ArtifactError(f"openvino cannot load {path}: {_reason(error)}") from error

    def options(self, deployment: Deployment) -> dict[str, str]:
        """See `Runtime.options`."""
        if deployment.misfit:
            raise TargetError(f"{deployment.name}: {deployment.misfit}")
        unquantised = _UNQUANTISED[deployment.device]
        options = {
            # Always set: on CPUs with bf16 the default would be bf16, on GPUs it is f16.
            "INFERENCE_PRECISION_HINT": _PRECISIONS.get(deployment.precision, unquantised),
            "PERFORMANCE_HINT": "LATENCY",
        }
        if deployment.device == "cpu":
            options["INFERENCE_NUM_THREADS"] = str(deployment.threads)
        if deployment.device != "npu":
            options["NUM_STREAMS"] = "1"
        return options

    def clock(self) -> float:
        """See `Runtime.clock`."""
        return time.perf_counter()


def _sizes(port: openvino.Output) -> tuple[int, ...]:
    """Sizes of an input, -1 where any will do."""
    return tuple(size.get_length() if size.is_static else -1 for size in port.get_partial_shape())


def _reason(error: RuntimeError) -> str:
    """Why OpenVINO refused: the first lines of its errors say where in its sources, the last one says why."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else repr(error)
