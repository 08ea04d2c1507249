"""The sizes of a model that multiply-accumulates, parameters and latency of its sub-networks follow from."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from itertools import pairwise
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from instatune_deploy.elastic.axes import AxisMap
from instatune_deploy.elastic.families import inputs_of
from instatune_deploy.elastic.subnetwork import find_below, full_architecture, head_size, model_layers, present_axes
from instatune_deploy.values.macs import ConvolutionalShape, LayerCost, ModelShape, StageShape


def model_shape(model: PreTrainedModel, tokens: int) -> ModelShape | ConvolutionalShape:
    """The sizes of `model` that MACs, parameters and latency follow from.

    Args:
        model: a full network with its task head.
        tokens: length of a text in tokens; those of an image follow from its size and its patches'.
    """
    axes = present_axes(model)
    return _transformer(model, axes, tokens) if axes.filters is None else _convolutional(model, axes)


def _outside(model: PreTrainedModel, layers: Sequence[nn.Module]) -> set[int]:
    """The parameters that are in no layer, by their ids."""
    inside = {id(parameter) for layer in layers for parameter in layer.parameters()}
    return {id(parameter) for parameter in model.parameters()} - inside


def _transformer(model: PreTrainedModel, axes: AxisMap, tokens: int) -> ModelShape:
    config, full, layers = model.config, full_architecture(model.config), model_layers(model, axes)
    heads, ffn = full.layers[0]
    outside = _outside(model, layers)
    kind = inputs_of(config)
    text_tokens = tokens if kind == "image-text" else 0
    fixed_macs = 0
    if kind != "text":
        patches = (config.image_size // config.patch_size) ** 2
        tokens = patches + axes.extra_tokens + text_tokens
        fixed_macs = sum(patches * m.weight.numel() for m in model.modules() if isinstance(m, nn.Conv2d))
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and id(module.weight) in outside:
            read = tokens if ".embeddings." in name else _positions_read(model, module, tokens)
            fixed_macs += read * module.weight.numel()
    in_heads, in_ffn = (
        sum(attrgetter(axis.parameter)(layers[0]).numel() for axis in part) for part in (axes.heads, axes.ffn)
    )
    products, rows = _position_products(model, axes)
    return ModelShape(
        family=config.model_type,
        hidden=int(config.hidden_size),
        head_size=head_size(config),
        layers=full.depth,
        heads=heads,
        ffn=ffn,
        tokens=tokens,
        text_tokens=text_tokens,
        fixed_macs=fixed_macs,
        fixed_parameters=sum(p.numel() for p in model.parameters() if id(p) in outside),
        head_parameters=in_heads // heads,
        neuron_parameters=in_ffn // ffn,
        layer_parameters=sum(p.numel() for p in layers[0].parameters()) - in_heads - in_ffn,
        position_products=products,
        position_rows=rows,
        position_bias=any(axis.one_per_head for axis in axes.heads),
    )


def _positions_read(model: PreTrainedModel, linear: nn.Linear, tokens: int) -> int:
    """How many of the `tokens` positions of a sample a linear module outside the layers reads: all of them in a head that
    tags tokens or finds answers; a classifier, like a pooler, reads one."""
    reads_all = type(model).__name__.endswith(("ForTokenClassification", "ForQuestionAnswering"))
    return tokens if reads_all and linear not in set(model.base_model.modules()) else 1


def _position_products(model: PreTrainedModel, axes: AxisMap) -> tuple[int, int]:
    """How many products with relative positions a head makes for each token, and how many such positions there are."""
    if axes.position_table is None:
        return 0, 0
    table = find_below(model.base_model, axes.position_table.parameter)
    listed = find_below(model_layers(model, axes)[0], axes.position_table.listed_in)
    if not isinstance(table, Tensor) or not isinstance(listed, (list, tuple)):
        return 0, 0
    made = sum(kind in listed for kind in axes.position_table.products)
    return (made, len(table)) if made else (0, 0)


@torch.no_grad()
def _convolutional(model: PreTrainedModel, axes: AxisMap) -> ConvolutionalShape:
    config, layers = model.config, model_layers(model, axes)
    full, outside = full_architecture(config), _outside(model, layers)
    seen = _seen(model, layers)
    starts = [sum(full.depths[:stage]) for stage in range(len(full.depths) + 1)]
    stages = []
    for start, end in pairwise(starts):
        ends = (start, min(start + 1, end - 1))  # its first layer and another, if there is one
        costs = [_layer_costs(layers[i], axes, full.layers[i][0], seen) for i in ends]
        macs, parameters, passed, spots = zip(*costs, strict=True)
        stages.append(StageShape(end - start, full.layers[start][0], macs, parameters, passed, spots))
    products = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear)) and id(m.weight) in outside]
    assert axes.channels is not None
    traits = ((name, getattr(config, name)) for name in axes.traits)
    return ConvolutionalShape(
        family=config.model_type,
        traits=tuple(name if value is True else str(value) for name, value in traits if value),
        image_size=int(config.image_size),
        channels=(getattr(config, axes.channels[0]), *getattr(config, axes.channels[1])),
        stages=tuple(stages),
        fixed_macs=sum(m.weight.numel() * _positions(seen[m][1]) for m in products),
        fixed_parameters=sum(p.numel() for p in model.parameters() if id(p) in outside),
    )


def _seen(model: PreTrainedModel, layers: Sequence[nn.Module]) -> dict[nn.Module, tuple[torch.Size, torch.Size]]:
    """Shapes of what products and layers read and put out for one image."""
    found: dict[nn.Module, tuple[torch.Size, torch.Size]] = {}

    def note(module: nn.Module, inputs: Any, output: Tensor) -> None:
        found[module] = (inputs[0].shape, output.shape)

    config, was_training = model.config, model.training
    images = torch.zeros(1, config.num_channels, config.image_size, config.image_size, device=model.device)
    with ExitStack() as hooks:
        for module in (*layers, *(m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear)))):
            hooks.callback(module.register_forward_hook(note).remove)
        try:
            model.eval()(images)
        finally:
            model.train(was_training)
    return found


def _positions(shape: torch.Size) -> int:
    """How many times a product puts out a value of each channel for one sample."""
    return shape[2:].numel()


def _layer_costs(
    layer: nn.Module, axes: AxisMap, full: int, seen: dict[nn.Module, tuple[torch.Size, torch.Size]]
) -> tuple[LayerCost, LayerCost, int, int]:
    """Multiply-accumulates and parameters of a layer, the numbers that it reads and puts out, and for each of its `full`
    filters how many numbers stand between."""
    elastic = [axis.parameter for axis in axes.dimensions[0].axes]
    macs, parameters, spots = [0, 0, 0], [0, 0, 0], 0
    for name, parameter in layer.named_parameters():
        degree = elastic.count(
            name
        )  # axes of it that are elastic: what it costs is so much for each unit, or each pair
        size = parameter.numel() // full**degree
        parameters[degree] += size
        module = layer.get_submodule(name.rpartition(".")[0])
        if isinstance(module, nn.Conv2d):
            macs[degree] += size * _positions(seen[module][1])
            if any(axis.parameter == name and axis.dim == 0 for axis in axes.dimensions[0].axes):
                spots += _positions(seen[module][1])
    costs = (LayerCost(fixed, (each,), (pair,)) for fixed, each, pair in (macs, parameters))
    return (*costs, sum(shape.numel() for shape in seen[layer]), spots)  # type: ignore[return-value]
