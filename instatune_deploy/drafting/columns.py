"""What the columns of a dataset are, and so the task: from their types, their values and the names people give them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from datasets import ClassLabel, Dataset, Image, Value

from instatune_deploy.data.heads import get_head
from instatune_deploy.errors import DatasetError, UsageError
from instatune_deploy.values.recipe import METRICS, DataSection, Task

#: What a sample is for a model.
Reads = Literal["text", "image", "image-text"]
Kind = Literal["image", "text", "class", "integer", "number", "truth", "words", "tags", "answers", "other"]

_LABELS = (
    "label", "labels", "target", "class", "category", "sentiment", "score", "y", "rating", "stars", "similarity", "answer",
)  # fmt: skip
_TEXTS = ("text", "sentence", "content", "review", "document", "tweet", "comment", "utterance", "body")
_PAIRS = (
    ("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("question", "sentence"),
    ("text_a", "text_b"), ("text1", "text2"), ("query", "passage"), ("text", "text_pair"), ("sentence_a", "sentence_b"),
)  # fmt: skip
_IMAGES = ("image", "img", "picture", "pixels")
#: Of questions about images.
_QUESTIONS = ("question", *_TEXTS)
_TOKENS, _TAGS = ("tokens", "words"), ("tags", "ner_tags", "labels", "pos_tags")
#: Values that are looked at.
SAMPLED = 2000
#: A column of so many different values is taken for classes: at most, and as a share of the rows looked at.
_MOST_CLASSES, _CLASS_SHARE = 1000, 0.1
_FEW_CLASSES = 20


@dataclass(frozen=True)
class Columns:
    """A task, what its columns are called (by the keys of a recipe's `data`), and how that was found."""

    task: Task
    names: dict[str, str]
    why: str


def find_columns(rows: Dataset, reads: Reads, given: Mapping[str, str], *, task: Task | None, source: str) -> Columns:
    """The task of `rows` and its columns.

    Args:
        reads: what the model reads.
        given: columns that the user names, by the keys of a recipe's `data`.
        task: the one that the user names; None: to be found.
        source: names the rows in errors.

    Raises:
        UsageError: the task or a column cannot be told; names the option that says it.
        DatasetError: a column that is named is not there.
    """
    for key, column in given.items():
        if column not in rows.column_names:
            raise DatasetError(
                f"{source}: has no column {column!r}, which --{key.replace('_', '-')} names; its columns: "
                f"{', '.join(rows.column_names)}"
            )
    step = max(1, len(rows) // SAMPLED)
    sample = rows.select(range(0, len(rows), step)[:SAMPLED])
    kinds = {name: _kind(sample, name) for name in rows.column_names}
    search = _Search(sample, kinds, given, source)
    if task is None:
        task = search.task(reads)
    return Columns(task, search.columns(task), search.why)


class _Search:
    """Looks for a task's columns among those of some rows."""

    def __init__(self, rows: Dataset, kinds: dict[str, Kind], given: Mapping[str, str], source: str) -> None:
        self.rows, self.kinds, self.given, self.source = rows, kinds, given, source
        self.why = "as the options say"

    def task(self, reads: Reads) -> Task:
        """The task that the columns are for."""
        if reads != "text":
            return "image-classification" if reads == "image" else "visual-question-answering"
        if self._of("answers") and {"question", "context"} & {*self.rows.column_names, *self.given}:
            return "question-answering"
        if self._of("words") and self._of("tags"):
            return "token-classification"
        if not self._of("text") and self._of("image"):
            raise UsageError(
                f"{self.source}: holds images, but the model reads texts: name another model or other rows"
            )
        if not self._of("text"):
            raise UsageError(
                f"{self.source}: no column holds texts; its columns: {self._described()}; name the task with --task, one of "
                f"{', '.join(METRICS)}"
            )
        return "text-regression" if self.kinds[self._label()] == "number" else "text-classification"

    def columns(self, task: Task) -> dict[str, str]:
        """Those of `task` by the keys of a recipe's `data`."""
        if task in ("text-classification", "text-regression"):
            return {**self._texts(), "label": self._label()}
        if task == "image-classification" and not self._of("image") and self._of("text") and "image" not in self.given:
            raise UsageError(
                f"{self.source}: holds texts, but the model reads images: name another model or other rows"
            )
        if task == "image-classification":
            return {"image": self._one("image", "image", _IMAGES), "label": self._label()}
        if task == "visual-question-answering":
            label = self._label()
            text = self._one("text", "text", _QUESTIONS, but=label)
            return {"image": self._one("image", "image", _IMAGES), "text": text, "label": label}
        if task == "token-classification":
            return {"tokens": self._one("tokens", "words", _TOKENS), "tags": self._one("tags", "tags", _TAGS)}
        # Those that have their usual names.
        section = DataSection.model_validate({"train": self.source, **self.given})
        names = get_head(task).columns(section)
        for column in names:
            if column not in self.rows.column_names:
                raise UsageError(
                    f"{self.source}: {task} needs a column {column!r}; its columns: {self._described()}; name it with "
                    f"--{column.replace('_', '-')}"
                )
        self.why = "by their usual names"
        return {key: value for key, value in section.model_dump().items() if value in names and key != "train"}

    def _label(self) -> str:
        """The column with the class or number of each row."""
        if "label" in self.given:
            return self._check(self.given["label"])
        free = [name for name in self.rows.column_names if name not in self.given.values()]
        classes = [name for name in free if self.kinds[name] == "class"]
        named = [
            name
            for name in free
            if name.lower() in _LABELS and self.kinds[name] in ("class", "integer", "number", "truth", "text")
        ]
        few = [name for name in free if self._has_few_values(name)]
        both = [name for name in classes if name in named]
        for group, why in (
            (both, "by its name and its type"), (classes, "the column of classes"), (named, "by its name"),
            (few, "the column of few different values"),
        ):  # fmt: skip
            if len(group) == 1:
                self.why = f"the label is {why}"
                return self._check(group[0])
            if group:
                break
        which = f"it could be {' or '.join(map(repr, group))}" if group else f"its columns: {self._described()}"
        raise UsageError(f"{self.source}: which column is the label? {which}; name it with --label")

    def _check(self, label: str) -> str:
        """The label's column, if a head can read it."""
        if self.kinds[label] == "truth":
            raise UsageError(
                f"{self.source}: column {label!r} holds true and false; make these the whole numbers 1 and 0"
            )
        return label

    def _has_few_values(self, name: str) -> bool:
        if self.kinds[name] not in ("integer", "text") or name.lower() in ("id", "idx", "index", "guid"):
            return False
        values = self.rows[name]
        different = len(set(values))
        return 2 <= different <= max(_FEW_CLASSES, min(_MOST_CLASSES, _CLASS_SHARE * len(values))) and different < len(
            values
        )

    def _texts(self) -> dict[str, str]:
        """The column of the text, or those of a pair of texts."""
        own = {key: self.given[key] for key in ("text", "text_pair") if key in self.given}
        if "text" in own:
            return own
        texts = [name for name in self._of("text") if name != self._label() and name not in own.values()]
        long = [name for name in texts if not self._has_few_values(name)] or texts
        pairs = [pair for pair in _PAIRS if set(pair) <= set(texts)]
        named = [name for name in long if name.lower() in _TEXTS]
        if len(pairs) == 1 and not own and set(long) <= {*pairs[0]}:
            return dict(zip(("text", "text_pair"), pairs[0], strict=True))
        for group in (long, named):
            if len(group) == 1:
                return {"text": group[0], **own}
        raise UsageError(
            f"{self.source}: which column is the text? it could be {' or '.join(map(repr, long)) or 'none'}; name it with "
            "--text, and the second of a pair with --text-pair"
        )

    def _one(self, key: str, kind: Kind, names: Sequence[str], *, but: str | None = None) -> str:
        """The one column of a kind, by its name if there are several; it is not the column `but`."""
        if key in self.given:
            return self.given[key]
        found = [name for name in self._of(kind) if name != but]
        named = [name for wanted in names for name in found if name.lower() == wanted]
        if len(found) == 1 or named:
            return (named or found)[0]
        option = f"--{key}"
        which = f"it could be {' or '.join(map(repr, found))}" if found else f"its columns: {self._described()}"
        raise UsageError(f"{self.source}: which column holds the {key}? {which}; name it with {option}")

    def _of(self, kind: Kind) -> list[str]:
        return [name for name, found in self.kinds.items() if found == kind]

    def _described(self) -> str:
        return ", ".join(f"{name} ({kind})" for name, kind in self.kinds.items())


def _kind(rows: Dataset, name: str) -> Kind:
    """What a column holds, by its type, or by its first value where the type leaves it open."""
    feature = rows.features[name]
    if isinstance(feature, Image):
        return "image"
    if isinstance(feature, ClassLabel):
        return "class"
    if isinstance(feature, Value):
        return _plain(feature.dtype)
    first = next((value for value in rows[name] if value is not None), None)
    return _nested(first)


def _plain(dtype: str) -> Kind:
    for start, kind in (("int", "integer"), ("uint", "integer"), ("float", "number"), ("bool", "truth")):
        if dtype.startswith(start):
            return kind  # type: ignore[return-value]
    if dtype in ("string", "large_string"):
        return "text"
    return "image" if dtype in ("binary", "large_binary") else "other"


def _nested(value: Any) -> Kind:
    """What a list or a mapping holds."""
    if isinstance(value, dict):
        if {"text", "answer_start"} <= value.keys():
            return "answers"
        return "image" if {"bytes", "path"} <= value.keys() else "other"
    if not isinstance(value, list) or not value:
        return "other"
    if isinstance(value[0], str):
        # Tags may be names as well: they are few and have no spaces of their own.
        return "tags" if all(tag == tag.upper() and ("-" in tag or tag == "O") for tag in value) else "words"
    if isinstance(value[0], int):
        return "tags"
    return "image" if isinstance(value[0], list) and value[0] and isinstance(value[0][0], (int, list)) else "other"
