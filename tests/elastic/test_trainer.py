"""The loss of Eq. 1, what is sampled when, and resuming."""

from __future__ import annotations

import math
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback, TrainingArguments, default_data_collator

from instatune_deploy.elastic.sampler import BucketSampler
from instatune_deploy.elastic.supernet import Supernet
from instatune_deploy.elastic.trainer import (
    ElasticLoss,
    ElasticTrainer,
    distillation,
    elastic_loss,
    sampled_architectures,
)
from instatune_deploy.errors import TrainingError
from tests.helpers import make_family


def output(seed: int) -> SimpleNamespace:
    torch.manual_seed(seed)
    return SimpleNamespace(loss=torch.rand(()), logits=torch.randn(5, 3))


def kl(teacher: torch.Tensor, student: torch.Tensor) -> float:
    """KL(teacher || student) written out, mean over samples."""
    p, q = teacher.softmax(-1).double(), student.softmax(-1).double()
    return float((p * (p / q).log()).sum(-1).mean())


def test_distillation_is_the_kl_divergence_from_the_teacher() -> None:
    student, teacher = output(1).logits, output(2).logits
    assert float(distillation(student, teacher)) == pytest.approx(kl(teacher, student), rel=1e-5)
    assert float(distillation(student, teacher, 2.0)) == pytest.approx(4 * kl(teacher / 2, student / 2), rel=1e-5)
    assert float(distillation(student, student)) == pytest.approx(0, abs=1e-6)


def test_no_gradient_flows_into_the_teacher() -> None:
    student, teacher = (output(seed).logits.requires_grad_() for seed in (1, 2))
    distillation(student, teacher).backward()
    assert student.grad is not None
    assert teacher.grad is None


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_the_loss_is_equation_1(alpha: float) -> None:
    full, subnetworks, teacher = output(1), [output(2), output(3)], output(4).logits
    hard = full.loss + sum(s.loss for s in subnetworks)
    without = alpha * hard + (1 - alpha) * sum(kl(full.logits, s.logits) for s in subnetworks)
    with_teacher = alpha * hard + (1 - alpha) * (
        kl(teacher, full.logits) + sum(kl(teacher, s.logits) for s in subnetworks)
    )
    settings = ElasticLoss(alpha=alpha, subnetworks=2)
    assert float(elastic_loss(full, subnetworks, None, settings)) == pytest.approx(float(without), rel=1e-5)
    assert float(elastic_loss(full, subnetworks, teacher, settings)) == pytest.approx(float(with_teacher), rel=1e-5)


def test_gamma_is_off_on_or_on_in_the_first_epochs() -> None:
    epochs = [0.0, 0.9, 1.0, 1.9, 2.0]
    assert [ElasticLoss(gamma="off").gamma_at(e) for e in epochs] == [0, 0, 0, 0, 0]
    assert [ElasticLoss(gamma="on").gamma_at(e) for e in epochs] == [1, 1, 1, 1, 1]
    assert [ElasticLoss(gamma="first_epochs", gamma_epochs=2).gamma_at(e) for e in epochs] == [1, 1, 1, 1, 0]


def test_sampled_networks_depend_on_seed_and_step_alone() -> None:
    space = make_family("bert").space
    first = sampled_architectures(space, 3, seed=1, step=7)
    random.seed(99)
    torch.manual_seed(99)
    assert sampled_architectures(space, 3, seed=1, step=7) == first
    assert sampled_architectures(space, 3, seed=1, step=8) != first
    assert sampled_architectures(space, 3, seed=2, step=7) != first
    assert all(architecture in space for architecture in first)
    seen = {a for step in range(300) for a in sampled_architectures(space, 1, seed=0, step=step)}
    assert {a.depth for a in seen} == set(space.depths)


def test_batches_hold_rows_of_like_length_and_every_row_once() -> None:
    lengths = list(np.random.default_rng(0).integers(3, 60, 500))
    sampler = BucketSampler(500, lengths, 10, seed=4)
    order = list(sampler)
    assert sorted(order) == list(range(500))
    spread = np.mean([np.ptp([lengths[i] for i in order[b : b + 10]]) for b in range(0, 500, 10)])
    assert spread < 5
    assert list(sampler) == order
    sampler.set_epoch(1)
    assert list(sampler) != order


class StopAt(TrainerCallback):
    """Ends the training with an error, as a kill would, once a step was done."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **_):  # type: ignore[no-untyped-def]
        if state.global_step == self.step:
            raise KeyboardInterrupt


def trainer_for(directory: Path, callbacks: list[TrainerCallback], **elastic) -> ElasticTrainer:  # type: ignore[no-untyped-def]
    family, teacher = make_family("bert"), make_family("bert").model
    rng = np.random.default_rng(0)
    rows = Dataset.from_dict(
        {
            "input_ids": rng.integers(5, 100, (48, 8)).tolist(),
            "attention_mask": np.ones((48, 8), dtype=int).tolist(),
            "labels": rng.integers(0, 3, 48).tolist(),
        }
    )
    arguments = TrainingArguments(
        str(directory), num_train_epochs=3, per_device_train_batch_size=4, gradient_accumulation_steps=2,
        learning_rate=1e-3, save_steps=4, logging_steps=1, report_to="none", disable_tqdm=True, label_names=["labels"],
        remove_unused_columns=False, seed=5, use_cpu=True,
    )  # fmt: skip
    settings = ElasticLoss(**{"gamma": "first_epochs", "gamma_epochs": 1, "subnetworks": 2, **elastic})
    return ElasticTrainer(
        Supernet(family.model, family.space), settings, teacher, args=arguments, train_dataset=rows,
        data_collator=default_data_collator, callbacks=callbacks,
    )  # fmt: skip


def losses(trainer: ElasticTrainer) -> dict[int, float]:
    return {entry["step"]: entry["loss"] for entry in trainer.state.log_history if "loss" in entry}


def test_a_resumed_training_gives_the_same_losses_and_weights(tmp_path: Path) -> None:
    whole = trainer_for(tmp_path / "whole", [])
    whole.train()
    with pytest.raises(KeyboardInterrupt):
        trainer_for(tmp_path / "cut", [StopAt(11)]).train()  # in the middle of an epoch, after the checkpoint of step 8
    resumed = trainer_for(tmp_path / "cut", [])
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-8"))
    assert losses(resumed) == losses(whole)
    assert len(losses(whole)) == 18
    for (name, one), (_, other) in zip(
        whole.model.state_dict().items(), resumed.model.state_dict().items(), strict=True
    ):
        assert torch.equal(one, other), name


def test_a_loss_that_is_not_a_number_stops_the_training_and_says_where(tmp_path: Path) -> None:
    trainer = trainer_for(tmp_path, [])
    with torch.no_grad():
        trainer.supernet.model.classifier.weight.fill_(math.nan)
    with pytest.raises(TrainingError, match=r"loss is nan at step 0, learning rate .*, sub-networks \dL\["):
        trainer.train()


def test_gamma_without_a_teacher_is_refused(tmp_path: Path) -> None:
    family = make_family("bert")
    with pytest.raises(TrainingError, match="needs a teacher"):
        ElasticTrainer(Supernet(family.model, family.space), ElasticLoss(gamma="on"))
