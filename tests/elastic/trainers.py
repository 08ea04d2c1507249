"""Trainers of small super-networks, and what they have told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import TrainerCallback, default_data_collator

from instatune_deploy.elastic.drawing import Drawer, DrawSettings
from instatune_deploy.elastic.losses import ElasticLoss
from instatune_deploy.elastic.optimizer import RateSettings
from instatune_deploy.elastic.supernet import Supernet
from instatune_deploy.elastic.trainer import ElasticTrainer
from instatune_deploy.elastic.training import Arguments, with_dropout
from tests.helpers import make_family


class StopAt(TrainerCallback):
    """Ends the training with an error, as a kill would, once a step was done."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **_):  # type: ignore[no-untyped-def]
        if state.global_step == self.step:
            raise KeyboardInterrupt


def trainer_for(
    directory: Path, callbacks: list[TrainerCallback], *, draw: dict[str, Any] | None = None,
    rates: RateSettings | None = None, changes: dict[str, Any] | None = None, dropout: float | None = None,
    augment: float = 0.0, **loss: Any,
) -> ElasticTrainer:  # fmt: skip
    """A trainer of a small BERT on `rows`, with a teacher that is as untrained."""
    family, teacher = make_family("bert"), make_family("bert").model
    supernet = Supernet(with_dropout(family.model, dropout), family.space)
    settings = ElasticLoss(**{"gamma": "first_epochs", "gamma_epochs": 1, **loss})
    drawer = Drawer(family.space, supernet.shape(8), DrawSettings(**{"subnetworks": 2, **(draw or {})}), seed=5)
    return ElasticTrainer(
        supernet, settings, drawer, teacher, rates=rates, augment=augment, args=arguments(directory, **(changes or {})), train_dataset=rows(),
        data_collator=default_data_collator, callbacks=callbacks,
    )  # fmt: skip


def rows() -> Dataset:
    """48 samples of 8 tokens."""
    rng = np.random.default_rng(0)
    return Dataset.from_dict(
        {
            "input_ids": rng.integers(5, 100, (48, 8)).tolist(),
            "attention_mask": np.ones((48, 8), dtype=int).tolist(),
            "labels": rng.integers(0, 3, 48).tolist(),
        }
    )


def arguments(directory: Path, **changes: Any) -> Arguments:
    """Three epochs of steps of two micro-batches, with a checkpoint every four steps."""
    settings = {"num_train_epochs": 3, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, **changes}
    return Arguments(
        str(directory), learning_rate=1e-3, save_steps=4, logging_steps=1, report_to="none", disable_tqdm=True,
        label_names=["labels"], remove_unused_columns=False, seed=5, use_cpu=True, **settings,
    )  # fmt: skip


def losses(trainer: ElasticTrainer) -> dict[int, float]:
    """The loss of each step."""
    return {entry["step"]: entry["loss"] for entry in trainer.state.log_history if "loss" in entry}
