"""Small real models and data that the tests make themselves."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from datasets import Dataset
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BeitConfig,
    BertConfig,
    BertForSequenceClassification,
    BertTokenizerFast,
    DebertaV2Config,
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    DistilBertConfig,
    PretrainedConfig,
    PreTrainedModel,
    ResNetConfig,
    RobertaConfig,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from instatune_deploy.data.dataset import TaskData, open_task_data
from instatune_deploy.data.processor import Processor
from instatune_deploy.device.runtimes.base import get_runtime
from instatune_deploy.elastic.importance import Importance
from instatune_deploy.elastic.models.beit3 import Beit3Config, Beit3ForVisualQuestionAnswering
from instatune_deploy.elastic.pretrained import load_pretrained
from instatune_deploy.elastic.subnetwork import load_subnetwork
from instatune_deploy.elastic.supernet import Supernet
from instatune_deploy.faces.cli import main
from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.recipe import DataSection, Task
from instatune_deploy.values.space import SearchSpace


@dataclass(frozen=True)
class Family:
    """A tiny model of one family with random weights, inputs for it, and a space of its sub-networks."""

    model: PreTrainedModel
    inputs: dict[str, torch.Tensor]
    space: SearchSpace


#: Sizes of every family's tiny model, by the names that most configs give them.
SIZES = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 48, "num_labels": 3}
IMAGE = {**SIZES, "image_size": 16, "patch_size": 4}
TEXT = {**SIZES, "vocab_size": 100, "max_position_embeddings": 32}
QUESTIONS = {"vocab_size": 100, "max_position_embeddings": 32}
#: As DeBERTa-v3 has it, with so few buckets that texts of 10 tokens reach those that hold several positions.
RELATIVE = {
    "relative_attention": True, "share_att_key": True, "pos_att_type": ["p2c", "c2p"], "norm_rel_ebd": "layer_norm",
    "position_buckets": 8, "position_biased_input": False, "type_vocab_size": 0,
}  # fmt: skip


def _text(config: PretrainedConfig, *, token_types: bool = False) -> Family:
    """A classifier of texts, one of which is padded."""
    ids = torch.randint(5, 100, (3, 10))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    inputs = {"input_ids": ids.masked_fill(mask == 0, config.pad_token_id), "attention_mask": mask}
    if token_types:
        inputs["token_type_ids"] = torch.zeros_like(ids)
    return Family(AutoModelForSequenceClassification.from_config(config), inputs, _space())


def _image_and_text(model: PreTrainedModel) -> Family:
    """A model that answers questions about images, one of which is padded."""
    text = _text(BertConfig(**TEXT)).inputs
    return Family(model, {**text, "pixel_values": torch.randn(3, 3, 16, 16)}, _space())


def _image(model: PreTrainedModel) -> Family:
    return Family(model, {"pixel_values": torch.randn(3, 3, 16, 16)}, _space())


def _classifier(config: PretrainedConfig) -> PreTrainedModel:
    config.architectures = []  # transformers looks for a family's head in it
    return AutoModelForImageClassification.from_config(config)


def _distilbert(**options: str) -> DistilBertConfig:
    return DistilBertConfig(
        vocab_size=100,
        dim=32,
        n_layers=4,
        n_heads=4,
        hidden_dim=48,
        max_position_embeddings=32,
        num_labels=3,
        **options,
    )


def _space() -> SearchSpace:
    """Layers whose choices differ, and a drop order that is not "the last first"."""
    return SearchSpace.stack(
        (2, 3, 4), ((1, 2, 4), (2, 4), (1, 3, 4), (4,)), ((16, 48), (8, 24, 48), (48,), (5, 48)), (1, 3)
    )


def _resnet(**options: Any) -> Family:
    """Two stages of two layers with up to 16 and 24 filters, of which the first of each always stays."""
    config = ResNetConfig(
        **{"embedding_size": 8, "hidden_sizes": [16, 24], "depths": [2, 2], "image_size": 32, "num_labels": 3, **options}
    )  # fmt: skip
    widths = ((4, 8, 16), (16,), (8, 24), (5, 7, 24))
    space = SearchSpace(((1, 2), (1, 2)), (widths,), (3, 1), (2, 2), ("filters",))
    return Family(_classifier(config), {"pixel_values": torch.randn(3, 3, 32, 32)}, space)


#: One row a family; the laws run over all of them.
FAMILIES: dict[str, Callable[[], Family]] = {
    "bert": lambda: _text(BertConfig(**TEXT), token_types=True),
    "vit": lambda: _image(_classifier(ViTConfig(**IMAGE))),
    "roberta": lambda: _text(RobertaConfig(**TEXT)),
    "distilbert": lambda: _text(_distilbert()),
    "deberta-v2": lambda: _text(DebertaV2Config(**TEXT, **RELATIVE), token_types=True),
    "deit": lambda: _image(_classifier(DeiTConfig(**IMAGE))),
    "beit": lambda: _image(_classifier(BeitConfig(**IMAGE, use_relative_position_bias=True, layer_scale_init_value=1))),
    "beit3": lambda: _image(_classifier(Beit3Config(**IMAGE))),
    "resnet": lambda: _resnet(layer_type="basic"),
}
#: Models whose configs leave out or add what the families' rows do not.
VARIANTS: dict[str, Callable[[], Family]] = {
    "vit without biases": lambda: _image(_classifier(ViTConfig(**IMAGE, qkv_bias=False))),
    "distilbert in eager attention": lambda: _text(_distilbert(attn_implementation="eager")),
    "deberta with projections of positions": lambda: _text(
        DebertaV2Config(
            **TEXT,
            relative_attention=True,
            pos_att_type="c2p|p2c",
            max_relative_positions=16,
            type_vocab_size=2,
            embedding_size=16,
        ),
        token_types=True,
    ),
    "deberta without relative positions": lambda: _text(DebertaV2Config(**TEXT)),
    "deit with a distillation head": lambda: _image(DeiTForImageClassificationWithTeacher(DeiTConfig(**IMAGE))),
    "beit with absolute positions": lambda: _image(
        _classifier(
            BeitConfig(**IMAGE, use_absolute_position_embeddings=True, use_mean_pooling=False, layer_scale_init_value=0)
        )
    ),
    "resnet with bottlenecks": lambda: _resnet(
        layer_type="bottleneck", hidden_sizes=[64, 96], downsample_in_bottleneck=True, downsample_in_first_stage=True
    ),
    "beit3 with questions": lambda: _image_and_text(Beit3ForVisualQuestionAnswering(Beit3Config(**IMAGE, **QUESTIONS))),
}


def make_family(name: str) -> Family:
    """The tiny model of a family, or of one of its variants."""
    torch.manual_seed(0)
    family = {**FAMILIES, **VARIANTS}[name]()
    # Freshly initialised biases and layer norms are zeros and ones, which would hide a slice that is missing.
    with torch.no_grad():
        for parameter in family.model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        for name, buffer in family.model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.add_(0.1 * torch.rand_like(buffer))
    family.model.eval()
    return family


def all_scores(importance: Importance) -> list[torch.Tensor]:
    """The scores of every set of units of every layer."""
    return [scores for sets in importance.units for layers in sets for scores in layers]


WORDS = {
    1: ["good", "great", "fine", "happy"],
    0: ["bad", "awful", "poor", "sad"],
    None: ["film", "plot", "cast", "very"],
}


def write_text_data(path: Path, rows: int, seed: int) -> Path:
    """Sentences whose label is which of two kinds of words there are more of."""
    rng = random.Random(seed)
    sentences, labels = [], []
    for _ in range(rows):
        label = rng.randrange(2)
        words = [rng.choice(WORDS[label]) for _ in range(2)] + [rng.choice(WORDS[1 - label])]
        words += [rng.choice(WORDS[None]) for _ in range(rng.randrange(1, 5))]
        rng.shuffle(words)
        sentences.append(" ".join(words))
        labels.append(label)
    Dataset.from_dict({"text": sentences, "label": labels}).to_parquet(path)
    return path


def write_text_model(directory: Path) -> Path:
    """A BERT of 3 layers with random weights and a tokenizer of few words."""
    directory.mkdir(parents=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(word for kind in WORDS.values() for word in kind)]
    (directory / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    BertTokenizerFast(vocab_file=str(directory / "vocab.txt"), model_max_length=16).save_pretrained(directory)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=16, num_labels=2,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(directory)
    return directory


def write_image_data(path: Path, rows: int, seed: int) -> Path:
    """Grey images of 8x8 pixels whose label is which half is brighter."""
    rng = np.random.default_rng(seed)
    images, labels = [], rng.integers(0, 2, rows)
    for label in labels:
        image = rng.integers(0, 120, (8, 8))
        image[:, :4] += 100 * (1 - label)
        image[:, 4:] += 100 * label
        images.append(image.tolist())
    Dataset.from_dict({"image": images, "label": labels.tolist()}).to_parquet(path)
    return path


def write_image_model(directory: Path) -> Path:
    """A ViT of 3 layers with random weights and an image processor."""
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64, image_size=8, patch_size=4,
        num_labels=2,
    )  # fmt: skip
    ViTForImageClassification(config).save_pretrained(directory)
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(directory)
    return directory


def make_text_task(directory: Path) -> tuple[Supernet, TaskData, Processor]:
    """An untrained super-network that classifies texts, with 70 rows to search on."""
    task: Task = "text-classification"
    model = str(write_text_model(directory / "model"))
    processor = Processor(model, task, 16)
    section = DataSection(
        train=str(write_text_data(directory / "t.parquet", 200, seed=0)), search_rows=70, report_rows=10
    )
    data = open_task_data(section, task, processor, seed=0)
    network = load_pretrained(model, task, data.classes, reset_head=False, seed=0)
    return Supernet(network, SearchSpace.homogeneous(3, [1, 2, 3], [2, 4], [16, 64])), data, processor


TARGET = {
    "name": "cpu-test",
    "description": "any CPU",
    "device": "cpu",
    "deployments": [
        {"runtime": "onnxruntime"},
        {"runtime": "openvino"},
        {"runtime": "onnxruntime", "precision": "int8"},
    ],
}


def write_project(directory: Path, task: str = "text-classification") -> Path:
    """Model, data, target and recipe of a job that takes a minute; returns the recipe."""
    directory.mkdir(parents=True, exist_ok=True)
    is_text = task == "text-classification"
    (write_text_model if is_text else write_image_model)(directory / "model")
    for name, rows, seed in (("train", 400, 1), ("report", 100, 2)):
        (write_text_data if is_text else write_image_data)(directory / f"{name}.parquet", rows, seed)
    (directory / "targets").mkdir()
    (directory / "targets" / "cpu-test.yaml").write_text(yaml.safe_dump(TARGET), encoding="utf-8")
    recipe = {
        "name": "tiny",
        "model": "./model",
        "task": task,
        "data": {
            "train": "./train.parquet", "report": "./report.parquet", "search_rows": 100, "sequence_length": 16,
        },
        "space": {"depths": [1, 2, 3], "heads": [2, 4], "ffn": [16, 64]},
        "finetune": {
            "teacher": {"epochs": 5, "learning_rate": 3.0e-3}, "epochs": 2, "learning_rate": 2.0e-3, "gamma": "on",
            "importance_rows": 64,
        },
        "search": {"warm_start": 8, "rounds": 2, "batch": 4, "population": 20, "generations": 5, "deployed": 2},
        "profile": {"heldout": 3, "seconds": 1, "confirm_seconds": 1, "wait_seconds": 0},
        "targets": {"cpu-test": ["90%"]},
    }  # fmt: skip
    path = directory / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return path


def copy_unsearched(run: Path, copy: Path) -> None:
    """A run as it was before anything was evaluated."""
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "fronts")
    for name in ("evaluations.jsonl", "searched_by.json"):
        (copy / name).unlink()


def call_main(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object
) -> tuple[int, str, str]:
    """Exit code, stdout and last line of stderr of `instatune-deploy` called in this process."""
    monkeypatch.setattr(sys, "argv", ["instatune-deploy", *map(str, arguments)])
    capsys.readouterr()
    code: str | int | None = 0
    try:
        main()
    except SystemExit as caught:
        code = caught.code or 0
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    lines = [line for line in captured.err.splitlines() if line.strip()]
    return int(code or 0), captured.out, lines[-1] if lines else ""


#: The command line, in a process of its own.
COMMAND = [sys.executable, "-m", "instatune_deploy"]


@dataclass
class Result:
    """What the command line said, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def call_command(directory: Path, *arguments: str) -> Result:
    """`instatune-deploy` in a process of its own, with `directory` as its current one."""
    found = subprocess.run(
        [*COMMAND, *arguments], cwd=directory, capture_output=True, text=True, timeout=500, check=False
    )
    assert "Traceback" not in found.stderr, found.stderr
    return Result(found.returncode, found.stdout, found.stderr)


def call_json(directory: Path, *arguments: object) -> Any:
    """What `instatune-deploy` prints with ``--json`` in a process of its own, which must end well."""
    found = call_command(directory, *map(str, arguments), "--json")
    assert found.code == 0, found.err
    return found.json


def assert_files_compute(artifact: Path, batch: dict[str, np.ndarray]) -> None:
    """The fp32 files of ONNX Runtime and OpenVINO give what the artifact's own weights give for `batch`."""
    with torch.inference_mode():
        tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
        expected = load_subnetwork(artifact)(**tensors).logits.numpy()
    for runtime in map(get_runtime, ("onnxruntime", "openvino")):
        deployment = Deployment(runtime.name)
        session = runtime.load(artifact / runtime.model_file(deployment), deployment)
        assert np.abs(session.run(batch)[0] - expected).max() <= 1e-4
        session.close()
