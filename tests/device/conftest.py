"""Tiny networks of both families, exported once."""

from __future__ import annotations

import pytest
import torch
from tiny_networks import Tiny, bert_inputs, exported
from transformers import BertConfig, BertForSequenceClassification, ViTConfig, ViTForImageClassification

from instatune_deploy.values.macs import ModelShape


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=64,
        num_labels=3,
    )
    shape = ModelShape("bert", 32, 8, 2, 4, 48, 16, fixed_macs=32 * 32 + 32 * 3, fixed_parameters=0)
    directory = tmp_path_factory.mktemp("bert")
    return exported(BertForSequenceClassification(config), bert_inputs(1, 16), directory, shape)


@pytest.fixture(scope="session")
def tiny_vit(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        image_size=32,
        patch_size=8,
        num_labels=5,
    )
    shape = ModelShape("vit", 32, 8, 2, 4, 48, 17, fixed_macs=16 * 32 * 3 * 8**2 + 32 * 5, fixed_parameters=0)
    directory = tmp_path_factory.mktemp("vit")
    return exported(ViTForImageClassification(config), {"pixel_values": torch.randn(2, 3, 32, 32)}, directory, shape)
