"""Pre-trains the small ResNet of the CIFAR-10 benchmark (eight layers of two convolutions in two stages) on the first 40,000 rows.

``python -m benchmarks.pretrain_resnet [--epochs 20] [--bf16]`` (`make bench-setup` first) writes benchmarks/models/resnet-cifar10.
Hugging Face's ResNet halves the resolution twice before its first stage, so that layers see 8 x 8 and 4 x 4 positions. A third
stage of 2 x 2 would read more weights than a CPU's caches hold for next to no products: its latency is that of memory.
Stopped, the same command goes on after its last whole epoch.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessor

from benchmarks.pretrain_vit import CLASSES, Augmented, read_images, train

CONFIG = {"embedding_size": 64, "hidden_sizes": [64, 128], "depths": [4, 4], "layer_type": "basic"}


def config() -> ResNetConfig:
    return ResNetConfig(
        **CONFIG, image_size=32, id2label=dict(enumerate(CLASSES)),
        label2id={name: index for index, name in enumerate(CLASSES)},
    )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/models/resnet-cifar10"))
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16, where the machine has it")
    wanted = parser.parse_args()
    rows = Augmented(*read_images(list(range(len(CLASSES)))))
    torch.manual_seed(0)
    model = ResNetForImageClassification(config())
    train(model, rows, wanted.out, epochs=wanted.epochs, learning_rate=2e-3, bf16=wanted.bf16)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(wanted.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
