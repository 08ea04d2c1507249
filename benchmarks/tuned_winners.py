"""Claim: of a chosen network before and after an epoch of tuning alone, the search split tells the better one.

``python -m benchmarks.tuned_winners sst2`` (`make bench-setup` first) trains by `best`, chooses a network for each cut on the search
split, tunes each alone for one epoch as ``--tune-epochs 1`` does, and holds both against each other on the report split: what tuning
gains, and what is gained where the search split decides, as ``--tune-epochs`` does. Each cell is kept in runs/tuned-winners, and
results/tuned_winners_<task>.json has what there is. Stopped at any point, the same command goes on.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.finetune_cells import CUTS, Bench
from benchmarks.results import write_result
from benchmarks.tuning_tasks import SUBJECTS, Material
from instatune_deploy.faces.cli.app import progress, quiet_libraries

RUN = Path("runs/tuned-winners")
METHODS = ("best", "best_tuned")


def figures_of(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Of each cut the mean accuracy before and after on the report split, the points gained by tuning, and by keeping what does
    better on the search split (``kept_gain_points``): means over seeds, and over all networks."""
    found = {
        (row["split"], row["method"], row["cut"], row["seed"]): row["accuracy_pct"]
        for row in rows
        if "architecture" in row
    }
    figures: dict[str, float] = {}
    every: dict[str, list[float]] = {"gain_points": [], "kept_gain_points": []}
    for cut in CUTS:
        seeds = sorted(
            seed for split, method, of, seed in found if (split, method, of) == ("search", "best_tuned", cut)
        )
        if not seeds:
            continue
        for method in METHODS:
            figures[f"{method}.{cut}.accuracy_pct.mean"] = statistics.fmean(
                found["report", method, cut, seed] for seed in seeds
            )

        def gain(split: str, seed: int, cut: str = cut) -> float:
            return found[split, "best_tuned", cut, seed] - found[split, "best", cut, seed]

        gains = [gain("report", seed) for seed in seeds]
        kept = [gained if gain("search", seed) >= 0 else 0.0 for gained, seed in zip(gains, seeds, strict=True)]
        for name, values in (("gain_points", gains), ("kept_gain_points", kept)):
            every[name] += values
            figures |= {f"{cut}.{name}.mean": statistics.fmean(values), f"{cut}.{name}.seeds": len(values)}
    return figures | {f"{name}.mean": statistics.fmean(values) for name, values in every.items() if values}


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=[*SUBJECTS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--cuts", nargs="+", choices=[*CUTS], default=[*CUTS])
    wanted = parser.parse_args(arguments)
    quiet_libraries()
    bench = Bench(Material(SUBJECTS[wanted.task]), progress(), RUN)
    for seed in wanted.seeds:
        for method in METHODS:
            bench.measure(method, seed, wanted.cuts)
        for cut in wanted.cuts:
            bench.winner_unchosen(seed, cut)
    rows = bench.rows()
    claim = (
        f"On {bench.name}, an epoch of tuning alone helps some of the networks that were chosen of one elastic fine-tuning by `best` "
        "and harms others; keeping the better of both by the search split helps on the report split in the mean."
    )
    print(
        write_result(
            f"tuned_winners_{bench.name}", claim, {**figures_of(rows), "train_rows": len(bench.data.train)}, rows
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
