"""The whole job in a few minutes, offline: a small ViT on scikit-learn's digits, from nothing to two artifacts.

Run by `make demo`. Makes an untrained model and the data in a directory beside the run's, then does what
`instatune-deploy run` does with benchmarks/recipes/digits.yaml.
"""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
import yaml
from datasets import Dataset, disable_progress_bars
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from instatune_deploy.device.fingerprint import check_target, detect
from instatune_deploy.errors import TargetError
from instatune_deploy.values.target import find_target
from instatune_deploy.workspace import data_directories

RECIPE = Path(__file__).parent / "recipes" / "digits.yaml"


def make_data(directory: Path) -> None:
    """1,437 training and 360 report images of 8x8 pixels as PNG bytes."""
    digits = load_digits()
    numbers = train_test_split(range(len(digits.target)), test_size=360, random_state=0, stratify=digits.target)
    for name, rows in zip(("train", "report"), numbers, strict=True):
        images = []
        for row in rows:
            stream = io.BytesIO()
            Image.fromarray((digits.images[row] * 15.9375).astype("uint8")).save(stream, "PNG")
            images.append(stream.getvalue())
        labels = [int(digits.target[row]) for row in rows]
        Dataset.from_dict({"image": images, "label": labels}).to_parquet(directory / f"{name}.parquet")


def demo_config() -> ViTConfig:
    """A ViT: 6 layers, 128 wide, 8 heads, patches of 2x2 pixels."""
    return ViTConfig(
        hidden_size=128, num_hidden_layers=6, num_attention_heads=8, intermediate_size=512, image_size=8, patch_size=2,
        num_labels=10, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip


def make_model(directory: Path) -> None:
    """The demo's model, untrained, and its image processor."""
    torch.manual_seed(0)
    ViTForImageClassification(demo_config()).save_pretrained(directory)
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(directory)


def this_machines_target() -> str:
    """The first shipped target that this machine can serve."""
    for name in ("cpu-avx512", "cpu-avx2", "cpu-arm-neon"):
        try:
            check_target(find_target(name, data_directories("targets")), detect())
        except TargetError:
            continue
        return name
    raise SystemExit("no shipped CPU target fits this machine")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/digits"))
    parser.add_argument("--fresh", action="store_true", help="start over instead of reusing what is there")
    parser.add_argument("--dry-run", action="store_true", help="make the inputs and print the plan alone")
    arguments = parser.parse_args()
    if arguments.fresh:
        shutil.rmtree(arguments.out, ignore_errors=True)
    # Beside the run, not in it: `run` writes into no directory that holds other things.
    inputs = arguments.out.with_name(f"{arguments.out.name}-inputs")
    inputs.mkdir(parents=True, exist_ok=True)
    disable_progress_bars()
    make_data(inputs)
    make_model(inputs / "digits-vit")
    recipe = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    recipe["targets"] = {this_machines_target(): ["40%", "20%"]}
    (inputs / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    started = time.monotonic()
    command = [
        sys.executable,
        "-m",
        "instatune_deploy",
        "run",
        str(inputs / "recipe.yaml"),
        "--out",
        str(arguments.out),
        *(["--dry-run"] if arguments.dry_run else []),
    ]
    print("$ instatune-deploy", *command[3:], flush=True)
    code = subprocess.run(command, check=False).returncode
    print(f"{time.monotonic() - started:.0f} s")
    return code


if __name__ == "__main__":
    sys.exit(main())
