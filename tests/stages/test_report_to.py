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


def test_tensorboard_gets_the_losses_of_a_training(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model = str(write_text_model(tmp_path / "model"))
    processor = Processor(model, "text-classification", 16)
    section = DataSection(
        train=str(write_text_data(tmp_path / "t.parquet", 100, seed=0)), search_rows=20, report_rows=10
    )
    data = open_task_data(section, "text-classification", processor, seed=0)
    settings = FinetuneSection.model_validate({"epochs": 1, "batch_size": 10, "report_to": ["tensorboard"]})
    run = tmp_path / "run"
    arguments = trainer_arguments(
        settings, data.train, processor, run / ".checkpoints" / "teacher-x", 0, lambda line: None,
        report_to=settings.report_to,
    )  # fmt: skip
    network = load_pretrained(model, "text-classification", data.classes, reset_head=False, seed=0)
    train(BucketTrainer(model=network, **arguments), run / ".checkpoints" / "teacher-x", lambda line: None)
    events = EventAccumulator(str(run / "logs" / "teacher-x"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, 8))  # 70 rows by tens


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
