"""Sub-networks evaluated in the precisions of their deployments."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from instatune_deploy import deployed
from instatune_deploy.data.dataset import TaskData
from instatune_deploy.data.processor import Processor
from instatune_deploy.deployed import DeployedEvaluator
from instatune_deploy.elastic.supernet import Supernet
from instatune_deploy.errors import ArtifactError
from instatune_deploy.stages.evaluate import Evaluator
from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.evaluations import read_evaluations
from instatune_deploy.values.space import Architecture
from tests.helpers import make_text_task

FP32, ORT_INT8 = Deployment("onnxruntime"), Deployment("onnxruntime", "int8")
#: As a torch file, bf16 runs on any CPU.
BF16 = Deployment("torch", "bf16")
NETWORK = Architecture.parse("2L[4-16 2-64]")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Supernet, TaskData, Processor]:
    return make_text_task(tmp_path_factory.mktemp("deployed"))


def evaluator(prepared: tuple, path: Path, **options: Any) -> DeployedEvaluator:
    supernet, data, processor = prepared
    batches = [inputs for _, inputs in processor.batches(data.train.rows.select(range(16)), 8)]
    given = {"metric": "accuracy", "path": path, "calibration": lambda: batches, **options}
    return DeployedEvaluator(supernet, data.search, processor, **given)


def test_networks_are_evaluated_by_the_runtime_once_for_every_arithmetic(prepared: tuple, tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    fp32 = Evaluator(*prepared[:1], prepared[1].search, prepared[2], metric="accuracy", path=path)([NETWORK])
    ways = [FP32, ORT_INT8, replace(ORT_INT8, threads=2), BF16]
    found = evaluator(prepared, path)([NETWORK], ways)
    assert [(e.precision, e.computed_in) for e in found] == [("ort-int8", "int8"), ("torch-bf16", "bf16")]
    assert all((e.architecture, e.metric, e.split, e.n) == (NETWORK, "accuracy", "search", 70) for e in found)
    # Hardly trained, the network is unsure of some rows, but not of many.
    assert all(abs(e.value - fp32[0].value) < 0.15 for e in found)
    assert list(read_evaluations(path).values()) == [*fp32, *found]
    again = evaluator(prepared, path, calibration=lambda: pytest.fail("measured again"))
    assert again([NETWORK], ways) == found
    # And those who evaluate in fp32 take no notice.
    assert Evaluator(*prepared[:1], prepared[1].search, prepared[2], metric="accuracy", path=path).known == {
        NETWORK: fp32[0]
    }
    assert [file.name for file in tmp_path.iterdir()] == ["e.jsonl"]


def test_what_cannot_be_quantised_is_left_out_and_said(
    prepared: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: Any) -> Path:
        if given[3] == ORT_INT8:
            raise ArtifactError("no such operator")
        return whole(*given)

    whole = deployed.write_file
    monkeypatch.setattr(deployed, "write_file", broken)
    said: list[str] = []
    found = evaluator(prepared, tmp_path / "e.jsonl", report=said.append)([NETWORK], [ORT_INT8, BF16])
    assert [e.precision for e in found] == ["torch-bf16"]
    assert said[0] == f"{NETWORK} was not evaluated in ort-int8: no such operator"


def test_evaluations_of_another_split_are_not_taken_for_it(prepared: tuple, tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    evaluator(prepared, path)([NETWORK], [BF16])
    path.write_text(path.read_text().replace('"n": 70', '"n": 71'))
    assert evaluator(prepared, path).known == {}
