"""Claim: our search needs well under half of the evaluations that LINAS as published needs for the same front.

``python -m benchmarks.search_efficiency simulated real`` (`make bench-setup` first) measures cell by cell (setting, method, seed),
keeps each in runs/search-efficiency, and writes results/search_efficiency.json with what there is. Stopped at any point, the same
command goes on. ``--methods``, ``--seeds`` and ``--evaluations`` choose cells; ``--supernet`` names the directory of a fine-tuned
super-network of MiniLM on SST-2 for the real setting, which else is that of the benchmark finetune_accuracy, trained if need be.

Fronts are of accuracy and multiply-accumulates. Figures are hypervolumes, as shares of a box from just beyond the smallest
network's accuracy and the largest's multiply-accumulates to just beyond the largest network's accuracy and none. They are

- simulated (`hv.`): of the *true*, noise-free accuracies of the networks on the front that a method returns after so many
  evaluations, by what it sees of them: noisy accuracies;
- real (`hv_real.`): of the measured accuracies of all networks evaluated, for there are no true ones: luck on the search split
  counts as merit. So the fronts that the methods return are judged once more by the report split, which no method has read
  (`hv_real_report.`; ``--report``).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from benchmarks import finetune_accuracy, finetune_cells
from benchmarks.published_linas import PublishedLinas
from benchmarks.results import read_rows, write_result
from benchmarks.simulated_accuracy import SHAPE, Simulation, read_records
from benchmarks.tuning_tasks import SUBJECTS, Material
from instatune_deploy.elastic.supernet import Supernet, load_supernet
from instatune_deploy.faces.cli.app import progress, quiet_libraries
from instatune_deploy.stages.evaluate import Evaluator
from instatune_deploy.stages.predict import fit_predictor
from instatune_deploy.stages.search import SearchSettings, front_of, search
from instatune_deploy.stages.search.beliefs import Fit, Predictor
from instatune_deploy.stages.search.strategies import Strategy, Task
from instatune_deploy.values.costs import Costs, Goal
from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.front import Evaluation, hypervolume
from instatune_deploy.values.latency import LatencyTable, table_file
from instatune_deploy.values.macs import ModelShape, count_macs
from instatune_deploy.values.objectives import parse_objectives
from instatune_deploy.values.space import Architecture, SearchSpace
from instatune_deploy.workspace import data_directories, write_json

RUN = Path("runs/search-efficiency")
#: After how many evaluations fronts are looked at.
COUNTS = (50, 100, 150, 200, 250, 500, 1000)
#: Seeds of each setting (a number of them).
SEEDS = {"simulated": 10, "real": 3}
METHODS: dict[str, tuple[SearchSettings, Callable[[Task], Strategy] | None]] = {
    "ours": (SearchSettings(patience=0), None),
    # The population of the published implementation; it gives its inner search 20,000 predictions.
    "linas": (SearchSettings(warm_start=50, batch=50, population=50, generations=400, patience=0), PublishedLinas),
    "nsga2": (SearchSettings(method="nsga2", population=50, patience=0), None),
    "random": (SearchSettings(method="random", warm_start=50, batch=50, patience=0), None),
}
Report = Callable[[str], None]


class Setting(Protocol):
    """A space with accuracies to search."""

    prefix: str
    space: SearchSpace
    shape: ModelShape

    def measure(self, architectures: list[Architecture], *, seed: int) -> list[Evaluation]:
        """What a method sees."""
        ...

    def judge(self, architectures: Sequence[Architecture]) -> list[float]:
        """What fronts are judged by."""
        ...


class Simulated:
    """BERT-base with accuracies after the records of one."""

    prefix = "hv"
    shape = SHAPE

    def __init__(self) -> None:
        self.simulation = Simulation(read_records())
        self.space = self.simulation.space
        path = RUN / "simulated" / "noise.json"  # minutes of cross-validation
        if path.is_file():
            self.simulation.noise = json.loads(path.read_text(encoding="utf-8"))
        else:
            write_json(path, self.simulation.noise)

    def measure(self, architectures: list[Architecture], *, seed: int) -> list[Evaluation]:
        return self.simulation.measure(architectures, seed=seed)

    def judge(self, architectures: Sequence[Architecture]) -> list[float]:
        return self.simulation.true(architectures).tolist()


class Real:
    """The elastic MiniLM on SST-2; what was measured once, by whatever method and seed, is not measured again."""

    prefix = "hv_real"

    def __init__(self, supernet: Supernet, report: Report) -> None:
        material = Material(SUBJECTS["sst2"])
        self.space, self.shape = supernet.space, supernet.shape(material.subject.data.sequence_length)
        self.report = report
        self.evaluator = Evaluator(
            supernet,
            material.data.search,
            material.processor,
            metric="accuracy",
            path=RUN / "real" / "evaluations.jsonl",
        )
        self.reporter = Evaluator(
            supernet, material.report_split, material.processor, metric="accuracy", path=RUN / "real" / "report.jsonl"
        )

    def measure(self, architectures: list[Architecture], *, seed: int) -> list[Evaluation]:
        return self.evaluator(architectures, report=self.report)

    def judge(self, architectures: Sequence[Architecture]) -> list[float]:
        return [evaluation.value for evaluation in self.evaluator(architectures)]


def find_supernet(directory: Path | None, report: Report) -> Supernet:
    """The super-network in a directory, or that of the fine-tuning benchmark."""
    if directory is None:
        return finetune_cells.Bench(Material(SUBJECTS["sst2"]), report, finetune_accuracy.RUN).supernet("best", 0)
    return load_supernet(directory / "supernet" if (directory / "supernet").is_dir() else directory)


class Bench:
    """The cells of one setting; each is measured once and kept."""

    def __init__(self, name: str, setting: Setting, report: Report) -> None:
        self.setting, self.report, self.root = setting, report, RUN / name
        space, shape = setting.space, setting.shape
        self.goal = Goal(Costs(space, shape, [shipped_table(shape)], "p50"), parse_objectives(["metric", "macs"]))
        low, high = setting.judge([space.smallest, space.largest])
        self.low, self.high = low - 0.01, high + 0.01

    def cell(self, method: str, seed: int, evaluations: int) -> list[dict[str, Any]]:
        """A row for each number of evaluations up to the given one."""
        path = self.root / "cells" / f"{method}-{seed}-{evaluations}.json"
        if not path.is_file():
            self.report(f"{self.root.name}: {method}, seed {seed}, {evaluations} evaluations")
            write_json(path, self.rows(method, seed, evaluations))
        rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        return rows

    def rows(self, method: str, seed: int, evaluations: int) -> list[dict[str, Any]]:
        settings, strategy = METHODS[method]

        def fit(known: list[Evaluation]) -> Predictor:
            return fit_predictor(self.setting.space, known, seed=seed)

        found = search(
            self.setting.space, [self.goal], evaluate=lambda wanted: self.setting.measure(wanted, seed=seed), fit=fit,
            evaluations=[], settings=replace(settings, evaluations=evaluations), seed=seed, strategy=strategy,
        ).evaluations  # fmt: skip
        rows = []
        for count in [count for count in COUNTS if count <= evaluations]:
            networks = self.returned(found[:count], fit if method == "ours" else None)
            plain = self.returned(found[:count], None)
            rows.append({
                "setting": self.root.name, "method": method, "seed": seed, "evaluations": count, "split": found[0].split,
                "n": found[0].n, "hypervolume": self.judged(networks), "hypervolume_by_measured": self.judged(plain), "front": [str(a) for a in networks],
            })  # fmt: skip
        return rows

    def returned(self, found: Sequence[Evaluation], fit: Fit | None) -> list[Architecture]:
        """The networks that are judged: where there is a truth beside what was measured, those on the front that the method
        returns, else all."""
        if not isinstance(self.setting, Simulated):
            return [evaluation.architecture for evaluation in found]
        return self.front(found, fit)

    def front(self, found: Sequence[Evaluation], fit: Fit | None) -> list[Architecture]:
        """The front that a method returns: ours tells luck from merit by its predictor, the others do not."""
        return [candidate.architecture for candidate in front_of(self.goal, found, fit).candidates]

    def judge_by_report(self, real: Real, method: str, seed: int, evaluations: int) -> None:
        """Add to the rows of a cell of the real setting what its fronts are worth on the report split."""
        path = self.root / "cells" / f"{method}-{seed}-{evaluations}.json"
        rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        ends = [e.value for e in real.reporter([real.space.smallest, real.space.largest])]
        low, high = ends[0] - 0.01, ends[1] + 0.01
        for row in rows:
            found = real.evaluator([Architecture.parse(text) for text in row["front"]])
            fit = (lambda known: fit_predictor(real.space, known, seed=seed)) if method == "ours" else None
            networks = self.front(found, fit)
            values = [evaluation.value for evaluation in real.reporter(networks, report=self.report)]
            row["hypervolume_report"] = self.hypervolume(networks, values, low, high)
            row["returned"] = [str(network) for network in networks]
        write_json(path, rows)

    def judged(self, networks: Sequence[Architecture]) -> float:
        """The share of the box that networks dominate by what they are judged by."""
        return self.hypervolume(networks, self.setting.judge(networks), self.low, self.high)

    def hypervolume(self, networks: Sequence[Architecture], values: Sequence[float], low: float, high: float) -> float:
        """The share that networks of these accuracies dominate of the box from `low` to `high` and of all multiply-accumulates."""
        shape, space = self.setting.shape, self.setting.space
        largest = count_macs(shape, space.largest)
        points = [
            ((high - value) / (high - low), count_macs(shape, network) / largest / 1.1)
            for value, network in zip(values, networks, strict=True)
        ]
        return hypervolume(points, (1.0, 1.0))


def shipped_table(shape: ModelShape) -> LatencyTable:
    """The table of ONNX Runtime that ships for a shape: candidates need a deployment, though no objective is a latency."""
    name = table_file("cpu-avx512", shape.signature, Deployment("onnxruntime"))
    path = next(p for d in data_directories("latency_tables") if (p := d / name).is_file())
    return LatencyTable.from_json(path.read_text(encoding="utf-8"), str(path))


def figures_of(prefix: str, rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Means over seeds, and standard deviations where there are several."""
    figures: dict[str, float] = {}
    for key in dict.fromkeys((row["method"], row["evaluations"]) for row in rows):
        mine = [row for row in rows if (row["method"], row["evaluations"]) == key]
        volumes = [row["hypervolume"] for row in mine]
        figures[f"{prefix}.{key[0]}.{key[1]}.mean"] = statistics.fmean(volumes)
        # What the front would be worth without telling luck from merit by the predictor.
        if (plain := [row.get("hypervolume_by_measured") for row in mine]) and None not in plain and plain != volumes:
            figures[f"{prefix}.{key[0]}.{key[1]}.by_measured.mean"] = statistics.fmean(plain)
        if (report := [row.get("hypervolume_report") for row in mine]) and None not in report:
            figures[f"{prefix}_report.{key[0]}.{key[1]}.mean"] = statistics.fmean(report)
        if len(volumes) > 1:
            figures[f"{prefix}.{key[0]}.{key[1]}.std"] = statistics.stdev(volumes)
        figures[f"{prefix}.{key[0]}.{key[1]}.seeds"] = len(volumes)
    return figures


def write(benches: Iterable[Path]) -> Path:
    """Write the result of every cell that was measured, here or for the result that is there; of cells that hold the same
    row one counts."""
    known = read_rows("search_efficiency")
    rows = {(row["setting"], row["method"], row["seed"], row["evaluations"]): row for row in known}
    for root in benches:
        for path in sorted((root / "cells").glob("*.json")):
            for row in json.loads(path.read_text(encoding="utf-8")):
                rows[row["setting"], row["method"], row["seed"], row["evaluations"]] = row
    found = [rows[key] for key in sorted(rows)]
    figures: dict[str, float] = {}
    for prefix, name in (("hv", "simulated"), ("hv_real", "real")):
        figures |= figures_of(prefix, [row for row in found if row["setting"] == name])
    claim = (
        "After 100 evaluations our search has a front of at least the hypervolume that LINAS as published has after 250, by true "
        "accuracies in simulation and by the report split in a real space, and in simulation after 250 at least that of NSGA-II after 1,000."
    )
    return write_result("search_efficiency", claim, figures, found)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="+", choices=[*SEEDS])
    parser.add_argument(
        "--write", action="store_true", help="write the result of the cells there are, and measure none"
    )
    parser.add_argument(
        "--report", action="store_true", help="judge the real setting's fronts by the report split, too"
    )
    parser.add_argument("--supernet", type=Path)
    parser.add_argument("--methods", nargs="+", choices=[*METHODS], default=[*METHODS])
    parser.add_argument("--seeds", nargs="+", type=int)
    parser.add_argument(
        "--evaluations", type=int, help="of every method; default: 250, simulated NSGA-II and random 1,000"
    )
    wanted = parser.parse_args(arguments)
    quiet_libraries()
    report = progress()
    for name in [] if wanted.write else wanted.settings:
        setting = Simulated() if name == "simulated" else Real(find_supernet(wanted.supernet, report), report)
        bench = Bench(name, setting, report)
        for seed in wanted.seeds or range(SEEDS[name]):
            for method in wanted.methods:
                many = 1000 if name == "simulated" and method in ("nsga2", "random") else 250
                bench.cell(method, seed, wanted.evaluations or many)
                if wanted.report and isinstance(setting, Real):
                    bench.judge_by_report(setting, method, seed, wanted.evaluations or many)
    print(write(RUN / name for name in SEEDS))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
