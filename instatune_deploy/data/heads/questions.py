"""Answers to questions, found in a context: extractive question answering."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset

from instatune_deploy.data.columns import values
from instatune_deploy.data.heads.base import Head, Outputs, check_texts
from instatune_deploy.data.metrics import answer_score
from instatune_deploy.errors import DatasetError
from instatune_deploy.values.recipe import DataSection

if TYPE_CHECKING:
    from instatune_deploy.data.processor import Processor

#: Longest answer that is looked for, in tokens (run_qa.py's default).
MAX_ANSWER_TOKENS = 30
#: Columns of encoded rows that say whose window one is and where in it the context is; see `Questions.windows`.
_PLACES = ("question_number", "context_from", "starts", "ends")


@dataclass(frozen=True)
class Questions:
    """The right answers of a split. What is derived is read for scoring alone, which training rows are not.

    Args:
        asked: rows with a context and its right answers, one or more, each.
        windows: of each encoded row whose window it is, `question_number`, and where the context is in it: `context_from`,
            the position of its first token, and `starts` and `ends`, the characters of the context at which its tokens
            begin and end.
        data: names the columns of `asked`.
    """

    asked: Dataset
    windows: Dataset
    data: DataSection

    def __len__(self) -> int:
        return len(self.asked)

    @cached_property
    def contexts(self) -> list[str]:
        """The context of each question."""
        return list(values(self.asked, self.data.context))

    @cached_property
    def answers(self) -> list[list[str]]:
        """The right answers to each question."""
        return [list(right["text"]) for right in values(self.asked, self.data.answers)]

    @cached_property
    def rows(self) -> list[list[int]]:
        """Of each question the numbers of its encoded rows, the windows of its context."""
        rows_of: list[list[int]] = [[] for _ in range(len(self))]
        for row, question in enumerate(values(self.windows, "question_number")):
            rows_of[question].append(row)
        return rows_of


class QuestionAnswering(Head):
    """The part of a context that answers a question, as Hugging Face's run_qa.py has it: a context that is too long is read
    in windows, and a window without the answer learns to point at its first token. Labels: `Questions`."""

    task = "question-answering"
    traces = "characters"
    outputs = ("start_logits", "end_logits")
    label_columns = ("start_positions", "end_positions")

    def columns(self, data: DataSection) -> tuple[str, ...]:
        """See `Head.columns`."""
        return (data.question, data.context, data.answers)

    def classes(self, rows: Dataset, data: DataSection) -> tuple[str, ...]:
        """See `Head.classes`."""
        return ("start", "end")

    def encode(
        self, name: str, rows: Dataset, data: DataSection, processor: Processor, classes: tuple[str, ...]
    ) -> tuple[Dataset, Questions]:
        """See `Head.encode`."""
        check_texts(name, rows, data.question, data.context)

        def encode(batch: Mapping[str, list[Any]], numbers: list[int]) -> dict[str, list[Any]]:
            rooms = processor.room_beside(batch[data.question])
            checked = zip(numbers, batch[data.context], batch[data.answers], rooms, strict=True)
            for number, context, right, room in checked:
                where = f"{name} split, row {number}"
                _check_answers(where, context, right, data)
                if room <= data.doc_stride:
                    raise DatasetError(
                        f"{where}: beside its question {max(room, 0)} of sequence_length {processor.sequence_length} tokens "
                        f"are left for the context, no more than doc_stride {data.doc_stride}"
                    )
            return _windows(batch, numbers, data, processor)

        columns = list(self.columns(data))
        encoded = rows.select_columns(columns).map(
            encode, batched=True, with_indices=True, remove_columns=columns, load_from_cache_file=False, desc=None
        )
        labels = Questions(rows.select_columns(columns), encoded.select_columns(list(_PLACES)), data)
        return encoded.remove_columns(list(_PLACES)), labels

    def differ(self, labels: Questions) -> bool:
        """See `Head.differ`: the places of answers do."""
        return True

    def score(self, metric: str, outputs: Outputs, labels: Questions) -> float:
        """See `Head.score`."""
        found = [self._answer(number, outputs, labels) for number in range(len(labels))]
        return answer_score(metric, labels.answers, found)

    def _answer(self, number: int, outputs: Outputs, labels: Questions) -> str:
        """The most probable answer to a question in any window of its context."""
        best, begin, end = -np.inf, 0, 0
        for row in labels.rows[number]:
            window = labels.windows[row]
            context = slice(window["context_from"], window["context_from"] + len(window["starts"]))
            value, first, last = best_span(*(logits[context] for logits in outputs[row]))
            if value > best:
                best, begin, end = value, window["starts"][first], window["ends"][last]
        return labels.contexts[number][begin:end]

    def decisions(self, outputs: Sequence[np.ndarray], inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """See `Head.decisions`."""
        kept = inputs["attention_mask"] == 1
        return np.concatenate([np.where(kept, logits, -np.inf).argmax(axis=-1) for logits in outputs])


def best_span(start: np.ndarray, end: np.ndarray) -> tuple[float, int, int]:
    """The span with the largest sum of its first token's start logit and its last token's end logit: the sum, and both
    positions. Spans are of 1 to `MAX_ANSWER_TOKENS` tokens.

    Args:
        start, end: logits of the context's tokens, shape (tokens,).
    """
    best = (-np.inf, 0, 0)
    for further in range(min(MAX_ANSWER_TOKENS, len(start))):
        sums = start[: len(start) - further] + end[further:]
        first = int(sums.argmax())
        if sums[first] > best[0]:
            best = (float(sums[first]), first, first + further)
    return best


def _check_answers(where: str, context: str, answers: Any, data: DataSection) -> None:
    """Make sure that a row has answers, and that they stand in its context where it says.

    Raises:
        DatasetError: they do not.
    """
    texts, starts = (answers.get(key) if isinstance(answers, dict) else None for key in ("text", "answer_start"))
    if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
        raise DatasetError(f"{where}: {data.answers} is {answers!r:.80}, not {{text: [...], answer_start: [...]}}")
    if not texts:
        raise DatasetError(f"{where}: has no answer; questions without one are not supported, leave them out")
    for text, start in zip(texts, starts, strict=True):
        if not isinstance(text, str) or not text.strip() or not isinstance(start, int) or start < 0:
            raise DatasetError(f"{where}: {text!r:.80} at {start!r} is no answer")
        if context[start : start + len(text)] != text:
            raise DatasetError(
                f"{where}: answer {text!r:.80} does not stand at character {start} of its {data.context}"
            )


def _windows(
    batch: Mapping[str, list[Any]], numbers: Sequence[int], data: DataSection, processor: Processor
) -> dict[str, list[Any]]:
    """Questions of a batch with the windows of their contexts, one a row, and where in it the first answer is."""
    encoded = processor.encode_questions(batch[data.question], batch[data.context], data.doc_stride)
    questions, offsets = encoded.pop("overflow_to_sample_mapping"), encoded.pop("offset_mapping")
    added: dict[str, list[Any]] = {name: [] for name in ("start_positions", "end_positions", *_PLACES)}
    for row, question in enumerate(questions):
        parts = encoded.sequence_ids(row)
        count = parts.count(1)
        first = parts.index(1) if count else 0
        starts, ends = ([offset[side] for offset in offsets[row][first : first + count]] for side in (0, 1))
        answers = batch[data.answers][question]
        begin = answers["answer_start"][0]
        end = begin + len(answers["text"][0])
        inside = count > 0 and starts[0] <= begin and end <= ends[-1]
        added["start_positions"].append(first + bisect_right(starts, begin) - 1 if inside else 0)
        added["end_positions"].append(first + bisect_left(ends, end) if inside else 0)
        added["context_from"].append(first)
        added["starts"].append(starts)
        added["ends"].append(ends)
        added["question_number"].append(numbers[question])
    return {**encoded, **added}
