"""Trains a small super-network in several processes together, started from one that has imported what they need."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from instatune_deploy.elastic.supernet import save_supernet
from instatune_deploy.elastic.training import train
from tests.elastic.trainers import losses, trainer_for

#: Training samples a micro-batch, all processes together.
BATCH = 6
#: Accelerate's configuration of FSDP2, as its launcher tells processes.
SHARDED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"}


@dataclass(frozen=True)
class Together:
    """A training by several processes.

    Args:
        processes: how many; 0: this one alone, launched by nothing.
        environment: what the launcher tells beside the processes' numbers.
        kill_at: the step after which all are killed.
        options: for `trainer_for`.
    """

    processes: int
    environment: dict[str, str] = field(default_factory=dict)
    kill_at: int | None = None
    ema_decay: float = 0.0
    options: dict[str, Any] = field(default_factory=dict)

    def __call__(self, directory: Path) -> list[int | None]:
        """Train, or go on with what was killed; the exit codes. The first process writes ``losses.json`` (of each step) and
        the super-network to `directory`, and each its ``errors-NUMBER.txt``."""
        directory.mkdir(exist_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        context: Any = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        started = [context.Process(target=self._work, args=(n, port, directory)) for n in range(max(1, self.processes))]
        for process in started:
            process.start()
        for process in started:
            process.join(timeout=120)
            process.kill()
            process.join()
        return [process.exitcode for process in started]

    def _work(self, number: int, port: int, directory: Path) -> None:
        sys.stderr = (directory / f"errors-{number}.txt").open("w", buffering=1)
        torch.set_num_threads(1)
        if self.processes:
            own = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": self.processes, "MASTER_PORT": port}
            os.environ |= {**{name: str(value) for name, value in own.items()}, "MASTER_ADDR": "127.0.0.1"}
            os.environ |= {"LOCAL_WORLD_SIZE": str(self.processes), **self.environment}
        torch.manual_seed(number)
        options = {"dropout": 0.0, **self.options}
        changes = {"per_device_train_batch_size": BATCH // max(1, self.processes), **options.pop("changes", {})}
        callbacks = [] if self.kill_at is None else [_KillAt(self.kill_at)]
        checkpoints = directory / "checkpoints"
        trainer = trainer_for(checkpoints, callbacks, changes=changes, **options)
        train(trainer, checkpoints, lambda line: None, ema_decay=self.ema_decay)
        if number == 0:
            save_supernet(trainer.supernet, directory / "supernet")
            (directory / "losses.json").write_text(json.dumps(losses(trainer)), encoding="utf-8")
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
            torch.distributed.destroy_process_group()


class _KillAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **_):  # type: ignore[no-untyped-def]
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def losses_of(directory: Path) -> dict[str, float]:
    """The losses of a training that has ended, by step."""
    found: dict[str, float] = json.loads((directory / "losses.json").read_text(encoding="utf-8"))
    return found
