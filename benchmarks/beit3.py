"""Claim: on questions about pictures, sub-networks of a BEiT-3 with 21.67% fewer multiply-accumulates lose at most 1.1 points.

``python -m benchmarks.beit3`` makes pictures and questions (`benchmarks.shapes_task`), trains a small BEiT-3 of 8 layers on them,
beside it one that sees no pictures and one that reads no questions, fine-tunes it elastically by `best` and by the paper's recipe,
and prunes and distils it to the same sizes: three seeds, points lost at the cuts of the paper (arXiv 2308.15609, Sec. 4: 21.67%).
As in its Fig. 4 a space of 9 to 12 layers of 12 stands beside one of 11 or 12, here 6 to 8 beside 7 or 8 of 8. Latency tables of
the model and of BEiT-3 base are measured as well. Every cell is kept in runs/beit3, and results/beit3.json written with what there is after each
seed; stopped at any point, the same command goes on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForVisualQuestionAnswering, PreTrainedModel

from benchmarks.finetune_cells import Bench, figures_of
from benchmarks.results import write_result
from benchmarks.shapes_task import accuracy, hide, learn, shapes_batch, write_shapes, write_shapes_model
from benchmarks.tuning_tasks import SUBJECTS, Material
from instatune_deploy.data.processor import Processor
from instatune_deploy.elastic.models.beit3 import Beit3Config, Beit3ForImageClassification
from instatune_deploy.elastic.pretrained import space_for
from instatune_deploy.faces.cli.app import progress, quiet_libraries
from instatune_deploy.profiling import Prober
from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.recipe import ProfileSection
from instatune_deploy.values.space import SearchSpace
from instatune_deploy.values.target import Target

RUN = Path("runs/beit3")
SUBJECT = SUBJECTS["shapes"]
#: Shares of multiply-accumulates cut, by the name in the figures; the last is the paper's.
CUTS = {"10": 0.10, "17": 0.17, "21": 0.2167}
METHODS = ("best", "paper", "prune_distil", "layers_9_to_12")
#: Rows that the model learns from first, those of the elastic fine-tuning after them, and those of the report split.
PRETRAINING_ROWS, TRAINING_ROWS, REPORT_ROWS = 6000, 1500, 2000
#: Steps of 64 rows; models of one modality are at their best after a quarter of them.
STEPS, BLIND_STEPS = 1200, 300


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--no-table", action="store_true", help="measure no latency tables")
    wanted = parser.parse_args(arguments)
    quiet_libraries()
    torch.set_num_threads(1)
    report = progress()
    make(report)
    bench = Bench(Material(SUBJECT), report, RUN, cuts=CUTS, control_cuts=tuple(CUTS))
    bench.kept("modalities", lambda: modalities(report))
    for seed in wanted.seeds:
        bench.reference(seed)
        for method in wanted.methods:
            if method == "prune_distil":
                for cut in CUTS:
                    bench.pruned(seed, cut)
            else:
                bench.elastic(method, seed, list(CUTS))
        write(bench)
    if not wanted.no_table:
        small = bench.material.load_model(0)
        bench.kept("table", lambda: [table(small, bench.space, SUBJECT.data.sequence_length, report)])
        bench.kept("base_table", lambda: [base_table(report)])
        write(bench)
    return 0


def make(report: Any) -> None:
    """Data and the trained model, where they are not there yet."""
    data, model = Path(SUBJECT.data.train).parent, Path(SUBJECT.model)
    data.mkdir(parents=True, exist_ok=True)
    for name, rows, seed in (("train", TRAINING_ROWS + SUBJECT.data.search_rows, 1), ("report", REPORT_ROWS, 2)):
        if not (data / f"{name}.parquet").is_file():
            write_shapes(data / f"{name}.parquet", rows, seed)
    if not (model / "trained").is_file():
        write_shapes_model(model, layers=8, hidden=48, heads=6, ffn=192, resize=False)
        batch = shapes_batch(PRETRAINING_ROWS, 3, Processor(SUBJECT.model, SUBJECT.task, 12))
        learn(_untrained(model), batch, steps=STEPS, rate=2e-3, report=report).save_pretrained(model)
        (model / "trained").touch()


def _untrained(model: Path) -> PreTrainedModel:
    """The network with the weights in its directory."""
    found: PreTrainedModel = AutoModelForVisualQuestionAnswering.from_pretrained(model)
    return found


def modalities(report: Any) -> list[dict[str, Any]]:
    """What the trained model reaches, and models of its size that see no pictures or read no questions."""
    processor = Processor(SUBJECT.model, SUBJECT.task, 12)
    seen, unseen = shapes_batch(PRETRAINING_ROWS, 3, processor), shapes_batch(REPORT_ROWS, 4, processor)
    found = {"both": accuracy(_untrained(Path(SUBJECT.model)), unseen)}
    for name, hidden in (("question_only", "image"), ("picture_only", "text")):
        folder = write_shapes_model(RUN / name, layers=8, hidden=48, heads=6, ffn=192, resize=False)
        blind = learn(_untrained(folder), hide(seen, hidden), steps=BLIND_STEPS, rate=2e-3, report=report)  # type: ignore[arg-type]
        found[name] = accuracy(blind, hide(unseen, hidden))  # type: ignore[arg-type]
    return [
        {"model_reads": name, "accuracy_pct": 100 * value, "split": "report", "n": REPORT_ROWS, "seed": 0}
        for name, value in found.items()
    ]  # fmt: skip


def table(model: PreTrainedModel, space: SearchSpace, tokens: int, report: Any) -> dict[str, Any]:
    """A latency table of a model and its space, and its error on 20 networks that its fit has not seen."""
    deployment = Deployment("onnxruntime")
    prober = Prober(model, space, tokens, RUN / ".probes", report, seed=0)
    settings = ProfileSection(heldout=20)
    found = prober.table(Target("cpu", "this machine", "cpu", (deployment,)), deployment, settings, RUN, seed=0)
    return {
        "signature": found.signature, "deployment": deployment.name, "mape_pct": found.error.mape_pct,
        "max_pct": found.error.max_pct, "tau": found.error.kendall_tau, "noise_floor_pct": found.error.noise_floor_pct,
        "n": found.error.n, "split": "networks held out of the fit", "seed": 0,
    }  # fmt: skip


def base_table(report: Any) -> dict[str, Any]:
    """That of BEiT-3 base for images of 224 x 224 pixels, 197 tokens, and the paper's space; latencies ask for no weights."""
    config = Beit3Config()
    return table(Beit3ForImageClassification(config), space_for(config, "paper"), 0, report)


def write(bench: Bench) -> None:
    """Write the result of every cell that was measured."""
    rows = bench.rows()
    figures: dict[str, float] = figures_of([row for row in rows if "method" in row])
    for row in rows:
        if "model_reads" in row:
            figures[f"accuracy_pct.{row['model_reads']}"] = row["accuracy_pct"]
        if "mape_pct" in row:
            of = "base_table" if row["signature"].startswith("beit3-h768") else "table"
            figures |= {f"{of}.mape_pct": row["mape_pct"], f"{of}.tau": row["tau"]}
    figures["train_rows"] = len(bench.data.train)
    claim = (
        "On questions about pictures, which need both, sub-networks of one elastic fine-tuning of a small BEiT-3 with 21.67% "
        "fewer multiply-accumulates lose at most 1.1 points against the distilled full model."
    )
    print(write_result("beit3", claim, figures, rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
