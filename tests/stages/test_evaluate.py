"""Evaluations: what is measured, what is remembered."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from instatune_deploy.data.dataset import TaskData, open_task_data
from instatune_deploy.data.processor import Processor
from instatune_deploy.elastic.pretrained import load_pretrained
from instatune_deploy.elastic.supernet import Supernet
from instatune_deploy.errors import UsageError
from instatune_deploy.stages import evaluate
from instatune_deploy.stages.evaluate import Evaluator, read_evaluations
from instatune_deploy.values.recipe import DataSection
from instatune_deploy.values.space import SearchSpace
from tests.helpers import write_text_data, write_text_model

TASK = "text-classification"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Supernet, TaskData, Processor]:
    directory = tmp_path_factory.mktemp("evaluate")
    model = str(write_text_model(directory / "model"))
    processor = Processor(model, TASK, 16)
    section = DataSection(
        train=str(write_text_data(directory / "t.parquet", 200, seed=0)), search_rows=70, report_rows=10
    )
    data = open_task_data(section, TASK, processor, seed=0)
    network = load_pretrained(model, TASK, data.classes, reset_head=False, seed=0)
    return Supernet(network, SearchSpace.homogeneous(3, [1, 2, 3], [2, 4], [16, 64])), data, processor


@torch.inference_mode()
def test_the_metric_is_that_of_the_extracted_network_row_by_row(prepared: tuple, tmp_path: Path) -> None:
    supernet, data, processor = prepared
    evaluator = Evaluator(supernet, data.search, processor, metric="accuracy", path=tmp_path / "e.jsonl", batch_size=16)
    for architecture in supernet.space.sample(3, seed=1):
        network, hits = supernet.extract(architecture), 0
        for row, label in zip(data.search.rows, data.search.labels, strict=True):
            inputs = {name: torch.tensor([value]) for name, value in row.items() if name != "labels"}
            hits += int(network(**inputs).logits.argmax()) == label
        found = evaluator([architecture])[0]
        assert found.value == pytest.approx(hits / 70)
        assert (found.split, found.n, found.metric) == ("search", 70, "accuracy")


def test_nothing_is_measured_twice_and_a_half_line_costs_one_evaluation(
    prepared: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "REPORT_EVERY_S", 0.0)
    supernet, data, processor = prepared
    path = tmp_path / "e.jsonl"
    wanted = supernet.space.sample(4, seed=2)
    measured: list[str] = []

    def evaluator() -> Evaluator:
        return Evaluator(supernet, data.search, processor, metric="accuracy", path=path)

    first = evaluator()(wanted, report=measured.append)
    assert len(measured) == 4
    assert evaluator()(wanted, report=measured.append) == first
    assert len(measured) == 4
    text = path.read_text(encoding="utf-8")
    path.write_text(text[:-20], encoding="utf-8")  # as a kill in the middle of a write leaves it
    assert read_evaluations(path) == first[:3]
    assert evaluator()(wanted, report=measured.append) == first
    assert len(measured) == 5
    assert read_evaluations(path) == first


def test_evaluations_of_another_metric_are_not_mixed_in(prepared: tuple, tmp_path: Path) -> None:
    supernet, data, processor = prepared
    path = tmp_path / "e.jsonl"
    Evaluator(supernet, data.search, processor, metric="accuracy", path=path)(supernet.space.sample(1, seed=0))
    with pytest.raises(UsageError, match=r"e\.jsonl: holds accuracy on 70 samples of search, not f1"):
        Evaluator(supernet, data.search, processor, metric="f1", path=path)


def test_dropout_is_off(prepared: tuple, tmp_path: Path) -> None:
    supernet, data, processor = prepared
    supernet.train()
    values = [
        Evaluator(supernet, data.search, processor, metric="accuracy", path=tmp_path / f"{i}.jsonl")(
            [supernet.space.smallest]
        )[0].value
        for i in range(2)
    ]
    assert np.ptp(values) == 0
    assert not supernet.model.training
