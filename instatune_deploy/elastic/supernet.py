"""`Supernet`: a pre-trained model whose layers run at any width and depth of a search space."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel
from transformers.utils.generic import ModelOutput

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
from instatune_deploy.values.space import Architecture, SearchSpace


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
            views = self.views(architecture)
            with self._shaped_as(architecture):
                outputs.append(
                    torch.func.functional_call(
                        self.model, views, args=(), kwargs={**batch, **options}, tie_weights=False
                    )
                )
        return outputs

    def views(self, architecture: Architecture) -> dict[str, Tensor]:
        """The elastic parameters of a sub-network, as views, by the names they have in the sub-network.

        Raises:
            ArchitectureError: it is not in the space.
        """
        if architecture != self.full:
            self.space.check(architecture)
        kept = self.space.kept_layers(architecture.depth)
        views = {}
        for position, (index, choice) in enumerate(zip(kept, architecture.layers, strict=True)):
            for axis, size in elastic_sizes(self.map, choice, self.head_size):
                name = f"{self.model.base_model_prefix}.{self.map.layers}.{position}.{axis.parameter}"
                views[name] = attrgetter(axis.parameter)(self.layers[index]).narrow(axis.dim, 0, size)
        return views

    def extract(self, architecture: Architecture) -> PreTrainedModel:
        """A sub-network as a plain model of the same class, with its own copy of the weights.

        Its config says the architecture, so that `subnetwork.load_subnetwork` can load what its `save_pretrained` wrote.

        Raises:
            ArchitectureError: it is not in the space.
        """
        views = self.views(architecture)
        network = build_subnetwork(type(self.model), self.model.config, architecture)
        with self._shaped_as(architecture):
            state = {**self.model.state_dict(), **views}
        load_state(network, state, "super-network")
        return network.eval()

    @contextmanager
    def _shaped_as(self, architecture: Architecture) -> Iterator[None]:
        """Only the architecture's layers run, with its head counts; the full network's are back afterwards."""
        base = self.model.base_model
        owner_name, _, list_name = self.map.layers.rpartition(".")
        owner = base.get_submodule(owner_name)
        full_list = getattr(owner, list_name)
        kept = [self.layers[index] for index in self.space.kept_layers(architecture.depth)]
        full_heads = self.full.layers[0].heads
        try:
            setattr(owner, list_name, nn.ModuleList(kept))
            for layer, choice in zip(kept, architecture.layers, strict=True):
                set_head_counts(layer, self.map, choice.heads, self.head_size)
            yield
        finally:
            setattr(owner, list_name, full_list)
            for layer in kept:
                set_head_counts(layer, self.map, full_heads, self.head_size)

    def shape(self, tokens: int) -> ModelShape:
        """The sizes that MACs and latency follow from, for samples of `tokens` tokens (ignored for images)."""
        return model_shape(self.model, tokens)


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
        model = getattr(transformers, class_name).from_pretrained(directory)
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{directory}: no super-network can be loaded: {' '.join(str(error).split())}") from None
    return Supernet(model.eval(), space)
