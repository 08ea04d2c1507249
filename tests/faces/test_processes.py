"""Several processes train one super-network together."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from instatune_deploy.elastic.supernet import load_supernet
from tests.helpers import write_project

ALONE = [sys.executable, "-m", "instatune_deploy"]
TOGETHER = [
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--nproc_per_node",
    "2",
    "-m",
    "instatune_deploy",
]


def finetune(directory: Path, command: list[str], out: str) -> list[tuple[str, float]]:
    """Every loss that was reported, with the step that it is of."""
    done = subprocess.run(
        [*command, "finetune", "recipe.yaml", "--out", out], cwd=directory, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [(step, float(loss)) for step, loss in re.findall(r"step (\S+): training loss (\S+)", done.stderr)]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training in which nothing is random but what the seed and the step decide."""
    directory = tmp_path_factory.mktemp("processes")
    path = write_project(directory)
    recipe = yaml.safe_load(path.read_text())
    recipe["finetune"] |= {"epochs": 1, "dropout": 0.0, "sampling": "front", "subnetworks": 2, "gamma": "on"}
    # The training rows are a whole number of batches: the last one of an epoch would be filled up.
    recipe["data"] |= {"search_rows": 400 - 12 * 16}
    recipe["finetune"]["batch_size"] = 16
    recipe["finetune"]["teacher"] |= {"epochs": 1, "batch_size": 16}
    path.write_text(yaml.safe_dump(recipe))
    config = directory / "model" / "config.json"
    config.write_text(config.read_text().replace('_dropout_prob": 0.1', '_dropout_prob": 0.0'))
    return directory


def test_two_processes_give_the_losses_and_outputs_of_one(project: Path) -> None:
    alone, together = finetune(project, ALONE, "alone"), finetune(project, TOGETHER, "together")
    assert [step for step, _ in together] == [step for step, _ in alone]
    assert len(alone) > 10
    assert [loss for _, loss in together] == pytest.approx([loss for _, loss in alone], abs=2e-3)
    # Not weight by weight: Adam makes a full step of a gradient that is zero but for rounding, such as a key bias'.
    ids = torch.arange(10).repeat(4, 1) % 5 + torch.arange(4)[:, None]
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    one, other = (load_supernet(project / name / "supernet") for name in ("alone", "together"))
    with torch.inference_mode():
        for architecture in (one.space.largest, one.space.smallest):
            first, second = (network(batch, [architecture])[0].logits for network in (one, other))
            assert torch.allclose(first, second, atol=1e-2)


def test_a_batch_that_cannot_be_divided_and_verbs_for_one_process_are_refused(project: Path) -> None:
    recipe = yaml.safe_load((project / "recipe.yaml").read_text())
    recipe["finetune"]["batch_size"] = 15
    (project / "odd.yaml").write_text(yaml.safe_dump(recipe))
    for arguments, message in (
        (["finetune", "odd.yaml", "--out", "odd"], "batch_size 15 cannot be divided among 2 processes"),
        (["run", "recipe.yaml", "--out", "all"], "run is for one process"),
    ):
        done = subprocess.run(
            [*TOGETHER, *arguments], cwd=project, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode != 0
        assert message in done.stderr
