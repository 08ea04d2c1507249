"""What others predict latency by, for comparison: MACs, sums of isolated blocks, trees on raw features, eager PyTorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import torch
from scipy.stats import kendalltau
from torch import nn
from transformers import PreTrainedModel

from instatune_deploy.device.lowering.onnx import export_onnx
from instatune_deploy.device.lowering.variants import ONNX, lower
from instatune_deploy.device.runtimes.base import get_runtime
from instatune_deploy.elastic.probing import probing_supernet
from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.space import Architecture, SearchSpace


def errors(estimates_ms: Sequence[float], labels_ms: Sequence[float]) -> dict[str, float]:
    """Mean and largest relative error (%) and Kendall's tau of predicted against measured latencies."""
    relative = 100 * np.abs(np.asarray(estimates_ms) / np.asarray(labels_ms) - 1)
    tau = float(kendalltau(estimates_ms, labels_ms).statistic)
    return {"mape_pct": float(relative.mean()), "max_pct": float(relative.max()), "tau": 0.0 if np.isnan(tau) else tau}


def by_line(known: Sequence[float], labels_ms: Sequence[float], wanted: Sequence[float]) -> list[float]:
    """Latencies of `wanted` by the line that fits the relative errors of measured networks best: the proxy at its best."""
    labels, design = np.asarray(labels_ms), np.column_stack([np.ones(len(known)), known])
    line = np.linalg.lstsq(design / labels[:, None], np.ones(len(labels)), rcond=None)[0]
    return (line[0] + line[1] * np.asarray(wanted)).tolist()


def by_trees(
    space: SearchSpace, known: Mapping[Architecture, float], wanted: Sequence[Architecture], *, seed: int
) -> list[float]:
    """Latencies by LightGBM on the raw encoding (heads and widths of every layer), fitted to measured networks."""
    parameters: dict[str, Any] = {
        "objective": "regression", "learning_rate": 0.05, "num_leaves": 8, "min_data_in_leaf": max(2, len(known) // 20),
        "min_data_in_bin": 1, "seed": seed, "deterministic": True, "force_row_wise": True, "num_threads": 1, "verbose": -1,
    }  # fmt: skip
    table = np.array([space.encode(architecture) for architecture in known], float)
    data = lightgbm.Dataset(table, np.log(list(known.values())), params=parameters)
    booster = lightgbm.train(parameters, data, 200)
    return np.exp(booster.predict(np.array([space.encode(a) for a in wanted], float))).tolist()


class _Part(nn.Module):
    """A part of a network as a network: `run` of its inputs."""

    def __init__(self, parts: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(parts)


class _TextEnds(_Part):
    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor) -> Any:
        hidden = self.parts["embeddings"](input_ids=input_ids, token_type_ids=token_type_ids)
        return (self.parts["classifier"](self.parts["pooler"](hidden)) + 0 * attention_mask[:, :1],)


class _ImageEnds(_Part):
    def forward(self, pixel_values: torch.Tensor) -> Any:
        hidden = self.parts["layernorm"](self.parts["embeddings"](pixel_values))
        return (self.parts["classifier"](hidden[:, 0]),)


class _Attention(_Part):
    def forward(self, hidden: torch.Tensor) -> Any:
        inside = self.parts["norm"](hidden) if "norm" in self.parts else hidden
        found = self.parts["attention"](inside)
        return ((found[0] if isinstance(found, tuple) else found) + (hidden if "norm" in self.parts else 0),)


class _Mlp(_Part):
    def forward(self, hidden: torch.Tensor) -> Any:
        inside = self.parts["norm"](hidden) if "norm" in self.parts else hidden
        return (self.parts["output"](self.parts["intermediate"](inside), hidden),)


def isolated_blocks(model: PreTrainedModel, space: SearchSpace) -> dict[str, nn.Module]:
    """``fixed``, ``heads=h`` and ``ffn=f``: each block of a network as a network of its own."""
    supernet = probing_supernet(model, space)
    blocks: dict[str, nn.Module] = {}
    full = supernet.extract(space.largest)
    if model.config.model_type == "bert":
        ends = {"embeddings": full.bert.embeddings, "pooler": full.bert.pooler, "classifier": full.classifier}
        blocks["fixed"] = _TextEnds(ends)
    else:
        ends = {"embeddings": full.vit.embeddings, "layernorm": full.vit.layernorm, "classifier": full.classifier}
        blocks["fixed"] = _ImageEnds(ends)
    for heads in space.head_choices:
        layer = supernet.extract(Architecture.uniform(1, heads, space.ffn_choices[-1])).base_model.encoder.layer[0]
        norm = {"norm": layer.layernorm_before} if hasattr(layer, "layernorm_before") else {}
        blocks[f"heads={heads}"] = _Attention({"attention": layer.attention, **norm})
    for ffn in space.ffn_choices:
        layer = supernet.extract(Architecture.uniform(1, space.head_choices[-1], ffn)).base_model.encoder.layer[0]
        norm = {"norm": layer.layernorm_after} if hasattr(layer, "layernorm_after") else {}
        blocks[f"ffn={ffn}"] = _Mlp({"intermediate": layer.intermediate, "output": layer.output, **norm})
    return blocks


def block_file(
    name: str, block: nn.Module, inputs: dict[str, np.ndarray], deployment: Deployment, directory: Path, *, image: bool
) -> Path:
    """The block's file for a deployment, lowered just as whole networks are."""
    folder = directory / name.replace("=", "")
    if not (folder / ONNX).is_file():
        export_onnx(block.eval(), {key: torch.from_numpy(value) for key, value in inputs.items()}, folder / ONNX)
    return lower(folder, get_runtime(deployment.runtime).model_file(deployment), [inputs], image=image, fast=True)


def by_blocks(costs_ms: Mapping[str, float], wanted: Sequence[Architecture]) -> list[float]:
    """Latencies as the sum of what the blocks took alone."""
    return [
        costs_ms["fixed"]
        + sum(costs_ms[f"heads={heads}"] + costs_ms[f"ffn={ffn}"] for heads, ffn in architecture.layers)
        for architecture in wanted
    ]
