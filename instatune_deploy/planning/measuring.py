"""Quick measurements that estimates rest on: a few real training steps, a few forward passes, on this machine now."""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, Trainer, TrainerCallback

from instatune_deploy.data.dataset import Split
from instatune_deploy.elastic.supernet import Supernet
from instatune_deploy.elastic.trainer import BucketTrainer, ElasticTrainer
from instatune_deploy.elastic.training import drawer_of, loss_of, rates_of, trainer_arguments
from instatune_deploy.job import Job
from instatune_deploy.values.macs import count_macs
from instatune_deploy.values.recipe import TrainingSection
from instatune_deploy.values.space import SearchSpace

#: A training is tried for so many steps, or for so long.
STEPS, STEPS_S = 4, 6.0
#: A step should take no longer than this; larger batches are measured in part.
_STEP_S = 2.0
#: A training step against a forward pass, for choosing how much of a batch is measured.
_BACKWARD = 3.0
_FORWARD_S, _FORWARD_BATCH = 2.0, 8
_DRAWS = 50


@dataclass(frozen=True)
class Speed:
    """What was measured, all of it estimates of what a run will take.

    Args:
        sample_s: seconds of a forward pass of the full network for one sample.
        plain_step_s, elastic_step_s: seconds of a step of either training; None where none is to be done.
        mean_share: multiply-accumulates of a random sub-network, as a share of the full network's.
        parameters: of the full network.
        took_s: seconds that measuring took.
    """

    sample_s: float
    plain_step_s: float | None
    elastic_step_s: float | None
    mean_share: float
    parameters: int
    took_s: float


def measure_speed(job: Job, *, plain: bool, elastic: bool) -> Speed:
    """Measure what the stages of a job take; writes nothing into its run.

    Args:
        plain, elastic: which of the trainings are measured: of the full model, of the super-network.
    """
    started = time.monotonic()
    model, space = job.load_model(), job.named_space
    supernet = Supernet(copy.deepcopy(model).eval(), space)
    shape = supernet.shape(job.recipe.data.sequence_length)
    drawn = [count_macs(shape, a) for a in space.sample(min(_DRAWS, space.size), seed=job.recipe.seed)]
    sample_s = _forward_s(supernet.model, job)
    settings = job.recipe.finetune
    plain_s = elastic_s = None
    if plain:
        teacher = settings.teacher or settings
        plain_s = _step_s(job, teacher, sample_s, lambda options: BucketTrainer(model=copy.deepcopy(model), **options))
    if elastic:
        elastic_s = _step_s(job, settings, sample_s, lambda options: _elastic(job, model, space, options))
    return Speed(
        sample_s, plain_s, elastic_s, statistics.fmean(drawn) / count_macs(shape, supernet.full),
        sum(parameter.numel() for parameter in model.parameters()), time.monotonic() - started,
    )  # fmt: skip


def _elastic(job: Job, model: PreTrainedModel, space: SearchSpace, options: dict[str, Any]) -> Trainer:
    """The trainer of the super-network as the stage makes it, from the weights there are."""
    settings = job.recipe.finetune
    supernet = Supernet(copy.deepcopy(model), space)
    drawer = drawer_of(settings, space, supernet.shape(job.recipe.data.sequence_length), seed=job.recipe.seed)
    teacher = copy.deepcopy(model) if settings.gamma != "off" else None
    return ElasticTrainer(
        supernet, loss_of(settings), drawer, teacher, rates=rates_of(settings), augment=settings.augment, **options
    )


def _forward_s(model: PreTrainedModel, job: Job) -> float:
    """Seconds of a forward pass for one sample of the search split, in small batches."""
    times: list[float] = []
    rows = _some(job.data.search, 4 * _FORWARD_BATCH).rows
    began = time.perf_counter()
    with torch.inference_mode():
        for numbers, arrays in job.processor.batches(rows, _FORWARD_BATCH):
            inputs = {name: torch.from_numpy(array) for name, array in arrays.items()}
            start = time.perf_counter()
            model(**inputs)
            times.append((time.perf_counter() - start) / len(numbers))
            if time.perf_counter() - began > _FORWARD_S:
                break
    return statistics.median(times[1:] or times)  # the first one warms up


def _some(split: Split, rows: int) -> Split:
    """The same split with `rows` of its rows, from all over it; for training and reading, not for scoring."""
    step = max(1, len(split.rows) // rows)
    return replace(split, rows=split.rows.select(range(0, len(split.rows), step)[:rows]))


def _step_s(
    job: Job, settings: TrainingSection, sample_s: float, trainer_of: Callable[[dict[str, Any]], Trainer]
) -> float:
    """Seconds of a training step: a few real ones, of a part of the batch where all of it would take long."""
    size = min(settings.batch_size, max(1, int(_STEP_S / (_BACKWARD * sample_s))))
    part = settings.model_copy(
        update={"batch_size": size, "gradient_accumulation": 1, "epochs": 1.0, "compile_layers": False}
    )
    with tempfile.TemporaryDirectory(prefix="instatune-plan-") as directory:
        rows = _some(job.data.train, size * STEPS)
        options = trainer_arguments(part, rows, job.processor, Path(directory), job.recipe.seed, lambda line: None)
        options["args"].save_strategy = options["args"].logging_strategy = "no"
        watch = _Watch()
        options["callbacks"] = [watch]
        trainer = trainer_of(options)
        trainer.remove_callback(_printer())
        trainer.train()
    full = settings.batch_size / size * settings.gradient_accumulation
    return full * statistics.median(watch.times[1:] or watch.times)  # the first one warms up


def _printer() -> Any:
    from transformers.trainer_callback import PrinterCallback

    return PrinterCallback


class _Watch(TrainerCallback):
    """Times the steps of a training and stops it when there were enough."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self._began = self._start = time.perf_counter()

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._start = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        now = time.perf_counter()
        self.times.append(now - self._start)
        if len(self.times) >= STEPS or now - self._began > STEPS_S:
            control.should_training_stop = True
