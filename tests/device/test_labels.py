"""Labels: levels are found through noise that networks share, and how sure they are is right."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instatune_deploy.device.labels import find_labels, interrupted_share, undisturbed_ms
from instatune_deploy.device.samples import Samples
from instatune_deploy.device.worker import schedule
from instatune_deploy.errors import MeasurementError


def make_samples(
    levels_ms: list[float], rounds: int, runs: int, factor, *, seed: int = 0, cpu: np.ndarray | None = None
) -> Samples:
    """Runs of networks at some levels, slowed by `factor(rng, n)`."""
    rng = np.random.default_rng(seed)
    shape = (rounds, len(levels_ms), runs)
    number, model, _ = np.indices(shape).reshape(3, -1)
    wall = np.array(levels_ms)[model] * factor(rng, model.size)
    return Samples(
        tuple(f"n{i}" for i in range(len(levels_ms))), number, model, np.ones_like(model), np.zeros(model.size), wall,
        np.full(model.size, np.nan) if cpu is None else cpu,
    )  # fmt: skip


def two_speeds(rng: np.random.Generator, n: int) -> np.ndarray:
    """A core whose other half is in use most of the time."""
    return np.where(rng.random(n) < 0.7, 1.3, 1.0) * np.exp(0.02 * rng.standard_normal(n))


LEVELS = [float(10 + 3 * i) for i in range(12)]


def test_levels_are_found_far_better_than_by_each_networks_fastest_quarter() -> None:
    ours, theirs = [], []
    for seed in range(5):
        samples = make_samples(LEVELS, 10, 3, two_speeds, seed=seed)
        label = find_labels(samples).label_ms
        by_itself = [np.sort(samples.wall_ms[samples.model == i])[: 30 // 4].mean() for i in range(len(LEVELS))]
        for found, errors in ((label, ours), (np.array(by_itself), theirs)):
            ratio = np.log(found / LEVELS)
            errors.append(np.abs(ratio - np.median(ratio)).mean())
    assert np.mean(ours) < 0.6 * np.mean(theirs)
    assert np.mean(ours) < 0.006


def test_without_noise_the_label_is_the_latency() -> None:
    found = find_labels(make_samples(LEVELS, 4, 3, lambda rng, n: np.ones(n)))
    assert found.label_ms == pytest.approx(LEVELS, rel=1e-3)
    assert found.half_label_ms[:, 0] == pytest.approx(LEVELS, rel=1e-3)
    assert found.interval.max() < 1e-3
    assert found.round_factor == pytest.approx(np.ones(4), rel=1e-3)


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    inside = []
    for seed in range(20):
        found = find_labels(make_samples(LEVELS, 12, 3, two_speeds, seed=seed), seed=seed)
        ratio = np.log(found.label_ms / LEVELS)
        inside += list(np.abs(ratio - np.median(ratio)) <= found.interval)
    assert 0.85 <= np.mean(inside) <= 1.0


def test_more_rounds_make_it_surer() -> None:
    few, many = (find_labels(make_samples(LEVELS, n, 3, two_speeds)).interval.mean() for n in (6, 60))
    assert many < 0.7 * few
    one = find_labels(make_samples(LEVELS, 1, 3, two_speeds))
    assert np.isinf(one.interval).all()


@pytest.mark.parametrize("always", [(3,), (0, 4, 7), tuple(range(12))], ids=["one", "some", "all"])
def test_networks_that_were_interrupted_in_each_run_are_told_by_their_cpu_time(always: tuple[int, ...]) -> None:
    """Beside a busy process a run of half a second always loses the core for a while, and takes twice as long."""
    levels, rng = [40 * level for level in LEVELS], np.random.default_rng(1)
    still = make_samples(levels, 8, 3, lambda rng, n: 1 + 0.01 * np.abs(rng.standard_normal(n)))
    shared = np.isin(still.model, always) | (rng.random(len(still.model)) < 0.5)
    samples = replace(
        still, cpu_ms=still.wall_ms / 1.001, wall_ms=still.wall_ms * np.where(shared, rng.uniform(1.8, 2.6, len(shared)), 1.0)
    )  # fmt: skip
    ratio = find_labels(samples).label_ms / levels
    assert ratio / np.median(ratio) == pytest.approx(np.ones(len(levels)), abs=0.02)
    assert np.median(ratio) == pytest.approx(1.0, abs=0.03)


def test_a_machine_that_slows_down_for_some_rounds_moves_no_label() -> None:
    def slow_half(rng: np.random.Generator, n: int) -> np.ndarray:
        return np.where(np.arange(n) < n // 2, 1.5, 1.0) * np.exp(0.01 * rng.standard_normal(n))

    found = find_labels(make_samples(LEVELS, 10, 3, slow_half))
    ratio = found.label_ms / np.array(LEVELS)
    assert ratio == pytest.approx(np.full(len(LEVELS), np.median(ratio)), rel=0.01)
    assert found.round_factor[0] / found.round_factor[-1] == pytest.approx(1.5, rel=0.03)


def test_one_network_alone_has_an_interval_too() -> None:
    steady = find_labels(make_samples([10.0], 20, 5, lambda rng, n: np.exp(0.001 * rng.standard_normal(n))))
    shaky = find_labels(make_samples([10.0], 20, 5, two_speeds))
    assert 0 <= steady.interval[0] < 0.005 < shaky.interval[0]


def test_interrupted_runs_count_by_their_cpu_time() -> None:
    cpu = np.tile(np.repeat(LEVELS, 3), 8) * 0.999
    wall = cpu / 0.999
    wall[::5] *= 2  # another process had the CPU for as long
    calm = make_samples(LEVELS, 8, 3, lambda rng, n: np.ones(n), cpu=cpu)
    samples = replace(calm, wall_ms=wall)
    assert undisturbed_ms(samples) == pytest.approx(calm.wall_ms, rel=1e-9)
    assert interrupted_share(samples) == pytest.approx(0.2, abs=0.01)
    assert find_labels(samples).label_ms == pytest.approx(LEVELS, rel=1e-3)


def test_sessions_that_differ_make_a_label_less_sure_than_its_rounds_say() -> None:
    samples = make_samples(LEVELS, 40, 3, lambda rng, n: np.exp(0.005 * rng.standard_normal(n)))
    session = samples.round // 8  # five sessions, each some percent faster or slower for as long as it lives
    lucky = np.random.default_rng(1).normal(0, 0.03, (5, len(LEVELS)))
    shaken = replace(samples, session=session, wall_ms=samples.wall_ms * np.exp(lucky[session, samples.model]))
    by_session, by_round = find_labels(shaken), find_labels(replace(shaken, session=np.ones_like(session)))
    assert by_session.interval.mean() > 2 * by_round.interval.mean()
    errors = np.log(by_session.label_ms / LEVELS)
    assert np.mean(np.abs(errors - np.median(errors)) <= by_session.interval) > 0.7
    halves = np.log(by_session.half_label_ms[:, 0] / by_session.half_label_ms[:, 1])
    assert np.abs(halves).mean() > 0.005


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_latencies_and_unmeasured_networks_are_named(value: float) -> None:
    samples = make_samples(LEVELS, 2, 2, lambda rng, n: np.ones(n))
    samples.wall_ms[3] = value
    with pytest.raises(MeasurementError, match="impossible latency for n1"):
        find_labels(samples)
    lacking = make_samples(LEVELS, 2, 2, lambda rng, n: np.ones(n))
    with pytest.raises(MeasurementError, match="no latency was measured for more"):
        find_labels(replace(lacking, names=(*lacking.names, "more")))


def test_samples_survive_a_file_and_damage_is_named(tmp_path: Path) -> None:
    samples = make_samples(LEVELS, 3, 2, two_speeds)
    path = tmp_path / "a.samples.npz"
    path.write_bytes(samples.to_bytes())
    assert samples.to_bytes() == path.read_bytes()  # nothing in it depends on when it was written
    back = Samples.read(path)
    assert back.names == samples.names
    assert back.wall_ms == pytest.approx(samples.wall_ms, rel=1e-6)
    assert np.isnan(back.cpu_ms).all()
    assert find_labels(back).label_ms == pytest.approx(find_labels(samples).label_ms, rel=2e-3)
    for content in (b"", path.read_bytes()[:-40], b"nothing"):
        path.write_bytes(content)
        with pytest.raises(MeasurementError, match=r"a\.samples\.npz"):
            Samples.read(path)
    with pytest.raises(MeasurementError, match="none"):
        Samples.read(tmp_path / "none.npz")


@given(st.dictionaries(st.text(max_size=3), st.integers(1, 4), min_size=1, max_size=8), st.integers())
def test_a_round_visits_every_model_as_often_as_asked_and_spreads_the_visits(visits: dict[str, int], seed: int) -> None:
    order = schedule(visits, random.Random(seed))
    assert {name: order.count(name) for name in visits} == visits
    assert set(order[: len(visits)]) == set(visits)
