"""`Deployment`, a way to run a network. Imports nothing, so that it can travel to devices alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Runtime = Literal["onnxruntime", "openvino", "torch", "fake"]
Precision = Literal["fp32", "fp16", "bf16", "int8"]
#: Where a runtime computes: ONNX Runtime's CUDA or TensorRT provider, OpenVINO's GPU or NPU, torch's CUDA.
Device = Literal["cpu", "cuda", "tensorrt", "gpu", "npu"]

_SHORT = {"onnxruntime": "ort", "openvino": "ov"}

#: What each runtime computes in on each device; a runtime does not have the devices that are not named.
PRECISIONS: dict[tuple[str, str], tuple[Precision, ...]] = {
    ("onnxruntime", "cpu"): ("fp32", "int8"),
    ("onnxruntime", "cuda"): ("fp32", "fp16"),
    ("onnxruntime", "tensorrt"): ("fp32", "fp16"),
    ("openvino", "cpu"): ("fp32", "bf16", "int8"),
    ("openvino", "gpu"): ("fp32", "fp16", "int8"),
    ("openvino", "npu"): ("fp16", "int8"),
    ("torch", "cpu"): ("fp32", "bf16"),
    ("torch", "cuda"): ("fp32", "fp16", "bf16"),
}


@dataclass(frozen=True, order=True)
class Deployment:
    """How a network is run: runtime, arithmetic precision, threads (count), batch (samples a call), device.

    `needs` are CPU instruction sets without which this deployment makes no sense, such as bf16 without hardware for it.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012  read by pydantic where it is there

    runtime: Runtime
    precision: Precision = "fp32"
    threads: int = 1
    batch: int = 1
    needs: tuple[str, ...] = ()
    device: Device = "cpu"

    @property
    def name(self) -> str:
        """``ort-fp32-1t`` on a CPU, ``ort-fp16-cuda`` elsewhere; batches of more than one sample are named too."""
        where = f"{self.threads}t" if self.device == "cpu" else self.device
        batch = f"-b{self.batch}" if self.batch != 1 else ""
        return f"{_SHORT.get(self.runtime, self.runtime)}-{self.precision}-{where}{batch}"

    @property
    def arithmetic(self) -> str:
        """What a network's outputs, and so its metric, depend on: ``fp32``, which all runtimes have alike, or another
        precision with its runtime, such as ``ov-int8``, as each runtime rounds and quantises in its own way."""
        return (
            self.precision if self.precision == "fp32" else f"{_SHORT.get(self.runtime, self.runtime)}-{self.precision}"
        )

    def runs_rows_alone(self, *, image: bool) -> bool:
        """Whether a call's rows are run one by one, each without its padding.

        ONNX Runtime's int8 of texts has one scale for all values of a tensor, found anew in each call, so that an answer would
        follow from the rows and the padding beside it. A deployment of several samples a call keeps them together, as it was
        measured.

        Args:
            image: whether the network reads images; their scales are found once, when a file is made.
        """
        return (self.runtime, self.precision, self.batch) == ("onnxruntime", "int8", 1) and not image

    @property
    def misfit(self) -> str | None:
        """Why no machine can run this, such as a precision that the runtime does not have; None if some can."""
        if self.threads < 1 or self.batch < 1:
            return f"threads and batch must be at least 1, found {self.threads} and {self.batch}"
        if self.runtime == "fake":
            return None
        devices = [device for runtime, device in PRECISIONS if runtime == self.runtime]
        if self.device not in devices:
            return f"{self.runtime} does not compute on {self.device}; it does on {', '.join(devices)}"
        offered = PRECISIONS[self.runtime, self.device]
        if self.precision not in offered:
            return (
                f"{self.runtime} does not compute in {self.precision} on {self.device}; it does in {', '.join(offered)}"
            )
        return None
