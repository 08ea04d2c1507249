"""What a request says in words or images, as a network reads it, and what its outputs say: one codec a task."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from mlserver.errors import InferenceError
from mlserver.types import MetadataTensor
from PIL import Image
from scipy.special import softmax

from instatune_deploy.data.heads.questions import best_span
from instatune_deploy.data.images import to_rgb
from instatune_deploy.data.processor import Processor
from instatune_deploy.serving.batcher import MAX_WAITING
from instatune_deploy.serving.tensors import Input, Output, metadata, read_bytes, read_texts
from instatune_deploy.values.recipe import DataSection, Task

#: What windows of a context share in artifacts that do not say it.
_STRIDE: int = DataSection.model_fields["doc_stride"].default
#: Largest image that is decoded, in pixels: a few bytes may say that they are many.
_MAX_PIXELS = 50_000_000

Outputs = tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Encoded:
    """What the network reads for a request: arrays by input name, rows first; `notes` are what `answer` needs beside."""

    inputs: dict[str, np.ndarray]
    notes: Any = field(default=None)


class TaskCodec(ABC):
    """Encodes a request's words and answers it.

    Args:
        processor: the artifact's tokenizer or image processor; texts are cut to its sequence length, as they were when the
            artifact was measured.
        labels: names of the classes, by index.
        doc_stride: tokens that neighbouring windows of a context share; None: as many as recipes have that do not say it.
    """

    #: Names of BYTES inputs, and of those that may be left out.
    words: tuple[str, ...] = ("text", "text_pair")
    optional: tuple[str, ...] = ("text_pair",)
    #: Of some of them, the network's own input that a request may have in its place.
    tensors: Mapping[str, str] = {}
    #: Outputs beside the network's own: datatype and shape.
    extra: Mapping[str, tuple[str, tuple[int, ...]]] = {"labels": ("BYTES", (-1,)), "scores": ("FP32", (-1,))}

    def __init__(self, processor: Processor, labels: Sequence[str], doc_stride: int | None = None) -> None:
        self.processor, self.labels = processor, np.asarray(labels, dtype=object)
        self.doc_stride = _STRIDE if doc_stride is None else doc_stride

    def describe(self) -> list[MetadataTensor]:
        """The BYTES inputs for a model's metadata."""
        facts: dict[str, Any] = {"content_type": "str", "max_tokens": self.processor.sequence_length}
        return [metadata(name, "BYTES", [-1], **facts, optional=name in self.optional) for name in self.words]

    @abstractmethod
    def encode(self, given: Mapping[str, Input]) -> Encoded:
        """What the network reads for words, which have at least those inputs that may not be left out, and whose place no tensor
        has taken.

        Raises:
            InferenceError: an element is not what it should be.
        """

    @abstractmethod
    def answer(self, own: Mapping[str, np.ndarray], encoded: Encoded) -> list[Output]:
        """All outputs for a request that was `encoded`.

        Args:
            own: the network's, by name.
        """

    def answer_tensors(self, own: Mapping[str, np.ndarray]) -> list[Output]:
        """All outputs for a request of tensors."""
        return self.answer(own, Encoded({}))

    def _padded(self, rows: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Encoded rows as arrays, padded to the longest of them."""
        kept = {name: values for name, values in rows.items() if name in self.processor.inner.model_input_names}
        arrays = self.processor.inner.pad(kept, return_tensors="np")
        return {name: np.asarray(array) for name, array in arrays.items()}


def _own(own: Mapping[str, np.ndarray]) -> list[Output]:
    return [Output(name, array.astype(np.float32, copy=False)) for name, array in own.items()]


class ClassCodec(TaskCodec):
    """Texts or pairs of texts to classes: `labels` are the most probable ones, `scores` their probabilities."""

    def encode(self, given: Mapping[str, Input]) -> Encoded:
        """See `TaskCodec.encode`."""
        texts = [read_texts(given[name]) for name in self.words if name in given]
        return Encoded(self._padded(self.processor.encode_texts(*texts)))

    def answer(self, own: Mapping[str, np.ndarray], encoded: Encoded) -> list[Output]:
        """See `TaskCodec.answer`."""
        return [*_own(own), *self._decided(own["logits"])]

    def _decided(self, logits: np.ndarray) -> list[Output]:
        probabilities = softmax(logits.astype(np.float32), axis=-1)
        best = logits.argmax(axis=-1)
        return [Output("labels", self.labels[best]), Output("scores", probabilities.max(axis=-1))]


class NumberCodec(ClassCodec):
    """Texts or pairs of texts to numbers, in `scores`."""

    extra = {"scores": ("FP32", (-1,))}  # noqa: RUF012

    def _decided(self, logits: np.ndarray) -> list[Output]:
        return [Output("scores", logits[:, 0].astype(np.float32))]


class TagCodec(ClassCodec):
    """Texts, words separated by white space, to a tag for each word: that of its first token, with its probability.

    Rows of fewer words than others end in empty tags; so do words beyond the sequence length. Tensors get a tag a token.
    """

    words = ("text",)
    optional = ()
    extra = {"labels": ("BYTES", (-1, -1)), "scores": ("FP32", (-1, -1))}  # noqa: RUF012

    def encode(self, given: Mapping[str, Input]) -> Encoded:
        """See `TaskCodec.encode`."""
        texts = [text.split() for text in read_texts(given["text"])]
        if not all(texts):
            raise InferenceError("input text: a text has no words")
        encoded = self.processor.encode_words(texts)
        places = np.full((len(texts), max(map(len, texts))), -1)
        for row in range(len(texts)):
            for place, word in reversed(list(enumerate(encoded.word_ids(row)))):
                if word is not None:
                    places[row, word] = place  # in the end that of its first token
        return Encoded(self._padded(encoded), places)

    def answer(self, own: Mapping[str, np.ndarray], encoded: Encoded) -> list[Output]:
        """See `TaskCodec.answer`."""
        if encoded.notes is None:
            return super().answer(own, encoded)
        places = encoded.notes
        logits = np.take_along_axis(own["logits"], np.maximum(places, 0)[:, :, None], axis=1)
        labels, scores = (output.array for output in self._decided(logits))
        found = [Output("labels", np.where(places < 0, "", labels)), Output("scores", np.where(places < 0, 0, scores))]
        return [*_own(own), *found]


@dataclass(frozen=True)
class _Windows:
    """Of each window of a request: its question's number, where its context's tokens are, at which characters they begin
    and end."""

    contexts: list[str]
    questions: list[int]
    first: list[int]
    spans: list[list[tuple[int, int]]]


class AnswerCodec(TaskCodec):
    """Questions and contexts to the parts of the contexts that answer them: `answers`, the characters at which they begin
    and end, and in `scores` the sum of both logits. A long context is read in windows. Tensors get the network's outputs."""

    words = ("question", "context")
    optional = ()
    extra = {  # noqa: RUF012
        "answers": ("BYTES", (-1,)), "scores": ("FP32", (-1,)), "starts": ("INT64", (-1,)), "ends": ("INT64", (-1,)),
    }  # fmt: skip

    def encode(self, given: Mapping[str, Input]) -> Encoded:
        """See `TaskCodec.encode`."""
        questions, contexts = (read_texts(given[name]) for name in self.words)
        rooms = self.processor.room_beside(questions)
        if min(rooms) <= self.doc_stride:
            raise InferenceError(
                f"input question: of {self.processor.sequence_length} tokens one leaves {max(min(rooms), 0)} for its context, "
                f"whose windows share {self.doc_stride}"
            )
        # Each window after the first has at most `room - doc_stride` tokens of its own.
        most = MAX_WAITING * (max(rooms) - self.doc_stride) + sum(rooms)
        if self.processor.have_more_tokens(contexts, most):
            raise InferenceError(f"the contexts come to more than {MAX_WAITING} rows: send less at a time")
        encoded = self.processor.encode_questions(questions, contexts, self.doc_stride)
        numbers, offsets = encoded["overflow_to_sample_mapping"], encoded["offset_mapping"]
        first, spans = [], []
        for row, places in enumerate(offsets):
            parts = encoded.sequence_ids(row)
            first.append(parts.index(1) if 1 in parts else 0)
            spans.append([tuple(place) for place, part in zip(places, parts, strict=True) if part == 1])
        return Encoded(self._padded(encoded), _Windows(contexts, list(numbers), first, spans))

    def answer(self, own: Mapping[str, np.ndarray], encoded: Encoded) -> list[Output]:
        """See `TaskCodec.answer`; the windows' own outputs say nothing without their tokens, so they are left out."""
        windows: _Windows = encoded.notes
        best = [(-np.inf, 0, 0)] * len(windows.contexts)
        for row, (question, first, spans) in enumerate(
            zip(windows.questions, windows.first, windows.spans, strict=True)
        ):
            inside = slice(first, first + len(spans))
            score, begin, end = best_span(own["start_logits"][row, inside], own["end_logits"][row, inside])
            if score > best[question][0]:
                best[question] = (score, spans[begin][0], spans[end][1])
        answers = [context[begin:end] for context, (_, begin, end) in zip(windows.contexts, best, strict=True)]
        scores, starts, ends = (np.asarray(values) for values in zip(*best, strict=True))
        return [
            Output("answers", np.asarray(answers, dtype=object)),
            Output("scores", np.maximum(scores, np.finfo(np.float32).min).astype(np.float32)),
            Output("starts", starts.astype(np.int64)), Output("ends", ends.astype(np.int64)),
        ]  # fmt: skip

    def answer_tensors(self, own: Mapping[str, np.ndarray]) -> list[Output]:
        """See `TaskCodec.answer_tensors`."""
        return _own(own)


class ImageCodec(ClassCodec):
    """Encoded images, such as PNG or JPEG files, to classes. In JSON their bytes are base64."""

    words = ("image",)
    optional = ()

    def describe(self) -> list[MetadataTensor]:
        """See `TaskCodec.describe`."""
        return [metadata("image", "BYTES", [-1], content_type="base64", max_pixels=_MAX_PIXELS)]

    def encode(self, given: Mapping[str, Input]) -> Encoded:
        """See `TaskCodec.encode`."""
        return Encoded(_pixels(self.processor, given["image"]))


class VisualQuestionCodec(ClassCodec):
    """Encoded images, or `pixel_values`, and a question about each, to answers: `labels` are the most probable ones."""

    words = ("image", "text")
    optional = ()
    tensors = {"image": "pixel_values"}  # noqa: RUF012

    def describe(self) -> list[MetadataTensor]:
        """See `TaskCodec.describe`."""
        text = metadata("text", "BYTES", [-1], content_type="str", max_tokens=self.processor.sequence_length)
        return [*ImageCodec(self.processor, []).describe(), text]

    def encode(self, given: Mapping[str, Input]) -> Encoded:
        """See `TaskCodec.encode`."""
        inputs = self._padded(self.processor.encode_texts(read_texts(given["text"])))
        if "image" in given:
            inputs |= _pixels(self.processor, given["image"])
        return Encoded(inputs)


def _pixels(processor: Processor, given: Input) -> dict[str, np.ndarray]:
    """`pixel_values` of an input of encoded images.

    Raises:
        InferenceError: one is none, or has too many pixels.
    """
    return processor.encode_images([_decoded(data) for data in read_bytes(given, base64_text=True)])


def _decoded(data: bytes) -> Image.Image:
    """The image that a file holds, in RGB.

    Raises:
        InferenceError: it is none, or has too many pixels.
    """
    try:
        image = Image.open(io.BytesIO(data))
        if image.width * image.height <= _MAX_PIXELS:
            return to_rgb(image)
    except Exception as error:  # decoders raise what they like
        raise InferenceError(f"input image: an image cannot be decoded: {' '.join(str(error).split()):.200}") from None
    raise InferenceError(f"input image: {image.width}x{image.height} pixels, at most {_MAX_PIXELS} are decoded")


_CODECS: dict[Task, type[TaskCodec]] = {
    "text-classification": ClassCodec,
    "text-regression": NumberCodec,
    "token-classification": TagCodec,
    "question-answering": AnswerCodec,
    "image-classification": ImageCodec,
    "visual-question-answering": VisualQuestionCodec,
}


def get_codec(task: Task, processor: Processor, labels: Sequence[str], doc_stride: int | None = None) -> TaskCodec:
    """The codec of a task; see `TaskCodec`."""
    return _CODECS[task](processor, labels, doc_stride)
