"""What of a head's output is distilled, and how: the soft terms of InstaTune's Eq. 1 for every task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

from instatune_deploy.data.heads.tokens import IGNORED

#: How a student's rows are compared with the teacher's: logits by a divergence of their softmax over the last axis (KL),
#: numbers by their squared error.
Kind = Literal["logits", "numbers"]

#: Logit of positions that are padding: no probability is left for them at any temperature. Their difference stays finite, so
#: that nothing times it is nothing.
PADDING_LOGIT = -1e9


def distillation_terms(student: Any, teacher: Any, batch: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor, Kind]]:
    """What of a student's output is to be like the teacher's: pairs of fp32 tensors of shape (rows, entries).

    Each row counts alike, and the mean over the terms goes with the model's own loss, which is the mean of the same:

    - sequence and image classification: logits (samples, classes), a row a sample;
    - regression: numbers (samples, 1), a row a sample;
    - token classification: logits (samples, tokens, classes), a row for each token with a label, (labelled tokens, classes);
    - question answering: start and end logits (samples, tokens), two terms with a row a sample, in which padding has no
      probability.

    Gradients flow into both; who distils detaches the teacher.

    Args:
        student, teacher: outputs of models with the same head for `batch`, as Hugging Face's models give them.
        batch: what both read; `attention_mask` of shape (samples, tokens) is needed for question answering, and for token
            classification `labels` of the same shape.
    """
    if hasattr(student, "start_logits"):
        padding = batch["attention_mask"] == 0
        return [
            _without_padding(student.start_logits, teacher.start_logits, padding),
            _without_padding(student.end_logits, teacher.end_logits, padding),
        ]
    ours, theirs = student.logits.float(), teacher.logits.float()
    if ours.dim() == 3:
        learnt = batch["labels"] != IGNORED
        return [(ours[learnt], theirs[learnt], "logits")]
    return [(ours, theirs, "numbers" if ours.shape[-1] == 1 else "logits")]


def _without_padding(student: Tensor, teacher: Tensor, padding: Tensor) -> tuple[Tensor, Tensor, Kind]:
    """Logits over positions, shape (samples, tokens), which leave no probability for `padding`."""
    ours, theirs = (logits.float().masked_fill(padding, PADDING_LOGIT) for logits in (student, teacher))
    return ours, theirs, "logits"
