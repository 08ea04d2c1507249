"""Where a dataset's rows are: which of its splits are for training, and which could be the report split."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from instatune_deploy.data.dataset import FILE_KINDS
from instatune_deploy.errors import DatasetError, UsageError

#: What splits are called, the likeliest first.
TRAIN = ("train", "training")
REPORT = ("validation", "valid", "val", "dev", "eval", "report", "test", "testing")
_IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff"}


@dataclass(frozen=True)
class Source:
    """What a recipe could name: the training rows, and candidates for the report split, the likeliest first."""

    train: str
    reports: tuple[str, ...] = ()


def find_source(data: str) -> Source:
    """The splits of a file, a directory or a hub dataset (``name``, ``name@config``).

    Raises:
        DatasetError: there is no such dataset, or it has no rows that a recipe can name; says what it has.
    """
    path = Path(data)
    if path.is_file():
        return _file(path)
    if path.is_dir():
        return _directory(path)
    if data.startswith((".", "/", "~")) or path.suffix in FILE_KINDS:
        raise DatasetError(f"{data}: no such file or directory")
    return _hub(data)


def _file(path: Path) -> Source:
    """A file, with those beside it that are other splits by their names."""
    if path.suffix not in FILE_KINDS:
        raise DatasetError(f"{path}: is none of {', '.join(sorted(FILE_KINDS))}, a directory or a hub dataset")
    if _split_of(path.stem) not in TRAIN:
        return Source(str(path))
    beside = [other for other in sorted(path.parent.glob(f"*{path.suffix}")) if _split_of(other.stem) in REPORT]
    return Source(str(path), _in_order({_split_of(other.stem): str(other) for other in reversed(beside)}))


def _directory(path: Path) -> Source:
    """A directory that `datasets` wrote, of files, of splits, or of images."""
    listing = path / "dataset_dict.json"
    if listing.is_file():
        return _named(
            {name: str(path / name) for name in json.loads(listing.read_text(encoding="utf-8"))["splits"]}, path
        )
    if (path / "state.json").is_file():
        return Source(str(path))
    for folder in (path, path / "data"):
        files = [file for file in sorted(folder.glob("*")) if file.suffix in FILE_KINDS]
        if files:
            return _files(files, path)
    inner = {entry.name: str(entry) for entry in sorted(path.iterdir()) if entry.is_dir()}
    if any(_split_of(name) in TRAIN for name in inner):
        return _named(inner, path)
    if any(file.suffix.lower() in _IMAGES for file in path.rglob("*")):
        return Source(str(path))
    raise DatasetError(
        f"{path}: has neither {', '.join(sorted(FILE_KINDS))} files nor images nor what datasets.save_to_disk writes"
    )


def _files(files: list[Path], path: Path) -> Source:
    if len(files) == 1:
        return Source(str(files[0]))
    found: dict[str, str] = {}
    for file in files:
        split = _split_of(file.stem)
        if split in found:
            raise DatasetError(
                f"{path}: {split} is in several files, {Path(found[split]).name} and {file.name} among them; a recipe names one: "
                "join them, as by datasets.load_dataset(...).save_to_disk(...)"
            )
        found[split] = str(file)
    return _named(found, path)


def _named(splits: dict[str, str], path: Path) -> Source:
    """The source of splits by their names.

    Raises:
        UsageError: none of them is for training by its name.
    """
    train = next((where for name, where in splits.items() if _split_of(name) in TRAIN), None)
    if train is None:
        found = ", ".join(map(repr, splits)) or "none"
        raise UsageError(f"{path}: which of its parts is for training? found: {found}; give the path of one as DATA")
    return Source(train, _in_order({_split_of(name): where for name, where in splits.items()}))


def _in_order(splits: dict[str, str]) -> tuple[str, ...]:
    return tuple(splits[name] for name in REPORT if name in splits)


def _split_of(name: str) -> str:
    """The split that a file or folder is named after: ``train`` of ``train-00000-of-00001``; else the name."""
    words = [word for word in re.split(r"[^a-z]+", name.lower()) if word]
    return next((word for word in words if word in (*TRAIN, *REPORT)), name.lower())


def _hub(data: str) -> Source:
    """A dataset of the hub.

    Raises:
        DatasetError: it cannot be reached, or has several configurations and none is named.
    """
    import datasets

    name, _, split = data.partition(":")
    if split:
        return Source(data)
    dataset, _, config = name.partition("@")
    try:
        if not config:
            configs: Iterable[str] = datasets.get_dataset_config_names(dataset)
            if len(known := list(configs)) > 1:
                raise UsageError(f"{dataset}: which configuration? give {dataset}@NAME, one of {', '.join(known[:12])}")
        splits = datasets.get_dataset_split_names(dataset, config or None)
    except UsageError:
        raise
    except Exception as error:  # datasets and the hub raise dozens of kinds
        reason = " ".join(str(error.__cause__ or error).split())
        raise DatasetError(f"{data}: neither a file or directory nor a dataset of the hub: {reason[:200]}") from None
    return _named({split: f"{name}:{split}" for split in splits}, Path(data))
