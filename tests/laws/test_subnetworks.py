"""The laws of sub-networks, for every family; those of their files are in `test_exports`."""

from __future__ import annotations

import random
from dataclasses import replace
from operator import attrgetter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from instatune_deploy.elastic.families import supported_families
from instatune_deploy.elastic.importance import (
    first_order_importance,
    layer_drop_order,
    layer_drops,
    sort_by_importance,
)
from instatune_deploy.elastic.supernet import Supernet, load_supernet, save_supernet
from tests.helpers import FAMILIES, Family, all_scores, make_family

pytestmark = pytest.mark.parametrize("name", list(FAMILIES))


@pytest.fixture
def family(name: str) -> Family:
    return make_family(name)


@pytest.fixture
def supernet(family: Family) -> Supernet:
    return Supernet(family.model, family.space).eval()


def test_the_laws_cover_every_family(name: str) -> None:
    assert set(FAMILIES) == set(supported_families())


@torch.inference_mode()
def test_a_forward_in_the_supernet_equals_the_extracted_network(name: str) -> None:
    family = make_family(name)
    supernet = Supernet(family.model, family.space).eval()

    @hypothesis_settings(max_examples=25)
    @given(st.integers(0, 10**6))
    def law(seed: int) -> None:
        architecture = family.space.sample_one(random.Random(seed))
        inside = supernet(family.inputs, [architecture])[0].logits
        outside = supernet.extract(architecture)(**family.inputs).logits
        assert torch.allclose(inside, outside, atol=1e-5, rtol=0)

    law()


@torch.inference_mode()
def test_the_largest_network_is_the_pretrained_model(family: Family, supernet: Supernet) -> None:
    expected = family.model(**family.inputs).logits
    assert torch.equal(supernet(family.inputs, [supernet.full])[0].logits, expected)
    assert torch.equal(supernet(family.inputs, [family.space.largest])[0].logits, expected)
    assert torch.equal(supernet.extract(supernet.full)(**family.inputs).logits, expected)


@torch.inference_mode()
def test_running_subnetworks_leaves_the_full_network_as_it_was(family: Family, supernet: Supernet) -> None:
    expected = family.model(**family.inputs).logits
    names = list(family.model.state_dict())
    first, again = (supernet(family.inputs, [family.space.smallest, supernet.full])[0].logits for _ in range(2))
    assert torch.equal(first, again)
    broken = {key: value[..., None, None] for key, value in family.inputs.items()}
    with pytest.raises((TypeError, ValueError, RuntimeError, IndexError)):
        supernet(broken, [family.space.smallest])
    assert torch.equal(family.model(**family.inputs).logits, expected)
    assert list(family.model.state_dict()) == names


def test_subnetworks_are_views_and_gradients_land_in_the_shared_weights(family: Family, supernet: Supernet) -> None:
    smallest = family.space.smallest
    own = (*family.model.parameters(), *family.model.buffers())
    storages = {tensor.untyped_storage().data_ptr() for tensor in own}
    assert {view.untyped_storage().data_ptr() for view in supernet.views(smallest).values()} <= storages
    supernet(family.inputs, [smallest])[0].logits.sum().backward()
    kept = family.space.kept_layers(smallest.depths)
    for index, layer in enumerate(supernet.layers):
        gradient = attrgetter(supernet.map.dimensions[-1].axes[0].parameter)(layer).grad
        if index not in kept:
            assert gradient is None
            continue
        width = smallest.layers[kept.index(index)][-1]
        assert gradient[:width].abs().sum() > 0
        assert gradient[width:].abs().sum() == 0


def test_layers_computed_again_in_the_backward_pass_give_the_same_gradients(family: Family, supernet: Supernet) -> None:
    def gradients() -> list[torch.Tensor | None]:
        supernet.zero_grad(set_to_none=True)
        torch.manual_seed(3)  # of dropout
        outputs = supernet(family.inputs, [supernet.full, family.space.smallest])
        sum(output.logits.square().sum() for output in outputs).backward()
        return [parameter.grad for parameter in supernet.parameters()]

    supernet.train()
    plain = gradients()
    supernet.gradient_checkpointing_enable()
    again = gradients()
    supernet.eval()
    assert sum(gradient is not None for gradient in plain) > 10
    for one, other in zip(plain, again, strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.allclose(one, other, atol=1e-6)


def test_sorting_changes_no_output_and_puts_important_units_first(family: Family) -> None:
    model, supernet = family.model, Supernet(family.model, family.space)
    labelled = {**family.inputs, "labels": torch.tensor([0, 1, 2])}
    expected = model(**family.inputs).logits.detach()
    weights = [parameter.detach().clone() for parameter in model.parameters()]
    before = first_order_importance(supernet, [labelled])
    sort_by_importance(supernet, before)
    after = first_order_importance(supernet, [labelled])
    assert torch.allclose(model(**family.inputs).logits, expected, atol=1e-5)
    assert any(not torch.equal(old, new) for old, new in zip(weights, model.parameters(), strict=True))
    for unsorted, found in zip(all_scores(before), all_scores(after), strict=True):
        assert torch.allclose(found, unsorted.sort(descending=True).values, atol=1e-4)


def test_the_layer_whose_absence_costs_least_goes_first(family: Family) -> None:
    full = Supernet(family.model, family.space).full
    widths = tuple(tuple((count,) for count in kind) for kind in zip(*full.layers, strict=True))
    order = tuple(i for i in range(4) if i in family.space.drop_order or len(full.depths) == 1)
    space = replace(family.space, widths=widths, drop_order=order)
    supernet = Supernet(family.model, space)
    labelled = {**family.inputs, "labels": torch.tensor([0, 1, 2])}
    found = layer_drop_order(supernet, [labelled])
    supernet(labelled, [supernet.full])[0].loss.backward()  # nothing that it left behind keeps training from going on

    def loss_without(*dropped: int) -> float:
        depths = tuple((sum(i not in dropped for i in layers),) for layers in space.stage_layers)
        alone = Supernet(family.model, replace(space, depths=depths, drop_order=dropped))
        with torch.inference_mode():
            return float(alone.eval()(labelled, [alone.space.largest])[0].loss)

    first = {i: loss_without(i) for i in order}
    second = {i: loss_without(found[0], i) for i in order if i != found[0]}
    assert found[0] == min(first, key=first.__getitem__)
    assert found[1] == min(second, key=second.__getitem__)
    assert sorted(found) == sorted(order)
    expected = {4: loss_without(), 3: first[found[0]], 2: second[found[1]]}
    assert layer_drops(supernet, [labelled]).losses == pytest.approx(expected)


@torch.inference_mode()
def test_a_saved_supernet_comes_back_with_its_space(family: Family, supernet: Supernet, tmp_path: Path) -> None:
    save_supernet(supernet, tmp_path)
    loaded = load_supernet(tmp_path)
    assert loaded.space == family.space
    smallest = family.space.smallest
    assert torch.equal(loaded(family.inputs, [smallest])[0].logits, supernet(family.inputs, [smallest])[0].logits)
