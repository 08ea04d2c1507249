"""`instatune-deploy fleet PLAN.yaml`: one run's networks for several targets, batches and budgets; what is done is reused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from instatune_deploy.stages.export import open_artifact
from instatune_deploy.values.latency import LatencyTable
from instatune_deploy.values.target import Target, in_batches, read_target
from tests.helpers import TARGET, call_main

Call = Callable[..., tuple[int, str, str]]
#: One deployment, so that its table takes seconds.
ONE = {**TARGET, "name": "cpu-one", "deployments": [{"runtime": "openvino"}]}
#: What no machine of today has.
FAR = {**ONE, "name": "cpu-far", "instruction_sets": ["nonesuch"]}


@pytest.fixture(scope="module")
def project(copy_project: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run and targets that it does not know."""
    directory = tmp_path_factory.mktemp("fleet") / "project"
    run = copy_project(directory)
    for target in (ONE, FAR):
        (directory / "targets" / f"{target['name']}.yaml").write_text(yaml.safe_dump(target), encoding="utf-8")
    (path,) = (run / "tables").rglob("*/ov-fp32-1t.json")
    table = LatencyTable.from_json(path.read_text(), str(path))
    far = replace(table, target="cpu-far", machine=replace(table.machine, cpu_model="Far CPU"))
    place = run / "tables" / far.file_name
    place.parent.mkdir(parents=True)
    place.write_text(far.to_json(), encoding="utf-8")
    return directory


@pytest.fixture
def call(project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Calls `fleet` with a plan of these keys."""
    monkeypatch.chdir(project)

    def call_fleet(plan: dict[str, Any], *options: str) -> tuple[int, str, str]:
        Path("fleet.yaml").write_text(yaml.safe_dump({"run": "./runs/tiny", **plan}), encoding="utf-8")
        return call_main(monkeypatch, capsys, "fleet", "fleet.yaml", *options)

    return call_fleet


def made(run: Path) -> dict[str, int]:
    """When tables, fronts, evaluations and artifacts of a run were written, by their paths."""
    found = [
        *run.glob("tables/**/*.json"),
        *run.glob("fronts/*"),
        run / "evaluations.jsonl",
        *run.glob("artifacts/**/*.json"),
    ]
    return {str(path): path.stat().st_mtime_ns for path in found}


def test_every_cell_gets_a_measured_network_and_is_made_once(call: Call, project: Path) -> None:
    run = project / "runs" / "tiny"
    before = made(run)
    plan = {"targets": ["cpu-test", "./targets/cpu-one.yaml"], "budgets": ["90%", "10000ms"], "batches": [1]}
    code, out, error = call(plan, "--json")
    assert code == 0, error
    found = json.loads(out)
    cells = [(Path(cell["target"]).stem, cell["batch"], cell["budget"]) for cell in found["cells"]]
    assert cells == [(t, 1, b) for t in ("cpu-test", "cpu-one") for b in ("90%", "10000ms")]
    assert before.items() <= made(run).items()  # of the run itself
    for cell in found["cells"]:
        assert cell["state"] == "measured"
        manifest = open_artifact(run / cell["artifact"]).manifest
        assert manifest.measured is not None
        assert (manifest.architecture, manifest.deployment.name) == (cell["architecture"], cell["deployment"])
        assert (manifest.measured.percentile_ms("p50"), manifest.measured.n) == (cell["latency_ms"], cell["n"])
    page = Path(found["page"]).read_text(encoding="utf-8")
    assert all(cell["artifact"] in page for cell in found["cells"])
    before = made(run)
    code, out, error = call(plan, "--json")
    assert (code, json.loads(out)) == (0, found)
    assert made(run) == before


def test_a_target_whose_table_changed_is_searched_anew_and_nothing_is_evaluated(call: Call, project: Path) -> None:
    run = project / "runs" / "tiny"
    plan = {"targets": ["cpu-test", "cpu-one"], "budgets": ["10000ms"]}
    assert call(plan, "--no-export")[0] == 0
    before = made(run)
    (path,) = (run / "tables" / "cpu-test").rglob("ov-fp32-1t.json")  # of the target whose search evaluated
    table = LatencyTable.from_json(path.read_text(), str(path))
    path.write_text(replace(table, date="2020-01-01T00:00:00+00:00").to_json(), encoding="utf-8")
    assert call(plan, "--no-export")[0] == 0
    after = made(run)
    assert [name for name in after if after[name] != before[name]] == [
        str(path),
        str(run / "fronts" / "cpu-test-p50.json"),
    ]


def test_batches_have_tables_of_their_own(call: Call, project: Path) -> None:
    code, out, error = call({"targets": ["cpu-one"], "budgets": ["10000ms"], "batches": [2]}, "--no-export", "--json")
    assert code == 0, error
    (cell,) = json.loads(out)["cells"]
    assert (cell["state"], cell["batch"], cell["deployment"]) == ("predicted", 2, "ov-fp32-1t-b2")
    assert list((project / "runs/tiny/tables/cpu-one-b2").rglob("ov-fp32-1t-b2.json"))


def test_what_cannot_be_served_here_is_predicted_by_a_foreign_table_where_that_is_allowed(call: Call) -> None:
    plan = {"targets": ["cpu-far"], "budgets": ["10000ms", "0.000001ms"]}
    code, _, error = call(plan)
    assert code == 2
    assert "cpu-far" in error
    assert "nonesuch" in error
    code, out, error = call({**plan, "foreign_tables": True}, "--json")
    assert code == 3  # for the second budget
    far, impossible = json.loads(out)["cells"]
    assert (far["state"], far["artifact"], far["n"]) == ("predicted", None, None)
    assert "nonesuch" in far["why"]
    assert impossible["state"] == "none"
    assert "nearest" in impossible["why"]
    code, out, _ = call({**plan, "foreign_tables": True})
    assert code == 3
    assert "*" in out
    assert "0.000001ms: none: nothing is predicted to meet" in out


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"budget": ["5ms"]}, [], "fleet.yaml: unknown key 'budget'; did you mean 'budgets'?"),
        ({"targets": ["cpu-one", "cpu-one"]}, [], "fleet.yaml: targets: named twice: cpu-one"),
        ({"targets": ["cpu-on"]}, [], "unknown target 'cpu-on'; did you mean 'cpu-one' "),
        ({"targets": ["cpu-one", "./targets/cpu-one.yaml"]}, [], "two targets of the plan are called cpu-one"),
        ({"batches": [0]}, [], "fleet.yaml: batches.0: "),
        ({"budgets": ["fast"]}, [], "budget 'fast' is neither"),
        ({"budgets": ["latency@cpu-one:ov-fp32-1t<=5ms"]}, [], "a fleet's budgets hold on each of its targets"),
        ({"run": "./nothing"}, [], "nothing is not a run directory"),
        ({}, ["--target", "cpu-one"], "--target: fleet.yaml says that itself"),
    ],
)  # fmt: skip
def test_a_wrong_plan_is_one_line(call: Call, changes: dict[str, Any], options: list[str], message: str) -> None:
    code, _, error = call({"targets": ["cpu-one"], "budgets": ["10000ms"], **changes}, *options)
    assert code == 2
    assert message in error.strip().splitlines()[-1]


def test_deployments_that_differ_in_batch_alone_become_one(tmp_path: Path) -> None:
    both = [{"runtime": "openvino", "batch": 1}, {"runtime": "openvino", "batch": 32}]
    (tmp_path / "t.yaml").write_text(yaml.safe_dump({**ONE, "deployments": both}), encoding="utf-8")
    target: Target = read_target(tmp_path / "t.yaml")
    found = in_batches(target, 8)
    assert (found.name, [d.name for d in found.deployments]) == ("cpu-one-b8", ["ov-fp32-1t-b8"])
    assert in_batches(found, 8) is found
