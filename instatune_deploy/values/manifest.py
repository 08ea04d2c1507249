"""An artifact's manifest, `instatune.json`: what it is, what was measured of it, and a SHA-256 of every file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import pydantic

from instatune_deploy.errors import ArtifactError
from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.documents import adapter, parse_json
from instatune_deploy.values.faults import read_file
from instatune_deploy.values.fixed import FixedSizes
from instatune_deploy.values.front import Measured, Predicted
from instatune_deploy.values.hashing import sha256_file

MANIFEST_NAME = "instatune.json"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Parity:
    """Outputs of an exported file against the torch network on `n` inputs: largest absolute error, and share of equal
    arg-max, which is None for regression."""

    __pydantic_config__ = pydantic.ConfigDict(extra="forbid")

    max_abs_error: float
    argmax_agreement: float | None
    n: int


@dataclass(frozen=True)
class Manifest:
    """What `instatune.json` holds. `files` maps each file's name to its SHA-256, `parity` each model file's to its `Parity`."""

    __pydantic_config__ = pydantic.ConfigDict(extra="forbid")

    architecture: str
    task: str
    metric: str
    target: str
    deployment: Deployment
    signature: str
    macs: int
    parameters: int
    parity: dict[str, Parity]
    predicted: Predicted | None
    measured: Measured | None
    versions: dict[str, str]
    date: str
    files: dict[str, str]
    #: Operations of the int8 file that the accuracy gate keeps in fp32.
    kept_fp32: tuple[str, ...] = ()
    #: ONNX operator set of the plain file, which the others are made from; None: of a release that did not say.
    opset: int | None = None
    #: Sizes that every call of the model files has; None: any.
    fixed: FixedSizes | None = None
    #: Tokens that neighbouring windows of a context share, where it answers questions; None elsewhere, or of a release that did
    #: not say.
    doc_stride: int | None = None
    #: What went into it, by name: hashes of the content of the model, the data and the super-network, or a name on a hub.
    made_from: dict[str, str] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def write(self, directory: Path) -> None:
        """Hash every file of `directory` but the manifest and write the manifest there."""
        names = sorted(p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file())
        files = {name: sha256_file(directory / name) for name in names if name != MANIFEST_NAME}
        text = json.dumps(asdict(replace(self, files=files)), indent=1, sort_keys=True)
        (directory / MANIFEST_NAME).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, directory: Path) -> Manifest:
        """The manifest of `directory`.

        Raises:
            ArtifactError: it is missing or damaged.
        """
        if not (directory / MANIFEST_NAME).is_file():
            raise ArtifactError(
                f"{directory} is not an artifact, for {directory / MANIFEST_NAME} is missing: `instatune-deploy select` and "
                "`export` make those"
            )
        return read_file(directory / MANIFEST_NAME, lambda text: adapter(Manifest).validate_python(parse_json(text)))

    def verify(self, directory: Path) -> None:
        """Check that `directory` holds exactly the manifest's files, byte for byte, and all of them itself.

        Raises:
            ArtifactError: a file is missing, added or changed, or is a link, which may lead elsewhere later; names it.
        """
        links = sorted(p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_symlink())
        if links:
            raise ArtifactError(
                f"{directory / links[0]}: is a link, and an artifact's files are its own: copy it with `cp -rL`"
            )
        found = {p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file()} - {MANIFEST_NAME}
        if found != self.files.keys():
            odd = sorted(found ^ self.files.keys())
            raise ArtifactError(f"{directory}: missing or unexpected files: {', '.join(odd)}")
        for name, digest in self.files.items():
            if sha256_file(directory / name) != digest:
                raise ArtifactError(
                    f"{directory / name}: its SHA-256 differs from the manifest's; the file was changed"
                )
