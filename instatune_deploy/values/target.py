"""`Target`: a kind of device that a network will run on, and the deployments to try there."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pydantic

from instatune_deploy.errors import TargetError, UnknownNameError
from instatune_deploy.values.deployment import Deployment, Device
from instatune_deploy.values.documents import adapter, parse_yaml
from instatune_deploy.values.faults import first_fault

#: Where the deployments of a target of each kind may compute.
_DEVICES: dict[str, tuple[Device, ...]] = {"cpu": ("cpu",), "gpu": ("cuda", "tensorrt", "gpu"), "npu": ("npu",)}


@dataclass(frozen=True)
class Workload:
    """The inputs a target is profiled with, where the recipe does not say: tokens of a text, pixels of an image side."""

    __pydantic_config__ = pydantic.ConfigDict(extra="forbid")

    sequence_length: int = 128
    image_size: int = 224


@dataclass(frozen=True)
class Target:
    """A kind of device: what it needs and which deployments to try on it.

    Args:
        device: where its deployments compute: on the CPU, a GPU (CUDA, TensorRT, OpenVINO's GPU) or an NPU.
        instruction_sets: of the CPU, all needed, as /proc/cpuinfo names them.
        accelerator: the GPU or NPU needed, as a part of its entry in `Machine.accelerators`, in any case: ``cuda``,
            ``H200``, ``openvino gpu``. None: any, where `device` is not the CPU.
        workload: the inputs to profile with, where the recipe does not say.
        kind: name of the target that it is a variant of, such as one in other batches: the same devices serve both. None:
            its own name.

    Raises:
        ValueError: fields contradict each other; names the field.
    """

    __pydantic_config__ = pydantic.ConfigDict(extra="forbid")

    name: str
    description: str
    device: Literal["cpu", "gpu", "npu"]
    deployments: tuple[Deployment, ...]
    instruction_sets: tuple[str, ...] = ()
    workload: Workload = Workload()
    accelerator: str | None = None
    kind: str | None = None

    @property
    def device_kind(self) -> str:
        """What a device that serves it is called."""
        return self.kind or self.name

    def __post_init__(self) -> None:
        names = [deployment.name for deployment in self.deployments]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"deployments must be at least one and distinct, found {names}")
        if self.accelerator is not None and self.device == "cpu":
            raise ValueError(f"accelerator: a target with device cpu needs none, found {self.accelerator!r}")
        if self.accelerator is not None and not self.accelerator.strip():
            raise ValueError("accelerator: must be a part of a GPU's or NPU's name, found an empty one")
        for index, deployment in enumerate(self.deployments):
            if deployment.misfit:
                raise ValueError(f"deployments.{index}: {deployment.misfit}")
            if deployment.device not in _DEVICES[self.device]:
                known = ", ".join(_DEVICES[self.device])
                raise ValueError(
                    f"deployments.{index}.device: a target with device {self.device} computes on {known}, "
                    f"found {deployment.device}"
                )


def read_target(path: Path) -> Target:
    """The target that the YAML file `path` describes.

    Raises:
        TargetError: the file is unreadable or a field is missing, unknown, of the wrong form or contradicts another.
    """
    try:
        target = adapter(Target).validate_python(parse_yaml(path.read_text(encoding="utf-8")))
    except pydantic.ValidationError as error:
        raise TargetError(f"{path}: {first_fault(error)}") from None
    except OSError as error:
        raise TargetError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise TargetError(f"{path}: {' '.join(str(error).split())}") from None
    for index, deployment in enumerate(target.deployments):
        if deployment.runtime == "fake":  # a stand-in for tests, which build their targets without a file
            raise TargetError(f"{path}: deployments.{index}.runtime: fake runs no networks")
    return target


def is_file_name(name: str) -> bool:
    """Whether a target is named by its file's path."""
    return name.endswith((".yaml", ".yml"))


def find_target(name: str, directories: list[Path]) -> Target:
    """The target called `name`, or the file of that path, from the first of `directories` that has it; ``NAME-b8`` is
    the one called ``NAME`` in batches of 8, where there is none of that name itself.

    Raises:
        UnknownNameError: no directory has it; names the nearest.
        TargetError: its file does not validate.
    """
    if is_file_name(name):
        return read_target(Path(name))
    for directory in directories:
        path = directory / f"{name}.yaml"
        if path.is_file():
            target = read_target(path)
            if target.name != name:  # what is kept of it would be looked for under another name
                raise TargetError(
                    f"{path}: name: is {target.name!r}; the file of a target has its name, {target.name}.yaml"
                )
            return target
    in_batch = re.fullmatch(r"(.+)-b([1-9]\d{0,5})", name)
    if in_batch and any((directory / f"{in_batch[1]}.yaml").is_file() for directory in directories):
        found = in_batches(find_target(in_batch[1], directories), int(in_batch[2]))
        if found.name == name:
            return found
    raise UnknownNameError("target", name, {path.stem for d in directories for path in d.glob("*.yaml")})


def in_batches(target: Target, batch: int) -> Target:
    """`target` with all its deployments taking `batch` samples a call, named after that; itself where they do so already."""
    deployments = tuple(replace(deployment, batch=batch) for deployment in target.deployments)
    if deployments == target.deployments:
        return target
    # Two deployments that differed in their batch alone are one now.
    distinct = tuple({deployment.name: deployment for deployment in deployments}.values())
    return replace(target, name=f"{target.name}-b{batch}", deployments=distinct, kind=target.device_kind)


def every_target(directories: list[Path]) -> list[Target]:
    """All targets in `directories` by name, each from the first that has it.

    Raises:
        TargetError: a file does not validate.
    """
    names = {path.stem for directory in directories for path in directory.glob("*.yaml")}
    return [find_target(name, directories) for name in sorted(names)]
