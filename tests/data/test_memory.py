"""What training rows take of memory: a few bytes each, whatever they hold."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainingArguments

from benchmarks.shapes_task import write_shapes, write_shapes_model
from instatune_deploy.data.dataset import open_task_data
from instatune_deploy.data.processor import Processor
from instatune_deploy.elastic.pretrained import load_pretrained
from instatune_deploy.elastic.trainer import BucketTrainer
from instatune_deploy.values.recipe import DataSection
from tests.task_data import SECTIONS, write_body, write_rows

#: Numbers of rows and labels take 8 bytes each, and some copies of them for a moment; a text or a list in a list of Python's
#: takes 60 at least, on top of that.
BYTES_A_ROW = 60
#: With whole pieces of a thousand rows left for training.
HELD = {"search_rows": 900, "report_rows": 100}


def extra_bytes_a_row(few: Path, many: Path, difference: int, work: Callable[[Path], None]) -> float:
    """By how much more memory of Python's and NumPy's `work` takes at most on `many` rows than on `few`."""
    peaks = []
    for path in (few, many):
        gc.collect()
        tracemalloc.start()
        work(path)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    return (peaks[1] - peaks[0]) / difference


def read(path: Path, model: Path, task: Any, options: dict[str, Any]) -> None:
    """Read, check and encode the rows, and go through an epoch of their numbers, as a training does."""
    processor = Processor(str(model), task, 16)
    data = open_task_data(DataSection(train=str(path), **HELD, **options), task, processor, seed=0)
    network = load_pretrained(str(model), task, data.classes, reset_head=True, seed=0)
    arguments = TrainingArguments(str(path.parent / "out"), report_to="none", use_cpu=True, remove_unused_columns=False)
    trainer = BucketTrainer(
        model=network, args=arguments, train_dataset=data.train.rows, data_collator=processor.collator
    )
    sampler = trainer._get_train_sampler()
    assert sum(1 for _ in sampler) == len(data.train.rows)


@pytest.mark.parametrize("task", ["text-classification", "token-classification", "question-answering"])
def test_texts(task: str, tmp_path: Path) -> None:
    model = write_body(tmp_path / "model")
    few, many = (write_rows(tmp_path / f"{rows}.parquet", task, rows, seed=0) for rows in (3_000, 15_000))

    def work(path: Path) -> None:
        read(path, model, task, SECTIONS[task])

    work(few)  # what is read once for all
    assert extra_bytes_a_row(few, many, 12_000, work) < BYTES_A_ROW


def test_questions_about_images(tmp_path: Path) -> None:
    model = write_shapes_model(tmp_path / "model", side=8, patch=4, layers=1)
    few, many = (write_shapes(tmp_path / f"{rows}.parquet", rows, 0, side=8) for rows in (3_000, 8_000))

    def work(path: Path) -> None:
        read(path, model, "visual-question-answering", {})

    work(few)
    assert extra_bytes_a_row(few, many, 5_000, work) < BYTES_A_ROW
