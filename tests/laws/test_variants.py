"""The laws of sub-networks, for models whose configs leave out or add parts of their family; see also `test_exports`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from instatune_deploy.elastic.subnetwork import load_subnetwork
from instatune_deploy.elastic.supernet import Supernet
from tests.helpers import VARIANTS, make_family


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
    assert torch.allclose(load_subnetwork(tmp_path)(**family.inputs).logits, inside, atol=1e-5, rtol=0)
