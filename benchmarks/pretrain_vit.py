"""Pre-trains the small ViT of the CIFAR-10 benchmarks (patch 4, 192 wide, 9 layers, 6 heads) on the first 40,000 rows.

``python -m benchmarks.pretrain_vit [--epochs 8] [--classes 3 5]`` (`make bench-setup` first) writes
benchmarks/models/vit-cifar10, or with ``--classes`` a model of a narrow domain that has seen these classes alone. On two cores
an epoch takes about seven minutes; stopped, the same command goes on after its last whole epoch.
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from datasets import load_dataset
from PIL import Image
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification, ViTImageProcessor
from transformers.trainer_utils import get_last_checkpoint

DATA = "benchmarks/data/cifar10/train.parquet"
ROWS = 40_000
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def config() -> ViTConfig:
    return ViTConfig(
        hidden_size=192, num_hidden_layers=9, num_attention_heads=6, intermediate_size=768, image_size=32, patch_size=4,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, id2label=dict(enumerate(CLASSES)),
        label2id={name: index for index, name in enumerate(CLASSES)},
    )  # fmt: skip


def read_images(classes: list[int]) -> tuple[Tensor, Tensor]:
    """Pixels -1..1 of shape (rows, 3, 32, 32), and labels."""
    rows = load_dataset("parquet", data_files=DATA, split=f"train[:{ROWS}]")
    labels = np.asarray(rows["label"])
    kept = np.flatnonzero(np.isin(labels, classes))
    images = [np.asarray(Image.open(io.BytesIO(_bytes(rows[int(i)]["image"])))) for i in kept]
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return pixels, torch.from_numpy(labels[kept])


def _bytes(image: object) -> bytes:
    if isinstance(image, dict):
        return bytes(image["bytes"])
    if isinstance(image, bytes):
        return image
    stream = io.BytesIO()
    image.save(stream, "PNG")  # type: ignore[attr-defined]
    return stream.getvalue()


class Augmented(Dataset[dict[str, Tensor]]):
    """Images, each time shifted by up to four pixels and mirrored half of the time."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.padded, self.labels = F.pad(images, (4, 4, 4, 4), mode="reflect"), labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        x, y, mirrored = (int(torch.randint(0, limit, ())) for limit in (9, 9, 2))
        image = self.padded[index, :, y : y + 32, x : x + 32]
        return {"pixel_values": image.flip(-1) if mirrored else image, "labels": self.labels[index]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/models/vit-cifar10"))
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--classes", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16, where the machine has it")
    wanted = parser.parse_args()
    rows = Augmented(*read_images(wanted.classes))
    torch.manual_seed(0)
    model = ViTForImageClassification(config())
    checkpoints = wanted.out.with_name(f".{wanted.out.name}")
    arguments = TrainingArguments(
        str(checkpoints), num_train_epochs=wanted.epochs, per_device_train_batch_size=128, learning_rate=1e-3,
        weight_decay=0.05, warmup_ratio=0.05, lr_scheduler_type="cosine", label_smoothing_factor=0.1, bf16=wanted.bf16,
        save_strategy="epoch", save_total_limit=1, logging_steps=50, report_to="none", disable_tqdm=True, seed=0,
        use_cpu=not torch.cuda.is_available(), dataloader_pin_memory=torch.cuda.is_available(),
    )  # fmt: skip
    trainer = Trainer(model=model, args=arguments, train_dataset=rows)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(checkpoints)) if checkpoints.is_dir() else None)
    model.save_pretrained(wanted.out)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(wanted.out)
    shutil.rmtree(checkpoints)
    return 0


if __name__ == "__main__":
    sys.exit(main())
