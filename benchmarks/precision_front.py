"""Claim: with precision in the search, what a run selects for a loss of accuracy is at least 2.2 times as fast as what it selects
among fp32 deployments alone.

``python -m benchmarks.precision_front --run RUN`` (`make bench-setup` first) writes results/precision_front.json. RUN is the directory
of a finished run on MiniLM-L6 and SST-2 that searched one target in several precisions. It is copied, and its copy searches the
same deployments again without those that are not fp32, as a target of its own: both fronts are of the same evaluations. For each
loss of accuracy, measured on the report split, the fastest network that keeps it is selected from both, and all files selected
are measured in one go: passes, each of which visits every deployment in a new order, a process a visit.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.deployed_speed import Entry, measured
from benchmarks.results import write_result
from instatune_deploy.errors import InfeasibleBudgetError
from instatune_deploy.faces.cli.app import progress, quiet_libraries
from instatune_deploy.job import Job
from instatune_deploy.pipeline import open_run, select
from instatune_deploy.stages.export import open_artifact
from instatune_deploy.values.budget import Budget
from instatune_deploy.values.selection import Selection
from instatune_deploy.values.space import Architecture
from instatune_deploy.values.target import Target
from instatune_deploy.workspace import data_directories

RUN = Path("runs/precision-front")
#: Points of accuracy that may be lost, by their names in the figures.
LOSSES = {"at_0_5_points": 0.5, "at_1_point": 1.0, "at_2_points": 2.0, "at_3_points": 3.0}
Row = dict[str, Any]


def fp32_target(job: Job, target: Target) -> Target:
    """`target` without the deployments that are not fp32, from a file in the run's directory."""
    shipped = next(p for d in data_directories("targets") if (p := d / f"{target.name}.yaml").is_file())
    data = yaml.safe_load(shipped.read_text(encoding="utf-8"))
    path = job.workspace.root / f"{target.name}-fp32.yaml"
    kept = [deployment for deployment in data["deployments"] if deployment["precision"] == "fp32"]
    path.write_text(yaml.safe_dump({**data, "name": path.stem, "deployments": kept}), encoding="utf-8")
    return job.target(str(path))


def selections(job: Job, target: Target) -> dict[str, Selection]:
    """The fastest network of the target's front for each loss; a loss that nothing keeps is left out."""
    front, found = job.search([target])[target.name], {}
    for name, points in LOSSES.items():
        try:
            found[name] = select(job, target, front, Budget.parse(f"loss<={points:g}, fastest"))
        except InfeasibleBudgetError as error:
            job.report(f"{target.name}, {name}: {error}")
    return found


def figures_of(rows: Sequence[Row]) -> dict[str, float]:
    """How many times as fast the selection among all precisions is: the median over passes, for each loss that both keep, and
    the geometric mean over these."""
    figures: dict[str, float] = {}
    ratios = []
    for name in LOSSES:
        found = {row["front"]: row for row in rows if name in row["losses"]}
        if len(found) < 2:
            continue
        pairs = zip(found["fp32"]["pass_p50_ms"], found["all"]["pass_p50_ms"], strict=True)
        ratios.append(statistics.median(slow / fast for slow, fast in pairs))
        figures[f"speedup.{name}"] = ratios[-1]
        for front, row in found.items():
            figures |= {f"{front}.{name}.p50_ms": row["p50_ms"], f"{front}.{name}.accuracy": row["accuracy"]}
    if ratios:
        figures["speedup.mean"] = math.exp(statistics.fmean(map(math.log, ratios)))
    return figures


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of measuring a file in a pass")
    wanted = parser.parse_args(arguments)
    quiet_libraries()
    copy = RUN / "run"
    if not copy.is_dir():
        shutil.copytree(wanted.run, copy)
    job = open_run(copy, progress())
    target = job.target(next(iter(job.recipe.targets)))
    chosen = {"all": selections(job, target), "fp32": selections(job, fp32_target(job, target))}
    entries: dict[tuple[str, str], Entry] = {}
    places: dict[tuple[str, str], list[tuple[str, str]]] = {}  # the fronts and losses that each was selected for
    for front, found in chosen.items():
        for loss, selection in found.items():
            artifact = open_artifact(job.workspace.root / selection.artifact)
            how = artifact.manifest.deployment
            entry = Entry("selected", str(Architecture.parse(selection.architecture)), how, artifact.model_file())
            key = entry.architecture, how.name
            entries.setdefault(key, entry)
            places.setdefault(key, []).append((front, loss))
    rows: list[Row] = []
    for row in measured(job, list(entries.values()), passes=wanted.passes, seconds=wanted.seconds, threads=(1,)):
        for front in chosen:
            if losses := [loss for of, loss in places[row["architecture"], row["deployment"]] if of == front]:
                rows.append({**row, "front": front, "losses": losses})
    full = next(iter(chosen["all"].values())).full
    rows.append(
        {"what": "full network", "seed": job.recipe.seed, "split": "report", "n": full.n, "accuracy": full.metric}
    )
    figures = figures_of([row for row in rows if "front" in row])
    figures["full.accuracy"] = full.metric
    claim = (
        "On MiniLM-L6 and SST-2, one thread, 128 tokens, for the same loss of accuracy on the report split the fastest network among "
        "all precisions is at least 2.2 times as fast as the fastest among fp32 deployments."
    )
    print(f"{write_result('precision_front', claim, figures, rows)}\n{json.dumps(figures, indent=1)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
