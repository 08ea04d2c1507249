"""Turns texts and images into what a model reads: Hugging Face's own tokenizers and image processors."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from transformers import MODEL_MAPPING, AutoConfig, AutoImageProcessor, AutoTokenizer

from instatune_deploy.data.columns import lengths
from instatune_deploy.data.heads import get_head
from instatune_deploy.errors import CheckpointError
from instatune_deploy.values.recipe import Task

#: Characters of a text whose tokens are counted at a time.
_PIECE = 2**16
#: Characters for each token that is kept of a text; what comes after them is read only if they have too few tokens.
_CHARACTERS = 64


class Processor:
    """A model's tokenizer, its image processor, or both.

    Args:
        name: directory or hub name of the model.
        task: decides which of them, and what is asked of it.
        sequence_length: texts are cut to so many tokens.

    Raises:
        CheckpointError: the model comes without one, or with one that the task cannot do with.
    """

    def __init__(self, name: str, task: Task, sequence_length: int) -> None:
        self.task, self.sequence_length, self.head = task, sequence_length, get_head(task)
        reads = self.head.reads
        #: The tokenizer where texts are read, else the image processor.
        self.inner: Any = _load(name, "image" if reads == "image" else "text")
        #: The image processor where images are read.
        self.images: Any = _load(name, "image") if reads == "image-text" else self.inner if reads == "image" else None
        if self.head.traces is None:
            return
        if not self.inner.is_fast:
            raise CheckpointError(f"{name}: {task} needs a fast tokenizer, and the model comes with none")
        if self.head.traces == "words":
            try:
                self.inner([["a"]], is_split_into_words=True)
            except AssertionError:  # a tokenizer that reads spaces must be told to put one before each word
                self.inner = _load(name, "text", add_prefix_space=True)

    def encode_texts(self, texts: list[str], pairs: list[str] | None = None) -> dict[str, list[list[int]]]:
        """Token ids and masks of texts, or of pairs of texts, cut to the sequence length and not padded; of a pair the
        longer text is cut first."""
        texts, pairs = self._beginnings(texts), None if pairs is None else self._beginnings(pairs)
        encoded = self.inner(texts, pairs, truncation="longest_first", max_length=self.sequence_length)
        return dict(encoded)

    def encode_words(self, texts: list[list[str]]) -> Any:
        """Token ids and masks of texts given as words, cut to the sequence length and not padded, as a `BatchEncoding`."""
        return self.inner(texts, is_split_into_words=True, truncation=True, max_length=self.sequence_length)

    def encode_questions(self, questions: list[str], contexts: list[str], stride: int) -> Any:
        """Token ids and masks of questions with their contexts, as a `BatchEncoding`.

        A context that is too long comes in windows, each an encoding with the question before it; two neighbours share
        `stride` tokens. ``overflow_to_sample_mapping`` says whose windows they are, ``offset_mapping`` at which characters
        each token begins and ends.
        """
        return self.inner(
            questions, contexts, truncation="only_second", max_length=self.sequence_length, stride=stride,
            return_overflowing_tokens=True, return_offsets_mapping=True,
        )  # fmt: skip

    def room_beside(self, texts: list[str]) -> list[int]:
        """How many tokens of a second text there is room for beside each text; fewer than none where it is too long itself."""
        room = self.sequence_length - self.inner.num_special_tokens_to_add(pair=True)
        return [room - count for count in self._counts(self._beginnings(texts))]

    def _beginnings(self, texts: list[str]) -> list[str]:
        """Each text as far as its first tokens, those that are kept when it is cut, follow from it: a tokenizer reads texts to
        their ends, and only then cuts them."""
        if self.inner.truncation_side != "right":
            return texts
        return [self._beginning(text) for text in texts]

    def _beginning(self, text: str) -> str:
        end = _CHARACTERS * self.sequence_length
        # Twice as many as are kept, for the last ones may be others than in the whole text.
        while end < len(text) and self._counts([text[:end]])[0] < 2 * self.sequence_length:
            end *= 2
        return text[:end]

    def _counts(self, texts: list[str]) -> list[int]:
        """How many tokens each text has, special ones aside."""
        return [len(ids) for ids in self.inner(texts, add_special_tokens=False, verbose=False)["input_ids"]]

    def have_more_tokens(self, texts: list[str], most: int) -> bool:
        """Whether texts have more than about `most` tokens together; what comes after these is not looked at."""
        if sum(len(text.encode()) for text in texts) <= most:  # few tokens are less than a byte
            return False
        count = 0
        for text in texts:
            for start in range(0, len(text), _PIECE):
                count += self._counts([text[start : start + _PIECE]])[0]
                if count > most:
                    return True
        return False

    def encode_images(self, images: list[Image.Image]) -> dict[str, np.ndarray]:
        """`pixel_values` of shape (images, channels, height, width)."""
        return {"pixel_values": self.images(images, return_tensors="np")["pixel_values"].astype(np.float32)}

    @property
    def collator(self) -> Any:
        """Makes a batch of torch tensors of encoded rows, labels included; texts are padded to the longest of the batch."""
        return self.head.collator(self.inner)

    def batches(self, rows: Any, size: int) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """All rows once, as (row numbers, inputs by name without labels).

        Texts come sorted by length, the longest first, so that a batch holds little padding.
        """
        for numbers in self._row_numbers(rows, size):
            yield np.asarray(numbers), self._inputs(rows[numbers])

    def even_batches(self, rows: Any, size: int, tokens: int) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """As `batches`, for speed: texts of a batch are of one length, so that nothing is padded and no mask is needed.

        Where those of one length have less than half of `tokens`, the batch takes the next shorter ones in as well.

        Args:
            size: images a batch; `tokens`: of all texts of a batch together, at most, unless one text alone has more.
        """
        if self.head.reads != "text":
            yield from self.batches(rows, size)
            return
        tokens_of = lengths(rows, "input_ids")
        batch: list[int] = []
        for (number,) in self._row_numbers(rows, 1):
            longest = tokens_of[batch[0]] if batch else 0
            shorter = tokens_of[number] < longest and len(batch) * longest >= tokens // 2
            if batch and (shorter or (len(batch) + 1) * longest > tokens):
                yield np.asarray(batch), self._inputs(rows[batch])
                batch = []
            batch.append(number)
        if batch:
            yield np.asarray(batch), self._inputs(rows[batch])

    def _inputs(self, columns: dict[str, Any]) -> dict[str, np.ndarray]:
        """What the model reads of some rows, texts padded to the longest."""
        arrays: dict[str, Any] = {}
        if self.head.reads != "image":
            left_out = {*self.head.label_columns, "pixel_values"}
            texts = {name: values for name, values in columns.items() if name not in left_out}
            arrays |= self.inner.pad(texts, return_tensors="np")
        if self.images is not None:
            arrays["pixel_values"] = np.stack(columns["pixel_values"])
        return {name: np.asarray(array) for name, array in arrays.items()}

    def labelled_batches(self, rows: Any, size: int) -> Iterator[dict[str, Any]]:
        """All rows once, in batches of torch tensors by name, labels included, as training has them; in the order of
        `batches`."""
        collate = self.collator
        for numbers in self._row_numbers(rows, size):
            yield dict(collate([rows[number] for number in numbers]))

    def _row_numbers(self, rows: Any, size: int) -> Iterator[list[int]]:
        """The numbers of the rows of each batch."""
        order = np.arange(len(rows))
        if self.head.reads != "image":
            order = np.argsort(-lengths(rows, "input_ids"), kind="stable")
        for start in range(0, len(rows), size):
            yield order[start : start + size].tolist()

    def save(self, directory: Path) -> None:
        """Write its files to a model's directory."""
        self.inner.save_pretrained(directory)
        if self.images is not None and self.images is not self.inner:
            self.images.save_pretrained(directory)


def _load(name: str, reads: Literal["text", "image"], *, add_prefix_space: bool | None = None) -> Any:
    """The tokenizer or image processor of a model.

    Raises:
        CheckpointError: it comes without one.
    """
    kind: Any = AutoTokenizer if reads == "text" else AutoImageProcessor
    options: dict[str, bool] = {"trust_remote_code": False}
    if reads == "image":
        options["use_fast"] = False  # fast ones need torchvision
    if add_prefix_space is not None:
        options["add_prefix_space"] = add_prefix_space
    what = "tokenizer" if reads == "text" else "image processor"
    try:
        found = kind.from_pretrained(name, **options)
    except (AttributeError, KeyError, TypeError):  # its files are not there, or transformers knows none of the family
        raise CheckpointError(f"{name}: no {what} can be loaded: the model comes without, save one beside it") from None
    except (OSError, ValueError, ImportError) as error:
        raise CheckpointError(f"{name}: no {what} can be loaded: {' '.join(str(error).split())[:300]}") from None
    if reads == "text":
        _give_what_is_read(found, name)
    return found


def _give_what_is_read(tokenizer: Any, name: str) -> None:
    """Let a model's tokenizer make what the model's forward takes alone, also once it is saved: a DistilBERT may come with the
    tokenizer of a BERT, which makes `token_type_ids`, too."""
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        model: Any = MODEL_MAPPING[type(config)]
    except (OSError, ValueError, KeyError):  # a tokenizer without a model, or with one that transformers does not know
        return
    taken = inspect.signature(model.forward).parameters
    read = [made for made in tokenizer.model_input_names if made in taken]
    if read != tokenizer.model_input_names:
        tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = read
