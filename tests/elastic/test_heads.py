"""Heads of every task: what of them is distilled, and what they cost."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    PreTrainedModel,
)

from instatune_deploy.device.lowering.macs import count_macs_onnx
from instatune_deploy.device.lowering.onnx import export_onnx
from instatune_deploy.elastic.heads import distillation_terms
from instatune_deploy.elastic.supernet import Supernet
from instatune_deploy.values.macs import count_macs, count_parameters
from instatune_deploy.values.space import SearchSpace

SPACE = SearchSpace.homogeneous(3, [1, 2, 3], [2, 4], [16, 48])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])


def kl(teacher: Any, student: Any) -> float:
    """KL(teacher || student) of two rows of logits, written out."""
    p, q = (np.exp(np.asarray(row, float)) / np.exp(np.asarray(row, float)).sum() for row in (teacher, student))
    return sum(float(a * np.log(a / b)) for a, b in zip(p, q, strict=True))


def divergence(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """What a trainer does with a term of logits."""
    rows = [F.log_softmax(logits / temperature, dim=-1) for logits in (student, teacher.detach())]
    return F.kl_div(*rows, reduction="batchmean", log_target=True) * temperature**2


def test_classes_are_compared_sample_by_sample() -> None:
    student, teacher = (
        torch.tensor([[0.1, 0.7, -0.4], [1.0, 0.0, 2.0]]),
        torch.tensor([[1.1, 0.2, 0.3], [0.5, 0.5, 0.1]]),
    )
    ((ours, theirs, kind),) = distillation_terms(SimpleNamespace(logits=student), SimpleNamespace(logits=teacher), {})
    assert kind == "logits"
    expected = (kl(teacher[0], student[0]) + kl(teacher[1], student[1])) / 2
    assert float(divergence(ours, theirs)) == pytest.approx(expected, rel=1e-5)


def test_numbers_are_compared_as_they_are() -> None:
    student, teacher = torch.tensor([[0.5], [2.0]]), torch.tensor([[1.5], [1.0]])
    ((ours, theirs, kind),) = distillation_terms(SimpleNamespace(logits=student), SimpleNamespace(logits=teacher), {})
    assert kind == "numbers"
    assert float(F.mse_loss(ours, theirs)) == 1.0


def test_tags_are_compared_where_a_token_has_a_label() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 4, 3), torch.randn(2, 4, 3)
    labels = torch.tensor([[-100, 2, -100, 0], [-100, 1, -100, -100]])
    ((ours, theirs, kind),) = distillation_terms(
        SimpleNamespace(logits=student), SimpleNamespace(logits=teacher), {"labels": labels, "attention_mask": MASK}
    )
    assert (kind, ours.shape) == ("logits", (3, 3))
    expected = sum(kl(teacher[at], student[at]) for at in ((0, 1), (0, 3), (1, 1))) / 3
    assert float(divergence(ours, theirs)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("temperature", [0.05, 1.0, 20.0])
def test_positions_of_answers_are_compared_without_the_padding(temperature: float) -> None:
    torch.manual_seed(0)
    student, teacher = (
        SimpleNamespace(start_logits=torch.randn(2, 4, requires_grad=True), end_logits=torch.randn(2, 4))
        for _ in range(2)
    )
    terms = distillation_terms(student, teacher, {"attention_mask": MASK})
    assert [kind for *_, kind in terms] == ["logits", "logits"]
    for (ours, theirs, _), name in zip(terms, ("start_logits", "end_logits"), strict=True):
        rows = [(getattr(teacher, name).detach(), getattr(student, name).detach())]
        expected = sum(
            kl(wanted[row, :kept] / temperature, found[row, :kept] / temperature)
            for wanted, found in rows
            for row, kept in ((0, 4), (1, 3))
        )
        value = divergence(ours, theirs, temperature)
        assert float(value.detach()) == pytest.approx(temperature**2 * expected / 2, rel=1e-3, abs=1e-6)
    divergence(*terms[0][:2], temperature).backward()
    gradient = student.start_logits.grad
    assert torch.isfinite(gradient).all()
    assert gradient[1, 3] == 0
    assert gradient[1, :3].abs().sum() > 0


def test_half_precision_outputs_are_compared_in_fp32() -> None:
    student, teacher = (
        SimpleNamespace(start_logits=torch.randn(2, 4).half(), end_logits=torch.randn(2, 4).half()) for _ in "ab"
    )
    for ours, theirs, _ in distillation_terms(student, teacher, {"attention_mask": MASK}):
        assert ours.dtype == theirs.dtype == torch.float32
        assert torch.isfinite(divergence(ours, theirs))


HEADS: dict[str, tuple[type[PreTrainedModel], int]] = {
    "classes": (BertForSequenceClassification, 3), "numbers": (BertForSequenceClassification, 1),
    "tags": (BertForTokenClassification, 5), "answers": (BertForQuestionAnswering, 2),
}  # fmt: skip


def labelled(head: str) -> dict[str, torch.Tensor]:
    """A batch of two texts of 6 and 4 tokens."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 100, (2, 6), generator=generator)
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    labels = {
        "classes": {"labels": torch.tensor([0, 2])}, "numbers": {"labels": torch.tensor([0.5, -1.0])},
        "tags": {"labels": torch.tensor([[-100, 1, -100, 3, 0, -100], [-100, 4, 2, -100, -100, -100]])},
        "answers": {"start_positions": torch.tensor([2, 0]), "end_positions": torch.tensor([4, 0])},
    }  # fmt: skip
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids), **labels[head]}


def tiny(head: str) -> Supernet:
    kind, labels = HEADS[head]
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=16, num_labels=labels, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        initializer_range=0.3,
    )  # fmt: skip
    return Supernet(kind(config), SPACE)


@pytest.mark.parametrize("head", list(HEADS))
def test_a_subnetwork_comes_nearer_to_the_full_network(head: str) -> None:
    supernet, batch = tiny(head), labelled(head)
    optimizer = torch.optim.Adam(supernet.parameters(), lr=3e-3)
    with torch.no_grad():
        (full,) = supernet(batch, [supernet.full])
    found = []
    for _ in range(40):
        (small,) = supernet(batch, [SPACE.smallest])
        terms = distillation_terms(small, full, batch)
        soft = sum(
            F.mse_loss(ours, theirs) if kind == "numbers" else divergence(ours, theirs) for ours, theirs, kind in terms
        ) / len(terms)
        optimizer.zero_grad()
        soft.backward()
        optimizer.step()
        found.append(float(soft.detach()))
    assert found[0] > 0.01
    assert found[-1] < 0.1 * found[0]


@pytest.mark.parametrize("head", ["tags", "answers"])  # tests/laws counts those that read one position
def test_closed_form_macs_and_parameters_are_those_of_the_graph(head: str, tmp_path: Path) -> None:
    supernet = tiny(head)
    inputs = {name: value for name, value in labelled(head).items() if "label" not in name and "positions" not in name}
    shape, network = supernet.shape(tokens=6), supernet.extract(SPACE.smallest)
    export_onnx(network, inputs, tmp_path / "model.onnx")
    found = count_macs_onnx(tmp_path / "model.onnx", dict.fromkeys(inputs, (1, 6)))
    assert found == count_macs(shape, SPACE.smallest)
    assert sum(p.numel() for p in network.parameters()) == count_parameters(shape, SPACE.smallest)


def test_heads_share_latency_tables() -> None:
    assert len({tiny(head).shape(tokens=6).signature for head in HEADS}) == 1
