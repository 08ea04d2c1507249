"""BEiT-3 as it was released: torchscale's network, with the parts of unilm's heads laid beside it."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
import torch
from torch import Tensor

#: By torchscale's names; the tiny one has two heads of 64 entries, the base one fewer words than the release.
SIZES: dict[str, dict[str, int]] = {
    "tiny": {
        "encoder_embed_dim": 128, "encoder_attention_heads": 2, "encoder_ffn_embed_dim": 192, "encoder_layers": 2,
        "vocab_size": 50, "img_size": 32, "patch_size": 8, "max_source_positions": 20,
    },
    "base": {"vocab_size": 1000, "img_size": 224, "patch_size": 16},
}  # fmt: skip


def released_network(size: str, *, normalize_output: bool = True) -> torch.nn.Module:
    """torchscale's BEiT3 with random weights, in evaluation mode; the test is skipped where torchscale is not installed."""
    if "timm" not in sys.modules:  # all that it needs of timm is a function for training
        layers = types.ModuleType("timm.models.layers")
        layers.drop_path = lambda x, probability, training: x  # type: ignore[attr-defined]
        parts = {
            "timm": types.ModuleType("timm"),
            "timm.models": types.ModuleType("timm.models"),
            layers.__name__: layers,
        }
        sys.modules.update(parts)
    pytest.importorskip("torchscale", reason="torchscale is not installed: pip install --no-deps torchscale fairscale")
    from torchscale.architecture.config import EncoderConfig
    from torchscale.model.BEiT3 import BEiT3

    config = EncoderConfig(**SIZES[size], multiway=True, no_output_layer=True, normalize_output=normalize_output)
    with torch.device("meta"):  # its own initial values take their time
        network = BEiT3(config).eval()
    network.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # zeros, ones and equal experts would hide a tensor that is mixed up
        for name, parameter in network.named_parameters():
            parameter.uniform_(-0.05, 0.05, generator=generator)
            if parameter.dim() == 1 and name.endswith("weight"):
                parameter.add_(1)
    return network


def released_state(size: str, head: str | None = None) -> tuple[torch.nn.Module, dict[str, Tensor]]:
    """The network and its checkpoint, with the tensors of unilm's head for `images` (5 classes) or `questions` (7 answers)."""
    network = released_network(size, normalize_output=head is None)
    state = {f"beit3.{name}": tensor.clone() for name, tensor in network.state_dict().items()}
    hidden = network.text_embed.weight.shape[1]
    generator = torch.Generator().manual_seed(1)
    shapes: dict[str, tuple[int, ...]] = {}
    if head == "images":
        shapes = {
            "fc_norm.weight": (hidden,), "fc_norm.bias": (hidden,), "head.weight": (5, hidden), "head.bias": (5,),
        }  # fmt: skip
    elif head == "questions":
        shapes = {
            "pooler.norm.weight": (hidden,), "pooler.norm.bias": (hidden,), "pooler.dense.weight": (hidden, hidden),
            "pooler.dense.bias": (hidden,), "head.0.weight": (2 * hidden, hidden), "head.0.bias": (2 * hidden,),
            "head.1.weight": (2 * hidden,), "head.1.bias": (2 * hidden,), "head.3.weight": (7, 2 * hidden),
            "head.3.bias": (7,),
        }  # fmt: skip
    return network, state | {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def inputs_for(size: str) -> dict[str, Tensor]:
    """Images with a text each, one of which is padded, by our names: three for the tiny network, one for the other."""
    sizes, generator = SIZES[size], torch.Generator().manual_seed(2)
    samples = 3 if size == "tiny" else 1
    ids = torch.randint(2, sizes["vocab_size"], (samples, 9), generator=generator)
    mask = torch.ones_like(ids)
    mask[samples // 2, 5:] = 0
    pixels = torch.randn(samples, 3, sizes["img_size"], sizes["img_size"], generator=generator)
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels}


def released_output(network: Any, inputs: dict[str, Tensor], *, hidden_patches: Tensor | None = None) -> Tensor:
    """What torchscale's network puts out for inputs by our names."""
    padding = 1 - inputs["attention_mask"] if "attention_mask" in inputs else None
    found: Tensor = network(
        inputs.get("input_ids"), inputs.get("pixel_values"), padding, vision_masked_position=hidden_patches
    )["encoder_out"]
    return found
