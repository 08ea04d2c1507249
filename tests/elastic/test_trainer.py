"""The loss of Eq. 1, what is sampled when, and resuming."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainerCallback, default_data_collator

from instatune_deploy.elastic import drawing
from instatune_deploy.elastic.drawing import Drawer, DrawSettings
from instatune_deploy.elastic.losses import ElasticLoss, network_loss
from instatune_deploy.elastic.optimizer import RateSettings
from instatune_deploy.elastic.sampler import BucketSampler
from instatune_deploy.elastic.supernet import Supernet
from instatune_deploy.elastic.trainer import BucketTrainer, DistillingTrainer, ElasticTrainer
from instatune_deploy.elastic.training import train
from instatune_deploy.errors import TrainingError
from tests.elastic.trainers import StopAt, arguments, losses, rows, trainer_for
from tests.helpers import make_family


def test_batches_hold_rows_of_like_length_and_every_row_once() -> None:
    lengths = np.random.default_rng(0).integers(3, 60, 500)
    sampler = BucketSampler(500, lengths, 10, seed=4)
    order = list(sampler)
    assert sorted(order) == list(range(500))
    spread = np.mean([np.ptp([lengths[i] for i in order[b : b + 10]]) for b in range(0, 500, 10)])
    assert spread < 5
    assert list(sampler) == order
    sampler.set_epoch(1)
    assert list(sampler) != order


def test_an_epoch_goes_without_a_row_that_would_be_a_batch_of_its_own() -> None:
    for rows_there, seen in ((8, 8), (9, 8), (10, 10)):
        sampler = BucketSampler(rows_there, None, 4, seed=0, drop_single=True)
        assert len(sampler) == len(set(sampler)) == seen
    left_out = set()
    for epoch in range(9):
        sampler = BucketSampler(9, None, 4, seed=0, drop_single=True)
        sampler.set_epoch(epoch)
        left_out |= {*range(9)} - {*sampler}
    assert len(left_out) > 3


@pytest.mark.parametrize(
    ("options", "ema_decay"),
    [
        ({}, 0.0),
        ({"draw": {"sampling": "front"}, "hidden_weight": 1.0, "rates": RateSettings(2.0, 0.8), "augment": 0.5}, 0.9),
    ],
    ids=["paper", "everything"],
)
def test_a_resumed_training_gives_the_same_losses_and_weights(
    tmp_path: Path, options: dict[str, Any], ema_decay: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawing, "_LEAST_SEEN", 6)  # so that what was learned decides within these few steps

    def run(name: str, *callbacks: TrainerCallback) -> ElasticTrainer:
        trainer = trainer_for(tmp_path / name, list(callbacks), **options)
        train(trainer, tmp_path / name, lambda line: None, ema_decay=ema_decay)
        return trainer

    whole = run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("cut", StopAt(11))  # in the middle of an epoch, after the checkpoint of step 8
    resumed = run("cut")
    assert losses(resumed) == losses(whole)
    assert len(losses(whole)) == 18
    for (name, one), (_, other) in zip(
        whole.model.state_dict().items(), resumed.model.state_dict().items(), strict=True
    ):
        assert torch.equal(one, other), name


def test_a_checkpoint_that_was_cut_off_is_not_resumed_from(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(trainer_for(tmp_path, [StopAt(11)]), tmp_path, lambda line: None, ema_decay=0.9)
    (tmp_path / "checkpoint-8" / "weight_average.safetensors").unlink()
    lines: list[str] = []
    train(trainer_for(tmp_path, []), tmp_path, lines.append, ema_decay=0.9)
    assert lines[0] == "resuming from step 4"


def test_the_moving_mean_is_what_training_ends_with(tmp_path: Path) -> None:
    plain = trainer_for(tmp_path / "a", [])
    train(plain, tmp_path / "a", lambda line: None)
    averaged = trainer_for(tmp_path / "b", [])
    train(averaged, tmp_path / "b", lambda line: None, ema_decay=0.5)
    assert losses(plain) == losses(averaged)
    one, other = plain.supernet.model.classifier.weight, averaged.supernet.model.classifier.weight
    assert not torch.equal(one, other)
    assert float((one - other).abs().max().detach()) < 0.01


def test_a_network_alone_learns_from_its_teacher(tmp_path: Path) -> None:
    family, teacher = make_family("bert"), make_family("bert").model
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    network = Supernet(family.model, family.space).extract(family.space.smallest)
    kept = family.space.kept_layers(family.space.smallest.depths)
    trainer = DistillingTrainer(
        network, ElasticLoss(alpha=0.0, gamma="on", hidden_weight=1.0, attention_weight=1.0), teacher, kept=kept,
        args=arguments(tmp_path), train_dataset=rows(), data_collator=default_data_collator,
    )  # fmt: skip
    trainer.train()
    found = list(losses(trainer).values())
    assert np.mean(found[-4:]) < 0.9 * np.mean(found[:4])


@pytest.mark.parametrize(
    ("changes", "tolerance"),
    [({"bf16": True}, 0.05), ({"gradient_checkpointing": True}, 1e-5)],
    ids=["bf16", "recomputed"],
)
def test_cheaper_ways_to_train_give_the_same_losses(tmp_path: Path, changes: dict[str, Any], tolerance: float) -> None:
    plain = trainer_for(tmp_path / "a", [])
    plain.train()
    cheaper = trainer_for(tmp_path / "b", [], changes=changes)
    cheaper.train()
    assert losses(cheaper) == pytest.approx(losses(plain), rel=tolerance)


@pytest.mark.parametrize("launched", [None, "fp16"])
def test_the_precision_of_a_training_is_not_the_next_ones(
    launched: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "ACCELERATE_MIXED_PRECISION"  # as Accelerate's launcher tells it
    monkeypatch.delenv(name, raising=False)
    first = trainer_for(tmp_path / "a", [], changes={"bf16": True})
    assert first.accelerator.mixed_precision == "bf16"
    assert name not in os.environ
    if launched is not None:
        monkeypatch.setenv(name, launched)
    second = trainer_for(tmp_path / "b", [], changes={"bf16": True})
    assert second.accelerator.mixed_precision == "bf16"
    assert os.environ.get(name) == launched
    monkeypatch.delenv(name, raising=False)
    assert trainer_for(tmp_path / "c", []).accelerator.mixed_precision == "no"


def test_compiled_layers_give_the_same_losses_from_few_graphs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What PyTorch makes of a graph is its own matter; that all sub-networks get along with few is ours."""
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: object) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    # PyTorch says nothing of what a compiled dropout draws.
    plain, compiled = (trainer_for(tmp_path / name, [], dropout=0.0, changes={"max_steps": 6}) for name in "ab")
    train(plain, tmp_path / "a", lambda line: None)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    train(compiled, tmp_path / "b", lambda line: None, compile_layers=True)
    assert losses(compiled) == pytest.approx(losses(plain), rel=1e-5)
    layers = len(compiled.supernet.layers)
    assert layers <= len(graphs) <= 12 * layers
    assert not any("forward" in vars(layer) for layer in compiled.supernet.layers)


def test_networks_one_after_the_other_give_the_gradients_of_the_whole_loss(tmp_path: Path) -> None:
    trainer = trainer_for(tmp_path, [], gamma="off", dropout=0.0)
    supernet = trainer.supernet
    batch = default_data_collator(list(rows())[:4])
    trainer.current_gradient_accumulation_steps = 2
    loss = trainer.training_step(supernet, dict(batch))
    found = {name: parameter.grad.clone() for name, parameter in supernet.named_parameters()}  # type: ignore[union-attr]
    supernet.zero_grad()
    full, *subnetworks = supernet(batch, [supernet.full, *trainer.drawer.at(0, 0.0)])
    assert len(subnetworks) == 2
    whole = network_loss(full, None, batch, trainer.loss)
    whole = whole + sum(network_loss(network, full, batch, trainer.loss) for network in subnetworks)
    (whole / 2).backward()
    assert float(loss) == pytest.approx(float(whole.detach()) / 2, rel=1e-5)
    for name, parameter in supernet.named_parameters():
        assert parameter.grad is not None
        assert torch.allclose(found[name], parameter.grad, atol=1e-6), name


def test_layers_and_the_head_learn_at_their_own_rates(tmp_path: Path) -> None:
    trainer = trainer_for(tmp_path, [], rates=RateSettings(head=3.0, layer_decay=0.5))
    rates = {
        id(parameter): group["lr"] for group in trainer.create_optimizer().param_groups for parameter in group["params"]
    }
    model = trainer.supernet.model
    layers = len(model.bert.encoder.layer)
    assert rates[id(model.classifier.weight)] == pytest.approx(3e-3)
    assert rates[id(model.bert.encoder.layer[-1].output.dense.weight)] == pytest.approx(1e-3)
    assert rates[id(model.bert.encoder.layer[0].output.dense.bias)] == pytest.approx(1e-3 * 0.5 ** (layers - 1))
    assert rates[id(model.bert.embeddings.word_embeddings.weight)] == pytest.approx(1e-3 * 0.5**layers)
    assert len(rates) == len(list(model.parameters()))


def test_a_loss_that_is_not_a_number_stops_the_training_and_says_where(tmp_path: Path) -> None:
    trainer = trainer_for(tmp_path, [])
    with torch.no_grad():
        trainer.supernet.model.classifier.weight.fill_(math.nan)
    with pytest.raises(TrainingError, match=r"loss is nan at step 0, learning rate .*, sub-networks \dL\["):
        trainer.train()


def test_a_full_model_whose_loss_is_not_a_number_stops_as_well(tmp_path: Path) -> None:
    """Trainer would log 0 and save it."""
    model = make_family("bert").model
    with torch.no_grad():
        model.classifier.weight.fill_(math.nan)
    trainer = BucketTrainer(
        model=model, args=arguments(tmp_path), train_dataset=rows(), data_collator=default_data_collator
    )
    with pytest.raises(TrainingError, match=r"loss is nan at step 0, learning rate [\d.e-]+$"):
        trainer.train()


def test_gamma_without_a_teacher_is_refused(tmp_path: Path) -> None:
    family = make_family("bert")
    supernet = Supernet(family.model, family.space)
    with pytest.raises(TrainingError, match="needs a teacher"):
        ElasticTrainer(
            supernet, ElasticLoss(gamma="on"), Drawer(family.space, supernet.shape(8), DrawSettings(), seed=0)
        )
