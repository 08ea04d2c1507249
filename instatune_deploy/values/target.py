"""Where a network will run: `Target`, a kind of device, and `Deployment`, a way to run a network on it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pydantic
import yaml

from instatune_deploy.errors import TargetError, UnknownNameError

Runtime = Literal["onnxruntime", "openvino", "torch", "fake"]
Precision = Literal["fp32", "fp16", "bf16", "int8"]
#: Where a runtime computes: ONNX Runtime's CUDA or TensorRT provider, OpenVINO's GPU or NPU, torch's CUDA.
Device = Literal["cpu", "cuda", "tensorrt", "gpu", "npu"]

_SHORT = {"onnxruntime": "ort", "openvino": "ov"}


@dataclass(frozen=True, order=True)
class Deployment:
    """How a network is run: runtime, arithmetic precision, threads (count), batch (samples a call), device.

    `needs` are CPU instruction sets without which this deployment makes no sense, such as bf16 without hardware for it.
    """

    __pydantic_config__ = pydantic.ConfigDict(extra="forbid")

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


@dataclass(frozen=True)
class Workload:
    """The inputs a target is profiled with, where the recipe does not say: tokens of a text, pixels of an image side."""

    __pydantic_config__ = pydantic.ConfigDict(extra="forbid")

    sequence_length: int = 128
    image_size: int = 224


@dataclass(frozen=True)
class Target:
    """A kind of device: what it needs and which deployments to try on it."""

    __pydantic_config__ = pydantic.ConfigDict(extra="forbid")

    name: str
    description: str
    device: Literal["cpu"]
    deployments: tuple[Deployment, ...]
    instruction_sets: tuple[str, ...] = ()
    workload: Workload = Workload()

    def __post_init__(self) -> None:
        names = [deployment.name for deployment in self.deployments]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"deployments must be at least one and distinct, found {names}")


def read_target(path: Path) -> Target:
    """The target that the YAML file `path` describes.

    Raises:
        TargetError: the file is unreadable or a field is missing, unknown or of the wrong form.
    """
    try:
        data: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        return pydantic.TypeAdapter(Target).validate_python(data)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise TargetError(f"{path}: {field}: {first['msg']}") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise TargetError(f"{path}: {' '.join(str(error).split())}") from None


def find_target(name: str, directories: list[Path]) -> Target:
    """The target called `name`, or the file of that path, from the first of `directories` that has it.

    Raises:
        UnknownNameError: no directory has it; names the nearest.
        TargetError: its file does not validate.
    """
    if name.endswith((".yaml", ".yml")):
        return read_target(Path(name))
    for directory in directories:
        path = directory / f"{name}.yaml"
        if path.is_file():
            return read_target(path)
    raise UnknownNameError("target", name, {path.stem for d in directories for path in d.glob("*.yaml")})
