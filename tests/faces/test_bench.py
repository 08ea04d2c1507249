"""`instatune-deploy bench`: an exported artifact is measured, checked from outside, and refused when it is no artifact."""

from __future__ import annotations

import functools
import json
import shutil
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
from transformers import AutoModelForSequenceClassification

from instatune_deploy import benching
from instatune_deploy.benching import bench_artifact, parse_deployment
from instatune_deploy.data.processor import Processor
from instatune_deploy.device.benchmark_app import find_benchmark_app
from instatune_deploy.elastic.probing import synthetic_inputs
from instatune_deploy.elastic.subnetwork import model_shape
from instatune_deploy.stages import bench as stage
from instatune_deploy.stages.bench import Estimate, neighbour_ratio
from instatune_deploy.stages.export import export
from instatune_deploy.values.deployment import Deployment, Device, Precision, Runtime
from instatune_deploy.values.hashing import sha256_file
from instatune_deploy.values.manifest import Manifest
from tests.helpers import call_main, write_text_model


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT, exported by the code that exports every artifact."""
    directory = tmp_path_factory.mktemp("bench")
    model = AutoModelForSequenceClassification.from_pretrained(write_text_model(directory / "model"))
    shape = model_shape(model, 8)
    return export(
        model, shape.full(), Deployment("openvino"), shape,
        Processor(str(directory / "model"), "text-classification", 8), synthetic_inputs(model.config, 8, 2, seed=0),
        [], directory / "artifact", target="cpu-test", metric="accuracy", predicted=None,
    ).directory  # fmt: skip


@pytest.fixture
def copy(artifact: Path, tmp_path: Path) -> Path:
    """An artifact to spoil."""
    return Path(shutil.copytree(artifact, tmp_path / "copy"))


Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    # Two processes rather than five: what they measure is not what is tested.
    monkeypatch.setattr(benching, "bench_artifact", functools.partial(bench_artifact, processes=2))

    def run_main(*arguments: object) -> tuple[int, str, str]:
        """Exit code, stdout, and last line of stderr."""
        return call_main(monkeypatch, capsys, "bench", *arguments)

    return run_main


def fake_measure(p50_ms: list[float]) -> Callable[..., Any]:
    """In the place of `measure`: each process finds the next of `p50_ms` for every file."""
    remaining = iter(p50_ms)

    def measured(files: dict[str, Path], *_: Any, **__: Any) -> Any:
        ms = next(remaining)
        sample = SimpleNamespace(p50_ms=ms, label_ms=ms, p90_ms=1.5 * ms, p99_ms=2 * ms, n=10, converged=True)
        return SimpleNamespace(
            samples=dict.fromkeys(files, sample),
            rounds=6,
            disturbance=SimpleNamespace(slow_rounds_pct=12.0),
            options={},
        )

    return measured


def with_app(monkeypatch: pytest.MonkeyPatch, directory: Path, body: str) -> None:
    """A program of ours in the place of benchmark_app."""
    path = directory / "benchmark_app"
    path.write_text(f"#!{sys.executable}\n{body}\n", encoding="utf-8")
    path.chmod(0o755)
    monkeypatch.setattr(benching, "find_benchmark_app", lambda: path)


def test_an_openvino_artifact_is_measured_and_checked(artifact: Path, call: Call) -> None:
    before = {path: sha256_file(path) for path in artifact.rglob("*") if path.is_file()}
    code, out, _ = call(artifact, "--seconds", 1, "--json", "--compare", artifact, "--batch", 2)
    assert code == 0
    found = json.loads(out)
    measured = found["measured"]
    assert (found["deployment"], found["batch"], found["sequence_length"]) == ("ov-fp32-1t-b2", 2, 8)
    assert 0 < measured["p50_ms"] <= measured["p90_ms"] <= measured["p99_ms"]
    low, high = measured["p50_interval_ms"]
    assert 0 < low <= high
    assert measured["samples_per_s"] == pytest.approx(2000 / measured["p50_ms"])
    assert measured["n"] > 10
    assert measured["processes"] == 2
    assert found["compare"]["p50_ratio"] > 0
    if find_benchmark_app() is None:
        assert "not installed" in found["unchecked"]
    else:
        check = found["benchmark_app"]
        assert check["median_ms"] > 0
        assert check["within_10_pct"] == (abs(check["ratio"] - 1) <= 0.1)
    assert {path: sha256_file(path) for path in artifact.rglob("*") if path.is_file()} == before


def test_another_deployment_is_measured(artifact: Path, call: Call) -> None:
    code, out, _ = call(artifact, "--seconds", 1, "--deployment", "ort-fp32-1t", "--sequence-length", 4, "--strict")
    assert code == 0
    assert "on ort-fp32-1t, batch 1, 4 tokens" in out
    assert "not checked: benchmark_app checks OpenVINO deployments" in out
    assert "95% interval" in out


@pytest.mark.parametrize(
    ("median_ms", "verdict", "strict_code"), [(10.5, "within 10%", 0), (13.0, "CHECK FAILED, over 10% off", 1)]
)
def test_the_check_is_reported_and_strict_fails(
    artifact: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch,
    median_ms: float, verdict: str, strict_code: int,
) -> None:  # fmt: skip
    with_app(monkeypatch, tmp_path, f"print('[ INFO ]    Median:    {median_ms} ms')")
    for arguments, expected in (((), 0), (("--strict",), strict_code)):
        monkeypatch.setattr(stage, "measure", fake_measure([9.0, 11.0]))
        code, out, last = call(artifact, *arguments)
        assert code == expected
        assert f"benchmark_app: median {median_ms:.3f} ms" in out
        assert out.strip().endswith(verdict)
        assert last.startswith("error: benchmark_app disagrees") == (expected == 1)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("raise SystemExit('[ ERROR ] odd model')", "benchmark_app failed (exit code 1): odd model"),
        (None, "benchmark_app is not installed"),
    ],
)
def test_a_check_that_cannot_be_made_says_why(
    artifact: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch, body: str | None, why: str
) -> None:
    if body is None:
        monkeypatch.setattr(benching, "find_benchmark_app", lambda: None)
    else:
        with_app(monkeypatch, tmp_path, body)
    monkeypatch.setattr(stage, "measure", fake_measure([9.0, 11.0, 9.0, 11.0]))
    code, out, _ = call(artifact, "--json")
    assert code == 0
    assert json.loads(out)["benchmark_app"] is None
    assert why in json.loads(out)["unchecked"]
    code, out, last = call(artifact, "--strict")
    assert code == 1
    assert f"not checked: {why}" in out
    assert why in last


def no_artifact(copy: Path) -> None:
    (copy / "instatune.json").unlink()


def flipped_byte(copy: Path) -> None:
    path = copy / "openvino_model.bin"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def nothing(copy: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("spoil", "arguments", "code", "message"),
    [
        (no_artifact, [], 1, "is not an artifact"),
        (flipped_byte, [], 1, "openvino_model.bin: its SHA-256 differs"),
        (nothing, ["--deployment", "ov-fp23-1t"], 2, "unknown deployment 'ov-fp23-1t'; did you mean 'ov-fp32-1t'"),
        (nothing, ["--deployment", "fastest"], 2, "unknown deployment 'fastest'"),
        (nothing, ["--deployment", "ov-int8-1t"], 2, "has no openvino_model_int8.xml, which ov-int8-1t runs"),
        (nothing, ["--deployment", "ov-fp32-4096t"], 2, "ov-fp32-4096t needs 4096 CPUs"),
        (nothing, ["--sequence-length", "17"], 2, "reads at most 16 tokens, not 17"),
        (nothing, ["--batch", "0"], 2, "batch"),
        (nothing, ["--compare", "nowhere"], 1, "nowhere is not an artifact"),
    ],
)
def test_bad_input_is_one_line(
    copy: Path, call: Call, spoil: Callable[[Path], None], arguments: list[str], code: int, message: str
) -> None:
    spoil(copy)
    found, out, last = call(copy, *arguments, "--json")
    assert found == code
    assert message in last
    assert out == ""


def test_networks_that_read_different_inputs_are_not_compared(artifact: Path, copy: Path, call: Call) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "vocab_size": 40}))
    Manifest.read(copy).write(copy)
    code, _, last = call(artifact, "--compare", copy)
    assert code == 2
    assert "read different inputs" in last


def test_every_deployment_is_found_by_its_name() -> None:
    for runtime, precision, device, batch in product(get_args(Runtime), get_args(Precision), get_args(Device), (1, 8)):
        threads = 3 if device == "cpu" else 1
        wanted = Deployment(runtime, precision, threads, batch, device=device)
        assert parse_deployment(wanted.name) == wanted


@pytest.mark.parametrize("name", ["", "ov", "ov-fp32", "ov-fp32-0t", "ov-fp32-1t-b0", "ov-fp32-1t-b1", "OV-fp32-1t"])
def test_no_deployment_has_another_name(name: str) -> None:
    assert parse_deployment(name) is None


def test_an_interval_holds_its_value_and_grows_with_the_spread() -> None:
    steady, shaky = Estimate.of([10.0, 10.1, 9.9, 10.0, 10.05]), Estimate.of([10.0, 12.0, 8.0, 10.0, 11.0])
    assert steady.value == shaky.value == 10.0
    for estimate in (steady, shaky):
        assert estimate.low < estimate.value < estimate.high
    assert steady.high - steady.low < 0.3 < shaky.high - shaky.low
    same = Estimate.of([3.0, 3.0])
    assert same.low == pytest.approx(same.high) == pytest.approx(3.0)


def test_neighbours_see_through_a_drift() -> None:
    # A machine that slows down by a tenth from each measurement to the next, and a benchmark_app as fast as ours.
    speed = [1.1**i for i in range(9)]
    assert neighbour_ratio(speed[::2], speed[1::2]) == pytest.approx(1, abs=0.01)
    assert neighbour_ratio([2 * s for s in speed[::2]], speed[1::2]) == pytest.approx(2, abs=0.02)
