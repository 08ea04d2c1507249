"""Eq. 1, the divergences, and the distances of hidden states."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from instatune_deploy.elastic.losses import (
    ElasticLoss,
    adaptive_alpha_divergence,
    distillation,
    layer_pairs,
    network_loss,
    state_distance,
)


def output(seed: int) -> SimpleNamespace:
    torch.manual_seed(seed)
    return SimpleNamespace(loss=torch.rand(()), logits=torch.randn(5, 3))


def kl(teacher: torch.Tensor, student: torch.Tensor) -> float:
    """KL(teacher || student) written out, mean over samples."""
    p, q = teacher.softmax(-1).double(), student.softmax(-1).double()
    return float((p * (p / q).log()).sum(-1).mean())


def test_distillation_is_the_kl_divergence_from_the_teacher() -> None:
    student, teacher = output(1).logits, output(2).logits
    assert float(distillation(student, teacher)) == pytest.approx(kl(teacher, student), rel=1e-5)
    assert float(distillation(student, teacher, 2.0)) == pytest.approx(4 * kl(teacher / 2, student / 2), rel=1e-5)
    assert float(distillation(student, student)) == pytest.approx(0, abs=1e-6)


def test_no_gradient_flows_into_the_teacher() -> None:
    student, teacher = (output(seed).logits.requires_grad_() for seed in (1, 2))
    distillation(student, teacher).backward()
    assert student.grad is not None
    assert teacher.grad is None


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_the_loss_is_equation_1(alpha: float) -> None:
    full, subnetworks, teacher = output(1), [output(2), output(3)], output(4).logits
    hard = full.loss + sum(s.loss for s in subnetworks)
    without = alpha * hard + (1 - alpha) * sum(kl(full.logits, s.logits) for s in subnetworks)
    with_teacher = alpha * hard + (1 - alpha) * (
        kl(teacher, full.logits) + sum(kl(teacher, s.logits) for s in subnetworks)
    )
    settings = ElasticLoss(alpha=alpha)

    def total(teachers: list[SimpleNamespace | None]) -> float:
        pairs = zip([full, *subnetworks], teachers, strict=True)
        return sum(float(network_loss(student, of, {}, settings)) for student, of in pairs)

    strong = SimpleNamespace(logits=teacher)
    assert total([None, full, full]) == pytest.approx(float(without), rel=1e-5)
    assert total([strong, strong, strong]) == pytest.approx(float(with_teacher), rel=1e-5)


def test_gamma_is_off_on_or_on_in_the_first_epochs() -> None:
    epochs = [0.0, 0.9, 1.0, 1.9, 2.0]
    assert [ElasticLoss(gamma="off").gamma_at(e) for e in epochs] == [0, 0, 0, 0, 0]
    assert [ElasticLoss(gamma="on").gamma_at(e) for e in epochs] == [1, 1, 1, 1, 1]
    assert [ElasticLoss(gamma="first_epochs", gamma_epochs=2).gamma_at(e) for e in epochs] == [1, 1, 1, 1, 0]


def alpha_divergence(q: torch.Tensor, p: torch.Tensor, alpha: float) -> torch.Tensor:
    """``sum q ((p/q)^a - 1) / (a (a-1))``, KL(p || q) at 1; of each sample."""
    if alpha == 1:
        return (p * (p / q).log()).sum(-1)
    return (q * ((p / q) ** alpha - 1)).sum(-1) / (alpha * (alpha - 1))


def test_the_adaptive_divergence_is_the_larger_of_two_and_has_its_gradient() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(6, 4).double().mul(0.5).requires_grad_(), torch.randn(6, 4).double().mul(0.5)
    q, p = student.softmax(-1), teacher.softmax(-1)
    both = torch.stack([alpha_divergence(q, p, alpha) for alpha in (-1.0, 1.0)])
    assert {int(i) for i in both.argmax(dim=0)} == {0, 1}
    wanted = both.max(dim=0).values.mean()
    found = adaptive_alpha_divergence(student, teacher, clip=1e9)
    assert float(found.detach()) == pytest.approx(float(wanted.detach()), rel=1e-9)
    (expected,) = torch.autograd.grad(wanted, student)
    (gradient,) = torch.autograd.grad(found, student)
    assert torch.allclose(gradient, expected, atol=1e-12)


def test_the_adaptive_divergence_stays_finite_where_a_network_is_sure_of_the_wrong_class() -> None:
    student = torch.tensor([[60.0, -60.0]], requires_grad=True)
    loss = adaptive_alpha_divergence(student, torch.tensor([[-60.0, 60.0]]))
    loss.backward()
    assert student.grad is not None
    assert torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()


def test_a_layer_stands_for_itself_and_the_dropped_ones_behind_it() -> None:
    assert layer_pairs((0, 1, 2), 3) == [(0, 0), (1, 1), (2, 2)]
    assert layer_pairs((0, 2, 5), 6) == [(0, 1), (1, 4), (2, 5)]
    assert layer_pairs((1,), 4) == [(0, 3)]


def test_state_distance_is_relative_and_leaves_padding_out() -> None:
    torch.manual_seed(0)
    teacher = [torch.randn(2, 3, 4) for _ in range(2)]
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    student = [states.clone() for states in teacher]
    student[0][mask == 0] += 100.0
    assert float(state_distance(student, teacher, [(0, 0), (1, 1)], mask)) == pytest.approx(0, abs=1e-7)
    # The mask of a text that follows an image leaves the image in.
    text = mask[:, 1:]
    student = [states.clone() for states in teacher]
    student[0][:, 1:][text == 0] += 100.0
    assert float(state_distance(student, teacher, [(0, 0), (1, 1)], text)) == pytest.approx(0, abs=1e-7)
    student[0][0, 0] += 100.0
    assert float(state_distance(student, teacher, [(0, 0), (1, 1)], text)) > 100
    doubled = [2 * states for states in teacher]
    assert float(state_distance(doubled, teacher, [(0, 0), (1, 1)], mask)) == pytest.approx(1, rel=1e-5)
    assert float(state_distance(doubled, teacher, [(1, 1)], None)) == pytest.approx(1, rel=1e-5)
