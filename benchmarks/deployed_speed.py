"""Claim: what a run selects is several times faster than what users deploy today, and than the full model at its best.

``python -m benchmarks.deployed_speed sst2 --supernet runs/finetune-accuracy/sst2/best-0/supernet`` (`make bench-setup` first) takes a
super-network that was trained already through the rest of a run: latency tables of this machine, search, and a selection for
each loss of accuracy. What it selects is then measured beside the full model as ``optimum-cli export onnx`` gives it and beside
the full model in every runtime and precision, in one go: passes, each of which visits every deployment in a new order, a
process a visit. Writes results/deployed_speed.json, where a task that is not named keeps its rows. Stopped at any point
before that last measurement, the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.finetune_cells import PRECISION
from benchmarks.results import read_rows, write_result
from benchmarks.tuning_tasks import SUBJECTS, Material
from instatune_deploy.device.lowering.onnx import export_onnx
from instatune_deploy.device.lowering.variants import ONNX, lower, parts
from instatune_deploy.device.runtimes.base import get_runtime
from instatune_deploy.device.settings import TimingSettings
from instatune_deploy.device.timing import measure
from instatune_deploy.errors import InfeasibleBudgetError
from instatune_deploy.exporting import export_network
from instatune_deploy.faces.cli.app import progress, quiet_libraries
from instatune_deploy.job import Job
from instatune_deploy.pipeline import select, start_job
from instatune_deploy.stages.confirm import measured_metric
from instatune_deploy.stages.export import Artifact, open_artifact
from instatune_deploy.stages.finetune import supernet_key
from instatune_deploy.values.budget import Budget
from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.fixed import FixedSizes
from instatune_deploy.values.hashing import content_key
from instatune_deploy.values.recipe import Recipe
from instatune_deploy.values.selection import Selection
from instatune_deploy.values.space import Architecture
from instatune_deploy.values.target import Target
from instatune_deploy.workspace import Workspace, new_directory, tree_key

RUN, NAME = Path("runs/deployed-speed"), "deployed_speed"
#: Has every deployment that this machine can run.
TARGET = "cpu-avx512"
#: Points of accuracy that may be lost, by their names in the figures.
LOSSES = {"at_0_5_points": 0.5, "at_1_point": 1.0, "at_2_points": 2.0}
#: What is selected for: each loss, and shares of the full network's latency, for which one candidate is tuned and not a dozen.
BUDGETS = {
    **{name: f"loss<={points:g}, fastest" for name, points in LOSSES.items()},
    **{f"at_{share}_pct": f"{share}%" for share in (30, 37, 40, 45, 50)},
    "at_1_point_and_40_pct": "loss<=1, latency<=40%, fastest",
    "at_2_points_and_30_pct": "loss<=2, latency<=30%, fastest",
}
THREADS = (1, 2)
FULL = [
    Deployment("onnxruntime"), Deployment("onnxruntime", "int8"), Deployment("openvino"),
    Deployment("openvino", "bf16"), Deployment("openvino", "int8"),
]  # fmt: skip
Row = dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """A file that is measured: `what` is ``default`` (as Optimum exports the full model), ``full`` (as we do) or
    ``selected``; `sizes` says what its inputs are fixed to."""

    what: str
    architecture: str
    deployment: Deployment
    file: Path
    sizes: str = "any"

    @property
    def name(self) -> str:
        return f"{self.what}: {self.architecture} on {self.deployment.name}, {self.sizes}"


def make_job(task: str, supernet: Path, wanted: argparse.Namespace) -> Job:
    """A run whose super-network is the one given."""
    subject = SUBJECTS[task]
    recipe = Recipe.model_validate({
        "name": f"deployed-speed-{task}", "model": subject.model, "task": subject.task, "data": subject.data.model_dump(),
        "space": subject.space, "finetune": {**PRECISION, "teacher": None if subject.fine_tuned else PRECISION},
        "search": {"evaluations": wanted.evaluations}, "tune_epochs": wanted.tune_epochs,
        "profile": {"seconds": wanted.profile_seconds, "confirm_seconds": wanted.confirm_seconds, "wait_seconds": 5},
        "targets": {TARGET: [*BUDGETS.values()]},
    })  # fmt: skip
    job = start_job(recipe, Workspace(RUN / task), progress())
    if subject.train_rows is not None:
        job.data = Material(subject).data  # the rows that the super-network was trained on
    planted = tree_key(supernet)
    if not job.workspace.is_done("planted", planted):
        path = job.workspace.path("supernet")
        with new_directory(path) as draft:
            shutil.copytree(supernet, draft, dirs_exist_ok=True)
        if wanted.teacher.is_dir():  # which tunes what is selected
            with new_directory(job.workspace.path("teacher")) as draft:
                shutil.copytree(wanted.teacher, draft, dirs_exist_ok=True)
        key = supernet_key(recipe.finetune, job.space, job.inputs_key)
        job.workspace.mark_done("finetune", key, [path])
        job.workspace.mark_done("planted", planted, [path])
    return job


def selections(job: Job, target: Target, budgets: Sequence[str]) -> dict[str, Selection]:
    """What the run selects for each budget; one that nothing keeps is left out."""
    front, found = job.search([target])[target.name], {}
    for name in budgets:
        try:
            found[name] = select(job, target, front, Budget.parse(BUDGETS[name]))
        except InfeasibleBudgetError as error:
            job.report(f"{name}: {error}")
    return found


def default_export(job: Job) -> Path:
    """The folder that Optimum's own command writes for the full network."""
    folder = job.workspace.path("default")
    if not job.workspace.is_done("default", job.supernet_key):
        with tempfile.TemporaryDirectory() as model, new_directory(folder) as draft:
            job.supernet.extract(job.supernet.full).save_pretrained(model)
            job.processor.save(Path(model))
            command = [str(Path(sys.executable).parent / "optimum-cli"), "export", "onnx", "--model", model]
            subprocess.run([*command, "--task", job.recipe.task, str(draft)], check=True, stdout=sys.stderr)
        job.workspace.mark_done("default", job.supernet_key, [folder])
    return folder


def exported(job: Job, target: Target, name: str, network: Architecture, how: Deployment, *, fixed: bool) -> Artifact:
    """An artifact of ours, made once."""
    path = job.workspace.path("beside", f"{name}-{'fixed' if fixed else 'any'}")
    key = content_key(job.supernet_key, str(network), how.name, job.recipe.tune_epochs)
    stage = f"beside-{path.name}"
    if not job.workspace.is_done(stage, key):
        tokens = job.recipe.data.sequence_length if job.processor.head.reads == "text" else None
        sizes = FixedSizes(how.batch, tokens) if fixed else None
        tuned = 0 if network == job.supernet.full else job.recipe.tune_epochs
        export_network(job, target, network, how, path, None, tune_epochs=tuned, fixed=sizes)
        job.workspace.mark_done(stage, key, [path])
    return open_artifact(path)


def entries_of(job: Job, target: Target, chosen: dict[str, Selection]) -> list[Entry]:
    """Every file to measure."""
    folder, full, image = default_export(job), job.supernet.full, job.processor.head.reads != "text"
    entries = []
    for how in FULL:
        file = lower(folder, get_runtime(how.runtime).model_file(how), job.calibration, image=image)
        entries.append(Entry("default", "full", how, file))
    int8 = Deployment("openvino", "int8")
    for fixed in (False, True):
        ours = exported(job, target, "full", full, int8, fixed=fixed)
        sizes = str(ours.manifest.fixed or "any")
        entries += [Entry("full", "full", how, ours.model_file(how), sizes) for how in FULL if how != FULL[1]]
    for name, selection in chosen.items():
        network = Architecture.parse(selection.architecture)
        how = next(found for found in target.deployments if found.name == selection.deployment)
        how = replace(how, needs=())
        dynamic = open_artifact(job.workspace.root / selection.artifact)
        entries.append(Entry("selected", str(network), how, dynamic.model_file()))
        if not (image and how.arithmetic == "ort-int8"):  # which no fixed sizes will do for
            ours = exported(job, target, name, network, how, fixed=True)
            entries.append(Entry("selected", str(network), how, ours.model_file(), str(ours.manifest.fixed)))
    # Two budgets may select the same network.
    return list({entry.name: entry for entry in entries}.values())


def teacher_accuracy(job: Job, teacher: Path) -> float:
    """Accuracy on the report split of the plainly fine-tuned model, which the super-network started from."""
    model = type(job.supernet.model).from_pretrained(teacher).eval()
    example = {name: value[:2] for name, value in next(job.processor.labelled_batches(job.data.train.rows, 2)).items()}
    example = {name: value for name, value in example.items() if name != "labels"}
    with tempfile.TemporaryDirectory() as folder:
        export_onnx(model, example, Path(folder, ONNX), outputs=job.processor.head.outputs)
        return measured_metric(Path(folder, ONNX), FULL[0], job.report_split, job.processor, job.recipe.metric)


def measured(
    job: Job, entries: Sequence[Entry], *, passes: int, seconds: float, threads: Sequence[int] = THREADS
) -> list[Row]:
    """A row for every file and number of threads: latency, accuracy, size."""
    accuracy = {}
    for entry in entries:
        job.report(f"accuracy of {entry.name}")
        accuracy[entry] = measured_metric(
            entry.file, entry.deployment, job.report_split, job.processor, job.recipe.metric
        )
    groups: dict[Deployment, list[Entry]] = {}
    for entry in entries:
        for count in threads:
            groups.setdefault(replace(entry.deployment, threads=count), []).append(entry)
    samples: dict[tuple[Entry, int], list[Any]] = {}
    rng = random.Random(job.recipe.seed)
    for number in range(passes):
        for how in rng.sample(list(groups), len(groups)):
            job.report(f"pass {number + 1} of {passes}: {how.name}, {len(groups[how])} files")
            found = measure(
                {entry.name: entry.file for entry in groups[how]}, job.prober.inputs(how), how, seed=number,
                settings=TimingSettings(seconds=seconds * len(groups[how]), sessions=2, wait_s=5.0),
            ).samples  # fmt: skip
            for entry in groups[how]:
                samples.setdefault((entry, how.threads), []).append(found[entry.name])
    rows = []
    for (entry, count), found in samples.items():
        first = samples[entries[0], count]
        rows.append({
            "what": entry.what, "architecture": entry.architecture, "deployment": replace(entry.deployment, threads=count).name,
            "threads": count, "sizes": entry.sizes, "seed": job.recipe.seed, "split": "report", "n": len(job.report_split),
            "accuracy": accuracy[entry], "size_bytes": sum(part.stat().st_size for part in parts(entry.file)),
            "p50_ms": float(np.median([sample.p50_ms for sample in found])),
            "p90_ms": float(np.median([sample.p90_ms for sample in found])),
            "speedup_vs_default_export": float(np.median([a.p50_ms / b.p50_ms for a, b in zip(first, found, strict=True)])),
            "passes": passes, "runs": sum(sample.n for sample in found),
            "pass_p50_ms": [sample.p50_ms for sample in found],
        })  # fmt: skip
    return rows


def export_times(job: Job, target: Target, network: Architecture) -> list[Row]:
    """Seconds from the super-network to a checked artifact: extracted, exported, converted, compared with torch, hashed."""
    rows = []
    for how in (Deployment("openvino"), Deployment("openvino", "int8")):
        with tempfile.TemporaryDirectory(dir=job.workspace.root) as folder:
            began = time.perf_counter()
            export_network(job, target, network, how, Path(folder, "out"), None)
            seconds = time.perf_counter() - began
        rows.append({
            "what": "export", "architecture": str(network), "precision": how.precision, "seconds": seconds,
            "seed": job.recipe.seed, "split": "train", "n": 0 if how.precision == "fp32" else sum(len(next(iter(b.values()))) for b in job.calibration),
        })  # fmt: skip
    return rows


def figures_of(rows: Sequence[Row]) -> dict[str, float]:
    """Of each task: how many times as fast as the default export, and as the fastest full model, what loses so little is.

    Losses are against the more accurate of the default export and the plainly fine-tuned model.
    """
    figures: dict[str, float] = {}
    for task in dict.fromkeys(row["task"] for row in rows):
        mine = [row for row in rows if row["task"] == task]
        timed = [row for row in mine if "p50_ms" in row]
        best = max(
            row["accuracy"]
            for row in mine
            if row["what"] == "teacher" or (row["what"] == "default" and "fp32" in row["deployment"])
        )
        figures[f"{task}.full_accuracy"] = best
        for threads in THREADS:
            suffix = "" if threads == 1 else f".{threads}_threads"
            some = [row for row in timed if row["threads"] == threads]
            full = max(
                (row for row in some if row["what"] != "selected"), key=lambda row: row["speedup_vs_default_export"]
            )
            default = next(row for row in some if row["what"] == "default" and row["deployment"].startswith("ort-fp32"))
            figures[f"{task}.default_export_p50_ms{suffix}"] = default["p50_ms"]
            figures[f"{task}.best_full_p50_ms{suffix}"] = full["p50_ms"]
            for name, points in LOSSES.items():
                kept = [
                    row for row in some if row["what"] == "selected" and 100 * (best - row["accuracy"]) <= points + 1e-9
                ]
                if not kept:
                    continue
                found = max(kept, key=lambda row: row["speedup_vs_default_export"])
                ratios = [a / b for a, b in zip(full["pass_p50_ms"], found["pass_p50_ms"], strict=True)]
                figures |= {
                    f"{task}.speedup_vs_default_export.{name}{suffix}": found["speedup_vs_default_export"],
                    f"{task}.speedup_vs_best_full.{name}{suffix}": float(np.median(ratios)),
                    f"{task}.p50_ms.{name}{suffix}": found["p50_ms"],
                    f"{task}.lost_points.{name}{suffix}": 100 * (best - found["accuracy"]),
                    f"{task}.size_share.{name}{suffix}": found["size_bytes"] / default["size_bytes"],
                }  # fmt: skip
    for precision in ("fp32", "int8"):
        seconds = [row["seconds"] for row in rows if row["what"] == "export" and row["precision"] == precision]
        if seconds:
            figures[f"export_{precision}_s"] = max(seconds)
    return figures


def run_task(task: str, wanted: argparse.Namespace) -> list[Row]:
    """Every row of a task."""
    job = make_job(task, wanted.supernet, wanted)
    target = job.target(TARGET)
    chosen = selections(job, target, wanted.budgets)
    entries = entries_of(job, target, chosen)
    rows = measured(job, entries, passes=wanted.passes, seconds=wanted.seconds)
    if chosen:
        network = Architecture.parse(next(reversed(chosen.values())).architecture)
        rows += export_times(job, target, network)
    if wanted.teacher.is_dir():
        accuracy = teacher_accuracy(job, wanted.teacher)
        rows.append({"what": "teacher", "accuracy": accuracy, "seed": 0, "split": "report", "n": len(job.report_split)})
    selected = [
        {"what": "selection", "for": name, "seed": job.recipe.seed, "split": "report", "n": found.measured.n, **found.to_dict()}
        for name, found in chosen.items()
    ]  # fmt: skip
    front = [
        {"what": "front", "seed": job.recipe.seed, "split": "search", "n": len(job.data.search), **candidate.to_dict()}
        for candidate in job.search([target])[target.name].candidates
    ]  # fmt: skip
    return [{"task": task, **row} for row in [*rows, *selected, *front]]


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=[*SUBJECTS])
    parser.add_argument("--supernet", type=Path, help="default: that of the fine-tuning benchmark")
    parser.add_argument("--teacher", type=Path, help="the plainly fine-tuned model; default: beside the super-network")
    parser.add_argument("--evaluations", type=int, default=150, help="sub-networks that the search evaluates")
    parser.add_argument("--budgets", nargs="+", choices=[*BUDGETS], default=[*BUDGETS])
    parser.add_argument("--tune-epochs", type=float, default=2.0, help="for which a candidate is tuned alone")
    parser.add_argument("--profile-seconds", type=float, default=60.0, help="of measuring for a latency table")
    parser.add_argument("--confirm-seconds", type=float, default=10.0, help="of measuring a candidate")
    parser.add_argument("--seconds", type=float, default=3.0, help="of measuring a file in a pass")
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="write the result of the rows there are, and measure none")
    wanted = parser.parse_args(arguments)
    wanted.supernet = wanted.supernet or Path("runs/finetune-accuracy") / wanted.task / "best-0" / "supernet"
    wanted.teacher = wanted.teacher or wanted.supernet.parent / "teacher"
    quiet_libraries()
    before = read_rows(NAME)
    rows = before
    if not wanted.write:
        rows = [row for row in before if row["task"] != wanted.task] + run_task(wanted.task, wanted)
    claim = (
        "Selected sub-networks that lose at most 2 points are at least 10 times as fast as the full model as optimum-cli exports "
        "it and 3 times as fast as the fastest full model (128 tokens, one thread)."
    )
    figures = figures_of(rows)
    print(f"{write_result(NAME, claim, figures, rows)}\n{json.dumps(figures, indent=1)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
