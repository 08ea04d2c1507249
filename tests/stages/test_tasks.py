"""Every text task from rows to an exported file: encoded, learnt, evaluated in the super-network, exported, measured."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from transformers import TrainingArguments

from instatune_deploy.data.dataset import TaskData, open_report_split, open_task_data
from instatune_deploy.data.processor import Processor
from instatune_deploy.device.settings import TimingSettings
from instatune_deploy.elastic.drawing import Drawer, DrawSettings
from instatune_deploy.elastic.losses import ElasticLoss
from instatune_deploy.elastic.pretrained import load_pretrained
from instatune_deploy.elastic.subnetwork import load_subnetwork
from instatune_deploy.elastic.supernet import Supernet
from instatune_deploy.elastic.trainer import ElasticTrainer
from instatune_deploy.stages.confirm import confirm, measured_metric
from instatune_deploy.stages.evaluate import Evaluator
from instatune_deploy.stages.export import Artifact, export, open_artifact
from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.front import Evaluation
from instatune_deploy.values.recipe import METRICS, DataSection, Task
from instatune_deploy.values.space import Architecture, SearchSpace
from tests.task_data import SECTIONS, TOKENS, write_body, write_rows

SPACE = SearchSpace.homogeneous(3, [2, 3], [2, 4], [16, 64])
ARCHITECTURE = Architecture.parse("2L[4-64 2-64]")
ORT, OV = Deployment("onnxruntime"), Deployment("openvino")
#: What the default metric of a task is above once the task is learnt; guessing is far below.
LEARNT: dict[str, float] = {
    "text-classification": 0.9,
    "text-regression": 0.8,
    "token-classification": 0.5,
    "question-answering": 0.9,
}


@dataclass(frozen=True)
class Made:
    """What a task's job made."""

    task: Task
    metric: str
    section: DataSection
    processor: Processor
    data: TaskData
    small: Evaluation
    full: Evaluation
    artifact: Artifact


def fine_tune(supernet: Supernet, data: TaskData, processor: Processor, directory: Path) -> None:
    """The full network and sub-networks, with the soft loss of the task's head."""
    arguments = TrainingArguments(
        str(directory), max_steps=100, per_device_train_batch_size=32, learning_rate=5e-3, warmup_ratio=0.1,
        save_strategy="no", report_to="none", disable_tqdm=True, remove_unused_columns=False, use_cpu=True, seed=0,
        label_names=list(processor.head.label_columns),
    )  # fmt: skip
    drawer = Drawer(SPACE, supernet.shape(TOKENS), DrawSettings(), seed=0)
    ElasticTrainer(
        supernet, ElasticLoss(alpha=0.5), drawer, args=arguments, train_dataset=data.train.rows,
        data_collator=processor.collator,
    ).train()  # fmt: skip


@pytest.fixture(scope="module", params=list(SECTIONS))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    task: Task = request.param
    directory = tmp_path_factory.mktemp(task)
    metric: str = METRICS[task][0]
    if metric == "entity_f1" and find_spec("seqeval") is None:
        metric = "accuracy"  # the extra token is not installed
    section = DataSection(
        train=str(write_rows(directory / "train.parquet", task, 400, seed=1)),
        report=str(write_rows(directory / "report.parquet", task, 60, seed=2)),
        search_rows=80, sequence_length=TOKENS, **SECTIONS[task],
    )  # fmt: skip
    model = str(write_body(directory / "model"))
    processor = Processor(model, task, TOKENS)
    data = open_task_data(section, task, processor, seed=0)
    supernet = Supernet(load_pretrained(model, task, data.classes, reset_head=False, seed=0), SPACE)
    fine_tune(supernet, data, processor, directory / "trainer")
    evaluate = Evaluator(supernet, data.search, processor, metric=metric, path=directory / "evaluations.jsonl")
    small, full = evaluate([ARCHITECTURE, supernet.full])
    _, samples = next(processor.batches(data.search.rows.select(range(20)), 20))
    artifact = export(
        supernet.extract(ARCHITECTURE), ARCHITECTURE, ORT, supernet.shape(TOKENS), processor, samples, [samples],
        directory / "artifact", target="cpu-test", metric=metric, predicted=None,
    )  # fmt: skip
    return Made(task, metric, section, processor, data, small, full, artifact)


def test_the_task_is_learnt(made: Made) -> None:
    assert made.full.value > LEARNT[made.task]
    assert (made.full.n, made.full.metric, made.full.split) == (80, made.metric, "search")


def test_the_files_score_as_the_supernet_does(made: Made) -> None:
    for deployment in (ORT, OV):
        file = made.artifact.model_file(deployment)
        found = measured_metric(file, deployment, made.data.search, made.processor, made.metric)
        assert found == pytest.approx(made.small.value, abs=1e-4)


def test_the_artifact_is_what_its_manifest_says(made: Made) -> None:
    manifest = open_artifact(made.artifact.directory).manifest
    assert (manifest.task, manifest.metric) == (made.task, made.metric)
    assert set(manifest.parity) == {"model.onnx", "openvino_model.xml"}
    for parity in manifest.parity.values():
        assert parity.max_abs_error <= 1e-4
        assert parity.argmax_agreement == (None if made.task == "text-regression" else 1.0)
        assert parity.n == 20
    session = onnxruntime.InferenceSession(made.artifact.model_file(ORT), providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == list(made.processor.head.outputs)


def test_the_file_is_confirmed_on_the_report_split(made: Made) -> None:
    report = open_report_split(made.section, made.task, made.processor, seed=0)
    file = made.artifact.model_file(ORT)
    _, inputs = next(made.processor.batches(report.rows.select(range(1)), 1))
    settings = TimingSettings(seconds=0.2, wait_s=0, min_rounds=2)
    found = confirm(file, file, ORT, report, made.processor, inputs, metric=made.metric, seed=0, settings=settings)
    assert found.measured.n == len(report) == 60
    assert found.measured.metric == measured_metric(file, ORT, report, made.processor, made.metric)
    assert found.measured.p50_ms > 0


@torch.inference_mode()
def test_optimum_serves_the_artifact(made: Made) -> None:
    pytest.importorskip("optimum.onnxruntime", reason="needs the extra optimum")
    pytest.importorskip("optimum.intel", reason="needs the extra optimum")
    from optimum import intel, onnxruntime

    kind = {
        "text-classification": "SequenceClassification", "text-regression": "SequenceClassification",
        "token-classification": "TokenClassification", "question-answering": "QuestionAnswering",
    }[made.task]  # fmt: skip
    directory = made.artifact.directory
    tokens = made.processor.inner(
        ["good film", "bad plot"], ["very good cast", "film"], padding=True, return_tensors="pt"
    )
    expected = load_subnetwork(directory)(**tokens)
    served = [
        getattr(onnxruntime, f"ORTModelFor{kind}").from_pretrained(directory),
        getattr(intel, f"OVModelFor{kind}").from_pretrained(directory, ov_config={"INFERENCE_PRECISION_HINT": "f32"}),
    ]
    for model in served:
        found = model(**tokens)
        for name in made.processor.head.outputs:
            assert np.abs(np.asarray(found[name]) - expected[name].numpy()).max() <= 1e-4
        assert model.config.id2label == dict(enumerate(made.data.classes))
