"""`Head`: what is particular to a task. The other modules ask it and know no task by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from datasets import ClassLabel, Dataset
from transformers import DataCollatorWithPadding

from instatune_deploy.data.columns import values
from instatune_deploy.errors import DatasetError, UnknownNameError
from instatune_deploy.values.recipe import METRICS, DataSection, Task

if TYPE_CHECKING:
    from instatune_deploy.data.processor import Processor

#: A model's outputs for each encoded row: one array for each of `Head.outputs`, without the axis of samples.
Outputs = Sequence[Sequence[np.ndarray]]


class Head(ABC):
    """A task's head: its columns, its labels, what its model reads and gives, and how that is scored."""

    task: Task
    #: What a sample is.
    reads: Literal["text", "image", "image-text"] = "text"
    #: What tokens are traced back to, for which the tokenizer must be a fast one.
    traces: Literal["words", "characters"] | None = None
    #: The model's outputs, by the names that Hugging Face gives them; exported files have the same, in this order.
    outputs: tuple[str, ...] = ("logits",)
    #: Columns of encoded rows that the model's loss needs, beside those that the model reads.
    label_columns: tuple[str, ...] = ("labels",)
    #: Metrics that are the share of samples that are right, where each sample is one row.
    shares: tuple[str, ...] = ()

    @abstractmethod
    def columns(self, data: DataSection) -> tuple[str, ...]:
        """The columns that a source must have; the last holds the labels."""

    @abstractmethod
    def classes(self, rows: Dataset, data: DataSection) -> tuple[str, ...]:
        """Names of what the model gives a logit for, from all training rows.

        Raises:
            DatasetError: they do not show in the rows.
        """

    @abstractmethod
    def encode(
        self, name: str, rows: Dataset, data: DataSection, processor: Processor, classes: tuple[str, ...]
    ) -> tuple[Dataset, Any]:
        """The rows of the split `name` as the model reads and learns them, and what `score` compares with.

        The latter has a length, the number of samples.

        Raises:
            DatasetError: a row is unusable; says which and why.
        """

    @abstractmethod
    def score(self, metric: str, outputs: Outputs, labels: Any) -> float:
        """`metric` of a model's outputs.

        Args:
            outputs: of each row that `encode` gave; tokens may be padded on the right.
            labels: what `encode` gave beside the rows.

        Raises:
            UnknownNameError: the metric does not fit the task.
        """

    def check_metric(self, metric: str, classes: tuple[str, ...]) -> None:
        """Make sure that `metric` can be computed for these classes.

        Raises:
            UsageError: it cannot; says what to do.
        """
        if metric not in METRICS[self.task]:
            raise UnknownNameError("metric", metric, METRICS[self.task])

    def differ(self, labels: Any) -> bool:
        """Whether there is something to learn: labels that are not all the same."""
        return len(np.unique(labels)) > 1

    def decisions(self, outputs: Sequence[np.ndarray], inputs: Mapping[str, np.ndarray]) -> np.ndarray | None:
        """What a model's outputs for a batch decide: a flat array of indices, None where they are numbers.

        Args:
            outputs: arrays in the order of `self.outputs`, batch first; `inputs`: what the model read.
        """
        indices: np.ndarray = outputs[0].argmax(axis=-1)
        return indices

    def hits(self, outputs: Outputs, labels: Any) -> np.ndarray:
        """Which samples are right, for the metrics in `shares`.

        Args:
            outputs, labels: of the same samples; see `score`. The result has the shape (samples,).
        """
        raise NotImplementedError(f"no metric of {self.task} is a share of samples")

    def margins(self, outputs: Outputs) -> np.ndarray | None:
        """By how much the first choice for each row beats the second, where every metric of the task follows from first
        choices; None where it does not. Shape (rows,)."""
        return None

    def divergence(self, outputs: Outputs, reference: Outputs, labels: Any) -> float | None:
        """How far a model's outputs are from another's for the same rows, at least 0; None where the task has no measure of it.

        Args:
            outputs, labels: see `score`; `reference`: the other model's outputs.
        """
        return None

    def collator(self, inner: Any) -> Any:
        """Makes a batch of torch tensors of encoded rows, labels included; `inner` is the tokenizer, where texts are read, or
        the image processor."""
        return DataCollatorWithPadding(inner)


def check_texts(name: str, rows: Dataset, *columns: str) -> None:
    """Make sure that columns of the split `name` hold texts.

    Raises:
        DatasetError: a value is none; says in which row.
    """
    for column in columns:
        for number, text in enumerate(values(rows, column)):
            if not isinstance(text, str):
                raise DatasetError(f"{name} split, row {number}: {column} is {text!r}, not a text")


def element_of(feature: Any) -> Any:
    """The type of what the lists of a column hold; None: it holds no lists."""
    return feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)


def class_names(feature: Any, given: Iterable[Any], where: str) -> tuple[str, ...]:
    """Names of the classes, by index.

    Args:
        feature: the type that the source gives the values; `given`: all of them in the training rows.
        where: names the source and the column in an error.

    Raises:
        DatasetError: they are neither whole numbers nor names.
    """
    if isinstance(feature, ClassLabel):
        return tuple(feature.names)
    known = {value for value in given if value is not None}
    if all(isinstance(value, str) for value in known):
        return tuple(sorted(known))
    if any(isinstance(value, bool) or not isinstance(value, int) for value in known):
        raise DatasetError(f"{where} holds neither whole numbers nor class names")
    return tuple(str(index) for index in range(max(known) + 1))


def class_index(value: Any, index_of: Mapping[str, int]) -> int | None:
    """The index of a class given by index or name; None if it is not one of `index_of`."""
    index = index_of.get(value) if isinstance(value, str) else value
    return index if isinstance(index, int) and 0 <= index < len(index_of) else None
