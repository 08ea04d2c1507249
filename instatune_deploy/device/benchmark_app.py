"""OpenVINO's own `benchmark_app`, run under the conditions of `timing.measure`: the outside check of our latencies."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from instatune_deploy.device.process import how_it_ended, pinned_cpus, thread_environment
from instatune_deploy.device.runtimes.openvino import OpenVino
from instatune_deploy.errors import MeasurementError
from instatune_deploy.values.deployment import Deployment

_REPORT = "benchmark_report.json"
_MEDIAN = re.compile(r"Median:\s*([0-9.eE+-]+)\s*(ms|us)\b")
# Pins itself, then becomes benchmark_app: forking a process that has threads and pinning in between is not safe.
_PINNED = """
import os, sys
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, [int(number) for number in sys.argv[1].split(",")])
os.execv(sys.argv[2], sys.argv[2:])
"""


def find_benchmark_app() -> Path | None:
    """The `benchmark_app` beside this Python, else the one on the PATH; None where there is none."""
    beside = Path(sys.executable).parent / "benchmark_app"
    found = shutil.which(beside) or shutil.which("benchmark_app")
    return Path(found) if found else None


def input_names(model_file: Path) -> list[str]:
    """Names of the inputs of the network in `model_file`.

    Raises:
        MeasurementError: OpenVINO cannot read it.
    """
    import openvino

    try:
        return [port.get_any_name() for port in openvino.Core().read_model(model_file).inputs]
    except RuntimeError as error:
        reason = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise MeasurementError(f"openvino cannot read {model_file}: {reason[-1] if reason else error!r}") from error


def arguments(
    model_file: Path, inputs: dict[str, np.ndarray], deployment: Deployment, *, runs: int, report_folder: Path
) -> list[str]:
    """The arguments that make `benchmark_app` do what `timing.measure` does: one stream, one call after the other.

    Args:
        inputs: those the network has, by name; read from ``<name>.npy`` in the directory `benchmark_app` runs in.
        runs: calls to time; it warms up with one more.
    """
    options = OpenVino().options(deployment)
    return [
        "-m", str(model_file.absolute()), "-d", "CPU", "-api", "sync", "-niter", str(runs),
        # It refuses streams and threads beside a hint; without one the CPU's own default is that for latency.
        "-hint", "none", "-nstreams", options["NUM_STREAMS"], "-nthreads", options["INFERENCE_NUM_THREADS"],
        "-infer_precision", options["INFERENCE_PRECISION_HINT"],
        # The shape of the data, not of the model: that keeps its dynamic axes, as ours does.
        "-data_shape", ",".join(f"{name}[{','.join(map(str, array.shape))}]" for name, array in inputs.items()),
        # What looks like an image it would else take as bytes, and convert in every call.
        "-iop", ",".join(f"{name}:{_type_name(array.dtype)}" for name, array in inputs.items()),
        "-i", ",".join(f"{name}:{name}.npy" for name in inputs),
        "-report_type", "no_counters", "-json_stats", "-report_folder", str(report_folder),
    ]  # fmt: skip


def run_benchmark_app(
    app: Path,
    model_file: Path,
    inputs: dict[str, np.ndarray],
    deployment: Deployment,
    *,
    runs: int,
    timeout_s: float,
) -> float:
    """Median latency in ms that `benchmark_app` finds, pinned to the CPUs that `timing.measure` pins to.

    Args:
        app: the executable.
        model_file: an OpenVINO IR or ONNX file.
        inputs: arrays by input name, batch first; the same that our own measurement reads.
        runs: calls to time (count); the network is loaded anew each time this is called.
        timeout_s: after so many seconds it is stopped.

    Raises:
        MeasurementError: it failed, took too long, or said no median.
        TargetError: this process may not use as many CPUs as the deployment has threads.
    """
    pinned = ",".join(map(str, pinned_cpus(deployment)))
    wanted = input_names(model_file)
    missing = [name for name in wanted if name not in inputs]
    if missing:
        raise MeasurementError(f"{model_file} needs input {', '.join(missing)}; given: {', '.join(inputs) or 'none'}")
    with tempfile.TemporaryDirectory(prefix="instatune-benchmark-app-") as name:
        directory = Path(name)
        for input_name in wanted:
            np.save(directory / f"{input_name}.npy", inputs[input_name])
        given = {input_name: inputs[input_name] for input_name in wanted}
        command = [sys.executable, "-c", _PINNED, pinned, str(app)]
        command += arguments(model_file, given, deployment, runs=runs, report_folder=directory)
        try:
            # It splits the list of its input files at commas and colons, so these are named from where they lie.
            done = subprocess.run(
                command,
                cwd=directory,
                env=thread_environment(deployment),
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise MeasurementError(f"benchmark_app took over {timeout_s:.0f} s and was stopped") from None
        if done.returncode != 0:
            raise MeasurementError(f"benchmark_app failed ({how_it_ended(done.returncode)}): {_reason(done)}")
        return parse_median_ms(done.stdout, _read_report(directory / _REPORT))


def parse_median_ms(output: str, report: dict[str, Any]) -> float:
    """The median latency in ms that a run printed (it prints microseconds below 1 ms), else that in its report.

    Args:
        output: what it wrote to stdout; more exact than the report, which has two digits after the point.
        report: its JSON report; empty if there is none.

    Raises:
        MeasurementError: neither says a positive number.
    """
    found: list[tuple[Any, float]] = [
        (value, 1e-3 if unit == "us" else 1.0) for value, unit in _MEDIAN.findall(output)[:1]
    ]
    results = report.get("execution_results")
    if isinstance(results, dict):
        # The C++ program calls it differently.
        found += [(results[key], 1.0) for key in ("latency (ms)", "latency_median") if key in results]
    for value, scale in found:
        try:
            median_ms = float(value) * scale
        except (TypeError, ValueError):
            continue
        if math.isfinite(median_ms) and median_ms > 0:
            return median_ms
    raise MeasurementError("benchmark_app said no median latency")


def _type_name(dtype: np.dtype) -> str:
    """OpenVINO's name of a numeric type, such as ``f32`` or ``i64``."""
    return f"{dtype.kind}{8 * dtype.itemsize}"


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    """The line that says why it failed: its own error line, else the last it wrote."""
    lines = [line.strip() for text in (done.stderr, done.stdout) for line in reversed(text.splitlines())]
    lines = [line for line in lines if line]
    marked = [line.removeprefix("[ ERROR ]").strip() for line in lines if line.startswith("[ ERROR ]")]
    # A traceback follows its error line, and ends with what was raised.
    return next((line for line in [*marked[::-1], *lines] if line), "it said nothing")


def _read_report(path: Path) -> dict[str, Any]:
    """The JSON report; empty where it is missing or unreadable, for the median is printed as well."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return report if isinstance(report, dict) else {}
