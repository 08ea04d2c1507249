"""The protocol, on the fake runtime's exact clock; and once on each real runtime."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from instatune_deploy.device import control_groups, load, timing, worker
from instatune_deploy.device.process import ROUNDS_FILE
from instatune_deploy.device.runtimes.base import get_runtime
from instatune_deploy.device.runtimes.fake import FakeRuntime
from instatune_deploy.device.settings import TimingSettings
from instatune_deploy.device.timing import Measurement, measure
from instatune_deploy.device.worker import Bench, run_rounds
from instatune_deploy.errors import MeasurementError, TargetError, UnknownNameError
from instatune_deploy.values.deployment import Deployment

INPUTS = {"x": np.zeros((1, 3), np.float32)}


@pytest.fixture
def fake_file(tmp_path: Path):
    """Writes a fake model file."""

    def write(name: str, ms: Any, **more: Any) -> Path:
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps({"ms": ms, **more}))
        return path

    return write


def fake(models: dict[str, Path], threads: int = 1, **more: Any) -> Measurement:
    return measure(models, INPUTS, Deployment("fake", threads=threads), **more)


def bench(models: dict[str, Path], settings: TimingSettings, *, keeps: bool = True) -> tuple[Bench, FakeRuntime]:
    runtime = get_runtime("fake")
    assert isinstance(runtime, FakeRuntime)
    return Bench(runtime, Deployment("fake"), models, INPUTS, settings, keeps), runtime


def rounds_of(setup: Bench, *, seed: int = 0, before: tuple = ()) -> list[dict[str, Any]]:
    return list(run_rounds(setup, dict.fromkeys(setup.models, 1), list(setup.models), list(before), seed=seed))


def test_steady_models_converge_to_their_latencies(fake_file) -> None:
    found = fake({"a": fake_file("a", 2.0), "b": fake_file("b", [5.0, 5.0, 5.0, 9.0])})
    assert found.samples["a"].label_ms == pytest.approx(2, rel=0.01)
    assert found.samples["b"].label_ms == pytest.approx(5, rel=0.01)
    assert found.samples["b"].p99_ms == pytest.approx(9)
    assert found.samples["b"].half_labels_ms == pytest.approx((5, 5), rel=0.01)
    assert all(sample.converged for sample in found.samples.values())
    assert found.rounds == TimingSettings().min_rounds
    assert found.options == {"precision": "fp32", "threads": "1"}
    assert found.seconds["b"] > found.seconds["a"] > 0
    assert (found.disturbance.interrupted_pct, found.disturbance.waited_s) == (0, 0)


def test_slow_rounds_are_reported_and_move_no_label(fake_file) -> None:
    # A visit is one run that does not count and four that do. Every fifth round all models are 30% slower.
    models = {
        f"{ms}": fake_file(f"{ms}", ([ms] * 20 + [1.3 * ms] * 5) * 50) for ms in (10.0, 11.0, 12.0, 13.0, 14.0, 15.0)
    }
    settings = TimingSettings(warmup_runs=25, warmup_batches=1, min_runs=4, max_runs=4, min_rounds=20)
    found = fake(models, settings=settings)
    assert found.disturbance.slow_rounds_pct == pytest.approx(20)
    for name, sample in found.samples.items():
        assert sample.label_ms == pytest.approx(float(name), rel=0.01)


def test_the_first_run_of_a_visit_does_not_count(fake_file) -> None:
    # Warm-up is two runs here and a visit 1 + 3 runs: every fourth is the first after another model's visit.
    cold = [10.0, 10.0] + [50.0, 10.0, 10.0, 10.0] * 1000
    settings = TimingSettings(warmup_runs=1, warmup_batches=2, min_runs=3, max_runs=3)
    found = fake({"a": fake_file("a", 10.0), "b": fake_file("b", cold)}, settings=settings)
    assert found.samples["b"].p99_ms == pytest.approx(10)


def test_noise_that_never_settles_ends_at_the_cap_and_says_so(fake_file) -> None:
    rng = random.Random(0)
    noise = [rng.uniform(1, 100) for _ in range(5000)]
    found = fake({"a": fake_file("a", noise)}, settings=TimingSettings(seconds=1))
    assert not found.samples["a"].converged
    assert sum(found.seconds.values()) >= 1


def test_visits_are_as_many_as_asked_and_only_some_labels_must_be_sure(fake_file) -> None:
    rng = random.Random(0)
    models = {"a": fake_file("a", 10.0), "b": fake_file("b", [rng.uniform(1, 100) for _ in range(5000)])}
    settings = TimingSettings(warmup_runs=1, warmup_batches=1, min_runs=3, max_runs=3, seconds=1000)
    found = fake(models, visits={"a": 3}, sure=["a"], settings=settings)
    assert found.rounds == settings.min_rounds
    assert found.samples["a"].n == 3 * found.samples["b"].n


def test_rounds_of_another_machine_do_not_count(fake_file, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = tmp_path / "journal"
    settings = TimingSettings(min_rounds=12, warmup_runs=1, warmup_batches=1, min_runs=3, max_runs=3)
    models = {"a": fake_file("a", 2.0)}
    fake(models, settings=settings, journal=journal)
    kept = (journal / ROUNDS_FILE).read_text()
    fake(models, settings=settings, journal=journal)
    assert (journal / ROUNDS_FILE).read_text().startswith(kept)
    monkeypatch.setattr(timing, "machine_key", lambda: {"cpu_model": "another"})
    fake(models, settings=settings, journal=journal)
    assert not (journal / ROUNDS_FILE).read_text().startswith(kept)


def test_an_interrupted_measurement_goes_on_and_loses_nothing(fake_file, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    settings = TimingSettings(min_rounds=12, warmup_runs=1, warmup_batches=1, min_runs=3, max_runs=3)
    broken = {"a": fake_file("a", 2.0), "b": fake_file("b", 5.0, exit_after=20)}
    with pytest.raises(MeasurementError, match="exit code 3"):
        fake(broken, settings=settings, journal=journal)
    kept = (journal / ROUNDS_FILE).read_text().splitlines()
    assert 0 < len(kept) < 12
    with (journal / ROUNDS_FILE).open("a") as stream:
        stream.write(kept[0][:40])  # as a process killed in the middle of a line leaves it
    found = fake({"a": fake_file("a", 2.0), "b": fake_file("b", 5.0)}, settings=settings, journal=journal)
    lines = (journal / ROUNDS_FILE).read_text().splitlines()
    assert lines[: len(kept)] == kept
    assert found.rounds == len(lines) == 12
    # What was measured of other files does not count.
    other = fake({"a": fake_file("a", 2.0), "c": fake_file("c", 5.0)}, settings=settings, journal=journal)
    assert set(other.samples) == {"a", "c"}


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
    with pytest.raises(UnknownNameError, match="tensorflow"):
        measure(models, INPUTS, Deployment("tensorflow"))


def test_a_worker_stops_when_the_process_that_started_it_is_gone(
    fake_file, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = {
        "models": {"a": str(fake_file("a", 2.0))}, "visits": {"a": 1}, "sure": ["a"], "seed": 0,
        "deployment": {"runtime": "fake", "needs": ()}, "settings": {"min_rounds": 50},
    }  # fmt: skip
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    np.savez(tmp_path / "inputs.npz", **INPUTS)
    parents = iter([10, 10, 10, 1])
    monkeypatch.setattr(worker.os, "getppid", lambda: next(parents))
    with pytest.raises(MeasurementError, match="is gone"):
        worker.work(tmp_path)
    assert len((tmp_path / ROUNDS_FILE).read_text().splitlines()) == 3


def test_sessions_stay_live_only_where_allowed_and_while_memory_lasts(
    fake_file, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = {name: fake_file(name, 2.0) for name in "abcd"}
    for keeps, free_bytes, most in [(True, 1e12, 4), (False, 1e12, 1), (True, 1e6, 1)]:
        monkeypatch.setattr(worker, "available_memory_bytes", lambda free=free_bytes: free)
        setup, runtime = bench(models, TimingSettings(), keeps=keeps)
        rounds = rounds_of(setup)
        assert runtime.most_live == most
        assert runtime.live == 0
        assert all({visit[0] for visit in done["visits"]} == set(models) for done in rounds)


@pytest.mark.parametrize(("used_bytes", "most"), [(10**9, 4), (19 * 10**8, 1)])
def test_sessions_stay_live_only_while_the_memory_of_a_container_lasts(
    fake_file, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, used_bytes: int, most: int
) -> None:
    (tmp_path / "meminfo").write_text("MemAvailable:   60000000 kB\n")
    (tmp_path / "memory.max").write_text(f"{2 * 10**9}\n")
    (tmp_path / "memory.current").write_text(f"{used_bytes}\n")
    monkeypatch.setattr(load, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(control_groups, "GROUPS", tmp_path)
    setup, runtime = bench({name: fake_file(name, 2.0) for name in "abcd"}, TimingSettings())
    rounds_of(setup)
    assert runtime.most_live == most


def test_models_are_loaded_several_times_and_the_ones_that_matter_twice_as_often(fake_file) -> None:
    rng = random.Random(0)
    models = {name: fake_file(name, [10.0 * rng.uniform(0.5, 2) for _ in range(5000)]) for name in "abcdefgh"}
    sure = ["a", "b", "c"]
    found = fake(models, sure=sure, settings=TimingSettings(seconds=60, sessions=6, precision=0))
    sessions = {name: len(set(found.raw.session[found.raw.model == i])) for i, name in enumerate(found.raw.names)}
    assert all(sessions[name] >= 6 for name in sure)
    assert all(3 <= sessions[name] <= 4 for name in models if name not in sure)


def test_the_order_of_visits_follows_the_seed(fake_file) -> None:
    models = {name: fake_file(name, 2.0) for name in "abcdefg"}

    def orders(seed: int) -> list[list[str]]:
        rounds = rounds_of(bench(models, TimingSettings())[0], seed=seed)
        return [[visit[0] for visit in done["visits"]] for done in rounds]

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
    found = measure({"a": path, "b": path}, inputs, deployment, settings=settings)
    for sample in found.samples.values():
        assert 0 < sample.p50_ms <= sample.p90_ms <= sample.p99_ms
        assert 0 < sample.label_ms <= sample.p90_ms
    assert np.isfinite(found.raw.cpu_ms).all() == (threads == 1)


def test_what_lies_in_the_working_directory_is_not_imported(
    tiny_bert: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("onnxruntime.py", "numpy.py", "instatune_deploy.py", "json.py"):
        (tmp_path / name).write_text("raise RuntimeError('not a module of ours')\n")
    monkeypatch.chdir(tmp_path)
    inputs = {name: value.numpy() for name, value in tiny_bert.inputs(1, 16).items()}
    settings = TimingSettings(seconds=0.1, visit_ms=1)
    assert measure({"a": tiny_bert.onnx}, inputs, Deployment("onnxruntime"), settings=settings).rounds


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(MeasurementError, match=r"onnxruntime cannot load .*model\.onnx") as caught:
        measure({"a": path}, INPUTS, Deployment("onnxruntime"))
    assert "\n" not in str(caught.value)
