"""What batch norms keep: a sub-network's own is measured, and training it does not move the full network's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from instatune_deploy.device.lowering.onnx import export_onnx
from instatune_deploy.device.runtimes.base import run_file
from instatune_deploy.elastic.optimizer import WeightAverage
from instatune_deploy.elastic.prefixes import SharedPrefixes
from instatune_deploy.elastic.supernet import Supernet
from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.space import Architecture
from tests.helpers import make_family

NAMES = ["resnet", "resnet with bottlenecks"]


def made(name: str = "resnet") -> Supernet:
    family = make_family(name)
    return Supernet(family.model, family.space).eval()


def rows(seed: int, count: int = 3) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [{"pixel_values": torch.randn(8, 3, 32, 32, generator=generator)} for _ in range(count)]


def calibrated(name: str = "resnet", seed: int = 1) -> Supernet:
    return made(name).calibrate(lambda: rows(seed))


def statistics(network: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in network.named_buffers() if "running" in name}


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("name", NAMES)
def test_statistics_are_those_that_the_extracted_network_finds_itself(name: str) -> None:
    supernet = calibrated(name)
    for architecture in supernet.space.sample(3, seed=0):
        network = made(name).extract(architecture)
        for layer in (layer for stage in network.resnet.encoder.stages for layer in stage.layers):
            for norm in (part for part in layer.modules() if isinstance(part, nn.BatchNorm2d)):
                norm.reset_running_stats()
                norm.momentum = None
                norm.train()
        with torch.no_grad():
            for batch in rows(1):
                network(**batch)
        expected, found = statistics(network), statistics(supernet.extract(architecture))
        assert found.keys() == expected.keys()
        for key, buffer in found.items():
            assert torch.allclose(buffer, expected[key], atol=1e-5), key


def test_recalibration_is_deterministic_whatever_was_asked_for_before() -> None:
    one, other, space = calibrated(), calibrated(), made().space
    architectures = space.sample(6, seed=2)
    first = {a: statistics(one.extract(a)) for a in architectures}
    again = {a: statistics(other.extract(a)) for a in reversed(architectures)}
    assert all(same(first[a], again[a]) for a in architectures)
    assert not same(first[architectures[0]], statistics(calibrated(seed=2).extract(architectures[0])))
    assert not same(first[architectures[0]], statistics(made().extract(architectures[0])))


@pytest.mark.parametrize("name", NAMES)
def test_a_recalibrated_forward_is_that_of_the_extracted_network_and_of_its_file(name: str, tmp_path: Path) -> None:
    supernet, inputs = calibrated(name), rows(5, 1)[0]
    architectures = [supernet.space.smallest, *supernet.space.sample(4, seed=1), supernet.full]
    with torch.no_grad():
        inside = supernet(inputs, architectures)
        together = SharedPrefixes(supernet, architectures)(inputs)
        networks = [supernet.extract(a) for a in architectures]
        for network, ours, shared in zip(networks, inside, together, strict=True):
            expected = network(**inputs).logits
            assert torch.allclose(ours.logits, expected, atol=1e-5)
            assert torch.allclose(shared.logits, expected, atol=1e-5)
        near = SharedPrefixes(supernet, architectures, dtype=torch.bfloat16)(inputs)
    for ours, exact in zip(near, inside, strict=True):
        assert torch.allclose(ours.logits.float(), exact.logits, atol=0.1)
    path = tmp_path / "model.onnx"
    export_onnx(networks[1], inputs, path)
    (found,) = run_file(path, Deployment("onnxruntime"), {"pixel_values": inputs["pixel_values"].numpy()})
    assert np.abs(found - inside[1].logits.numpy()).max() <= 1e-4


@pytest.mark.parametrize("recompute", [False, True])
def test_training_a_subnetwork_leaves_the_full_networks_statistics(recompute: bool) -> None:
    supernet, inputs = calibrated(), rows(3, 1)[0]
    if recompute:
        supernet.gradient_checkpointing_enable()

    def trained(architectures: Sequence[Architecture]) -> dict[str, Tensor]:
        supernet.train()
        sum(output.logits.square().sum() for output in supernet(inputs, architectures)).backward()
        return statistics(supernet.model)

    before = statistics(supernet.model)
    assert same(trained([supernet.space.smallest, *supernet.space.sample(2, seed=0)]), before)
    after = trained([supernet.full])
    assert all(not torch.equal(after[name], before[name]) for name in before)


def test_what_was_measured_is_measured_again_after_training() -> None:
    supernet, smallest = calibrated(), made().space.smallest
    before = statistics(supernet.extract(smallest))
    supernet.train()
    with torch.no_grad():
        supernet.layers[0].layer[0].convolution.weight.mul_(2)
    supernet.eval()
    assert not same(statistics(supernet.extract(smallest)), before)


def test_the_mean_of_the_weights_has_the_mean_of_their_statistics() -> None:
    norm = nn.BatchNorm2d(2)
    average = WeightAverage(norm, 0.5)
    average.on_train_begin(None, None, None)
    for value in (1.0, 2.0, 3.0):
        norm.running_mean.fill_(value)
        norm.weight.data.fill_(value)
        average.on_step_end(None, None, None)
    average.on_train_end(None, None, None)
    assert torch.allclose(norm.running_mean, norm.weight - average_of_start(average))


def average_of_start(average: WeightAverage) -> float:
    """What is left in the mean of the weights, which were ones, of where they started; statistics were zeros."""
    left = 1.0
    for step in range(1, average.steps + 1):
        left *= min(average.decay, step / (step + 9))
    return left
