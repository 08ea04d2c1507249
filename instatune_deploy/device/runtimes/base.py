"""The one seam to what runs a network: `Runtime` loads a file into a `Session`, a `Session` runs it."""

from __future__ import annotations

import ctypes
import importlib
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import numpy as np

from instatune_deploy.errors import MeasurementError, TargetError, UnknownNameError
from instatune_deploy.values.deployment import Deployment


class Session(Protocol):
    """A loaded network."""

    def run(self, inputs: dict[str, np.ndarray]) -> tuple[np.ndarray, ...]:
        """The network's outputs in the order of its file, such as logits of shape (batch, classes).

        Args:
            inputs: arrays by input name, batch first; those the network does not have are ignored.

        Raises:
            MeasurementError: an input that the network has is missing.
        """
        ...

    def close(self) -> None:
        """Free the network and its threads; the session cannot run afterwards."""
        ...


class Runtime(Protocol):
    """A way to run a network's file."""

    name: str

    def model_file(self, deployment: Deployment) -> str:
        """Name of the file in an artifact that this runtime loads for the deployment's precision."""
        ...

    def unavailable(self, deployment: Deployment) -> str | None:
        """What this machine lacks for the deployment's device, in one line with what to install; None if nothing."""
        ...

    def load(self, path: Path, deployment: Deployment) -> Session:
        """The network in `path`, ready to run with the deployment's device, precision and threads; never on another.

        Raises:
            TargetError: the runtime does not offer the deployment's precision, or this machine lacks its device.
            ArtifactError: the file is unreadable or not a network.
        """
        ...

    def options(self, deployment: Deployment) -> dict[str, str]:
        """The settings that `load` makes, for the record."""
        ...

    def clock(self) -> float:
        """Seconds; differences of it are how long runs took."""
        ...


_CLASSES = {"onnxruntime": "OnnxRuntime", "openvino": "OpenVino", "torch": "TorchRuntime", "fake": "FakeRuntime"}


def get_runtime(name: str) -> Runtime:
    """The runtime called `name`; imports it only now.

    Raises:
        UnknownNameError: there is none of that name.
    """
    if name not in _CLASSES:
        raise UnknownNameError("runtime", name, _CLASSES)
    module = importlib.import_module(f"instatune_deploy.device.runtimes.{name}")
    runtime: Runtime = getattr(module, _CLASSES[name])()
    return runtime


def run_file(path: Path, deployment: Deployment, inputs: dict[str, np.ndarray]) -> tuple[np.ndarray, ...]:
    """The outputs of the network in `path` for `inputs`, loaded for this once; raises what `Runtime.load` and
    `Session.run` raise."""
    session = get_runtime(deployment.runtime).load(path, deployment)
    try:
        return session.run(inputs)
    finally:
        session.close()
        del session
        give_back_memory()


def give_back_memory() -> None:
    """Let the system have the memory that was freed, which the C library (glibc; others do not) keeps for later: after a network
    of hundreds of MB it would stand beside the next one's."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def check_deployment(runtime: Runtime, deployment: Deployment) -> None:
    """Make sure that `runtime` can run `deployment` on this machine, and not merely something like it.

    Raises:
        TargetError: it cannot; says why and what to install.
    """
    reason = deployment.misfit or runtime.unavailable(deployment)
    if reason:
        raise TargetError(f"{deployment.name}: {reason}")


def feed(wanted: Iterable[str], inputs: dict[str, np.ndarray], path: Path) -> dict[str, np.ndarray]:
    """Those of `inputs` that the network in `path` wants.

    Raises:
        MeasurementError: one is missing.
    """
    wanted = list(wanted)
    missing = [name for name in wanted if name not in inputs]
    if missing:
        raise MeasurementError(f"{path} needs input {', '.join(missing)}; given: {', '.join(inputs) or 'none'}")
    return {name: inputs[name] for name in wanted}
