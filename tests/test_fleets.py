"""Fleets of real, tiny sub-networks: members are what their artifacts were, and shared weights are stored once."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from instatune_deploy.data.processor import Processor
from instatune_deploy.device.runtimes.base import get_runtime
from instatune_deploy.elastic.probing import synthetic_inputs
from instatune_deploy.elastic.subnetwork import load_subnetwork, model_shape
from instatune_deploy.elastic.supernet import Supernet
from instatune_deploy.errors import ArtifactError, UsageError
from instatune_deploy.fleets import WrittenFleet, disk_blocks, write_fleet
from instatune_deploy.stages.export import Artifact, export, file_deployments, open_artifact
from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.fleet import Fleet
from instatune_deploy.values.front import Measured
from instatune_deploy.values.manifest import Manifest
from instatune_deploy.values.space import Architecture, SearchSpace
from tests.helpers import call_main, write_text_model

#: Networks, how they run, and latencies and accuracies to tell them apart by.
MEMBERS = {
    "full": ("3L[4-64 4-64 4-64]", Deployment("openvino"), 9.0, 0.92),
    "middle": ("3L[4-64 2-16 4-64]", Deployment("onnxruntime", "int8"), 5.0, 0.9),
    "small": ("2L[2-64 4-16]", Deployment("openvino", "int8"), 2.0, 0.85),
}


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """Untrained sub-networks of one model, measured or so their manifests say."""
    directory = tmp_path_factory.mktemp("fleets")
    path = write_text_model(directory / "model")
    model = AutoModelForSequenceClassification.from_pretrained(path)
    supernet = Supernet(model, SearchSpace.homogeneous(3, [2, 3], [2, 4], [16, 64]))
    samples = synthetic_inputs(model.config, 16, 4, seed=0)
    found = {}
    for name, (text, deployment, p50_ms, metric) in MEMBERS.items():
        architecture = Architecture.parse(text)
        artifact = export(
            supernet.extract(architecture), architecture, deployment, model_shape(model, 16),
            Processor(str(path), "text-classification", 16), samples, [samples], directory / name,
            target="cpu-test", metric="accuracy", predicted=None,
        )  # fmt: skip
        found[name] = artifact.with_measured(Measured(metric, 872, p50_ms, p50_ms, 2 * p50_ms, 3 * p50_ms, 100))
    return found


def directories(artifacts: dict[str, Artifact]) -> dict[str, Path]:
    return {name: artifact.directory for name, artifact in artifacts.items()}


@pytest.fixture(scope="module")
def written(artifacts: dict[str, Artifact], tmp_path_factory: pytest.TempPathFactory) -> WrittenFleet:
    return write_fleet(directories(artifacts), tmp_path_factory.mktemp("written") / "fleet")


def outputs(directory: Path) -> dict[str, np.ndarray]:
    """What each model file of an artifact says of the same inputs."""
    found = {}
    for name, deployment in file_deployments(Manifest.read(directory).deployment).items():
        session = get_runtime(deployment.runtime).load(directory / name, deployment)
        found[name] = session.run(synthetic_inputs(load_subnetwork(directory).config, 12, 5, seed=7))[0]
        session.close()
    return found


def assert_same(directory: Path, artifact: Artifact) -> None:
    """An artifact whose files compute what another one's do, to the bit."""
    expected = outputs(artifact.directory)
    assert expected.keys() == artifact.manifest.parity.keys()
    for name, array in outputs(open_artifact(directory).directory).items():
        assert np.array_equal(array, expected[name]), name


def test_members_are_the_artifacts_that_they_were(written: WrittenFleet, artifacts: dict[str, Artifact]) -> None:
    assert [member.name for member in written.fleet.members] == ["small", "middle", "full"]
    assert Fleet.read(written.directory) == written.fleet
    assert written.fleet.within(10, "p90").name == "middle"
    for member in written.fleet.members:
        artifact, directory = artifacts[member.name], written.directory / member.directory
        assert (member.p50_ms, member.metric, member.n) == (*MEMBERS[member.name][2:], 872)
        assert replace(Manifest.read(directory), files={}) == replace(artifact.manifest, files={})
        assert Manifest.read(directory).files.keys() == artifact.manifest.files.keys() | {"weights.bin"}
        assert_same(directory, artifact)


def test_shared_weights_are_stored_once(written: WrittenFleet, artifacts: dict[str, Artifact]) -> None:
    names = ["full/weights.bin", "middle/weights.bin", "full/openvino_model.bin", "small/openvino_model_int8.bin"]
    assert len({(written.directory / name).stat().st_ino for name in names}) == 1
    assert len({(written.directory / name / "tokenizer.json").stat().st_ino for name in MEMBERS}) == 1
    pool = (written.directory / "full" / "weights.bin").stat().st_size
    irs = [path.stat().st_size for artifact in artifacts.values() for path in artifact.directory.glob("*.bin")]
    # It holds the weights of four IRs and four ONNX files.
    assert pool < 0.6 * sum(irs)
    for path in written.directory.glob("*/model.onnx"):
        assert path.stat().st_size < artifacts[path.parent.name].directory.joinpath(path.name).stat().st_size
    assert written.alone_bytes == {name: sum(disk_blocks(artifacts[name].directory).values()) for name in MEMBERS}
    assert written.stored_bytes == sum(disk_blocks(written.directory).values()) < sum(written.alone_bytes.values())
    # What is shared counts once, the pool and the tokenizer's files with it.
    assert 0 < written.stored_bytes - sum(written.own_bytes.values()) - pool < 50_000


def test_copies_without_links_and_archives_with_them_work(
    written: WrittenFleet, artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    alone = Path(shutil.copytree(written.directory / "middle", tmp_path / "alone"))
    assert (alone / "weights.bin").stat().st_nlink == 1
    assert_same(alone, artifacts["middle"])
    onnx.load(alone / "model.onnx")  # the library itself reads weights only where they have one name
    with tarfile.open(tmp_path / "fleet.tar", "w") as archive:
        archive.add(written.directory, "fleet")
    with tarfile.open(tmp_path / "fleet.tar") as archive:
        archive.extractall(tmp_path, filter="data")
    assert Fleet.read(tmp_path / "fleet") == written.fleet
    for name in MEMBERS:
        assert (tmp_path / "fleet" / name / "weights.bin").stat().st_nlink == 7
        assert_same(tmp_path / "fleet" / name, artifacts[name])


def test_a_file_system_without_hard_links_gets_copies(
    artifacts: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Path, destination: Path) -> None:
        raise PermissionError(1, "Operation not permitted", str(source))

    monkeypatch.setattr(os, "link", refuse)
    found = write_fleet({"small": artifacts["small"].directory}, tmp_path / "fleet")
    assert (found.directory / "small" / "weights.bin").stat().st_nlink == 1
    assert_same(found.directory / "small", artifacts["small"])


def test_members_of_fleets_make_a_fleet(written: WrittenFleet, artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    again = write_fleet({name: written.directory / name for name in ("small", "middle")}, tmp_path / "again")
    for name in ("small", "middle"):
        assert_same(again.directory / name, artifacts[name])
    pools = [found.directory / "small" / "weights.bin" for found in (again, written)]
    assert pools[0].stat().st_size < pools[1].stat().st_size  # the full network is not in it


@pytest.mark.parametrize("name", MEMBERS)
def test_optimum_serves_a_member(written: WrittenFleet, name: str) -> None:
    ort = pytest.importorskip("optimum.onnxruntime", reason="needs the extra optimum")
    intel = pytest.importorskip("optimum.intel", reason="needs the extra optimum")
    directory = written.directory / name
    tokenizer, texts = AutoTokenizer.from_pretrained(directory), ["a good film", "bad bad plot very"]
    expected = (
        load_subnetwork(directory)(**tokenizer(texts, padding=True, return_tensors="pt")).logits.detach().softmax(-1)
    )
    for model in (
        ort.ORTModelForSequenceClassification.from_pretrained(directory, file_name="model.onnx"),
        intel.OVModelForSequenceClassification.from_pretrained(
            directory, ov_config={"INFERENCE_PRECISION_HINT": "f32"}, file_name="openvino_model.xml"
        ),
    ):
        for text, row in zip(texts, expected, strict=True):
            (answers,) = pipeline("text-classification", model=model, tokenizer=tokenizer)([text], top_k=None)
            assert {a["label"]: a["score"] for a in answers} == pytest.approx(
                {model.config.id2label[i]: float(score) for i, score in enumerate(row)}, abs=1e-4
            )


def spoil(path: Path, change: Callable[[dict], object]) -> None:
    """Change a JSON file of an artifact and hash it anew."""
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    Manifest.read(path.parent).write(path.parent)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("instatune.json", lambda d: d.update(signature="bert-h64"), "differ in their model signature: .* and bert"),
        ("instatune.json", lambda d: d["measured"].update(n=871), "number of samples: 871 and 872"),
        ("instatune.json", lambda d: d.update(measured=None), "was not measured: make it by `select`"),
        ("config.json", lambda d: d.update(id2label={"0": "no", "1": "yes"}), "differ in their labels"),
        ("tokenizer.json", lambda d: d["model"]["vocab"].update(new=99), "differ in their tokenizer"),
        ("special_tokens_map.json", lambda d: d.update(pad_token="[UNK]"), "differ in their tokenizer"),
    ],
)
def test_artifacts_of_another_kind_are_refused_and_nothing_is_left(
    artifacts: dict[str, Artifact], tmp_path: Path, file: str, change: Callable[[dict], object], message: str
) -> None:
    other = Path(shutil.copytree(artifacts["small"].directory, tmp_path / "other"))
    spoil(other / file, change)
    with pytest.raises(UsageError, match=message):
        write_fleet({"full": artifacts["full"].directory, "other": other}, tmp_path / "fleet")
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_how_texts_were_cut_when_a_tokenizer_was_saved_does_not_matter(
    artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    other = Path(shutil.copytree(artifacts["small"].directory, tmp_path / "other"))
    cut = {"direction": "Right", "max_length": 16, "strategy": "LongestFirst", "stride": 0}
    spoil(other / "tokenizer.json", lambda data: data.update(truncation=cut))
    found = write_fleet({"full": artifacts["full"].directory, "other": other}, tmp_path / "fleet")
    kept = [json.loads((found.directory / name / "tokenizer.json").read_text()) for name in ("full", "other")]
    assert kept[0]["truncation"] != kept[1]["truncation"]


def test_what_is_no_fleet_is_refused(artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="name one at least"):
        write_fleet({}, tmp_path / "fleet")
    with pytest.raises(UsageError, match=r"cannot be called '\.\./a'"):
        write_fleet({"../a": artifacts["full"].directory}, tmp_path / "fleet")
    with pytest.raises(UsageError, match="exists already"):
        write_fleet(directories(artifacts), tmp_path)
    other = Path(shutil.copytree(artifacts["small"].directory, tmp_path / "other"))
    with (other / "config.json").open("a") as stream:
        stream.write(" ")
    with pytest.raises(ArtifactError, match="SHA-256 differs"):
        write_fleet({"other": other}, tmp_path / "fleet")


def test_the_commands_write_verify_and_package(
    artifacts: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def call(*arguments: object) -> tuple[int, str, str]:
        return call_main(monkeypatch, capsys, *arguments)

    fleet = tmp_path / "fleet"
    members = ("--artifact", artifacts["middle"].directory, "--artifact", f"all={artifacts['full'].directory}")
    code, out, _ = call("fleet", fleet, *members)
    assert code == 0
    for text in ("middle", "ort-int8-1t", "9.000", "90.00%", "872 samples of the report split", "on the disk:"):
        assert text in out
    code, out, _ = call("verify", fleet, "--no-latency", "--json")
    found = json.loads(out)
    assert code == 0
    assert [member["deployment"] for member in found["members"]] == ["ort-int8-1t", "ov-fp32-1t"]
    assert all(member["problems"] == [] for member in found["members"])
    code, out, _ = call("package", fleet / "middle", "--for", "triton", "--out", tmp_path / "models", "--json")
    assert json.loads(out)["files"] == ["model/1/model.onnx", "model/1/weights.bin", "model/config.pbtxt"]
    # A member's changed weights are found in every member, for they are the same file.
    with (fleet / "all" / "openvino_model.bin").open("r+b") as stream:
        stream.seek(100)
        stream.write(b"\xff")
    code, _, error = call("verify", fleet, "--no-latency")
    assert code == 1
    assert "middle" in error
    assert "its SHA-256 differs" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "a fleet of what? give --artifact DIR or --latency-budget 5ms"),
        (
            ("--artifact", "a/x", "--target", "cpu-avx2"),
            "--target: these say how to select a network, and none is asked for",
        ),
        (("--latency-budget", "5ms", "--percentile", "p95"), "unknown percentile 'p95'"),
        (("--artifact", "a/x", "--artifact", "b/x"), "are both called x: give --artifact NAME=b/x"),
        (("--artifact", "nowhere"), "is not an artifact"),
        (("--run", "nowhere", "--latency-budget", "5ms"), "nowhere"),
    ],
)
def test_wrong_usage_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...],
    message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    code, _, error = call_main(monkeypatch, capsys, "fleet", "out", *arguments)
    assert code in (1, 2)
    assert message in error
    assert list(tmp_path.iterdir()) == []
