"""What users get wrong: a table of wrong inputs, each with the exact line that it ends in and the exit code.

In a message ``HERE`` is the project's directory and ``CPU`` this machine's.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from datasets import Dataset
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, GPT2Config, GPT2LMHeadModel

from instatune_deploy.data.processor import Processor
from instatune_deploy.elastic.probing import synthetic_inputs
from instatune_deploy.elastic.subnetwork import model_shape
from instatune_deploy.elastic.supernet import Supernet
from instatune_deploy.stages.export import export
from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.space import Architecture, SearchSpace
from instatune_deploy.workspace import Workspace
from tests.helpers import TARGET, write_image_model, write_project

NETWORK = Architecture.parse("2L[4-16 2-64]")


@dataclass(frozen=True)
class Case:
    """A wrong input: what is spoilt in the project first, the call, and what it must end in."""

    name: str
    call: str
    message: str
    code: int = 2
    spoil: Callable[[], object] | None = None


def write_everything(directory: Path) -> None:
    """A project with a model of images beside it, an artifact, and a run that was begun."""
    write_project(directory)
    (directory / "images").mkdir()
    write_image_model(directory / "images")
    run = directory / "runs" / "tiny"
    Workspace(run).begin()
    (run / "recipe.yaml").write_text((directory / "recipe.yaml").read_text())
    model = AutoModelForSequenceClassification.from_pretrained(directory / "model")
    samples = synthetic_inputs(model.config, 16, 4, seed=0)
    export(
        Supernet(model, SearchSpace.homogeneous(3, [2, 3], [2, 4], [16, 64])).extract(NETWORK), NETWORK,
        Deployment("onnxruntime"), model_shape(model, 16),
        Processor(str(directory / "model"), "text-classification", 16), samples, [samples], directory / "artifact",
        target="cpu-test", metric="accuracy", predicted=None,
    )  # fmt: skip


# -- ways to spoil a project, from inside it ----------------------------------------------------------------------


def recipe(**changes: Any) -> Callable[[], None]:
    """Changes keys of the recipe; None takes one out."""

    def spoil() -> None:
        path = Path("recipe.yaml")
        changed = {**yaml.safe_load(path.read_text()), **changes}
        path.write_text(yaml.safe_dump({key: value for key, value in changed.items() if value is not None}))

    return spoil


def data(**changes: Any) -> Callable[[], None]:
    """Changes keys of the recipe's `data`."""
    return lambda: recipe(data={**yaml.safe_load(Path("recipe.yaml").read_text())["data"], **changes})()


def write(path: str, content: str | bytes) -> Callable[[], object]:
    """Writes a file."""
    return lambda: Path(path).write_bytes(content if isinstance(content, bytes) else content.encode())


def rows(path: str, **columns: list[Any]) -> Callable[[], object]:
    """Writes rows as parquet."""
    return lambda: Dataset.from_dict(columns).to_parquet(path)


def remove(path: str) -> Callable[[], None]:
    """Removes a file or folder."""
    return lambda: shutil.rmtree(path) if Path(path).is_dir() else Path(path).unlink()


def target(**changes: Any) -> Callable[[], object]:
    """Changes the project's target."""
    return write("targets/cpu-test.yaml", yaml.safe_dump({**TARGET, **changes}))


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[], None]:
    """Changes the checkpoint."""

    def spoil() -> None:
        state = load_file("model/model.safetensors")
        change(state)
        save_file(state, "model/model.safetensors", metadata={"format": "pt"})

    return spoil


def manifest(**changes: Any) -> Callable[[], None]:
    """Changes the artifact's manifest."""

    def spoil() -> None:
        path = Path("artifact/instatune.json")
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return spoil


def flipped_byte() -> None:
    path = Path("artifact/model.onnx")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def gpt2() -> None:
    GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=20)).save_pretrained("gpt2")
    recipe(model="./gpt2")()


def two_labels() -> None:
    Dataset.from_dict({"text": ["film"] * 30, "label": [0, 1] * 15, "target": [0, 1] * 15}).to_parquet("train.parquet")


def two_texts() -> None:
    texts = [f"film {number}" for number in range(30)]
    Dataset.from_dict({"one": texts, "two": texts, "label": [0, 1] * 15}).to_parquet("train.parquet")


def shards() -> None:
    Path("shards").mkdir()
    for number in range(2):
        Dataset.from_dict({"text": ["film"], "label": [0]}).to_parquet(f"shards/train-{number}.parquet")


def only_a_test_split() -> None:
    for split in ("test", "unsupervised"):
        Dataset.from_dict({"text": ["film"], "label": [0]}).save_to_disk(f"splits/{split}")
    write("splits/dataset_dict.json", json.dumps({"splits": ["test", "unsupervised"]}))()


RUN, DRY = "run recipe.yaml", "run recipe.yaml --dry-run"
NO_BIAS, MISSHAPEN = "bert.encoder.layer.2.output.dense.bias", "bert.encoder.layer.0.attention.self.key.weight"
TWO_LAYERS = {"depths": [2], "heads": [[2, 4], [2, 4]], "ffn": [16, 64]}
