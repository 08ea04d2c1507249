"""Scores units (heads, neurons, filters) and layers on a fine-tuned model, and sorts it so that "the first k" means "the best k"."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter

import torch
from torch import Tensor

from instatune_deploy.elastic.axes import Axis
from instatune_deploy.elastic.supernet import Supernet
from instatune_deploy.values.space import Architecture

Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class Importance:
    """A score for each unit of the full network, such as a head or an MLP neuron; larger matters more.

    Args:
        units: for each dimension, each of its sets of units and each layer, the scores of the units, shape (units,). Most
            dimensions have one set.
    """

    units: tuple[tuple[tuple[Tensor, ...], ...], ...]


def first_order_importance(supernet: Supernet, batches: Iterable[Batch]) -> Importance:
    """How much the loss would change, to first order, if a unit were removed.

    The score of a unit is the mean over batches of ``|sum of weight * gradient|`` over the parameters that belong to
    it (Michel et al., 2019, Eq. 2; Hou et al., DynaBERT, 2020, Sec. 2.1.1).

    Args:
        batches: inputs with `labels`, as the model's forward takes them.
    """
    return _importance(supernet, batches, torch.abs)


def fisher_importance(supernet: Supernet, batches: Iterable[Batch]) -> Importance:
    """The Fisher information of a mask on each unit: the mean over batches of ``(sum of weight * gradient)^2``
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
    model, dimensions = supernet.model, supernet.map.dimensions
    found = [
        [[torch.zeros(choice[kind]) for choice in supernet.full.layers] for _ in dimension.units]
        for kind, dimension in enumerate(dimensions)
    ]
    was_training = model.training
    model.eval()
    for batch in batches:
        model.zero_grad(set_to_none=True)
        model(**batch).loss.backward()
        for dimension, sets in zip(dimensions, found, strict=True):
            for axes, scores in zip(dimension.units, sets, strict=True):
                for layer, own in zip(supernet.layers, scores, strict=True):
                    own += measure(_unit_scores(layer, axes, len(own)))
    model.zero_grad(set_to_none=True)
    model.train(was_training)
    return Importance(tuple(tuple(map(tuple, sets)) for sets in found))


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
    """Permute the units of every layer in place, the most important first. The output does not change."""
    for dimension, sets in zip(supernet.map.dimensions, importance.units, strict=True):
        for axes, scores in zip(dimension.units, sets, strict=True):
            for layer, own in zip(supernet.layers, scores, strict=True):
                order = torch.argsort(own, descending=True, stable=True)
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

    Greedy, as many layers of each stage as the space's smallest depth there drops. The network is run at full width. A
    layer that the space's drop order does not name stays.
    """
    space, full = supernet.space, supernet.full
    widths = tuple(tuple((count,) for count in kind) for kind in zip(*full.layers, strict=True))
    dropped: list[int] = []
    was_training = supernet.model.training
    supernet.model.eval()

    def without(*gone: int) -> float:
        """The loss without these layers."""
        depths = tuple(sum(i not in gone for i in layers) for layers in space.stage_layers)
        supernet.space = replace(space, depths=tuple((depth,) for depth in depths), widths=widths, drop_order=gone)
        return _summed_loss(supernet, batches, supernet.space.largest)

    def droppable() -> list[int]:
        """The layers of stages that are not as shallow as they may be yet."""
        return [
            index for layers, depths in zip(space.stage_layers, space.depths, strict=True) for index in layers
            if sum(i not in dropped for i in layers) > depths[0] and index not in dropped and index in space.drop_order
        ]  # fmt: skip

    try:
        means = {space.layers: _summed_loss(supernet, batches, full) / len(batches)}
        while candidates := droppable():
            losses = {index: without(*dropped, index) for index in candidates}
            least = min(losses, key=lambda index: (losses[index], -index))
            dropped.append(least)
            depth = space.layers - len(dropped)
            means[depth] = losses[least] / len(batches)
            report(f"layer {least} goes at depth {depth}: loss {means[depth]:.4f}")
    finally:
        supernet.space = space
        supernet.model.train(was_training)
    return LayerDrops(tuple(dropped), means)


def _summed_loss(supernet: Supernet, batches: Sequence[Batch], architecture: Architecture) -> float:
    return sum(float(supernet(batch, [architecture])[0].loss) for batch in batches)
