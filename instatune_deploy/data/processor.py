"""Turns texts and images into what a model reads: Hugging Face's own tokenizers and image processors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, DataCollatorWithPadding, default_data_collator

from instatune_deploy.errors import CheckpointError
from instatune_deploy.values.recipe import Task


class Processor:
    """A model's tokenizer or image processor.

    Args:
        name: directory or hub name of the model.
        task: decides which of the two it is.
        sequence_length: texts are cut to so many tokens.

    Raises:
        CheckpointError: the model comes without one.
    """

    def __init__(self, name: str, task: Task, sequence_length: int) -> None:
        self.task, self.sequence_length = task, sequence_length
        kind = AutoTokenizer if task == "text-classification" else AutoImageProcessor
        options = {} if task == "text-classification" else {"use_fast": False}  # fast ones need torchvision
        try:
            self.inner = kind.from_pretrained(name, **options)
        except (OSError, ValueError, ImportError) as error:
            what = "tokenizer" if task == "text-classification" else "image processor"
            raise CheckpointError(f"{name}: no {what} can be loaded: {' '.join(str(error).split())[:300]}") from None

    def encode_texts(self, texts: list[str]) -> dict[str, list[list[int]]]:
        """Token ids and masks, cut to the sequence length and not padded."""
        encoded: dict[str, list[list[int]]] = dict(self.inner(texts, truncation=True, max_length=self.sequence_length))
        return encoded

    def encode_images(self, images: list[Image.Image]) -> dict[str, np.ndarray]:
        """`pixel_values` of shape (images, channels, height, width)."""
        return {"pixel_values": self.inner(images, return_tensors="np")["pixel_values"].astype(np.float32)}

    @property
    def collator(self) -> Any:
        """Makes a batch of torch tensors of rows; texts are padded to the longest of the batch."""
        return DataCollatorWithPadding(self.inner) if self.task == "text-classification" else default_data_collator

    def batches(self, rows: Any, size: int) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """All rows once, as (row numbers, inputs by name without labels).

        Texts come sorted by length, the longest first, so that a batch holds little padding.
        """
        order: Sequence[int] = range(len(rows))
        if self.task == "text-classification":
            lengths = [len(ids) for ids in rows["input_ids"]]
            order = sorted(order, key=lambda i: -lengths[i])
        for start in range(0, len(rows), size):
            numbers = list(order[start : start + size])
            columns = rows[numbers]
            if self.task == "text-classification":
                inputs = {k: v for k, v in columns.items() if k != "labels"}
                arrays = self.inner.pad(inputs, return_tensors="np")
            else:
                arrays = {"pixel_values": np.stack(columns["pixel_values"])}
            yield np.asarray(numbers), {name: np.asarray(array) for name, array in arrays.items()}

    def save(self, directory: Path) -> None:
        """Write its files to a model's directory."""
        self.inner.save_pretrained(directory)
