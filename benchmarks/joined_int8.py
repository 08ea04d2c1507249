"""Claim: of ONNX Runtime's int8 texts, labels follow from what they are joined with, and running each row alone, as this package
does, costs little beside batches of eight.

``python -m benchmarks.joined_int8 --run RUN`` (`make bench-setup` first) writes results/joined_int8.json. RUN is the directory of a
finished run on MiniLM-L6 and SST-2, such as `make bench-minilm` leaves, whose full network is there in ``ort-int8``. All ways of
running it take turns, so that what else the machine does slows down all.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from benchmarks.results import write_result
from instatune_deploy.device.runtimes.base import Session, get_runtime
from instatune_deploy.faces.cli.app import progress, quiet_libraries
from instatune_deploy.pipeline import open_run
from instatune_deploy.stages.export import open_artifact
from instatune_deploy.values.deployment import Deployment

DEPLOYMENT = Deployment("onnxruntime", "int8")
BATCH, TURNS, SEED = 8, 4, 0
Batch = dict[str, np.ndarray]


class Joined:
    """The runtime alone: each call as it is given."""

    def __init__(self, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = DEPLOYMENT.threads
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.names = [found.name for found in self.session.get_inputs()]

    def run(self, inputs: Batch) -> tuple[np.ndarray, ...]:
        return tuple(self.session.run(None, {name: inputs[name] for name in self.names}))


def labels(session: Session | Joined, batches: Sequence[tuple[np.ndarray, Batch]], count: int) -> np.ndarray:
    """The label of each row, shape (count,)."""
    found = np.empty(count, dtype=np.int64)
    for rows, inputs in batches:
        found[rows] = session.run(inputs)[0].argmax(axis=-1)
    return found


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True)
    wanted = parser.parse_args(arguments)
    quiet_libraries()
    job = open_run(wanted.run, progress())
    path = open_artifact(wanted.run / "artifacts" / next(iter(job.recipe.targets)) / "full").model_file(DEPLOYMENT)
    split, processor = job.report_split, job.processor
    order = list(range(len(split)))
    random.Random(SEED).shuffle(order)
    neighbours = [(np.asarray(rows), inputs) for rows, inputs in processor.batches(split.rows, BATCH)]
    anyhow = []
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        columns = {name: values for name, values in split.rows.select(rows)[:].items() if name != "labels"}
        anyhow.append((np.asarray(rows), dict(processor.inner.pad(columns, padding=True, return_tensors="np"))))
    alone, joined = get_runtime(DEPLOYMENT.runtime).load(path, DEPLOYMENT), Joined(path)
    ways: dict[str, tuple[Session | Joined, list[tuple[np.ndarray, Batch]]]] = {
        "alone": (alone, neighbours), "neighbours": (joined, neighbours), "any": (joined, anyhow),
    }  # fmt: skip
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    said: dict[str, np.ndarray] = {}
    for turn in range(TURNS + 1):
        for name, (session, batches) in ways.items():
            began = time.process_time()
            said[name] = labels(session, batches, len(split))
            if turn:  # the first warms up
                seconds[name].append(time.process_time() - began)
    assert np.array_equal(said["alone"], labels(alone, anyhow, len(split)))
    figures: dict[str, float] = {}
    rows_out: list[dict[str, Any]] = []
    for name in ("neighbours", "any"):
        ratios = [a / b for a, b in zip(seconds["alone"], seconds[name], strict=True)]
        figures[f"{name}.other_labels_pct"] = 100 * float(np.mean(said[name] != said["alone"]))
        figures[f"{name}.alone_time_ratio"] = statistics.median(ratios)
        rows_out.append(
            {
                "what": f"batches of {BATCH}, {name}", "split": "report", "n": len(split), "seed": SEED, "ratios": ratios,
                "cpu_s": seconds[name], "cpu_s_alone": seconds["alone"], "other_labels": int(np.sum(said[name] != said["alone"])),
            }
        )  # fmt: skip
    claim = (
        "Of ONNX Runtime's int8 texts labels follow from what they are joined with; run row by row, each alone, 872 sentences take "
        "no more than a third longer than in batches of eight neighbours in length, and are answered alike whatever they come with."
    )
    print(write_result("joined_int8", claim, figures, rows_out))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
