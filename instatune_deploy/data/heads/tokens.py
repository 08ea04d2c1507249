"""A tag for each word of a text: named entities, parts of speech."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset
from transformers import DataCollatorForTokenClassification

from instatune_deploy.data.columns import distinct_elements, values
from instatune_deploy.data.heads.base import Head, Outputs, class_index, class_names, element_of
from instatune_deploy.data.metrics import check_entity_f1, entity_f1, mean_divergence, score
from instatune_deploy.errors import DatasetError, RecipeError
from instatune_deploy.values.recipe import DataSection

if TYPE_CHECKING:
    from instatune_deploy.data.processor import Processor

#: Label of tokens that are neither learnt nor scored; PyTorch's losses pass over it.
IGNORED = -100
#: How tags of entities look: outside, or the beginning, inside, end or single word of an entity of some kind.
_ENTITY_TAG = re.compile(r"O|[BIES](-.+)?")


@dataclass(frozen=True)
class Tags:
    """The right tags of a split.

    Args:
        classes: names of the tags.
        encoded: rows of ``labels``, the tag index of every token, `IGNORED` where none is scored.
    """

    classes: tuple[str, ...]
    encoded: Dataset

    def __len__(self) -> int:
        return len(self.encoded)

    @cached_property
    def rows(self) -> tuple[np.ndarray, ...]:
        """For each row the tag index of every token; read for scoring alone, which training rows are not."""
        return tuple(np.asarray(labels) for labels in values(self.encoded, "labels"))


class TokenClassification(Head):
    """A tag for each word. The first piece of a word carries its tag, as in Hugging Face's run_ner.py; its other pieces and
    special tokens are passed over, and so are words beyond the sequence length. Labels: `Tags`."""

    task = "token-classification"
    traces = "words"

    def columns(self, data: DataSection) -> tuple[str, ...]:
        """See `Head.columns`."""
        return (data.tokens, data.tags)

    def classes(self, rows: Dataset, data: DataSection) -> tuple[str, ...]:
        """See `Head.classes`."""
        element = element_of(rows.features[data.tags])
        where = f"{data.train}: column {data.tags!r}"
        if element is None:
            raise DatasetError(f"{where} holds no lists of tags")
        return class_names(element, (tag for tags in values(rows, data.tags) for tag in tags or ()), where)

    def encode(
        self, name: str, rows: Dataset, data: DataSection, processor: Processor, classes: tuple[str, ...]
    ) -> tuple[Dataset, Tags]:
        """See `Head.encode`."""
        index_of = {known: index for index, known in enumerate(classes)}

        def encode(batch: Mapping[str, list[Any]], numbers: list[int]) -> dict[str, Any]:
            pairs = zip(numbers, batch[data.tokens], batch[data.tags], strict=True)
            tags = [_tag_indices(f"{name} split, row {n}", words, own, data, index_of) for n, words, own in pairs]
            encoded = processor.encode_words(batch[data.tokens])
            labels = [_at_first_pieces(encoded.word_ids(number), own) for number, own in enumerate(tags)]
            return {**encoded, "labels": labels}

        columns = list(self.columns(data))
        encoded = rows.select_columns(columns).map(
            encode, batched=True, with_indices=True, remove_columns=columns, load_from_cache_file=False, desc=None
        )
        return encoded, Tags(classes, encoded.select_columns(["labels"]))

    def check_metric(self, metric: str, classes: tuple[str, ...]) -> None:
        """See `Head.check_metric`."""
        super().check_metric(metric, classes)
        if metric == "entity_f1":
            check_entity_f1()
            other = next((tag for tag in classes if not _ENTITY_TAG.fullmatch(tag)), None)
            if other is not None:
                raise RecipeError(
                    f"metric entity_f1 needs tags such as B-PER, I-PER and O, not {other!r}: name them so, or take accuracy"
                )

    def differ(self, labels: Tags) -> bool:
        """See `Head.differ`."""
        return len(distinct_elements(labels.encoded, "labels") - {IGNORED}) > 1

    def score(self, metric: str, outputs: Outputs, labels: Tags) -> float:
        """See `Head.score`."""
        right: list[np.ndarray] = []
        logits: list[np.ndarray] = []
        for row, (found,) in zip(labels.rows, outputs, strict=True):
            scored = row != IGNORED
            right.append(row[scored])
            logits.append(found[: len(row)][scored])  # beyond a row's own length is the padding of its batch
        if metric != "entity_f1":
            return score(metric, np.concatenate(right), np.concatenate(logits))

        def named(indices: np.ndarray) -> list[str]:
            return [labels.classes[index] for index in indices]

        return entity_f1([named(tags) for tags in right], [named(found.argmax(axis=-1)) for found in logits])

    def divergence(self, outputs: Outputs, reference: Outputs, labels: Tags) -> float:
        """The mean over tokens with a tag of the Kullback-Leibler divergence from the other model's probabilities, in nats."""
        ours, theirs = (
            np.concatenate([
                logits[: len(row)][row != IGNORED] for row, (logits,) in zip(labels.rows, side, strict=True)
            ])
            for side in (outputs, reference)
        )  # fmt: skip
        return mean_divergence(ours, theirs)

    def decisions(self, outputs: Sequence[np.ndarray], inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """See `Head.decisions`."""
        indices: np.ndarray = outputs[0].argmax(axis=-1)[inputs["attention_mask"] == 1]
        return indices

    def collator(self, inner: Any) -> Any:
        """See `Head.collator`."""
        return DataCollatorForTokenClassification(inner, label_pad_token_id=IGNORED)


def _tag_indices(where: str, words: Any, tags: Any, data: DataSection, index_of: Mapping[str, int]) -> list[int]:
    """The tag of each word of a row as an index.

    Raises:
        DatasetError: words and tags are not lists of equal length, or one of them is unusable.
    """
    if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
        raise DatasetError(f"{where}: {data.tokens} is {words!r:.80}, not a list of words")
    if not isinstance(tags, list) or len(tags) != len(words):
        count = f"{len(tags)} tags" if isinstance(tags, list) else "no list of tags"
        raise DatasetError(f"{where}: has {len(words)} words and {count}")
    indices = []
    for tag in tags:
        index = class_index(tag, index_of)
        if index is None:
            raise DatasetError(f"{where}: tag {tag!r} is not one of the {len(index_of)} training tags")
        indices.append(index)
    return indices


def _at_first_pieces(words: Sequence[int | None], tags: Sequence[int]) -> list[int]:
    """The tag of each word at its first token, `IGNORED` elsewhere.

    Args:
        words: of each token the word it is a piece of, None for special tokens.
    """
    before = [None, *words[:-1]]
    return [IGNORED if word is None or word == last else tags[word] for last, word in zip(before, words, strict=True)]
