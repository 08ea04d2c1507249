"""Claim: of a ResNet, a sub-network of one elastic fine-tuning that is tuned alone for an epoch loses no more than a point at half
the multiply-accumulates, and its latency tables predict networks that no fit has seen as closely as those of transformers.

``python -m benchmarks.resnet_cifar10`` (`make bench-setup` and ``python -m benchmarks.pretrain_resnet`` first) trains and measures cell by
cell (method, seed, point) and deployment by deployment, keeps each in runs/resnet-cifar10, and writes results/resnet_cifar10.json
with what there is. Stopped at any point, the same command goes on. ``--methods``, ``--seeds``, ``--cuts`` and ``--deployments`` choose
what is measured; ``--write`` measures nothing.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.finetune_cells import Bench, figures_of
from benchmarks.results import write_result
from benchmarks.tuning_tasks import SUBJECTS, Material
from instatune_deploy.faces.cli.app import progress, quiet_libraries
from instatune_deploy.profiling import Prober, describe_table
from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.latency import LatencyTable, table_file
from instatune_deploy.values.recipe import ProfileSection
from instatune_deploy.values.target import Target

RUN = Path("runs/resnet-cifar10")
NAME = "resnet_cifar10"
METHODS = ("best", "best_tuned", "paper", "prune_distil")
CUTS = {"25": 0.25, "50": 0.50, "70": 0.70}
DEPLOYMENTS = {
    "ort-fp32": Deployment("onnxruntime"),
    "ort-int8": Deployment("onnxruntime", "int8"),
    "ov-f32": Deployment("openvino"),
    "ov-bf16": Deployment("openvino", "bf16", needs=("avx512_bf16",)),
    "ov-int8": Deployment("openvino", "int8"),
}
TARGET = Target("cpu-avx512", "benchmark", "cpu", tuple(DEPLOYMENTS.values()))
HELDOUT, SECONDS, SEED = 20, 60, 0


def table_of(prober: Prober, key: str) -> LatencyTable:
    """The table with its held-out networks, measured now or before."""
    path = RUN / "tables" / table_file(TARGET.name, prober.shape.signature, DEPLOYMENTS[key])
    if not path.is_file():
        settings = ProfileSection(heldout=HELDOUT, seconds=SECONDS, wait_seconds=5)
        prober.table(TARGET, DEPLOYMENTS[key], settings, RUN / "tables", seed=SEED)
    return LatencyTable.from_json(path.read_text(encoding="utf-8"), str(path))


def table_row(key: str, table: LatencyTable) -> dict[str, Any]:
    error = table.error
    return {
        "what": "table", "deployment": key, "seed": SEED, "split": "held-out networks", "n": error.n,
        "mape_pct": error.mape_pct, "max_pct": error.max_pct, "tau": error.kendall_tau,
        "noise_floor_pct": error.noise_floor_pct, "probes": len(table.samples), "measure_s": table.measure_s,
        "fit": table.fit, "date": table.date,
    }  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--cuts", nargs="+", choices=[*CUTS], default=[*CUTS])
    parser.add_argument("--deployments", nargs="*", choices=[*DEPLOYMENTS], default=[*DEPLOYMENTS])
    parser.add_argument("--write", action="store_true", help="write the result of all there is, and measure nothing")
    wanted = parser.parse_args(arguments)
    quiet_libraries()
    report = progress()
    bench = Bench(Material(SUBJECTS[NAME]), report, RUN, cuts=CUTS, control_cuts=tuple(CUTS))
    model = bench.material.load_model(0)
    prober = Prober(model, bench.space, 0, RUN / "probes", report, seed=SEED)
    for key in [] if wanted.write else wanted.deployments:
        report(describe_table(table_of(prober, key)))
    for seed in wanted.seeds if wanted.methods and not wanted.write else []:
        for method in ("full", *wanted.methods):
            bench.measure(method, seed, wanted.cuts)
    write(bench, prober)
    return 0


def write(bench: Bench, prober: Prober) -> None:
    """Write the result of every cell and table that was measured."""
    cells = bench.rows()
    places = {k: RUN / "tables" / table_file(TARGET.name, prober.shape.signature, d) for k, d in DEPLOYMENTS.items()}
    tables = [table_row(key, table_of(prober, key)) for key, path in places.items() if path.is_file()]
    figures = {**figures_of(cells), "train_rows": len(bench.data.train)}
    for row in tables:
        figures |= {f"table.{row['deployment']}.{name}": row[name] for name in ("mape_pct", "tau", "noise_floor_pct")}
    if tables:
        figures["table.mape_pct"] = statistics.fmean(row["mape_pct"] for row in tables)
        figures["table.tau"] = statistics.fmean(row["tau"] for row in tables)
    claim = (
        "On CIFAR-10, a sub-network chosen of a ResNet's one elastic fine-tuning by `best` and tuned alone for an epoch loses no more "
        "than a point against the distilled full model at half of its multiply-accumulates; latency tables predict 20 networks that no fit "
        "has seen to 2% in the mean."
    )
    print(write_result(NAME, claim, figures, [*cells, *tables]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
