"""`profile`: tables of a model on this machine, and what an interruption leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from instatune_deploy import profiling
from instatune_deploy.device import timing
from instatune_deploy.device.samples import Samples
from instatune_deploy.errors import MeasurementError, TableError
from instatune_deploy.profiling import profile_model, refit_table
from instatune_deploy.values.latency import LatencyTable
from instatune_deploy.values.recipe import ProfileSection
from tests.helpers import write_text_model

QUICK = ProfileSection(heldout=2, seconds=0.2, wait_seconds=0)
DEPLOYMENTS = [{"runtime": "onnxruntime"}, {"runtime": "onnxruntime", "precision": "int8"}, {"runtime": "openvino"}]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a tiny model and a target of three deployments."""
    monkeypatch.chdir(tmp_path)
    write_text_model(tmp_path / "model")
    target = {"name": "box", "description": "any CPU", "device": "cpu", "deployments": DEPLOYMENTS}
    (tmp_path / "box.yaml").write_text(yaml.safe_dump(target))
    return tmp_path


def run(lines: list[str], settings: ProfileSection = QUICK, seed: int = 0) -> list[LatencyTable]:
    return profile_model("box.yaml", "model", None, 8, settings, Path("out"), seed=seed, report=lines.append)


def test_an_interrupted_profile_goes_on_and_an_old_table_stays_until_a_new_one_is_there(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_worker, fails_at = timing.run_worker, "ort-int8-1t"

    def unplugged(directory: Path, spec: dict[str, Any], deployment: Any, **more: Any) -> None:
        run_worker(directory, spec, deployment, **more)
        if deployment.name == fails_at:  # the device went away after some rounds
            rounds = (directory / "rounds.jsonl").read_text().splitlines(keepends=True)
            (directory / "rounds.jsonl").write_text("".join(rounds[:2]) + rounds[2][:50])
            raise MeasurementError("the device is gone")

    old = Path("out/box/bert-h32-d8-3x4x64-t8/ort-int8-1t.json")
    old.parent.mkdir(parents=True)
    old.write_text("an old table")
    monkeypatch.setattr(timing, "run_worker", unplugged)
    lines: list[str] = []
    with pytest.raises(MeasurementError, match="is gone"):
        run(lines)
    first = old.with_name("ort-fp32-1t.json")
    kept = first.read_text()
    assert old.read_text() == "an old table"
    assert [path.name for path in Path("out").rglob("*.json") if ".probes" not in path.parts] == [first.name, old.name]
    journal = next(Path("out/.probes").rglob("box-ort-int8-1t/rounds.jsonl")).read_text().splitlines()

    fails_at = ""
    tables = run(lines)
    assert [table.deployment.name for table in tables] == ["ort-fp32-1t", "ort-int8-1t", "ov-fp32-1t"]
    assert any("box/ort-fp32-1t: measured before the interruption" in line for line in lines)
    assert first.read_text() == kept
    # The two whole rounds that were there count.
    found = Samples.read(old.with_name("ort-int8-1t.samples.npz"))
    before = [run_ms for visit in json.loads(journal[0])["visits"] for run_ms in visit[3]]
    assert found.wall_ms[: len(before)] == pytest.approx(before, rel=1e-5)
    assert LatencyTable.from_json(old.read_text()) == tables[1]
    assert not Path("out/.probes").exists()
    assert all(table.raw_sha256 and table.settings["rounds"] >= 4 for table in tables)


def stopped_at_int8(monkeypatch: pytest.MonkeyPatch, **settings: Any) -> list[str]:
    """The lines of a profile whose device goes away before anything of its second deployment is measured."""
    run_worker, lines = timing.run_worker, list[str]()

    def worker(directory: Path, spec: dict[str, Any], deployment: Any, **more: Any) -> None:
        if deployment.name == "ort-int8-1t":
            raise MeasurementError("the device is gone")
        run_worker(directory, spec, deployment, **more)

    with monkeypatch.context() as patch:
        patch.setattr(timing, "run_worker", worker)
        with pytest.raises(MeasurementError, match="is gone"):
            run(lines, QUICK.model_copy(update=settings))
    return lines


def test_a_table_from_before_an_interruption_counts_where_it_would_be_measured_alike(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reused = "box/ort-fp32-1t: measured before the interruption"
    stopped_at_int8(monkeypatch)
    assert reused in stopped_at_int8(monkeypatch)
    assert reused not in stopped_at_int8(monkeypatch, heldout=3)
    stopped_at_int8(monkeypatch)
    path = Path("out/box/bert-h32-d8-3x4x64-t8/ort-fp32-1t.json")
    path.write_text(path.read_text().replace("box", "other"))
    assert reused not in stopped_at_int8(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(profiling, "runtime_versions", lambda: {"onnxruntime": "9.9.9"})
        assert reused not in stopped_at_int8(monkeypatch)


def test_a_dot_in_a_targets_name_makes_no_deployment_pass_for_another(place: Path) -> None:
    target = yaml.safe_load(Path("box.yaml").read_text())
    Path("box.yaml").write_text(yaml.safe_dump({**target, "name": "box-4.2", "deployments": DEPLOYMENTS[::2]}))
    for _ in range(2):  # tables of the first time lie there the second time
        lines: list[str] = []
        run(lines)
        assert not [line for line in lines if "before the interruption" in line]


def test_another_models_interrupted_measuring_is_left_alone(place: Path) -> None:
    other = Path("out/.probes/another/box-ort-fp32-1t/rounds.jsonl")
    other.parent.mkdir(parents=True)
    other.write_text("a round")
    run([])
    assert [path for path in Path("out/.probes").rglob("*") if path.is_file()] == [other]


def test_a_table_is_fitted_again_to_its_own_runs_alone(place: Path) -> None:
    run([])
    path = Path("out/box/bert-h32-d8-3x4x64-t8/ort-fp32-1t.json")
    before = LatencyTable.from_json(path.read_text())
    after = refit_table(path)
    assert LatencyTable.from_json(path.read_text()) == after
    assert after.fixed_ms == pytest.approx(before.fixed_ms, rel=0.05, abs=0.01)
    raw = path.with_name("ort-fp32-1t.samples.npz")
    content = raw.read_bytes()
    raw.write_bytes(content[:-1])
    with pytest.raises(TableError, match=r"samples\.npz: is not what"):
        refit_table(path)
    raw.unlink()
    with pytest.raises(TableError, match=r"samples\.npz: missing"):
        refit_table(path)
    with pytest.raises(TableError, match="no such latency table"):
        refit_table(place / "none.json")


def test_what_a_table_says_of_itself_in_a_line(place: Path) -> None:
    table = run([])[0]
    line = profiling.describe_table(table)
    for what in ("probes", "on 2 held-out networks", "MAPE", "Kendall tau", "noise floor", "measured in"):
        assert what in line
    assert table.disturbance.waited_s == 0
