"""Evaluations: what is measured, what is remembered."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from instatune_deploy.data.dataset import TaskData, open_task_data
from instatune_deploy.data.processor import Processor
from instatune_deploy.elastic.supernet import Supernet
from instatune_deploy.errors import UsageError
from instatune_deploy.stages import evaluate
from instatune_deploy.stages.evaluate import Evaluator, precision
from instatune_deploy.stages.evaluate.runs import Arithmetic
from instatune_deploy.values.evaluations import append_evaluations, read_evaluations
from instatune_deploy.values.front import Evaluation
from instatune_deploy.values.recipe import DataSection
from instatune_deploy.values.space import Architecture
from tests.helpers import make_text_task, write_text_data

TASK = "text-classification"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Supernet, TaskData, Processor]:
    return make_text_task(tmp_path_factory.mktemp("evaluate"))


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


def evaluator(prepared: tuple, path: Path, **options: Any) -> Evaluator:
    supernet, data, processor = prepared
    return Evaluator(supernet, data.search, processor, **{"metric": "accuracy", "path": path, **options})


@torch.inference_mode()
def test_values_are_those_of_a_loop_over_padded_batches(prepared: tuple, tmp_path: Path) -> None:
    supernet, data, processor = prepared
    wanted = [*supernet.space.sample(30, seed=5), supernet.full]
    found = evaluator(prepared, tmp_path / "e.jsonl")(wanted)
    rows = {name: column for name, column in data.search.rows[:].items() if name != "labels"}
    inputs = processor.inner.pad(rows, padding="max_length", max_length=16, return_tensors="pt")
    for architecture, evaluation in zip(wanted, found, strict=True):
        logits = supernet(inputs, [architecture])[0].logits
        assert evaluation.architecture == architecture
        assert evaluation.value == pytest.approx(float(np.mean(logits.argmax(-1).numpy() == data.search.labels)))


def test_nothing_is_measured_twice_and_a_half_line_costs_one_evaluation(
    prepared: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "REPORT_EVERY_S", 0.0)
    path = tmp_path / "e.jsonl"
    wanted = prepared[0].space.sample(4, seed=2)
    measured: list[str] = []
    first = evaluator(prepared, path)([*wanted, wanted[0]], report=measured.append)
    assert len(measured) == 4
    assert first[4] == first[0]
    assert evaluator(prepared, path)(wanted, report=measured.append) == first[:4]
    assert len(measured) == 4
    before = set(read_evaluations(path).values())
    path.write_text(
        path.read_text(encoding="utf-8")[:-20], encoding="utf-8"
    )  # as a kill in the middle of a write leaves it
    assert len(before - set(read_evaluations(path).values())) == 1
    told: list[str] = []
    assert evaluator(prepared, path, report=told.append)(wanted, report=measured.append) == first[:4]
    assert len(measured) == 5
    assert len(told) == 1
    assert f"{path}:4: passed over" in told[0]
    assert set(read_evaluations(path).values()) == before


def test_a_stop_loses_one_chunk(prepared: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "CHUNK", 3)
    monkeypatch.setattr(evaluate, "REPORT_EVERY_S", 0.0)
    wanted, path = prepared[0].space.sample(8, seed=4), tmp_path / "e.jsonl"
    first, count = evaluator(prepared, tmp_path / "whole.jsonl")(wanted), 0

    def stop(line: str) -> None:
        nonlocal count
        count += 1
        if count == 4:  # of the second chunk the first
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluator(prepared, path)(wanted, report=stop)
    assert len(read_evaluations(path)) == 4
    more: list[str] = []
    assert evaluator(prepared, path)(wanted, report=more.append) == first
    assert len(more) == 4


def test_evaluations_of_another_metric_are_not_mixed_in(prepared: tuple, tmp_path: Path) -> None:
    supernet, data, processor = prepared
    path = tmp_path / "e.jsonl"
    Evaluator(supernet, data.search, processor, metric="accuracy", path=path)(supernet.space.sample(1, seed=0))
    with pytest.raises(UsageError, match=r"e\.jsonl: holds accuracy on 70 samples of search \(line 1\), not f1"):
        Evaluator(supernet, data.search, processor, metric="f1", path=path)


def test_of_other_evaluations_in_the_file_only_those_that_fit_count(prepared: tuple, tmp_path: Path) -> None:
    path, told = tmp_path / "e.jsonl", list[str]()
    smallest = prepared[0].space.smallest
    outside = Evaluation(Architecture.parse("1L[3-16]"), "accuracy", 0.5, "search", 70)
    quantised = Evaluation(smallest, "accuracy", 0.01, "report", 5, precision="int8")
    append_evaluations(path, [outside, quantised])
    found = evaluator(prepared, path, report=told.append)
    assert found.known == {}
    assert told == [f"{path}:1: passed over, 1L[3-16] is not in the space"]
    assert found([smallest])[0].value != 0.01


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


def test_values_in_bf16_say_so_and_are_not_mixed_with_others(prepared: tuple, tmp_path: Path) -> None:
    wanted = prepared[0].space.sample(12, seed=6)
    exact = evaluator(prepared, tmp_path / "fp32.jsonl")(wanted)
    path = tmp_path / "bf16.jsonl"
    near = evaluator(prepared, path, precision="bf16")(wanted)
    assert [e.value for e in near] == [e.value for e in exact]
    assert {e.computed_in for e in near} == {"bf16"}
    assert {(e.computed_in, e.precision) for e in exact} == {("fp32", "fp32")}
    with pytest.raises(UsageError, match=r"holds values computed in bf16 \(line 1\), not fp32"):
        evaluator(prepared, path)
    assert evaluator(prepared, path, precision="auto").check.chosen.precision == "bf16"
    with pytest.raises(UsageError, match="computed in fp32"):
        evaluator(prepared, tmp_path / "fp32.jsonl", precision="bf16")
    assert evaluator(prepared, tmp_path / "fp32.jsonl", precision="auto").check.chosen.precision == "fp32"


def test_rows_in_doubt_are_computed_in_fp32_again(prepared: tuple, tmp_path: Path) -> None:
    """With every row in doubt, bf16 gives the outputs of fp32."""
    supernet, _, _ = prepared
    runs = evaluator(prepared, tmp_path / "e.jsonl").runs
    (found,) = runs.outputs([supernet.space.largest], runs.batches(), Arithmetic("bf16", doubt=np.inf))
    (exact,) = runs.outputs([supernet.space.largest], runs.batches(), Arithmetic())
    rows = [dict(zip(numbers.tolist(), logits.tolist(), strict=True)) for numbers, (logits,) in found]
    for numbers, (logits,) in exact:
        for number, own in zip(numbers.tolist(), logits.tolist(), strict=True):
            assert next(part for part in reversed(rows) if number in part)[number] == pytest.approx(own, abs=1e-6)


@dataclass(frozen=True)
class Learnt:
    """A super-network whose small sub-networks know less, by construction: the task is learnt by its last two layers."""

    prepared: tuple[Supernet, TaskData, Processor]
    wanted: list[Architecture]


@pytest.fixture(scope="module")
def learnt(prepared: tuple, tmp_path_factory: pytest.TempPathFactory) -> Learnt:
    supernet, data, processor = prepared
    directory = tmp_path_factory.mktemp("learnt")
    section = DataSection(
        train=str(write_text_data(directory / "t.parquet", 900, seed=0)), search_rows=600, report_rows=10
    )
    data = open_task_data(section, TASK, processor, seed=0)
    network = copy.deepcopy(supernet.model).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    for _ in range(4):
        for batch in processor.labelled_batches(data.train.rows, 32):
            network(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    space = supernet.space
    wanted = [space.largest, *(a for a in space.sample(40, seed=9) if a != space.largest)]
    return Learnt((Supernet(network.eval(), space), data, processor), wanted)


@pytest.mark.parametrize(
    ("has_it", "speedup", "largest_move", "chosen"),
    [(True, 2.0, 0.01, "bf16"), (False, 2.0, 0.01, "fp32"), (True, 0.9, 0.01, "fp32"), (True, 2.0, -1.0, "fp32")],
)
def test_bf16_is_taken_where_it_is_faster_and_as_good(
    learnt: Learnt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_it: bool, speedup: float, largest_move: float, chosen: str
) -> None:  # fmt: skip
    monkeypatch.setattr(precision, "_has_bf16", lambda runs: has_it)
    monkeypatch.setattr(precision, "_speedup", lambda *arguments: speedup)
    monkeypatch.setattr(precision, "LARGEST_MOVE", largest_move)
    found = evaluator(learnt.prepared, tmp_path / "e.jsonl", precision="auto")
    assert found(learnt.wanted[:2])[0].computed_in == chosen
    assert found.check.reason


def test_a_race_measures_those_that_stay_exactly_and_keeps_the_best(learnt: Learnt, tmp_path: Path) -> None:
    exact = {e.architecture: e for e in evaluator(learnt.prepared, tmp_path / "all.jsonl")(learnt.wanted)}
    best = sorted(exact.values(), key=lambda e: -e.value)
    path, told = tmp_path / "race.jsonl", list[str]()
    race = evaluator(learnt.prepared, path).race(learnt.wanted, keep=3, report=told.append)
    assert race.dropped
    assert all(exact[e.architecture] == e for e in race.evaluations)
    assert {e.architecture for e in race.evaluations} >= {e.architecture for e in best[:3]}
    everyone = [e.architecture for e in race.evaluations] + [d.architecture for d in race.dropped]
    assert sorted(map(str, everyone)) == sorted(map(str, learnt.wanted))
    assert set(read_evaluations(path).values()) == set(race.evaluations)
    assert all(d.n in (75, 150, 300) and abs(d.value - exact[d.architecture].value) < 0.2 for d in race.dropped)
    assert "75 of 600 samples" in told[0]
    again = evaluator(learnt.prepared, tmp_path / "again.jsonl").race(learnt.wanted, keep=3)
    assert again == race


def test_a_race_to_a_floor_gives_up_what_is_below(learnt: Learnt, tmp_path: Path) -> None:
    exact = {e.architecture: e.value for e in evaluator(learnt.prepared, tmp_path / "all.jsonl")(learnt.wanted)}
    floor = max(exact.values()) - 0.02
    race = evaluator(learnt.prepared, tmp_path / "race.jsonl").race(learnt.wanted, floor=floor)
    assert {a for a, value in exact.items() if value >= floor} <= {e.architecture for e in race.evaluations}
    assert race.dropped


def test_a_race_that_was_stopped_goes_on(learnt: Learnt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "CHUNK", 2)
    monkeypatch.setattr(evaluate, "REPORT_EVERY_S", 0.0)
    whole = evaluator(learnt.prepared, tmp_path / "whole.jsonl").race(learnt.wanted, keep=3)

    def stop(line: str) -> None:
        if "evaluated" in line:
            raise KeyboardInterrupt

    path = tmp_path / "e.jsonl"
    with pytest.raises(KeyboardInterrupt):
        evaluator(learnt.prepared, path).race(learnt.wanted, keep=3, report=stop)
    (kept,) = read_evaluations(path).values()
    race = evaluator(learnt.prepared, path).race(learnt.wanted, keep=3)
    assert kept in race.evaluations
    exact = {e.architecture: e for e in whole.evaluations}
    best = sorted(whole.evaluations, key=lambda e: -e.value)[:3]
    assert {e.architecture for e in best} <= {e.architecture for e in race.evaluations}
    assert all(exact.get(e.architecture, e) == e for e in race.evaluations)


def test_a_metric_that_is_no_share_of_samples_is_not_raced(learnt: Learnt, tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    race = evaluator(learnt.prepared, path, metric="f1").race(learnt.wanted[:6], keep=1)
    assert race.dropped == []
    assert race.evaluations == evaluator(learnt.prepared, tmp_path / "f.jsonl", metric="f1")(learnt.wanted[:6])


@pytest.mark.parametrize(
    ("aim", "message"),
    [
        ({}, "needs keep"),
        ({"keep": 0}, "cannot keep the best 0"),
        ({"floor": 90}, "floor 90 is no share"),
        ({"keep": 1, "confidence": 95}, "confidence 95 is no probability"),
    ],
)
def test_a_race_without_a_sensible_aim_is_refused(prepared: tuple, tmp_path: Path, aim: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        evaluator(prepared, tmp_path / "e.jsonl").race([prepared[0].space.smallest], **aim)


@torch.no_grad()
def test_a_divergence_is_that_of_the_class_probabilities_from_the_full_networks(
    prepared: tuple, tmp_path: Path
) -> None:
    supernet, data, processor = copy.deepcopy(prepared[0]), *prepared[1:]
    for parameter in supernet.parameters():  # fresh weights are small: probabilities that differ
        parameter.mul_(5)
    prepared = (supernet, data, processor)
    wanted = [*supernet.space.sample(4, seed=5), supernet.full]
    path = tmp_path / "e.jsonl"
    found = evaluator(prepared, path, beside=supernet.full)(wanted)
    rows = {name: column for name, column in data.search.rows[:].items() if name != "labels"}
    inputs = processor.inner.pad(rows, padding="max_length", max_length=16, return_tensors="pt")
    full, *others = (supernet(inputs, [a])[0].logits.log_softmax(-1) for a in (supernet.full, *wanted))
    for evaluation, ours in zip(found, others, strict=True):
        expected = float((full.exp() * (full - ours)).sum(-1).mean())
        assert evaluation.divergence == pytest.approx(expected, abs=1e-5)
    assert found[-1].divergence == pytest.approx(0, abs=1e-9)
    assert all(evaluation.divergence and evaluation.divergence > 1e-3 for evaluation in found[:-1])
    assert {e.architecture: e for e in read_evaluations(path).values()} == {e.architecture: e for e in found}
    assert evaluator(prepared, tmp_path / "alone.jsonl")(wanted)[0].divergence is None
