"""Stage 3: the task metric of sub-networks on the search split, without copying a weight."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from instatune_deploy.data.dataset import Split
from instatune_deploy.data.processor import Processor
from instatune_deploy.elastic.supernet import Supernet
from instatune_deploy.errors import UsageError
from instatune_deploy.values.front import Evaluation
from instatune_deploy.values.space import Architecture

#: Between two lines about a long evaluation.
REPORT_EVERY_S = 5.0


class Evaluator:
    """Measures sub-networks on one split and remembers what it measured in a file, line by line.

    Args:
        supernet: holds the sub-networks; it is run in evaluation mode and fp32.
        split: rows to measure on, encoded once.
        metric: one that fits the task, see `data.metrics`.
        path: JSON lines, one an `Evaluation`. What stands there is not measured again.
        batch_size: samples a forward pass.

    Raises:
        UsageError: `path` holds evaluations of another split or metric.
    """

    def __init__(
        self, supernet: Supernet, split: Split, processor: Processor, *, metric: str, path: Path, batch_size: int = 32
    ) -> None:
        self.supernet, self.split, self.metric, self.path = supernet.eval(), split, metric, path
        device = next(supernet.parameters()).device
        self.batches = [
            (numbers, {name: torch.from_numpy(array).to(device) for name, array in inputs.items()})
            for numbers, inputs in processor.batches(split.rows, batch_size)
        ]
        self.known = {evaluation.architecture: evaluation for evaluation in read_evaluations(path)}
        for evaluation in self.known.values():
            if (evaluation.metric, evaluation.split, evaluation.n) != (metric, split.name, len(split)):
                raise UsageError(
                    f"{path}: holds {evaluation.metric} on {evaluation.n} samples of {evaluation.split}, "
                    f"not {metric} on {len(split)} of {split.name}; move it away to evaluate anew"
                )

    def __call__(
        self, architectures: Iterable[Architecture], *, report: Callable[[str], None] = lambda line: None
    ) -> list[Evaluation]:
        """An evaluation for each of `architectures`, measured now unless it is known."""
        found, told = [], time.monotonic()
        for architecture in architectures:
            if architecture not in self.known:
                value = self._measure(architecture)
                evaluation = Evaluation(architecture, self.metric, value, self.split.name, len(self.split))
                _append_line(self.path, json.dumps(evaluation.to_dict()))
                self.known[architecture] = evaluation
                if time.monotonic() - told >= REPORT_EVERY_S:
                    told = time.monotonic()
                    report(
                        f"{len(self.known)} sub-networks evaluated; last: {self.metric} {value:.4f} of {architecture}"
                    )
            found.append(self.known[architecture])
        return found

    @torch.inference_mode()
    def _measure(self, architecture: Architecture) -> float:
        def outputs() -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
            for numbers, inputs in self.batches:
                output = self.supernet(inputs, [architecture])[0]
                yield numbers, [output[name].float().cpu().numpy() for name in self.split.head.outputs]

        return self.split.score(self.metric, outputs())


def _append_line(path: Path, line: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.read_bytes().endswith(b"\n"):
        line = "\n" + line  # the last line is one half, of a process that was killed
    with path.open("a", encoding="utf-8") as stream:
        stream.write(line + "\n")


def read_evaluations(path: Path) -> list[Evaluation]:
    """The evaluations in a file of JSON lines; a line that a killed process left half is skipped."""
    if not path.exists():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(Evaluation.from_dict(json.loads(line)))
        except (ValueError, KeyError, TypeError):
            continue
    return found
