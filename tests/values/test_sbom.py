"""The bill of materials names what made an artifact, and is the same for the same artifact."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

from instatune_deploy.values.documents import adapter
from instatune_deploy.values.manifest import Manifest
from instatune_deploy.values.sbom import sbom

SEED = Path(__file__).parents[1] / "fuzz" / "seeds" / "instatune.json"
INPUTS = {"model": "a" * 32, "data.train": "b" * 32, "super-network": "c" * 32}


def manifest() -> Manifest:
    read = adapter(Manifest).validate_python(json.loads(SEED.read_text(encoding="utf-8")))
    return replace(read, made_from=INPUTS)


def test_it_names_files_packages_and_inputs() -> None:
    made, found = manifest(), sbom(manifest(), "small")
    assert (found["bomFormat"], found["specVersion"]) == ("CycloneDX", "1.6")
    assert re.fullmatch(r"urn:uuid:[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", found["serialNumber"])
    model = found["metadata"]["component"]
    assert {file["name"]: file["hashes"][0]["content"] for file in model["components"]} == made.files
    packages = {part["name"]: part["version"] for part in found["components"] if part["type"] == "library"}
    assert packages == {name.replace("_", "-"): v for name, v in made.versions.items() if name != "python"}
    assert {p["purl"] for p in found["components"] if "torch" in p["name"]} == {"pkg:pypi/torch@2.13.0"}
    inputs = {p["name"]: p["properties"][0]["value"] for p in found["components"] if p["type"] == "data"}
    assert inputs == INPUTS
    known = {part["bom-ref"] for part in (*found["components"], model, *model["components"])}
    assert all({line["ref"], *line["dependsOn"]} <= known for line in found["dependencies"])


def test_it_follows_from_the_manifest_alone() -> None:
    assert sbom(manifest(), "small") == sbom(manifest(), "small")
    other = replace(manifest(), files={**manifest().files, "model.onnx": "0" * 64})
    assert sbom(other, "small")["serialNumber"] != sbom(manifest(), "small")["serialNumber"]
