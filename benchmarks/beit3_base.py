"""Claim: BEiT-3 base goes the whole way at 224 x 224 pixels: recipe in, a served answer out.

Its weights are random, for no checkpoint can be had here, so nothing is said of accuracy: what is shown is that every stage takes a
network of this size. ``pictures`` classifies images (197 tokens, the paper's 17.62 GMACs), ``questions`` answers
questions about them (12 tokens more). Each is fine-tuned for two steps, its latency table measured with held-out networks, searched,
selected for 70% of the full network's latency, exported for ONNX Runtime and OpenVINO, verified, and served; the server's answer is compared with
the artifact's own PyTorch network. Writes results/beit3_base.json after each; runs stay in runs/beit3-base, and the same command goes on.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import random
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from datasets import Dataset
from PIL import Image
from transformers import ViTImageProcessor

from benchmarks.results import write_result
from benchmarks.serving import served
from benchmarks.shapes_task import answers, shapes_row, shapes_tokenizer
from instatune_deploy.data.processor import Processor
from instatune_deploy.elastic.models.beit3 import (
    Beit3Config,
    Beit3ForImageClassification,
    Beit3ForVisualQuestionAnswering,
)
from instatune_deploy.elastic.subnetwork import load_subnetwork
from instatune_deploy.values.latency import LatencyTable
from instatune_deploy.workspace import write_json

RUN = Path("runs/beit3-base").absolute()
SIDE, TOKENS, SEED = 224, 12, 0
TRAIN, SEARCH, REPORT = 8, 4, 4
TASKS = {"pictures": "image-classification", "questions": "visual-question-answering"}
#: Of the paper (arXiv 2308.15609, Table 2) for the full model.
PAPER_GMACS = 17.62
DEPLOYMENTS = [{"runtime": "onnxruntime"}, {"runtime": "openvino"}]
COMMAND = [sys.executable, "-m", "instatune_deploy"]


def write_project(kind: str, heldout: int) -> Path:
    """Model, data, target and recipe, where they are not there yet."""
    project = RUN / kind
    project.mkdir(parents=True, exist_ok=True)
    if not (project / "recipe.yaml").is_file():
        torch.manual_seed(SEED)
        tokenizer, rng = shapes_tokenizer(), random.Random(SEED)
        config = Beit3Config(vocab_size=len(tokenizer), num_labels=len(answers()), image_size=SIDE)
        auto = Beit3ForImageClassification if kind == "pictures" else Beit3ForVisualQuestionAnswering
        auto(config).save_pretrained(project / "model")
        tokenizer.save_pretrained(project / "model")
        ViTImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(project / "model")
        for name, rows in (("train", TRAIN + SEARCH), ("report", REPORT)):
            Dataset.from_list([shapes_row(rng, SIDE) for _ in range(rows)]).to_parquet(project / f"{name}.parquet")
        target = {"name": "cpu-here", "description": "this machine", "device": "cpu", "deployments": DEPLOYMENTS}
        (project / "targets").mkdir(exist_ok=True)
        (project / "targets" / "cpu-here.yaml").write_text(yaml.safe_dump(target), encoding="utf-8")
        recipe = {
            "name": kind, "model": "./model", "task": TASKS[kind], "space": "paper",
            "data": {"train": "./train.parquet", "report": "./report.parquet", "search_rows": SEARCH, "sequence_length": TOKENS},
            "finetune": {"teacher": None, "gamma": "off", "epochs": 1, "batch_size": 4, "importance_rows": 4},
            "search": {"warm_start": 8, "rounds": 1, "batch": 2, "deployed": 0},
            "profile": {"heldout": heldout, "seconds": 20, "confirm_seconds": 5, "wait_seconds": 5},
            "targets": {"cpu-here": ["70%"]},
        }  # fmt: skip
        (project / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return project


def called(project: Path, *arguments: str) -> Any:
    """What `instatune-deploy` prints as JSON."""
    done = subprocess.run([*COMMAND, *arguments, "--json"], cwd=project, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def asked(kind: str, artifact: Path) -> dict[str, Any]:
    """How far a server's answer to a picture it has not seen is from the PyTorch network's, and how long it took."""
    row = shapes_row(random.Random(SEED + 1), SIDE)
    picture = Image.open(io.BytesIO(row["image"]["bytes"]))
    processor = Processor(str(artifact), TASKS[kind], TOKENS)  # type: ignore[arg-type]
    inputs = processor.encode_images([picture])
    body = [
        {"name": "image", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(row["image"]["bytes"]).decode()]}
    ]
    if kind == "questions":
        inputs |= dict(processor.inner([row["text"]], return_tensors="np"))
        body.append({"name": "text", "datatype": "BYTES", "shape": [1], "data": [row["text"]]})
    with torch.inference_mode():
        expected = load_subnetwork(artifact)(**{name: torch.as_tensor(value) for name, value in inputs.items()}).logits
    process, addresses = served(artifact)
    try:
        request = urllib.request.Request(
            f"http://{addresses['http']}/v2/models/model/infer", json.dumps({"inputs": body}).encode(),
            {"Content-Type": "application/json"},
        )  # fmt: skip
        took = []
        for _ in range(5):
            started = time.perf_counter()
            with urllib.request.urlopen(request, timeout=120) as answer:
                outputs = {output["name"]: output["data"] for output in json.load(answer)["outputs"]}
            took.append(1e3 * (time.perf_counter() - started))
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(60)
    error = float(np.abs(np.array(outputs["logits"]) - expected.numpy().ravel()).max())
    return {"max_abs_error": error, "request_p50_ms": float(np.median(took)), "requests": len(took), "exit_code": code}


def walk(kind: str, heldout: int) -> dict[str, Any]:
    """The whole way of one model."""
    project = write_project(kind, heldout)
    found = called(project, "run", "recipe.yaml")
    run, (selection,) = project / found["run"], found["selections"]
    artifact = run / selection["artifact"]
    verified = called(project, "verify", str(artifact), "--run", str(run), "--no-latency")
    tables = [
        LatencyTable.from_json(p.read_text(encoding="utf-8"), str(p)) for p in sorted(run.glob("tables/**/*.json"))
    ]
    return {
        "model": kind, "seed": SEED, "split": "report", "n": REPORT, "problems": verified["problems"], "selection": selection, "served": asked(kind, artifact),
        "full_gmacs": selection["full_macs"] / 1e9,
        "tables": [
            {
                "signature": table.signature, "deployment": table.deployment.name, "mape_pct": table.error.mape_pct,
                "max_pct": table.error.max_pct, "tau": table.error.kendall_tau, "n": table.error.n,
                "noise_floor_pct": table.error.noise_floor_pct, "measure_s": table.measure_s,
            }
            for table in tables
        ],
    }  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=[*TASKS], default=[*TASKS])
    parser.add_argument("--heldout", type=int, default=20, help="networks that a table is tried on")
    wanted = parser.parse_args(arguments)
    for kind in wanted.models:
        write_json(RUN / f"{kind}.json", walk(kind, wanted.heldout))
        rows = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RUN.glob("*.json"))]
        figures: dict[str, float] = {}
        for row in rows:
            name, selection = row["model"], row["selection"]
            cut = 100 * (1 - selection["macs"] / selection["full_macs"])
            figures |= {
                f"{name}.full_gmacs": row["full_gmacs"], f"{name}.macs_cut_pct": cut,
                f"{name}.measured_p50_ms": selection["measured"]["p50_ms"], f"{name}.limit_ms": selection["limit_ms"],
                f"{name}.problems": len(row["problems"]), f"{name}.served_error_millionths": 1e6 * row["served"]["max_abs_error"],
            }  # fmt: skip
            for table in row["tables"]:
                figures |= {f"{name}.{table['deployment']}.{key}": table[key] for key in ("mape_pct", "tau")}
        if "pictures.full_gmacs" in figures:
            figures["pictures.against_paper_pct"] = 100 * (figures["pictures.full_gmacs"] / PAPER_GMACS - 1)
        claim = (
            "BEiT-3 base (random weights, 224 x 224 pixels) goes the whole way, for pictures alone and for questions about them: tables, "
            "search, files of ONNX Runtime and OpenVINO that are verified, and a server whose answers are the network's own."
        )
        print(write_result("beit3_base", claim, figures, rows), json.dumps(figures, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
