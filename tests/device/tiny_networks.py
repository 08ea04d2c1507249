"""A tiny network with its files, and inputs for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from instatune_deploy.device.lowering.onnx import export_onnx
from instatune_deploy.device.lowering.openvino import to_openvino
from instatune_deploy.values.macs import ModelShape


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


def bert_inputs(batch: int, tokens: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(0, 100, (batch, tokens), generator=torch.Generator().manual_seed(batch + tokens))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}


def exported(model: torch.nn.Module, example: dict[str, torch.Tensor], directory: Path, shape: ModelShape) -> Tiny:
    tiny = Tiny(model.eval(), example, directory, shape)
    export_onnx(model, example, tiny.onnx)
    to_openvino(tiny.onnx, tiny.xml)
    return tiny
