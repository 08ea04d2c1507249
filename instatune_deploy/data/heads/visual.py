"""A class for an image, or for a question about one: its answer."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset, concatenate_datasets
from PIL import Image
from transformers import DataCollatorWithPadding, default_data_collator

from instatune_deploy.data.heads.classification import Classification, class_indices, encode_texts
from instatune_deploy.data.images import to_rgb
from instatune_deploy.errors import DatasetError
from instatune_deploy.values.recipe import DataSection

if TYPE_CHECKING:
    from instatune_deploy.data.processor import Processor


class ImageClassification(Classification):
    """A class for each image."""

    task = "image-classification"
    reads = "image"

    def columns(self, data: DataSection) -> tuple[str, ...]:
        """See `Head.columns`."""
        return (data.image, data.label)

    def encode(
        self, name: str, rows: Dataset, data: DataSection, processor: Processor, classes: tuple[str, ...]
    ) -> tuple[Dataset, np.ndarray]:
        """See `Head.encode`."""
        labels = class_indices(name, rows, data, classes)
        return _with_images(name, rows.select_columns([data.image]), data.image, labels, processor), labels

    def collator(self, inner: Any) -> Any:
        """See `Head.collator`."""
        return default_data_collator


class VisualQuestionAnswering(Classification):
    """One of a fixed set of answers to each question about an image."""

    task = "visual-question-answering"
    reads = "image-text"

    def columns(self, data: DataSection) -> tuple[str, ...]:
        """See `Head.columns`."""
        return (data.image, data.text, data.label)

    def encode(
        self, name: str, rows: Dataset, data: DataSection, processor: Processor, classes: tuple[str, ...]
    ) -> tuple[Dataset, np.ndarray]:
        """See `Head.encode`."""
        labels = class_indices(name, rows, data, classes)
        texts = encode_texts(name, rows, data, processor)
        found = concatenate_datasets([rows.select_columns([data.image]), texts], axis=1)
        return _with_images(name, found, data.image, labels, processor), labels

    def collator(self, inner: Any) -> Any:
        """See `Head.collator`."""
        return _ImagesAndTexts(inner)


class _ImagesAndTexts:
    """Makes a batch of rows: texts padded to the longest of them, images as they are."""

    def __init__(self, tokenizer: Any) -> None:
        self._pad: Callable[[Any], Mapping[str, Any]] = DataCollatorWithPadding(tokenizer)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        texts = [{name: value for name, value in row.items() if name != "pixel_values"} for row in rows]
        images = [{"pixel_values": row["pixel_values"]} for row in rows]
        return {**self._pad(texts), **default_data_collator(images)}


def _with_images(
    name: str, rows: Dataset, column: str, labels: np.ndarray, processor: Processor
) -> Dataset:  # fmt: skip
    """`rows` with `labels`, and with ``pixel_values`` from the images in `column` in their place, which are decoded when a row
    is read: a data set of them need not fit in memory.

    Raises:
        DatasetError: an image is missing; says in which row.
    """
    found = rows.add_column("labels", labels)
    if found.data.table.column(column).null_count:
        number = found.data.table.column(column).is_null().to_pylist().index(True)
        raise DatasetError(f"{name} split, row {number}: {column} is missing")

    def transform(batch: Mapping[str, list[Any]]) -> dict[str, Any]:
        images = [_image(value, name) for value in batch[column]]
        own = {key: values for key, values in batch.items() if key != column}
        return {**own, **processor.encode_images(images), "labels": np.asarray(batch["labels"])}

    return found.with_transform(transform)


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
        return to_rgb(value)
    except Exception as error:
        raise DatasetError(f"{name} split: an image cannot be decoded: {error}") from None
