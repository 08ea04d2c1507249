"""`instatune-deploy verify`: what an artifact says of itself is looked at again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoModelForSequenceClassification

from instatune_deploy import verifying
from instatune_deploy.data.processor import Processor
from instatune_deploy.elastic.probing import synthetic_inputs
from instatune_deploy.elastic.shapes import model_shape
from instatune_deploy.elastic.supernet import Supernet
from instatune_deploy.errors import TargetError
from instatune_deploy.pipeline import open_run
from instatune_deploy.stages.confirm import measured_metric
from instatune_deploy.stages.export import Artifact, export, open_artifact
from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.front import Measured
from instatune_deploy.values.manifest import Manifest
from instatune_deploy.values.space import Architecture, SearchSpace
from instatune_deploy.workspace import Workspace
from tests.helpers import call_main, write_project, write_text_data, write_text_model

NETWORK = Architecture.parse("2L[4-16 2-64]")
Call = Callable[..., tuple[int, str, str]]


def make_artifact(project: Path, deployment: Deployment) -> Artifact:
    """A sub-network of the project's untrained model, in its run's directory, measured on its report split."""
    run = project / "runs" / "tiny"
    Workspace(run).begin()
    (run / "recipe.yaml").write_text((project / "recipe.yaml").read_text().replace("./", f"{project}/"))
    model = AutoModelForSequenceClassification.from_pretrained(project / "model")
    samples = synthetic_inputs(model.config, 16, 4, seed=0)
    artifact = export(
        Supernet(model, SearchSpace.homogeneous(3, [2, 3], [2, 4], [16, 64])).extract(NETWORK), NETWORK, deployment,
        model_shape(model, 16), Processor(str(project / "model"), "text-classification", 16), samples, [samples],
        run / "artifacts" / "cpu-test" / "mine", target="cpu-test", metric="accuracy", predicted=None,
    )  # fmt: skip
    split = open_run(run, lambda line: None).report_split
    processor = Processor(str(project / "model"), "text-classification", 16)
    value = measured_metric(artifact.model_file(), deployment, split, processor, "accuracy")
    return artifact.with_measured(Measured(value, len(split), 1.0, 1.0, 1.5, 2.0, latency_n=100))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = tmp_path_factory.mktemp("verify") / "project"
    write_project(project)
    return make_artifact(project, Deployment("onnxruntime", "int8")).directory


@pytest.fixture
def artifact(made: Path, tmp_path: Path) -> Path:
    """An artifact to spoil, in no run's directory."""
    return Path(shutil.copytree(made, tmp_path / "copy"))


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    return lambda *arguments: call_main(monkeypatch, capsys, "verify", *arguments)


def test_everything_is_looked_at_again(made: Path, call: Call) -> None:
    code, out, _ = call(made, "--seconds", 1, "--json")
    found, manifest = json.loads(out), open_artifact(made).manifest
    assert code == 0
    assert [file["name"] for file in found["files"]] == ["model.onnx", "openvino_model.xml", "model_int8.onnx"]
    for file in found["files"]:
        assert file["parity"]["n"] == 32
        assert file["parity"]["max_abs_error"] < (0.5 if "int8" in file["name"] else 1e-4)
    assert found["files"][1]["size_bytes"] > (made / "openvino_model.bin").stat().st_size
    assert found["inputs"] == "report split"
    assert manifest.measured is not None
    assert found["metric"] == {"name": "accuracy", "value": manifest.measured.metric, "split": "report", "n": 100}
    assert 0 < found["latency"]["p50_ms"] <= found["latency"]["p90_ms"]
    assert found["unchecked"] == found["problems"] == []


def test_without_a_run_it_is_looked_at_on_synthetic_inputs(artifact: Path, made: Path, call: Call) -> None:
    code, out, _ = call(artifact, "--no-latency")
    assert code == 0
    assert "synthetic" in out
    assert "not checked: accuracy: there is no report split" in out
    assert "latency" not in out
    code, out, _ = call(artifact, "--no-latency", "--run", made.parents[2])
    assert code == 0
    assert "accuracy: measured" in out


def test_a_changed_byte_is_found_first(artifact: Path, call: Call) -> None:
    path = artifact / "model.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    code, out, error = call(artifact)
    assert (code, out) == (1, "")
    assert "its SHA-256 differs" in error


def test_weights_of_another_network_are_found(artifact: Path, tmp_path: Path, call: Call) -> None:
    """Every hash is right, and yet the files are not of the weights beside them."""
    model = AutoModelForSequenceClassification.from_pretrained(write_text_model(tmp_path / "other"))
    for parameter in model.parameters():
        parameter.data *= 1.1
    Supernet(model, SearchSpace.homogeneous(3, [2, 3], [2, 4], [16, 64])).extract(NETWORK).save_pretrained(artifact)
    found = Manifest.read(artifact)
    found.write(artifact)
    code, _, error = call(artifact, "--no-latency")
    assert code == 1
    assert "differ from the network's" in error


def test_a_metric_that_does_not_hold_is_a_problem(artifact: Path, made: Path, call: Call) -> None:
    manifest = Manifest.read(artifact)
    assert manifest.measured is not None
    replace(manifest, measured=replace(manifest.measured, metric=1.0)).write(artifact)
    code, out, error = call(artifact, "--no-latency", "--run", made.parents[2])
    assert code == 1
    assert "1 problems" in out
    assert "and 1.0000 when it was made" in error


def test_the_manifests_samples_must_be_the_splits(artifact: Path, made: Path, call: Call, tmp_path: Path) -> None:
    run = tmp_path / "run"
    Workspace(run).begin()
    data = write_text_data(tmp_path / "fewer.parquet", 60, seed=2)
    recipe = (made.parents[2] / "recipe.yaml").read_text()
    project = made.parents[4]
    (run / "recipe.yaml").write_text(recipe.replace(f"{project}/report.parquet", str(data)))
    code, _, error = call(artifact, "--no-latency", "--run", run)
    assert code == 1
    assert "is of 100 samples, the split has 60" in error


def test_what_this_machine_cannot_run_is_said(artifact: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = verifying.check_machine_runs

    def lacking(deployment: Deployment, machine: object) -> None:
        if deployment.precision == "int8":
            raise TargetError("no such unit")
        whole(deployment, machine)  # type: ignore[arg-type]

    monkeypatch.setattr(verifying, "check_machine_runs", lacking)
    code, out, _ = call(artifact)
    assert code == 0
    assert "not checked: model_int8.onnx: no such unit" in out
    assert "not checked: metric and latency: no such unit" in out
