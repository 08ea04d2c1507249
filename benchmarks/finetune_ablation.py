"""Claim: each ingredient of `best` pays, and what it leaves out does not; and the paper's open questions.

``python -m benchmarks.finetune_ablation sst2`` (`make bench-setup` first) trains `best` changed in one point at a time, one seed unless
``--seeds`` says otherwise, and on the first 2,000 training rows unless ``--rows`` does, keeps each cell in runs/finetune-ablation, and
writes results/finetune_ablation_<task>.json after each method. Stopped at any point, the same command goes on.

One training tells little: the same recipe with other seeds differs by about a point. Figures named ``search`` are the mean of a dozen
networks that were drawn at random, which leaves the training's own luck but not that of one network.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.finetune_cells import CUTS, VARIANTS, Bench, figures_of
from benchmarks.results import RESULTS, write_result
from benchmarks.tuning_tasks import SUBJECTS, Material
from instatune_deploy.faces.cli.app import progress, quiet_libraries

RUN = Path("runs/finetune-ablation")


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", nargs="+", choices=[*SUBJECTS])
    parser.add_argument("--methods", nargs="+", choices=[*VARIANTS], default=[*VARIANTS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--rows", type=int, default=2000, help="training rows of every method")
    parser.add_argument("--cuts", nargs="+", choices=[*CUTS], default=["53", "70"])
    wanted = parser.parse_args(arguments)
    quiet_libraries()
    for name in wanted.tasks:
        bench = Bench(
            Material(replace(SUBJECTS[name], train_rows=wanted.rows)), progress(), RUN / f"{wanted.rows}-rows"
        )
        bench.restore(RESULTS / f"finetune_ablation_{name}.json")
        for seed in wanted.seeds:
            for method in ("full", *wanted.methods):
                bench.measure(method, seed, wanted.cuts)
                write(bench)
    return 0


def write(bench: Bench) -> None:
    """Write the result of every cell that was measured: points lost against the distilled full model."""
    claim = (
        f"On {bench.name}, {len(bench.data.train)} training rows, `best` with one ingredient taken away, added or changed: points lost by sub-networks against the "
        "distilled full model, and how many more than `best` loses."
    )
    rows = bench.rows()
    figures = figures_of(rows)
    figures["train_rows"] = len(bench.data.train)
    for key in [key for key in figures if key.endswith("drop_points.mean")]:
        method, rest = key.split(".", 1)
        if method != "best" and f"best.{rest}" in figures:
            figures[f"{method}.{rest.replace('drop_points', 'worse_than_best_points')}"] = (
                figures[key] - figures[f"best.{rest}"]
            )
    print(write_result(f"finetune_ablation_{bench.name}", claim, figures, rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
