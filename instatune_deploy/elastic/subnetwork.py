"""Plain Hugging Face models whose layers differ in heads and width: built, filled, saved and loaded."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from operator import attrgetter
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.modeling_utils import no_init_weights
from transformers.utils.backbone_utils import BackboneConfigMixin

from instatune_deploy.elastic.axes import Axis, AxisMap, Dimension
from instatune_deploy.elastic.families import axis_map, config_axis_map
from instatune_deploy.elastic.models import find_model_class
from instatune_deploy.errors import CheckpointError, SpaceError
from instatune_deploy.values.space import Architecture, LayerChoice, SearchSpace

#: Key of `config.json` under which a sub-network's architecture stands.
CONFIG_KEY = "instatune_architecture"
#: What errors call a dimension, where its name alone would not say it.
_NAMES = {"ffn": "MLP neurons"}
#: Tensors that an error names.
_NAMED = 5


def full_architecture(config: PretrainedConfig) -> Architecture:
    """The whole network that `config` describes.

    Raises:
        FamilyError: its family has no axis map.
    """
    axes = axis_map(config.model_type)
    depths = _per_stage(getattr(config, axes.depth))
    counts = [_full_counts(config, dimension, len(depths)) for dimension in axes.dimensions]
    choices = zip(*counts, strict=True)
    layers = (choice for choice, depth in zip(choices, depths, strict=True) for _ in range(depth))
    return Architecture(tuple(layers), depths)


def _per_stage(sizes: int | Sequence[int]) -> tuple[int, ...]:
    """A config's sizes, one for each stage."""
    return tuple(map(int, sizes)) if isinstance(sizes, Sequence) else (int(sizes),)


def _full_counts(config: PretrainedConfig, dimension: Dimension, stages: int) -> tuple[int, ...]:
    """Units of a layer of the full network, for each stage."""
    found = _per_stage(getattr(config, dimension.size))
    if dimension.fewer is not None and getattr(config, dimension.fewer[0]) == dimension.fewer[1]:
        found = tuple(size // dimension.fewer[2] for size in found)
    return found if len(found) == stages else found * stages


def head_size(config: PretrainedConfig) -> int:
    """Entries of one attention head; 0 where there are none."""
    heads = int(getattr(config, "num_attention_heads", 0))
    return int(config.hidden_size) // heads if heads else 0


def present_axes(model: PreTrainedModel) -> AxisMap:
    """The axis map of the model's family, without the axes whose parameters this model lacks, such as some biases, and
    without units that nothing reads.

    Raises:
        FamilyError: the family has none, or the model has a trait with which its layers cannot be elastic.
    """
    axes = config_axis_map(model.config)
    first = model_layers(model, axes)[0]

    def present(candidates: tuple[Axis, ...]) -> tuple[Axis, ...]:
        return tuple(axis for axis in candidates if find_below(first, axis.parameter) is not None)

    if axes.filters is not None:
        units = (present(unit) for unit in axes.filters.units)
        read = tuple(unit for unit in units if any(axis.dim == 1 for axis in unit))
        return replace(axes, filters=replace(axes.filters, units=read))
    return replace(axes, heads=present(axes.heads), ffn=present(axes.ffn))


def find_below(owner: object, name: str) -> object | None:
    """What stands under a dotted name below `owner`; None if there is no such thing, or it is None."""
    found: object | None = owner
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def layer_lists(axes: AxisMap, config: PretrainedConfig) -> tuple[str, ...]:
    """For each stage the dotted name of the list of its layers below the base model."""
    stages = len(_per_stage(getattr(config, axes.depth)))
    return tuple(axes.layers.replace("*", str(stage)) for stage in range(stages))


def model_layers(model: PreTrainedModel, axes: AxisMap) -> list[nn.Module]:
    """The model's layers, of all stages."""
    return [layer for name in layer_lists(axes, model.config) for layer in attrgetter(name)(model.base_model)]


def elastic_sizes(axes: AxisMap, choice: LayerChoice, head_size: int) -> Iterator[tuple[Axis, int]]:
    """Each elastic axis of a layer with the number of entries that `choice` keeps along it."""
    for dimension, count in zip(axes.dimensions, choice, strict=True):
        for axis in dimension.axes:
            yield axis, count * (head_size if dimension.of_heads and not axis.one_per_head else 1)


def set_head_counts(layer: nn.Module, axes: AxisMap, heads: int, head_size: int) -> None:
    """Tell a layer's modules how many heads they have."""
    for names, value in ((axes.head_counts, heads), (axes.head_widths, heads * head_size)):
        for name in names:
            module, _, attribute = name.rpartition(".")
            setattr(layer.get_submodule(module), attribute, value)


def check_space(space: SearchSpace, config: PretrainedConfig) -> None:
    """Check that every architecture of `space` fits into a model of `config`.

    Raises:
        SpaceError: it is deeper or wider, of other dimensions, or lacks a layer that must stay; says where.
    """
    full, axes = full_architecture(config), axis_map(config.model_type)
    names = tuple(dimension.name for dimension in axes.dimensions)
    if space.dimensions != names:
        raise SpaceError(
            f"the space is of {', '.join(space.dimensions)}, but the model's layers have {', '.join(names)}"
        )
    if len(space.stages) != len(full.depths):
        raise SpaceError(f"the space has {len(space.stages)} stages, but the model {len(full.depths)}")
    for stage, (wanted, there) in enumerate(zip(space.stages, full.depths, strict=True)):
        where = f" in stage {stage + 1}" if axes.staged else ""
        if wanted > there:
            raise SpaceError(f"the space has {wanted} layers{where}, but the model only {there}")
        if wanted < there:
            raise SpaceError(f"the space describes {wanted} layers{where}, but the model has {there}")
        if axes.staged and space.stage_layers[stage][0] in space.drop_order:
            raise SpaceError(f"the space drops the first layer{where}, which changes the resolution and must stay")
        for kind, name in enumerate(names):
            most, full_count = space.stage_choices(kind)[stage][-1], full.stages[stage][0][kind]
            if most > full_count:
                raise SpaceError(
                    f"the space has {most} {_NAMES.get(name, name)}{where}, but the model only {full_count}"
                )


def build_subnetwork(
    model_class: type[PreTrainedModel], config: PretrainedConfig, architecture: Architecture
) -> PreTrainedModel:
    """A model of `architecture` with uninitialised weights; its config says the architecture."""
    size, axes = head_size(config), axis_map(config.model_type)
    config = copy.deepcopy(config)
    setattr(config, axes.depth, list(architecture.depths) if axes.staged else architecture.depth)
    if isinstance(config, BackboneConfigMixin) and not axes.staged:
        # Such a config also names its layers and which of them a backbone puts out; it is not read with layers missing.
        config.stage_names = config.stage_names[: architecture.depth + 1]
        config.out_indices = [architecture.depth]
    setattr(config, CONFIG_KEY, str(architecture))
    with no_init_weights():
        network = model_class(config)
    axes = present_axes(network)
    for layer, choice in zip(model_layers(network, axes), architecture.layers, strict=True):
        set_head_counts(layer, axes, choice[0], size)
        for axis, kept in elastic_sizes(axes, choice, size):
            _resize(layer, axis, kept)
    return network


def _resize(layer: nn.Module, axis: Axis, size: int) -> None:
    """Give `axis` of a module's parameter or buffer `size` entries, uninitialised."""
    module_name, _, name = axis.parameter.rpartition(".")
    module = layer.get_submodule(module_name)
    tensor = getattr(module, name)
    shape = list(tensor.shape)
    shape[axis.dim] = size
    fresh = torch.empty(shape, dtype=tensor.dtype)
    setattr(module, name, nn.Parameter(fresh) if isinstance(tensor, nn.Parameter) else fresh)
    if isinstance(module, nn.Linear) and name == "weight":
        setattr(module, "out_features" if axis.dim == 0 else "in_features", size)
    elif isinstance(module, nn.Conv2d):
        setattr(module, "out_channels" if axis.dim == 0 else "in_channels", size)
    elif isinstance(module, nn.LayerNorm):
        module.normalized_shape = (size,)
    elif isinstance(module, nn.BatchNorm2d):
        module.num_features = size


def load_state(network: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Copy `state` into `network`, every tensor or none.

    Raises:
        CheckpointError: tensors are missing, unexpected or of other shapes; names the first ones, with expected and found.
    """
    own, misfits = network.state_dict(), list[str]()
    for name, tensor in own.items():
        if name not in state:
            misfits.append(f"tensor {name} is missing, expected shape {tuple(tensor.shape)}")
        elif tensor.shape != state[name].shape:
            misfits.append(f"tensor {name} has shape {tuple(state[name].shape)}, expected {tuple(tensor.shape)}")
    misfits += [f"tensor {name} is unexpected" for name in sorted(state.keys() - own.keys())]
    if misfits:
        more = f" (and {len(misfits) - _NAMED} more)" if len(misfits) > _NAMED else ""
        raise CheckpointError(f"{source}: {'; '.join(misfits[:_NAMED])}{more}")
    network.load_state_dict(dict(state))


def load_subnetwork(directory: Path) -> PreTrainedModel:
    """The sub-network that `save_pretrained` of an extracted network wrote to `directory`.

    Raises:
        CheckpointError: files are missing or damaged, or a tensor does not fit; nothing is re-initialised.
    """
    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
        state = load_file(directory / "model.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{directory}: {' '.join(str(error).split())}") from None
    architecture = getattr(config, CONFIG_KEY, None)
    model_class = find_model_class((config.architectures or [""])[0])
    if architecture is None or model_class is None:
        raise CheckpointError(f"{directory}/config.json: is not of a saved sub-network (no {CONFIG_KEY})")
    network = build_subnetwork(model_class, config, Architecture.parse(architecture))
    load_state(network, state, str(directory / "model.safetensors"))
    return network.eval()
