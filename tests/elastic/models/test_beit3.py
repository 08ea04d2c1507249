"""Our BEiT-3 against the released one, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F  # noqa: N812
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForVisualQuestionAnswering,
)

from instatune_deploy.elastic.models.beit3 import (
    Beit3Config,
    Beit3ForImageClassification,
    Beit3ForVisualQuestionAnswering,
    Beit3Model,
)
from instatune_deploy.elastic.models.beit3.checkpoint import load_checkpoint
from instatune_deploy.errors import UsageError
from tests.elastic.models.released import inputs_for, released_output, released_state

READ = {"image": ["pixel_values"], "text": ["input_ids", "attention_mask"]}
TINY = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "image_size": 16,
    "patch_size": 4, "vocab_size": 100, "max_position_embeddings": 12, "num_labels": 3,
}  # fmt: skip


def read_sizes(config: Beit3Config) -> tuple[int, ...]:
    """What a checkpoint's tensors say."""
    return (
        config.hidden_size, config.num_attention_heads, config.intermediate_size, config.num_hidden_layers,
        config.image_size, config.patch_size, config.num_channels, config.vocab_size, config.max_position_embeddings,
    )  # fmt: skip


@pytest.mark.parametrize("size", ["tiny", "base"])
@torch.inference_mode()
def test_states_are_those_of_the_released_network(size: str) -> None:
    network, state = released_state(size)
    model = load_checkpoint(state)
    assert type(model) is Beit3Model
    inputs = inputs_for(size)
    cases = [READ["image"], READ["text"], READ["image"] + READ["text"]]
    for names in cases if size == "base" else [*cases, ["input_ids"], ["input_ids", "pixel_values"]]:
        read = {name: inputs[name] for name in names}
        expected = released_output(network, read)
        found = model(**read).last_hidden_state
        assert expected.abs().max() > 1
        assert torch.allclose(found, expected, atol=1e-5, rtol=0), names
    if size == "base":
        assert read_sizes(model.config) == (768, 12, 3072, 12, 224, 16, 3, 1000, 1024)


@torch.inference_mode()
def test_hidden_patches_are_those_of_the_released_network() -> None:
    network, state = released_state("tiny")
    images = {"pixel_values": inputs_for("tiny")["pixel_values"]}
    hidden = torch.rand(3, 16, generator=torch.Generator().manual_seed(3)) < 0.4
    expected = released_output(network, images, hidden_patches=hidden)
    found = load_checkpoint(state)(**images, bool_masked_pos=hidden).last_hidden_state
    assert torch.allclose(found, expected, atol=1e-5, rtol=0)
    assert not torch.allclose(found, load_checkpoint(state)(**images).last_hidden_state, atol=1e-2)


@torch.inference_mode()
def test_classes_of_images_are_those_of_the_released_network() -> None:
    network, state = released_state("tiny", "images")
    images = {"pixel_values": inputs_for("tiny")["pixel_values"]}
    model = load_checkpoint(state)
    assert type(model) is Beit3ForImageClassification
    assert not any(".B." in name or "text_embed" in name for name in model.state_dict())
    patches = released_output(network, images)[:, 1:].mean(1)
    normed = F.layer_norm(patches, patches.shape[-1:], state["fc_norm.weight"], state["fc_norm.bias"])
    expected = F.linear(normed, state["head.weight"], state["head.bias"])
    assert expected.shape == (3, 5)
    assert torch.allclose(model(**images).logits, expected, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_answers_are_those_of_the_released_network() -> None:
    network, state = released_state("tiny", "questions")
    inputs = inputs_for("tiny")
    model = load_checkpoint(state)
    assert type(model) is Beit3ForVisualQuestionAnswering
    first = released_output(network, inputs)[:, 0]
    normed = F.layer_norm(first, first.shape[-1:], state["pooler.norm.weight"], state["pooler.norm.bias"])
    pooled = F.linear(normed, state["pooler.dense.weight"], state["pooler.dense.bias"]).tanh()
    wide = F.linear(pooled, state["head.0.weight"], state["head.0.bias"])
    wide = F.gelu(F.layer_norm(wide, wide.shape[-1:], state["head.1.weight"], state["head.1.bias"]))
    expected = F.linear(wide, state["head.3.weight"], state["head.3.bias"])
    assert expected.shape == (3, 7)
    assert torch.allclose(model(**inputs).logits, expected, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_saved_models_come_back_by_transformers_own_classes(tmp_path: Path) -> None:
    inputs = inputs_for("tiny")
    images = {"pixel_values": inputs["pixel_values"]}
    for name, auto, read in (
        (None, AutoModel, inputs),
        ("images", AutoModelForImageClassification, images),
        ("questions", AutoModelForVisualQuestionAnswering, inputs),
    ):
        model = load_checkpoint(released_state("tiny", name)[1])
        model.save_pretrained(tmp_path / str(name))
        assert type(AutoConfig.from_pretrained(tmp_path / str(name))) is Beit3Config
        found, info = auto.from_pretrained(tmp_path / str(name), output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        for one, other in zip(model(**read).to_tuple(), found.eval()(**read).to_tuple(), strict=True):
            assert torch.equal(one, other)


@torch.inference_mode()
def test_a_pretrained_body_gets_a_new_head(tmp_path: Path) -> None:
    body = load_checkpoint(released_state("tiny")[1])
    body.save_pretrained(tmp_path)
    for auto in (AutoModelForImageClassification, AutoModelForVisualQuestionAnswering):
        found, info = auto.from_pretrained(tmp_path, output_loading_info=True)
        assert all(not name.startswith("beit3.") for name in info["missing_keys"])
        assert not info["unexpected_keys"]
        kept = found.beit3.state_dict()
        assert all(torch.equal(tensor, body.state_dict()[name]) for name, tensor in kept.items())


def test_losses_are_of_classes_or_of_how_right_each_answer_is() -> None:
    inputs = {
        name: value[:, :9] if value.dim() == 2 else value[..., :16, :16] for name, value in inputs_for("tiny").items()
    }
    labels = torch.tensor([0, 1, 2])
    model = Beit3ForVisualQuestionAnswering(Beit3Config(**TINY)).eval()
    found = model(**inputs, labels=labels)
    assert torch.allclose(found.loss, F.cross_entropy(found.logits, labels))
    rightness = torch.rand(3, 3)
    model = Beit3ForVisualQuestionAnswering(Beit3Config(**TINY)).eval()
    found = model(**inputs, labels=rightness)
    assert torch.allclose(found.loss, F.binary_cross_entropy_with_logits(found.logits, rightness))


def test_branches_are_left_out_in_training_only() -> None:
    torch.manual_seed(0)
    model = Beit3Model(Beit3Config(**TINY, drop_path_rate=0.5))
    pixels = torch.randn(1, 3, 16, 16)
    assert [layer.drop_path.rate for layer in model.encoder.layers] == [0.0, 0.5]
    model.eval()
    still = model(pixel_values=pixels).last_hidden_state
    assert torch.equal(still, model(pixel_values=pixels).last_hidden_state)
    model.train()
    drawn = [model(pixel_values=pixels).last_hidden_state for _ in range(8)]
    assert not all(torch.allclose(drawn[0], other) for other in drawn)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UsageError, match="image size 18 is not a multiple of the patch size 4"):
        Beit3Config(**{**TINY, "image_size": 18})
    with pytest.raises(UsageError, match="hidden size 30 is not a multiple of the 4 attention heads"):
        Beit3Config(**{**TINY, "hidden_size": 30})
    ids, pixels = torch.ones(2, 5, dtype=torch.long), torch.randn(2, 3, 16, 16)
    model = Beit3Model(Beit3Config(**TINY))
    with pytest.raises(UsageError, match="needs input_ids, pixel_values or both"):
        model()
    with pytest.raises(UsageError, match="images are 20x16 pixels, but the model reads 16x16"):
        model(pixel_values=torch.randn(2, 3, 20, 16))
    with pytest.raises(UsageError, match="a text has 11 tokens, but the model has positions for 10"):
        model(input_ids=torch.ones(1, 11, dtype=torch.long))
    with pytest.raises(UsageError, match="no language experts"):
        Beit3Model(Beit3Config(**TINY, use_language=False))(input_ids=ids)
    answering = Beit3ForVisualQuestionAnswering(Beit3Config(**TINY))
    with pytest.raises(UsageError, match="pixel_values are missing: a question about an image needs both"):
        answering(input_ids=ids)
    with pytest.raises(UsageError, match="input_ids are missing"):
        answering(pixel_values=pixels)
