"""Runs a trainer to its end: settings, checkpoints, going on from the last whole one."""

from __future__ import annotations

import copy
import importlib.util
import random
import shutil
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.modeling_utils import no_init_weights
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback

from instatune_deploy.data.dataset import Split
from instatune_deploy.data.processor import Processor
from instatune_deploy.elastic.compiling import compiled
from instatune_deploy.elastic.drawing import Drawer, DrawSettings
from instatune_deploy.elastic.families import axis_map
from instatune_deploy.elastic.losses import ElasticLoss
from instatune_deploy.elastic.optimizer import RateSettings, WeightAverage
from instatune_deploy.elastic.processes import is_main_process, kept_precision, process_count
from instatune_deploy.elastic.sharding import check_checkpoint, check_sharding, gather_weights
from instatune_deploy.elastic.statistics import batch_norms
from instatune_deploy.elastic.subnetwork import CONFIG_KEY, build_subnetwork, load_state, model_layers
from instatune_deploy.elastic.supernet import Supernet
from instatune_deploy.elastic.trainer import DistillingTrainer, ElasticTrainer, KeepDrawer
from instatune_deploy.errors import RecipeError, UsageError
from instatune_deploy.values.macs import NetworkShape
from instatune_deploy.values.progress import Counted
from instatune_deploy.values.recipe import FinetuneSection, TrainingSection
from instatune_deploy.values.space import Architecture, SearchSpace

Report = Callable[[str], None]

#: Training rows that a sub-network's batch norm statistics are measured on, and how many of them at a time.
CALIBRATION_ROWS, CALIBRATION_BATCH = 512, 64
#: Keys of configs that say how much is dropped while training, of all families.
_DROPOUT_KEYS = (
    "hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout", "dropout", "attention_dropout",
    "seq_classif_dropout", "pooler_dropout",
)  # fmt: skip


class Arguments(TrainingArguments):
    """Trainer's own. The CPU of processes that train together is "cpu:0" to Accelerate, by which name PyTorch (2.13) loads no
    optimizer's state. And Transformers would leave word of its precision in the environment, which every later training of
    this process would take for its own: what is there stays as it was found."""

    def __post_init__(self) -> None:
        with kept_precision():
            super().__post_init__()

    @property
    def device(self) -> torch.device:
        """Where this process trains."""
        device: torch.device = super().device
        return torch.device("cpu") if device.type == "cpu" else device


def loss_of(settings: FinetuneSection) -> ElasticLoss:
    """The loss that a recipe asks for."""
    return ElasticLoss(
        alpha=settings.alpha, gamma=settings.gamma, gamma_epochs=settings.gamma_epochs,
        temperature=settings.temperature, divergence=settings.divergence, hidden_weight=settings.hidden_weight,
        attention_weight=settings.attention_weight,
    )  # fmt: skip


def rates_of(settings: FinetuneSection) -> RateSettings:
    """The learning rates that a recipe asks for."""
    return RateSettings(settings.head_rate, settings.layer_decay)


def drawer_of(settings: FinetuneSection, space: SearchSpace, shape: NetworkShape, *, seed: int) -> Drawer:
    """What draws the sub-networks of each step as a recipe asks for."""
    drawn = DrawSettings(settings.subnetworks, settings.sampling, settings.size_power, settings.widen_epochs)
    return Drawer(space, shape, drawn, seed=seed)


def check_report_to(report_to: Sequence[str]) -> None:
    """Make sure that the packages of where losses are to be shown are installed.

    Raises:
        UsageError: one is not; names the line that installs it.
    """
    for name in report_to:
        if importlib.util.find_spec(name) is None:
            raise UsageError(f"finetune.report_to: {name} is not installed: pip install {name}")


def check_recomputing(settings: FinetuneSection, model: PreTrainedModel) -> None:
    """Make sure that no layer that is to be computed again has a batch norm, which would count each batch twice.

    Raises:
        RecipeError: one has.
    """
    for key, training in (("finetune", settings), ("finetune.teacher", settings.teacher)):
        if training is not None and training.gradient_checkpointing and batch_norms(model):
            raise RecipeError(
                f"{key}.gradient_checkpointing: a {model.config.model_type} has batch norms, which would count each batch "
                "twice: set it to false"
            )


def trainer_arguments(
    settings: TrainingSection, rows: Split, processor: Processor, checkpoints: Path, seed: int, report: Report,
    *, report_to: Sequence[str] = (),
) -> dict[str, Any]:  # fmt: skip
    """What a `transformers.Trainer` is given; checkpoints come ten times a training.

    Args:
        checkpoints: where they go, two levels below the run's directory, whose ``logs`` get event files.
        report_to: where Trainer shows losses, beside `report`; see `FinetuneSection`.

    Raises:
        UsageError: the batch cannot be divided among the processes, or FSDP is configured so that it cannot train this.
    """
    check_sharding()
    processes = process_count()
    if settings.batch_size % processes:
        raise UsageError(f"batch_size {settings.batch_size} cannot be divided among {processes} processes")
    arguments = Arguments(
        output_dir=str(checkpoints), num_train_epochs=settings.epochs, learning_rate=settings.learning_rate,
        per_device_train_batch_size=settings.batch_size // processes,
        gradient_accumulation_steps=settings.gradient_accumulation,
        warmup_ratio=settings.warmup_ratio, weight_decay=settings.weight_decay, bf16=settings.bf16,
        gradient_checkpointing=settings.gradient_checkpointing,
        # The other kind keeps no gradients of what is looked at inside layers, such as attention outputs.
        gradient_checkpointing_kwargs={"use_reentrant": False},
        save_strategy="steps", save_steps=0.1, save_total_limit=2, logging_steps=0.05, report_to=list(report_to) or "none",
        run_name=checkpoints.name, logging_dir=str(checkpoints.parents[1] / "logs" / checkpoints.name),
        disable_tqdm=True, remove_unused_columns=False, label_names=list(processor.head.label_columns), seed=seed, data_seed=seed,
        dataloader_pin_memory=torch.cuda.is_available(), use_cpu=not torch.cuda.is_available(),
    )  # fmt: skip
    if arguments.n_gpu > 1:
        # Trainer would split each batch among them by `nn.DataParallel`, which copies the network at every run.
        report(f"one of {arguments.n_gpu} GPUs is used; `accelerate launch` starts a process for each")
        arguments._n_gpu = 1
    return {
        "args": arguments, "train_dataset": rows.rows, "data_collator": processor.collator,
        "callbacks": [_ReportLoss(report)],
    }  # fmt: skip


def train(
    trainer: Trainer, checkpoints: Path, report: Report, *, ema_decay: float = 0.0, compile_layers: bool = False
) -> None:
    """Train to the end, from the last whole checkpoint if there is one; the weights are then the trained ones, or their
    moving mean if `ema_decay` is not 0. With `compile_layers`, layers run compiled meanwhile.

    Raises:
        TrainingError: the loss became infinite or not a number; the checkpoints stay.
        UsageError: the last checkpoint was written with FSDP and this training has none, or the other way round.
    """
    trainer.remove_callback(PrinterCallback)  # it would print to stdout; `report` is told instead
    drawer = trainer.drawer if isinstance(trainer, ElasticTrainer) and trainer.drawer.learns else None
    needed = [TRAINER_STATE_NAME, *([WeightAverage.FILE] if ema_decay else []), *([KeepDrawer.FILE] if drawer else [])]
    last = _last_whole(checkpoints, needed)
    if last is not None:
        check_checkpoint(last, sharded=trainer.is_fsdp_enabled)
        report(f"resuming from step {_step(last)}")
    if ema_decay:
        trained: Any = trainer.model
        trainer.add_callback(WeightAverage(trained, ema_decay, last))
    if drawer is not None:
        trainer.add_callback(KeepDrawer(drawer, last))
    with compiled(_layers(trainer)) if compile_layers else nullcontext():
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    gather_weights(cast("nn.Module", trainer.model))


def _layers(trainer: Trainer) -> list[nn.Module]:
    """The layers of every network that a trainer runs."""
    trained: Any = trainer.model
    networks = [trained.model if isinstance(trained, Supernet) else trained]
    if isinstance(trainer, DistillingTrainer) and trainer.teacher is not None:
        networks.append(trainer.teacher)
    return [layer for network in networks for layer in model_layers(network, axis_map(network.config.model_type))]


def _last_whole(checkpoints: Path, needed: list[str]) -> Path | None:
    """The last checkpoint with all files; those without are removed: the process died while it wrote them."""
    found = sorted(checkpoints.glob("checkpoint-*"), key=_step)
    whole = [path for path in found if all((path / name).is_file() for name in needed)]
    if is_main_process():
        for path in found:
            if path not in whole:
                shutil.rmtree(path)
    return whole[-1] if whole else None


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


def labelled_batches(split: Split, rows: int, size: int, processor: Processor) -> list[dict[str, Tensor]]:
    """The first `rows` rows as batches of torch tensors with `labels`."""
    return list(processor.labelled_batches(split.rows.select(range(min(rows, len(split)))), size))


def calibration_batches(split: Split, processor: Processor, *, seed: int) -> list[dict[str, Tensor]]:
    """Rows to measure batch norm statistics on, drawn by `seed`, as batches of the model's inputs without labels."""
    count = min(CALIBRATION_ROWS, len(split))
    count -= count % CALIBRATION_BATCH if count > CALIBRATION_BATCH else 0  # every batch counts alike
    rows = split.rows.select(sorted(random.Random(seed).sample(range(len(split)), count)))
    batches = processor.batches(rows, CALIBRATION_BATCH)
    return [{name: torch.from_numpy(array) for name, array in inputs.items()} for _, inputs in batches]


def with_dropout(model: PreTrainedModel, probability: float | None) -> PreTrainedModel:
    """The same network, which drops another share of its activations in training; None changes nothing."""
    if probability is None:
        return model
    config = copy.deepcopy(model.config)
    for key in _DROPOUT_KEYS:
        if getattr(config, key, None) is not None:
            setattr(config, key, probability)
    known = getattr(config, CONFIG_KEY, None)
    if known is None:
        with no_init_weights():
            network = type(model)(config)
    else:
        network = build_subnetwork(type(model), config, Architecture.parse(known))
    load_state(network, model.state_dict(), "model")
    return network


class _ReportLoss(TrainerCallback):
    """Tells the loss at every log step."""

    def __init__(self, report: Report) -> None:
        self.report = report

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if logs and "loss" in logs and state.is_world_process_zero:
            line = f"step {state.global_step}/{state.max_steps}: training loss {logs['loss']:.4f}"
            self.report(Counted(line, "steps", state.global_step, state.max_steps))
