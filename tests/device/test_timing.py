"""The protocol, on the fake runtime's exact clock; and once on each real runtime."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from instatune_deploy.device import worker
from instatune_deploy.device.runtimes.base import get_runtime
from instatune_deploy.device.runtimes.fake import FakeRuntime
from instatune_deploy.device.timing import Measurement, TimingSettings, measure
from instatune_deploy.device.worker import Bench, fits_in_memory, run_rounds
from instatune_deploy.errors import MeasurementError, TargetError, UnknownNameError
from instatune_deploy.values.target import Deployment

INPUTS = {"x": np.zeros((1, 3), np.float32)}
NO_WARMUP = TimingSettings(warmup_runs=1, warmup_batches=1, min_runs=4, max_runs=4)


@pytest.fixture
def fake_file(tmp_path: Path):
    """Writes a fake model file."""

    def write(name: str, ms: Any, **more: Any) -> Path:
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps({"ms": ms, **more}))
        return path

    return write


def fake(models: dict[str, Path], threads: int = 1, **more: Any) -> Measurement:
    return measure(models, INPUTS, Deployment("fake", threads=threads), anchor=next(iter(models)), **more)


def bench(models: dict[str, Path], settings: TimingSettings, *, keeps_all: bool = True) -> tuple[Bench, FakeRuntime]:
    runtime = get_runtime("fake")
    assert isinstance(runtime, FakeRuntime)
    return Bench(runtime, Deployment("fake"), models, INPUTS, settings, keeps_all), runtime


def test_steady_models_converge_to_their_latencies(fake_file) -> None:
    found = fake({"a": fake_file("a", 2.0), "b": fake_file("b", [5.0, 5.0, 5.0, 9.0])})
    assert found.samples["a"].label_ms == pytest.approx(2)
    assert found.samples["b"].label_ms == pytest.approx(5)
    assert found.samples["b"].p99_ms == pytest.approx(9)
    assert found.samples["b"].half_labels_ms == pytest.approx((5, 5))
    assert all(sample.converged for sample in found.samples.values())
    assert (found.rounds, found.rejected_rounds, found.all_live) == (TimingSettings().min_rounds, 0, True)
    assert found.options == {"precision": "fp32", "threads": "1"}


def test_rounds_with_a_drifting_anchor_are_run_again(fake_file) -> None:
    # The anchor's rounds have 3 visits of 4 runs after one that does not count; before them comes one to warm up.
    # In the third of every five rounds all are 20% slower.
    slow = [10.0] * 31 + [12.0] * 15 + [10.0] * 30
    found = fake({"a": fake_file("a", slow), "b": fake_file("b", 3.0)}, settings=NO_WARMUP)
    assert found.rejected_rounds >= 1
    assert found.rounds == NO_WARMUP.min_rounds
    assert found.samples["a"].p99_ms == pytest.approx(10)
    assert found.samples["a"].n == 12 * found.rounds
    assert found.samples["b"].n == 4 * found.rounds


def test_the_first_run_of_a_visit_does_not_count(fake_file) -> None:
    # Warm-up is one run here and a visit 1 + 3 runs: every fourth is the first after another model's visit.
    cold = [10.0] + [50.0, 10.0, 10.0, 10.0] * 1000
    settings = TimingSettings(warmup_runs=1, warmup_batches=1, min_runs=3, max_runs=3)
    found = fake({"a": fake_file("a", 10.0), "b": fake_file("b", cold[:2001])}, settings=settings)
    assert found.samples["b"].p99_ms == pytest.approx(10)


def test_noise_that_never_settles_ends_at_the_cap_and_says_so(fake_file) -> None:
    rng = random.Random(0)
    noise = [rng.uniform(1, 100) for _ in range(5000)]
    settings = TimingSettings(seconds=0.5, drift=1e9)
    found = fake({"a": fake_file("a", 10.0), "b": fake_file("b", noise)}, settings=settings)
    assert not found.samples["b"].converged
    assert found.samples["a"].converged


def test_a_machine_that_is_never_calm_still_gives_an_answer(fake_file) -> None:
    levels = [10.0 * 1.3**i for i in range(40) for _ in range(12)]
    settings = TimingSettings(seconds=0.1, warmup_runs=1, warmup_batches=1, min_runs=4, max_runs=4)
    found = fake({"a": fake_file("a", levels), "b": fake_file("b", 3.0)}, settings=settings)
    assert found.rounds >= settings.min_rounds
    assert not found.samples["a"].converged


@pytest.mark.parametrize("ms", [float("nan"), float("inf"), 0, -1])
def test_impossible_latencies_are_refused(fake_file, ms: float) -> None:
    with pytest.raises(MeasurementError, match=r"measuring fake-fp32-1t failed .*impossible latency"):
        fake({"a": fake_file("a", ms)})


@pytest.mark.parametrize(
    ("model", "message"),
    [({"exit_after": 5}, r"exit code 3"), ({"exit_after": 5, "exit_code": 11}, r"exit code 11")],
)
def test_a_dying_worker_is_one_line(fake_file, model: dict[str, int], message: str) -> None:
    with pytest.raises(MeasurementError, match=message) as caught:
        fake({"a": fake_file("a", 1.0, **model)})
    assert "\n" not in str(caught.value)


def test_a_killed_worker_names_the_signal(fake_file) -> None:
    with pytest.raises(MeasurementError, match="signal 9"):
        fake({"a": fake_file("a", 1.0, exit_after=5, signal=9)})


def test_a_worker_that_hangs_is_stopped(fake_file) -> None:
    with pytest.raises(MeasurementError, match="over 2 s and was stopped"):
        fake({"a": fake_file("a", 1.0, hang_s=60)}, settings=TimingSettings(timeout_s=2))


def test_a_missing_input_is_named(fake_file) -> None:
    with pytest.raises(MeasurementError, match="needs input tokens; given: x"):
        fake({"a": fake_file("a", 1.0, inputs=["tokens"])})


def test_what_cannot_be_asked_for_is_refused_at_once(fake_file) -> None:
    models = {"a": fake_file("a", 1.0)}
    with pytest.raises(TargetError, match="999 CPUs"):
        fake(models, threads=999)
    with pytest.raises(MeasurementError, match="anchor"):
        measure(models, INPUTS, Deployment("fake"), anchor="b")
    with pytest.raises(UnknownNameError, match="tensorflow"):
        measure(models, INPUTS, Deployment("tensorflow"), anchor="a")


def test_all_sessions_are_live_at_once_only_where_allowed(fake_file) -> None:
    models = {name: fake_file(name, 2.0) for name in "abcd"}
    for keeps_all, most in [(True, 4), (False, 1)]:
        setup, runtime = bench(models, TimingSettings(), keeps_all=keeps_all)
        rounds = run_rounds(setup, "a", seed=0)
        assert runtime.most_live == most
        assert runtime.live == 0
        assert all(set(r.samples_ms) == set(models) for r in rounds)


def test_several_threads_or_little_memory_mean_one_session_at_a_time(
    fake_file, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = {"a": fake_file("a", 2.0), "b": fake_file("b", 2.0)}
    assert not fits_in_memory(models, available_bytes=100)
    assert fits_in_memory(models, available_bytes=10**6)
    spec = {"models": models, "anchor": "a", "seed": 0, "settings": vars(TimingSettings())}
    for threads, fits, expected in [(1, True, True), (2, True, False), (1, False, False)]:
        monkeypatch.setattr(worker, "fits_in_memory", lambda *_, fits=fits: fits)
        deployment = {"runtime": "fake", "precision": "fp32", "threads": threads, "batch": 1, "needs": ()}
        assert worker.work({**spec, "deployment": deployment}, INPUTS)["all_live"] is expected


def test_the_order_of_visits_follows_the_seed(fake_file) -> None:
    models = {name: fake_file(name, 2.0) for name in "abcdefg"}

    def orders(seed: int) -> list[list[str]]:
        return [list(r.samples_ms) for r in run_rounds(bench(models, TimingSettings())[0], "a", seed=seed)]

    assert orders(1) == orders(1)
    assert orders(1) != orders(2)
    assert len({tuple(order) for order in orders(1)}) > 1


def test_warming_up_goes_on_until_the_median_settles_but_not_forever(fake_file) -> None:
    settings = TimingSettings(warmup_runs=2, warmup_batches=5)
    for ms, runs in [([1.0], 4), ([9.0, 9.0, 5.0, 5.0, 5.0, 5.0], 6), ([float(2**i) for i in range(20)], 10)]:
        setup, runtime = bench({"a": fake_file("a", ms)}, settings)
        setup.warm_up(runtime.load(setup.models["a"], setup.deployment))
        assert runtime.clock() == pytest.approx(sum((ms * 10)[:runs]) / 1000)


@pytest.mark.parametrize(("runtime", "threads"), [("onnxruntime", 1), ("openvino", 1), ("onnxruntime", 2)])
def test_real_runtimes_are_measured(tiny_bert: Any, runtime: str, threads: int) -> None:
    if threads > len(os.sched_getaffinity(0)):
        pytest.skip("not so many CPUs")
    path = tiny_bert.directory / get_runtime(runtime).model_file(Deployment(runtime))
    inputs = {name: value.numpy() for name, value in tiny_bert.inputs(1, 16).items()}
    settings = TimingSettings(seconds=0.2, visit_ms=1)
    deployment = Deployment(runtime, threads=threads)
    found = measure({"a": path, "b": path}, inputs, deployment, anchor="a", settings=settings)
    for sample in found.samples.values():
        assert 0 < sample.label_ms <= sample.p50_ms <= sample.p90_ms <= sample.p99_ms
    assert found.all_live is (threads == 1)
    assert found.elapsed_s > 0


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(MeasurementError, match=r"onnxruntime cannot load .*model\.onnx") as caught:
        measure({"a": path}, INPUTS, Deployment("onnxruntime"), anchor="a")
    assert "\n" not in str(caught.value)
