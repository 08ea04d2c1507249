"""A task's rows: read from where a recipe says, checked, split, and encoded for a model."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, load_dataset, load_from_disk
from PIL import Image

from instatune_deploy.data.processor import Processor
from instatune_deploy.errors import DatasetError
from instatune_deploy.values.recipe import DataSection, Task

_FILE_KINDS = {".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json"}


@dataclass(frozen=True)
class Split:
    """Rows of one split, encoded: `features` holds what the model reads and, where a text is one, its length."""

    name: str
    rows: Dataset
    labels: np.ndarray
    """Class indices, shape (rows,)."""

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class TaskData:
    """What the stages before the confirmation may read: the training and the search split, and the class names."""

    train: Split
    search: Split
    classes: tuple[str, ...]


def open_task_data(data: DataSection, task: Task, processor: Processor, *, seed: int) -> TaskData:
    """The training and search splits of a recipe's data.

    Raises:
        DatasetError: a source is unreadable, empty or mislabelled; says which and where.
    """
    rows, classes = _read_training_rows(data, task)
    held = _held_rows(data, len(rows))
    rows = _shuffled(rows, data, seed)
    train_end = len(rows) - held
    search_end = train_end + data.search_rows
    parts = {"train": rows.select(range(train_end)), "search": rows.select(range(train_end, search_end))}
    splits = {name: _encode(name, part, data, task, processor, classes) for name, part in parts.items()}
    if len(np.unique(splits["train"].labels)) < 2:
        raise DatasetError(f"{data.train}: all {train_end} training rows have the same label")
    return TaskData(splits["train"], splits["search"], classes)


def open_report_split(data: DataSection, task: Task, processor: Processor, *, seed: int) -> Split:
    """The split that only the confirmation reads.

    Raises:
        DatasetError: a source is unreadable, empty or mislabelled; says which and where.
    """
    rows, classes = _read_training_rows(data, task)
    if data.report is not None:
        rows = _read(data.report, data, task)
    else:
        _held_rows(data, len(rows))
        rows = _shuffled(rows, data, seed).select(range(len(rows) - data.report_rows, len(rows)))
    return _encode("report", rows, data, task, processor, classes)


def _shuffled(rows: Dataset, data: DataSection, seed: int) -> Dataset:
    return rows.shuffle(seed=seed) if data.shuffle else rows


def _held_rows(data: DataSection, n: int) -> int:
    """How many of the `n` training rows the search split, and the report split if it is carved from them, take."""
    held = data.search_rows + (data.report_rows if data.report is None else 0)
    if held >= n:
        raise DatasetError(f"{data.train}: {n} rows are too few to keep {held} aside for the search and report splits")
    return held


def _read_training_rows(data: DataSection, task: Task) -> tuple[Dataset, tuple[str, ...]]:
    rows = _read(data.train, data, task)
    return rows, _classes(rows, data)


def _read(source: str, data: DataSection, task: Task) -> Dataset:
    """All rows of a source, with the columns checked.

    Raises:
        DatasetError: see `open_task_data`.
    """
    path = Path(source)
    try:
        if path.is_file() and path.suffix in _FILE_KINDS:
            options = {"delimiter": "\t"} if path.suffix == ".tsv" else {}
            rows = load_dataset(_FILE_KINDS[path.suffix], data_files=str(path), split="train", **options)
        elif path.is_dir() and any((path / name).exists() for name in ("state.json", "dataset_dict.json")):
            rows = load_from_disk(str(path))
        elif path.is_dir():
            rows = load_dataset("imagefolder", data_dir=str(path), split="train")
        elif source.startswith((".", "/")) or path.suffix in _FILE_KINDS:
            raise DatasetError(f"{source}: no such file or directory")
        else:
            name, _, split = source.partition(":")
            name, _, config = name.partition("@")
            rows = load_dataset(name, config or None, split=split or "train")
    except DatasetError:
        raise
    except Exception as error:  # datasets raises dozens of kinds for an unreadable source
        reason = " ".join(str(error.__cause__ or error).split())
        if "corresponds to no data" in reason:
            raise DatasetError(f"{source}: is empty") from None
        raise DatasetError(f"{source}: cannot be read as a dataset: {reason[:300]}") from error
    if isinstance(rows, DatasetDict):
        raise DatasetError(f"{source}: holds the splits {', '.join(rows)}; give the directory of one of them")
    if len(rows) == 0:
        raise DatasetError(f"{source}: is empty")
    for column in (data.text if task == "text-classification" else data.image, data.label):
        if column not in rows.column_names:
            raise DatasetError(f"{source}: has no column {column!r}; its columns: {', '.join(rows.column_names)}")
    return rows


def _classes(rows: Dataset, data: DataSection) -> tuple[str, ...]:
    """Names of the classes, by index."""
    feature = rows.features[data.label]
    if isinstance(feature, ClassLabel):
        return tuple(feature.names)
    values = [value for value in rows[data.label] if value is not None]
    if all(isinstance(value, str) for value in values):
        return tuple(sorted(set(values)))
    if any(isinstance(value, bool) or not isinstance(value, int) for value in values):
        raise DatasetError(f"{data.train}: column {data.label!r} holds neither whole numbers nor class names")
    return tuple(str(index) for index in range(max(values, default=-1) + 1))


def _label_indices(name: str, rows: Dataset, data: DataSection, classes: tuple[str, ...]) -> np.ndarray:
    values = rows[data.label]
    indices = np.empty(len(rows), dtype=np.int64)
    by_name = {known: index for index, known in enumerate(classes)}
    for number, value in enumerate(values):
        index = by_name.get(value, -1) if isinstance(value, str) else value
        if not isinstance(index, int) or not 0 <= index < len(classes):
            raise DatasetError(
                f"{name} split, row {number}: label {value!r} is not one of the {len(classes)} training classes"
            )
        indices[number] = index
    return indices


def _encode(
    name: str, rows: Dataset, data: DataSection, task: Task, processor: Processor, classes: tuple[str, ...]
) -> Split:
    labels = _label_indices(name, rows, data, classes)
    if task == "text-classification":
        texts = rows[data.text]
        for number, text in enumerate(texts):
            if not isinstance(text, str):
                raise DatasetError(f"{name} split, row {number}: {data.text} is {text!r}, not a text")
        encoded = rows.select_columns([data.text]).map(
            lambda batch: processor.encode_texts(batch[data.text]), batched=True, remove_columns=[data.text],
            load_from_cache_file=False, desc=None,
        )  # fmt: skip
        encoded = encoded.add_column("labels", labels)
    else:
        column = data.image

        def transform(batch: Mapping[str, list[Any]]) -> dict[str, Any]:
            images = [_image(value, name) for value in batch[column]]
            return {**processor.encode_images(images), "labels": np.asarray(batch["labels"])}

        # Images are decoded when they are read: a data set of them need not fit in memory.
        encoded = rows.select_columns([column]).add_column("labels", labels).with_transform(transform)
    return Split(name, encoded, labels)


def _image(value: Any, name: str) -> Image.Image:
    """An RGB image from a decoded one, from encoded bytes, or from an array of grey or RGB pixels 0..255."""
    try:
        if isinstance(value, dict):
            value = value["bytes"] or value["path"]
        if isinstance(value, bytes):
            value = Image.open(io.BytesIO(value))
        elif isinstance(value, str):
            value = Image.open(value)
        elif not isinstance(value, Image.Image):
            value = Image.fromarray(np.asarray(value, dtype=np.uint8))
        return value.convert("RGB")
    except Exception as error:
        raise DatasetError(f"{name} split: an image cannot be decoded: {error}") from None
