"""A network that is tuned alone, and what it was before: the better of both goes on."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from instatune_deploy.data.dataset import Split
from instatune_deploy.data.processor import Processor
from instatune_deploy.exporting import better_of
from instatune_deploy.stages.evaluate import Evaluator
from instatune_deploy.stages.evaluate.runs import metric_of
from instatune_deploy.stages.tune import tune
from instatune_deploy.values.recipe import FinetuneSection
from instatune_deploy.values.space import Architecture
from instatune_deploy.workspace import Workspace
from tests.helpers import make_text_task

Prepared = tuple[PreTrainedModel, PreTrainedModel, Split, Processor]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """A network that is right more often than the other, which decides the opposite."""
    supernet, data, processor = make_text_task(tmp_path_factory.mktemp("tune"))
    right, wrong = (supernet.extract(supernet.space.smallest) for _ in range(2))
    with torch.no_grad():
        wrong.classifier.weight.neg_()
        wrong.classifier.bias.neg_()
    networks = sorted((wrong, right), key=lambda network: -metric_of(network, data.search, processor, "accuracy"))
    return *networks, data.search, processor


def better(tuned: PreTrainedModel, before: PreTrainedModel, prepared: Prepared) -> tuple[PreTrainedModel, str]:
    said: list[str] = []
    found = better_of(tuned, before, *prepared[2:], "accuracy", name="the network", report=said.append)
    (line,) = said
    return found, line


def test_the_metric_of_a_network_is_its_metric_in_the_super_network(tmp_path: Path) -> None:
    supernet, data, processor = make_text_task(tmp_path / "task")
    evaluate = Evaluator(supernet, data.search, processor, metric="accuracy", path=tmp_path / "evaluations.jsonl")
    networks: list[Architecture] = [supernet.full, *supernet.space.sample(3, seed=1)]
    for found in evaluate(networks):
        assert metric_of(supernet.extract(found.architecture), data.search, processor, "accuracy") == found.value


def test_layers_that_are_computed_again_are_matched_with_the_teachers_as_ever(tmp_path: Path) -> None:
    supernet, data, processor = make_text_task(tmp_path / "task")
    teacher = copy.deepcopy(supernet.model)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    found = []
    for again in (False, True):
        settings = FinetuneSection.model_validate(
            {"epochs": 1, "attention_weight": 1, "hidden_weight": 1, "gradient_checkpointing": again}
        )
        workspace = Workspace(tmp_path / f"run-{again}")
        network = tune(
            supernet, supernet.space.smallest, teacher, settings, data, processor, workspace, key="k", seed=0,
            report=lambda line: None,
        )  # fmt: skip
        (history,) = workspace.path("training").iterdir()
        found.append((json.loads(history.read_text()), network.state_dict()))
    (plain, weights), (recomputed, others) = found
    assert recomputed == plain
    assert all(torch.allclose(weights[name], others[name], atol=1e-6) for name in weights)


def test_what_became_better_is_kept(prepared: Prepared) -> None:
    good, bad = prepared[:2]
    found, line = better(good, bad, prepared)
    assert found is good
    assert line.endswith(" before, on 70 samples of the search split")


def test_what_became_worse_is_given_up(prepared: Prepared) -> None:
    good, bad = prepared[:2]
    values = [metric_of(network, *prepared[2:], "accuracy") for network in (bad, good)]
    assert values[0] < values[1]
    found, line = better(bad, good, prepared)
    assert found is good
    assert line == (
        f"the network: accuracy {values[0]:.4f} tuned alone, {values[1]:.4f} before, on 70 samples of the search split; it keeps what it had"
    )


def test_of_two_that_do_as_well_the_tuned_one_is_kept(prepared: Prepared) -> None:
    good = prepared[0]
    assert better(good, good, prepared)[0] is good
