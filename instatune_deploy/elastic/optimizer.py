"""Learning rates by part of a network, and a running mean of its weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback

from instatune_deploy.elastic.families import axis_map
from instatune_deploy.elastic.sharding import divided_like, whole
from instatune_deploy.elastic.subnetwork import layer_lists

_FILE = "weight_average.safetensors"


@dataclass(frozen=True)
class RateSettings:
    """Learning rates of a network's parts, as factors of the peak rate.

    Args:
        head: of the task head, which starts untrained.
        layer_decay: of each layer against the one above it; the embeddings are the lowest (Sun et al., 2019).
    """

    head: float = 1.0
    layer_decay: float = 1.0


def parameter_groups(
    network: PreTrainedModel, rates: RateSettings, learning_rate: float, weight_decay: float, decayed: set[str]
) -> list[dict[str, Any]]:
    """The trainable parameters of `network` in groups of one learning rate and weight decay.

    Args:
        learning_rate: peak rate of the highest layer; `weight_decay`: of the parameters in `decayed`.
        decayed: endings of names, such as ``encoder.layer.0.output.dense.weight``.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter, factor in _factors(network, rates):
        decay = weight_decay if name in decayed else 0.0
        groups.setdefault((learning_rate * factor, decay), []).append(parameter)
    return [{"params": found, "lr": rate, "weight_decay": decay} for (rate, decay), found in groups.items()]


def _factors(network: PreTrainedModel, rates: RateSettings) -> Iterator[tuple[str, nn.Parameter, float]]:
    """Every trainable parameter with its name and the factor of its learning rate."""
    axes, body = axis_map(network.config.model_type), f"{network.base_model_prefix}."
    lists = ((name, network.base_model.get_submodule(name)) for name in layer_lists(axes, network.config))
    prefixes = [f"{name}.{number}." for name, layers in lists for number, _ in layers.named_children()]
    depth = len(prefixes)
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        inside = name.removeprefix(body)
        if not name.startswith(body):
            factor = rates.head
        elif inside.startswith(tuple(prefixes)):
            index = next(number for number, prefix in enumerate(prefixes) if inside.startswith(prefix))
            factor = rates.layer_decay ** (depth - 1 - index)
        elif "embed" in inside:
            factor = rates.layer_decay**depth
        else:
            factor = 1.0  # a pooler or the last norm, above all layers
        yield name, parameter, factor


class WeightAverage(TrainerCallback):
    """An exponential moving mean of the weights, and of what batch norms keep, which are replaced by it when training ends.

    It is kept in every checkpoint: a resumed training goes on with it.

    Args:
        model: what is trained.
        decay: share of the mean that each step keeps; early on less, so that where training started is forgotten.
        resume_from: the checkpoint that training goes on from.
    """

    FILE = _FILE

    def __init__(self, model: nn.Module, decay: float, resume_from: Path | None = None) -> None:
        self.model, self.decay = model, decay
        self.steps = 0
        self.mean: dict[str, Tensor] = {}
        self._resume_from = resume_from

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Trainer has put the weights where they are trained by now, and divided them if it does."""
        source = _averaged(self.model)
        if self._resume_from is None:
            self.mean = {name: parameter.detach().clone() for name, parameter in source.items()}
        else:
            saved = load_file(self._resume_from / _FILE)
            self.steps = int(saved.pop("steps"))
            self.mean = {name: divided_like(saved[name], parameter.detach()) for name, parameter in source.items()}

    @torch.no_grad()
    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.steps += 1
        keep = min(self.decay, self.steps / (self.steps + 9))
        for name, parameter in _averaged(self.model).items():
            self.mean[name].lerp_(parameter.detach(), 1 - keep)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        mean = {name: whole(tensor) for name, tensor in self.mean.items()}
        if state.is_world_process_zero:
            directory = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            save_file({**mean, "steps": torch.tensor(self.steps)}, directory / _FILE)

    @torch.no_grad()
    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        for name, parameter in _averaged(self.model).items():
            parameter.copy_(self.mean[name])


def _averaged(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and the buffers that training moves."""
    moved = {name: buffer for name, buffer in model.named_buffers() if name.endswith(("running_mean", "running_var"))}
    return {**dict(model.named_parameters()), **moved}
