"""Measures the latency tables that ship in latency_tables/: the demo's ViT, MiniLM-L6 and BERT-base at 128 tokens, ViT-S/16 and
ViT-B/16 at 224 x 224, in every deployment of cpu-avx512.

``python -m benchmarks.ship_tables [NAME ...]`` measures those that are not there yet (all, or the models named); what
`benchmarks.latency_table` measured of the same networks, with more held out, is taken over.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch
import yaml
from transformers import BertConfig, PretrainedConfig, ViTConfig

from benchmarks.demo import demo_config
from benchmarks.latency_table import RUN
from instatune_deploy.device.fingerprint import check_target, detect, usable_deployments
from instatune_deploy.elastic.pretrained import load_config, space_for
from instatune_deploy.elastic.probing import random_model
from instatune_deploy.faces.cli.app import progress, quiet_libraries
from instatune_deploy.profiling import Prober, describe_table
from instatune_deploy.values.latency import raw_file, table_file
from instatune_deploy.values.recipe import ProfileSection
from instatune_deploy.values.target import find_target
from instatune_deploy.workspace import data_directories

OUT = Path("latency_tables")
TARGET = "cpu-avx512"
TOKENS = 128
#: Of measuring a deployment's probes: a network of 100 ms or more needs longer for as many runs.
SECONDS = {"bert-base": 120.0, "vit-b16": 150.0}


def configs() -> dict[str, tuple[PretrainedConfig, str | dict[str, list[int]]]]:
    """Each model's config and space, by name."""
    recipe = Path(__file__).parent / "recipes" / "digits.yaml"
    digits = yaml.safe_load(recipe.read_text(encoding="utf-8"))["space"]
    return {
        "demo": (demo_config(), digits),
        "minilm": (load_config("benchmarks/models/minilm-l6"), "paper"),
        "vit-s16": (ViTConfig(hidden_size=384, num_attention_heads=6, intermediate_size=1536), "paper"),
        "bert-base": (BertConfig(), "paper"),
        "vit-b16": (ViTConfig(), "paper"),
    }


def main(names: list[str]) -> int:
    quiet_libraries()
    report, target = progress(), find_target(TARGET, data_directories("targets"))
    check_target(target, detect())
    for name, (config, wanted) in configs().items():
        if names and name not in names:
            continue
        torch.manual_seed(0)
        probes = Path("runs/ship-tables") / name
        prober = Prober(random_model(config), space_for(config, wanted), TOKENS, probes, report, seed=0)
        for deployment in usable_deployments(target, detect())[0]:
            table = table_file(target.name, prober.shape.signature, deployment)
            files = [raw_file(table), table]
            if (OUT / table).is_file():
                continue
            if all((RUN / "tables" / file).is_file() for file in files):
                (OUT / table).parent.mkdir(parents=True, exist_ok=True)
                for file in files:
                    shutil.copyfile(RUN / "tables" / file, OUT / file)
                report(f"{name}: {table} taken over")
                continue
            settings = ProfileSection(seconds=SECONDS.get(name, 60.0))
            report(describe_table(prober.table(target, deployment, settings, OUT, seed=0)))
        shutil.rmtree(probes, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
