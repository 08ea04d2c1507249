"""Part of `benchmarks.search_cost`: 100 random sub-networks of MiniLM-L6 on 872 sentences of SST-2, evaluated by this package
and by the straightforward loop: set the sub-network, pad to 128 tokens, batches of 128, fp32.

``python -m benchmarks.evaluation_speed [DIRECTORY]`` (`make bench-setup` first) prints rows and figures. DIRECTORY holds a
fine-tuned super-network as a run keeps it; without it one is fine-tuned, for one epoch. Both ways of evaluating take turns,
so that what else the machine does slows down both.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import kendalltau

from benchmarks.tuning_tasks import SUBJECTS, Material
from instatune_deploy.elastic.supernet import Supernet, load_supernet
from instatune_deploy.faces.cli.app import progress, quiet_libraries
from instatune_deploy.stages.evaluate import CHUNK, Evaluator
from instatune_deploy.stages.evaluate.precision import Precision, cpu_has_bf16
from instatune_deploy.stages.finetune import finetune
from instatune_deploy.values.front import Evaluation
from instatune_deploy.values.recipe import FinetuneSection
from instatune_deploy.values.space import Architecture
from instatune_deploy.workspace import Workspace

RUN = Path("runs/evaluation-speed")
PADDED_TOKENS, PADDED_BATCH = 128, 128
SEED = 0
#: How many of the best a race keeps.
KEEP = 10
#: Without instructions for it bf16 takes many times as long, and no run would choose it.
HAS_BF16 = cpu_has_bf16()
METHODS: dict[str, Precision] = {"fp32": "fp32", **({"bf16": "bf16"} if HAS_BF16 else {})}


def fine_tuned_supernet(material: Material, directory: Path | None) -> Supernet:
    """The super-network in `directory`, or one that is fine-tuned for an epoch and kept."""
    if directory is not None:
        return load_supernet(directory)
    settings = FinetuneSection.model_validate({"preset": "best", "epochs": 1, "teacher": {"epochs": 1}})
    return finetune(
        settings, lambda: material.load_model(SEED), material.space, material.data, material.processor, Workspace(RUN),
        key="evaluation-speed", seed=SEED, report=progress(),
    )  # fmt: skip


class Loop:
    """The straightforward way: one sub-network after the other on batches that are all padded to the same length."""

    def __init__(self, supernet: Supernet, material: Material) -> None:
        self.supernet, self.split = supernet, material.data.search
        rows, self.batches = self.split.rows, []
        for start in range(0, len(rows), PADDED_BATCH):
            columns = rows[start : start + PADDED_BATCH]
            inputs = {name: values for name, values in columns.items() if name != "labels"}
            padded = material.processor.inner.pad(
                inputs, padding="max_length", max_length=PADDED_TOKENS, return_tensors="pt"
            )
            self.batches.append((np.arange(start, start + len(padded["input_ids"])), dict(padded)))

    @torch.inference_mode()
    def __call__(self, architectures: Sequence[Architecture]) -> dict[Architecture, float]:
        """The accuracy of each."""
        return {
            architecture: self.split.score(
                "accuracy",
                ((numbers, [self.supernet(inputs, [architecture])[0].logits.numpy()]) for numbers, inputs in self.batches),
            )
            for architecture in architectures
        }  # fmt: skip


def evaluation_speedup(
    directory: Path | None = None, *, subnetworks: int = 100, report: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """`figures` by name and `rows`, one a sub-network with its accuracy by each method, and one a method with its seconds.

    Preparing the batches counts for this package's way and not for the loop.

    Args:
        directory: holds a fine-tuned super-network; None: one is fine-tuned.
    """
    material = Material(SUBJECTS["sst2"])
    supernet = fine_tuned_supernet(material, directory).eval()
    n = len(material.data.search)
    # As one call would cut them into groups.
    ordered = sorted(supernet.space.sample(subnetworks, seed=SEED), key=supernet.kept)
    seconds: dict[str, float] = dict.fromkeys(["loop", *METHODS, "race"], 0.0)
    cpu_seconds = dict(seconds)

    def timed(method: str, work: Callable[[], Any]) -> Any:
        started, cpu_started = time.perf_counter(), time.process_time()
        found = work()
        seconds[method] += time.perf_counter() - started
        cpu_seconds[method] += time.process_time() - cpu_started
        return found

    values: dict[str, dict[Architecture, float]] = {"loop": {}, **{method: {} for method in METHODS}}
    with tempfile.TemporaryDirectory() as scratch:

        def evaluator(name: str, precision: Precision) -> Evaluator:
            path = Path(scratch) / f"{name}.jsonl"
            return Evaluator(
                supernet, material.data.search, material.processor, metric="accuracy", path=path, precision=precision
            )

        loop = Loop(supernet, material)
        evaluators = {method: evaluator(method, precision) for method, precision in METHODS.items()}
        if HAS_BF16:
            evaluators["bf16"].check  # noqa: B018  finds out which rows are in doubt, once a run
        for start in range(0, len(ordered), CHUNK):
            chunk = ordered[start : start + CHUNK]
            # The loop before and after the others: the machine's speed drifts.
            values["loop"] |= timed("loop", lambda part=chunk[::2]: loop(part))
            for method, evaluate in evaluators.items():
                found: list[Evaluation] = timed(method, lambda e=evaluate, part=chunk: e(part))
                values[method] |= {evaluation.architecture: evaluation.value for evaluation in found}
            values["loop"] |= timed("loop", lambda part=chunk[1::2]: loop(part))
            report(f"{start + len(chunk)} of {len(ordered)} sub-networks: {json.dumps(seconds)}")
        race = timed("race", lambda: evaluator("race", "fp32").race(ordered, keep=KEEP, seed=SEED))
    columns = {method: [own[architecture] for architecture in ordered] for method, own in values.items()}
    best = sorted(columns["loop"])[-min(KEEP, len(ordered))]
    stayed = {evaluation.architecture for evaluation in race.evaluations}
    figures = {
        "evaluation_speedup": seconds["loop"] / seconds["fp32"],
        "evaluation_speedup_race": seconds["loop"] / seconds["race"],
        "evaluation_cpu_speedup": cpu_seconds["loop"] / cpu_seconds["fp32"],
        "evaluation_largest_difference": float(np.abs(np.subtract(columns["fp32"], columns["loop"])).max()),
        "evaluation_tau_fp32": float(kendalltau(columns["loop"], columns["fp32"]).statistic),
        "evaluation_race_dropped": float(len(race.dropped)),
        "evaluation_race_lost_best": float(sum(v > best and a not in stayed for a, v in values["loop"].items())),
    }
    if HAS_BF16:
        figures["evaluation_speedup_bf16"] = seconds["loop"] / seconds["bf16"]
        figures["evaluation_tau_bf16"] = float(kendalltau(columns["loop"], columns["bf16"]).statistic)
    common = {"what": "evaluation speed", "seed": SEED, "split": "search", "n": n}
    rows: list[dict[str, Any]] = [
        {
            **common, "method": method, "subnetworks": len(ordered), "seconds": spent, "cpu_seconds": cpu_seconds[method],
            "threads": torch.get_num_threads(),
        }
        for method, spent in seconds.items()
    ]  # fmt: skip
    rows += [
        {
            **common,
            "architecture": str(architecture),
            **{f"accuracy_{m}": own[architecture] for m, own in values.items()},
        }
        for architecture in ordered
    ]
    if HAS_BF16:
        rows.append({**common, "method": "bf16", "check": evaluators["bf16"].check.reason})
    return {"figures": figures, "rows": rows}


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", nargs="?", type=Path, help="a fine-tuned super-network")
    parser.add_argument("--subnetworks", type=int, default=100)
    wanted = parser.parse_args(arguments)
    quiet_libraries()
    found = evaluation_speedup(wanted.directory, subnetworks=wanted.subnetworks, report=progress())
    print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
