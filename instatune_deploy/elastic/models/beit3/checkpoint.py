"""Reads the released BEiT-3 checkpoints (unilm's and torchscale's layout), every tensor accounted for.

from instatune_deploy.elastic.models.beit3.checkpoint import convert_checkpoint
convert_checkpoint("beit3_base_patch16_224_in1k.pth", "beit3-base-in1k")
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPImageProcessor, ViTImageProcessor
from transformers.image_utils import PILImageResampling
from transformers.modeling_utils import no_init_weights

from instatune_deploy.elastic.models.beit3.configuration import Beit3Config
from instatune_deploy.elastic.models.beit3.heads import Beit3ForImageClassification, Beit3ForVisualQuestionAnswering
from instatune_deploy.elastic.models.beit3.modeling import Beit3Model, Beit3PreTrainedModel
from instatune_deploy.elastic.subnetwork import load_state
from instatune_deploy.errors import CheckpointError

_BODY = "beit3."
#: A head's last layer, which has a row for each class, and the model that has this head.
_HEADS: dict[str, type[Beit3PreTrainedModel]] = {
    "head.weight": Beit3ForImageClassification,
    "head.3.weight": Beit3ForVisualQuestionAnswering,
}
#: Entries of a head in every released size.
HEAD_SIZE = 64


def convert_checkpoint(source: str | Path, directory: str | Path, *, body_only: bool = False) -> Beit3PreTrainedModel:
    """Write a released checkpoint as a Hugging Face directory, with its image processor, which `model:` of a recipe can name.

    A tokenizer for texts is not in a checkpoint: save that of the release there (``XLMRobertaTokenizer("beit3.spm")``).

    Args:
        source: a ``.pth`` file; nothing but tensors is read from it.
        body_only: see `load_checkpoint`.

    Raises:
        CheckpointError: see `load_checkpoint`; or the file cannot be read. Nothing is written.
    """
    model = load_checkpoint(_read(Path(source)), str(source), body_only=body_only)
    size = model.config.image_size
    processor: Any
    if isinstance(model, Beit3ForVisualQuestionAnswering):
        # Stretched to the size; means and deviations are 0.5.
        processor = ViTImageProcessor(size={"height": size, "width": size}, resample=PILImageResampling.BICUBIC)
    else:  # CLIP's gives the shorter side the size and cuts out the middle; means and deviations are ImageNet's
        processor = CLIPImageProcessor(
            size={"shortest_edge": size}, crop_size={"height": size, "width": size},
            image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225],
        )  # fmt: skip
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return model


def load_checkpoint(
    state: Mapping[str, Tensor], source: str = "checkpoint", *, head_size: int = HEAD_SIZE, body_only: bool = False
) -> Beit3PreTrainedModel:
    """The model whose tensors a released checkpoint holds, in evaluation mode: with the head for images or for questions if
    it has either, else without one. An image classifier leaves out the language experts, which it never runs.

    Args:
        state: tensors by the names of the release.
        head_size: entries of an attention head, which does not show in the tensors.
        body_only: leave out whatever is not of the body, such as heads of pre-training.

    Raises:
        CheckpointError: tensors are missing, unexpected or of other shapes; names them.
    """
    if body_only:
        state = {name: tensor for name, tensor in state.items() if name.startswith(_BODY)}
    last = next((name for name in _HEADS if name in state), None)
    kind = Beit3Model if last is None else _HEADS[last]
    config = _config(state, source, head_size, 2 if last is None else len(state[last]))
    with no_init_weights():
        model = kind(config)
    if kind is Beit3Model:
        state = {name.removeprefix(_BODY): tensor for name, tensor in state.items()}
    if kind is Beit3ForImageClassification:
        unread = _body_names(config) - _body_names(model.config)
        state = {name: tensor for name, tensor in state.items() if name not in unread}
    load_state(model, state, source)
    return model.eval()


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a ``.pth`` file, which may stand under `model` or `module`.

    Raises:
        CheckpointError: it cannot be read, or holds other things than tensors.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path}: no checkpoint can be read: {' '.join(str(error).split())[:300]}") from None
    for key in ("model", "module"):
        found = found.get(key, found) if isinstance(found, dict) else found
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise CheckpointError(f"{path}: holds no tensors by name")
    return found


def _config(state: Mapping[str, Tensor], source: str, head_size: int, labels: int) -> Beit3Config:
    """The sizes that a checkpoint's tensors have.

    Raises:
        CheckpointError: a tensor that tells them is missing; names it.
    """

    def shape(name: str) -> torch.Size:
        if _BODY + name not in state:
            raise CheckpointError(f"{source}: tensor {_BODY}{name} is missing, which a BEiT-3 checkpoint has")
        return state[_BODY + name].shape

    (vocabulary, hidden), patch = shape("text_embed.weight"), shape("vision_embed.proj.weight")
    names = [name.removeprefix(f"{_BODY}encoder.layers.") for name in state if "encoder.layers." in name]
    return Beit3Config(
        vocab_size=vocabulary, hidden_size=hidden, num_attention_heads=max(1, hidden // head_size),
        num_hidden_layers=len({name.partition(".")[0] for name in names}),
        intermediate_size=shape("encoder.layers.0.ffn.A.fc1.weight")[0], num_channels=patch[1], patch_size=patch[-1],
        image_size=math.isqrt(shape("encoder.embed_positions.A.weight")[0] - 3) * patch[-1],
        max_position_embeddings=shape("encoder.embed_positions.B.weight")[0], num_labels=labels,
        normalize_output=f"{_BODY}encoder.layer_norm.A.weight" in state,
    )  # fmt: skip


def _body_names(config: Any) -> set[str]:
    """Names of a body's tensors in a checkpoint."""
    with torch.device("meta"), no_init_weights():
        return {_BODY + name for name in Beit3Model(config).state_dict()}
