"""What fine-tuning takes of memory as its training rows grow: texts, and images, both in parquet.

What counts is memory that cannot be given back: pages of files that are mapped can be, and are under pressure. A training of a
small model for a few steps is measured with few and with many rows: what differs is what the rows take.
"""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from PIL import Image
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertTokenizerFast,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from benchmarks.export_memory import Peak
from instatune_deploy.data.dataset import open_task_data
from instatune_deploy.data.processor import Processor
from instatune_deploy.elastic.pretrained import load_pretrained
from instatune_deploy.faces.cli.app import quiet_libraries
from instatune_deploy.stages.finetune import finetune
from instatune_deploy.values.recipe import DataSection, FinetuneSection, Task
from instatune_deploy.values.space import SearchSpace
from instatune_deploy.workspace import Workspace

#: By the name of the figures: the task, and the numbers of rows to compare.
KINDS: dict[str, tuple[Task, tuple[int, int]]] = {
    "text": ("text-classification", (30_000, 180_000)), "images": ("image-classification", (10_000, 50_000)),
}  # fmt: skip
SEED, STEPS, TOKENS, WORDS = 0, 10, 64, 5_000
#: Rows of a parquet file's row group, as `datasets` writes them: pyarrow reads some of them ahead, however many there are.
PIECES = {"text": 1_000, "images": 100}
Row = dict[str, Any]


def measure(directory: Path) -> tuple[list[Row], dict[str, float]]:
    """Rows and figures; works in `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    rows = [_measure_one(directory, kind, count) for kind, (_, counts) in KINDS.items() for count in counts]
    figures: dict[str, float] = {}
    for kind in KINDS:
        few, many = (row for row in rows if row["kind"] == kind)
        grown = many["peak_anonymous_bytes"] - few["peak_anonymous_bytes"]
        # A byte a row is a megabyte a million rows.
        figures[f"data.{kind}.peak_mb_per_million_rows"] = grown / (many["n"] - few["n"])
        figures[f"data.{kind}.peak_mb"] = many["peak_anonymous_bytes"] / 1e6
        figures[f"data.{kind}.parquet_mb"] = many["parquet_bytes"] / 1e6
        figures[f"data.{kind}.disk_mb"] = many["cache_bytes"] / 1e6
    figures["data.peak_mb_per_million_rows"] = max(figures[f"data.{kind}.peak_mb_per_million_rows"] for kind in KINDS)
    return rows, figures


def _measure_one(directory: Path, kind: str, count: int) -> Row:
    parquet, cache = directory / f"{kind}-{count}.parquet", directory / f"cache-{kind}-{count}"
    if not parquet.is_file():
        write_rows(parquet, kind, count)
    environment = {**os.environ, "HF_DATASETS_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    command = [
        sys.executable,
        "-m",
        "benchmarks.data_memory",
        kind,
        str(parquet),
        str(directory / f"run-{kind}-{count}"),
    ]
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        peak = Peak(process.pid)
        out, _ = process.communicate()
        peak.stop()
    if process.returncode:
        raise SystemExit(f"fine-tuning on {parquet} ended with {process.returncode}")
    row = {
        "what": "data", "kind": kind, "seed": SEED, "split": "train", "n": count, "steps": STEPS, **json.loads(out),
        "seconds": time.perf_counter() - began, "parquet_bytes": parquet.stat().st_size,
        "cache_bytes": sum(path.stat().st_size for path in cache.rglob("*") if path.is_file()),
        "peak_anonymous_bytes": peak.anonymous_bytes, "peak_resident_bytes": peak.resident_bytes,
    }  # fmt: skip
    print(f"{kind}, {count:,} rows: {row['peak_anonymous_bytes'] / 1e6:.0f} MB, {row['seconds']:.0f} s", flush=True)
    return row


def write_rows(path: Path, kind: str, count: int) -> None:
    """Rows with labels 0 and 1, written piece by piece."""
    rng = random.Random(SEED)
    part = path.with_suffix(".part")
    with pyarrow.parquet.ParquetWriter(part, pyarrow.table(next(_pieces(kind, 1, rng))).schema) as writer:
        for piece in _pieces(kind, count, rng):
            writer.write_table(pyarrow.table(piece))
    part.replace(path)


def _pieces(kind: str, count: int, rng: random.Random) -> Iterator[dict[str, list[Any]]]:
    vocabulary = [f"word{number}" for number in range(WORDS)]
    pictures = [_picture(number) for number in range(200)]
    for start in range(0, count, PIECES[kind]):
        size = min(PIECES[kind], count - start)
        labels = [rng.randrange(2) for _ in range(size)]
        if kind == "text":
            yield {"text": [" ".join(rng.choices(vocabulary, k=rng.randrange(5, 40))) for _ in labels], "label": labels}
        else:
            yield {"image": rng.choices(pictures, k=size), "label": labels}


def _picture(number: int) -> bytes:
    """A PNG of 32x32 random pixels."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def write_model(directory: Path, kind: str) -> None:
    """A small model with what prepares its inputs."""
    torch.manual_seed(SEED)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    if kind == "text":
        directory.mkdir(parents=True)
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{number}" for number in range(WORDS))]
        (directory / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
        BertTokenizerFast(vocab_file=str(directory / "vocab.txt"), model_max_length=TOKENS).save_pretrained(directory)
        BertForSequenceClassification(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(directory)
    else:
        ViTForImageClassification(ViTConfig(image_size=32, patch_size=8, **sizes)).save_pretrained(directory)
        ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(directory)


def train_one(kind: str, parquet: Path, run: Path) -> Row:
    """Read, encode and fine-tune as a recipe does, for `STEPS` steps each; what it was."""
    if not (run / "model").is_dir():
        write_model(run / "model", kind)
    task, _ = KINDS[kind]
    processor = Processor(str(run / "model"), task, TOKENS)
    data = open_task_data(DataSection(train=str(parquet)), task, processor, seed=SEED)
    epochs = STEPS * 32 / len(data.train)
    settings = FinetuneSection.model_validate({"epochs": epochs, "teacher": {"epochs": epochs}, "importance_rows": 64})
    workspace = Workspace(run / str(time.time_ns()))  # nothing of an earlier run is reused
    supernet = finetune(
        settings, lambda: load_pretrained(str(run / "model"), task, data.classes, reset_head=True, seed=SEED),
        SearchSpace.homogeneous(2, [1, 2], [2, 4], [32, 64]), data, processor, workspace, key="memory", seed=SEED,
        report=lambda line: print(line, file=sys.stderr),
    )  # fmt: skip
    return {"train_rows": len(data.train), "parameters": sum(p.numel() for p in supernet.model.parameters())}


if __name__ == "__main__":
    quiet_libraries()
    print(json.dumps(train_one(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))))
