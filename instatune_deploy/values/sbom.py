"""What an artifact was made of, as a bill of materials (SBOM) in CycloneDX's JSON."""

from __future__ import annotations

import uuid
from pathlib import PurePosixPath
from typing import Any

from instatune_deploy.values.manifest import Manifest

SPEC_VERSION = "1.6"
#: Names of packages where those in a manifest are of their modules; what has no package has none.
_PACKAGES = {"instatune_deploy": "instatune-deploy"}
_MODEL, _MADE_FROM = "artifact", "made-from:"
_MODEL_SUFFIXES = (".bin", ".onnx", ".pt2", ".safetensors", ".xml")


def sbom(manifest: Manifest, name: str) -> dict[str, Any]:
    """The bill of an artifact called `name`: every file with its SHA-256, the packages that made it, and its inputs.

    It depends on the manifest alone: the same one gives the same bill. Inputs are those of the run, a hash of their content where
    they were on its machine, as `workspace.tree_key` has it.
    """
    packages = [_package(package, version) for package, version in sorted(manifest.versions.items())]
    inputs = [
        {
            "type": "data", "bom-ref": f"{_MADE_FROM}{what}", "name": what,
            "properties": [{"name": "instatune:content", "value": content}],
        }
        for what, content in sorted(manifest.made_from.items())
    ]  # fmt: skip
    files = [
        {
            "type": "file", "bom-ref": f"file:{path}", "name": path,
            "hashes": [{"alg": "SHA-256", "content": digest}],
        }
        for path, digest in sorted(manifest.files.items())
    ]  # fmt: skip
    facts = {
        "architecture": manifest.architecture, "signature": manifest.signature, "target": manifest.target,
        "deployment": manifest.deployment.name, "task": manifest.task, "parameters": str(manifest.parameters),
        "macs": str(manifest.macs),
    }  # fmt: skip
    model = {
        "type": "machine-learning-model", "bom-ref": _MODEL, "name": name, "components": files,
        "properties": [{"name": f"instatune:{key}", "value": value} for key, value in facts.items()],
    }  # fmt: skip
    used = [part["bom-ref"] for part in (*inputs, *packages)]
    weights = [file["bom-ref"] for file in files if PurePosixPath(str(file["name"])).suffix in _MODEL_SUFFIXES]
    identity = "".join(sorted(manifest.files.values()))
    return {
        "bomFormat": "CycloneDX", "specVersion": SPEC_VERSION, "version": 1,
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, identity)}",
        "metadata": {"timestamp": manifest.date, "component": model},
        "components": [*packages, *inputs],
        "dependencies": [{"ref": _MODEL, "dependsOn": used}, *({"ref": ref, "dependsOn": used} for ref in weights)],
    }  # fmt: skip


def _package(name: str, version: str) -> dict[str, Any]:
    """A library by its package's URL, or Python itself."""
    if name == "python":
        return {"type": "platform", "bom-ref": f"{name}@{version}", "name": name, "version": version}
    package = _PACKAGES.get(name, name)
    plain = version.partition("+")[0]  # of torch, +cpu says which build
    return {
        "type": "library", "bom-ref": f"{package}@{version}", "name": package, "version": version,
        "purl": f"pkg:pypi/{package}@{plain}",
    }  # fmt: skip
