"""A task's rows: read from where a recipe says, checked, split, and encoded for a model."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Value, load_dataset, load_from_disk
from datasets import config as datasets_config
from pyarrow.dataset import ParquetFragmentScanOptions

from instatune_deploy.data.heads import get_head
from instatune_deploy.data.heads.base import Head, element_of
from instatune_deploy.data.processor import Processor
from instatune_deploy.errors import DatasetError
from instatune_deploy.values.hashing import content_key
from instatune_deploy.values.recipe import DataSection, Task

#: A model's outputs: row numbers, and for each of the head's outputs an array, batch first.
Batches = Iterable[tuple[np.ndarray, Sequence[np.ndarray]]]

#: Files that can be read as rows, by suffix.
FILE_KINDS = {".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json"}

#: How some of them are read. With buffers that it fills ahead, pyarrow takes more memory the more rows a file has.
_READING: dict[str, dict[str, Any]] = {
    ".tsv": {"delimiter": "\t"},
    ".parquet": {"fragment_scan_options": ParquetFragmentScanOptions(pre_buffer=False)},
}


#: A field in quotes, those inside it doubled.
_QUOTED = re.compile(r'"(?:[^"]|"")*"')


@dataclass(frozen=True)
class Split:
    """Samples of one split, encoded.

    Args:
        rows: what the model reads and learns from; a sample is one row, or several where a text is read in windows.
        labels: what predictions are scored against, one a sample; its form is the head's, for classification class
            indices of shape (samples,).
        head: of the task.
    """

    name: str
    rows: Dataset
    labels: Any
    head: Head

    def __len__(self) -> int:
        return len(self.labels)

    def score(self, metric: str, batches: Batches) -> float:
        """`metric` of a model's outputs for all rows.

        Args:
            batches: see `Batches`.
        """
        return self.head.score(metric, self._in_order(batches), self.labels)

    def divergence(self, batches: Batches, reference: Batches) -> float | None:
        """How far a model's outputs for all rows are from another's; None where the task has no measure of it.

        Args:
            batches, reference: see `Batches`.
        """
        return self.head.divergence(self._in_order(batches), self._in_order(reference), self.labels)

    def _in_order(self, batches: Batches) -> list[tuple[np.ndarray, ...]]:
        """The outputs for each row; of two for one row the later one counts."""
        outputs: list[tuple[np.ndarray, ...]] = [()] * len(self.rows)
        for numbers, arrays in batches:
            for number, *own in zip(numbers.tolist(), *arrays, strict=True):
                outputs[number] = tuple(own)
        return outputs


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
    head = get_head(task)
    rows = _read(data.train, data, head)
    classes = head.classes(rows, data)
    held = _held_rows(data, len(rows))
    rows = _shuffled(rows, data, seed)
    train_end = len(rows) - held
    search_end = train_end + data.search_rows
    parts = {"train": rows.select(range(train_end)), "search": rows.select(range(train_end, search_end))}
    splits = {name: _encode(name, part, data, head, processor, classes) for name, part in parts.items()}
    if not head.differ(splits["train"].labels):
        raise DatasetError(f"{data.train}: all {train_end} training rows have the same label")
    return TaskData(splits["train"], splits["search"], classes)


def open_report_split(data: DataSection, task: Task, processor: Processor, *, seed: int) -> Split:
    """The split that only the confirmation reads.

    Raises:
        DatasetError: a source is unreadable, empty or mislabelled; says which and where.
    """
    head = get_head(task)
    trained = rows = _read(data.train, data, head)
    classes = head.classes(rows, data)
    if data.report is not None:
        rows = _named_alike(_read(data.report, data, head), trained, head.columns(data)[-1], classes)
    else:
        _held_rows(data, len(rows))
        rows = _shuffled(rows, data, seed).select(range(len(rows) - data.report_rows, len(rows)))
    return _encode("report", rows, data, head, processor, classes)


def _named_alike(rows: Dataset, trained: Dataset, column: str, classes: tuple[str, ...]) -> Dataset:
    """`rows` with the names of their classes, or tags, where their numbers would mean others than in the training rows."""
    feature, before = (
        element_of(found) or found for found in (rows.features.get(column), trained.features.get(column))
    )
    if isinstance(feature, ClassLabel):
        if tuple(feature.names) == classes or not {*feature.names} & {*classes}:
            return rows

        def name_of(value: Any) -> str | None:
            return None if value is None or value < 0 else feature.names[value]
    elif (
        isinstance(feature, Value) and isinstance(before, Value) and "int" in feature.dtype and "string" in before.dtype
    ):

        def name_of(value: Any) -> str | None:
            return None if value is None else str(value)
    else:
        return rows
    names = [
        [name_of(one) for one in value] if isinstance(value, list) else name_of(value) for value in rows[column]
    ]  # fmt: skip
    return rows.remove_columns(column).add_column(column, names)


def _shuffled(rows: Dataset, data: DataSection, seed: int) -> Dataset:
    return rows.shuffle(seed=seed) if data.shuffle else rows


def _held_rows(data: DataSection, n: int) -> int:
    """How many of the `n` training rows the search split, and the report split if it is carved from them, take."""
    held = data.search_rows + (data.report_rows if data.report is None else 0)
    if held >= n:
        raise DatasetError(f"{data.train}: {n} rows are too few to keep {held} aside for the search and report splits")
    return held


def _encode(
    name: str, rows: Dataset, data: DataSection, head: Head, processor: Processor, classes: tuple[str, ...]
) -> Split:
    encoded, labels = head.encode(name, rows, data, processor, classes)
    return Split(name, encoded, labels, head)


def _read(source: str, data: DataSection, head: Head) -> Dataset:
    """All rows of a source, with the columns checked.

    Raises:
        DatasetError: see `open_task_data`.
    """
    rows = read_rows(source)
    for column in head.columns(data):
        if column not in rows.column_names:
            raise DatasetError(f"{source}: has no column {column!r}; its columns: {', '.join(rows.column_names)}")
    return rows


def read_rows(source: str) -> Dataset:
    """All rows of a source, whatever columns it has.

    Raises:
        DatasetError: it is unreadable or empty; says why.
    """
    path = Path(source)
    try:
        if path.is_file() and path.suffix in FILE_KINDS:
            options = dict(_READING.get(path.suffix, {}))
            if path.suffix == ".tsv":
                options["quoting"] = _quoting(path)
            rows = load_dataset(FILE_KINDS[path.suffix], data_files=str(path), split="train", **options)
        elif path.is_dir() and any((path / name).exists() for name in ("state.json", "dataset_dict.json")):
            rows = load_from_disk(str(_linked(path)))
        elif path.is_dir():
            rows = load_dataset("imagefolder", data_dir=str(path), split="train")
        elif source.startswith((".", "/")) or path.suffix in FILE_KINDS:
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
    return rows


def _quoting(path: Path) -> int:
    """What quotes are in a file of tab-separated values, in the terms of `csv`: text, as in those of GLUE, where a field begins
    with one and is none in quotes, unless a row goes over several lines; else they stand around fields."""
    found, columns = csv.QUOTE_MINIMAL, 0
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in filter(str.strip, lines):
            fields = line.rstrip("\n").split("\t")
            columns = columns or len(fields)
            if len(fields) != columns:
                return csv.QUOTE_MINIMAL
            if any(field.startswith('"') and not _QUOTED.fullmatch(field) for field in fields):
                found = csv.QUOTE_NONE
    return found


def _linked(path: Path) -> Path:
    """A directory of links to what `save_to_disk` wrote, in the cache of `datasets`, which writes what it makes of rows beside
    the files that it reads them from: a user's directory is not to change."""
    saved = sorted((str(file), file.stat().st_mtime_ns) for file in path.resolve().glob("*.json"))
    linked = Path(datasets_config.HF_DATASETS_CACHE) / "saved_to_disk" / content_key(*saved)
    linked.mkdir(parents=True, exist_ok=True)
    for file in path.resolve().iterdir():
        with suppress(FileExistsError):
            (linked / file.name).symlink_to(file)
    return linked
