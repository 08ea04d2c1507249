"""Running OpenVINO's benchmark_app and reading what it says."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from instatune_deploy.device import benchmark_app
from instatune_deploy.device.benchmark_app import (
    arguments,
    find_benchmark_app,
    input_names,
    parse_median_ms,
    run_benchmark_app,
)
from instatune_deploy.device.fingerprint import available_cpus
from instatune_deploy.device.process import pinned_cpus
from instatune_deploy.errors import MeasurementError, TargetError
from instatune_deploy.values.deployment import Deployment

OPENVINO = Deployment("openvino")


def text_inputs(batch: int, tokens: int) -> dict[str, np.ndarray]:
    ids = np.random.default_rng(0).integers(5, 100, (batch, tokens))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


def fake_app(directory: Path, body: str) -> Path:
    """A program in the place of benchmark_app."""
    path = directory / "benchmark_app"
    path.write_text(f"#!{sys.executable}\nimport json, os, sys\n{body}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("output", "report", "median_ms"),
    [
        ("[ INFO ]    Median:        24.84 ms\n[ INFO ]    Average:       24.43 ms", {}, 24.84),
        ("[ INFO ]    Median:        84.31 us\n", {"execution_results": {"latency (ms)": "0.08"}}, 0.08431),
        ("nothing", {"execution_results": {"latency (ms)": "24.84"}}, 24.84),
        ("nothing", {"execution_results": {"latency_median": 3.5}}, 3.5),
        ("Median: nan ms", {"execution_results": {"latency (ms)": "2.5"}}, 2.5),
    ],
)
def test_the_median_is_read_wherever_it_stands(output: str, report: dict[str, Any], median_ms: float) -> None:
    assert parse_median_ms(output, report) == pytest.approx(median_ms)


@pytest.mark.parametrize(
    ("output", "report"),
    [
        ("", {}),
        ("Median: 0.00 ms", {}),
        ("[ INFO ] Average: 3 ms", {"execution_results": {"latency (ms)": "soon"}}),
        ("", {"execution_results": []}),
    ],
)
def test_no_median_is_an_error(output: str, report: dict[str, Any]) -> None:
    with pytest.raises(MeasurementError, match="no median"):
        parse_median_ms(output, report)


def test_the_conditions_are_ours(tmp_path: Path) -> None:
    given = arguments(
        tmp_path / "model.xml", text_inputs(2, 16), Deployment("openvino", "bf16", 3), runs=7, report_folder=tmp_path
    )
    options = dict(zip(given[::2], given[1::2], strict=False))
    assert options["-m"] == str(tmp_path / "model.xml")
    assert (options["-d"], options["-hint"], options["-api"]) == ("CPU", "none", "sync")
    assert (options["-nstreams"], options["-nthreads"], options["-niter"]) == ("1", "3", "7")
    assert options["-infer_precision"] == "bf16"
    assert options["-data_shape"] == "input_ids[2,16],attention_mask[2,16],token_type_ids[2,16]"
    assert options["-iop"] == "input_ids:i64,attention_mask:i64,token_type_ids:i64"
    assert (
        options["-i"] == "input_ids:input_ids.npy,attention_mask:attention_mask.npy,token_type_ids:token_type_ids.npy"
    )


def test_it_is_pinned_and_reads_our_inputs(tiny_bert: Any, tmp_path: Path) -> None:
    seen = tmp_path / "seen.json"
    app = fake_app(
        tmp_path,
        "import numpy\n"
        "cpus = sorted(os.sched_getaffinity(0))\n"
        "ids = numpy.load('input_ids.npy').tolist()\n"
        f"open({str(seen)!r}, 'w').write(json.dumps([cpus, ids, os.environ['OMP_NUM_THREADS'], sorted(os.listdir())]))\n"
        "print('[ INFO ]    Median:        1.50 ms')",
    )
    inputs = {**text_inputs(2, 16), "not_an_input": np.zeros(1)}
    assert run_benchmark_app(app, tiny_bert.xml, inputs, OPENVINO, runs=3, timeout_s=60) == 1.5
    cpus, ids, threads, files = json.loads(seen.read_text())
    assert cpus == pinned_cpus(OPENVINO)
    assert ids == inputs["input_ids"].tolist()
    assert threads == "1"
    assert files == ["attention_mask.npy", "input_ids.npy", "token_type_ids.npy"]
    assert sorted(os.sched_getaffinity(0)) == available_cpus()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("print('[ ERROR ] no such model')\nprint('Traceback: line 7')\nsys.exit(1)", "exit code 1.*: no such model"),
        ("sys.exit('odd option')", "exit code 1.*: odd option"),
        ("sys.exit(4)", "exit code 4.*: it said nothing"),
        ("os.kill(os.getpid(), 9)", "signal 9"),
        ("print('done')", "no median"),
        ("open('benchmark_report.json', 'w').write('{')", "no median"),
        ("import time\ntime.sleep(60)", "took over 1 s"),
    ],
)
def test_what_goes_wrong_is_one_line(tiny_bert: Any, tmp_path: Path, body: str, message: str) -> None:
    with pytest.raises(MeasurementError, match=message) as caught:
        run_benchmark_app(fake_app(tmp_path, body), tiny_bert.xml, text_inputs(1, 16), OPENVINO, runs=3, timeout_s=1)
    assert "\n" not in str(caught.value)


def test_impossible_conditions_are_refused_before_it_runs(tiny_bert: Any, tmp_path: Path) -> None:
    app = fake_app(tmp_path, "print('Median: 1 ms')")
    inputs = text_inputs(1, 16)
    with pytest.raises(TargetError, match="needs 4096 CPUs"):
        run_benchmark_app(app, tiny_bert.xml, inputs, Deployment("openvino", threads=4096), runs=1, timeout_s=9)
    del inputs["input_ids"]
    with pytest.raises(MeasurementError, match="needs input input_ids"):
        run_benchmark_app(app, tiny_bert.xml, inputs, OPENVINO, runs=1, timeout_s=9)
    broken = tmp_path / "broken.xml"
    broken.write_text("<net")
    with pytest.raises(MeasurementError, match="cannot read"):
        input_names(broken)


def test_it_is_looked_for_beside_python_and_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark_app.sys, "executable", str(tmp_path / "none" / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_benchmark_app() is None
    app = fake_app(tmp_path, "")
    assert find_benchmark_app() == app
    (tmp_path / "bin").mkdir()
    beside = fake_app(tmp_path / "bin", "")
    monkeypatch.setattr(benchmark_app.sys, "executable", str(tmp_path / "bin" / "python"))
    assert find_benchmark_app() == beside


@pytest.mark.parametrize("family", ["tiny_bert", "tiny_vit"])
def test_the_real_one_measures(family: str, request: pytest.FixtureRequest) -> None:
    app = find_benchmark_app()
    if app is None:
        pytest.skip("benchmark_app is not installed")
    pixels = {"pixel_values": np.random.default_rng(0).standard_normal((2, 3, 32, 32), dtype=np.float32)}
    inputs = text_inputs(2, 16) if family == "tiny_bert" else pixels
    tiny = request.getfixturevalue(family)
    median_ms = run_benchmark_app(app, tiny.xml, inputs, OPENVINO, runs=10, timeout_s=60)
    assert 0 < median_ms < 1000
