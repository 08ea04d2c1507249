"""A fleet behind one name: a request says who answers it, or the load does."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from instatune_deploy.fleets import write_fleet
from instatune_deploy.repositories import write_repository
from instatune_deploy.stages.export import Artifact
from instatune_deploy.values.front import Measured
from tests.serving.processes import Served, export_text, reference, serving

pytestmark = pytest.mark.skipif(find_spec("mlserver") is None, reason="needs the extra serve")

#: Networks, and latencies (ms) and accuracies to tell them apart by.
MEMBERS = {"accurate": ("3L[4-64 4-64 4-64]", 9.0, 0.92), "fast": ("2L[2-16 2-16]", 2.0, 0.85)}


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    found = {}
    for name, (architecture, p50_ms, metric) in MEMBERS.items():
        artifact = export_text("text-classification", tmp_path_factory.mktemp(name), architecture)
        found[name] = artifact.with_measured(Measured(metric, 872, p50_ms, p50_ms, 2 * p50_ms, 3 * p50_ms, 100))
    return found


@pytest.fixture(scope="module")
def fleet(artifacts: dict[str, Artifact], tmp_path_factory: pytest.TempPathFactory) -> Path:
    directories = {name: artifact.directory for name, artifact in artifacts.items()}
    return write_fleet(directories, tmp_path_factory.mktemp("fleets") / "fleet").directory


@pytest.fixture(scope="module")
def served(fleet: Path) -> Iterator[Served]:
    with serving(fleet, "--hold", "0.001ms") as found:  # too short to be held
        yield found


def ask(served: Served, **parameters: Any) -> httpx.Response:
    inputs = [
        {"name": name, "datatype": "INT64", "shape": [1, 3], "data": [value] * 3}
        for name, value in (("input_ids", 6), ("attention_mask", 1), ("token_type_ids", 0))
    ]
    body = {"inputs": inputs, **({"parameters": parameters} if parameters else {})}
    return httpx.post(f"http://{served.http}/v2/models/model/infer", json=body, timeout=60)


def member_of(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    return response.json()["parameters"]["member"]


def test_a_request_says_who_answers(served: Served, artifacts: dict[str, Artifact]) -> None:
    three = np.full((1, 3), 6), np.ones((1, 3), np.int64), np.zeros((1, 3), np.int64)
    inputs = dict(zip(("input_ids", "attention_mask", "token_type_ids"), three, strict=True))
    expected = {name: reference(artifact, inputs)["logits"] for name, artifact in artifacts.items()}
    assert np.abs(expected["fast"] - expected["accurate"]).max() > 0.01
    for parameters, name in (
        ({"member": "fast"}, "fast"), ({"member": "accurate"}, "accurate"), ({"latency_budget_ms": 10}, "accurate"),
        ({"latency_budget_ms": 8.9}, "fast"), ({"latency_budget_ms": "2.0"}, "fast"),
    ):  # fmt: skip
        found = ask(served, **parameters)
        assert member_of(found) == name
        assert np.abs(np.asarray(found.json()["outputs"][0]["data"]) - expected[name]).max() < 1e-5


def test_who_cannot_answer_is_said(served: Served) -> None:
    for parameters, reason in (
        ({"member": "fats"}, "unknown fleet member 'fats'; did you mean 'fast'"),
        ({"latency_budget_ms": 1}, "nearest: fast, 2 ms"), ({"latency_budget_ms": "soon"}, "not a number of milliseconds"),
        ({"latency_budget_ms": -1}, "not a number"), ({"latency_budget_ms": True}, "not a number"),
        ({"latency_budget_ms": "nan"}, "not a number"), ({"latency_budget_ms": 5, "member": "fast"}, "not both"),
        ({"member": {}}, "unknown fleet member"),
    ):  # fmt: skip
        found = ask(served, **parameters)
        assert (found.status_code, reason in found.json()["error"]) == (400, True), found.text


def test_an_objective_that_is_missed_brings_the_faster_member(served: Served) -> None:
    end = time.monotonic() + 30
    seen = [member_of(ask(served))]
    while seen[-1] != "fast" and time.monotonic() < end:
        seen.append(member_of(ask(served)))
    assert seen[0] == "accurate"
    assert len(seen) > 20
    assert seen[-1] == "fast"
    text = httpx.get(f"http://{served.metrics}/metrics").text
    assert 'instatune_batch_rows_count{member="fast",model="model"}' in text


def test_a_fleet_is_packaged_for_mlserver(fleet: Path, tmp_path: Path) -> None:
    out = write_repository(fleet, "mlserver", tmp_path / "models", name="tiny")
    settings = json.loads((out / "tiny" / "model-settings.json").read_text())
    assert settings["parameters"]["uri"] == "./artifact"
    assert (out / "tiny" / "artifact" / "fleet.json").read_bytes() == (fleet / "fleet.json").read_bytes()
    assert (out / "tiny" / "artifact" / "fast" / "instatune.json").is_file()


@pytest.mark.parametrize(
    ("hold", "code", "line"),
    [("soon", 2, "--hold 'soon' is not written like 20ms"), ("20ms", 2, "is no fleet: a latency is held by")],
)
def test_an_objective_that_makes_no_sense_is_one_line(
    artifacts: dict[str, Artifact], hold: str, code: int, line: str
) -> None:
    free = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
    command = [
        sys.executable,
        "-m",
        "instatune_deploy",
        "serve",
        str(artifacts["fast"].directory),
        *free,
        "--hold",
        hold,
    ]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (found.returncode, line in found.stderr.splitlines()[-1]) == (code, True), found.stderr
