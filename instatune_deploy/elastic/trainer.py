"""`ElasticTrainer`: a `transformers.Trainer` that fine-tunes a super-network with the loss of InstaTune's Eq. 1."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import PreTrainedModel, Trainer

from instatune_deploy.elastic.sampler import BucketSampler
from instatune_deploy.elastic.supernet import Supernet
from instatune_deploy.errors import TrainingError
from instatune_deploy.values.space import Architecture, SearchSpace

Gamma = Literal["off", "on", "first_epochs"]


@dataclass(frozen=True)
class ElasticLoss:
    """The numbers of Eq. 1.

    Args:
        alpha: share of the hard-label loss; the rest is distillation.
        gamma: whether the strong teacher T is used: never, always, or in the first `gamma_epochs` epochs.
        gamma_epochs: see `gamma`.
        subnetworks: M, sub-networks sampled a step.
        temperature: softens both distributions of a distillation term, which is scaled by its square
            (Hinton et al., 2015).
    """

    alpha: float = 0.3
    gamma: Gamma = "off"
    gamma_epochs: int = 1
    subnetworks: int = 1
    temperature: float = 1.0

    def gamma_at(self, epoch: float) -> float:
        """g of Eq. 1 in epoch `epoch` (0 is the first): 0 or 1."""
        return float(self.gamma == "on" or (self.gamma == "first_epochs" and epoch < self.gamma_epochs))


def sampled_architectures(space: SearchSpace, n: int, *, seed: int, step: int) -> list[Architecture]:
    """The `n` sub-networks of optimiser step `step`; they depend on `seed` and `step` alone."""
    rng = random.Random(f"{seed}/{step}")
    return [space.sample_one(rng) for _ in range(n)]


def distillation(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL divergence of the student's class distribution from the teacher's, mean over samples.

    Args:
        student, teacher: logits of shape (samples, classes); no gradient flows into the teacher.
    """
    student, teacher = student.float(), teacher.detach().float()
    divergence = F.kl_div(
        F.log_softmax(student / temperature, dim=-1), F.log_softmax(teacher / temperature, dim=-1),
        reduction="batchmean", log_target=True,
    )  # fmt: skip
    return divergence * temperature**2


def elastic_loss(full: Any, subnetworks: Sequence[Any], teacher_logits: Tensor | None, loss: ElasticLoss) -> Tensor:
    """Eq. 1 of InstaTune (arXiv 2308.15609), with g = 1 if `teacher_logits` are given and 0 if not:

    ``a*(CE(S) + sum CE(Si)) + (1-a)*( g*KL(S,T) + sum((1-g)*KL(Si,S) + g*KL(Si,T)) )``

    Args:
        full: output of the super-network S, with its loss and logits of shape (samples, classes).
        subnetworks: outputs of the sub-networks Si.
        teacher_logits: of the strong teacher T, of the same shape.
    """
    hard = full.loss + sum(output.loss for output in subnetworks)
    soft: Tensor | float = 0.0
    if teacher_logits is not None:
        soft = distillation(full.logits, teacher_logits, loss.temperature)
    teacher = full.logits if teacher_logits is None else teacher_logits
    for output in subnetworks:
        soft = soft + distillation(output.logits, teacher, loss.temperature)
    total: Tensor = loss.alpha * hard + (1 - loss.alpha) * soft
    return total


class BucketTrainer(Trainer):
    """`transformers.Trainer` with batches of like length, in an order that a resumed run repeats."""

    def _get_train_sampler(self, train_dataset: Any = None) -> BucketSampler:
        rows: Any = self.train_dataset if train_dataset is None else train_dataset
        lengths = [len(ids) for ids in rows["input_ids"]] if "input_ids" in rows.column_names else None
        return BucketSampler(len(rows), lengths, self.args.train_batch_size, seed=self.args.seed)


class ElasticTrainer(BucketTrainer):
    """Trains every step the full network and `elastic.subnetworks` sampled ones that share its weights.

    Drops in for `transformers.Trainer`: logging, checkpoints, resume, mixed precision, gradient accumulation and
    several processes are Trainer's own. All micro-batches of a step, and all processes, train the same sub-networks.

    Args:
        supernet: what to train.
        elastic: the numbers of Eq. 1.
        teacher: the strong teacher T, needed unless gamma is off.
        **trainer_arguments: `transformers.Trainer`'s own, such as `args` and `train_dataset`.

    Raises:
        TrainingError: gamma needs a teacher and there is none; or, while training, the loss is not finite.
    """

    def __init__(
        self, supernet: Supernet, elastic: ElasticLoss, teacher: PreTrainedModel | None = None, **trainer_arguments: Any
    ) -> None:
        if elastic.gamma != "off" and teacher is None:
            raise TrainingError(f"gamma {elastic.gamma!r} needs a teacher, and there is none")
        super().__init__(model=supernet, **trainer_arguments)
        if self.args.gradient_checkpointing:
            # The recomputation in the backward pass would see the full network's layers.
            raise TrainingError("gradient checkpointing is not supported for elastic fine-tuning")
        self.supernet, self.elastic = supernet, elastic
        self.teacher = None if teacher is None else teacher.eval().requires_grad_(False).to(self.args.device)
        self.model_accepts_loss_kwargs = False  # the loss is a mean over the micro-batch; Trainer averages these

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Eq. 1 for one micro-batch; the full network's output beside it if asked for."""
        step = self.state.global_step
        space = self.supernet.space
        subnetworks = sampled_architectures(space, self.elastic.subnetworks, seed=self.args.seed, step=step)
        # One call for all networks, so that several processes see one forward and one backward a step.
        full, *outputs = model(inputs, [self.supernet.full, *subnetworks])
        teacher_logits = None
        if self.teacher is not None and self.elastic.gamma_at(self.state.epoch or 0.0):
            with torch.no_grad():
                teacher_logits = self.teacher(**{k: v for k, v in inputs.items() if k != "labels"}).logits
        loss = elastic_loss(full, outputs, teacher_logits, self.elastic)
        if not math.isfinite(float(loss.detach())):
            names = ", ".join(str(architecture) for architecture in subnetworks)
            rate = self._get_learning_rate()
            raise TrainingError(
                f"loss is {float(loss.detach())} at step {step}, learning rate {rate:.3g}, sub-networks {names}"
            )
        return (loss, full) if return_outputs else loss
