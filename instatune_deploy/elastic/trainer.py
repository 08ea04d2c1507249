"""Trainers: of a network of one shape with a teacher, and of a super-network with the loss of InstaTune's Eq. 1."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel, Trainer, TrainerCallback

from instatune_deploy.data.columns import lengths
from instatune_deploy.elastic.augmenting import augmented
from instatune_deploy.elastic.axes import AxisMap
from instatune_deploy.elastic.drawing import Drawer
from instatune_deploy.elastic.families import axis_map
from instatune_deploy.elastic.losses import ElasticLoss, layer_pairs, network_loss, state_distance
from instatune_deploy.elastic.optimizer import RateSettings, parameter_groups
from instatune_deploy.elastic.processes import kept_precision
from instatune_deploy.elastic.recording import recorded
from instatune_deploy.elastic.sampler import BucketSampler
from instatune_deploy.elastic.sharding import shard_on_cpus
from instatune_deploy.elastic.statistics import batch_norms
from instatune_deploy.elastic.subnetwork import model_layers
from instatune_deploy.elastic.supernet import Supernet
from instatune_deploy.errors import TrainingError, UsageError
from instatune_deploy.values.space import Architecture


class BucketTrainer(Trainer):
    """`transformers.Trainer` with batches of like length, in an order that resumed runs and any number of processes
    repeat, and with learning rates by depth.

    Args:
        rates: learning rates of the parts of the network.
        **trainer_arguments: `transformers.Trainer`'s own, such as `model`, `args` and `train_dataset`.

    Raises:
        UsageError: layers with batch norms are to be computed again in the backward pass.
    """

    def __init__(self, *, rates: RateSettings | None = None, **trainer_arguments: Any) -> None:
        super().__init__(**trainer_arguments)
        trained: Any = self.model
        self._has_batch_norms = bool(batch_norms(trained))
        if self.args.gradient_checkpointing and self._has_batch_norms:
            raise UsageError(
                "gradient_checkpointing: batch norms would count each batch twice where layers are computed again"
            )
        self.rates = rates or RateSettings()

    def create_accelerator_and_postprocess(self) -> None:
        """Trainer's own, in the precision of its arguments; FSDP2 on CPUs, too."""
        with kept_precision("bf16" if self.args.bf16 else "fp16" if self.args.fp16 else None):
            super().create_accelerator_and_postprocess()
        self.is_fsdp_enabled = self.is_fsdp_enabled or shard_on_cpus(self.accelerator)

    def _inner_training_loop(self, batch_size: Any = None, *arguments: Any, **options: Any) -> Any:
        """Trainer's own. A resumed training divides its batches among the processes there are now; Trainer would keep the
        share that each had when the checkpoint was written."""
        self._train_batch_size = self.args.train_batch_size
        return super()._inner_training_loop(self._train_batch_size, *arguments, **options)

    def training_step(self, *arguments: Any, **options: Any) -> Tensor:
        """Trainer's own. In bf16 on a CPU attention is computed as plain products: PyTorch's fused kernel (2.13) takes
        3 to 14 times as long for the gradients of 16 to 64 tokens, and no less than the products up to about 200."""
        plain = self.args.bf16 and self.args.device.type == "cpu"
        with sdpa_kernel(SDPBackend.MATH) if plain else nullcontext():
            loss: Tensor = super().training_step(*arguments, **options)
        return loss

    def _get_train_sampler(self, train_dataset: Any = None) -> BucketSampler:
        rows: Any = self.train_dataset if train_dataset is None else train_dataset
        tokens = lengths(rows, "input_ids") if "input_ids" in getattr(rows, "column_names", ()) else None
        # Processes take batches in turn: like lengths must meet across all of them.
        size = self.args.train_batch_size * self.args.world_size
        # One row alone has no variance for a batch norm.
        drop_single = self._has_batch_norms and len(rows) > size
        return BucketSampler(len(rows), tokens, size, seed=self.args.seed, drop_single=drop_single)

    def create_optimizer(self) -> torch.optim.Optimizer:
        """Trainer's own, with a group of parameters for each learning rate."""
        if self.optimizer is None and self.rates != RateSettings():
            trained: Any = self.model
            network: PreTrainedModel = trained.model if isinstance(trained, Supernet) else trained
            decayed = set(self.get_decay_parameter_names(network))
            groups = parameter_groups(network, self.rates, self.args.learning_rate, self.args.weight_decay, decayed)
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, network)
            self.optimizer = kind(groups, **options)
        optimizer: torch.optim.Optimizer = super().create_optimizer()
        return optimizer

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Trainer's own loss.

        Raises:
            TrainingError: it is infinite or not a number, which Trainer would log as 0.
        """
        found = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        self._check(found[0] if return_outputs else found)
        return found

    def _check(self, loss: Tensor) -> None:
        value = float(loss.detach())
        if not math.isfinite(value):
            rate, what = self._get_learning_rate(), self._what_ran()
            raise TrainingError(f"loss is {value} at step {self.state.global_step}, learning rate {rate:.3g}{what}")

    def _what_ran(self) -> str:
        """Of the networks that the loss is of, for an error."""
        return ""


@dataclass(frozen=True)
class Run:
    """What one network gave for a batch.

    `output` is the model's own; `hidden` and `attention` are the outputs of its layers and of their attention blocks,
    each of shape (samples, tokens, hidden), empty where the loss does not need them; `kept` says which layers of the
    full network they are.
    """

    output: Any
    hidden: list[Tensor]
    attention: list[Tensor]
    kept: tuple[int, ...]


class DistillingTrainer(BucketTrainer):
    """Fine-tunes a network of one shape on labels and a teacher: Eq. 1 without sub-networks.

    Args:
        network: what to train, a full model or an extracted sub-network.
        loss: the numbers of Eq. 1.
        teacher: the strong teacher T, needed unless gamma is off.
        kept: the teacher's layers that `network` has; None: all.
        augment: the share of each batch that is changed at random, for the teacher to judge; see `augmenting`.
        rates, **trainer_arguments: see `BucketTrainer`.

    Raises:
        TrainingError: gamma needs a teacher and there is none, or attention is to be matched where there is none; or,
            while training, the loss is not finite.
    """

    def __init__(
        self, network: nn.Module, loss: ElasticLoss, teacher: PreTrainedModel | None = None, *,
        kept: tuple[int, ...] | None = None, augment: float = 0.0, rates: RateSettings | None = None,
        **trainer_arguments: Any,
    ) -> None:  # fmt: skip
        if loss.gamma != "off" and teacher is None:
            raise TrainingError(f"gamma {loss.gamma!r} needs a teacher, and there is none")
        plain: Any = network.model if isinstance(network, Supernet) else network
        if loss.attention_weight and axis_map(plain.config.model_type).attention is None:
            raise TrainingError(f"a {plain.config.model_type} has no attention blocks: set attention_weight to 0")
        super().__init__(rates=rates, model=network, **trainer_arguments)
        self.loss = loss
        self.teacher = None if teacher is None else teacher.eval().requires_grad_(False).to(self.args.device)
        self.model_accepts_loss_kwargs = False  # the loss is a mean over the micro-batch; Trainer averages these
        self._kept, self._augment = kept, augment
        self._batches = (-1, 0)  # a step and how many of its batches were changed

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Eq. 1 for one micro-batch; the network's output, for a super-network the full one's, beside it if asked for.

        The networks run one after the other, and each but the last makes its gradients as soon as it has run: no network
        learns from one that gets a gradient of it, so the sum of the gradients is that of the sum of the losses, and the
        activations of one network alone are held at a time.
        """
        inputs = self._augmented(inputs)
        teacher = self._ask_teacher(inputs)
        networks, runs = self._networks(), list[Run]()
        total: Tensor | float = 0.0
        for number, network in enumerate(networks):
            early = torch.is_grad_enabled() and number < len(networks) - 1
            # Several processes exchange the gradients of a step once, with the last network's.
            with self.accelerator.no_sync(model) if early else nullcontext():
                run = self._run(model, inputs, network)
                reference = teacher or next(iter(runs), None)
                loss = network_loss(run.output, reference and reference.output, inputs, self.loss)
                loss = loss + self._state_loss(run, reference, inputs.get("attention_mask"))
                self._check(loss)
                if early:
                    with torch.autocast(self.args.device.type, enabled=False):
                        self.accelerator.backward(loss / self.current_gradient_accumulation_steps)
                    loss = loss.detach()
            runs.append(run)
            total = loss + total
        self._learn(runs[0], runs[1:])
        return (total, runs[0].output) if return_outputs else total

    def _augmented(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """The batch to train on. What is changed follows from the seed, the step, its batch and the process, so that a
        resumed training goes on alike."""
        if not self._augment or not torch.is_grad_enabled():
            return inputs
        step = self.state.global_step
        self._batches = (step, self._batches[1] + 1 if self._batches[0] == step else 0)
        seed = hash((self.args.seed, *self._batches, self.args.process_index))
        return augmented(inputs, self._augment, seed=seed % 2**63)

    @property
    def epoch(self) -> float:
        """Passes over the data made so far."""
        return float(self.state.epoch or 0.0)

    def _ask_teacher(self, inputs: dict[str, Tensor]) -> Run | None:
        """What the strong teacher gives, if it is asked in this epoch."""
        if self.teacher is None or not self.loss.gamma_at(self.epoch):
            return None
        with torch.no_grad():
            questions = {name: value for name, value in inputs.items() if name not in self.label_names}
            return self._run_alone(self.teacher, self.teacher, questions, None)

    def _networks(self) -> Sequence[Architecture | None]:
        """The networks of this step, the full one first; None is the only one there is."""
        return [None]

    def _run(self, model: nn.Module, inputs: dict[str, Tensor], network: Architecture | None) -> Run:
        """What a network of this step gives."""
        plain: Any = self.model  # what Trainer may have wrapped as `model`
        return self._run_alone(model, plain, inputs, self._kept)

    def _what_ran(self) -> str:
        """What to add to a message about this step."""
        return ""

    def _learn(self, full: Run, subnetworks: Sequence[Run]) -> None:
        """Note how the sub-networks did."""

    def _run_alone(
        self, model: nn.Module, network: PreTrainedModel, inputs: dict[str, Tensor], kept: tuple[int, ...] | None
    ) -> Run:
        """One plain network's run; `model` is it, perhaps wrapped."""
        axes = axis_map(network.config.model_type)
        layers = model_layers(network, axes)
        with self._watching(layers, axes) as (hidden, attention):
            output = model(**inputs)
        return Run(output, hidden, attention, kept or tuple(range(len(layers))))

    @contextmanager
    def _watching(self, layers: Sequence[nn.Module], axes: AxisMap) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
        """Outputs of the layers and of their attention blocks while they run, where the loss needs them."""
        watched = axes.attention if self.loss.attention_weight else None
        blocks = [] if watched is None else [layer.get_submodule(watched) for layer in layers]
        with recorded(layers if self.loss.hidden_weight else []) as hidden, recorded(blocks) as attention:
            yield hidden, attention

    def _state_loss(self, run: Run, reference: Run | None, mask: Tensor | None) -> Tensor | float:
        """Weighted distances of a network's hidden states from those of the one it learns from."""
        total: Tensor | float = 0.0
        if reference is not None and self.loss.hidden_weight:
            pairs = layer_pairs(run.kept, len(reference.hidden))
            distance = state_distance(run.hidden, reference.hidden, pairs, mask)
            total = total + self.loss.hidden_weight * distance
        if reference is not None and self.loss.attention_weight:
            distance = state_distance(run.attention, reference.attention, list(enumerate(run.kept)), mask)
            total = total + self.loss.attention_weight * distance
        return total


class ElasticTrainer(DistillingTrainer):
    """Trains every step the full network and some sub-networks that share its weights.

    Drops in for `transformers.Trainer`: logging, checkpoints, resume, mixed precision, gradient accumulation and
    several processes are Trainer's own. All micro-batches of a step, and all processes, train the same sub-networks.

    Args:
        supernet: what to train.
        loss: the numbers of Eq. 1.
        drawer: draws the sub-networks of each step.
        teacher, rates, **trainer_arguments: see `DistillingTrainer`.
    """

    def __init__(
        self, supernet: Supernet, loss: ElasticLoss, drawer: Drawer, teacher: PreTrainedModel | None = None,
        **trainer_arguments: Any,
    ) -> None:  # fmt: skip
        super().__init__(supernet, loss, teacher, **trainer_arguments)
        self.supernet, self.drawer = supernet, drawer
        self._drawn: list[Architecture] = []
        self._drawn_at = -1

    def _networks(self) -> Sequence[Architecture | None]:
        if self._drawn_at != self.state.global_step:  # once a step: micro-batches train the same
            self._drawn, self._drawn_at = self.drawer.at(self.state.global_step, self.epoch), self.state.global_step
        return [self.supernet.full, *self._drawn]

    def _run(self, model: nn.Module, inputs: dict[str, Tensor], network: Architecture | None) -> Run:
        architecture = network or self.supernet.full
        with self._watching(self.supernet.layers, self.supernet.map) as (hidden, attention):
            output = model(inputs, [architecture])[0]
        return Run(output, hidden, attention, self.supernet.space.kept_layers(architecture.depths))

    def _what_ran(self) -> str:
        return f", sub-networks {', '.join(map(str, self._drawn))}"

    def _learn(self, full: Run, subnetworks: Sequence[Run]) -> None:
        if self.drawer.learns:
            losses = torch.stack([run.output.loss.detach() for run in (full, *subnetworks)])
            # All processes must draw alike, so they learn the same.
            losses = self.accelerator.reduce(losses, reduction="mean")
            self.drawer.learn(self._drawn, (losses[1:] - losses[0]).tolist())


class KeepDrawer(TrainerCallback):
    """Keeps in every checkpoint what a `Drawer` has learned.

    Args:
        resume_from: the checkpoint that training goes on from.
    """

    FILE = "drawer.json"

    def __init__(self, drawer: Drawer, resume_from: Path | None = None) -> None:
        self.drawer = drawer
        if resume_from is not None:
            drawer.restore((resume_from / self.FILE).read_text(encoding="utf-8"))

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            path = Path(args.output_dir) / f"checkpoint-{state.global_step}" / self.FILE
            path.write_text(self.drawer.state(), encoding="utf-8")
