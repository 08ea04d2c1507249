"""The loss of InstaTune's Eq. 1 and what may be added to it: other divergences, distillation of hidden states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from instatune_deploy.elastic.heads import distillation_terms

Gamma = Literal["off", "on", "first_epochs"]
Divergence = Literal["kl", "alpha"]


@dataclass(frozen=True)
class ElasticLoss:
    """The numbers of Eq. 1, and of what is added to it.

    Args:
        alpha: share of the hard-label loss; the rest is distillation.
        gamma: whether the strong teacher T is used: never, always, or in the first `gamma_epochs` epochs.
        gamma_epochs: see `gamma`.
        temperature: softens both distributions of a distillation term, which is scaled by its square
            (Hinton et al., 2015).
        divergence: of soft labels: KL, or the adaptive alpha-divergence of AlphaNet (Wang et al., 2021).
        hidden_weight: of the distance of hidden states after each layer from the teacher's; 0 leaves it out.
        attention_weight: of the distance of the attention blocks' outputs from the teacher's; 0 leaves it out.
    """

    alpha: float = 0.3
    gamma: Gamma = "off"
    gamma_epochs: float = 1
    temperature: float = 1.0
    divergence: Divergence = "kl"
    hidden_weight: float = 0.0
    attention_weight: float = 0.0

    def gamma_at(self, epoch: float) -> float:
        """g of Eq. 1 in epoch `epoch` (0 is the first): 0 or 1."""
        return float(self.gamma == "on" or (self.gamma == "first_epochs" and epoch < self.gamma_epochs))


def distillation(student: Tensor, teacher: Tensor, temperature: float = 1.0, divergence: Divergence = "kl") -> Tensor:
    """Divergence of the student's class distribution from the teacher's, mean over samples.

    Args:
        student, teacher: logits of shape (samples, classes); no gradient flows into the teacher.
    """
    student, teacher = student.float() / temperature, teacher.detach().float() / temperature
    if divergence == "alpha":
        return adaptive_alpha_divergence(student, teacher) * temperature**2
    found = F.kl_div(
        F.log_softmax(student, dim=-1), F.log_softmax(teacher, dim=-1), reduction="batchmean", log_target=True
    )
    return found * temperature**2


def adaptive_alpha_divergence(
    student: Tensor, teacher: Tensor, low: float = -1.0, high: float = 1.0, clip: float = 5.0
) -> Tensor:
    """AlphaNet's loss (Wang et al., 2021, Eq. 5 and 6): for each sample the larger of two alpha-divergences.

    With alpha = `low` it is costly to be sure where the teacher is not, with `high` (1 is KL) to be unsure where the
    teacher is sure. Its value is the divergence; its gradient goes through the logarithm of the student's
    probabilities, with ratios of probabilities clipped at `clip` (Sec. 3.3), so that it stays finite.

    Args:
        student, teacher: logits of shape (samples, classes).
    """
    log_q, p = F.log_softmax(student, dim=-1), F.softmax(teacher, dim=-1)
    q = log_q.detach().exp()
    ratio = p / q.clamp_min(torch.finfo(q.dtype).tiny)
    terms = [_alpha_divergence(log_q, q, ratio, alpha, clip) for alpha in (low, high)]
    (low_value, low_gradient), (high_value, high_gradient) = terms
    first = low_value > high_value
    value, gradient = torch.where(first, low_value, high_value), torch.where(first, low_gradient, high_gradient)
    # The value of the one with the gradient of the other.
    return (value + gradient - gradient.detach()).mean()


def _alpha_divergence(log_q: Tensor, q: Tensor, ratio: Tensor, alpha: float, clip: float) -> tuple[Tensor, Tensor]:
    """The alpha-divergence of each sample, and a surrogate whose gradient is its gradient; shape (samples,).

    The divergence is ``sum q f(p/q)`` with ``f(t) = (t^a - 1) / (a (a-1))`` (``t log t`` at 1), its gradient
    ``-sum q rho(p/q) grad log q`` with ``rho(t) = t f'(t) - f(t)``.
    """
    if abs(alpha - 1) < 1e-6:
        bounded = ratio.clamp(max=clip)
        f, rho = bounded * bounded.clamp_min(1e-30).log(), bounded
    else:
        bounded = ratio.clamp_min(1e-30).pow(alpha).clamp(max=clip)
        f, rho = (bounded - 1) / (alpha * (alpha - 1)), bounded / alpha + 1 / (alpha * (alpha - 1))
    return (q * f).sum(dim=-1), -(q * rho * log_q).sum(dim=-1)


def network_loss(student: Any, teacher: Any | None, batch: Mapping[str, Tensor], loss: ElasticLoss) -> Tensor:
    """One network's part of InstaTune's Eq. 1 (arXiv 2308.15609), which is the sum of them:

    ``a*(CE(S) + sum CE(Si)) + (1-a)*( g*KL(S,T) + sum((1-g)*KL(Si,S) + g*KL(Si,T)) )``

    Each network learns from labels and from one other, which gets no gradient: with g = 1 from the strong teacher T; with
    g = 0 a sub-network Si from the super-network S, and S from labels alone. CE is the model's own loss and KL what
    `heads.distillation_terms` compares: squared errors for regression.

    Args:
        student: output of the network, with its loss.
        teacher: output of the one it learns from; None: of labels alone.
        batch: what both read.
    """
    soft = 0.0 if teacher is None else soft_loss(student, teacher, batch, loss)
    total: Tensor = loss.alpha * student.loss + (1 - loss.alpha) * soft
    return total


def soft_loss(student: Any, teacher: Any, batch: Mapping[str, Tensor], loss: ElasticLoss) -> Tensor:
    """How far a student's output is from the teacher's; no gradient flows into the teacher."""
    found = [
        F.mse_loss(ours, theirs.detach()) if kind == "numbers"
        else distillation(ours, theirs, loss.temperature, loss.divergence)
        for ours, theirs, kind in distillation_terms(student, teacher, batch)
    ]  # fmt: skip
    return torch.stack(found).mean()


def state_distance(
    student: Sequence[Tensor], teacher: Sequence[Tensor], pairs: Sequence[tuple[int, int]], mask: Tensor | None
) -> Tensor:
    """Mean squared distance of hidden states from the teacher's, as a share of the teacher's mean square.

    Args:
        student, teacher: states of shape (samples, tokens, hidden), a layer each; no gradient flows into the teacher.
        pairs: which of the student's is to be like which of the teacher's.
        mask: shape (samples, tokens): the tokens that count; None: all. Of an image and a text it is as long as the text,
            whose tokens are the last ones, and all of the image count.
    """
    total = student[0].new_zeros((), dtype=torch.float32)
    for ours, theirs in pairs:
        wanted = teacher[theirs].detach().float()
        error, size = (student[ours].float() - wanted).square().mean(-1), wanted.square().mean(-1)
        if mask is not None:
            seen = F.pad(mask, (error.shape[1] - mask.shape[1], 0), value=1)
            error, size = error * seen, size * seen
        total = total + error.sum() / size.sum().clamp_min(1e-12)
    return total / max(1, len(pairs))


def layer_pairs(kept: Sequence[int], layers: int) -> list[tuple[int, int]]:
    """Which layer of the teacher each layer of a sub-network stands for: itself and the dropped ones behind it.

    Args:
        kept: indices of the full network's layers that it keeps, ascending; `layers`: how many the full network has.

    Returns:
        (position in the sub-network, index of the teacher's layer whose output it should give).
    """
    ends = [*(index - 1 for index in kept[1:]), layers - 1]
    return list(enumerate(ends))
