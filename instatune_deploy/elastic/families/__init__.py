"""One file a model family, named by its Hugging Face `model_type`, hyphens as underscores: its axis map."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import TYPE_CHECKING, Literal

from instatune_deploy.elastic.axes import AxisMap
from instatune_deploy.errors import FamilyError, did_you_mean

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@cache
def _axis_maps() -> dict[str, AxisMap]:
    """The axis map in each file of this folder, by model type."""
    files = [importlib.import_module(f"{__name__}.{file.name}") for file in pkgutil.iter_modules(__path__)]
    return {file.AXIS_MAP.model_type: file.AXIS_MAP for file in files}


def supported_families() -> list[str]:
    """Model types that have an axis map."""
    return sorted(_axis_maps())


def axis_map(model_type: str) -> AxisMap:
    """The axis map of a family.

    Raises:
        FamilyError: there is none; names the supported ones.
    """
    if model_type not in _axis_maps():
        near = did_you_mean(model_type, supported_families())
        meant = near if near.startswith("; did you mean") else ""
        raise FamilyError(
            f"model family {model_type!r} has no axis map{meant}; supported families: {', '.join(supported_families())}"
        )
    return _axis_maps()[model_type]


def inputs_of(config: PretrainedConfig) -> Literal["text", "image", "image-text"]:
    """What a sample is for models of `config`: a text, an image, or an image with a text.

    Raises:
        FamilyError: its family has no axis map.
    """
    axes = axis_map(config.model_type)
    both = axes.texts_too is not None and getattr(config, axes.texts_too)
    return "image-text" if both else axes.inputs


def config_axis_map(config: PretrainedConfig) -> AxisMap:
    """The axis map of the family of `config`.

    Raises:
        FamilyError: the family has none, or `config` has a trait with which its layers cannot be elastic; says why.
    """
    axes = axis_map(config.model_type)
    for attribute, reason in axes.refused:
        if getattr(config, attribute, None):
            value = getattr(config, attribute)
            raise FamilyError(f"a {config.model_type} model with {attribute}: {value} is not supported: {reason}")
    return axes
