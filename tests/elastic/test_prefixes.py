"""Sub-networks that run together put out what each does alone."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from instatune_deploy.elastic.positions import positions_read
from instatune_deploy.elastic.prefixes import SharedPrefixes
from instatune_deploy.elastic.supernet import Supernet
from instatune_deploy.errors import ArchitectureError
from instatune_deploy.values.space import Architecture
from tests.helpers import FAMILIES, VARIANTS, make_family

#: What differs is the rounding of sums in another order.
ROUNDING = 1e-6


@pytest.mark.parametrize("name", [*FAMILIES, *VARIANTS])
def test_together_they_put_out_what_each_does_alone(name: str) -> None:
    family = make_family(name)
    supernet = Supernet(family.model, family.space).eval()

    @hypothesis_settings(max_examples=10)
    @given(st.integers(0, 10**6), st.integers(1, 12))
    def law(seed: int, count: int) -> None:
        rng = random.Random(seed)
        architectures = [family.space.sample_one(rng) for _ in range(count)]
        architectures += [supernet.full, family.space.smallest, architectures[0]]
        rng.shuffle(architectures)
        run = SharedPrefixes(supernet, architectures)
        for inputs in (family.inputs, {key: value[1:] for key, value in family.inputs.items()}):
            with torch.inference_mode():
                alone = supernet(inputs, architectures)
            for one, other in zip(alone, run(inputs), strict=True):
                assert torch.allclose(one.logits, other.logits, atol=ROUNDING, rtol=0)

    law()


@pytest.mark.parametrize("name", list(FAMILIES))
def test_in_bf16_they_put_out_nearly_the_same(name: str) -> None:
    family = make_family(name)
    supernet = Supernet(family.model, family.space).eval()
    architectures = family.space.sample(6, seed=0)
    with torch.inference_mode():
        alone = supernet(family.inputs, architectures)
    near = SharedPrefixes(supernet, architectures, dtype=torch.bfloat16)(family.inputs)
    differences = [float((one.logits - other.logits).abs().max()) for one, other in zip(alone, near, strict=True)]
    assert 0 < max(differences) < 0.02


@pytest.mark.parametrize("name", list(FAMILIES))
def test_the_model_is_afterwards_what_it_was(name: str) -> None:
    family = make_family(name)
    supernet = Supernet(family.model, family.space).eval()
    with torch.inference_mode():
        expected = family.model(**family.inputs).logits
    run = SharedPrefixes(supernet, family.space.sample(4, seed=0))
    run(family.inputs)
    broken = {key: value[..., None, None] for key, value in family.inputs.items()}
    with pytest.raises((TypeError, ValueError, RuntimeError, IndexError)):
        run(broken)
    with torch.inference_mode():
        assert torch.equal(family.model(**family.inputs).logits, expected)
    for module in family.model.modules():
        assert "forward" not in vars(module)
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert all(parameter.grad is None for parameter in family.model.parameters())


def test_each_layer_is_computed_once_for_those_that_begin_alike() -> None:
    family = make_family("bert")
    supernet = Supernet(family.model, family.space).eval()
    texts = ["4L[4-48 4-48 4-48 4-48]", "4L[4-48 4-48 4-48 4-5]", "4L[4-48 4-48 1-48 4-48]", "4L[2-48 4-48 4-48 4-48]"]
    ran: list[str] = []
    for index, layer in enumerate(supernet.layers):
        layer.register_forward_pre_hook(lambda *_, i=index: ran.append(f"layer {i}"))
        layer.attention.self.register_forward_pre_hook(lambda *_, i=index: ran.append(f"attention {i}"))
    family.model.bert.embeddings.LayerNorm.register_forward_pre_hook(lambda *_: ran.append("embeddings"))
    run = SharedPrefixes(supernet, [Architecture.parse(text) for text in texts])
    run(family.inputs)  # also finds out which positions the head reads
    ran.clear()
    run(family.inputs)
    counts = [[ran.count(f"{what} {index}") for index in range(4)] for what in ("layer", "attention")]
    assert counts == [[2, 2, 3, 4], [2, 2, 3, 3]]
    assert ran.count("embeddings") == 1


@pytest.mark.parametrize(
    ("name", "read"), [("bert", 1), ("vit", 1), ("deit with a distillation head", 2), ("deberta-v2", 1), ("beit", 0)]
)
def test_the_positions_that_a_head_reads_are_found(name: str, read: int) -> None:
    family = make_family(name)  # BEiT's head reads the mean of all patches
    assert positions_read(Supernet(family.model, family.space).eval(), family.inputs) == read


def test_an_architecture_outside_the_space_is_refused() -> None:
    family = make_family("bert")
    with pytest.raises(ArchitectureError, match="not in the space"):
        SharedPrefixes(Supernet(family.model, family.space), [Architecture.parse("1L[4-48]")])
