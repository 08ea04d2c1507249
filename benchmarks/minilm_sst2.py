"""Claim: one run on MiniLM-L6 and SST-2 ends with an artifact twice as fast as the full network, as predicted.

Runs benchmarks/recipes/minilm-sst2.yaml (`make bench-setup` first) and writes results/minilm_sst2.json. What a stopped
run has finished is reused, so that it can be run in pieces; the selection, which is what the figures say, is one
measurement in one go.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.results import write_result
from instatune_deploy import pipeline
from instatune_deploy.data.metrics import score
from instatune_deploy.faces.cli.app import progress, quiet_libraries
from instatune_deploy.faces.tables import print_selections
from instatune_deploy.job import Job
from instatune_deploy.values.front import ParetoFront
from instatune_deploy.values.recipe import read_recipe
from instatune_deploy.workspace import Workspace

RUN = Path("runs/minilm-sst2")
RECIPE = Path(__file__).parent / "recipes" / "minilm-sst2.yaml"


@torch.inference_mode()
def teacher_accuracy(job: Job) -> float:
    """Accuracy of the plainly fine-tuned full model on the report split: what the user has without this tool."""
    teacher = type(job.supernet.model).from_pretrained(RUN / "teacher").eval()
    logits = torch.empty(len(job.report_split), 2)
    for numbers, inputs in job.processor.batches(job.report_split.rows, 32):
        tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
        logits[torch.from_numpy(numbers)] = teacher(**tensors).logits
    return score("accuracy", job.report_split.labels, logits.numpy())


def main() -> int:
    quiet_libraries()
    recipe = read_recipe(RECIPE)
    selection = pipeline.run(recipe, Workspace(RUN), progress())[0]
    print_selections([selection], RUN)
    job = pipeline.open_run(RUN, progress())
    target = job.target(selection.target)
    front_path = RUN / "fronts" / f"{target.name}-{recipe.percentile}.json"
    found: dict[str, Any] = json.loads(front_path.read_text(encoding="utf-8"))
    tables = job.tables(target)
    used = next(table for table in tables if table.deployment.name == selection.deployment)
    seed = recipe.seed
    rows: list[dict[str, Any]] = [
        {"what": "selection", "seed": seed, "split": "report", "n": selection.measured.n, **selection.to_dict()},
        *({"what": "latency table", "seed": seed, "deployment": t.deployment.name, **asdict(t.error)} for t in tables),
        *({"what": "search round", "seed": seed, **entry} for entry in found["rounds"]),
        *(
            {"what": "front", "seed": seed, "split": "search", "n": len(job.data.search), **candidate.to_dict()}
            for candidate in ParetoFront.from_list(found["front"]).candidates
        ),
    ]
    figures = {
        # In the same rounds as the artifact; before it, alone, the full network was measured too.
        "full_p50_ms": selection.full_beside_ms,
        "full_alone_p50_ms": selection.full.p50_ms,
        "artifact_p50_ms": selection.measured.p50_ms,
        "artifact_predicted_ms": selection.predicted.latency_ms,
        "prediction_error_pct": 100 * (selection.predicted.latency_ms / selection.measured.p50_ms - 1),
        # The machine's speed drifts from minute to minute; the full network in the same rounds tells by how much.
        "speed_drift_pct": 100 * (selection.speed_drift or 0.0),
        "prediction_error_at_equal_speed_pct": 100 * selection.prediction_error,
        "full_predicted_ms": selection.full_beside_predicted_ms or 0.0,
        "speedup": selection.full_beside_ms / selection.measured.p50_ms,
        "teacher_accuracy": teacher_accuracy(job),
        "full_accuracy": selection.full.metric,
        "artifact_accuracy": selection.measured.metric,
        "macs_cut_pct": 100 - 100 * selection.macs / selection.full_macs,
        "candidates_tried": selection.tried,
        "table_mape_pct": used.error.mape_pct,
        "table_kendall_tau": used.error.kendall_tau,
        "table_noise_floor_pct": used.error.noise_floor_pct,
    }
    claim = (
        "On MiniLM-L6 and SST-2 (128 tokens, batch 1, one thread) the run ends with an artifact whose measured p50 is "
        "within half of the full network's on its fastest deployment, and whose predicted latency is within 5% of it at equal machine speed."
    )
    path = write_result("minilm_sst2", claim, figures, rows)
    print(f"{path}\n{json.dumps(figures, indent=1)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
