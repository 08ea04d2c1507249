"""Claim: with precision in the search, the front is at least 2.2 times as fast at equal accuracy as that of fp32 deployments alone.

``python -m benchmarks.precision_front --run RUN`` (`make bench-setup` first) writes results/precision_front.json. RUN is the directory
of a finished run on MiniLM-L6 and SST-2 that searched one target in several precisions, such as benchmarks/recipes/minilm-avx2.yaml
makes. From its evaluations follow two fronts of accuracy and latency: of all deployments, and of those in fp32. Networks spread
over each are exported, and all files are measured in one go: accuracy on the report split, and latency in passes, each of which
visits every deployment in a new order, a process a visit.

For each fp32 file that no other fp32 file beats, the fastest file of all that is at least as accurate is held against it. The mean over
these is what precision in the search brings.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.deployed_speed import Entry, measured
from benchmarks.results import write_result
from instatune_deploy.exporting import export_network
from instatune_deploy.faces.cli.app import progress, quiet_libraries
from instatune_deploy.job import Job
from instatune_deploy.pipeline import open_run
from instatune_deploy.stages.export import open_artifact
from instatune_deploy.stages.predict import AccuracyPredictor
from instatune_deploy.stages.search import front_of
from instatune_deploy.values.costs import Costs, Goal
from instatune_deploy.values.front import Candidate
from instatune_deploy.values.latency import LatencyTable
from instatune_deploy.values.objectives import parse_objectives
from instatune_deploy.values.target import Target

RUN = Path("runs/precision-front")
Row = dict[str, Any]


def front(job: Job, tables: Sequence[LatencyTable], count: int) -> list[Candidate]:
    """Up to `count` networks of the front of accuracy and latency, spread over it from end to end."""
    costs = Costs(job.supernet.space, job.shape, tables, job.recipe.percentile)
    goal = Goal(costs, parse_objectives(["metric", "latency"]))
    predictor = AccuracyPredictor.load(job.workspace.path("predictor"), job.supernet.space)
    evaluations = [*job.evaluator.known.values(), *job.deployed_evaluator.known.values()]
    found = front_of(goal, evaluations, lambda known: predictor).candidates
    places = {round(i * (len(found) - 1) / max(count - 1, 1)) for i in range(count)}
    return [found[place] for place in sorted(places)]


def entry(job: Job, target: Target, candidate: Candidate) -> Entry:
    """The exported file of a candidate, made once."""
    network, how = candidate.architecture, candidate.deployment
    path = RUN / f"{network}-{how.name}".replace("[", "-").replace("]", "").replace(" ", "_")
    if not path.is_dir():
        export_network(job, target, network, how, path, candidate.predicted)
    return Entry("front", str(network), how, open_artifact(path).model_file())


def figures_of(rows: Sequence[Row]) -> dict[str, float]:
    """The speedup at the accuracy of each fp32 file on the measured fp32 front, and the geometric mean over these."""
    fp32 = [row for row in rows if "fp32" in row["deployment"]]
    figures: dict[str, float] = {}
    ratios = []
    for row in sorted(fp32, key=lambda row: row["p50_ms"]):
        if any(o["accuracy"] >= row["accuracy"] and o["p50_ms"] < row["p50_ms"] for o in fp32):
            continue
        as_good = [other for other in rows if other["accuracy"] >= row["accuracy"]]
        best = max(as_good, key=lambda other: speedup(row, other))
        ratios.append(speedup(row, best))
        level = f"{100 * row['accuracy']:.2f}"
        figures |= {
            f"speedup.{level}": ratios[-1],
            f"fp32.{level}.p50_ms": row["p50_ms"],
            f"all.{level}.p50_ms": best["p50_ms"],
        }
    return {"speedup.mean": math.exp(statistics.fmean(map(math.log, ratios))), "levels": len(ratios), **figures}


def speedup(slow: Row, fast: Row) -> float:
    """The median over passes."""
    pairs = zip(slow["pass_p50_ms"], fast["pass_p50_ms"], strict=True)
    return statistics.median(one / other for one, other in pairs)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--networks", type=int, default=6, help="of each front")
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of measuring a file in a pass")
    wanted = parser.parse_args(arguments)
    quiet_libraries()
    RUN.mkdir(parents=True, exist_ok=True)
    job = open_run(wanted.run, progress())
    target = job.target(next(iter(job.recipe.targets)))
    tables = job.tables(target)
    in_fp32 = [table for table in tables if table.deployment.precision == "fp32"]
    chosen = [*front(job, tables, wanted.networks), *front(job, in_fp32, wanted.networks)]
    entries = {made.name: made for made in (entry(job, target, candidate) for candidate in chosen)}
    rows = measured(job, list(entries.values()), passes=wanted.passes, seconds=wanted.seconds, threads=(1,))
    figures = figures_of(rows)
    claim = (
        "On MiniLM-L6 and SST-2, one thread, 128 tokens, the fastest file of any precision that is at least as accurate on the report "
        "split is at least 2.2 times as fast as the fp32 file, in the mean over the fp32 front."
    )
    print(f"{write_result('precision_front', claim, figures, rows)}\n{json.dumps(figures, indent=1)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
