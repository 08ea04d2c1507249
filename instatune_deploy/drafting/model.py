"""What a recipe must say of a model and its rows: whether its head fits, whether it is fine-tuned already, how long texts are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PretrainedConfig, PreTrainedModel

from instatune_deploy.data.dataset import Split
from instatune_deploy.data.heads import get_head
from instatune_deploy.data.processor import Processor
from instatune_deploy.elastic.pretrained import load_pretrained
from instatune_deploy.elastic.probing import longest_text
from instatune_deploy.errors import CheckpointError, UsageError
from instatune_deploy.stages.evaluate.runs import metric_of
from instatune_deploy.values.recipe import METRICS, DataSection, Metric, Task

#: Lengths that texts are cut to, in tokens; more than the last where the model reads as many.
LENGTHS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)
#: Rows whose tokens are counted, and on which a model is judged.
COUNTED, JUDGED = 2000, 96
#: A model is taken for fine-tuned that has made this share of the way from the commonest answer to all right.
_LEARNT = 0.5
#: Of question answering as its papers do it.
_QUESTION_TOKENS, _STRIDE = 384, 128


@dataclass(frozen=True)
class Lengths:
    """Tokens of the texts of some rows: median, 90% and 99% are no longer, the longest; and where to cut them."""

    rows: int
    median: int
    p90: int
    p99: int
    longest: int
    cut: int


def lengths(
    task: Task, rows: Dataset, data: DataSection, processor: Processor, config: PretrainedConfig
) -> Lengths | None:
    """How long the texts of a task are; None where there are none."""
    if processor.head.reads == "image":
        return None
    step = max(1, len(rows) // COUNTED)
    sample = rows.select(range(0, len(rows), step)[:COUNTED])
    counts = np.array([len(ids) for ids in _token_ids(task, sample, data, processor)])
    median, p90, p99 = (int(np.ceil(value)) for value in np.percentile(counts, [50, 90, 99]))
    limit = longest_text(config) or 10**6
    most = min(limit, _QUESTION_TOKENS) if task == "question-answering" else limit
    fitting = next((length for length in LENGTHS if length >= p99), int(counts.max()))
    return Lengths(len(sample), median, p90, p99, int(counts.max()), min(fitting, most))


def _token_ids(task: Task, rows: Dataset, data: DataSection, processor: Processor) -> list[list[int]]:
    tokenizer = processor.inner
    if task == "token-classification":
        found = tokenizer(list(rows[data.tokens]), is_split_into_words=True, verbose=False)
    elif task == "question-answering":
        found = tokenizer(list(rows[data.question]), list(rows[data.context]), verbose=False)
    else:
        texts = [str(text) for text in rows[data.text]]
        pairs = [str(text) for text in rows[data.text_pair]] if data.text_pair else None
        found = tokenizer(texts, pairs, verbose=False)
    ids: list[list[int]] = found["input_ids"]
    return ids


def stride(cut: int) -> int:
    """Tokens that neighbouring windows of a long context share."""
    return min(_STRIDE, cut // 3)


@dataclass(frozen=True)
class Judgement:
    """A model with its head for a task.

    Args:
        reset_head: why its own head does not do; None where it does.
        metric: the task's first that can be computed here; `metric_note`: why it is another than the first.
        value: the metric on `n` training rows as the model is; `plain`: what its commonest answer gives.
    """

    model: PreTrainedModel
    reset_head: str | None
    metric: Metric
    metric_note: str | None
    value: float
    plain: float
    n: int

    @property
    def is_tuned(self) -> bool:
        """Whether the model does the task already."""
        return self.reset_head is None and self.value > self.plain + _LEARNT * (1 - self.plain)


def judge(name: str, task: Task, rows: Dataset, data: DataSection, processor: Processor) -> Judgement:
    """What the model called `name` is worth for a task before any training.

    Raises:
        UsageError: it cannot do the task at all, or a row is unusable.
    """
    head = get_head(task)
    classes = head.classes(rows, data)
    reset = None
    try:
        model = load_pretrained(name, task, classes, reset_head=False, seed=0)
    except CheckpointError as error:
        try:
            model = load_pretrained(name, task, classes, reset_head=True, seed=0)
        except UsageError:
            raise error from None
        reset = str(error).removeprefix(f"{name}: ").partition(";")[0]
    metric, note = _metric(task, classes)
    encoded, labels = head.encode("train", rows.select(range(min(JUDGED, len(rows)))), data, processor, classes)
    split = Split("train", encoded, labels, head)
    value = metric_of(model, split, processor, metric)
    return Judgement(model, reset, metric, note, value, _commonest(task, labels), len(split))


def _metric(task: Task, classes: tuple[str, ...]) -> tuple[Metric, str | None]:
    """The first metric of the task that can be computed, and why those before it cannot.

    Raises:
        UsageError: none can.
    """
    note = None
    for metric in METRICS[task]:
        try:
            get_head(task).check_metric(metric, classes)
        except UsageError as error:
            note = note or f"{metric} is the usual one: {error}"
            continue
        return metric, note
    raise UsageError(note or f"{task} has no metric")


def _commonest(task: Task, labels: Any) -> float:
    """The metric of always giving the commonest class, as far as a task has one; a modest value elsewhere."""
    if task in ("text-classification", "image-classification", "visual-question-answering"):
        counts = np.unique(labels, return_counts=True)[1]
        return float(counts.max() / counts.sum())
    return 0.2
