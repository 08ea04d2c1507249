"""Losses shown by Trainer's own integrations: where they go, and that they decide nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from instatune_deploy.data.dataset import open_task_data
from instatune_deploy.data.processor import Processor
from instatune_deploy.elastic.pretrained import load_pretrained
from instatune_deploy.elastic.trainer import BucketTrainer
from instatune_deploy.elastic.training import check_report_to, train, trainer_arguments
from instatune_deploy.errors import UsageError
from instatune_deploy.stages.finetune import supernet_key
from instatune_deploy.values.recipe import DataSection, FinetuneSection
from instatune_deploy.values.space import SearchSpace
from tests.helpers import write_text_data, write_text_model


def train_seven_steps(folder: Path, report_to: str) -> Path:
    """A training of 70 rows by tens whose losses go to `report_to`; its run's directory."""
    model = str(write_text_model(folder / "model"))
    processor = Processor(model, "text-classification", 16)
    section = DataSection(train=str(write_text_data(folder / "t.parquet", 100, seed=0)), search_rows=20, report_rows=10)
    data = open_task_data(section, "text-classification", processor, seed=0)
    settings = FinetuneSection.model_validate({"epochs": 1, "batch_size": 10, "report_to": [report_to]})
    run = folder / "run"
    check_report_to(settings.report_to)
    arguments = trainer_arguments(
        settings, data.train, processor, run / ".checkpoints" / "teacher-x", 0, lambda line: None,
        report_to=settings.report_to,
    )  # fmt: skip
    network = load_pretrained(model, "text-classification", data.classes, reset_head=False, seed=0)
    train(BucketTrainer(model=network, **arguments), run / ".checkpoints" / "teacher-x", lambda line: None)
    return run


def test_tensorboard_gets_the_losses_of_a_training(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train_seven_steps(tmp_path, "tensorboard")
    events = EventAccumulator(str(run / "logs" / "teacher-x"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, 8))


def test_mlflow_gets_the_losses_of_a_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="needs mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/mlruns")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    train_seven_steps(tmp_path, "mlflow")
    (losses,) = (tmp_path / "mlruns").glob("*/*/metrics/loss")
    assert [int(line.split()[2]) for line in losses.read_text().splitlines()] == list(range(1, 8))


def test_weights_and_biases_gets_the_losses_of_a_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb", reason="needs wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    train_seven_steps(tmp_path, "wandb")
    wandb.finish()
    (kept,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert b"train/loss" in kept.read_bytes()


def test_where_losses_are_shown_decides_nothing() -> None:
    space = SearchSpace.homogeneous(3, [3], [2, 4], [16, 64])
    plain, shown, other = (
        supernet_key(FinetuneSection.model_validate(given), space, "key")
        for given in ({}, {"report_to": ["wandb"]}, {"epochs": 9})
    )
    assert plain == shown
    assert plain != other


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"^finetune\.report_to: mlflow is not installed: pip install mlflow$"):
        check_report_to(["mlflow"])
    check_report_to([])
