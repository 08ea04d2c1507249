"""Plain Hugging Face models whose layers differ in heads and width: built, filled, saved and loaded."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from operator import attrgetter
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.modeling_utils import no_init_weights

from instatune_deploy.elastic.axes import Axis, AxisMap
from instatune_deploy.elastic.families import axis_map
from instatune_deploy.errors import CheckpointError, SpaceError
from instatune_deploy.values.macs import ModelShape
from instatune_deploy.values.space import Architecture, LayerChoice, SearchSpace

#: Key of `config.json` under which a sub-network's architecture stands.
CONFIG_KEY = "instatune_architecture"


def head_size(config: PretrainedConfig) -> int:
    """Entries of one attention head."""
    return int(config.hidden_size) // int(config.num_attention_heads)


def layer_list(model: PreTrainedModel, axes: AxisMap) -> nn.ModuleList:
    """The model's list of layers."""
    layers: nn.ModuleList = attrgetter(axes.layers)(model.base_model)
    return layers


def elastic_sizes(axes: AxisMap, choice: LayerChoice, head_size: int) -> Iterator[tuple[Axis, int]]:
    """Each elastic axis of a layer with the number of entries that `choice` keeps along it."""
    for axis in axes.heads:
        yield axis, choice.heads * head_size
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
    for what, wanted, there in (
        ("layers", space.layers, int(config.num_hidden_layers)),
        ("heads", space.head_choices[-1], int(config.num_attention_heads)),
        ("MLP neurons", space.ffn_choices[-1], int(config.intermediate_size)),
    ):
        if wanted > there:
            raise SpaceError(f"the space has {wanted} {what}, but the model only {there}")
    if space.layers < int(config.num_hidden_layers):
        raise SpaceError(f"the space describes {space.layers} layers, but the model has {config.num_hidden_layers}")


def build_subnetwork(
    model_class: type[PreTrainedModel], config: PretrainedConfig, architecture: Architecture
) -> PreTrainedModel:
    """A model of `architecture` with uninitialised weights; its config says the architecture."""
    axes, size = axis_map(config.model_type), head_size(config)
    config = copy.deepcopy(config)
    config.num_hidden_layers = architecture.depth
    setattr(config, CONFIG_KEY, str(architecture))
    with no_init_weights():
        network = model_class(config)
    for layer, choice in zip(layer_list(network, axes), architecture.layers, strict=True):
        set_head_counts(layer, axes, choice.heads, size)
        for axis, kept in elastic_sizes(axes, choice, size):
            _resize(layer, axis, kept)
    return network


def _resize(layer: nn.Module, axis: Axis, size: int) -> None:
    """Give `axis` of a linear module's parameter `size` entries, uninitialised."""
    module_name, _, name = axis.parameter.rpartition(".")
    module = layer.get_submodule(module_name)
    parameter = getattr(module, name)
    if parameter is None:
        return
    shape = list(parameter.shape)
    shape[axis.dim] = size
    setattr(module, name, nn.Parameter(torch.empty(shape, dtype=parameter.dtype)))
    if name == "weight":
        setattr(module, "out_features" if axis.dim == 0 else "in_features", size)


def load_state(network: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Copy `state` into `network`, every tensor or none.

    Raises:
        CheckpointError: a tensor is missing, unexpected or of another shape; names it, expected and found.
    """
    own = network.state_dict()
    for name, tensor in own.items():
        if name not in state:
            raise CheckpointError(f"{source}: tensor {name} is missing, expected shape {tuple(tensor.shape)}")
        if tensor.shape != state[name].shape:
            raise CheckpointError(
                f"{source}: tensor {name} has shape {tuple(state[name].shape)}, expected {tuple(tensor.shape)}"
            )
    unexpected = sorted(state.keys() - own.keys())
    if unexpected:
        raise CheckpointError(f"{source}: unexpected tensors: {', '.join(unexpected)}")
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
    class_name = (config.architectures or [""])[0]
    if architecture is None or not hasattr(transformers, class_name):
        raise CheckpointError(f"{directory}/config.json: is not of a saved sub-network (no {CONFIG_KEY})")
    network = build_subnetwork(getattr(transformers, class_name), config, Architecture.parse(architecture))
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
        tokens: length of a text in tokens; an image model's follows from its image and patch size.
    """
    config, axes = model.config, axis_map(model.config.model_type)
    in_layers = {id(p) for p in layer_list(model, axes).parameters()}
    fixed_macs = 0
    for module in model.modules():
        if isinstance(module, nn.Linear) and id(module.weight) not in in_layers:
            fixed_macs += _positions_read(model, module, tokens) * module.weight.numel()
        if isinstance(module, nn.Conv2d):
            patches = (config.image_size // config.patch_size) ** 2
            fixed_macs += patches * module.weight.numel()
            tokens = patches + 1
    first = layer_list(model, axes)[0]
    query_bias = next(a.parameter for a in axes.heads if a.parameter.endswith("bias"))
    return ModelShape(
        family=config.model_type,
        hidden=int(config.hidden_size),
        head_size=head_size(config),
        layers=int(config.num_hidden_layers),
        heads=int(config.num_attention_heads),
        ffn=int(config.intermediate_size),
        tokens=tokens,
        fixed_macs=fixed_macs,
        fixed_parameters=sum(p.numel() for p in model.parameters() if id(p) not in in_layers),
        qkv_bias=attrgetter(query_bias)(first) is not None,
    )
