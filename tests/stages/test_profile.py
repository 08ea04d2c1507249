"""Probes identify the table, fits recover it, held-out networks are unseen; and the whole stage."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertConfig, BertForSequenceClassification

from instatune_deploy.device.probes import ProbeFiles
from instatune_deploy.device.samples import Samples
from instatune_deploy.device.settings import TimingSettings
from instatune_deploy.errors import MeasurementError, UnknownNameError
from instatune_deploy.stages.profile import Plan, Profiled, plan, profile, with_batch
from instatune_deploy.stages.profile.design import heldout_architectures, probe_architectures
from instatune_deploy.stages.profile.table import fit_table, heldout_error, kendall_tau, refit
from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.latency import LatencySample, LatencyTable
from instatune_deploy.values.macs import ModelShape
from instatune_deploy.values.space import Architecture, SearchSpace
from instatune_deploy.values.target import Target

MINILM = SearchSpace.homogeneous(6, [3, 4, 5, 6], [6, 8, 10, 12], [512, 1024, 1536])
SHAPE = ModelShape("bert", 384, 32, 6, 12, 1536, 128, fixed_macs=384 * 386, fixed_parameters=0)
TARGET = Target("cpu-test", "", "cpu", (Deployment("fake"),))
INPUTS = {"input_ids": np.arange(6).reshape(2, 3)}

choices = st.lists(st.integers(1, 6), min_size=1, max_size=4, unique=True)


@st.composite
def spaces(draw: st.DrawFn) -> SearchSpace:
    """Spaces of any kind, degenerate ones included; layers may have different choices."""
    layers = draw(st.integers(1, 5))
    depths = sorted(draw(st.sets(st.integers(1, layers), min_size=1)))
    heads = tuple(tuple(sorted(draw(choices))) for _ in range(layers))
    ffn = tuple(tuple(sorted(64 * width for width in draw(choices))) for _ in range(layers))
    return SearchSpace.stack(tuple(depths), heads, ffn, tuple(draw(st.permutations(range(layers)))))


def true_ms(architecture: Architecture) -> float:
    """An additive latency, not linear in the choices."""
    return 0.7 + sum(0.3 + 0.2 * heads**1.3 + 0.004 * ffn**0.9 for heads, ffn in architecture.layers)


def test_the_minilm_space_needs_few_probes_and_the_extremes_are_among_them() -> None:
    probes = probe_architectures(MINILM)
    assert len(probes) == len(set(probes)) == 9
    assert probes[:2] == [MINILM.largest, MINILM.smallest]
    assert all(probe in MINILM for probe in probes)
    assert probes == probe_architectures(MINILM)
    assert len(probe_architectures(MINILM, 5)) == 13


def test_the_probes_predict_with_less_noise_than_networks_of_equal_layers() -> None:
    def spread(probes: list[Architecture]) -> float:
        rng = np.random.default_rng(0)
        errors = []
        for _ in range(30):
            noisy = {probe: true_ms(probe) * (1 + 0.01 * rng.standard_normal()) for probe in probes}
            fit = fit_table(noisy, seed=0)
            errors += [fit.estimate_ms(a) / true_ms(a) - 1 for a in MINILM.sample(40, seed=1)]
        return float(np.std(errors))

    equal = [Architecture.uniform(6, heads, 1536) for heads in (6, 8, 10, 12)]
    equal += [Architecture.uniform(6, 12, ffn) for ffn in (512, 1024)]
    equal += [Architecture.uniform(3, 12, 1536), *probe_architectures(MINILM)[2:4]]
    assert spread(probe_architectures(MINILM)) < 0.75 * spread(equal)


def test_what_unequal_layers_cost_is_recovered() -> None:
    fit = fit_table({probe: true_ms(probe) + 0.05 * probe.switches for probe in probe_architectures(MINILM)}, seed=0)
    assert fit.switch_ms == pytest.approx(0.05, rel=1e-4)
    for architecture in MINILM.sample(20, seed=0):
        assert fit.estimate_ms(architecture) == pytest.approx(true_ms(architecture) + 0.05 * architecture.switches)


@given(spaces())
def test_an_exact_table_is_recovered_for_every_network_of_any_space(space: SearchSpace) -> None:
    fit = fit_table({probe: true_ms(probe) for probe in probe_architectures(space)}, seed=0)
    for architecture in [space.largest, space.smallest, *space.sample(20, seed=0)]:
        assert fit.estimate_ms(architecture) == pytest.approx(true_ms(architecture), rel=1e-6)
    assert min(fit.layer_ms.values()) >= 0


def test_the_fit_is_of_relative_errors() -> None:
    small, large = Architecture.uniform(1, 1, 64), Architecture.uniform(9, 1, 64)
    probes = {small: 2.0, Architecture.uniform(5, 1, 64): 6.0, large: 9.0}
    fit = fit_table(probes, seed=0)
    design = np.array([[1, a.depth] for a in probes])
    labels = np.array(list(probes.values()))
    best = np.linalg.lstsq(design / labels[:, None], np.ones(3), rcond=None)[0]
    assert [fit.estimate_ms(a) for a in probes] == pytest.approx(design @ best)


@given(spaces(), st.integers(0, 12), st.integers(0, 10))
def test_heldout_networks_are_in_the_space_distinct_and_never_probes(space: SearchSpace, n: int, seed: int) -> None:
    probes = probe_architectures(space)
    held = heldout_architectures(space, n, seed=seed, probes=probes)
    assert len(set(held)) == len(held) <= n
    assert all(a in space and a not in probes for a in held)
    unseen = space.size - sum(probe in space for probe in probes)
    assert len(held) == min(n, unseen)
    assert held == heldout_architectures(space, n, seed=seed, probes=probes)


def sample(architecture: Architecture, label_ms: float, halves: tuple[float, float]) -> LatencySample:
    return LatencySample(str(architecture), label_ms, 0.5, label_ms, label_ms, label_ms, 9, halves, True)


def test_heldout_error_by_hand() -> None:
    one, two = Architecture.uniform(1, 1, 64), Architecture.uniform(2, 1, 64)
    fit = fit_table({one: 10.0, two: 15.0}, seed=0)
    error = heldout_error(fit, [sample(one, 10.0, (9.9, 10.1)), sample(two, 20.0, (20.0, 20.0))], n=2)
    assert error.mape_pct == pytest.approx(12.5)
    assert error.max_pct == pytest.approx(25)
    assert error.within_5_pct == 50
    assert error.kendall_tau == 1
    assert error.noise_floor_pct == pytest.approx(1)
    assert error.n == 2


def test_kendall_tau_equals_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    for _ in range(20):
        first, second = rng.integers(0, 6, 9).tolist(), rng.integers(0, 6, 9).tolist()
        assert kendall_tau(first, second) == pytest.approx(stats.kendalltau(first, second).statistic)
    assert kendall_tau([1.0], [2.0]) == kendall_tau([1, 1], [2, 2]) == 1
    assert kendall_tau([1, 1], [2, 3]) == 0


def test_inputs_take_the_deployments_batch() -> None:
    for batch in (1, 2, 5):
        found = with_batch(INPUTS, batch)["input_ids"]
        assert found.tolist() == [[[0, 1, 2], [3, 4, 5]][i % 2] for i in range(batch)]


class FakeNetworks:
    """Files of the fake runtime whose latencies follow `true_ms`, times a factor for some networks."""

    def __init__(self, directory: Path, slow: dict[Architecture, float] | None = None) -> None:
        self.directory, self.slow = directory, slow or {}
        self.asked: list[Architecture] = []

    def path(self, architecture: Architecture, deployment: Deployment) -> Path:
        self.asked.append(architecture)
        path = self.directory / f"{len(self.asked)}.json"
        ms = true_ms(architecture) * self.slow.get(architecture, 1)
        path.write_text(json.dumps({"ms": [ms, ms, ms, 1.5 * ms], "inputs": ["input_ids"]}))
        return path


def run_stage(networks: FakeNetworks, planned: Plan, deployment: Deployment | None = None, **more: object) -> Profiled:
    return profile(TARGET, deployment or Deployment("fake"), planned, SHAPE, networks, INPUTS, seed=1, **more)  # type: ignore[arg-type]


def test_the_stage_finds_the_table_that_the_machine_has(tmp_path: Path) -> None:
    networks, planned = FakeNetworks(tmp_path), plan(MINILM, heldout=12, seed=1)
    found = run_stage(networks, planned, Deployment("fake", batch=4))
    table = found.table
    assert networks.asked == list(planned.networks)
    for architecture in MINILM.sample(30, seed=5):
        assert table.estimate_ms(architecture) == pytest.approx(true_ms(architecture), rel=0.003)
        assert table.estimate_ms(architecture, "p99") == pytest.approx(1.5 * true_ms(architecture), rel=0.003)
    assert table.error.n == len(table.heldout) == 12
    assert table.error.mape_pct < 0.2
    assert (table.target, table.signature) == ("cpu-test", SHAPE.signature)
    assert table.missing(MINILM) == []
    assert LatencyTable.from_json(table.to_json()) == table
    # Keys of later stages are made of the text.
    assert LatencyTable.from_json(table.to_json()).to_json() == table.to_json()
    # Every run is kept, and the table follows from them.
    assert table.measure_s > table.heldout_s > 0
    assert len(found.raw.wall_ms) == sum(sample.n for sample in (*table.samples, *table.heldout))
    assert table.raw_sha256 == hashlib.sha256(found.raw.to_bytes()).hexdigest()
    assert refit(table, found.raw) == table
    columns = {name: value[:200] for name, value in vars(found.raw).items() if name != "names"}
    fewer = Samples(found.raw.names, **columns)
    assert refit(table, fewer).samples[0].n < table.samples[0].n


def test_the_error_is_that_of_the_heldout_networks_alone(tmp_path: Path) -> None:
    planned = plan(MINILM, heldout=12, seed=1)
    held = planned.heldout
    table = run_stage(FakeNetworks(tmp_path, {held[0]: 2.0}), planned).table
    assert table.error.max_pct == pytest.approx(50, abs=0.3)
    assert table.error.mape_pct == pytest.approx(50 / 12, abs=0.2)
    assert table.estimate_ms(held[0]) == pytest.approx(true_ms(held[0]), rel=0.003)
    # One of twelve networks is off by half: 95% of estimates are not surer than that.
    assert table.interval_pct["label"] > 2 * 50 / 12


def test_a_space_of_one_network_works_and_says_that_nothing_was_held_out(tmp_path: Path) -> None:
    space = SearchSpace.homogeneous(2, [2], [4], [64])
    table = run_stage(FakeNetworks(tmp_path), plan(space, heldout=12, seed=0)).table
    assert table.estimate_ms(space.largest) == pytest.approx(true_ms(space.largest), rel=0.003)
    assert (table.error.n, table.heldout) == (0, ())


def test_probes_share_the_time_with_what_is_held_out() -> None:
    planned = plan(MINILM, heldout=27, seed=0, settings=TimingSettings(seconds=60))
    assert planned.settings.seconds == pytest.approx(120)
    assert planned.sure == [str(probe) for probe in planned.probes]
    assert {planned.visits[name] for name in planned.sure} == {3}


def tiny_bert(architecture: Architecture) -> torch.nn.Module:
    """A network of an architecture whose layers are all alike in heads and width."""
    heads, ffn = architecture.layers[0]
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=50,
            hidden_size=8 * heads,
            num_hidden_layers=architecture.depth,
            num_attention_heads=heads,
            intermediate_size=ffn,
            max_position_embeddings=16,
        )
    )


def test_the_stage_profiles_on_real_runtimes(tmp_path: Path) -> None:
    space = SearchSpace.homogeneous(2, [1, 2], [2], [16])
    ids = torch.randint(0, 50, (1, 8))
    networks = ProbeFiles(tiny_bert, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, tmp_path)
    inputs = {"input_ids": ids.numpy(), "attention_mask": np.ones((1, 8), np.int64)}
    planned = plan(space, heldout=2, seed=0, settings=TimingSettings(seconds=0.1, visit_ms=1))
    shape = ModelShape("bert", 16, 8, 2, 2, 16, 8, fixed_macs=0, fixed_parameters=0)
    for runtime in ("onnxruntime", "openvino"):
        table = profile(TARGET, Deployment(runtime), planned, shape, networks, inputs, seed=0).table
        assert table.estimate_ms(space.largest) > 0
        assert table.versions[runtime]
        assert table.options
        assert LatencyTable.from_json(table.to_json()) == table


def test_probe_files_know_which_runtimes_load_files(tmp_path: Path) -> None:
    networks = ProbeFiles(tiny_bert, {}, tmp_path)
    with pytest.raises(MeasurementError, match="fake"):
        networks.path(Architecture.uniform(1, 1, 8), Deployment("fake"))
    with pytest.raises(UnknownNameError):
        networks.path(Architecture.uniform(1, 1, 8), Deployment("tensorflow"))
