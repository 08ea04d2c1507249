"""`Fleet`: several sub-networks of one super-network in one directory, and `fleet.json`, which says what each can do."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated

import pydantic

from instatune_deploy.errors import ArtifactError, InfeasibleBudgetError, UnknownNameError
from instatune_deploy.values.documents import adapter, parse_json
from instatune_deploy.values.faults import read_file
from instatune_deploy.values.hashing import sha256_file
from instatune_deploy.values.latency import PERCENTILES
from instatune_deploy.values.manifest import MANIFEST_NAME

FLEET_NAME = "fleet.json"
SCHEMA_VERSION = 1

#: What a member may be called: its name is a path's part, and the name of a model for a server.
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"

_Positive = Annotated[float, pydantic.Field(gt=0)]


def is_fleet(directory: Path) -> bool:
    """Whether `directory` holds a fleet, not one artifact."""
    return (directory / FLEET_NAME).is_file()


@dataclass(frozen=True)
class FleetMember:
    """One artifact of a fleet: where it lies, and what its own manifest says was measured of it.

    Args:
        directory: of the artifact, relative to the fleet's, with ``/`` between its parts.
        deployment: `Deployment.name` of how it is run; `architecture`: of the sub-network.
        p50_ms, p90_ms, p99_ms: latency of a call.
        metric: the task metric (fraction 0..1, or a correlation) on `n` samples of `split`.
        manifest_sha256: of its ``instatune.json``, which has the hashes of all its other files.
    """

    __pydantic_config__ = pydantic.ConfigDict(extra="forbid", allow_inf_nan=False)

    name: Annotated[str, pydantic.Field(pattern=NAME_PATTERN)]
    directory: str
    deployment: str
    architecture: str
    p50_ms: _Positive
    p90_ms: _Positive
    p99_ms: _Positive
    metric: float
    n: Annotated[int, pydantic.Field(gt=0)]
    split: str
    manifest_sha256: Annotated[str, pydantic.Field(pattern=r"^[0-9a-f]{64}$")]

    def percentile_ms(self, percentile: str) -> float:
        """Measured latency of a call at ``p50``, ``p90`` or ``p99``.

        Raises:
            UnknownNameError: it is another percentile.
        """
        if percentile not in PERCENTILES:
            raise UnknownNameError("percentile", percentile, PERCENTILES)
        return {"p50": self.p50_ms, "p90": self.p90_ms, "p99": self.p99_ms}[percentile]


@dataclass(frozen=True)
class Fleet:
    """What `fleet.json` holds: members of one `task` and model `signature`, the fastest first (p50, then by name).

    `metric` is the name of what every member's `metric` is a value of.
    """

    __pydantic_config__ = pydantic.ConfigDict(extra="forbid")

    task: str
    signature: str
    metric: str
    members: tuple[FleetMember, ...]
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        ordered = tuple(sorted(self.members, key=lambda member: (member.p50_ms, member.name)))
        object.__setattr__(self, "members", ordered)

    def by_name(self, name: str) -> FleetMember:
        """The member called `name`.

        Raises:
            UnknownNameError: there is none.
        """
        for member in self.members:
            if member.name == name:
                return member
        raise UnknownNameError("fleet member", name, (member.name for member in self.members))

    def within(self, latency_ms: float, percentile: str = "p50") -> FleetMember:
        """The most accurate member whose measured latency of a call is at most `latency_ms`; of equal ones the fastest.

        Raises:
            InfeasibleBudgetError: none is so fast; names the one nearest to it.
            UnknownNameError: `percentile` is none of ``p50``, ``p90`` and ``p99``.
        """
        fitting = [member for member in self.members if member.percentile_ms(percentile) <= latency_ms]
        if not fitting:
            near = min(self.members, key=lambda member: member.percentile_ms(percentile))
            raise InfeasibleBudgetError(
                f"no member of the fleet has a measured {percentile} of at most {latency_ms:g} ms; nearest: {near.name}, "
                f"{near.percentile_ms(percentile):.3g} ms"
            )
        return max(fitting, key=lambda member: (member.metric, -member.percentile_ms(percentile)))

    def write(self, directory: Path) -> None:
        """Write `fleet.json` to `directory`."""
        text = json.dumps(asdict(self), indent=1, sort_keys=True)
        (directory / FLEET_NAME).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, directory: Path) -> Fleet:
        """The fleet in `directory`, its index held against the manifests of its members.

        The members' other files are not looked at: each manifest has their hashes.

        Raises:
            ArtifactError: it is none, the index is damaged, a member lies outside, or its manifest is missing or changed.
        """
        path = directory / FLEET_NAME

        def parse(text: str) -> Fleet:
            data = parse_json(text)
            if isinstance(data, dict) and data.get("schema_version") != SCHEMA_VERSION:
                raise ArtifactError(
                    f"{path}: schema_version {data.get('schema_version')!r} is unknown, this release reads "
                    f"{SCHEMA_VERSION}: make the fleet again"
                )
            # Strict in JSON's sense: a number is no text, an array will do for a tuple.
            return adapter(Fleet).validate_json(json.dumps(data), strict=True)

        fleet = read_file(path, parse)
        fleet._check(directory)
        return fleet

    def _check(self, directory: Path) -> None:
        """Hold the index against what lies in `directory`.

        Raises:
            ArtifactError: a member is there twice, lies outside, or has another manifest.
        """
        path = directory / FLEET_NAME
        if not self.members:
            raise ArtifactError(f"{path}: has no members")
        for what in ("name", "directory"):
            values = [getattr(member, what) for member in self.members]
            if twice := sorted({value for value in values if values.count(value) > 1}):
                raise ArtifactError(f"{path}: several members have the {what} {', '.join(twice)}")
        for member in self.members:
            inner = PurePosixPath(member.directory)
            plain = str(inner) == member.directory and inner.parts and ".." not in inner.parts
            home = directory.resolve()
            if not plain or inner.is_absolute() or home not in (home / inner).resolve().parents:
                raise ArtifactError(f"{path}: member {member.name}: {member.directory!r} is no directory in the fleet")
            manifest = directory / inner / MANIFEST_NAME
            if not manifest.is_file():
                raise ArtifactError(f"{manifest}: missing, a member of the fleet")
            if sha256_file(manifest) != member.manifest_sha256:
                raise ArtifactError(f"{manifest}: its SHA-256 differs from the fleet's; the file was changed")
