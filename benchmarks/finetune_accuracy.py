"""Claim: sub-networks of one elastic fine-tuning lose little accuracy at half the multiply-accumulates, less than by the paper's
recipe, and no more than networks that are pruned and tuned one by one.

``python -m benchmarks.finetune_accuracy sst2 [cifar10]`` (`make bench-setup` first) trains and measures cell by cell (method, seed,
point), keeps each in runs/finetune-accuracy, and writes results/finetune_accuracy_<task>.json with what there is after each task.
Stopped at any point, the same command goes on. ``--methods``, ``--seeds`` and ``--cuts`` choose cells.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.finetune_cells import CUTS, Bench, figures_of
from benchmarks.results import RESULTS, write_result
from benchmarks.step_cost import step_cost
from benchmarks.tuning_tasks import SUBJECTS, Material
from instatune_deploy.faces.cli.app import progress, quiet_libraries

RUN = Path("runs/finetune-accuracy")
METHODS = ("best", "paper", "prune_distil")


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", nargs="+", choices=[*SUBJECTS])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--cuts", nargs="+", choices=[*CUTS], default=[*CUTS])
    parser.add_argument(
        "--write", action="store_true", help="write the result of all cells there are, and measure none"
    )
    wanted = parser.parse_args(arguments)
    quiet_libraries()
    for name in wanted.tasks:
        bench = Bench(Material(SUBJECTS[name]), progress(), RUN)
        bench.restore(RESULTS / f"finetune_accuracy_{name}.json")
        for seed in [] if wanted.write else wanted.seeds:
            for method in ("full", *wanted.methods):
                bench.measure(method, seed, wanted.cuts)
        write(bench)
    return 0


def write(bench: Bench) -> None:
    """Write the result of every cell that was measured."""
    cost = bench.kept("step-cost", lambda: [step_cost(bench.name)])[0]
    rows = bench.rows()
    figures = figures_of([row for row in rows if "method" in row])
    figures["train_rows"] = len(bench.data.train)
    figures |= {key: cost[key] for key in ("step_cost_ratio", "step_memory_ratio")}
    claim = (
        f"On {bench.name}, sub-networks of one elastic fine-tuning by `best` lose less accuracy against the distilled "
        "full model than those by the paper's recipe, and about as much as networks pruned and distilled one by one."
    )
    print(write_result(f"finetune_accuracy_{bench.name}", claim, figures, rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
