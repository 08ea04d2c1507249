"""Claim: searching costs little beside evaluating, evaluating little beside the straightforward loop, and another target minutes.

``python -m benchmarks.search_cost overhead evaluation second-target --run RUN`` (`make bench-setup` first) measures the parts named and
writes results/search_cost.json, where the other parts stay as they were. RUN is the directory of a finished run on MiniLM-L6 and
SST-2, such as `make bench-minilm` or benchmarks/recipes/minilm-avx2.yaml leave; it is copied, and its copy gets the second target.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.results import RESULTS, write_result
from instatune_deploy.faces.cli.app import progress, quiet_libraries
from instatune_deploy.pipeline import open_run, select
from instatune_deploy.stages.predict import fit_predictor
from instatune_deploy.stages.search import SearchSettings, search
from instatune_deploy.values.budget import Budget
from instatune_deploy.values.costs import Costs, Goal
from instatune_deploy.values.front import Evaluation
from instatune_deploy.values.latency import LatencyTable
from instatune_deploy.values.macs import ModelShape
from instatune_deploy.values.presets import preset
from instatune_deploy.values.space import Architecture
from instatune_deploy.workspace import data_directories

RUN = Path("runs/search-cost")
#: MiniLM-L6 with a head of two classes.
MINILM = ModelShape("bert", 384, 32, 6, 12, 1536, 128, fixed_macs=148_224, fixed_parameters=12_067_202)
EVALUATIONS, BUDGET, SEED = 250, "50%", 0
#: Seconds of measuring the probes of a deployment of the second target, and a selected network beside the full one.
PROFILE_SECONDS, CONFIRM_SECONDS = 10.0, 10.0
Row = dict[str, Any]


def overhead() -> Row:
    """Seconds that a search of 250 evaluations takes beside them: fits, inner searches, choices.

    Three objectives, every deployment of cpu-avx512 for which a table ships, and evaluations that cost nothing.
    """
    space = preset("bert-base").scaled(6, 12, 1536)
    paths = sorted(
        path for directory in data_directories("latency_tables")
        for path in (directory / "cpu-avx512" / MINILM.signature).glob("*.json")
    )  # fmt: skip
    tables = {
        path.name: LatencyTable.from_json(path.read_text(encoding="utf-8"), str(path)) for path in reversed(paths)
    }
    evaluating = 0.0

    def evaluate(wanted: list[Architecture]) -> list[Evaluation]:
        nonlocal evaluating
        began = time.perf_counter()
        found = [Evaluation(a, "accuracy", made_up_accuracy(a), "search", 872) for a in wanted]
        evaluating += time.perf_counter() - began
        return found

    began, cpu = time.perf_counter(), time.process_time()
    found = search(
        space, [Goal(Costs(space, MINILM, list(tables.values()), "p50"))], evaluate=evaluate,
        fit=lambda known: fit_predictor(space, known, seed=SEED), evaluations=[], seed=SEED,
        settings=SearchSettings(evaluations=EVALUATIONS, patience=0),
    )  # fmt: skip
    seconds = time.perf_counter() - began - evaluating
    return {
        "what": "overhead", "seed": SEED, "split": "none", "n": len(found.evaluations), "rounds": len(found.rounds),
        "deployments": len(tables), "overhead_s": seconds, "cpu_s": time.process_time() - cpu - evaluating,
    }  # fmt: skip


def made_up_accuracy(architecture: Architecture) -> float:
    """More is better, less so later; what it says is of no matter to the overhead."""
    return 0.9 - 0.3 * math.exp(-sum(heads / 12 + ffn / 1536 for heads, ffn in architecture.layers) / 4)


def evaluation(run: Path) -> Row:
    """How many times the throughput of the straightforward loop evaluating sub-networks has; on the super-network of `run`,
    if there is one."""
    from benchmarks.evaluation_speed import evaluation_speedup

    supernet = run / "supernet"
    return {
        "what": "evaluation",
        **evaluation_speedup(supernet if supernet.is_dir() else None, report=progress()),
    }


def second_target(run: Path) -> Row:
    """Seconds from a finished run to a confirmed artifact for a target that it does not know: profile, search, select,
    export. Its deployments are those of the run's own target, under another name, so that no table is there yet."""
    copy = RUN / "run"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(run, copy)
    job = open_run(copy, progress())
    profile = job.recipe.profile.model_copy(update={"seconds": PROFILE_SECONDS, "confirm_seconds": CONFIRM_SECONDS})
    job.recipe = job.recipe.model_copy(update={"profile": profile})
    path = copy / "second.yaml"
    first = job.target(next(iter(job.recipe.targets)))
    shipped = next(p for d in data_directories("targets") if (p := d / f"{first.name}.yaml").is_file())
    path.write_text(
        shipped.read_text(encoding="utf-8").replace(f"name: {first.name}\n", "name: second\n"), encoding="utf-8"
    )
    known = len((copy / "evaluations.jsonl").read_text(encoding="utf-8").splitlines())
    began = time.perf_counter()
    target = job.target(str(path))
    selection = select(job, target, job.search([target])[target.name], Budget.parse(BUDGET))
    seconds = time.perf_counter() - began
    evaluated = len((copy / "evaluations.jsonl").read_text(encoding="utf-8").splitlines()) - known
    return {
        "what": "second target", "seed": job.recipe.seed, "split": "report", "n": selection.measured.n, "seconds": seconds,
        "evaluated": evaluated, "profile_seconds": PROFILE_SECONDS, "confirm_seconds": CONFIRM_SECONDS,
        "selection": selection.to_dict(),
        "tables": {table.deployment.name: asdict(table.error) for table in job.tables(target)},
    }  # fmt: skip


def part_of(name: str) -> str:
    """The part that a figure, or what a row says, is of."""
    return "second-target" if name.startswith("second") else name.replace(" ", "_").partition("_")[0]


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=["overhead", "evaluation", "second-target"])
    parser.add_argument("--run", type=Path, default=Path("runs/minilm-sst2"))
    wanted = parser.parse_args(arguments)
    quiet_libraries()
    measures: dict[str, Callable[[], Row]] = {
        "overhead": overhead, "evaluation": lambda: evaluation(wanted.run), "second-target": lambda: second_target(wanted.run),
    }  # fmt: skip
    before = json.loads(path.read_text(encoding="utf-8")) if (path := RESULTS / "search_cost.json").is_file() else {}
    figures: dict[str, float] = {}
    rows: list[Row] = []
    for part, measure in measures.items():
        if part not in wanted.parts:
            rows += [row for row in before.get("rows", []) if part_of(row["what"]) == part]
            figures |= {name: value for name, value in before.get("figures", {}).items() if part_of(name) == part}
            continue
        row = measure()
        rows += row["rows"] if part == "evaluation" else [row]
        if part == "overhead":
            figures |= {"overhead_250_s": row["overhead_s"], "overhead_250_cpu_s": row["cpu_s"]}
        elif part == "evaluation":
            figures |= row["figures"]
        else:
            figures |= {"second_target_s": row["seconds"], "second_target_evaluations": row["evaluated"]}
    claim = (
        "A search of 250 evaluations takes under 60 seconds beside them, sub-networks are evaluated at least 12 times as "
        "fast as by the straightforward loop, and a second target for a finished run takes under 5 minutes and no evaluation."
    )
    print(write_result("search_cost", claim, figures, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
