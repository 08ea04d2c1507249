"""Multiply-accumulates and parameters against published sizes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instatune_deploy.values.macs import ModelShape, count_macs, count_parameters
from instatune_deploy.values.space import Architecture

BERT_BASE = ModelShape("bert", 768, 64, 12, 12, 3072, 128, fixed_macs=0, fixed_parameters=0)


def test_bert_base_at_128_tokens_has_the_published_macs() -> None:
    assert count_macs(BERT_BASE, BERT_BASE.full()) / 1e9 == pytest.approx(11.17, abs=0.005)


def test_the_layers_of_bert_base_have_the_published_parameters() -> None:
    # 7,087,872 in each encoder layer of Hugging Face's BertModel.
    assert count_parameters(BERT_BASE, BERT_BASE.full()) == 12 * 7_087_872
    without = replace(BERT_BASE, head_parameters=4 * 64 * 768, layer_parameters=6 * 768)
    assert count_parameters(BERT_BASE, BERT_BASE.full()) - count_parameters(without, BERT_BASE.full()) == 12 * 3 * 768


layer = st.tuples(st.integers(1, 12), st.integers(1, 3072))
layers = st.lists(layer, min_size=1, max_size=12)


@given(layers, layers, st.integers(0, 10**9))
def test_costs_add_up_over_layers(first: list[tuple[int, int]], second: list[tuple[int, int]], fixed: int) -> None:
    shape = replace(BERT_BASE, fixed_macs=fixed, fixed_parameters=fixed)
    for count in (count_macs, count_parameters):
        whole = count(shape, Architecture((*first, *second)))
        assert whole + fixed == count(shape, Architecture(tuple(first))) + count(shape, Architecture(tuple(second)))


@given(layers, st.integers(0, 11))
def test_more_of_anything_costs_more(choices: list[tuple[int, int]], index: int) -> None:
    index %= len(choices)
    heads, ffn = choices[index]
    for more in ((13, ffn), (heads, 3073)):
        larger = [*choices[:index], more, *choices[index + 1 :]]
        assert count_macs(BERT_BASE, Architecture(tuple(larger))) > count_macs(BERT_BASE, Architecture(tuple(choices)))


def test_the_signature_names_what_latency_depends_on() -> None:
    assert BERT_BASE.signature == "bert-h768-d64-12x12x3072-t128"
    assert replace(BERT_BASE, fixed_parameters=7).signature == BERT_BASE.signature
    relative = replace(BERT_BASE, family="deberta-v2", position_products=2, position_rows=512)
    assert relative.signature == "deberta-v2-h768-d64-12x12x3072-t128-p2x512"
    assert replace(BERT_BASE, family="beit", position_bias=True).signature == "beit-h768-d64-12x12x3072-t128-bias"
    assert ModelShape(**relative.to_dict()) == relative


def test_each_relative_position_is_multiplied_with_the_queries_and_keys_of_each_token() -> None:
    relative = replace(BERT_BASE, position_products=2, position_rows=512)
    more = count_macs(relative, relative.full()) - count_macs(BERT_BASE, BERT_BASE.full())
    assert more == 12 * 2 * 512 * 128 * 768
