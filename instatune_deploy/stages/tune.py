"""After the selection, where asked for: a chosen sub-network is tuned alone, taught by the full network."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace

from transformers import PreTrainedModel

from instatune_deploy.data.dataset import TaskData
from instatune_deploy.data.processor import Processor
from instatune_deploy.elastic.subnetwork import load_subnetwork
from instatune_deploy.elastic.supernet import Supernet
from instatune_deploy.elastic.trainer import DistillingTrainer
from instatune_deploy.elastic.training import loss_of, rates_of, train, trainer_arguments, with_dropout
from instatune_deploy.values.hashing import content_key
from instatune_deploy.values.history import TrainingHistory
from instatune_deploy.values.recipe import FinetuneSection
from instatune_deploy.values.space import Architecture
from instatune_deploy.workspace import Workspace, new_directory, write_json


def tune(
    supernet: Supernet, architecture: Architecture, teacher: PreTrainedModel, settings: FinetuneSection,
    data: TaskData, processor: Processor, workspace: Workspace, *, key: str, seed: int, report: Callable[[str], None],
) -> PreTrainedModel:  # fmt: skip
    """The sub-network with weights of its own, fine-tuned for `settings.epochs` on labels and the teacher's soft ones.

    It starts from what it has in the super-network. Done before with the same `key` and settings, it is read.

    Args:
        teacher: a full network of the same task.
        key: hash of the super-network and the data.

    Raises:
        ArchitectureError: it is not in the space.
        TrainingError: the loss became infinite or not a number.
    """
    key = content_key(key, str(architecture), settings.that_matter(), seed)
    stage, path = f"tune-{key}", workspace.path("tuned", key)
    if workspace.is_done(stage, key):
        report(f"{architecture} tuned alone: reused")
        return load_subnetwork(path)
    network = with_dropout(supernet.extract(architecture), settings.dropout)
    checkpoints = workspace.path(".checkpoints", stage)
    report(f"tuning {architecture} alone: {settings.epochs:g} epochs of {len(data.train)} samples")
    trainer = DistillingTrainer(
        network, replace(loss_of(settings), gamma="on"), teacher,
        kept=supernet.space.kept_layers(architecture.depths), rates=rates_of(settings), augment=settings.augment,
        **trainer_arguments(settings, data.train, processor, checkpoints, seed, report, report_to=settings.report_to),
    )  # fmt: skip
    train(trainer, checkpoints, report, ema_decay=settings.ema_decay, compile_layers=settings.compile_layers)
    with new_directory(path) as draft:
        network.save_pretrained(draft)
    history = TrainingHistory.of(str(architecture), len(data.train), trainer.state.log_history)
    write_json(workspace.path("training", f"tuned-{key}.json"), history.to_dict())
    workspace.mark_done(stage, key, [path])
    shutil.rmtree(checkpoints, ignore_errors=True)
    return load_subnetwork(path)
