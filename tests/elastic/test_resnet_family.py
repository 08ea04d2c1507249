"""What is particular to ResNet: stages, two sets of filters in a bottleneck, images whose size the config does not say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import (
    ConvNextImageProcessor,
    ResNetConfig,
    ResNetForImageClassification,
    TrainerCallback,
    ViTImageProcessor,
    default_data_collator,
)

from instatune_deploy.elastic.drawing import Drawer, DrawSettings
from instatune_deploy.elastic.importance import first_order_importance, sort_by_importance
from instatune_deploy.elastic.losses import ElasticLoss
from instatune_deploy.elastic.optimizer import RateSettings, parameter_groups
from instatune_deploy.elastic.pretrained import load_config, load_pretrained, space_for
from instatune_deploy.elastic.shapes import model_shape
from instatune_deploy.elastic.supernet import Supernet
from instatune_deploy.elastic.trainer import DistillingTrainer, ElasticTrainer
from instatune_deploy.elastic.training import check_recomputing, train
from instatune_deploy.errors import CheckpointError, RecipeError, SpaceError, TrainingError, UsageError
from instatune_deploy.values.features import Features
from instatune_deploy.values.layer_costs import feature_names, features
from instatune_deploy.values.macs import count_macs, count_parameters, shape_from_dict
from instatune_deploy.values.recipe import FinetuneSection
from instatune_deploy.values.space import Architecture, SearchSpace
from tests.elastic.trainers import StopAt, arguments, losses
from tests.helpers import make_family


def test_resnet_50_and_18_have_the_published_macs_and_parameters() -> None:
    """4.1 G and 25.6 M, 1.8 G and 11.7 M (torchvision; fc and convolutions), of which no step makes weights."""
    small = ResNetConfig(depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512], layer_type="basic")
    for config, macs, parameters, signature in (
        (ResNetConfig(), 4.089e9, 25.557e6, "resnet-bottleneck-64-3x64x256-4x128x512-6x256x1024-3x512x2048-i224"),
        (small, 1.814e9, 11.690e6, "resnet-basic-64-2x64x64-2x128x128-2x256x256-2x512x512-i224"),
    ):
        config.num_labels, config.image_size = 1000, 224
        with torch.device("meta"):
            shape = model_shape(ResNetForImageClassification(config), 0)
        assert count_macs(shape, shape.full()) == pytest.approx(macs, rel=1e-3)
        assert count_parameters(shape, shape.full()) == pytest.approx(parameters, rel=1e-4)
        assert shape.signature == signature
        assert shape_from_dict(shape.to_dict()) == shape


def test_traits_that_change_latency_are_in_the_signature() -> None:
    shape = model_shape(make_family("resnet with bottlenecks").model, 0)
    assert shape.signature == (
        "resnet-bottleneck-downsample_in_first_stage-downsample_in_bottleneck-8-2x16x64-2x24x96-i32"
    )


def test_the_familys_own_space_is_the_default() -> None:
    space = space_for(ResNetConfig(), "paper")
    assert space.stages == (3, 4, 6, 3)
    assert space.depths == ((2, 3), (2, 3, 4), (3, 4, 5, 6), (2, 3))
    assert space.stage_choices(0)[0] == (16, 32, 48, 64)
    assert space_for(ResNetConfig(), "resnet") == space
    for wanted in ("auto", {"depths": [1], "heads": [4], "ffn": [16]}):
        with pytest.raises(SpaceError, match="are for transformers; for a convolutional network name a preset"):
            space_for(ResNetConfig(), wanted)
    with pytest.raises(SpaceError, match="preset bert-base: its choices are of attention heads"):
        space_for(ResNetConfig(), "bert-base")


def test_a_space_that_does_not_fit_is_refused() -> None:
    family = make_family("resnet")
    for changes, message in (
        ({"drop_order": (0, 1, 3)}, "drops the first layer in stage 1, which changes the resolution"),
        ({"widths": (((4,), (99,), (8,), (5,)),)}, "99 filters in stage 1, but the model only 16"),
        ({"dimensions": ("neurons",)}, "the space is of neurons, but the model's layers have filters"),
        ({"stages": (4,), "depths": ((4,),)}, "the space has 1 stages, but the model 2"),
    ):
        with pytest.raises(SpaceError, match=message):
            Supernet(family.model, replace(family.space, **changes))  # type: ignore[arg-type]
    with pytest.raises(SpaceError, match="is of heads, ffn, but the model's layers have filters"):
        Supernet(family.model, SearchSpace.homogeneous(4, [4], [4], [8]))


def test_both_inner_convolutions_of_a_bottleneck_are_sorted_each_by_its_own_importance() -> None:
    family = make_family("resnet with bottlenecks")
    supernet = Supernet(family.model, family.space)
    labelled = {**family.inputs, "labels": torch.tensor([0, 1, 2])}
    expected = family.model(**family.inputs).logits
    found = first_order_importance(supernet, [labelled])
    assert [len(layers) for layers in found.units[0]] == [4, 4]
    orders = [[tuple(scores.argsort(descending=True).tolist()) for scores in layers] for layers in found.units[0]]
    assert orders[0] != orders[1]
    sort_by_importance(supernet, found)
    assert torch.allclose(family.model(**family.inputs).logits, expected, atol=1e-5)
    after = first_order_importance(supernet, [labelled])
    for layers in after.units[0]:
        assert all((scores.diff() <= 1e-5).all() for scores in layers)


def test_rates_go_down_with_the_layers_of_all_stages() -> None:
    model = make_family("resnet").model
    groups = parameter_groups(model, RateSettings(head=2.0, layer_decay=0.5), 1.0, 0.0, set())
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    first = model.get_parameter("resnet.encoder.stages.0.layers.0.layer.0.convolution.weight")
    last = model.get_parameter("resnet.encoder.stages.1.layers.1.layer.0.convolution.weight")
    stem = model.get_parameter("resnet.embedder.embedder.convolution.weight")
    assert [rates[id(p)] for p in (stem, first, last)] == [0.5**4, 0.5**3, 1.0]
    assert rates[id(model.get_parameter("classifier.1.weight"))] == 2.0


def test_the_image_size_is_that_of_the_processor(tmp_path: Path) -> None:
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic", num_labels=2)
    ResNetForImageClassification(config).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="no image processor can be loaded"):
        load_config(str(tmp_path))
    ConvNextImageProcessor(size={"shortest_edge": 48}, crop_pct=0.875).save_pretrained(tmp_path)
    assert load_config(str(tmp_path)).image_size == 48
    model = load_pretrained(str(tmp_path), "image-classification", ("a", "b"), reset_head=False, seed=0)
    assert model.config.image_size == 48
    ViTImageProcessor(size={"height": 32, "width": 48}).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="makes images of 32 x 48 pixels, expected squares"):
        load_config(str(tmp_path))


def test_attention_that_there_is_none_of_cannot_be_matched() -> None:
    family = make_family("resnet")
    for network in (family.model, Supernet(family.model, family.space)):
        with pytest.raises(TrainingError, match="a resnet has no attention blocks"):
            DistillingTrainer(network, ElasticLoss(attention_weight=1.0))


def trainer_of_17_rows(directory: Path, *callbacks: TrainerCallback, **changes: Any) -> ElasticTrainer:
    """Images so small that the last feature map is a single pixel, in batches of 4."""
    family = make_family("resnet")
    supernet, generator = Supernet(family.model, family.space), torch.Generator().manual_seed(0)
    pixels = torch.randn(17, 3, 8, 8, generator=generator)
    rows = Dataset.from_dict({"pixel_values": pixels.tolist(), "labels": [number % 3 for number in range(17)]})
    drawer = Drawer(family.space, supernet.shape(0), DrawSettings(), seed=0)
    return ElasticTrainer(
        supernet, ElasticLoss(), drawer, args=arguments(directory, **changes), train_dataset=rows,
        data_collator=default_data_collator, callbacks=list(callbacks),
    )  # fmt: skip


def test_no_batch_is_a_row_of_a_single_pixel_alone(tmp_path: Path) -> None:
    whole = trainer_of_17_rows(tmp_path / "whole")
    train(whole, tmp_path / "whole", lambda line: None)
    assert len(losses(whole)) == whole.state.max_steps == 6  # 3 epochs of 4 batches, 2 a step
    with pytest.raises(KeyboardInterrupt):
        train(trainer_of_17_rows(tmp_path / "cut", StopAt(5)), tmp_path / "cut", lambda line: None)
    resumed = trainer_of_17_rows(tmp_path / "cut")
    train(resumed, tmp_path / "cut", lambda line: None)
    assert losses(resumed) == losses(whole)


@pytest.mark.parametrize("key", ["finetune", "finetune.teacher"])
def test_layers_with_batch_norms_are_not_computed_again(key: str) -> None:
    again = {"gradient_checkpointing": True}
    settings = FinetuneSection.model_validate(again if key == "finetune" else {"teacher": again})
    with pytest.raises(RecipeError, match=rf"^{key}\.gradient_checkpointing: a resnet has batch norms"):
        check_recomputing(settings, make_family("resnet").model)
    check_recomputing(settings, make_family("vit").model)
    check_recomputing(FinetuneSection.model_validate({}), make_family("resnet").model)


def test_a_script_cannot_have_them_computed_again_either(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="gradient_checkpointing: batch norms would count each batch twice"):
        trainer_of_17_rows(tmp_path, gradient_checkpointing=True)


def test_a_table_has_entries_for_the_first_layer_of_a_stage_and_for_the_others() -> None:
    space = make_family("resnet").space
    found = features(Architecture.parse("3L[8 16 | 24]"), space.dimensions)
    assert found == {"stage1.first.filters=8": 1, "stage1.filters=16": 1, "stage2.first.filters=24": 1, "switch": 1}
    assert set(found) <= set(feature_names(space))
    assert "stage1.filters=8" not in feature_names(space)  # the second layer keeps all of its 16


def test_features_of_stages_survive_json_and_are_shares_of_the_largest() -> None:
    family = make_family("resnet")
    made = Features(family.space, model_shape(family.model, 0))
    assert Features.from_dict(made.to_dict()) == made
    assert made.sums([family.space.largest]).tolist() == [[1.0] * len(made.sum_names)]
    assert (made.sums([family.space.smallest]) < 1).all()
