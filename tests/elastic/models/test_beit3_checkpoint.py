"""Released BEiT-3 checkpoints: every tensor is accounted for, or nothing is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForImageClassification

from instatune_deploy.elastic.models.beit3 import Beit3ForImageClassification, Beit3Model
from instatune_deploy.elastic.models.beit3.checkpoint import convert_checkpoint, load_checkpoint
from instatune_deploy.errors import CheckpointError
from tests.elastic.models.released import released_state


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return released_state("tiny", "images")[1]


def test_misfits_are_listed(state: dict[str, Tensor]) -> None:
    layer = "beit3.encoder.layers.1"
    lost = {name: tensor for name, tensor in state.items() if name != f"{layer}.self_attn.q_proj.A.weight"}
    with pytest.raises(
        CheckpointError, match=r"layers\.1\.self_attn\.q_proj\.A\.weight is missing, expected .*128, 128"
    ):
        load_checkpoint(lost, "a.pth")
    short = {
        **state,
        f"{layer}.ffn.A.fc2.bias": torch.zeros(5),
        "fc_norm.bias": torch.zeros(6),
        "extra.weight": torch.zeros(1),
    }
    with pytest.raises(
        CheckpointError,
        match=r"^a\.pth: tensor beit3\S+fc2\.bias has shape \(5,\), expected \(128,\); tensor fc_norm\.bias has "
        r"shape \(6,\).*; tensor extra\.weight is unexpected$",
    ):
        load_checkpoint(short, "a.pth")
    with pytest.raises(CheckpointError, match=r"text_embed\.weight is missing, which a BEiT-3 checkpoint has"):
        load_checkpoint({"fc_norm.weight": torch.zeros(3)})


def test_a_head_for_questions_has_every_tensor_or_none_is_loaded() -> None:
    state = released_state("tiny", "questions")[1]
    spoilt = {**state, "head.1.bias": torch.zeros(3), "head.2.weight": torch.zeros(1)}
    del spoilt["pooler.norm.weight"], spoilt["beit3.encoder.layers.0.ffn.B.fc2.weight"]
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(spoilt, "vqa.pth")
    for part in (
        "tensor beit3.encoder.layers.0.ffn.B.fc2.weight is missing", "tensor pooler.norm.weight is missing",
        "tensor head.1.bias has shape (3,), expected (256,)", "tensor head.2.weight is unexpected",
    ):  # fmt: skip
        assert part in str(caught.value)


def test_language_experts_are_left_out_by_name_only(state: dict[str, Tensor]) -> None:
    with pytest.raises(CheckpointError, match=r"tensor beit3\.encoder\.layers\.0\.ffn\.B\.fc3\.weight is unexpected"):
        load_checkpoint({**state, "beit3.encoder.layers.0.ffn.B.fc3.weight": torch.zeros(1)})


def test_heads_of_pretraining_are_left_out_when_asked() -> None:
    state = {**released_state("tiny")[1], "mlm_head.weight": torch.zeros(50, 128), "mlm_head.bias": torch.zeros(50)}
    with pytest.raises(CheckpointError, match=r"tensor mlm_head\.bias is unexpected; tensor mlm_head\.weight is"):
        load_checkpoint(state)
    assert type(load_checkpoint(state, body_only=True)) is Beit3Model


@pytest.mark.parametrize("wrapped", [True, False])
@torch.inference_mode()
def test_a_file_becomes_a_directory_of_hugging_face(state: dict[str, Tensor], wrapped: bool, tmp_path: Path) -> None:
    torch.save({"model": state} if wrapped else state, tmp_path / "a.pth")
    model = convert_checkpoint(tmp_path / "a.pth", tmp_path / "out")
    assert type(model) is Beit3ForImageClassification
    found = AutoModelForImageClassification.from_pretrained(tmp_path / "out").eval()
    processor: Any = AutoImageProcessor.from_pretrained(tmp_path / "out", use_fast=False)
    pixels = processor(Image.new("RGB", (60, 40), (255, 0, 0)), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 32, 32)
    assert float(pixels[0, 0, 5, 5]) == pytest.approx((1 - 0.485) / 0.229, abs=1e-4)
    assert torch.allclose(found(pixels).logits, model(pixels).logits, atol=1e-6)


def test_a_file_without_tensors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    for content, message in ((b"nothing", "no checkpoint can be read"), (None, "no checkpoint can be read")):
        if content is None:
            torch.save({"model": Path("code")}, path)  # more than tensors: unpickling it could run code
        else:
            path.write_bytes(content)
        with pytest.raises(CheckpointError, match=message):
            convert_checkpoint(path, tmp_path / "out")
    torch.save({"epoch": 3}, path)
    with pytest.raises(CheckpointError, match="holds no tensors by name"):
        convert_checkpoint(path, tmp_path / "out")
    with pytest.raises(CheckpointError, match="no checkpoint can be read"):
        convert_checkpoint(tmp_path / "nowhere.pth", tmp_path / "out")
    assert not (tmp_path / "out").exists()
