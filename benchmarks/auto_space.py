"""Claim: at equal training and equal evaluations, the front of `space: auto` is at least as good as that of the paper's space.

``python -m benchmarks.auto_space`` (`make bench-setup` first) trains MiniLM-L6 on SST-2 in both spaces from the same teacher, searches
both for one deployment of one target with the same latency table, cell by cell (space, seed), keeps each in runs/auto-space, and
writes results/auto_space.json with what there is after each. Stopped at any point, the same command goes on. ``--seeds`` and
``--spaces`` choose cells.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from benchmarks.results import write_result
from benchmarks.tuning_tasks import SUBJECTS
from instatune_deploy.elastic.pretrained import load_config, space_for
from instatune_deploy.elastic.probing import random_model
from instatune_deploy.faces.cli.app import progress, quiet_libraries
from instatune_deploy.job import Job
from instatune_deploy.profiling import Prober, target_tables
from instatune_deploy.stages.evaluate import Evaluator
from instatune_deploy.stages.finetune import fine_tuned
from instatune_deploy.values.front import hypervolume
from instatune_deploy.values.latency import LatencyTable
from instatune_deploy.values.recipe import ProfileSection, Recipe
from instatune_deploy.values.space import SearchSpace
from instatune_deploy.values.target import Target, find_target
from instatune_deploy.workspace import Workspace, data_directories, write_json, write_text

RUN = Path("runs/auto-space")
SPACES = {"auto": "auto", "preset": "paper"}
#: Shares of the full network's latency, in %, at which the best network of each front is looked up.
SHARES = (75, 60, 50, 40, 30)
PROFILE = ProfileSection(seconds=120)
Report = Callable[[str], None]


class Bench:
    """The cells; each is made once and kept."""

    def __init__(self, target: str, deployment: str, report: Report) -> None:
        self.report, self.subject = report, SUBJECTS["sst2"]
        wanted = find_target(target, data_directories("targets"))
        chosen = [found for found in wanted.deployments if found.name == deployment]
        # A target of its own name, for which nothing but the table below is found.
        self.target = replace(wanted, name=f"{wanted.name}-{deployment}", deployments=tuple(chosen))

    @cached_property
    def target_path(self) -> Path:
        """The target as a file, which recipes name."""
        path = RUN / f"{self.target.name}.yaml"
        write_text(path, yaml.safe_dump(json.loads(json.dumps(asdict(self.target)))))
        return path

    @cached_property
    def table(self) -> LatencyTable:
        """One table for both searches, and for the proposal: it covers every choice of either space."""
        config = load_config(self.subject.model)
        spaces = [space_for(config, name) for name in SPACES.values()]
        both = SearchSpace.homogeneous(
            spaces[0].layers,
            sorted({depth for space in spaces for depth in space.depths[0]}),
            sorted({count for space in spaces for count in space.head_choices}),
            sorted({width for space in spaces for width in space.ffn_choices}),
        )
        tokens, probes = self.subject.data.sequence_length, RUN / ".probes"
        prober = Prober(random_model(config), both, tokens, probes, self.report, seed=0)
        (table,) = target_tables(self.target, prober, PROFILE, RUN / "tables", seed=0, report=self.report)
        shutil.rmtree(probes, ignore_errors=True)
        return table

    def job(self, space: str, seed: int) -> Job:
        """The job of a cell; teacher and latency table are those of all cells of the seed."""
        subject = self.subject
        recipe = Recipe.model_validate(
            {
                "name": f"{space}-{seed}", "model": subject.model, "task": subject.task, "data": subject.data.model_dump(),
                "space": SPACES[space], "targets": {str(self.target_path): ["50%"]}, "seed": seed,
            }
        )  # fmt: skip
        job = Job(recipe, Workspace(RUN / recipe.name), self.report)
        write_text(job.workspace.path("tables", self.table.file_name), self.table.to_json())
        shared = Workspace(RUN / f"teacher-{seed}")
        fine_tuned(
            recipe.finetune, job.load_model, job.data, job.processor, shared, key=job.inputs_key, seed=seed,
            report=self.report,
        )  # fmt: skip
        if not job.workspace.path("teacher").exists():
            for part in ("teacher", ".stages"):
                shutil.copytree(shared.path(part), job.workspace.path(part), dirs_exist_ok=True)
        return job

    def cell(self, space: str, seed: int) -> dict[str, Any]:
        """The front of a space and seed, with the accuracy of each of its networks on the report split."""
        path = RUN / "cells" / f"{space}-{seed}.json"
        if not path.is_file():
            self.report(f"cell {space}, seed {seed}")
            write_json(path, self._measure(space, seed))
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found

    def _measure(self, space: str, seed: int) -> dict[str, Any]:
        job = self.job(space, seed)
        target: Target = job.target(str(self.target_path))
        front = job.search([target])[target.name]
        reported = Evaluator(
            job.supernet, job.report_split, job.processor, metric="accuracy", path=job.workspace.path("report.jsonl")
        )([candidate.architecture for candidate in front.candidates])
        full_ms = self.table.estimate_ms(job.supernet.full, job.recipe.percentile)
        networks = [
            {
                "architecture": str(candidate.architecture), "macs": candidate.predicted.macs,
                "latency_share": candidate.predicted.latency_ms / full_ms, "search_accuracy": candidate.predicted.metric,
                "report_accuracy": evaluation.value,
            }
            for candidate, evaluation in zip(front.candidates, reported, strict=True)
        ]  # fmt: skip
        return {
            "space": space, "seed": seed, "choices": job.supernet.space.to_dict(), "size": job.supernet.space.size,
            "evaluations": len(job.evaluator.known), "n_search": len(job.data.search), "n_report": len(job.report_split),
            "front": networks,
        }  # fmt: skip


def measures(cell: dict[str, Any]) -> dict[str, float]:
    """What a front is worth.

    The share (0..1) that it dominates of the box from accuracy 0 and the full network's latency to accuracy 1 and
    none, by accuracies on either split; and the report accuracy (%) of the network within each share of the latency that
    is best on the search split.
    """
    front, found = cell["front"], {}
    for split in ("search", "report"):
        points = [(1 - network[f"{split}_accuracy"], network["latency_share"]) for network in front]
        found[f"hv_{split}"] = hypervolume(points, (1.0, 1.0))
    for share in SHARES:
        fits = [network for network in front if 100 * network["latency_share"] <= share]
        if fits:
            found[f"accuracy_pct.{share}"] = 100 * max(fits, key=lambda n: n["search_accuracy"])["report_accuracy"]
    return found


def figures_of(cells: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Mean and standard deviation over seeds of each measure of each space, over the seeds that have it."""
    figures: dict[str, float] = {}
    for space in SPACES:
        mine = [cell for cell in cells if cell["space"] == space]
        found = [measures(cell) for cell in mine]
        for name in dict.fromkeys(key for each in found for key in each):
            values = [each[name] for each in found if name in each]
            figures |= {f"{space}.{name}.mean": statistics.fmean(values), f"{space}.{name}.seeds": len(values)}
            figures[f"{space}.{name}.std"] = statistics.stdev(values) if len(values) > 1 else 0.0
        if mine:
            figures[f"{space}.evaluations"] = statistics.fmean(cell["evaluations"] for cell in mine)
    return figures


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--spaces", nargs="+", choices=[*SPACES], default=[*SPACES])
    parser.add_argument("--target", default="cpu-avx512")
    parser.add_argument("--deployment", default="ov-fp32-1t")
    wanted = parser.parse_args(arguments)
    quiet_libraries()
    bench = Bench(wanted.target, wanted.deployment, progress())
    for seed in wanted.seeds:
        for space in wanted.spaces:
            bench.cell(space, seed)
            write()
    return 0


def write() -> None:
    """Write the result of every cell there is."""
    cells = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((RUN / "cells").glob("*.json"))]
    claim = (
        "On MiniLM-L6 and SST-2, at equal training and equal evaluations, the front of accuracy and predicted latency of "
        "the space that `space: auto` proposes is at least as good as that of the paper's space."
    )
    print(write_result("auto_space", claim, figures_of(cells), cells))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
