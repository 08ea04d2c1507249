"""Rows of images with questions: encoded and batched, and what is wrong with them said."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from benchmarks.shapes_task import COLOURS, COUNTS, shapes_row, write_shapes, write_shapes_model
from instatune_deploy.data.dataset import Split, TaskData, open_task_data
from instatune_deploy.data.processor import Processor
from instatune_deploy.errors import CheckpointError, DatasetError
from instatune_deploy.values.recipe import DataSection

TASK = "visual-question-answering"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes_model(tmp_path_factory.mktemp("m") / "model", side=8, patch=4, layers=1)


@pytest.fixture(scope="module")
def processor(model: Path) -> Processor:
    return Processor(str(model), TASK, 8)


def opened(path: Path, processor: Processor) -> TaskData:
    return open_task_data(DataSection(train=str(path), search_rows=5, report_rows=5), TASK, processor, seed=0)


def write(path: Path, **changed: Any) -> Path:
    """Twenty rows, of which the first one's columns may be changed."""
    rng = random.Random(0)
    rows = [shapes_row(rng, 8) for _ in range(20)]
    rows[0] |= changed
    Dataset.from_list(rows).to_parquet(path)
    return path


def test_rows_are_pixels_tokens_and_an_answer(tmp_path: Path, processor: Processor) -> None:
    data = opened(write_shapes(tmp_path / "t.parquet", 200, 0, side=8), processor)
    assert data.classes == tuple(sorted([*COLOURS, *COUNTS]))
    row = data.train.rows[3]
    question = processor.inner.decode(row["input_ids"], skip_special_tokens=True)
    assert question.startswith(("what colour is the", "how many shapes are"))
    assert (row["input_ids"][0], len(row["input_ids"]) <= 8) == (processor.inner.bos_token_id, True)
    assert row["pixel_values"].shape == (3, 8, 8)
    assert (row["labels"], data.classes[row["labels"]]) == (data.train.labels[3], data.classes[data.train.labels[3]])


def test_batches_go_by_the_length_of_questions_and_pad_them(tmp_path: Path, processor: Processor) -> None:
    rows = opened(write(tmp_path / "t.parquet", text="how many"), processor).train.rows
    lengths = [len(rows[number]["input_ids"]) for number in range(len(rows))]
    seen: list[int] = []
    for numbers, inputs in processor.batches(rows, 4):
        seen += numbers.tolist()
        longest = max(lengths[number] for number in numbers)
        assert list(inputs) == ["input_ids", "attention_mask", "pixel_values"]
        assert inputs["input_ids"].shape == inputs["attention_mask"].shape == (len(numbers), longest)
        assert inputs["attention_mask"].sum(axis=1).tolist() == [lengths[number] for number in numbers]
        for number, pixels in zip(numbers.tolist(), inputs["pixel_values"], strict=True):
            assert np.array_equal(pixels, rows[number]["pixel_values"])
    assert [lengths[number] for number in seen] == sorted(lengths, reverse=True)
    assert sorted(seen) == list(range(len(rows)))
    batch = next(processor.labelled_batches(rows, 4))
    assert {name: (tensor.shape[0], tensor.dtype) for name, tensor in batch.items()} == {
        "input_ids": (4, torch.int64), "attention_mask": (4, torch.int64), "labels": (4, torch.int64),
        "pixel_values": (4, torch.float32),
    }  # fmt: skip


def test_the_answers_are_scored(tmp_path: Path, processor: Processor) -> None:
    split: Split = opened(write_shapes(tmp_path / "t.parquet", 60, 0, side=8), processor).search
    right = np.eye(7, dtype=np.float32)[split.labels]
    assert split.score("accuracy", [(np.arange(5), [right])]) == 1.0
    assert split.score("accuracy", [(np.arange(5), [np.roll(right, 1, axis=1)])]) == 0.0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"text": None}, r"split, row \d+: text is None, not a text"),
        ({"image": None}, r"split, row \d+: image is missing"),
        ({"label": None}, r"split, row \d+: label None is not one of the"),
    ],
)
def test_a_row_that_lacks_something_is_refused(
    tmp_path: Path, processor: Processor, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(DatasetError, match=message):
        opened(write(tmp_path / "t.parquet", **changed), processor)


@pytest.mark.parametrize("column", ["image", "text"])
def test_a_source_that_has_only_one_of_both_is_refused(tmp_path: Path, processor: Processor, column: str) -> None:
    rows = Dataset.from_parquet(str(write(tmp_path / "t.parquet"))).remove_columns(column)
    rows.to_parquet(tmp_path / "one.parquet")
    with pytest.raises(DatasetError, match=f"has no column '{column}'"):
        opened(tmp_path / "one.parquet", processor)


@pytest.mark.parametrize(
    ("file", "what"), [("preprocessor_config.json", "image processor"), ("tokenizer", "tokenizer")]
)
def test_a_model_without_one_of_both_is_refused(tmp_path: Path, model: Path, file: str, what: str) -> None:
    for path in model.iterdir():
        if not path.name.startswith(file):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(CheckpointError, match=f"no {what} can be loaded"):
        Processor(str(tmp_path), TASK, 8)
