"""The laws of sub-networks, for models whose configs leave out or add parts of their family."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from instatune_deploy.device.lowering.macs import count_macs_onnx
from instatune_deploy.device.lowering.onnx import export_onnx
from instatune_deploy.device.runtimes.base import get_runtime
from instatune_deploy.elastic.subnetwork import load_subnetwork
from instatune_deploy.elastic.supernet import Supernet
from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.macs import count_macs, count_parameters
from tests.helpers import VARIANTS, make_family

ONNX_RUNTIME = Deployment("onnxruntime")


@pytest.mark.parametrize("name", list(VARIANTS))
@torch.inference_mode()
def test_the_laws_hold_for_a_variant(name: str, tmp_path: Path) -> None:
    family = make_family(name)
    supernet = Supernet(family.model, family.space).eval()
    expected = family.model(**family.inputs).logits
    assert torch.equal(supernet(family.inputs, [supernet.full])[0].logits, expected)
    for architecture in family.space.sample(10, seed=0):
        network = supernet.extract(architecture)
        inside = supernet(family.inputs, [architecture])[0].logits
        assert torch.allclose(inside, network(**family.inputs).logits, atol=1e-5, rtol=0)
    network.save_pretrained(tmp_path)
    assert torch.equal(load_subnetwork(tmp_path)(**family.inputs).logits, network(**family.inputs).logits)

    export_onnx(network, family.inputs, tmp_path / "model.onnx")
    session = get_runtime("onnxruntime").load(tmp_path / "model.onnx", ONNX_RUNTIME)
    found = session.run({key: value.numpy() for key, value in family.inputs.items()})
    assert np.abs(found - inside.numpy()).max() <= 1e-4
    shape = supernet.shape(tokens=10)
    shapes = {key: (1, *value.shape[1:]) for key, value in family.inputs.items()}
    assert count_macs_onnx(tmp_path / "model.onnx", shapes) == count_macs(shape, architecture)
    assert sum(p.numel() for p in network.parameters()) == count_parameters(shape, architecture)
