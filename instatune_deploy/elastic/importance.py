"""Scores heads, neurons and layers on a fine-tuned model, and sorts it so that "the first k" means "the best k"."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter

import torch
from torch import Tensor

from instatune_deploy.elastic.axes import Axis
from instatune_deploy.elastic.supernet import Supernet
from instatune_deploy.values.space import Architecture, SearchSpace

Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class Importance:
    """For each layer of the full network, a score for each head and each MLP neuron; larger matters more."""

    heads: tuple[Tensor, ...]
    ffn: tuple[Tensor, ...]


def first_order_importance(supernet: Supernet, batches: Iterable[Batch]) -> Importance:
    """How much the loss would change, to first order, if a head or neuron were removed.

    The score of a unit is the mean over batches of ``|sum of weight * gradient|`` over the parameters that belong to
    it (Michel et al., 2019, Eq. 2; Hou et al., DynaBERT, 2020, Sec. 2.1.1).

    Args:
        batches: inputs with `labels`, as the model's forward takes them.
    """
    return _importance(supernet, batches, torch.abs)


def fisher_importance(supernet: Supernet, batches: Iterable[Batch]) -> Importance:
    """The Fisher information of a mask on each head or neuron: the mean over batches of ``(sum of weight * gradient)^2``
    (Kwon et al., 2022, Sec. 4.1). Where first order averages, this counts the batches in which a unit matters most.

    Args:
        batches: inputs with `labels`; the fewer samples in each, the closer it is to the information of single ones.
    """
    return _importance(supernet, batches, torch.square)


#: The ways to score, by the names they have in a recipe.
SCORERS: dict[str, Callable[[Supernet, Iterable[Batch]], Importance]] = {
    "first_order": first_order_importance,
    "fisher": fisher_importance,
}


def _importance(supernet: Supernet, batches: Iterable[Batch], measure: Callable[[Tensor], Tensor]) -> Importance:
    """The sum over batches of `measure` of each unit's ``sum of weight * gradient``."""
    model = supernet.model
    heads = [torch.zeros(choice.heads) for choice in supernet.full.layers]
    ffn = [torch.zeros(choice.ffn) for choice in supernet.full.layers]
    was_training = model.training
    model.eval()
    for batch in batches:
        model.zero_grad(set_to_none=True)
        model(**batch).loss.backward()
        for i, layer in enumerate(supernet.layers):
            heads[i] += measure(_unit_scores(layer, supernet.map.heads, len(heads[i])))
            ffn[i] += measure(_unit_scores(layer, supernet.map.ffn, len(ffn[i])))
    model.zero_grad(set_to_none=True)
    model.train(was_training)
    return Importance(tuple(heads), tuple(ffn))


def _unit_scores(layer: torch.nn.Module, axes: Iterable[Axis], units: int) -> Tensor:
    """``sum of weight * gradient`` of each of `units` equal groups along the axes; shape (units,)."""
    total = torch.zeros(units)
    for axis in axes:
        parameter = attrgetter(axis.parameter)(layer)
        if parameter is not None and parameter.grad is not None:
            product = (parameter.detach() * parameter.grad).movedim(axis.dim, 0)
            total += product.reshape(units, -1).sum(dim=1).float().cpu()
    return total


@torch.no_grad()
def sort_by_importance(supernet: Supernet, importance: Importance) -> None:
    """Permute heads and neurons of every layer in place, the most important first. The output does not change."""
    for layer, heads, ffn in zip(supernet.layers, importance.heads, importance.ffn, strict=True):
        for axes, scores in ((supernet.map.heads, heads), (supernet.map.ffn, ffn)):
            order = torch.argsort(scores, descending=True, stable=True)
            for axis in axes:
                parameter = attrgetter(axis.parameter)(layer)
                if parameter is not None:
                    _permute(parameter, axis.dim, order.to(parameter.device))


def _permute(parameter: Tensor, dim: int, order: Tensor) -> None:
    """Reorder equal groups of entries along `dim` in place."""
    group = parameter.shape[dim] // len(order)
    index = (order[:, None] * group + torch.arange(group, device=order.device)).flatten()
    parameter.copy_(parameter.index_select(dim, index))


@dataclass(frozen=True)
class LayerDrops:
    """Layers in the order in which they go, and by depth the mean loss of a batch at full width without them."""

    order: tuple[int, ...]
    losses: dict[int, float]


def layer_drop_order(
    supernet: Supernet, batches: Sequence[Batch], *, report: Callable[[str], None] = lambda line: None
) -> tuple[int, ...]:
    """The order in which layers go: as `layer_drops` finds it, the rest in the space's own order."""
    order = layer_drops(supernet, batches, report=report).order
    return (*order, *(index for index in supernet.space.drop_order if index not in order))


@torch.no_grad()  # not inference_mode: BEiT keeps an index tensor of its first run, and training needs it later
def layer_drops(
    supernet: Supernet, batches: Sequence[Batch], *, report: Callable[[str], None] = lambda line: None
) -> LayerDrops:
    """The layers that go, each time the one whose absence costs the least loss on `batches`.

    Greedy, as many layers as the space's smallest depth drops. The network is run at full width.
    """
    space, full = supernet.space, supernet.full.layers[0]
    everything = tuple(range(space.layers))
    dropped: list[int] = []
    was_training = supernet.model.training
    supernet.model.eval()
    try:
        means = {space.layers: _summed_loss(supernet, batches, supernet.full) / len(batches)}
        while len(dropped) < space.layers - space.depths[0]:
            depth = space.layers - len(dropped) - 1
            full_width = Architecture.uniform(depth, full.heads, full.ffn)
            losses = {}
            for index in everything:
                if index in dropped:
                    continue
                order = (*dropped, index)
                supernet.space = SearchSpace(
                    (depth,), ((full.heads,),) * space.layers, ((full.ffn,),) * space.layers, order,
                )  # fmt: skip
                losses[index] = _summed_loss(supernet, batches, full_width)
            least = min(losses, key=lambda index: (losses[index], -index))
            means[depth] = losses[least] / len(batches)
            report(f"layer {least} goes at depth {depth}: loss {means[depth]:.4f}")
            dropped.append(least)
    finally:
        supernet.space = space
        supernet.model.train(was_training)
    return LayerDrops(tuple(dropped), means)


def _summed_loss(supernet: Supernet, batches: Sequence[Batch], architecture: Architecture) -> float:
    return sum(float(supernet(batch, [architecture])[0].loss) for batch in batches)
