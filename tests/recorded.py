"""A run directory as a real run left it, put together from what is committed of it: no weights, no artifacts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import yaml

from instatune_deploy.values.macs import ModelShape
from instatune_deploy.values.presets import preset
from instatune_deploy.values.recipe import read_recipe
from instatune_deploy.workspace import Workspace, write_json, write_text

ROOT = Path(__file__).parents[1]
#: MiniLM-L6 at 128 tokens.
SIGNATURE = ModelShape("bert", 384, 32, 6, 12, 1536, 128, 0, 0).signature


def write_recorded_run(directory: Path) -> Path:
    """The MiniLM-L6 run of benchmarks/results/minilm_sst2.json, with the latency tables that ship for it."""
    result = json.loads((ROOT / "benchmarks" / "results" / "minilm_sst2.json").read_text(encoding="utf-8"))
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in result["rows"]:
        rows.setdefault(row.pop("what"), []).append({k: v for k, v in row.items() if k not in ("seed", "split")})
    workspace = Workspace(directory)
    workspace.begin()
    recipe = read_recipe(ROOT / "benchmarks" / "recipes" / "minilm-sst2.yaml")
    write_text(workspace.path("recipe.yaml"), yaml.safe_dump(recipe.model_dump(), sort_keys=False))
    space = preset("bert-base").scaled(layers=6, heads=12, ffn=1536)
    write_json(workspace.path("supernet", "search_space.json"), space.to_dict())
    rounds = [{k: v for k, v in row.items() if k != "n"} for row in rows["search round"]]
    front = {"target": "cpu-avx512", "percentile": "p50", "rounds": rounds, "front": rows["front"]}
    write_json(workspace.path("fronts", "cpu-avx512-p50.json"), front)
    shutil.copytree(
        ROOT / "latency_tables" / "cpu-avx512" / SIGNATURE, workspace.path("tables", "cpu-avx512", SIGNATURE)
    )
    for selection in rows["selection"]:
        selection.pop("n", None)
        name = f"{selection['target']}-{selection['artifact'].rsplit('/', 1)[1]}.json"
        write_json(workspace.path("selections", name), selection)
    workspace.mark_done("finetune", "recorded", [workspace.path("supernet")])
    workspace.mark_done("search-cpu-avx512-p50", "recorded", [workspace.path("fronts", "cpu-avx512-p50.json")])
    return directory
