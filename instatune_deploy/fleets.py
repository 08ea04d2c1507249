"""Artifacts of one super-network gathered into a fleet: one directory in which the weights that they share lie once."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from instatune_deploy.benching import artifact_inputs
from instatune_deploy.device.lowering.pool import POOL, WeightPool, pool_onnx, pool_openvino
from instatune_deploy.device.runtimes.base import run_file
from instatune_deploy.errors import ArtifactError, TargetError, UsageError
from instatune_deploy.stages.export import Artifact, file_deployments, open_artifact
from instatune_deploy.values.fleet import NAME_PATTERN, Fleet, FleetMember
from instatune_deploy.values.front import Measured
from instatune_deploy.values.hashing import content_key, sha256_file
from instatune_deploy.values.manifest import MANIFEST_NAME
from instatune_deploy.workspace import check_new, new_directory

Report = Callable[[str], None]

#: Samples on which outputs are compared with those of the files that weights were taken out of.
ROWS = 4
#: Files whose content is a network, not what prepares its inputs.
_MODEL_SUFFIXES = {".bin", ".onnx", ".pt2", ".safetensors", ".xml"}


@dataclass(frozen=True)
class WrittenFleet:
    """A fleet and what it takes on the disk, in bytes of its blocks; a file with several names counts once.

    Args:
        alone_bytes: by member: what its artifact takes by itself; `own_bytes`: what of the fleet no other member needs.
        stored_bytes: the whole fleet.
    """

    directory: Path
    fleet: Fleet
    alone_bytes: dict[str, int]
    own_bytes: dict[str, int]
    stored_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """For one JSON object."""
        members = [
            {**asdict(member), "alone_bytes": self.alone_bytes[member.name], "own_bytes": self.own_bytes[member.name]}
            for member in self.fleet.members
        ]
        sizes = {"alone_bytes": sum(self.alone_bytes.values()), "stored_bytes": self.stored_bytes}
        return {"fleet": str(self.directory), **asdict(self.fleet), "members": members, **sizes}


def write_fleet(directories: Mapping[str, Path], out: Path, *, report: Report = lambda line: None) -> WrittenFleet:
    """Gather artifacts into the fleet `out`, which appears only when it is complete.

    Every member stays an artifact that Hugging Face, ONNX Runtime and OpenVINO load. The weights of all ONNX files and IRs
    lie in one file, to which every member has hard links; so do other files that several members have alike. A copy
    without hard links works and is larger.

    Args:
        directories: measured artifacts, by the names of the members: letters, digits, ``_``, ``-``, ``.``.
        out: must not exist.

    Raises:
        UsageError: `out` exists, a name will not do, or the artifacts are not of one model, task and report split.
        ArtifactError: one is no artifact, or a file was changed.
    """
    check_new(out)
    if not directories:
        raise UsageError("a fleet needs artifacts: name one at least")
    for name in directories:
        if not re.fullmatch(NAME_PATTERN, name):
            raise UsageError(f"a member cannot be called {name!r}: use letters, digits, _, - and .")
    artifacts = {name: open_artifact(directory) for name, directory in directories.items()}
    _check_alike(list(artifacts.values()))
    with new_directory(out) as draft:
        _write_members(artifacts, draft, report)
        for name, artifact in artifacts.items():
            _check_outputs(artifact, draft / name)
        fleet = _index(artifacts, draft)
        fleet.write(draft)
    alone = {name: sum(disk_blocks(artifact.directory).values()) for name, artifact in artifacts.items()}
    blocks = {name: disk_blocks(out / name) for name in artifacts}
    holders = [inode for of_member in blocks.values() for inode in of_member]
    own = {
        name: sum(size for inode, size in of_member.items() if holders.count(inode) == 1)
        for name, of_member in blocks.items()
    }
    return WrittenFleet(out, fleet, alone, own, sum(disk_blocks(out).values()))


def disk_blocks(directory: Path) -> dict[int, int]:
    """Bytes on the disk of every file below `directory`, by inode, so that one with several names is there once."""
    found = [path.stat() for path in directory.rglob("*") if path.is_file()]
    return {stat.st_ino: 512 * stat.st_blocks for stat in found}


def _check_alike(artifacts: list[Artifact]) -> None:
    """Make sure that any of `artifacts` can answer what another one is asked, and that their figures can be compared.

    Raises:
        UsageError: they differ; says which and in what.
    """
    first = artifacts[0]
    for artifact in artifacts:
        for what, ours, theirs in zip(
            ("model signature", "task", "metric", "number of samples", "labels", "tokenizer or image processor"),
            _common(artifact), _common(first), strict=True,
        ):  # fmt: skip
            if ours != theirs:
                raise UsageError(
                    f"{artifact.directory} and {first.directory} differ in their {what}"
                    + (f": {ours} and {theirs}" if isinstance(ours, (str, int)) else "")
                    + "; a fleet's members are networks of one run"
                )


def _common(artifact: Artifact) -> tuple[Any, ...]:
    """What all members of a fleet have alike: signature, task, metric, samples, labels, processor's files."""
    manifest = artifact.manifest
    config = json.loads((artifact.directory / "config.json").read_text(encoding="utf-8"))
    processor = {
        name: _processor_key(artifact.directory / name, digest)
        for name, digest in manifest.files.items()
        if Path(name).suffix not in _MODEL_SUFFIXES and name != "config.json"
    }
    labels = config.get("id2label")
    return manifest.signature, manifest.task, manifest.metric, _measured(artifact).n, labels, processor


def _measured(artifact: Artifact) -> Measured:
    """What was measured of an artifact.

    Raises:
        UsageError: nothing was.
    """
    if artifact.manifest.measured is None:
        raise UsageError(f"{artifact.directory} was not measured: make it by `select`, or by `export` with --confirm")
    return artifact.manifest.measured


def _processor_key(path: Path, digest: str) -> str:
    """What a processor's file says; how long texts were cut and padded when it was saved does not belong to it."""
    if path.name != "tokenizer.json":
        return digest
    return content_key({**json.loads(path.read_text(encoding="utf-8")), "truncation": None, "padding": None})


def _write_members(artifacts: Mapping[str, Artifact], draft: Path, report: Report) -> None:
    """Every artifact as a directory of `draft`, its weights in a pool, its manifest that of its files now."""
    linked = dict[str, Path]()
    pool_file = draft / POOL
    with pool_file.open("w+b") as stream:
        pool = WeightPool(stream)
        # The largest first: what smaller ones have of its weights begins these.
        for name, artifact in sorted(artifacts.items(), key=lambda pair: (-pair[1].manifest.parameters, pair[0])):
            folder = draft / name
            for file, digest in artifact.manifest.files.items():
                source, destination = artifact.directory / file, folder / file
                destination.parent.mkdir(parents=True, exist_ok=True)
                if source.suffix == ".onnx":
                    pool_onnx(source, destination, pool)
                elif source.suffix == ".xml":
                    pool_openvino(source, destination, pool)
                    _link(pool_file, destination.with_suffix(".bin"))
                elif source.name == POOL or source.with_suffix(".xml").is_file():
                    continue  # the weights of these
                elif digest in linked:
                    _link(linked[digest], destination)
                else:
                    linked[digest] = Path(shutil.copyfile(source, destination))
            _link(pool_file, folder / POOL)
            report(f"{name}: {artifact.manifest.architecture} on {artifact.manifest.deployment.name}")
    pool_file.unlink()
    for name, artifact in artifacts.items():
        artifact.manifest.write(draft / name)


def _link(source: Path, destination: Path) -> None:
    """Give `source` another name; where the file system knows no hard links, or no more of them, make a copy."""
    try:
        os.link(source, destination)
    except OSError:
        shutil.copyfile(source, destination)


def _check_outputs(artifact: Artifact, folder: Path) -> None:
    """Make sure that the files in `folder` compute what the artifact's do, to the bit.

    Raises:
        ArtifactError: one does not.
    """
    inputs = artifact_inputs(artifact, None, ROWS, seed=0)[1]
    for file, deployment in file_deployments(artifact.manifest.deployment).items():
        outputs = []
        for path in (artifact.directory / file, folder / file):
            try:
                outputs.append(run_file(path, deployment, inputs))
            except TargetError:  # nothing that this machine computes in, nor has it been copied for it
                break
        if outputs and not all(np.array_equal(*pair) for pair in zip(*outputs, strict=True)):
            raise ArtifactError(f"{artifact.directory / file}: its outputs are others once its weights lie elsewhere")


def _index(artifacts: Mapping[str, Artifact], draft: Path) -> Fleet:
    """The index of the members in `draft`."""
    members = []
    for name, artifact in artifacts.items():
        manifest, measured = artifact.manifest, _measured(artifact)
        members.append(
            FleetMember(
                name=name, directory=name, deployment=manifest.deployment.name, architecture=manifest.architecture,
                p50_ms=measured.p50_ms, p90_ms=measured.p90_ms, p99_ms=measured.p99_ms, metric=measured.metric,
                n=measured.n, split="report", manifest_sha256=sha256_file(draft / name / MANIFEST_NAME),
            )
        )  # fmt: skip
    common = next(iter(artifacts.values())).manifest
    return Fleet(common.task, common.signature, common.metric, tuple(members))
