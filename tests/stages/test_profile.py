"""Probes identify the table, fits recover it, held-out networks are unseen; and the whole stage."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertConfig, BertForSequenceClassification

from instatune_deploy.device.probes import ProbeFiles
from instatune_deploy.device.timing import TimingSettings
from instatune_deploy.errors import MeasurementError, UnknownNameError
from instatune_deploy.stages.profile import (
    fit_table,
    heldout_architectures,
    heldout_error,
    kendall_tau,
    probe_architectures,
    profile,
    with_batch,
)
from instatune_deploy.values.latency import LatencySample, LatencyTable
from instatune_deploy.values.macs import ModelShape
from instatune_deploy.values.space import Architecture, SearchSpace
from instatune_deploy.values.target import Deployment, Target

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
    return SearchSpace(tuple(depths), heads, ffn, tuple(draw(st.permutations(range(layers)))))


def true_ms(architecture: Architecture) -> float:
    """An additive latency, not linear in the choices."""
    return 0.7 + sum(0.3 + 0.2 * heads**1.3 + 0.004 * ffn**0.9 for heads, ffn in architecture.layers)


def test_the_minilm_space_needs_few_probes() -> None:
    probes = probe_architectures(MINILM)
    assert len(probes) <= 9
    assert len(set(probes)) == len(probes)
    unequal = [probe for probe in probes if probe.switches]
    assert [probe.switches for probe in unequal] == [5, 5]


def test_what_unequal_layers_cost_is_recovered() -> None:
    fit = fit_table({probe: true_ms(probe) + 0.05 * probe.switches for probe in probe_architectures(MINILM)})
    assert fit.switch_ms == pytest.approx(0.05)
    for architecture in MINILM.sample(20, seed=0):
        assert fit.estimate_ms(architecture) == pytest.approx(true_ms(architecture) + 0.05 * architecture.switches)


@given(spaces())
def test_an_exact_table_is_recovered_for_every_network_of_any_space(space: SearchSpace) -> None:
    fit = fit_table({probe: true_ms(probe) for probe in probe_architectures(space)})
    for architecture in [space.largest, space.smallest, *space.sample(20, seed=0)]:
        assert fit.estimate_ms(architecture) == pytest.approx(true_ms(architecture), rel=1e-6)
    # The convention for what no measurement can tell apart.
    assert sum(fit.attention_ms.values()) == pytest.approx(sum(fit.ffn_ms.values()), rel=1e-6)


def test_the_fit_is_of_relative_errors() -> None:
    small, large = Architecture.uniform(1, 1, 64), Architecture.uniform(9, 1, 64)
    probes = {small: 1.0, Architecture.uniform(5, 1, 64): 6.0, large: 9.0}
    fit = fit_table(probes)
    design = np.array([[1, a.depth] for a in probes])
    labels = np.array(list(probes.values()))
    best = np.linalg.lstsq(design / labels[:, None], np.ones(3), rcond=None)[0]
    assert [fit.estimate_ms(a) for a in probes] == pytest.approx(design @ best)


@given(spaces(), st.integers(0, 12), st.integers(0, 10))
def test_heldout_networks_are_in_the_space_distinct_and_never_probes(space: SearchSpace, n: int, seed: int) -> None:
    held, probes = heldout_architectures(space, n, seed=seed), set(probe_architectures(space))
    assert len(set(held)) == len(held) <= n
    assert all(a in space and a not in probes for a in held)
    unseen = space.size - sum(probe in space for probe in probes)
    assert len(held) == min(n, unseen)
    assert held == heldout_architectures(space, n, seed=seed)


def sample(architecture: Architecture, label_ms: float, halves: tuple[float, float]) -> LatencySample:
    return LatencySample(str(architecture), label_ms, label_ms, label_ms, label_ms, 9, halves, True)


def test_heldout_error_by_hand() -> None:
    one, two = Architecture.uniform(1, 1, 64), Architecture.uniform(2, 1, 64)
    fit = fit_table({one: 10.0, two: 15.0})
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


def test_the_stage_finds_the_table_that_the_machine_has(tmp_path: Path) -> None:
    networks = FakeNetworks(tmp_path)
    table = profile(TARGET, Deployment("fake", batch=4), MINILM, SHAPE, networks, INPUTS, seed=1)
    assert set(networks.asked) == {*probe_architectures(MINILM), *heldout_architectures(MINILM, seed=1)}
    for architecture in MINILM.sample(30, seed=5):
        assert table.estimate_ms(architecture) == pytest.approx(true_ms(architecture), rel=1e-6)
        assert table.estimate_ms(architecture, "p99") == pytest.approx(1.5 * true_ms(architecture), rel=1e-6)
    assert table.error.n == len(table.heldout) == 12
    assert table.error.mape_pct == pytest.approx(0, abs=1e-6)
    assert (table.target, table.signature, table.rejected_rounds) == ("cpu-test", SHAPE.signature, 0)
    assert table.missing(MINILM) == []
    assert LatencyTable.from_json(table.to_json()) == table


def test_the_error_is_that_of_the_heldout_networks_alone(tmp_path: Path) -> None:
    held = heldout_architectures(MINILM, seed=1)
    networks = FakeNetworks(tmp_path, {held[0]: 2.0})
    table = profile(TARGET, Deployment("fake"), MINILM, SHAPE, networks, INPUTS, seed=1)
    assert table.error.max_pct == pytest.approx(50, rel=1e-6)
    assert table.error.mape_pct == pytest.approx(50 / 12, rel=1e-6)
    assert table.estimate_ms(held[0]) == pytest.approx(true_ms(held[0]), rel=1e-6)


def test_a_space_of_one_network_works_and_says_that_nothing_was_held_out(tmp_path: Path) -> None:
    space = SearchSpace.homogeneous(2, [2], [4], [64])
    table = profile(TARGET, Deployment("fake"), space, SHAPE, FakeNetworks(tmp_path), INPUTS, seed=0)
    assert table.estimate_ms(space.largest) == pytest.approx(true_ms(space.largest))
    assert (table.error.n, table.heldout) == (0, ())


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


def test_probe_files_are_made_once_and_profiled_on_real_runtimes(tmp_path: Path) -> None:
    space = SearchSpace.homogeneous(2, [1, 2], [2], [16])
    built: list[Architecture] = []

    def build(architecture: Architecture) -> torch.nn.Module:
        built.append(architecture)
        return tiny_bert(architecture)

    ids = torch.randint(0, 50, (1, 8))
    networks = ProbeFiles(build, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, tmp_path)
    inputs = {"input_ids": ids.numpy(), "attention_mask": np.ones((1, 8), np.int64)}
    settings = TimingSettings(seconds=0.1, visit_ms=1)
    shape = ModelShape("bert", 16, 8, 2, 2, 16, 8, fixed_macs=0, fixed_parameters=0)
    for runtime in ("onnxruntime", "openvino"):
        table = profile(TARGET, Deployment(runtime), space, shape, networks, inputs, seed=0, settings=settings)
        assert table.estimate_ms(space.largest) > 0
        assert table.versions[runtime]
        assert "=" in table.versions["session_options"]
        assert LatencyTable.from_json(table.to_json()) == table
    assert len(built) == len(set(built)) == len(probe_architectures(space))
    networks.path(space.largest, Deployment("openvino")).unlink()
    assert networks.path(space.largest, Deployment("openvino")).is_file()
    assert len(built) == len(set(built))


def test_probe_files_know_which_runtimes_load_files(tmp_path: Path) -> None:
    networks = ProbeFiles(tiny_bert, {}, tmp_path)
    with pytest.raises(MeasurementError, match="fake"):
        networks.path(Architecture.uniform(1, 1, 8), Deployment("fake"))
    with pytest.raises(UnknownNameError):
        networks.path(Architecture.uniform(1, 1, 8), Deployment("tensorflow"))
