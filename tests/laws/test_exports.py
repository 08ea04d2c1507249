"""The laws of sub-networks' files, for every family: whoever loads them, they compute the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from instatune_deploy.device.lowering.macs import count_macs_onnx
from instatune_deploy.device.lowering.onnx import export_onnx
from instatune_deploy.device.lowering.openvino import to_openvino
from instatune_deploy.device.runtimes.base import get_runtime
from instatune_deploy.elastic.subnetwork import load_subnetwork
from instatune_deploy.elastic.supernet import Supernet
from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.macs import count_macs, count_parameters
from tests.helpers import FAMILIES, VARIANTS, Family, make_family

#: Loads each directory's network and writes what it says of the inputs there.
LOADER = """
import sys, numpy, torch, pathlib
from instatune_deploy.elastic.subnetwork import load_subnetwork
for d in map(pathlib.Path, sys.argv[1:]):
    x = {k: torch.from_numpy(v) for k, v in numpy.load(d / 'inputs.npz').items()}
    with torch.inference_mode(): numpy.save(d / 'found.npy', load_subnetwork(d)(**x).logits.numpy())
"""
#: Variants whose graphs have what those of their family's row have not.
EXPORTED = [
    "deberta with projections of positions", "deit with a distillation head", "beit with absolute positions",
    "beit3 with questions", "resnet with bottlenecks",
]  # fmt: skip


def arrays_of(family: Family) -> dict[str, np.ndarray]:
    return {key: value.numpy() for key, value in family.inputs.items()}


@torch.inference_mode()
def test_saved_subnetworks_are_the_same_in_a_fresh_process(tmp_path: Path) -> None:
    expected = {}
    for name in FAMILIES:
        family, directory = make_family(name), tmp_path / name
        network = Supernet(family.model, family.space).extract(family.space.sample(5, seed=3)[-1])
        network.save_pretrained(directory)
        np.savez(directory / "inputs.npz", **arrays_of(family))
        expected[directory] = network(**family.inputs).logits.numpy()
        assert sorted(load_subnetwork(directory).state_dict()) == sorted(network.state_dict())
    subprocess.run([sys.executable, "-c", LOADER, *map(str, expected)], check=True)
    for directory, logits in expected.items():
        assert np.abs(np.load(directory / "found.npy") - logits).max() <= 1e-6, directory.name


@pytest.mark.parametrize("name", [*FAMILIES, *EXPORTED])
@torch.inference_mode()
def test_an_exported_subnetwork_is_the_same_in_both_runtimes_and_has_the_closed_forms_macs(
    name: str, tmp_path: Path
) -> None:
    family = make_family(name)
    supernet = Supernet(family.model, family.space)
    architecture = family.space.sample(5, seed=3)[-1]
    network, shape = supernet.extract(architecture), supernet.shape(tokens=10)
    export_onnx(network, family.inputs, tmp_path / "model.onnx")
    to_openvino(tmp_path / "model.onnx", tmp_path / "openvino_model.xml")
    arrays = arrays_of(family)
    # Another number of samples, and texts of another length.
    others = {key: a[:2] if a.ndim > 2 else np.tile(a[:2], (1, 2))[:, :17] for key, a in arrays.items()}
    for runtime in map(get_runtime, ("onnxruntime", "openvino")):
        deployment = Deployment(runtime.name)
        session = runtime.load(tmp_path / runtime.model_file(deployment), deployment)
        for inputs in (arrays, others):
            logits = network(**{key: torch.from_numpy(array) for key, array in inputs.items()}).logits.numpy()
            assert np.abs(session.run(inputs)[0] - logits).max() <= 1e-4, runtime.name
        session.close()
    shapes = {key: (1, *array.shape[1:]) for key, array in arrays.items()}
    assert count_macs_onnx(tmp_path / "model.onnx", shapes) == count_macs(shape, architecture)


@pytest.mark.parametrize("name", [*FAMILIES, *VARIANTS])
def test_closed_form_parameters_are_those_of_the_module(name: str) -> None:
    family = make_family(name)
    supernet = Supernet(family.model, family.space)
    shape = supernet.shape(tokens=10)
    for architecture in (*family.space.sample(5, seed=0), supernet.full):
        parameters = supernet.extract(architecture).parameters()
        assert sum(p.numel() for p in parameters) == count_parameters(shape, architecture)
