"""What is kept of a trainer's log."""

from __future__ import annotations

import pytest

from instatune_deploy.values.history import TrainingHistory, TrainingPoint

LOG = [
    {"step": 1, "epoch": 0.5, "loss": 1.5, "learning_rate": 1e-3, "grad_norm": float("nan")},
    {"step": 2, "epoch": 1.0, "loss": float("nan"), "learning_rate": 5e-4},
    {"step": 3, "epoch": 1.5, "loss": 0.5},
    {"step": 3, "epoch": 1.5, "train_loss": 1.0, "train_runtime": 2.0},
]


def test_losses_are_kept_and_what_is_none_is_not() -> None:
    history = TrainingHistory.of("super-network", 300, LOG)
    assert history.points == (TrainingPoint(1, 0.5, 1.5, 1e-3), TrainingPoint(3, 1.5, 0.5, None))


def test_a_history_round_trips_and_another_version_is_refused() -> None:
    history = TrainingHistory.of("full model", 10, LOG)
    assert TrainingHistory.from_dict(history.to_dict()) == history
    with pytest.raises(ValueError, match="schema_version: is 2, this release reads 1"):
        TrainingHistory.from_dict({**history.to_dict(), "schema_version": 2})
