"""`Supernet`: a pre-trained model whose layers run at any width and depth of a search space."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, PreTrainedModel
from transformers.utils.generic import ModelOutput

from instatune_deploy.elastic.models import find_model_class
from instatune_deploy.elastic.subnetwork import (
    build_subnetwork,
    check_space,
    elastic_sizes,
    full_architecture,
    head_size,
    layer_list,
    load_state,
    model_shape,
    present_axes,
    set_head_counts,
)
from instatune_deploy.errors import CheckpointError
from instatune_deploy.values.macs import ModelShape
from instatune_deploy.values.space import Architecture, LayerChoice, SearchSpace

#: Of a layer, where sizes must be given.
NOTHING = LayerChoice(0, 0)


class Supernet(nn.Module):
    """A Hugging Face model made elastic by its family's axis map (InstaTune, arXiv 2308.15609).

    A sub-network keeps the first heads and neurons of the layers that `space` keeps at its depth. Its parameters are
    views into the model's own: nothing is copied, no layer is added, gradients land in the shared weights.

    Raises:
        FamilyError: the model's family has no axis map, or the model has a trait that allows none; says which.
        SpaceError: `space` is wider or deeper than the model.
    """

    def __init__(self, model: PreTrainedModel, space: SearchSpace) -> None:
        super().__init__()
        self.map = present_axes(model)
        check_space(space, model.config)
        self.model = model
        self.space = space
        self.head_size = head_size(model.config)
        #: The whole model, as an architecture; it is trained at every step even where the space leaves it out.
        self.full = full_architecture(model.config)
        #: Whether layers are computed again in the backward pass.
        self.recompute = False
        self.layers = tuple(layer_list(model, self.map))  # the full network's, also while fewer of them run

    def forward(
        self, batch: Mapping[str, Tensor], architectures: Sequence[Architecture], **options: Any
    ) -> list[ModelOutput]:
        """The model's own output for `batch`, once for each of `architectures`.

        Args:
            batch: the model's inputs by name, such as `input_ids` of shape (samples, tokens); with `labels` the
                outputs carry a loss.
            architectures: the sub-networks to run.
            options: passed to the model's forward, such as `output_hidden_states`.

        Raises:
            ArchitectureError: an architecture is neither in the space nor the full network.
        """
        outputs = []
        for architecture in architectures:
            with self.running([self.sliced(index, choice) for index, choice in self.kept(architecture)]):
                outputs.append(self.model(**batch, **options))
        return outputs

    def views(self, architecture: Architecture) -> dict[str, Tensor]:
        """The elastic parameters of a sub-network, as views, by the names they have in the sub-network.

        Raises:
            ArchitectureError: it is not in the space.
        """
        prefix = f"{self.model.base_model_prefix}.{self.map.layers}"
        return {
            f"{prefix}.{position}.{name}": view
            for position, (index, choice) in enumerate(self.kept(architecture))
            for name, view in self._layer_views(index, choice).items()
        }

    def kept(self, architecture: Architecture) -> list[tuple[int, LayerChoice]]:
        """The full network's layers that a sub-network keeps, each with what is kept of it.

        Raises:
            ArchitectureError: it is neither in the space nor the full network.
        """
        if architecture != self.full:
            self.space.check(architecture)
        return list(zip(self.space.kept_layers(architecture.depth), architecture.layers, strict=True))

    def elastic_parameters(self, index: int) -> dict[str, Tensor]:
        """The elastic parameters of one of the full network's layers, by their names below it."""
        return {
            axis.parameter: attrgetter(axis.parameter)(self.layers[index]) for axis in self.map.heads + self.map.ffn
        }

    def _layer_views(
        self, index: int, choice: LayerChoice, beyond: LayerChoice = NOTHING,
        whole: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:  # fmt: skip
        """What `choice` keeps of one layer's elastic parameters as views, by their names below it; see `sliced`."""
        whole = self.elastic_parameters(index) if whole is None else whole
        sizes = elastic_sizes(self.map, choice, self.head_size)
        starts = elastic_sizes(self.map, beyond, self.head_size)
        return {
            axis.parameter: whole[axis.parameter].narrow(axis.dim, start, size - start)
            for (axis, size), (_, start) in zip(sizes, starts, strict=True)
        }

    def sliced(
        self, index: int, choice: LayerChoice, beyond: LayerChoice = NOTHING,
        whole: Mapping[str, Tensor] | None = None,
    ) -> nn.Module:  # fmt: skip
        """A layer of the full network as a sub-network with `choice` has it, for `running`.

        Args:
            beyond: so many heads and neurons, the first ones, are left out; fewer than `choice` keeps.
            whole: tensors to take views of in place of the layer's elastic parameters, by their names below it.
        """
        views = self._layer_views(index, choice, beyond, whole)
        return _SlicedLayer(self, self.layers[index], views, choice.heads - beyond.heads)

    def extract(self, architecture: Architecture) -> PreTrainedModel:
        """A sub-network as a plain model of the same class, with its own copy of the weights.

        Its config says the architecture, so that `subnetwork.load_subnetwork` can load what its `save_pretrained` wrote.

        Raises:
            ArchitectureError: it is not in the space.
        """
        kept = [index for index, _ in self.kept(architecture)]
        network = build_subnetwork(type(self.model), self.model.config, architecture)
        prefix = f"{self.model.base_model_prefix}.{self.map.layers}."
        state = {}
        for name, tensor in self.model.state_dict().items():
            index, _, below = name.removeprefix(prefix).partition(".")
            if not name.startswith(prefix):
                state[name] = tensor
            elif int(index) in kept:
                state[f"{prefix}{kept.index(int(index))}.{below}"] = tensor
        load_state(network, {**state, **self.views(architecture)}, "super-network")
        return network.eval()

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any] | None = None) -> None:
        """Compute each layer's inside again in the backward pass instead of keeping it, as Trainer asks for by this name."""
        self.recompute = True

    @contextmanager
    def running(self, layers: Sequence[nn.Module]) -> Iterator[None]:
        """The model runs `layers` in place of its own; the full network's are back afterwards."""
        owner_name, _, list_name = self.map.layers.rpartition(".")
        owner = self.model.base_model.get_submodule(owner_name)
        full_list = getattr(owner, list_name)
        try:
            setattr(owner, list_name, nn.ModuleList(layers))
            yield
        finally:
            setattr(owner, list_name, full_list)

    def shape(self, tokens: int) -> ModelShape:
        """The sizes that MACs and latency follow from, for samples of `tokens` tokens (ignored for images)."""
        return model_shape(self.model, tokens)


class _SlicedLayer(nn.Module):
    """A layer of the full network as a sub-network has it, whenever it runs: also when it is computed again in the backward
    pass, for gradient checkpointing."""

    def __init__(self, supernet: Supernet, layer: nn.Module, views: dict[str, Tensor], heads: int) -> None:
        super().__init__()
        self.layer, self.views, self.heads = layer, views, heads
        self.axes, self.head_size, self.full_heads = supernet.map, supernet.head_size, supernet.full.layers[0].heads
        self.recompute = supernet.recompute and supernet.training

    def forward(self, *inputs: Any, **options: Any) -> Any:
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self._run, *inputs, use_reentrant=False, **options)
        return self._run(*inputs, **options)

    def _run(self, *inputs: Any, **options: Any) -> Any:
        set_head_counts(self.layer, self.axes, self.heads, self.head_size)
        try:
            return torch.func.functional_call(self.layer, self.views, inputs, options)
        finally:
            set_head_counts(self.layer, self.axes, self.full_heads, self.head_size)


SPACE_FILE = "search_space.json"


def save_supernet(supernet: Supernet, directory: Path) -> None:
    """Write the model as Hugging Face does, and its search space beside it."""
    supernet.model.save_pretrained(directory)
    (directory / SPACE_FILE).write_text(json.dumps(supernet.space.to_dict(), indent=1) + "\n", encoding="utf-8")


def load_supernet(directory: Path) -> Supernet:
    """The super-network that `save_supernet` wrote, in evaluation mode.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    try:
        space = SearchSpace.from_dict(json.loads((directory / SPACE_FILE).read_text(encoding="utf-8")))
        class_name = AutoConfig.from_pretrained(directory).architectures[0]
        model_class = find_model_class(class_name)
        if model_class is None:
            raise CheckpointError(f"{directory}: no model class is called {class_name}")
        model = model_class.from_pretrained(directory)
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{directory}: no super-network can be loaded: {' '.join(str(error).split())}") from None
    return Supernet(model.eval(), space)
