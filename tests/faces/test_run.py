"""The whole job on a tiny model, through the command line, in processes of their own."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import instatune_deploy as itd
from instatune_deploy import pipeline
from instatune_deploy.device.runtimes.base import run_file
from instatune_deploy.elastic.subnetwork import load_subnetwork
from instatune_deploy.elastic.supernet import load_supernet
from instatune_deploy.errors import UsageError
from instatune_deploy.exporting import FullNetwork
from instatune_deploy.job import Job
from instatune_deploy.pipeline import open_run
from instatune_deploy.planning.estimate import Plan, make_plan
from instatune_deploy.planning.steps import plan_steps
from instatune_deploy.stages.evaluate.runs import metric_of
from instatune_deploy.values.budget import Budget
from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.fleet import Fleet
from instatune_deploy.values.front import Candidate, ParetoFront
from instatune_deploy.values.hashing import sha256_file
from instatune_deploy.values.objectives import Objective
from instatune_deploy.values.recipe import Recipe, read_recipe
from instatune_deploy.values.selection import Selection
from instatune_deploy.values.space import Architecture
from instatune_deploy.values.target import Target
from instatune_deploy.workspace import Workspace
from tests.helpers import COMMAND, write_project, write_text_data
from tests.helpers import call_command as call


def kill_at(directory: Path, moment: str, *arguments: str) -> None:
    """Start the command and kill it (SIGKILL) when it prints `moment`."""
    process = subprocess.Popen(
        [*COMMAND, *arguments], cwd=directory, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if moment in line:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            return
    raise AssertionError(f"{moment!r} was never printed:\n{''.join(lines)}")


@pytest.fixture(scope="module")
def run(copy_project: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    return copy_project(tmp_path_factory.mktemp("finished") / "project")


@pytest.fixture(scope="module")
def project(run: Path) -> Path:
    return run.parents[1]


def test_a_run_ends_with_an_artifact_that_keeps_to_its_budget(run: Path) -> None:
    selection = Selection.from_dict(json.loads((run / "result.json").read_text())[0])
    assert selection.measured.p50_ms <= selection.limit_ms
    assert selection.measured.n == selection.full.n == 100
    assert selection.measured.metric > 0.7  # the data can be learnt: chance is 0.5
    manifest = json.loads((run / selection.artifact / "instatune.json").read_text())
    assert manifest["measured"]["p50_ms"] == selection.measured.p50_ms
    assert manifest["architecture"] == selection.architecture
    assert {"model.onnx", "openvino_model.xml"} <= set(manifest["parity"])
    names = {
        "config.json",
        "model.onnx",
        "openvino_model.xml",
        "openvino_model.bin",
        "tokenizer.json",
        "model.safetensors",
    }
    assert names <= set(manifest["files"])
    for name, digest in manifest["files"].items():
        assert sha256_file(run / selection.artifact / name) == digest


def test_a_run_leaves_what_the_design_names_and_no_drafts(run: Path) -> None:
    names = {path.name for path in run.iterdir()}
    assert {
        "recipe.yaml",
        "supernet",
        "teacher",
        "evaluations.jsonl",
        "predictor",
        "tables",
        "fronts",
        "artifacts",
    } <= names
    leftovers = [path for path in run.rglob("*") if path.name in (".drafts", ".checkpoints") and any(path.iterdir())]
    assert leftovers == []


def test_the_front_has_no_dominated_member(run: Path) -> None:
    front = ParetoFront.from_dict(json.loads((run / "fronts" / "cpu-test-p50.json").read_text()))
    assert ParetoFront.of(front.candidates) == front
    assert len(front.candidates) > 1


def test_a_second_run_reuses_everything(project: Path, run: Path) -> None:
    before = {path: sha256_file(path) for path in run.rglob("*") if path.is_file()}
    found = call(project, "run", "recipe.yaml")
    assert found.code == 0
    for stage in ("super-network", "front of cpu-test", "artifact for p50 90% on cpu-test"):
        assert f"{stage}: reused" in found.err
    assert "step" not in found.err
    assert "selected" in found.out
    assert {path: sha256_file(path) for path in run.rglob("*") if path.is_file()} == before


def test_the_artifact_runs_in_plain_runtimes_and_predicts_what_the_supernet_predicts(run: Path) -> None:
    import onnxruntime
    import openvino
    from transformers import AutoTokenizer

    selection = json.loads((run / "result.json").read_text())[0]
    directory = run / selection["artifact"]
    tokens = AutoTokenizer.from_pretrained(directory)(
        ["a good film", "bad bad plot very"], padding=True, return_tensors="pt"
    )
    supernet = load_supernet(run / "supernet")
    with torch.inference_mode():
        expected = supernet(dict(tokens), [Architecture.parse(selection["architecture"])])[0].logits.numpy()
        assert np.abs(load_subnetwork(directory)(**tokens).logits.numpy() - expected).max() <= 1e-5
    inputs = {name: value.numpy() for name, value in tokens.items()}
    session = onnxruntime.InferenceSession(directory / "model.onnx", providers=["CPUExecutionProvider"])
    assert np.abs(session.run(None, inputs)[0] - expected).max() <= 1e-4
    compiled = openvino.Core().compile_model(
        directory / "openvino_model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    assert np.abs(compiled(inputs)[0] - expected).max() <= 1e-4


def test_a_recipe_beside_the_runs_is_not_taken_for_one(project: Path, run: Path) -> None:
    assert (project / "recipe.yaml").is_file()
    found = call(project, "search", "--front", "--json")
    assert found.code == 0, found.err
    assert found.json == call(project, "search", "--front", "--json", "--run", str(run)).json
    assert not (project / ".stages").exists()
    given = call(project, "search", "--run", ".")
    assert given.code == 2
    assert ". is not a run directory" in given.err


def test_select_meets_an_absolute_budget_or_says_what_is_nearest(project: Path, run: Path) -> None:
    full = json.loads((run / "result.json").read_text())[0]["full"]
    found = call(project, "select", "--latency-budget", f"{2 * full['p50_ms']}ms", "--json")
    assert found.code == 0, found.err
    assert found.json["measured"]["p50_ms"] <= 2 * full["p50_ms"]
    nothing = call(project, "select", "--latency-budget", "0.0001ms", "--json")
    assert nothing.code == 3
    assert nothing.err.strip().splitlines()[-1].startswith("error: nothing is predicted to meet 0.0001ms; nearest: ")
    assert "(predicted; latency p50)" in nothing.err
    assert nothing.out == ""


def test_python_exports_to_a_new_directory_alone(run: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="exists already; name a new directory"):
        itd.open_run(run).export("full", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_what_is_selected_may_be_tuned_alone(project: Path, run: Path) -> None:
    arguments = ("select", "--macs-budget", "75%", "--json", "--run", str(run))
    shared, tuned = (call(project, *arguments, *more) for more in ((), ("--tune-epochs", "1")))
    assert (shared.code, tuned.code) == (0, 0), tuned.err
    assert "alone: 1 epochs of 300 samples" in tuned.err
    (after, before), *_ = re.findall(
        r"accuracy ([\d.]+) tuned alone, ([\d.]+) before, on \d+ samples of the search", tuned.err
    )
    assert "reused" in call(project, *arguments, "--tune-epochs", "1").err
    assert tuned.json["measured"]["n"] == 100
    network = Architecture.parse(tuned.json["architecture"])
    weights = load_subnetwork(run / tuned.json["artifact"]).state_dict()
    untuned = load_supernet(run / "supernet").extract(network).state_dict()
    assert weights.keys() == untuned.keys()
    changed = any(not torch.equal(weights[name], untuned[name]) for name in weights)
    assert changed == (float(after) >= float(before))  # the better of both is served


def test_the_full_network_runs_on_every_deployment_beside_a_candidate(
    project: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    job = open_run(run, lambda line: None)
    target = job.target("cpu-test")
    reference = FullNetwork(job, target, job.search([target])[target.name])
    kept = {path.name for path in reference.artifact.directory.iterdir()}
    ids = np.full((2, 7), 5)
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    int8 = [Deployment("onnxruntime", "int8"), Deployment("openvino", "int8")]
    assert not all(reference.artifact.model_file(deployment).is_file() for deployment in int8)
    expected = run_file(reference.file(Deployment("onnxruntime")), Deployment("onnxruntime"), inputs)[0]
    for deployment in int8:
        found = run_file(reference.file(deployment), deployment, inputs)[0]
        assert np.abs(found - expected).max() < 0.2 * np.abs(expected).max()
    assert {path.name for path in reference.artifact.directory.iterdir()} == kept
    # Losses are against fp32, whatever runs the full network fastest.
    manifest = replace(reference.artifact.manifest, deployment=int8[0])
    reference.artifact = replace(reference.artifact, manifest=manifest)
    plain = load_supernet(run / "supernet")
    expected = metric_of(plain.extract(plain.full), job.report_split, job.processor, "accuracy")
    reference.figures = replace(reference.figures, metric=expected - 0.1)
    assert reference.measured(Objective("metric")) == expected


def test_select_keeps_several_budgets_and_says_who_else_there_was(project: Path, run: Path) -> None:
    limits = ("--max-loss", "60", "--macs-budget", "90%", "--size-budget", "99%", "--prefer", "smallest")
    arguments = ("select", *limits, "--run", str(run))  # this run's front is looked at below
    found = call(project, *arguments, "--json")
    assert found.code == 0, found.err
    selection = Selection.from_dict(found.json)
    assert selection.macs <= 0.9 * selection.full_macs
    assert selection.measured.metric >= selection.full.metric - 0.6
    assert selection.limit_ms is None
    front = ParetoFront.from_dict(json.loads((run / "fronts" / "cpu-test-p50.json").read_text()))
    sizes = [c.predicted.file_bytes for c in front.candidates]
    if selection.tried == 1:
        assert selection.predicted.file_bytes == min(sizes)
    assert selection.runners_up
    assert all(entry.why == "next to be tried" for entry in selection.runners_up)
    assert all("predicted to miss" in entry.why or "measured" in entry.why for entry in selection.fell)
    again = call(project, *arguments)
    assert "reused" in again.err
    assert "runner-up: " in again.out
    nothing = call(project, "select", "--macs-budget", "90%", "--size-budget", "1kB", "--run", str(run))
    assert nothing.code == 3
    assert nothing.err.strip().splitlines()[-1].count(" G, size ") == 3


def test_a_network_whose_metric_missed_is_not_measured_for_the_next_budget(
    project: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    job = open_run(copy, lambda line: None)
    target = job.target("cpu-test")
    front, tried = job.search([target])[target.name], list[Candidate]()
    real = pipeline.try_candidate

    def try_candidate(job: Job, target: Target, candidate: Candidate, *rest: Any) -> pipeline.Attempt:
        tried.append(candidate)
        return real(job, target, candidate, *rest)

    monkeypatch.setattr(pipeline, "try_candidate", try_candidate)
    pipeline.select(job, target, front, Budget.parse("loss<=60, fastest"))
    first = tried.pop(0)
    known = job.confirmed[target.name, first.architecture, first.deployment]
    # As if it had answered everything wrong: what the budget prefers first is passed over, without a measurement.
    job.confirmed[target.name, first.architecture, first.deployment] = 0.0
    selection = pipeline.select(job, target, front, Budget.parse("loss<=59, fastest"))
    assert (selection.architecture, selection.deployment) != (str(first.architecture), first.deployment.name)
    assert first not in tried
    assert any(
        (fell.architecture, fell.deployment) == (str(first.architecture), first.deployment.name)
        and fell.why.startswith("measured metric 0.0000 (at least ")
        for fell in selection.fell
    )
    # One that keeps the limit is measured, as what it costs may be another by now.
    job.confirmed[target.name, first.architecture, first.deployment] = known
    pipeline.select(job, target, front, Budget.parse("loss<=58, fastest"))
    assert first in tried


def test_objectives_and_limits_are_checked_in_one_line(project: Path, run: Path) -> None:
    for arguments, code, message in (
        (("--objective", "metric", "--objective", "mcas"), 2, "unknown objective 'mcas'; did you mean 'macs'"),
        (
            ("--objective", "metric", "--objective", "latency@cpu-test:ov-int8-1t"), 2,
            "target cpu-test has no latency table for ov-int8-1t; did you mean 'ort-int8-1t'",
        ),
        (("--limit", "size<=1kB"), 3, "no network of the space keeps the limits on cpu-test (size at most 0.001 MB); near"),
    ):  # fmt: skip
        found = call(project, "search", *arguments)
        assert found.code == code
        assert message in found.err.strip().splitlines()[-1]


def test_search_prints_the_front(project: Path, run: Path) -> None:
    found = call(project, "search", "--run", str(run), "--json")
    assert found.code == 0
    latencies = [entry["predicted"]["latency_ms"] for entry in found.json["front"]]
    assert latencies == sorted(latencies)
    kept = call(project, "search", "--run", str(run), "--front", "--json")
    assert kept.json == found.json
    assert "reused" not in kept.err
    shown = call(project, "search", "--run", str(run), "--front")
    assert "front of latency, macs, metric" in " ".join(shown.out.split())


def test_some_networks_are_evaluated_as_they_are_deployed(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    int8 = [line for line in lines if line["precision"] == "ort-int8"]
    assert 1 <= len(int8) <= 2
    assert all((line["split"], line["n"], line["computed_in"]) == ("search", 100, "int8") for line in int8)
    assert {line["architecture"] for line in int8} <= {line["architecture"] for line in lines if line not in int8}
    predictor = json.loads((run / "predictor" / "predictor.json").read_text())
    assert predictor["offsets"]["ort-int8"]["n"] == len(int8)


def test_other_objectives_give_another_front_and_evaluate_nothing(project: Path, run: Path) -> None:
    before, kept = (run / "evaluations.jsonl").read_bytes(), (run / "fronts" / "cpu-test-p50.json").read_bytes()
    arguments = ("search", "--objective", "size", "--objective", "accuracy", "--limit", "latency<=95%", "--json")
    found = call(project, *arguments)
    assert found.code == 0, found.err
    assert found.json["objectives"] == ["metric", "size"]
    assert (run / "evaluations.jsonl").read_bytes() == before
    assert (run / "fronts" / "cpu-test-p50.json").read_bytes() == kept


def test_export_writes_any_network_once(project: Path, run: Path) -> None:
    arguments = (
        "export",
        "--architecture",
        "2L[2-16 4-64]",
        "--deployment",
        "ov-fp32-1t",
        "--out",
        "mine",
        "--no-confirm",
    )
    found = call(project, *arguments, "--json")
    assert found.code == 0, found.err
    assert (project / "mine" / "model.onnx").is_file()
    before = sha256_file(project / "mine" / "instatune.json")
    again = call(project, *arguments)
    assert again.code == 2
    assert "mine exists already" in again.err
    assert sha256_file(project / "mine" / "instatune.json") == before
    outside = call(project, "export", "--architecture", "2L[3-16 4-64]", "--out", "other")
    assert outside.code == 2
    assert "is not in the space" in outside.err
    assert not (project / "other").exists()


def test_another_target_trains_and_evaluates_nothing(project: Path, run: Path) -> None:
    target = yaml.safe_load((project / "targets" / "cpu-test.yaml").read_text())
    other = {**target, "name": "cpu-other", "deployments": [{"runtime": "onnxruntime"}]}
    (project / "targets" / "cpu-other.yaml").write_text(yaml.safe_dump(other))
    before = (run / "evaluations.jsonl").read_bytes()
    found = call(project, "search", "--target", "cpu-other", "--json")
    assert found.code == 0, found.err
    assert "super-network: reused" in found.err
    assert (run / "evaluations.jsonl").read_bytes() == before
    assert {entry["deployment"]["runtime"] for entry in found.json["front"]} == {"onnxruntime"}
    both = call(project, "search", "--target", "cpu-other", "--target", "cpu-test", "--json")
    assert both.json["fronts"]["cpu-other"] == found.json["front"]
    assert set(both.json["fronts"]) == {"cpu-other", "cpu-test"}
    assert (run / "evaluations.jsonl").read_bytes() == before


def planned(run: Path, **changes: Any) -> dict[str, str]:
    """The stages of the run whose recipe is changed so, each with what becomes of it; of the first of a kind."""
    recipe = read_recipe(run / "recipe.yaml")
    changed = Recipe.model_validate({**recipe.model_dump(), **changes})
    steps = plan_steps(Job(changed, Workspace(run), lambda line: None))
    return {step.kind: str(step).partition(": ")[2] for step in reversed(steps)}


def test_a_plan_says_what_is_reused_and_why(project: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    recipe = read_recipe(run / "recipe.yaml")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    same = planned(run)
    assert set(same) == {"teacher", "super-network", "table", "front", "selection"}
    assert all(line.startswith("reused, ") for line in same.values())

    budget = planned(run, targets={"cpu-test": ["80%"]})
    assert [kind for kind, line in budget.items() if not line.startswith("reused")] == ["selection"]
    assert budget["selection"] == "to do, nothing of it is there yet"

    percentile = planned(run, percentile="p90")
    assert {kind for kind, line in percentile.items() if line.startswith("reused")} == {
        "teacher", "super-network", "table"
    }  # fmt: skip

    target = yaml.safe_load((project / "targets" / "cpu-test.yaml").read_text())
    (project / "targets" / "cpu-second.yaml").write_text(yaml.safe_dump({**target, "name": "cpu-second"}))
    second = planned(run, targets={"cpu-second": ["80%"]})
    assert second["teacher"].startswith("reused")
    assert second["super-network"].startswith("reused")
    assert second["front"] == "to do, it follows from the tables; 16 of 16 sub-networks are evaluated already"

    space = planned(run, space={"depths": [2, 3], "heads": [2, 4], "ffn": [16, 64]})
    assert space["teacher"].startswith("reused")
    assert space["super-network"] == ("to do, space.depths: [1, 2, 3] -> [2, 3]; all that follows from it is redone")
    assert space["front"] == "to do, it follows from the super-network"

    trained = planned(run, finetune={**recipe.finetune.model_dump(), "epochs": 3, "alpha": 0.4})
    assert trained["teacher"].startswith("reused")
    assert trained["super-network"].startswith("to do, finetune.epochs: 2.0 -> 3.0, finetune.alpha: ")

    measured = planned(run, metric="f1", data={**recipe.data.model_dump(), "report": recipe.data.train})
    assert measured["teacher"].startswith("reused")
    assert measured["super-network"].startswith("reused")
    assert measured["front"] == "to do, metric: accuracy -> f1"

    searched = planned(run, search={**recipe.search.model_dump(), "rounds": 3})
    assert searched["front"] == "to do, search.rounds: 2 -> 3; 16 of 20 sub-networks are evaluated already"
    assert searched["super-network"].startswith("reused")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_another_metric_is_measured_anew_and_decides_without_training(project: Path, run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    recipe = yaml.safe_load((project / "recipe.yaml").read_text())
    (project / "f1.yaml").write_text(yaml.safe_dump({**recipe, "metric": "f1"}))
    trained = (copy / "supernet" / "model.safetensors").stat().st_mtime_ns
    found = call(project, "run", "f1.yaml", "--out", str(copy), "--json")
    assert found.code == 0, found.err
    assert (copy / "supernet" / "model.safetensors").stat().st_mtime_ns == trained
    lines = [json.loads(line) for line in (copy / "evaluations.jsonl").read_text().splitlines()]
    assert {line["metric"] for line in lines} == {"f1"}
    front = ParetoFront.from_dict(json.loads((copy / "fronts" / "cpu-test-p50.json").read_text()))
    values = {c.predicted.metric for c in front.candidates}
    before = ParetoFront.from_dict(json.loads((run / "fronts" / "cpu-test-p50.json").read_text()))
    assert values.isdisjoint(c.predicted.metric for c in before.candidates)
    artifact = copy / json.loads((copy / "result.json").read_text())[0]["artifact"]
    assert json.loads((artifact / "instatune.json").read_text())["metric"] == "f1"


def test_a_budget_that_nothing_keeps_does_not_stop_the_others(project: Path, run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    recipe = yaml.safe_load((project / "recipe.yaml").read_text())
    (project / "three.yaml").write_text(yaml.safe_dump({**recipe, "targets": {"cpu-test": ["0.001ms", "90%", "1%"]}}))
    found = call(project, "run", "three.yaml", "--out", str(copy), "--json")
    assert found.code == 3
    last = found.err.strip().splitlines()[-1]
    assert "1 of 3 budgets are met; not cpu-test, 0.001ms: nothing is predicted to meet 0.001ms; nearest: " in last
    assert "; nor cpu-test, 1%: " in last
    assert [chosen["budget"] for chosen in found.json["selections"]] == ["90%"]
    assert json.loads((copy / "result.json").read_text()) == found.json["selections"]


def test_a_target_may_be_named_by_its_file(project: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    by_path = planned(run, targets={"targets/cpu-test.yaml": ["90%"]})
    assert by_path["selection"].startswith("reused")
    arguments = ("select", "--latency-budget", "90%", "--target", "targets/cpu-test.yaml", "--json")
    first, again = (call(project, *arguments) for _ in range(2))
    assert first.json["target"] == again.json["target"] == "cpu-test"
    assert "super-network" not in again.err
    recipe = yaml.safe_load((project / "recipe.yaml").read_text())
    twice = {**recipe, "targets": {"cpu-test": ["90%"], "targets/cpu-test.yaml": ["80%"]}}
    (project / "twice.yaml").write_text(yaml.safe_dump(twice))
    found = call(project, "run", "twice.yaml")
    assert found.code == 2
    assert "targets: cpu-test, targets/cpu-test.yaml are not all different targets" in found.err


def test_a_plan_knows_files_that_changed_or_went(
    project: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "supernet")
    assert planned(copy)["super-network"] == "to do, supernet is gone; all that follows from it is redone"
    data = tmp_path / "train.parquet"
    write_text_data(data, 400, seed=7)
    section = {**read_recipe(run / "recipe.yaml").data.model_dump(), "train": str(data)}
    changed = planned(run, data=section)
    assert changed["teacher"] == "to do, content of data.train changed; all that follows from it is redone"


def test_a_dry_run_estimates_from_real_steps_and_writes_nothing(
    project: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)

    def make(directory: Path) -> Plan:
        return make_plan(Job(read_recipe(project / "recipe.yaml"), Workspace(directory), lambda line: None))

    new = make(project / "runs" / "none")
    assert not (project / "runs" / "none").exists()
    assert new.speed is not None
    assert new.speed.plain_step_s is not None
    assert new.speed.elastic_step_s is not None
    assert 0 < new.speed.sample_s < new.speed.plain_step_s
    seconds = {found.step.kind: found.seconds for found in new.steps}
    # 50 steps of the teacher and 20 of the super-network, which have importance beside them.
    assert seconds["teacher"] == pytest.approx(50 * new.speed.plain_step_s)
    assert seconds["super-network"] > 20 * new.speed.elastic_step_s
    assert all(found.seconds > 0 and found.disk_bytes > 0 for found in new.steps)
    assert new.lines[-1].startswith(f"in all about {new.minutes:.0f} min" if new.minutes >= 1 else "in all about ")
    assert "estimates, from" in new.lines[-1]
    found = make(run)
    assert found.speed is None
    assert found.minutes == found.disk_bytes == 0
    assert found.lines[-1] == "nothing is left to do: everything is reused"


def test_killed_and_resumed_equals_not_killed(project: Path, run: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut"
    # Latencies differ from one measurement to the next, so both runs read the same tables.
    (project / "latency_tables").mkdir(exist_ok=True)
    subprocess.run(["cp", "-r", *map(str, (run / "tables").iterdir()), str(project / "latency_tables")], check=True)
    for moment in ("step 9/", "importance of", "elastic fine-tuning", "latency table", "search round 1", "exporting"):
        kill_at(project, moment, "run", "recipe.yaml", "--out", str(cut))
    found = call(project, "run", "recipe.yaml", "--out", str(cut))
    assert found.code == 0, found.err
    for name in (
        "teacher/model.safetensors",
        "supernet/model.safetensors",
        "supernet/search_space.json",
        "fronts/cpu-test-p50.json",
    ):
        assert sha256_file(cut / name) == sha256_file(run / name), name
    assert (cut / "evaluations.jsonl").read_text() == (run / "evaluations.jsonl").read_text()
    for path in (run / "predictor").iterdir():
        other = cut / "predictor" / path.name
        if path.suffix == ".json":
            assert alike(json.loads(other.read_text()), json.loads(path.read_text()))
        else:
            assert other.read_bytes() == path.read_bytes()


def alike(one: Any, other: Any) -> bool:
    """Whether two values of JSON are the same but for the last bits of numbers, which depend on where in memory an array
    lies that is summed, and for what is a hash of them."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one if key != "sha256")
    if isinstance(one, list):
        return len(one) == len(other) and all(map(alike, one, other))
    return math.isclose(one, other, rel_tol=1e-6) if isinstance(one, float) else bool(one == other)


def test_a_vision_transformer_goes_all_the_way(tmp_path: Path) -> None:
    write_project(tmp_path, "image-classification")
    found = call(tmp_path, "run", "recipe.yaml", "--json")
    assert found.code == 0, found.err
    run = tmp_path / "runs" / "tiny"
    selection = Selection.from_dict(found.json["selections"][0])
    assert selection.measured.metric > 0.9
    assert selection.measured.p50_ms <= selection.limit_ms
    assert (run / selection.artifact / "preprocessor_config.json").is_file()


def test_optimum_loads_the_artifact(run: Path) -> None:
    pytest.importorskip("optimum.onnxruntime", reason="needs the extra optimum")
    pytest.importorskip("optimum.intel", reason="needs the extra optimum")
    from optimum.intel import OVModelForSequenceClassification
    from optimum.onnxruntime import ORTModelForSequenceClassification
    from transformers import AutoTokenizer, pipeline

    directory = run / json.loads((run / "result.json").read_text())[0]["artifact"]
    tokenizer = AutoTokenizer.from_pretrained(directory)
    texts = ["a good film", "bad bad plot very"]
    tokens = tokenizer(texts, padding=True, return_tensors="pt")
    expected = load_subnetwork(directory)(**tokens).logits
    onnx_model = ORTModelForSequenceClassification.from_pretrained(directory)
    openvino_model = OVModelForSequenceClassification.from_pretrained(
        directory, ov_config={"INFERENCE_PRECISION_HINT": "f32"}
    )
    for model in (onnx_model, openvino_model):
        assert (model(**tokens).logits - expected).abs().max() <= 1e-4
        labels = [entry["label"] for entry in pipeline("text-classification", model=model, tokenizer=tokenizer)(texts)]
        assert labels == [model.config.id2label[int(i)] for i in expected.argmax(-1)]


def test_a_fleet_is_selected_for_several_budgets_and_gathered(project: Path, run: Path, tmp_path: Path) -> None:
    budgets = [option for budget in ("90%", "300%", "90%") for option in ("--latency-budget", budget)]
    found = call(project, "fleet", str(tmp_path / "fleet"), "--run", str(run), *budgets, "--json")
    assert found.code == 0, found.err
    assert "for 90% the same network is best as for 90%: it is one member" in found.err
    fleet = Fleet.read(tmp_path / "fleet")
    assert {member.name for member in fleet.members} == {"p50-90pct", "p50-300pct"}
    assert [member["name"] for member in found.json["members"]] == [member.name for member in fleet.members]
    for member in fleet.members:
        selection = json.loads((run / "selections" / f"cpu-test-{member.name}.json").read_text())
        assert (member.architecture, member.p50_ms) == (selection["architecture"], selection["measured"]["p50_ms"])
        assert (member.metric, member.n, member.split) == (selection["measured"]["metric"], 100, "report")
    assert found.json["stored_bytes"] < found.json["alone_bytes"]
