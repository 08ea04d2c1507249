"""Loads a user's checkpoint with its task head, and says so when anything in it does not fit."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.utils.hub import cached_file

from instatune_deploy.data.processor import Processor
from instatune_deploy.elastic.families import axis_map, config_axis_map
from instatune_deploy.elastic.subnetwork import full_architecture
from instatune_deploy.errors import CheckpointError, FamilyError, SpaceError
from instatune_deploy.values.presets import AUTO, FAMILY_PRESETS, preset
from instatune_deploy.values.proposal import probing_space
from instatune_deploy.values.recipe import Task
from instatune_deploy.values.space import Architecture, SearchSpace

AUTO_CLASSES: dict[Task, Any] = {
    "text-classification": transformers.AutoModelForSequenceClassification,
    "text-regression": transformers.AutoModelForSequenceClassification,
    "token-classification": transformers.AutoModelForTokenClassification,
    "question-answering": transformers.AutoModelForQuestionAnswering,
    "image-classification": transformers.AutoModelForImageClassification,
    "visual-question-answering": transformers.AutoModelForVisualQuestionAnswering,
}
#: The loss of heads that can have several: a checkpoint may have been fine-tuned with another one.
_PROBLEM_TYPES: dict[Task, str] = {
    "text-classification": "single_label_classification",
    "text-regression": "regression",
    "image-classification": "single_label_classification",
    "visual-question-answering": "single_label_classification",
}
#: The task whose head networks get that are only measured, by what they read.
TASK_OF_INPUTS: dict[str, Task] = {
    "text": "text-classification", "image": "image-classification", "image-text": "visual-question-answering",
}  # fmt: skip


def load_config(name: str) -> PretrainedConfig:
    """The config of a model directory or hub name that can be elastic.

    Raises:
        CheckpointError: there is no such model, or neither it nor its image processor says how large images are.
        FamilyError: its family has no axis map, or the model has a trait that allows none; says which.
    """
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        if name.startswith((".", "/", "~")) and not Path(name).exists():
            reason = "there is no such directory"
        raise CheckpointError(f"{name}: no model can be loaded: {reason}") from None
    axes = config_axis_map(config)
    if axes.inputs == "image" and getattr(config, "image_size", None) is None:
        config.image_size = _image_size(name)  # a config of convolutions need not say it
    return config


def _image_size(name: str) -> int:
    """Pixels a side of the images that a model's processor makes.

    Raises:
        CheckpointError: it comes without one, or makes images that are no squares.
    """
    pixels = Processor(name, "image-classification", 0).encode_images([Image.new("RGB", (256, 256))])["pixel_values"]
    height, width = pixels.shape[-2:]
    if height != width:
        raise CheckpointError(
            f"{name}: its image processor makes images of {height} x {width} pixels, expected squares"
        )
    return int(height)


def check_reads(name: str, config: PretrainedConfig, task: Task) -> None:
    """Make sure that the model called `name` reads what a task is about.

    Raises:
        FamilyError: its family is not for this task.
    """
    axes = axis_map(config.model_type)
    if task == "visual-question-answering":
        fits = axes.texts_too is not None
        if fits and not getattr(config, str(axes.texts_too)):
            raise FamilyError(
                f"{name}: {task} needs a model that reads texts, and this one was saved without ({axes.texts_too}: false)"
            )
    else:
        fits = (axes.inputs == "image") == (task == "image-classification")
    if not fits:
        raise FamilyError(f"{name}: a {config.model_type} model cannot do {task}")


def _order_head(model: PreTrainedModel, before: Sequence[str], classes: Sequence[str]) -> None:
    """Put the outputs of a head that was made for the same classes in another order into the order of `classes`."""
    if [*before] == [*classes] or sorted(before) != sorted(classes):
        return  # alike, or names such as LABEL_0, which say nothing
    body = {id(module) for module in model.base_model.modules()} if model.base_model is not model else set()
    linear = [
        module for module in model.modules()
        if isinstance(module, nn.Linear) and module.out_features == len(classes) and id(module) not in body
    ]  # fmt: skip
    if linear:
        order = [before.index(label) for label in classes]
        with torch.no_grad():
            for parameter in linear[-1].parameters():
                parameter.copy_(parameter[order].clone())


def load_pretrained(name: str, task: Task, classes: tuple[str, ...], *, reset_head: bool, seed: int) -> PreTrainedModel:
    """The model `name` with a head for `task`. A head that the checkpoint lacks is initialised by `seed`.

    Raises:
        CheckpointError: a tensor of the body is missing, only some of the head are there, or any tensor has another
            shape; names it. Or the head gives no loss to train with.
        FamilyError: the model cannot be elastic, or its family is not for this task.
    """
    config = load_config(name)
    check_reads(name, config, task)
    transformers.set_seed(seed)
    own_labels = {
        "num_labels": len(classes), "id2label": dict(enumerate(classes)),
        "label2id": {label: index for index, label in enumerate(classes)}, "problem_type": _PROBLEM_TYPES.get(task),
    }  # fmt: skip
    model = _load(name, task, {} if reset_head else own_labels, reset_head=reset_head)
    if not reset_head:
        _order_head(model, [label for _, label in sorted((config.id2label or {}).items())], classes)
    if reset_head:
        for key, value in own_labels.items():
            setattr(config, key, value)
        config.architectures = []  # the task's usual head, whichever the checkpoint has
        # It is made in the precision that the checkpoint was saved in, which may be half.
        fresh = AUTO_CLASSES[task].from_config(config).float()
        # Only the body comes from the checkpoint; strict loading makes sure that it is the whole body.
        fresh.base_model.load_state_dict(model.base_model.state_dict())
        model = fresh
    if axis_map(config.model_type).inputs == "image":
        model.config.image_size = config.image_size
    return model


def _load(name: str, task: Task, options: dict[str, Any], *, reset_head: bool) -> PreTrainedModel:
    try:
        model, info = AUTO_CLASSES[task].from_pretrained(
            name, output_loading_info=True, use_safetensors=True, trust_remote_code=False, **options
        )
    except RuntimeError as error:
        misfit = _first_misfit(name, task, options) or " ".join(str(error).split())[:300]
        raise CheckpointError(f"{name}: {misfit}") from None
    except (OSError, ValueError, SafetensorError) as error:
        if _has_pickles_alone(name):
            raise CheckpointError(
                f"{name}: its weights are a pickle, which can hold code, and only safetensors are read: if you trust it, load "
                "it with transformers and save it by save_pretrained"
            ) from None
        raise CheckpointError(f"{name}: its weights cannot be read: {' '.join(str(error).split())[:300]}") from None
    _check_missing(name, model, set(info["missing_keys"]), reset_head=reset_head)
    if not reset_head and not {"labels", "start_positions"} & inspect.signature(model.forward).parameters.keys():
        raise CheckpointError(
            f"{name}: its head, {type(model).__name__}, gives no loss to train with; for a new head set reset_head: true"
        )
    return model


def _has_pickles_alone(name: str) -> bool:
    """Whether a model has weights in no other format than torch's old one."""
    files = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
    safe, safe_parts, *pickles = (
        cached_file(
            name, file, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
        )
        for file in files
    )
    return not (safe or safe_parts) and any(pickles)


def _check_missing(name: str, model: PreTrainedModel, missing: set[str], *, reset_head: bool) -> None:
    """Check that only a whole head is missing, and a pooler with it: that is trained for a head.

    Raises:
        CheckpointError: something else is missing; names it.
    """
    state, prefix = model.state_dict(), f"{model.base_model_prefix}."
    head = {key for key in state if not key.startswith(prefix)}
    new_head = reset_head or head <= missing
    lost = sorted(key for key in missing if not (new_head and (key in head or ".pooler." in key)))
    if lost:
        shape = tuple(state[lost[0]].shape)
        more = f" (and {len(lost) - 1} more)" if len(lost) > 1 else ""
        hint = "; for a new head set reset_head: true" if lost[0] in head or ".pooler." in lost[0] else ""
        raise CheckpointError(f"{name}: tensor {lost[0]} is missing, expected shape {shape}{more}{hint}")


def _first_misfit(name: str, task: Task, options: dict[str, Any]) -> str | None:
    """The first tensor of a checkpoint whose shape is not the model's; transformers does not say which it is."""
    path = cached_file(name, "model.safetensors", _raise_exceptions_for_missing_entries=False)
    if path is None:
        return None
    with torch.device("meta"):
        model = AUTO_CLASSES[task].from_config(AutoConfig.from_pretrained(name, trust_remote_code=False, **options))
    expected = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    prefix = f"{model.base_model_prefix}."
    with safe_open(path, framework="pt") as checkpoint:
        for key in checkpoint.keys():  # noqa: SIM118  it is no mapping
            own = key if key in expected else prefix + key  # a body that was saved alone has no prefix
            found = tuple(checkpoint.get_slice(key).get_shape())
            if own in expected and found != expected[own]:
                hint = "" if own.startswith(prefix) else "; for a new head set reset_head: true"
                return f"tensor {own} has shape {found}, expected {expected[own]}{hint}"
    return None


def space_for(config: PretrainedConfig, wanted: str | dict[str, Any]) -> SearchSpace:
    """The search space a recipe asks for: a preset's name, ``paper`` (that of the family), or choices, `heads` and `ffn`
    of every layer alike or of each. ``auto`` is what tables must cover before a space is proposed.

    Raises:
        UnknownNameError: there is no such preset.
        SpaceError: the choices contradict each other, are not for as many layers as the model has, or for another kind of
            model.
    """
    full = full_architecture(config)
    if not isinstance(wanted, str):
        _check_transformer(full, "choices of heads and ffn")
        heads, ffn = (_of_each_layer(wanted[name], full.depth, name) for name in ("heads", "ffn"))
        return SearchSpace.stack(sorted(set(wanted["depths"])), heads, ffn, tuple(reversed(range(full.depth))))
    if wanted == AUTO:
        _check_transformer(full, AUTO)
        return probing_space(full)
    name = FAMILY_PRESETS[config.model_type] if wanted == "paper" else wanted
    try:
        return preset(name).fitted(full)
    except SpaceError as error:
        raise SpaceError(f"preset {name}: {error}") from None


def _check_transformer(full: Architecture, what: str) -> None:
    """Make sure that a network has the dimensions of a transformer.

    Raises:
        SpaceError: it has others.
    """
    if len(full.depths) > 1 or len(full.layers[0]) != 2:
        raise SpaceError(
            f"space: {what} are for transformers; for a convolutional network name a preset, such as paper"
        )


def _of_each_layer(given: list[Any], layers: int, name: str) -> tuple[tuple[int, ...], ...]:
    """Choices of each layer, sorted, from one list for all of them or a list of lists.

    Raises:
        SpaceError: there are more or fewer lists than layers.
    """
    lists = given if given and isinstance(given[0], list) else [given] * layers
    if len(lists) != layers:
        raise SpaceError(f"{name} are given for {len(lists)} layers, but the model has {layers}")
    return tuple(tuple(sorted(set(choices))) for choices in lists)
