"""Stage 1: a pre-trained model becomes an elastic super-network, fine-tuned once for all devices."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Mapping
from typing import Any

from transformers import PreTrainedModel

from instatune_deploy.data.dataset import Split, TaskData
from instatune_deploy.data.processor import Processor
from instatune_deploy.elastic.importance import (
    SCORERS,
    layer_drop_order,
    sort_by_importance,
)
from instatune_deploy.elastic.processes import is_main_process, wait_for_all
from instatune_deploy.elastic.supernet import Supernet, load_supernet, save_supernet
from instatune_deploy.elastic.trainer import BucketTrainer, ElasticTrainer
from instatune_deploy.elastic.training import (
    calibration_batches,
    drawer_of,
    labelled_batches,
    loss_of,
    rates_of,
    train,
    trainer_arguments,
    with_dropout,
)
from instatune_deploy.values.hashing import content_key
from instatune_deploy.values.history import TrainingHistory
from instatune_deploy.values.recipe import FinetuneSection, TrainingSection
from instatune_deploy.values.space import SearchSpace
from instatune_deploy.workspace import Workspace, new_directory, write_json

Report = Callable[[str], None]


def finetune(
    settings: FinetuneSection, load_model: Callable[[], PreTrainedModel], space: SearchSpace, data: TaskData,
    processor: Processor, workspace: Workspace, *, key: str, seed: int, report: Report,
    inputs: Mapping[str, Any] | None = None,
) -> Supernet:  # fmt: skip
    """The fine-tuned super-network, made or, where `workspace` holds it for the same inputs, read.

    The pre-trained model is fine-tuned into the strong teacher (where one is needed and the model is none already),
    sorted by importance, and tuned with Eq. 1 of InstaTune (arXiv 2308.15609). Stopped in between, each training goes on
    from its last checkpoint and gives what it would have given.

    Args:
        load_model: loads the pre-trained model anew.
        key: hash of model, data and seed; with the settings and the space it decides what is reused.
        report: is told each step, a line each.
        inputs: what `key` is the hash of, by name, for the record.

    Raises:
        TrainingError: the loss became infinite or not a number.
        UsageError: a batch cannot be divided among the processes.
    """
    elastic_key = supernet_key(settings, space, key)
    path = workspace.path("supernet")
    if workspace.is_done("finetune", elastic_key):
        report("super-network: reused, its model, data, space and settings are the same")
        return calibrated(load_supernet(path), data.train, processor, seed=seed)
    teacher = None
    if settings.needs_teacher:
        teacher = fine_tuned(
            settings, load_model, data, processor, workspace, key=key, seed=seed, report=report, inputs=inputs
        )
    started = load_model() if settings.start == "pretrained" or teacher is None else copy.deepcopy(teacher)
    supernet = Supernet(with_dropout(started, settings.dropout), space)
    if teacher is not None:
        supernet = sorted_like(supernet, teacher, data.train, processor, settings, report, seed=seed)
    checkpoints = workspace.path(".checkpoints", f"elastic-{elastic_key}")
    report(f"elastic fine-tuning: {settings.epochs:g} epochs of {len(data.train)} samples, {space.size:,} sub-networks")
    shape = supernet.shape(processor.sequence_length)
    trainer = ElasticTrainer(
        supernet, loss_of(settings), drawer_of(settings, supernet.space, shape, seed=seed),
        teacher if settings.gamma != "off" else None, rates=rates_of(settings), augment=settings.augment,
        **trainer_arguments(settings, data.train, processor, checkpoints, seed, report, report_to=settings.report_to),
    )  # fmt: skip
    train(trainer, checkpoints, report, ema_decay=settings.ema_decay, compile_layers=settings.compile_layers)
    if is_main_process():
        with new_directory(path) as draft:
            save_supernet(supernet, draft)
            processor.save(draft)
        history = TrainingHistory.of("super-network", len(data.train), trainer.state.log_history)
        write_json(workspace.path("training", "supernet.json"), history.to_dict())
        workspace.mark_done("finetune", elastic_key, [path], made_from=supernet_parts(settings, space, inputs or {}))
        shutil.rmtree(workspace.path(".checkpoints"), ignore_errors=True)
    wait_for_all()
    return calibrated(load_supernet(path), data.train, processor, seed=seed)


def calibrated(supernet: Supernet, rows: Split, processor: Processor, *, seed: int) -> Supernet:
    """The same network, whose sub-networks get batch norm statistics of their own, measured on `rows`."""
    return supernet.calibrate(lambda: calibration_batches(rows, processor, seed=seed))


def supernet_key(settings: FinetuneSection, space: SearchSpace, key: str) -> str:
    """What decides whether a super-network is reused; `key` is the hash of model, data and seed."""
    return content_key(key, settings.that_matter(), space.to_dict())


def supernet_parts(settings: FinetuneSection, space: SearchSpace, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What `supernet_key` is the hash of, by name."""
    return {**inputs, "finetune": settings.that_matter(), "space": space.to_dict()}


def teacher_key(settings: TrainingSection, key: str) -> str:
    """What decides whether a teacher is reused."""
    return content_key(key, settings.model_dump())


def teacher_parts(settings: TrainingSection, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What `teacher_key` is the hash of, by name."""
    return {**inputs, "finetune": {"teacher": settings.model_dump()}}


def fine_tuned(
    settings: FinetuneSection, load_model: Callable[[], PreTrainedModel], data: TaskData, processor: Processor,
    workspace: Workspace, *, key: str, seed: int, report: Report, inputs: Mapping[str, Any] | None = None,
) -> PreTrainedModel:  # fmt: skip
    """The fine-tuned full model: the strong teacher T, and where the super-network starts from."""
    model = load_model()
    if settings.teacher is None:
        return model
    key = teacher_key(settings.teacher, key)
    path = workspace.path("teacher")
    if workspace.is_done("teacher", key):
        report("teacher: reused, its model, data and settings are the same")
        return type(model).from_pretrained(path, use_safetensors=True)
    checkpoints = workspace.path(".checkpoints", f"teacher-{key}")
    report(f"fine-tuning the full model: {settings.teacher.epochs:g} epochs of {len(data.train)} samples")
    arguments = trainer_arguments(
        settings.teacher, data.train, processor, checkpoints, seed, report, report_to=settings.report_to
    )
    trainer = BucketTrainer(model=model, **arguments)
    train(trainer, checkpoints, report, compile_layers=settings.teacher.compile_layers)
    if is_main_process():
        with new_directory(path) as draft:
            model.save_pretrained(draft)
            processor.save(draft)
        history = TrainingHistory.of("full model", len(data.train), trainer.state.log_history)
        write_json(workspace.path("training", "teacher.json"), history.to_dict())
        workspace.mark_done("teacher", key, [path], made_from=teacher_parts(settings.teacher, inputs or {}))
    wait_for_all()
    # Read back, so that a run that was stopped here and one that was not go on from the same bytes.
    return type(model).from_pretrained(path, use_safetensors=True)


def sorted_like(
    supernet: Supernet, teacher: PreTrainedModel, rows: Split, processor: Processor, settings: FinetuneSection,
    report: Report, *, seed: int,
) -> Supernet:  # fmt: skip
    """The same network with its units (heads, neurons, filters) and layers in the order of their importance in the teacher.

    Sorting permutes, which changes no output, so T and S stay comparable.
    """
    if settings.importance == "none" and settings.layer_order == "last_first":
        return supernet
    batches = labelled_batches(rows, settings.importance_rows, settings.batch_size, processor)
    report(f"importance of units and layers on {min(settings.importance_rows, len(rows))} training samples")
    judged = calibrated(Supernet(teacher, supernet.space), rows, processor, seed=seed)
    if settings.importance != "none":
        sort_by_importance(supernet, SCORERS[settings.importance](judged, batches))
    if settings.layer_order == "last_first":
        return supernet
    order = layer_drop_order(judged, batches, report=report)
    return Supernet(supernet.model, supernet.space.with_drop_order(order))
