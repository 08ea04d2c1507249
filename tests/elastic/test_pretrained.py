"""Checkpoints of users: what fits is loaded, what does not is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    BeitConfig,
    BertConfig,
    BertModel,
    DebertaV2Config,
    DeiTForImageClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PretrainedConfig,
)

from instatune_deploy.elastic.families import axis_map
from instatune_deploy.elastic.pretrained import TASK_OF_INPUTS, load_config, load_pretrained, space_for
from instatune_deploy.elastic.subnetwork import layer_lists, load_subnetwork
from instatune_deploy.elastic.supernet import Supernet
from instatune_deploy.errors import CheckpointError, FamilyError, SpaceError, UnknownNameError
from instatune_deploy.values.space import SearchSpace
from tests.helpers import FAMILIES, make_family

TASK, QUESTIONS = "text-classification", "visual-question-answering"
CLASSES = ("0", "1", "2")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    make_family("bert").model.save_pretrained(tmp_path)
    return tmp_path


def edit(directory: Path, **changes: torch.Tensor | None) -> None:
    """Replace tensors of a checkpoint, or drop those given as None; dots are written as two underscores."""
    path = directory / "model.safetensors"
    state = load_file(path)
    for name, tensor in changes.items():
        key = name.replace("__", ".")
        assert key in state
        if tensor is None:
            del state[key]
        else:
            state[key] = tensor
    save_file(state, path, metadata={"format": "pt"})


def drop(directory: Path, name: str) -> None:
    """Drop a tensor of a checkpoint."""
    edit(directory, **{name.replace(".", "__"): None})


@torch.inference_mode()
def test_a_fine_tuned_checkpoint_is_loaded_whole(checkpoint: Path) -> None:
    family = make_family("bert")
    found = load_pretrained(str(checkpoint), TASK, CLASSES, reset_head=False, seed=0).eval()
    assert torch.equal(found(**family.inputs).logits, family.model(**family.inputs).logits)


def test_a_missing_head_is_initialised_by_the_seed(tmp_path: Path) -> None:
    config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    BertModel(config).save_pretrained(tmp_path)
    heads = [
        load_pretrained(str(tmp_path), TASK, CLASSES, reset_head=False, seed=seed).classifier.weight
        for seed in (1, 1, 2)
    ]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


@pytest.mark.parametrize("name", ["bert", "deberta-v2", "vit", "resnet"])
def test_a_head_answers_the_same_whatever_order_its_classes_are_wanted_in(tmp_path: Path, name: str) -> None:
    family = make_family(name)
    family.model.config.id2label = {0: "positive", 1: "neutral", 2: "negative"}
    family.model.config.label2id = {"positive": 0, "neutral": 1, "negative": 2}
    family.model.save_pretrained(tmp_path)
    classes = ("negative", "neutral", "positive")
    task = TASK_OF_INPUTS[axis_map(family.model.config.model_type).inputs]
    found = load_pretrained(str(tmp_path), task, classes, reset_head=False, seed=0).eval()
    assert found.config.id2label == dict(enumerate(classes))
    with torch.no_grad():
        own, wanted = (model.eval()(**family.inputs).logits for model in (family.model, found))
    assert torch.equal(wanted, own[:, [2, 1, 0]])


@pytest.mark.parametrize("reset_head", [False, True])
def test_a_checkpoint_in_half_precision_is_trained_in_single(tmp_path: Path, reset_head: bool) -> None:
    make_family("bert").model.half().save_pretrained(tmp_path)
    found = load_pretrained(str(tmp_path), TASK, CLASSES, reset_head=reset_head, seed=0)
    assert {parameter.dtype for parameter in found.parameters()} == {torch.float32}


def load(name: str, directory: Path, *, reset_head: bool = False) -> torch.nn.Module:
    """The checkpoint in `directory`, of the family `name`, for its family's task."""
    task = TASK_OF_INPUTS[axis_map(name).inputs]
    return load_pretrained(str(directory), task, CLASSES, reset_head=reset_head, seed=0).eval()


@pytest.mark.parametrize("name", list(FAMILIES))
@torch.no_grad()
def test_a_body_that_was_saved_alone_is_loaded_whole(name: str, tmp_path: Path) -> None:
    """As are the checkpoints of pre-training, which have no head for a task, or another one."""
    model = make_family(name).model
    body = AutoModel.from_config(model.config)
    body.save_pretrained(tmp_path)
    found = load(name, tmp_path).base_model.state_dict()
    assert found.keys() == model.base_model.state_dict().keys()
    for key, tensor in found.items():
        assert torch.equal(tensor, body.state_dict()[key]), key
    axes = axis_map(name)
    layers = layer_lists(axes, model.config)[-1]
    lost = f"{layers}.{len(body.get_submodule(layers)) - 1}.{axes.dimensions[-1].axes[0].parameter}"
    shape = ", ".join(map(str, body.get_parameter(lost).shape))
    drop(tmp_path, lost)
    with pytest.raises(
        CheckpointError, match=rf"tensor {model.base_model_prefix}\.{lost} is missing, expected.*\({shape}\)"
    ):
        load(name, tmp_path)


@pytest.mark.parametrize("name", ["bert", "beit"])
def test_a_body_without_pooler_gets_a_new_one_with_its_head(name: str, tmp_path: Path) -> None:
    body = type(make_family(name).model.base_model)(make_family(name).model.config, add_pooling_layer=False)
    body.save_pretrained(tmp_path)
    assert any("pooler" in key for key in load(name, tmp_path).base_model.state_dict())


@pytest.mark.parametrize(
    ("name", "lost"),
    [
        ("bert", "bert.pooler.dense.weight"),
        ("roberta", "classifier.dense.weight"),
        ("distilbert", "pre_classifier.weight"),
        ("deberta-v2", "pooler.dense.weight"),
        ("beit", "beit.pooler.layernorm.weight"),
    ],
)
def test_half_a_head_is_refused_unless_it_is_to_be_new(name: str, lost: str, tmp_path: Path) -> None:
    make_family(name).model.save_pretrained(tmp_path)
    drop(tmp_path, lost)
    with pytest.raises(CheckpointError, match=rf"tensor {lost} is missing, expected.*reset_head: true"):
        load(name, tmp_path)
    assert lost in load(name, tmp_path, reset_head=True).state_dict()


def test_a_head_without_loss_is_refused_unless_it_is_to_be_new(tmp_path: Path) -> None:
    original = make_family("deit with a distillation head").model
    original.save_pretrained(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"DeiTForImageClassificationWithTeacher, gives no loss.*reset_head: true"
    ):
        load("deit", tmp_path)
    found = load("deit", tmp_path, reset_head=True)
    assert type(found) is DeiTForImageClassification
    for key, tensor in found.deit.state_dict().items():
        assert torch.equal(tensor, original.deit.state_dict()[key]), key


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (DebertaV2Config(conv_kernel_size=3), "deberta-v2 model with conv_kernel_size: 3 .*first layer"),
        (BeitConfig(use_shared_relative_position_bias=True), "beit model with use_shared_relative_position_bias: True"),
    ],
)
def test_what_cannot_be_elastic_is_refused_with_the_reason(
    config: PretrainedConfig, reason: str, tmp_path: Path
) -> None:
    config.save_pretrained(tmp_path)
    with pytest.raises(FamilyError, match=reason):
        load_config(str(tmp_path))


def test_a_head_for_other_classes_is_refused_unless_it_is_to_be_new(checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tensor classifier\.\w+ has shape \(3.*expected \(2.*reset_head: true"):
        load_pretrained(str(checkpoint), TASK, ("a", "b"), reset_head=False, seed=0)
    found = load_pretrained(str(checkpoint), TASK, ("a", "b"), reset_head=True, seed=0)
    assert found.classifier.out_features == 2
    assert found.config.id2label == {0: "a", 1: "b"}
    original = make_family("bert").model
    for name, tensor in found.bert.state_dict().items():
        assert torch.equal(tensor, original.bert.state_dict()[name]), name


def test_a_tensor_of_another_shape_is_named(checkpoint: Path) -> None:
    edit(checkpoint, bert__encoder__layer__1__output__dense__weight=torch.zeros(32, 40))
    with pytest.raises(
        CheckpointError,
        match=r"bert\.encoder\.layer\.1\.output\.dense\.weight has shape \(32, 40\), expected \(32, 48\)",
    ):
        load_pretrained(str(checkpoint), TASK, CLASSES, reset_head=False, seed=0)


def test_a_missing_tensor_of_the_body_is_named_not_initialised(checkpoint: Path) -> None:
    edit(checkpoint, bert__encoder__layer__2__attention__self__query__weight=None)
    with pytest.raises(
        CheckpointError, match=r"layer\.2\.attention\.self\.query\.weight is missing, expected.*\(32, 32\)"
    ):
        load_pretrained(str(checkpoint), TASK, CLASSES, reset_head=False, seed=0)


def test_an_unsupported_family_names_the_supported_ones(tmp_path: Path) -> None:
    GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=20)).save_pretrained(tmp_path)
    with pytest.raises(FamilyError, match=r"'gpt2' has no axis map; supported families: beit, beit3, bert, deberta-v2"):
        load_config(str(tmp_path))


def test_no_model_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no model can be loaded"):
        load_config(str(tmp_path))


def test_a_model_for_another_task_is_refused(checkpoint: Path) -> None:
    with pytest.raises(FamilyError, match="a bert model cannot do image-classification"):
        load_pretrained(str(checkpoint), "image-classification", CLASSES, reset_head=False, seed=0)
    for name in ("bert", "vit"):
        make_family(name).model.save_pretrained(checkpoint / name)
        with pytest.raises(FamilyError, match=f"a {name} model cannot do {QUESTIONS}"):
            load_pretrained(str(checkpoint / name), QUESTIONS, CLASSES, reset_head=False, seed=0)
    make_family("beit3").model.save_pretrained(checkpoint / "images")
    for task, message in ((QUESTIONS, "needs a model that reads texts"), (TASK, "a beit3 model cannot do")):
        with pytest.raises(FamilyError, match=message):
            load_pretrained(str(checkpoint / "images"), task, CLASSES, reset_head=False, seed=0)


@torch.inference_mode()
def test_questions_about_images_are_loaded_with_every_tensor_or_not_at_all(tmp_path: Path) -> None:
    family = make_family("beit3 with questions")
    family.model.save_pretrained(tmp_path)
    found = load_pretrained(str(tmp_path), QUESTIONS, CLASSES, reset_head=False, seed=0).eval()
    assert torch.equal(found(**family.inputs).logits, family.model(**family.inputs).logits)
    fresh = load_pretrained(str(tmp_path), QUESTIONS, ("yes", "no"), reset_head=True, seed=0).eval()
    assert torch.equal(fresh.beit3(**family.inputs)[0], family.model.beit3(**family.inputs)[0])
    assert fresh(**family.inputs).logits.shape == (3, 2)
    with pytest.raises(
        CheckpointError, match=r"head\.3\.bias has shape \(3,\), expected \(2,\); for a new head set reset_head"
    ):
        load_pretrained(str(tmp_path), QUESTIONS, ("yes", "no"), reset_head=False, seed=0)
    drop(tmp_path, "pooler.dense.weight")
    with pytest.raises(CheckpointError, match=r"tensor pooler\.dense\.weight is missing, expected.*reset_head: true"):
        load_pretrained(str(tmp_path), QUESTIONS, CLASSES, reset_head=False, seed=0)
    drop(tmp_path, "beit3.encoder.layers.2.ffn.B.fc1.weight")
    with pytest.raises(CheckpointError, match=r"tensor beit3\.encoder\.layers\.2\.ffn\.B\.fc1\.weight is missing"):
        load_pretrained(str(tmp_path), QUESTIONS, CLASSES, reset_head=True, seed=0)


def test_spaces_scale_with_the_model_and_must_fit_it() -> None:
    config = BertConfig(num_hidden_layers=6, num_attention_heads=12, hidden_size=384, intermediate_size=1536)
    space = space_for(config, "paper")
    assert space.depths == ((3, 4, 5, 6),)
    assert space.head_choices == (6, 8, 10, 12)
    assert space.ffn_choices == (512, 1024, 1536)
    assert space_for(config, "bert-base") == space
    with pytest.raises(UnknownNameError, match="did you mean 'bert-base'"):
        space_for(config, "bert_base")
    model = make_family("bert").model
    with pytest.raises(SpaceError, match="the space has 8 heads, but the model only 4"):
        Supernet(model, SearchSpace.homogeneous(4, [4], [8], [48]))
    with pytest.raises(SpaceError, match="the space has 96 MLP neurons, but the model only 48"):
        Supernet(model, SearchSpace.homogeneous(4, [4], [4], [96]))
    with pytest.raises(SpaceError, match="the space has 5 layers, but the model only 4"):
        Supernet(model, SearchSpace.homogeneous(5, [4], [4], [48]))


def test_choices_are_of_every_layer_alike_or_of_each() -> None:
    config = BertConfig(num_hidden_layers=2, num_attention_heads=4, hidden_size=32, intermediate_size=64)
    space = space_for(config, {"depths": [2, 1], "heads": [[4, 2], [4]], "ffn": [64, 16]})
    assert space == SearchSpace.stack((1, 2), ((2, 4), (4,)), ((16, 64), (16, 64)), (1, 0))
    for name, wrong in (("heads", [[4]] * 3), ("ffn", [[16]])):
        with pytest.raises(SpaceError, match=f"{name} are given for {len(wrong)} layers, but the model has 2"):
            space_for(config, {"depths": [1], "heads": [4], "ffn": [64], name: wrong})
    with pytest.raises(SpaceError, match="positive, distinct and ascending"):
        space_for(config, {"depths": [1], "heads": [], "ffn": [64]})
    assert space_for(config, "auto").largest == space_for(config, "paper").largest


def test_a_damaged_subnetwork_is_refused_by_name(tmp_path: Path) -> None:
    family = make_family("bert")
    supernet = Supernet(family.model, family.space)
    supernet.extract(family.space.smallest).save_pretrained(tmp_path)
    edit(tmp_path, bert__encoder__layer__0__intermediate__dense__weight=torch.zeros(7, 32))
    with pytest.raises(
        CheckpointError, match=r"layer\.0\.intermediate\.dense\.weight has shape \(7, 32\), expected \(16, 32\)"
    ):
        load_subnetwork(tmp_path)
    edit(tmp_path, bert__encoder__layer__0__intermediate__dense__weight=None)
    with pytest.raises(CheckpointError, match=r"layer\.0\.intermediate\.dense\.weight is missing"):
        load_subnetwork(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not safetensors at all")
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        load_subnetwork(tmp_path)
    with pytest.raises(CheckpointError):
        load_subnetwork(tmp_path / "nowhere")
