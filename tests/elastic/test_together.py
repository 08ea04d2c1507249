"""Several processes that train one super-network: with gradients exchanged, or weights and all else divided (FSDP2); gradients
of two micro-batches a step; killed, and gone on with on another number of processes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from instatune_deploy.elastic.optimizer import RateSettings
from instatune_deploy.elastic.sharding import check_checkpoint, check_sharding
from instatune_deploy.elastic.supernet import load_supernet
from instatune_deploy.errors import UsageError
from tests.elastic.together import SHARDED, Together, losses_of

#: What processes have to agree on: sub-networks that are drawn by what was learned, rates by layer, distances of states.
EVERYTHING: dict[str, Any] = {
    "draw": {"sampling": "front"}, "hidden_weight": 1.0, "rates": RateSettings(2.0, 0.8), "gamma": "on",
}  # fmt: skip
STEPS = 12


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process' training, never interrupted."""
    directory = tmp_path_factory.mktemp("alone")
    assert Together(0, ema_decay=0.5, options=EVERYTHING)(directory) == [0]
    assert len(losses_of(directory)) == STEPS
    return directory


@pytest.mark.parametrize("environment", [{}, SHARDED], ids=["exchanged", "divided"])
def test_training_goes_on_with_another_number_of_processes(
    alone: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    def together(processes: int, kill_at: int | None = None) -> Together:
        return Together(processes, environment, kill_at, ema_decay=0.5, options=EVERYTHING)

    assert 0 not in together(2, kill_at=7)(tmp_path / "two")
    checkpoints = tmp_path / "two" / "checkpoints"
    assert [path.name for path in checkpoints.glob("checkpoint-*")] == ["checkpoint-4"]
    assert (checkpoints / "checkpoint-4" / "pytorch_model_fsdp_0").is_dir() == bool(environment)
    for processes in (3, 1):
        directory = tmp_path / str(processes)
        shutil.copytree(checkpoints, directory / "checkpoints")
        codes = together(processes)(directory)
        assert codes == [0] * processes, (directory / "errors-0.txt").read_text()
        assert_alike(directory, alone)


def assert_alike(directory: Path, alone: Path) -> None:
    """The same losses, and sub-networks that put out the same.

    Not weight by weight: Adam makes a full step of a gradient that is zero but for rounding, such as a key bias'.
    """
    assert losses_of(directory) == pytest.approx(losses_of(alone), abs=2e-3)
    one, other = (load_supernet(path / "supernet") for path in (directory, alone))
    ids = torch.arange(32).reshape(4, 8) + 5
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.inference_mode():
        for architecture in (one.space.largest, one.space.smallest):
            first, second = (network(batch, [architecture])[0].logits for network in (one, other))
            assert torch.allclose(first, second, atol=1e-2)


def test_cheaper_ways_to_train_divided_give_the_same_losses(alone: Path, tmp_path: Path) -> None:
    changes = {"bf16": True, "gradient_checkpointing": True}
    codes = Together(2, SHARDED, options={**EVERYTHING, "changes": changes})(tmp_path)
    assert codes == [0, 0], (tmp_path / "errors-0.txt").read_text()
    assert losses_of(tmp_path) == pytest.approx(losses_of(alone), rel=0.05)


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("FSDP_VERSION", "1", "fsdp_version: 2"),
        ("FSDP_AUTO_WRAP_POLICY", "TRANSFORMER_BASED_WRAP", "fsdp_auto_wrap_policy: NO_WRAP"),
        ("FSDP_CPU_RAM_EFFICIENT_LOADING", "true", "fsdp_cpu_ram_efficient_loading: false"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "true", "fsdp_activation_checkpointing: false"),
    ],
)
def test_what_cannot_train_shared_weights_is_refused(
    name: str, value: str, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_sharding()
    for key, own in {**SHARDED, "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(key, own)
    check_sharding()
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=line):
        check_sharding()


def test_a_checkpoint_that_was_divided_is_not_gone_on_from_otherwise(tmp_path: Path) -> None:
    check_checkpoint(tmp_path, sharded=False)
    (tmp_path / "pytorch_model_fsdp_0").mkdir()
    check_checkpoint(tmp_path, sharded=True)
    with pytest.raises(UsageError, match="was written with FSDP, and training cannot go on from it without"):
        check_checkpoint(tmp_path, sharded=False)
