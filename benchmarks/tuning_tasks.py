"""The tasks that fine-tuning is measured on: models, data, spaces."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from transformers import PreTrainedModel

from instatune_deploy.data.dataset import Split, TaskData, open_report_split, open_task_data
from instatune_deploy.data.processor import Processor
from instatune_deploy.elastic.pretrained import load_config, load_pretrained, space_for
from instatune_deploy.elastic.supernet import Supernet
from instatune_deploy.values.macs import NetworkShape
from instatune_deploy.values.recipe import DataSection, Task
from instatune_deploy.values.space import SearchSpace

#: Of the data's split; trainings have seeds of their own.
DATA_SEED = 0


@dataclass(frozen=True)
class Subject:
    """A task: its model, data and space; of the training and search splits no more rows are read than these say."""

    name: str
    model: str
    task: Task
    data: DataSection
    space: str | dict[str, list[int]] = "paper"
    train_rows: int | None = None
    search_rows: int | None = None
    #: Whether the model was trained on the task already.
    fine_tuned: bool = False


SUBJECTS = {
    "sst2": Subject(
        "sst2", "benchmarks/models/minilm-l6", "text-classification",
        DataSection(
            train="benchmarks/data/sst2/train.parquet", report="benchmarks/data/sst2/validation.parquet",
            text="sentence", search_rows=872, sequence_length=128,
        ),
    ),
    # Pre-trained on the 40,000 training rows by benchmarks/pretrain_vit.py.
    "cifar10": Subject(
        "cifar10", "benchmarks/models/vit-cifar10", "image-classification",
        DataSection(train="benchmarks/data/cifar10/train.parquet", search_rows=5000, report_rows=5000, shuffle=False),
        {"depths": [5, 6, 7, 8, 9], "heads": [2, 3, 4, 5, 6], "ffn": [192, 384, 576, 768]},
        train_rows=2000, search_rows=750, fine_tuned=True,  # what hours of two cores allow
    ),
    # Pre-trained on the same rows by benchmarks/pretrain_resnet.py.
    "resnet_cifar10": Subject(
        "resnet_cifar10", "benchmarks/models/resnet-cifar10", "image-classification",
        DataSection(train="benchmarks/data/cifar10/train.parquet", search_rows=5000, report_rows=5000, shuffle=False),
        train_rows=12_000, search_rows=2000, fine_tuned=True,  # what two hours of one core allow
    ),
    # Made and trained by benchmarks/beit3.py: 8 layers in the place of 12, and the paper's choices in proportion.
    "shapes": Subject(
        "shapes", "benchmarks/models/beit3-shapes", "visual-question-answering",
        DataSection(
            train="benchmarks/data/shapes/train.parquet", report="benchmarks/data/shapes/report.parquet",
            search_rows=500, sequence_length=12,
        ),
        {"depths": [7, 8], "heads": [3, 4, 5, 6], "ffn": [128, 160, 192]},
        fine_tuned=True,
    ),
}  # fmt: skip


class Material:
    """What a task's trainings read."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject

    @cached_property
    def processor(self) -> Processor:
        return Processor(self.subject.model, self.subject.task, self.subject.data.sequence_length)

    @cached_property
    def data(self) -> TaskData:
        data = open_task_data(self.subject.data, self.subject.task, self.processor, seed=DATA_SEED)
        train, search = (
            _first(split, rows)
            for split, rows in ((data.train, self.subject.train_rows), (data.search, self.subject.search_rows))
        )
        return replace(data, train=train, search=search)

    @cached_property
    def report_split(self) -> Split:
        return open_report_split(self.subject.data, self.subject.task, self.processor, seed=DATA_SEED)

    @cached_property
    def space(self) -> SearchSpace:
        return space_for(load_config(self.subject.model), self.subject.space)

    def load_model(self, seed: int) -> PreTrainedModel:
        """The pre-trained model with a task head initialised by `seed`."""
        return load_pretrained(self.subject.model, self.subject.task, self.data.classes, reset_head=False, seed=seed)

    @cached_property
    def full_shape(self) -> NetworkShape:
        """Sizes of the full network, which multiply-accumulates follow from; no seed changes them."""
        return Supernet(self.load_model(0), self.space).shape(self.subject.data.sequence_length)


def _first(split: Split, rows: int | None) -> Split:
    """The first `rows` rows of a split, where a sample is a row."""
    if rows is None:
        return split
    return replace(split, rows=split.rows.select(range(rows)), labels=split.labels[:rows])
