"""What one elastic optimiser step costs against a plain one: time in one process, in turn; memory in processes of their own.

``python -m benchmarks.step_cost sst2`` prints it. One step of `best` with one sub-network and no teacher, on the same batches and in
the same precision as the plain step: plain fine-tuning with the model's own dropout, and with that of `best`.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer

from benchmarks.tuning_tasks import SUBJECTS, Material
from instatune_deploy.elastic.supernet import Supernet
from instatune_deploy.elastic.trainer import BucketTrainer, ElasticTrainer
from instatune_deploy.elastic.training import (
    drawer_of,
    labelled_batches,
    loss_of,
    trainer_arguments,
    with_dropout,
)
from instatune_deploy.faces.cli.app import quiet_libraries
from instatune_deploy.values.recipe import FinetuneSection

STEPS, MEMORY_STEPS, BATCH = 40, 12, 32
KINDS = ("plain", "plain_with_our_dropout", "elastic")


def trainer_of(kind: str, material: Material, directory: Path) -> Trainer:
    """A trainer that is ready to make steps."""
    settings = FinetuneSection.model_validate({"preset": "best", "gamma": "off", "subnetworks": 1, "batch_size": BATCH})
    arguments = trainer_arguments(settings, material.data.train, material.processor, directory, 0, lambda line: None)
    model = with_dropout(material.load_model(0), None if kind == "plain" else settings.dropout)
    if kind != "elastic":
        trainer: Trainer = BucketTrainer(model=model, **arguments)
    else:
        supernet = Supernet(model, material.space)
        drawer = drawer_of(settings, material.space, material.full_shape, seed=0)
        trainer = ElasticTrainer(supernet, loss_of(settings), drawer, **arguments)
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def step(trainer: Trainer, batch: dict[str, torch.Tensor]) -> float:
    """Seconds of one optimiser step."""
    started = time.perf_counter()
    trainer.training_step(trainer.model, dict(batch))
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()
    trainer.state.global_step += 1
    return time.perf_counter() - started


def resident_bytes(key: str) -> int:
    """Memory of this process: ``VmRSS`` now, ``VmHWM`` at its peak. (`getrusage` would give the parent's peak as well.)"""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return 1024 * int(line.split()[1])


def memory_of(kind: str, task: str) -> int:
    """Bytes that model, optimiser and steps of a kind need at most, beyond the libraries; call it in a fresh process."""
    material = Material(SUBJECTS[task])
    batches = labelled_batches(material.data.train, BATCH * MEMORY_STEPS, BATCH, material.processor)
    with tempfile.TemporaryDirectory() as directory:
        before = resident_bytes("VmRSS")
        trainer = trainer_of(kind, material, Path(directory))
        for batch in batches:
            step(trainer, batch)
    return resident_bytes("VmHWM") - before


def step_cost(task: str) -> dict[str, Any]:
    """`step_cost_ratio` and `step_memory_ratio` of elastic to plain steps, with what they are the ratios of."""
    material = Material(SUBJECTS[task])
    batches = labelled_batches(material.data.train, BATCH * STEPS, BATCH, material.processor)
    with tempfile.TemporaryDirectory() as directory:
        trainers = {kind: trainer_of(kind, material, Path(directory)) for kind in KINDS}
        seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for kind in KINDS:
            step(trainers[kind], batches[0])
        for number, batch in enumerate(batches):
            for kind in KINDS if number % 2 else KINDS[::-1]:
                seconds[kind].append(step(trainers[kind], batch))
    command = [sys.executable, "-m", "benchmarks.step_cost", task]
    peaks = {
        kind: int(subprocess.run([*command, kind], capture_output=True, text=True, check=True).stdout) for kind in KINDS
    }
    return {
        "what": "step cost", "task": task, "batch_size": BATCH, "n": len(batches), "seed": 0, "split": "train",
        **{f"{kind}_step_s": statistics.fmean(seconds[kind]) for kind in KINDS},
        **{f"{kind}_peak_bytes": peaks[kind] for kind in KINDS},
        "step_cost_ratio": sum(seconds["elastic"]) / sum(seconds["plain"]),
        "step_cost_ratio_with_our_dropout": sum(seconds["elastic"]) / sum(seconds["plain_with_our_dropout"]),
        "step_memory_ratio": peaks["elastic"] / peaks["plain"],
    }  # fmt: skip


if __name__ == "__main__":
    quiet_libraries()
    if len(sys.argv) > 2:
        print(memory_of(sys.argv[2], sys.argv[1]))
    else:
        print(json.dumps(step_cost(sys.argv[1]), indent=1))
