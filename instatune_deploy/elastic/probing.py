"""Networks to measure: any architecture of a family at any choice, trained or not."""

from __future__ import annotations

import copy

import numpy as np
from transformers import PretrainedConfig, PreTrainedModel

from instatune_deploy.elastic.families import axis_map, inputs_of
from instatune_deploy.elastic.pretrained import AUTO_CLASSES, TASK_OF_INPUTS
from instatune_deploy.elastic.supernet import Supernet
from instatune_deploy.values.space import SearchSpace


def random_model(config: PretrainedConfig) -> PreTrainedModel:
    """A model of `config` with random weights and the head that its family's inputs suggest: one for images where it reads
    texts as well, unless its own head is for questions about images."""
    config = copy.deepcopy(config)
    config.architectures = config.architectures or []  # transformers looks for a family's head in it
    answers = any(name.endswith("ForVisualQuestionAnswering") for name in config.architectures)
    kind = inputs_of(config) if answers else axis_map(config.model_type).inputs
    return AUTO_CLASSES[TASK_OF_INPUTS[kind]].from_config(config).eval()


def probing_supernet(model: PreTrainedModel, space: SearchSpace) -> Supernet:
    """`model` with every combination of the choices that `space` has in any layer, as probes need them."""
    return Supernet(model, space.probing)


def synthetic_inputs(config: PretrainedConfig, tokens: int, batch: int, *, seed: int) -> dict[str, np.ndarray]:
    """Inputs by name, real in shape, for timing: full masks and ordinary token ids, or pixels, or both; never zeros.

    Args:
        tokens: length of a text; an image's size follows from `config`.
        batch: samples.
    """
    rng = np.random.default_rng(seed)
    kind, images = inputs_of(config), dict[str, np.ndarray]()
    if kind != "text":
        size = (batch, config.num_channels, config.image_size, config.image_size)
        images["pixel_values"] = rng.standard_normal(size, dtype=np.float32)
    if kind == "image":
        return images
    # Vocabularies start with special tokens and single characters.
    ids = rng.integers(min(1000, config.vocab_size // 2), config.vocab_size, (batch, tokens))
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), **images}
    return {**inputs, "token_type_ids": np.zeros_like(ids)} if axis_map(config.model_type).token_types else inputs


def longest_text(config: PretrainedConfig) -> int | None:
    """How many tokens a text may have; None if the config sets no limit, or the model reads no texts."""
    positions = None if inputs_of(config) == "image" else getattr(config, "max_position_embeddings", None)
    if positions is None:
        return None
    skipped = int(config.pad_token_id or 0) + 1 if axis_map(config.model_type).positions_after_padding else 0
    return int(positions) - skipped
