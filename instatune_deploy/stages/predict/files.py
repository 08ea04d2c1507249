"""A predictor as files: trees in LightGBM's own text, all else in one JSON file that has a hash of everything."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from instatune_deploy.errors import ArchitectureError, SpaceError, UsageError
from instatune_deploy.stages.predict.ensemble import Members
from instatune_deploy.stages.predict.linear import PrecisionOffset, linear_from_dict
from instatune_deploy.stages.predict.process import GaussianProcess
from instatune_deploy.stages.predict.quality import PredictorQuality
from instatune_deploy.stages.predict.trees import Trees
from instatune_deploy.values.features import Features
from instatune_deploy.values.space import SearchSpace
from instatune_deploy.workspace import write_json, write_text

SCHEMA_VERSION = 3
INDEX_NAME = "predictor.json"
_TREES = ("boosted", "forest")


def write_predictor(
    directory: Path, *, features: Features, members: Members, weights: Mapping[str, float], reference: str,
    offsets: Mapping[str, PrecisionOffset], quality: PredictorQuality, monotone: bool,
) -> None:  # fmt: skip
    """Write the fields of a predictor into `directory`."""
    trees = {}
    for kind in _TREES:
        for number, text in enumerate(getattr(members, kind).texts):
            write_text(directory / f"{kind}-{number}.txt", text)
            trees[f"{kind}-{number}.txt"] = _sha256(text)
    index = {
        "schema_version": SCHEMA_VERSION,
        "features": features.to_dict(),
        "monotone": monotone,
        "reference": reference,
        "weights": dict(weights),
        "process": members.process.to_dict(),
        "linear": asdict(members.linear),
        "offsets": {precision: asdict(offset) for precision, offset in offsets.items()},
        "quality": asdict(quality),
        "trees_middle": members.boosted.middle,
        "trees_sha256": trees,
    }
    write_json(directory / INDEX_NAME, {**index, "sha256": _digest(index)})  # last: a directory with an index is whole


def read_predictor(directory: Path, space: SearchSpace | None) -> dict[str, Any]:
    """The fields of the predictor in `directory`; where `space` is given it must be for that one.

    Raises:
        UsageError: it is missing, damaged or for another space.
    """
    path = directory / INDEX_NAME
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        if index["schema_version"] != SCHEMA_VERSION:
            raise UsageError(f"schema version {index['schema_version']}, this release reads {SCHEMA_VERSION}")
        fields = _fields(directory, index)
    except OSError as error:
        raise UsageError(f"no predictor in {directory}: {error.filename}: {error.strerror}; fit it again") from None
    except KeyError as error:
        raise UsageError(f"{path}: damaged: lacks {error}; fit the predictor again") from None
    except (TypeError, ValueError, SpaceError, ArchitectureError) as error:
        raise UsageError(f"{path}: damaged: {' '.join(str(error).split())}; fit the predictor again") from None
    except UsageError as error:
        raise UsageError(f"{path}: {error}; fit the predictor again") from None
    if space is not None and space != fields["features"].space:
        raise UsageError(f"{path}: fitted for another search space than the one asked for; fit it again")
    return fields


def _fields(directory: Path, index: dict[str, Any]) -> dict[str, Any]:
    features = Features.from_dict(index["features"])
    texts: dict[str, list[str]] = {kind: [] for kind in _TREES}
    for name, digest in index["trees_sha256"].items():
        # LightGBM reads a changed digit without complaint and predicts something else, so texts are hashed.
        text = (directory / name).read_bytes().decode("utf-8")
        if _sha256(text) != digest:
            raise UsageError(f"damaged: SHA-256 of {name} differs")
        texts[name.split("-")[0]].append(text)
    middle = float(index["trees_middle"])
    fields = {
        "features": features,
        "members": Members(
            process=GaussianProcess.from_dict(features, index["process"]),
            boosted=Trees(middle, tuple(texts["boosted"])),
            forest=Trees(middle, tuple(texts["forest"])),
            linear=linear_from_dict(index["linear"]),
        ),
        "weights": {str(name): float(weight) for name, weight in index["weights"].items()},
        "reference": str(index["reference"]),
        "offsets": {name: PrecisionOffset.from_dict(offset) for name, offset in index["offsets"].items()},
        "quality": PredictorQuality(**index["quality"]),
        "monotone": bool(index["monotone"]),
    }
    if _digest({key: value for key, value in index.items() if key != "sha256"}) != index["sha256"]:
        raise UsageError("damaged: SHA-256 differs")
    return fields


def _digest(index: Mapping[str, Any]) -> str:
    return _sha256(json.dumps(index, sort_keys=True))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
