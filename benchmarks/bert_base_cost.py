"""Claim: elasticity costs nothing that a user notices, on BERT-base at 128 tokens.

A sub-network's forward inside the super-network against the extracted model's, interleaved; and the seconds to extract
a sub-network and to export it as ONNX. Writes results/bert_base_cost.json.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertForSequenceClassification

from benchmarks.results import write_result
from instatune_deploy.device.lowering.onnx import export_onnx
from instatune_deploy.elastic.probing import synthetic_inputs
from instatune_deploy.elastic.supernet import Supernet
from instatune_deploy.faces.cli.app import quiet_libraries
from instatune_deploy.values.presets import preset

SEED, NETWORKS, ROUNDS = 0, 6, 15


def seconds(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def main() -> int:
    quiet_libraries()
    torch.manual_seed(SEED)
    model = BertForSequenceClassification(BertConfig()).eval()
    supernet = Supernet(model, preset("bert-base").scaled(12, 12, 3072))
    arrays = synthetic_inputs(model.config, 128, 1, seed=SEED)
    inputs = {name: torch.from_numpy(array) for name, array in arrays.items()}
    networks = [supernet.space.smallest, supernet.space.largest, *supernet.space.sample(NETWORKS - 2, seed=SEED)]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as directory:
        for number, architecture in enumerate(networks):
            started = time.perf_counter()
            extracted = supernet.extract(architecture)
            extract_s = time.perf_counter() - started
            export_s = seconds(lambda e=extracted: export_onnx(e, inputs, Path(directory) / "model.onnx"))  # type: ignore[misc]
            inside, outside = [], []
            with torch.inference_mode():
                for round_number in range(ROUNDS + 3):
                    pair = (
                        seconds(lambda a=architecture: supernet(inputs, [a])),  # type: ignore[misc]
                        seconds(lambda e=extracted: e(**inputs)),  # type: ignore[misc]
                    )
                    if round_number >= 3:  # the first ones warm up
                        inside.append(pair[0])
                        outside.append(pair[1])
            rows.append(
                {
                    "architecture": str(architecture), "seed": SEED, "rounds": ROUNDS, "first_in_process": number == 0,
                    "extract_s": extract_s, "export_s": export_s, "inside_ms": 1e3 * statistics.median(inside),
                    "extracted_ms": 1e3 * statistics.median(outside),
                    "ratio": statistics.median(a / b for a, b in zip(inside, outside, strict=True)),
                }
            )  # fmt: skip
            print(json.dumps(rows[-1]), flush=True)
    figures = {
        "extract_and_export_s.max": max(row["extract_s"] + row["export_s"] for row in rows),
        "extract_and_export_s.median": statistics.median(row["extract_s"] + row["export_s"] for row in rows),
        "forward_ratio.max": max(row["ratio"] for row in rows),
        "forward_ratio.median": statistics.median(row["ratio"] for row in rows),
    }
    claim = (
        "On BERT-base at 128 tokens, extracting a sub-network and exporting it as ONNX takes under 15 s, and a "
        "sub-network's forward inside the super-network costs at most 10% more than the extracted model's."
    )
    print(write_result("bert_base_cost", claim, figures, rows), json.dumps(figures, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
