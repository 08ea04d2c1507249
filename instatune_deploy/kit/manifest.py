"""What the files of a kit and of its results hold; reading them says which field of which file is wrong."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import pydantic

from instatune_deploy.device.settings import TimingSettings
from instatune_deploy.errors import ArtifactError
from instatune_deploy.kit.runner import SCHEMA_VERSION
from instatune_deploy.stages.profile import Plan
from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.documents import adapter, parse_json
from instatune_deploy.values.faults import first_fault
from instatune_deploy.values.latency import Machine
from instatune_deploy.values.macs import ConvolutionalShape, ModelShape
from instatune_deploy.values.space import Architecture, SearchSpace


@dataclass(frozen=True)
class Kit:
    """What `kit.json` holds: all that the device measures, and all that makes tables of it here.

    Args:
        device, instruction_sets, accelerator: what the target needs, see `values.target.Target`.
        probes, heldout: networks, as architectures print; `visits` to each in a round.
        models: for each deployment's name the file of each network; `inputs`: its inputs. Paths in the kit.
        sha256: of every file in the kit but this.

    Raises:
        ValueError: fields contradict each other; names the field.
    """

    __pydantic_config__ = pydantic.ConfigDict(extra="forbid")

    package_version: str
    target: str
    device: Literal["cpu", "gpu", "npu"]
    instruction_sets: tuple[str, ...]
    accelerator: str | None
    signature: str
    shape: ModelShape | ConvolutionalShape
    space: dict[str, Any]
    deployments: tuple[Deployment, ...]
    probes: tuple[str, ...]
    heldout: tuple[str, ...]
    visits: dict[str, int]
    settings: TimingSettings
    seed: int
    models: dict[str, dict[str, str]]
    inputs: dict[str, str]
    sha256: dict[str, str]
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        if self.signature != self.shape.signature:
            raise ValueError(f"signature: is {self.signature}, but its shape is {self.shape.signature}")
        networks, names = {*self.probes, *self.heldout}, {deployment.name for deployment in self.deployments}
        if not self.probes or len(networks) != len(self.probes) + len(self.heldout):
            raise ValueError("probes, heldout: must be at least one probe, and each network once")
        if set(self.visits) != networks or min(self.visits.values()) < 1:
            raise ValueError("visits: must name every network, at least once a round")
        if not names or len(names) != len(self.deployments) or set(self.models) != names or set(self.inputs) != names:
            raise ValueError("deployments, models, inputs: must name the same deployments, each once")
        # They become folders.
        if any(part in ("", ".", "..") or "/" in part or "\\" in part for part in (self.target, self.signature)):
            raise ValueError(f"target, signature: {self.target!r} and {self.signature!r} must be names, not paths")

    @property
    def plan(self) -> Plan:
        """The networks that are measured, and how.

        Raises:
            UsageError: a network is malformed, or not one of the space.
        """
        space = SearchSpace.from_dict(self.space)
        probes, heldout = (
            tuple(space.check(Architecture.parse(text)) for text in group) for group in (self.probes, self.heldout)
        )
        return Plan(probes, heldout, self.visits, self.settings, space.dimensions)


@dataclass(frozen=True)
class Run:
    """How a deployment was measured: what the runtime was set to, and when."""

    __pydantic_config__ = pydantic.ConfigDict(extra="forbid")

    options: dict[str, str]
    date: str

    def __post_init__(self) -> None:
        datetime.datetime.fromisoformat(self.date)


@dataclass(frozen=True)
class Results:
    """What `results.json` holds: the deployments that were measured, why the others were not, a hash of every file."""

    __pydantic_config__ = pydantic.ConfigDict(extra="forbid")

    measured: dict[str, Run]
    failed: dict[str, str]
    sha256: dict[str, str]
    schema_version: int


@dataclass(frozen=True)
class Device:
    """What `machine.json` holds."""

    __pydantic_config__ = pydantic.ConfigDict(extra="forbid")

    machine: Machine
    versions: dict[str, str]


Value = TypeVar("Value")


def parse(kind: type[Value], text: bytes, source: str) -> Value:
    """The value of `kind` that JSON describes.

    Raises:
        ArtifactError: it does not, or is of another schema; names the field.
    """
    try:
        data = parse_json(text)
        version = data.get("schema_version", SCHEMA_VERSION) if isinstance(data, dict) else SCHEMA_VERSION
        if version != SCHEMA_VERSION:
            raise ArtifactError(f"{source}: schema_version: is {version}, this release reads {SCHEMA_VERSION}")
        return adapter(kind).validate_python(data)  # type: ignore[arg-type]  # mypy takes no class for hashable
    except pydantic.ValidationError as error:
        raise ArtifactError(f"{source}: {first_fault(error)}") from None
    except ValueError as error:
        raise ArtifactError(f"{source}: not JSON: {error}") from None
