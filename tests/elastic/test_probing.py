"""Networks and inputs to measure with: every family reads what is made for it."""

from __future__ import annotations

import pytest
import torch

from instatune_deploy.elastic.families import axis_map
from instatune_deploy.elastic.probing import longest_text, random_model, synthetic_inputs
from tests.helpers import FAMILIES, make_family

TEXTS = [name for name in FAMILIES if axis_map(name).inputs == "text"]


@pytest.mark.parametrize("name", list(FAMILIES))
@torch.no_grad()
def test_a_random_model_reads_synthetic_inputs(name: str) -> None:
    config = make_family(name).model.config
    inputs = synthetic_inputs(config, 12, 2, seed=0)
    model = random_model(config)
    assert type(model) is type(make_family(name).model)
    assert model(**{key: torch.from_numpy(array) for key, array in inputs.items()}).logits.shape == (2, 3)
    again = synthetic_inputs(config, 12, 2, seed=0)
    assert all((inputs[key] == again[key]).all() for key in inputs)
    if name in TEXTS:
        assert (inputs["input_ids"] != config.pad_token_id).all()
        assert inputs["attention_mask"].all()


@pytest.mark.parametrize(("name", "tokens"), [(name, 30 if name == "roberta" else 32) for name in TEXTS])
@torch.no_grad()
def test_the_longest_text_is_as_long_as_there_are_positions(name: str, tokens: int) -> None:
    config = make_family(name).model.config
    assert longest_text(config) == tokens
    model = random_model(config)
    for length, fits in ((tokens, True), (tokens + 1, name == "deberta-v2")):  # whose positions are relative
        inputs = {key: torch.from_numpy(array) for key, array in synthetic_inputs(config, length, 1, seed=0).items()}
        if fits:
            assert model(**inputs).logits.isfinite().all()
        else:
            with pytest.raises((IndexError, RuntimeError)):
                model(**inputs)


def test_images_have_no_length() -> None:
    assert longest_text(make_family("beit").model.config) is None
