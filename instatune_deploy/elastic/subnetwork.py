"""Plain Hugging Face models whose layers differ in heads and width: built, filled, saved and loaded."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
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

from instatune_deploy.elastic.axes import Axis, AxisMap
from instatune_deploy.elastic.families import axis_map, config_axis_map, inputs_of
from instatune_deploy.elastic.models import find_model_class
from instatune_deploy.errors import CheckpointError, SpaceError
from instatune_deploy.values.macs import ModelShape
from instatune_deploy.values.space import Architecture, LayerChoice, SearchSpace

#: Key of `config.json` under which a sub-network's architecture stands.
CONFIG_KEY = "instatune_architecture"
#: Tensors that an error names.
_NAMED = 5


def full_architecture(config: PretrainedConfig) -> Architecture:
    """The whole network that `config` describes.

    Raises:
        FamilyError: its family has no axis map.
    """
    neurons = getattr(config, axis_map(config.model_type).ffn_size)
    return Architecture.uniform(int(config.num_hidden_layers), int(config.num_attention_heads), int(neurons))


def head_size(config: PretrainedConfig) -> int:
    """Entries of one attention head."""
    return int(config.hidden_size) // int(config.num_attention_heads)


def present_axes(model: PreTrainedModel) -> AxisMap:
    """The axis map of the model's family, without the axes whose parameters this model lacks, such as some biases.

    Raises:
        FamilyError: the family has none, or the model has a trait with which its layers cannot be elastic.
    """
    axes = config_axis_map(model.config)
    first = layer_list(model, axes)[0]

    def present(candidates: tuple[Axis, ...]) -> tuple[Axis, ...]:
        return tuple(axis for axis in candidates if _find(first, axis.parameter) is not None)

    return replace(axes, heads=present(axes.heads), ffn=present(axes.ffn))


def _find(owner: object, name: str) -> object | None:
    """What stands under a dotted name below `owner`; None if there is no such thing, or it is None."""
    found: object | None = owner
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def layer_list(model: PreTrainedModel, axes: AxisMap) -> nn.ModuleList:
    """The model's list of layers."""
    layers: nn.ModuleList = attrgetter(axes.layers)(model.base_model)
    return layers


def elastic_sizes(axes: AxisMap, choice: LayerChoice, head_size: int) -> Iterator[tuple[Axis, int]]:
    """Each elastic axis of a layer with the number of entries that `choice` keeps along it."""
    for axis in axes.heads:
        yield axis, choice.heads * (1 if axis.one_per_head else head_size)
    for axis in axes.ffn:
        yield axis, choice.ffn


def set_head_counts(layer: nn.Module, axes: AxisMap, heads: int, head_size: int) -> None:
    """Tell a layer's modules how many heads they have."""
    for names, value in ((axes.head_counts, heads), (axes.head_widths, heads * head_size)):
        for name in names:
            module, _, attribute = name.rpartition(".")
            setattr(layer.get_submodule(module), attribute, value)


def check_space(space: SearchSpace, config: PretrainedConfig) -> None:
    """Check that every architecture of `space` fits into a model of `config`.

    Raises:
        SpaceError: it is deeper or wider; says where.
    """
    full = full_architecture(config)
    for what, wanted, there in (
        ("layers", space.layers, full.depth),
        ("heads", space.head_choices[-1], full.layers[0].heads),
        ("MLP neurons", space.ffn_choices[-1], full.layers[0].ffn),
    ):
        if wanted > there:
            raise SpaceError(f"the space has {wanted} {what}, but the model only {there}")
    if space.layers < full.depth:
        raise SpaceError(f"the space describes {space.layers} layers, but the model has {full.depth}")


def build_subnetwork(
    model_class: type[PreTrainedModel], config: PretrainedConfig, architecture: Architecture
) -> PreTrainedModel:
    """A model of `architecture` with uninitialised weights; its config says the architecture."""
    size = head_size(config)
    config = copy.deepcopy(config)
    config.num_hidden_layers = architecture.depth
    if isinstance(config, BackboneConfigMixin):
        # Such a config also names its layers and which of them a backbone puts out; it is not read with layers missing.
        config.stage_names = config.stage_names[: architecture.depth + 1]
        config.out_indices = [architecture.depth]
    setattr(config, CONFIG_KEY, str(architecture))
    with no_init_weights():
        network = model_class(config)
    axes = present_axes(network)
    for layer, choice in zip(layer_list(network, axes), architecture.layers, strict=True):
        set_head_counts(layer, axes, choice.heads, size)
        for axis, kept in elastic_sizes(axes, choice, size):
            _resize(layer, axis, kept)
    return network


def _resize(layer: nn.Module, axis: Axis, size: int) -> None:
    """Give `axis` of a module's parameter `size` entries, uninitialised."""
    module_name, _, name = axis.parameter.rpartition(".")
    module = layer.get_submodule(module_name)
    parameter = getattr(module, name)
    shape = list(parameter.shape)
    shape[axis.dim] = size
    setattr(module, name, nn.Parameter(torch.empty(shape, dtype=parameter.dtype)))
    if isinstance(module, nn.Linear) and name == "weight":
        setattr(module, "out_features" if axis.dim == 0 else "in_features", size)
    elif isinstance(module, nn.LayerNorm):
        module.normalized_shape = (size,)


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
        config = AutoConfig.from_pretrained(directory)
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


def _positions_read(model: PreTrainedModel, linear: nn.Linear, tokens: int) -> int:
    """How many of the `tokens` positions of a sample a linear module outside the layers reads: all of them in a head that
    tags tokens or finds answers; a classifier, like a pooler, reads one."""
    reads_all = type(model).__name__.endswith(("ForTokenClassification", "ForQuestionAnswering"))
    return tokens if reads_all and linear not in set(model.base_model.modules()) else 1


def model_shape(model: PreTrainedModel, tokens: int) -> ModelShape:
    """The sizes of `model` that MACs, parameters and latency follow from.

    Args:
        model: a full network with its task head.
        tokens: length of a text in tokens; those of an image follow from its size and its patches'.
    """
    config, axes = model.config, present_axes(model)
    full, layers = full_architecture(config), layer_list(model, axes)
    heads, ffn = full.layers[0]
    in_layers = {id(p) for p in layers.parameters()}
    kind = inputs_of(config)
    text_tokens = tokens if kind == "image-text" else 0
    fixed_macs = 0
    if kind != "text":
        patches = (config.image_size // config.patch_size) ** 2
        tokens = patches + axes.extra_tokens + text_tokens
        fixed_macs = sum(patches * m.weight.numel() for m in model.modules() if isinstance(m, nn.Conv2d))
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and id(module.weight) not in in_layers:
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
        fixed_parameters=sum(p.numel() for p in model.parameters() if id(p) not in in_layers),
        head_parameters=in_heads // heads,
        neuron_parameters=in_ffn // ffn,
        layer_parameters=sum(p.numel() for p in layers[0].parameters()) - in_heads - in_ffn,
        position_products=products,
        position_rows=rows,
        position_bias=any(axis.one_per_head for axis in axes.heads),
    )


def _position_products(model: PreTrainedModel, axes: AxisMap) -> tuple[int, int]:
    """How many products with relative positions a head makes for each token, and how many such positions there are."""
    if axes.position_table is None:
        return 0, 0
    table = _find(model.base_model, axes.position_table.parameter)
    listed = _find(layer_list(model, axes)[0], axes.position_table.listed_in)
    if not isinstance(table, Tensor) or not isinstance(listed, (list, tuple)):
        return 0, 0
    made = sum(kind in listed for kind in axes.position_table.products)
    return (made, len(table)) if made else (0, 0)
