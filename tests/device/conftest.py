"""Tiny networks of both families, exported once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, ViTConfig, ViTForImageClassification

from instatune_deploy.device.lowering.onnx import export_onnx
from instatune_deploy.device.lowering.openvino import to_openvino
from instatune_deploy.values.macs import ModelShape
from tests.helpers import SIZES, TEXT


@dataclass(frozen=True)
class Tiny:
    """A torch network, the example it was exported with, its files and its shape."""

    model: torch.nn.Module
    example: dict[str, torch.Tensor]
    directory: Path
    shape: ModelShape

    @property
    def onnx(self) -> Path:
        return self.directory / "model.onnx"

    @property
    def xml(self) -> Path:
        return self.directory / "openvino_model.xml"

    def inputs(self, batch: int, tokens: int) -> dict[str, torch.Tensor]:
        return bert_inputs(batch, tokens)


def bert_inputs(batch: int, tokens: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(0, 100, (batch, tokens), generator=torch.Generator().manual_seed(batch + tokens))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}


def exported(model: torch.nn.Module, example: dict[str, torch.Tensor], directory: Path, shape: ModelShape) -> Tiny:
    tiny = Tiny(model.eval(), example, directory, shape)
    export_onnx(model, example, tiny.onnx)
    to_openvino(tiny.onnx, tiny.xml)
    return tiny


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    torch.manual_seed(0)
    config = BertConfig(**{**TEXT, "num_hidden_layers": 2, "max_position_embeddings": 64})
    shape = ModelShape("bert", 32, 8, 2, 4, 48, 16, fixed_macs=32 * 32 + 32 * 3, fixed_parameters=0)
    directory = tmp_path_factory.mktemp("bert")
    return exported(BertForSequenceClassification(config), bert_inputs(1, 16), directory, shape)


@pytest.fixture(scope="session")
def tiny_vit(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    torch.manual_seed(0)
    config = ViTConfig(**{**SIZES, "num_hidden_layers": 2, "num_labels": 5}, image_size=32, patch_size=8)
    shape = ModelShape("vit", 32, 8, 2, 4, 48, 17, fixed_macs=16 * 32 * 3 * 8**2 + 32 * 5, fixed_parameters=0)
    directory = tmp_path_factory.mktemp("vit")
    return exported(ViTForImageClassification(config), {"pixel_values": torch.randn(2, 3, 32, 32)}, directory, shape)
