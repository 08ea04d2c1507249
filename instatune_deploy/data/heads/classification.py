"""A class or a number for a whole text or pair of texts, and what all classes of whole samples have in common."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from datasets import Dataset

from instatune_deploy.data.columns import values
from instatune_deploy.data.heads.base import Head, Outputs, check_texts, class_index, class_names
from instatune_deploy.data.metrics import correlation, mean_divergence, score
from instatune_deploy.errors import DatasetError
from instatune_deploy.values.recipe import DataSection

if TYPE_CHECKING:
    from instatune_deploy.data.processor import Processor


class Classification(Head):
    """A class for each sample. Labels: class indices of shape (samples,)."""

    shares = ("accuracy",)

    def classes(self, rows: Dataset, data: DataSection) -> tuple[str, ...]:
        """See `Head.classes`."""
        where = f"{data.train}: column {data.label!r}"
        return class_names(rows.features[data.label], values(rows, data.label), where)

    def score(self, metric: str, outputs: Outputs, labels: np.ndarray) -> float:
        """See `Head.score`."""
        return score(metric, labels, np.stack([logits for (logits,) in outputs]))

    def divergence(self, outputs: Outputs, reference: Outputs, labels: np.ndarray) -> float:
        """The mean over samples of the Kullback-Leibler divergence of the class probabilities from the other model's, in
        nats."""
        ours, theirs = (np.stack([logits for (logits,) in side]) for side in (outputs, reference))
        return mean_divergence(ours, theirs)

    def hits(self, outputs: Outputs, labels: np.ndarray) -> np.ndarray:
        """See `Head.hits`."""
        right: np.ndarray = np.stack([logits for (logits,) in outputs]).argmax(axis=-1) == labels
        return right

    def margins(self, outputs: Outputs) -> np.ndarray:
        """See `Head.margins`."""
        two = np.sort(np.stack([logits for (logits,) in outputs]), axis=-1)[:, -2:]
        margins: np.ndarray = two[:, 1] - two[:, 0]
        return margins


class TextClassification(Classification):
    """A class for each text or pair of texts."""

    task = "text-classification"

    def columns(self, data: DataSection) -> tuple[str, ...]:
        """See `Head.columns`."""
        return (*_text_columns(data), data.label)

    def encode(
        self, name: str, rows: Dataset, data: DataSection, processor: Processor, classes: tuple[str, ...]
    ) -> tuple[Dataset, np.ndarray]:
        """See `Head.encode`."""
        labels = class_indices(name, rows, data, classes)
        return encode_texts(name, rows, data, processor).add_column("labels", labels), labels


class TextRegression(Head):
    """A number for each text or pair of texts, such as how alike two sentences are. Labels: numbers of shape (samples,)."""

    task = "text-regression"

    def columns(self, data: DataSection) -> tuple[str, ...]:
        """See `Head.columns`."""
        return (*_text_columns(data), data.label)

    def classes(self, rows: Dataset, data: DataSection) -> tuple[str, ...]:
        """See `Head.classes`."""
        return (data.label,)

    def encode(
        self, name: str, rows: Dataset, data: DataSection, processor: Processor, classes: tuple[str, ...]
    ) -> tuple[Dataset, np.ndarray]:
        """See `Head.encode`."""
        labels = np.empty(len(rows), dtype=np.float64)
        for number, value in enumerate(values(rows, data.label)):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise DatasetError(f"{name} split, row {number}: {data.label} is {value!r}, not a number")
            labels[number] = value
        return encode_texts(name, rows, data, processor).add_column("labels", labels), labels

    def score(self, metric: str, outputs: Outputs, labels: np.ndarray) -> float:
        """See `Head.score`."""
        return correlation(metric, labels, np.concatenate([logits for (logits,) in outputs]))

    def divergence(self, outputs: Outputs, reference: Outputs, labels: np.ndarray) -> float:
        """The mean squared difference of the numbers."""
        ours, theirs = (np.concatenate([numbers for (numbers,) in side]) for side in (outputs, reference))
        return float(np.square(ours - theirs).mean())

    def decisions(self, outputs: Sequence[np.ndarray], inputs: Mapping[str, np.ndarray]) -> None:
        """See `Head.decisions`."""


def _text_columns(data: DataSection) -> tuple[str, ...]:
    return (data.text,) if data.text_pair is None else (data.text, data.text_pair)


def encode_texts(name: str, rows: Dataset, data: DataSection, processor: Processor) -> Dataset:
    """Texts or pairs of texts as the model reads them."""
    columns = _text_columns(data)
    check_texts(name, rows, *columns)
    return rows.select_columns(list(columns)).map(
        lambda batch: processor.encode_texts(*(batch[column] for column in columns)), batched=True,
        remove_columns=list(columns), load_from_cache_file=False, desc=None,
    )  # fmt: skip


def class_indices(name: str, rows: Dataset, data: DataSection, classes: tuple[str, ...]) -> np.ndarray:
    """The class of each row as an index, shape (rows,)."""
    index_of = {known: index for index, known in enumerate(classes)}
    indices = np.empty(len(rows), dtype=np.int64)
    for number, value in enumerate(values(rows, data.label)):
        index = class_index(value, index_of)
        if index is None:
            raise DatasetError(
                f"{name} split, row {number}: label {value!r} is not one of the {len(classes)} training classes"
            )
        indices[number] = index
    return indices
