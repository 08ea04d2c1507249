"""Stage 1: a pre-trained model becomes an elastic super-network, fine-tuned once for all devices."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback

from instatune_deploy.data.dataset import Split, TaskData
from instatune_deploy.data.processor import Processor
from instatune_deploy.elastic.importance import first_order_importance, layer_drop_order, sort_by_importance
from instatune_deploy.elastic.supernet import Supernet, load_supernet, save_supernet
from instatune_deploy.elastic.trainer import BucketTrainer, ElasticLoss, ElasticTrainer
from instatune_deploy.values.recipe import FinetuneSection, TrainingSection
from instatune_deploy.values.space import SearchSpace
from instatune_deploy.workspace import Workspace, content_key, new_directory

Report = Callable[[str], None]


def finetune(
    settings: FinetuneSection, load_model: Callable[[], PreTrainedModel], space: SearchSpace, data: TaskData,
    processor: Processor, workspace: Workspace, *, key: str, seed: int, report: Report,
) -> Supernet:  # fmt: skip
    """The fine-tuned super-network, made or, where `workspace` holds it for the same inputs, read.

    The pre-trained model is fine-tuned into the strong teacher (unless `settings.teacher` is null: then it is one
    already), sorted by importance, and tuned with Eq. 1 of InstaTune (arXiv 2308.15609). Stopped in between, each
    training goes on from its last checkpoint and gives what it would have given.

    Args:
        load_model: loads the pre-trained model anew.
        key: hash of model, data and seed; with the settings and the space it decides what is reused.
        report: is told each step, a line each.

    Raises:
        TrainingError: the loss became infinite or not a number.
    """
    teacher_key = content_key(key, settings.teacher and settings.teacher.model_dump())
    elastic_key = content_key(key, settings.model_dump(), space.to_dict())
    path = workspace.path("supernet")
    if workspace.is_done("finetune", elastic_key):
        report("super-network: reused")
        return load_supernet(path)
    teacher = _teacher(settings, load_model, data, processor, workspace, key=teacher_key, seed=seed, report=report)
    supernet = Supernet(load_model() if settings.start == "pretrained" else copy.deepcopy(teacher), space)
    if settings.sort:
        # Scored on the fine-tuned model; sorting permutes it, which changes no output, so T and S stay comparable.
        supernet = _sorted(supernet, data.train, processor, settings, report)
    checkpoints = workspace.path(".checkpoints", f"elastic-{elastic_key}")
    report(f"elastic fine-tuning: {settings.epochs:g} epochs of {len(data.train)} samples, {space.size:,} sub-networks")
    trainer = ElasticTrainer(
        supernet,
        ElasticLoss(settings.alpha, settings.gamma, settings.gamma_epochs, settings.subnetworks, settings.temperature),
        teacher if settings.gamma != "off" else None,
        **_trainer_arguments(settings, data.train, processor, checkpoints, seed, report),
    )
    _train(trainer, checkpoints, report)
    with new_directory(path) as draft:
        save_supernet(supernet, draft)
        processor.save(draft)
    workspace.mark_done("finetune", elastic_key, [path])
    shutil.rmtree(workspace.path(".checkpoints"), ignore_errors=True)
    return load_supernet(path)


def _teacher(
    settings: FinetuneSection, load_model: Callable[[], PreTrainedModel], data: TaskData, processor: Processor,
    workspace: Workspace, *, key: str, seed: int, report: Report,
) -> PreTrainedModel:  # fmt: skip
    """The fine-tuned full model: the strong teacher T, and where the super-network starts from."""
    model = load_model()
    if settings.teacher is None:
        return model
    path = workspace.path("teacher")
    if workspace.is_done("teacher", key):
        report("teacher: reused")
        return type(model).from_pretrained(path)
    checkpoints = workspace.path(".checkpoints", f"teacher-{key}")
    report(f"fine-tuning the full model: {settings.teacher.epochs:g} epochs of {len(data.train)} samples")
    arguments = _trainer_arguments(settings.teacher, data.train, processor, checkpoints, seed, report)
    _train(BucketTrainer(model=model, **arguments), checkpoints, report)
    with new_directory(path) as draft:
        model.save_pretrained(draft)
        processor.save(draft)
    workspace.mark_done("teacher", key, [path])
    # Read back, so that a run that was stopped here and one that was not go on from the same bytes.
    return type(model).from_pretrained(path)


def _sorted(
    supernet: Supernet, rows: Split, processor: Processor, settings: FinetuneSection, report: Report
) -> Supernet:
    """The same network with its heads, neurons and layers in the order of their importance."""
    batches = _batches(rows, min(settings.importance_rows, len(rows)), settings.batch_size, processor)
    report(f"importance of heads, neurons and layers on {min(settings.importance_rows, len(rows))} training samples")
    sort_by_importance(supernet, first_order_importance(supernet, batches))
    order = layer_drop_order(supernet, batches, report=report)
    return Supernet(supernet.model, supernet.space.with_drop_order(order))


def _batches(split: Split, rows: int, size: int, processor: Processor) -> list[dict[str, Tensor]]:
    """The first `rows` rows as labelled batches of torch tensors."""
    return list(processor.labelled_batches(split.rows.select(range(rows)), size))


def _trainer_arguments(
    settings: TrainingSection, rows: Split, processor: Processor, checkpoints: Path, seed: int, report: Report
) -> dict[str, Any]:
    """What Trainer is given; checkpoints come ten times a training."""
    arguments = TrainingArguments(
        output_dir=str(checkpoints), num_train_epochs=settings.epochs, learning_rate=settings.learning_rate,
        per_device_train_batch_size=settings.batch_size, gradient_accumulation_steps=settings.gradient_accumulation,
        warmup_ratio=settings.warmup_ratio, weight_decay=settings.weight_decay, bf16=settings.bf16,
        save_strategy="steps", save_steps=0.1, save_total_limit=2, logging_steps=0.05, report_to="none",
        disable_tqdm=True, remove_unused_columns=False, label_names=["labels"], seed=seed, data_seed=seed,
        dataloader_pin_memory=torch.cuda.is_available(),
    )  # fmt: skip
    return {
        "args": arguments, "train_dataset": rows.rows, "data_collator": processor.collator,
        "callbacks": [_ReportLoss(report)],
    }  # fmt: skip


class _ReportLoss(TrainerCallback):
    """Tells the loss and the time left at every log step."""

    def __init__(self, report: Report) -> None:
        self.report = report

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self.report(f"step {state.global_step}/{state.max_steps}: training loss {logs['loss']:.4f}")


def _train(trainer: Trainer, checkpoints: Path, report: Report) -> None:
    """Train to the end, from the last whole checkpoint if there is one."""
    trainer.remove_callback(PrinterCallback)  # it would print to stdout; `report` is told instead
    whole = {}
    for path in checkpoints.glob("checkpoint-*"):
        # The state is the last file that Trainer writes: without it the process died while it wrote the others.
        if (path / TRAINER_STATE_NAME).is_file():
            whole[int(path.name.removeprefix("checkpoint-"))] = path
        else:
            shutil.rmtree(path)
    last = whole[max(whole)] if whole else None
    if last is not None:
        report(f"resuming from step {max(whole)}")
    trainer.train(resume_from_checkpoint=str(last) if last else None)
