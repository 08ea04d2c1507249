"""PyTorch: CUDA graphs on NVIDIA GPUs, which need no other runtime; on CPUs eager PyTorch, the baseline that others beat."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.export.passes import move_to_device_pass

from instatune_deploy.device.lowering.torch import TorchFile, read_torch
from instatune_deploy.device.runtimes.base import Session, check_deployment, feed
from instatune_deploy.errors import ArtifactError, TargetError
from instatune_deploy.values.deployment import Deployment

#: A network on the device: tensors by input name to its outputs, such as one of shape (batch, classes).
Network = Callable[[dict[str, torch.Tensor]], tuple[torch.Tensor, ...]]

_WARM_UP_RUNS = 3
# Each holds buffers for the activations of its shapes; a server sees few shapes, for it pads to a few lengths.
_MOST_GRAPHS = 8


class EagerSession:
    """A network run operator by operator on the CPU."""

    def __init__(self, path: Path, network: Network, inputs: tuple[str, ...]) -> None:
        self._path, self._inputs = path, inputs
        self._network: Network | None = network

    def run(self, inputs: dict[str, np.ndarray]) -> tuple[np.ndarray, ...]:
        """See `Session.run`."""
        if self._network is None:
            raise ArtifactError(f"{self._path} is closed")
        arrays = feed(self._inputs, inputs, self._path)
        with torch.inference_mode():
            outputs = self._network({name: _tensor(array) for name, array in arrays.items()})
        return tuple(output.numpy() for output in outputs)

    def close(self) -> None:
        """See `Session.close`."""
        self._network = None


class CapturedGraph:
    """A network as one CUDA graph for inputs of fixed shapes: a run copies them in, launches once and copies back.

    Args:
        network: on the GPU.
        inputs: arrays by input name, whose shapes and types it is captured for.
    """

    def __init__(self, network: Network, inputs: dict[str, np.ndarray]) -> None:
        with torch.no_grad():
            self._host = {name: _tensor(array).clone().pin_memory() for name, array in inputs.items()}
            self._device = {name: tensor.to("cuda") for name, tensor in self._host.items()}
            # Libraries allocate their workspaces in the first runs, which must not happen while capturing, and capturing
            # must not happen on the default stream.
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(_WARM_UP_RUNS):
                    network(self._device)
            torch.cuda.current_stream().wait_stream(side)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._outputs = network(self._device)
            self._results = [torch.empty_like(output, device="cpu", pin_memory=True) for output in self._outputs]

    def run(self, inputs: dict[str, np.ndarray]) -> tuple[np.ndarray, ...]:
        """The outputs for `inputs`, on the host: the GPU is done when this returns."""
        with torch.no_grad():
            for name, array in inputs.items():
                np.copyto(self._host[name].numpy(), array)
                self._device[name].copy_(self._host[name], non_blocking=True)
            self._graph.replay()
            for result, output in zip(self._results, self._outputs, strict=True):
                result.copy_(output, non_blocking=True)
            torch.cuda.current_stream().synchronize()
            return tuple(result.numpy().copy() for result in self._results)


class CudaGraphSession:
    """A network on an NVIDIA GPU, captured as a CUDA graph for each shape of inputs; the oldest are dropped.

    Inputs and outputs are in the host's memory: copying them is part of `run`.
    """

    def __init__(self, path: Path, network: Network, inputs: tuple[str, ...]) -> None:
        self._path, self._inputs = path, inputs
        self._network: Network | None = network
        self._graphs: dict[tuple[tuple[int, ...], ...], CapturedGraph] = {}

    def run(self, inputs: dict[str, np.ndarray]) -> tuple[np.ndarray, ...]:
        """See `Session.run`."""
        if self._network is None:
            raise ArtifactError(f"{self._path} is closed")
        arrays = feed(self._inputs, inputs, self._path)
        shapes = tuple(array.shape for array in arrays.values())
        if shapes not in self._graphs:
            if len(self._graphs) >= _MOST_GRAPHS:
                self._graphs.pop(next(iter(self._graphs)))
            self._graphs[shapes] = CapturedGraph(self._network, arrays)
        return self._graphs[shapes].run(arrays)

    def close(self) -> None:
        """See `Session.close`."""
        self._network = None
        self._graphs.clear()


class TorchRuntime:
    """Loads ``model_<precision>.pt2``; the file's own precision is what it computes in."""

    name = "torch"

    def model_file(self, deployment: Deployment) -> str:
        """See `Runtime.model_file`."""
        return f"model_{deployment.precision}.pt2"

    def unavailable(self, deployment: Deployment) -> str | None:
        """See `Runtime.unavailable`."""
        if deployment.device != "cuda":
            return None
        if not torch.cuda.is_available():
            why = (
                f"PyTorch {torch.__version__} is a build without CUDA: pip install --force-reinstall torch"
                if torch.version.cuda is None
                else f"no GPU or no driver for CUDA {torch.version.cuda}: see nvidia-smi"
            )
            return f"needs an NVIDIA GPU: torch.cuda.is_available() is False ({why})"
        if deployment.precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
            return f"needs a GPU with bf16 (Ampere or later), {torch.cuda.get_device_name()} has none"
        return None

    def load(self, path: Path, deployment: Deployment) -> Session:
        """See `Runtime.load`.

        On a CPU the number of threads is the process's: sessions of different threads cannot be live at once.
        """
        check_deployment(self, deployment)
        file = read_torch(path)
        if file.precision != deployment.precision:
            raise TargetError(f"{deployment.name}: {path} computes in {file.precision}")
        torch.set_num_threads(deployment.threads)
        if deployment.device == "cpu":
            return EagerSession(path, _network(file), file.inputs)
        # fp32 is fp32: TF32 would keep 10 bits of the mantissa.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        moved = TorchFile(move_to_device_pass(file.program, "cuda"), file.inputs, file.precision)
        return CudaGraphSession(path, _network(moved), file.inputs)

    def options(self, deployment: Deployment) -> dict[str, str]:
        """See `Runtime.options`."""
        if deployment.device == "cpu":
            return {"num_threads": str(deployment.threads), "mode": "eager"}
        return {"num_threads": str(deployment.threads), "mode": "cuda graph", "allow_tf32": "False"}

    def clock(self) -> float:
        """See `Runtime.clock`; runs end when the output is on the host, so the host's clock will do."""
        return time.perf_counter()


def _network(file: TorchFile) -> Network:
    """The archive's network, ready to call. Its guards are code, and on every run: they are left out."""
    network: Network = file.program.module(check_guards=False)
    return network


def _tensor(array: np.ndarray) -> torch.Tensor:
    """The array as a tensor that shares its memory, unless that may not be written to."""
    return torch.from_numpy(array if array.flags.writeable else array.copy())
