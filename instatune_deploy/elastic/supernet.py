"""`Supernet`: a pre-trained model whose layers run at any width and depth of a search space."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, PreTrainedModel
from transformers.utils.generic import ModelOutput

from instatune_deploy.elastic.models import find_model_class
from instatune_deploy.elastic.shapes import model_shape
from instatune_deploy.elastic.statistics import Calibration, Statistics, batch_norms, unmoved
from instatune_deploy.elastic.subnetwork import (
    build_subnetwork,
    check_space,
    elastic_sizes,
    full_architecture,
    head_size,
    layer_lists,
    load_state,
    model_layers,
    present_axes,
    set_head_counts,
)
from instatune_deploy.errors import CheckpointError
from instatune_deploy.values.macs import NetworkShape
from instatune_deploy.values.space import Architecture, LayerChoice, SearchSpace


class Supernet(nn.Module):
    """A Hugging Face model made elastic by its family's axis map (InstaTune, arXiv 2308.15609).

    A sub-network keeps the first units (heads, neurons, filters) of the layers that `space` keeps at its depth. Its
    parameters are views into the model's own: nothing is copied, no layer is added, gradients land in the shared weights.

    Batch norms keep statistics of the full network, which training sub-networks does not move. A sub-network's own are
    measured on the rows that `calibrate` is given, and used wherever it is not trained; without them it has the full
    network's.

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
        self.layers = tuple(model_layers(model, self.map))  # the full network's, also while fewer of them run
        #: For each stage the name of its list of layers below the base model.
        self.layer_lists = layer_lists(self.map, model.config)
        #: For each layer its stage.
        self.stage_of = [stage for stage, layers in enumerate(space.stage_layers) for _ in layers]
        self._calibration: Calibration | None = None

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
            others = batch_norms(self.model) if self.training and architecture != self.full else []
            with self.running(self.network(architecture)), unmoved(others):
                outputs.append(self.model(**batch, **options))
        return outputs

    def train(self, mode: bool = True) -> Supernet:
        """As any module's; what was measured of the weights that are now trained is forgotten."""
        if mode and self._calibration is not None:
            self._calibration.forget()
        return super().train(mode)

    def network(self, architecture: Architecture) -> list[tuple[int, nn.Module]]:
        """The layers of a sub-network, for `running`."""
        kept, measured = self.kept(architecture), self.statistics(architecture)
        moves = architecture == self.full
        return [
            (index, self.sliced(index, choice, statistics=own, moves=moves))
            for (index, choice), own in zip(kept, measured, strict=True)
        ]

    def calibrate(self, batches: Callable[[], Sequence[Mapping[str, Tensor]]]) -> Supernet:
        """Measure sub-networks' batch norm statistics on `batches` from now on; returns itself.

        Args:
            batches: makes inputs by name, without labels; called once, if the network has batch norms at all.
        """
        self._calibration = Calibration(batches) if batch_norms(self.model) else None
        return self

    def calibration_batches(self) -> Sequence[Mapping[str, Tensor]] | None:
        """What `calibrate` was given, where it is needed."""
        return None if self._calibration is None else self._calibration.batches()

    def statistics(self, architecture: Architecture) -> list[Statistics]:
        """For each layer of a sub-network what its batch norms keep, by buffers' names below it; empty while training, and
        where there are no rows to measure on."""
        if self._calibration is None or self.training:
            return [{} for _ in architecture.layers]
        return self._calibration.statistics(self, self.kept(architecture))

    def views(self, architecture: Architecture) -> dict[str, Tensor]:
        """The elastic parameters of a sub-network, as views, by the names they have in the sub-network.

        Raises:
            ArchitectureError: it is not in the space.
        """
        return {
            f"{place}.{name}": view
            for place, (index, choice) in zip(self._places(architecture.depths), self.kept(architecture), strict=True)
            for name, view in self.layer_views(index, choice).items()
        }

    def _places(self, depths: Sequence[int]) -> list[str]:
        """Names of the layers of a network with so many in each stage."""
        lists = zip(self.layer_lists, depths, strict=True)
        return [f"{self.model.base_model_prefix}.{name}.{number}" for name, depth in lists for number in range(depth)]

    def kept(self, architecture: Architecture) -> list[tuple[int, LayerChoice]]:
        """The full network's layers that a sub-network keeps, each with what is kept of it.

        Raises:
            ArchitectureError: it is neither in the space nor the full network.
        """
        if architecture != self.full:
            self.space.check(architecture)
        return list(zip(self.space.kept_layers(architecture.depths), architecture.layers, strict=True))

    def elastic_parameters(self, index: int) -> dict[str, Tensor]:
        """The elastic parameters (and buffers) of one of the full network's layers, by their names below it."""
        return {
            axis.parameter: attrgetter(axis.parameter)(self.layers[index])
            for dimension in self.map.dimensions
            for axis in dimension.axes
        }

    def layer_views(
        self, index: int, choice: LayerChoice, beyond: LayerChoice | None = None,
        whole: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:  # fmt: skip
        """What `choice` keeps of one layer's elastic parameters as views, by their names below it; see `sliced`."""
        views = dict(self.elastic_parameters(index) if whole is None else whole)
        sizes = elastic_sizes(self.map, choice, self.head_size)
        starts = elastic_sizes(self.map, beyond or (0,) * len(choice), self.head_size)
        for (axis, size), (_, start) in zip(sizes, starts, strict=True):  # a parameter may have several elastic axes
            views[axis.parameter] = views[axis.parameter].narrow(axis.dim, start, size - start)
        return views

    def sliced(
        self, index: int, choice: LayerChoice, beyond: LayerChoice | None = None,
        whole: Mapping[str, Tensor] | None = None, statistics: Statistics | None = None, moves: bool = False,
    ) -> nn.Module:  # fmt: skip
        """A layer of the full network as a sub-network with `choice` has it, for `running`.

        Args:
            beyond: so many units of each dimension, the first ones, are left out; fewer than `choice` keeps.
            whole: tensors to take views of in place of the layer's elastic parameters, by their names below it.
            statistics: of its batch norms, in place of the full network's.
            moves: whether training it moves the full network's batch norm statistics.
        """
        views = self.layer_views(index, choice, beyond, whole)
        heads = choice[0] - (beyond[0] if beyond else 0)
        return _SlicedLayer(self, index, {**views, **(statistics or {})}, heads, moves=moves)

    def extract(self, architecture: Architecture) -> PreTrainedModel:
        """A sub-network as a plain model of the same class, with its own copy of the weights.

        Its config says the architecture, so that `subnetwork.load_subnetwork` can load what its `save_pretrained` wrote.

        Raises:
            ArchitectureError: it is not in the space.
        """
        network = build_subnetwork(type(self.model), self.model.config, architecture)
        before, after = self._places(self.full.depths), self._places(architecture.depths)
        kept = zip((before[index] for index, _ in self.kept(architecture)), after, strict=True)
        state = self.model.state_dict()
        inside = {name for name in state if name.startswith(tuple(f"{place}." for place in before))}
        found = {name: tensor for name, tensor in state.items() if name not in inside}
        for old, new in kept:
            found.update({new + name.removeprefix(old): state[name] for name in inside if name.startswith(f"{old}.")})
        found.update(self.views(architecture))
        for place, own in zip(after, self.statistics(architecture), strict=True):
            found.update({f"{place}.{name}": buffer for name, buffer in own.items()})
        load_state(network, found, "super-network")
        return network.eval()

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any] | None = None) -> None:
        """Compute each layer's inside again in the backward pass instead of keeping it, as Trainer asks for by this name."""
        self.recompute = True

    @contextmanager
    def running(self, layers: Sequence[tuple[int, nn.Module]]) -> Iterator[None]:
        """The model runs `layers`, each in the place of one of its own that is given by number, and none of the others; the
        full network's are back afterwards."""
        with ExitStack() as restored:
            for stage, name in enumerate(self.layer_lists):
                owner_name, _, list_name = name.rpartition(".")
                owner = self.model.base_model.get_submodule(owner_name)
                restored.callback(setattr, owner, list_name, getattr(owner, list_name))
                own = [layer for index, layer in layers if self.stage_of[index] == stage]
                setattr(owner, list_name, nn.ModuleList(own))
            yield

    def shape(self, tokens: int) -> NetworkShape:
        """The sizes that MACs and latency follow from, for samples of `tokens` tokens (ignored for images)."""
        return model_shape(self.model, tokens)


class _SlicedLayer(nn.Module):
    """A layer of the full network as a sub-network has it, whenever it runs: also when it is computed again in the backward
    pass, for gradient checkpointing."""

    def __init__(self, supernet: Supernet, index: int, views: dict[str, Tensor], heads: int, *, moves: bool) -> None:
        super().__init__()
        self.layer, self.views, self.heads = supernet.layers[index], views, heads
        self.axes, self.head_size, self.full_heads = supernet.map, supernet.head_size, supernet.full.layers[index][0]
        self.recompute = supernet.recompute and supernet.training
        self.still = [] if moves or not supernet.training else batch_norms(self.layer)

    def forward(self, *inputs: Any, **options: Any) -> Any:
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self._run, *inputs, use_reentrant=False, **options)
        return self._run(*inputs, **options)

    def _run(self, *inputs: Any, **options: Any) -> Any:
        set_head_counts(self.layer, self.axes, self.heads, self.head_size)
        try:
            with unmoved(self.still):
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
        class_name = AutoConfig.from_pretrained(directory, trust_remote_code=False).architectures[0]
        model_class = find_model_class(class_name)
        if model_class is None:
            raise CheckpointError(f"{directory}: no model class is called {class_name}")
        model = model_class.from_pretrained(directory, use_safetensors=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{directory}: no super-network can be loaded: {' '.join(str(error).split())}") from None
    return Supernet(model.eval(), space)
