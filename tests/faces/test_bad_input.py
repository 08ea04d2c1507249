"""What users get wrong: one clear line, the right exit code, nothing written."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from datasets import Dataset
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from instatune_deploy.faces.cli import main
from tests.helpers import TARGET, call_main, write_project


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("original")
    write_project(directory)
    return directory


@pytest.fixture
def project(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of its own, as the current directory."""
    directory = tmp_path / "project"
    directory.mkdir()
    for path in original.rglob("*"):
        copy = directory / path.relative_to(original)
        if path.is_dir():
            copy.mkdir()
        else:
            copy.write_bytes(path.read_bytes())
    monkeypatch.chdir(directory)
    return directory


Call = Callable[..., tuple[int, str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    def run_main(*arguments: str) -> tuple[int, str]:
        """Exit code and last line of stderr."""
        code, _, last = call_main(monkeypatch, capsys, *arguments)
        return code, last

    return run_main


def snapshot(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def change_recipe(**changes: Any) -> None:
    path = Path("recipe.yaml")
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}))


def unknown_target() -> None:
    change_recipe(targets={"cpu-avx215": ["8ms"]})


def target_this_machine_lacks() -> None:
    Path("targets/cpu-odd.yaml").write_text(
        yaml.safe_dump({**TARGET, "name": "cpu-odd", "instruction_sets": ["mmx512"]})
    )
    change_recipe(targets={"cpu-odd": ["8ms"]})


def malformed_target() -> None:
    Path("targets/cpu-test.yaml").write_text(yaml.safe_dump({**TARGET, "deployments": [{"runtime": "tensorrt"}]}))


def family_without_axis_map() -> None:
    GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=20)).save_pretrained("gpt2")
    change_recipe(model="./gpt2")


def space_wider_than_the_model() -> None:
    change_recipe(space={"depths": [3], "heads": [2, 16], "ffn": [64]})


def space_that_contradicts_itself() -> None:
    change_recipe(space={"depths": [4], "heads": [2], "ffn": [64]})


def misshapen_tensor() -> None:
    state = load_file("model/model.safetensors")
    state["bert.encoder.layer.0.attention.self.key.weight"] = torch.zeros(16, 32)
    save_file(state, "model/model.safetensors", metadata={"format": "pt"})


def missing_tensor() -> None:
    state = load_file("model/model.safetensors")
    del state["bert.encoder.layer.2.output.dense.bias"]
    save_file(state, "model/model.safetensors", metadata={"format": "pt"})


def no_model() -> None:
    change_recipe(model="./nowhere")


def empty_dataset() -> None:
    Dataset.from_dict({"text": [], "label": []}).to_parquet("train.parquet")


def mislabelled_dataset() -> None:
    Dataset.from_dict({"text": ["film"] * 300, "label": [0, 1, -7] * 100}).to_parquet("train.parquet")


def mislabelled_report_split() -> None:
    Dataset.from_dict({"text": ["film"] * 3, "label": [0, 1, 2]}).to_parquet("report.parquet")


def more_classes_than_the_head() -> None:
    Dataset.from_dict({"text": ["film"] * 300, "label": [0, 1, 2] * 100}).to_parquet("train.parquet")


def wrong_column() -> None:
    data = yaml.safe_load(Path("recipe.yaml").read_text())["data"]
    change_recipe(data={**data, "text": "sentence"})


def no_dataset() -> None:
    Path("train.parquet").unlink()


def unknown_key() -> None:
    change_recipe(finetun={"epochs": 3})


def unknown_objective() -> None:
    change_recipe(search={"objectives": ["metric", "latncy"]})


def objectives_that_repeat() -> None:
    change_recipe(search={"objectives": ["metric", "macs", "accuracy"]})


def unknown_preset() -> None:
    change_recipe(space="bert-bse")


def damaged_yaml() -> None:
    Path("recipe.yaml").write_text("model: [")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (unknown_target, "unknown target 'cpu-avx215'; did you mean 'cpu-avx2' or 'cpu-avx512'"),
        (target_this_machine_lacks, "target cpu-odd needs mmx512, which this machine"),
        (malformed_target, "cpu-test.yaml: deployments.0.runtime: Input should be 'onnxruntime', 'openvino'"),
        (
            family_without_axis_map,
            "model family 'gpt2' has no axis map; supported families: beit, beit3, bert, deberta-v2",
        ),
        (space_wider_than_the_model, "the space has 16 heads, but the model only 4"),
        (space_that_contradicts_itself, "depth 4 is more than the 3 layers there are"),
        (
            misshapen_tensor,
            "tensor bert.encoder.layer.0.attention.self.key.weight has shape (16, 32), expected (32, 32)",
        ),
        (missing_tensor, "tensor bert.encoder.layer.2.output.dense.bias is missing, expected shape (32,)"),
        (no_model, "no model can be loaded"),
        (empty_dataset, "train.parquet: is empty"),
        (mislabelled_dataset, "label -7 is not one of the 2 training classes"),
        (mislabelled_report_split, "report split, row 2: label 2 is not one of the 2 training classes"),
        (more_classes_than_the_head, "has shape (2,), expected (3,); for a new head set reset_head: true"),
        (wrong_column, "has no column 'sentence'; its columns: text, label"),
        (no_dataset, "train.parquet: no such file or directory"),
        (unknown_key, "unknown key 'finetun'; did you mean 'finetune'"),
        (unknown_objective, "search: unknown objective 'latncy'; did you mean 'latency'"),
        (objectives_that_repeat, "search: objectives repeat: metric and accuracy are the same"),
        (unknown_preset, "unknown space preset 'bert-bse'; did you mean 'bert-base'"),
        (damaged_yaml, "recipe.yaml: not YAML"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_run_that_cannot_be_is_refused_before_anything_is_written(
    project: Path, call: Call, spoil: Callable[[], None], message: str
) -> None:
    spoil()
    before = snapshot(project)
    for arguments in (("run", "recipe.yaml"), ("run", "recipe.yaml", "--dry-run")):
        code, line = call(*arguments)
        assert code == 2
        assert line.startswith("error: ")
        assert message in line
    assert snapshot(project) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "nowhere.yaml"), "error: nowhere.yaml: No such file or directory"),
        (("profile", "--target", "cpu-avx51"), "error: unknown target 'cpu-avx51'; did you mean 'cpu-avx512'"),
        (("profile", "--target", "my/target.yaml"), "error: my/target.yaml: [Errno 2] No such file or directory"),
        (("profile", "--target", "cpu-test", "--model", "./nowhere"), "error: ./nowhere: no model can be loaded"),
        (
            ("profile", "--target", "cpu-test", "--model", "model", "--space", "vit"),
            "error: unknown space preset 'vit'; did you mean 'vit-base'",
        ),
        (
            ("select", "--latency-budget", "fast"),
            "error: budget 'fast' is neither milliseconds such as 8ms nor a share",
        ),
        (("select",), "error: which budget? give --latency-budget 8ms"),
        (("select", "--size-budget", "30ms"), "error: budget '30ms' is neither a size such as 30MB nor a share"),
        (("select", "--max-loss", "a bit"), "error: budget 'a bit' is neither points such as 0.5"),
        (
            ("select", "--max-loss", "1", "--min-metric", "0.8"),
            "error: budget 'metric>=0.8, loss<=1' limits metric twice",
        ),
        (("select", "--max-loss", "1", "--prefer", "cheap"), "error: unknown preference 'cheap'; known: best, fastest"),
        (
            ("select", "--latency-budget", "8ms", "--percentile", "p95"),
            "error: unknown percentile 'p95'; known: p50, p90, p99",
        ),
        (("select", "--latency-budget", "8ms", "--run", "model"), "error: model is not a run directory"),
        (("search", "--run", "nowhere"), "error: nowhere is not a run directory: `instatune-deploy run` makes those"),
        (("export", "--architecture", "full", "--out", "model"), "error: model exists already; name a new directory"),
        (("targets", "show", "cpu"), "error: unknown target 'cpu'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_call_that_cannot_be_is_refused_in_one_line(
    project: Path, call: Call, arguments: tuple[str, ...], message: str
) -> None:
    before = snapshot(project)
    code, line = call(*arguments)
    assert code == 2
    assert line.startswith(message)
    assert snapshot(project) == before


def test_debug_shows_the_traceback(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["instatune-deploy", "--debug", "run", "nowhere.yaml"])
    with pytest.raises(SystemExit):
        main()
    assert "Traceback" in capsys.readouterr().err
