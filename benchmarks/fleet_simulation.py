"""A fleet of simulated devices: what filling the matrix of many targets and budgets takes, where one of them changed, too.

The super-network is MiniLM-L6 after a minute of tuning, whose sub-networks are really evaluated. A device is this
project's measured tables for it, each slower or faster by a factor drawn for the device and one drawn for the deployment.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import yaml

from instatune_deploy.values.latency import LatencySample, LatencyTable
from instatune_deploy.workspace import data_directories

ROOT = Path(__file__).parents[1]
SIGNATURE = "bert-h384-d32-6x12x1536-t128"
BUDGETS = ["25%", "50%", "10ms", "loss<=1, smallest", "50%, size<=50%"]
#: The whole fleet, and a part of it to tell growth by.
COUNTS = (50, 200)
#: Spread of the devices' speeds, and of the deployments' on one device (standard deviation of the logarithm).
DEVICE_SPREAD, DEPLOYMENT_SPREAD = 0.5, 0.15
Row = dict[str, Any]


def simulate(directory: Path) -> tuple[list[Row], dict[str, float]]:
    """Rows and figures of `COUNTS` targets with five budgets each, none exported; works in `directory`."""
    home = directory.resolve()
    _make_run(home)
    _make_devices(home, max(COUNTS))
    rows = []
    for count in COUNTS:
        run = home / "runs" / f"of-{count}"
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(home / "runs" / "base", run)
        rows.append({"what": "fleet", "targets": count, **_fill(home, run, count)})
    rows.append({"what": "fleet again", "targets": count, **_fill(home, run, count)})
    (changed,) = (home / "latency_tables" / "sim-000").rglob("ov-int8-1t.json")
    table = LatencyTable.from_json(changed.read_text(encoding="utf-8"), str(changed))
    changed.write_text(_at_speed(table, table.target, 1.3).to_json(), encoding="utf-8")
    rows.append({"what": "fleet, one table changed", "targets": count, **_fill(home, run, count)})
    few, many = rows[0], rows[1]
    figures = {
        "fleet.200_targets_s": many["seconds"], "fleet.200_targets_peak_mb": many["peak_bytes"] / 1e6,
        "fleet.200_targets_files": many["files"], "fleet.again_s": rows[2]["seconds"],
        "fleet.one_changed_s": rows[3]["seconds"], "fleet.one_changed_fronts": rows[3]["fronts_written"],
        # 1: twice as many targets take twice as long.
        "fleet.seconds_a_target_ratio": many["seconds"] / many["targets"] / (few["seconds"] / few["targets"]),
    }  # fmt: skip
    return rows, figures


def _make_run(home: Path) -> None:
    """A run whose sub-networks were searched for one device, unless it is there."""
    base = home / "runs" / "base"
    if (base / "fronts").is_dir():
        return
    home.mkdir(parents=True, exist_ok=True)
    data = ROOT / "benchmarks" / "data" / "sst2"
    rows = datasets.load_dataset("parquet", data_files=str(data / "train.parquet"), split="train[:1000]")
    rows.to_parquet(home / "train.parquet")
    _make_devices(home, 1)
    recipe = {
        "name": "base", "model": str(ROOT / "benchmarks" / "models" / "minilm-l6"), "task": "text-classification",
        "data": {"train": str(home / "train.parquet"), "text": "sentence", "search_rows": 300, "report_rows": 300},
        "finetune": {"preset": "paper", "epochs": 2, "learning_rate": 1.0e-4},
        "profile": {"foreign_tables": True}, "targets": {"sim-000": ["50%"]},
    }  # fmt: skip
    (home / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    _call(home, "finetune", "recipe.yaml", "--out", "runs/base")
    _call(home, "search", "--run", "runs/base", "--foreign-tables")


def _make_devices(home: Path, count: int) -> None:
    """Targets and tables of so many devices; the same ones every time."""
    shipped = next(d for d in data_directories("latency_tables") if (d / "cpu-avx512" / SIGNATURE).is_dir())
    paths = sorted((shipped / "cpu-avx512" / SIGNATURE).glob("*.json"))
    tables = [LatencyTable.from_json(path.read_text(encoding="utf-8"), str(path)) for path in paths]
    deployments = [{"runtime": t.deployment.runtime, "precision": t.deployment.precision} for t in tables]
    for number in range(count):
        name, rng = f"sim-{number:03}", random.Random(number)
        target = {"name": name, "description": "simulated", "device": "cpu", "instruction_sets": ["simulated"], "deployments": deployments}  # fmt: skip
        (home / "targets").mkdir(exist_ok=True)
        (home / "targets" / f"{name}.yaml").write_text(yaml.safe_dump(target), encoding="utf-8")
        speed = rng.lognormvariate(0, DEVICE_SPREAD)
        for table in tables:
            made = _at_speed(table, name, speed * rng.lognormvariate(0, DEPLOYMENT_SPREAD))
            place = home / "latency_tables" / made.file_name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(made.to_json(), encoding="utf-8")


def _at_speed(table: LatencyTable, target: str, factor: float) -> LatencyTable:
    """`table` as of another target on which everything takes `factor` times as long."""

    def slower(samples: tuple[LatencySample, ...]) -> tuple[LatencySample, ...]:
        fields = ("label_ms", "p50_ms", "p90_ms", "p99_ms")
        return tuple(
            replace(s, **{f: factor * getattr(s, f) for f in fields}, half_labels_ms=(factor * s.half_labels_ms[0], factor * s.half_labels_ms[1]))
            for s in samples
        )  # fmt: skip

    return replace(
        table, target=target, deployment=replace(table.deployment, needs=()), fixed_ms=factor * table.fixed_ms,
        layer_ms={name: factor * ms for name, ms in table.layer_ms.items()}, switch_ms=factor * table.switch_ms,
        samples=slower(table.samples), heldout=slower(table.heldout),
    )  # fmt: skip


def _fill(home: Path, run: Path, count: int) -> Row:
    """The matrix of `count` targets: seconds, peak memory and files that it took."""
    plan = {
        "run": str(run), "targets": [f"sim-{number:03}" for number in range(count)], "budgets": BUDGETS, "foreign_tables": True,
    }  # fmt: skip
    (home / "fleet.yaml").write_text(yaml.safe_dump(plan), encoding="utf-8")
    before = {path: path.stat().st_mtime_ns for path in (run / "fronts").glob("*")}
    files = sum(1 for path in run.rglob("*") if path.is_file())
    began = time.perf_counter()
    peak_bytes = _call(home, "--quiet", "fleet", "fleet.yaml", "--no-export", "--json", codes=(0, 3))
    seconds = time.perf_counter() - began
    after = {path: path.stat().st_mtime_ns for path in (run / "fronts").glob("*")}
    return {
        "split": "search", "n": 300, "seed": 0, "budgets": len(BUDGETS), "seconds": seconds,
        "peak_bytes": peak_bytes,
        "files": sum(1 for path in run.rglob("*") if path.is_file()) - files,
        "fronts_written": sum(before.get(path) != written for path, written in after.items()),
    }  # fmt: skip


def _call(home: Path, *words: str, codes: tuple[int, ...] = (0,)) -> int:
    """Peak memory of `instatune-deploy` with these words, in bytes."""
    with subprocess.Popen(
        [sys.executable, "-m", "instatune_deploy", *words], cwd=home, stdout=subprocess.DEVNULL
    ) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in codes:
        raise SystemExit(f"instatune-deploy {' '.join(words)} ended with {process.returncode}")
    return 1024 * usage.ru_maxrss
