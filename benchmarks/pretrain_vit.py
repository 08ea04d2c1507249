"""Pre-trains the small ViT of the CIFAR-10 benchmarks (patch 4, 192 wide, 9 layers, 6 heads) on the first 40,000 rows.

``python -m benchmarks.pretrain_vit [--coarse-epochs 10] [--epochs 1] [--classes 3 5]`` (`make bench-setup` first) writes
benchmarks/models/vit-cifar10, or with ``--classes`` a model of a narrow domain that has seen these classes alone.

Most of the training reads patches of 8 pixels: a quarter of the tokens, so a quarter of the time. Its weights then start the model of
patches of 4 (as in FlexiViT, arXiv 2212.08013, positions and patch embeddings are resized). On one core an epoch takes about
4 and 17 minutes; stopped, the same command goes on after its last whole epoch.
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from datasets import load_dataset
from PIL import Image
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import Dataset
from transformers import (
    PreTrainedModel,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)
from transformers.trainer_utils import get_last_checkpoint

DATA = "benchmarks/data/cifar10/train.parquet"
ROWS = 40_000
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


Model = TypeVar("Model", bound=PreTrainedModel)

#: Pixels a side of the patches of the first, cheap part of the training.
COARSE = 8


def config(patch_size: int = 4) -> ViTConfig:
    return ViTConfig(
        hidden_size=192, num_hidden_layers=9, num_attention_heads=6, intermediate_size=768, image_size=32, patch_size=patch_size,
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


def refined(coarse: ViTForImageClassification) -> ViTForImageClassification:
    """The model of smaller patches that computes about what `coarse` does.

    A patch of half the side has a quarter of the pixels; as neighbouring pixels are alike, four times the averaged weights give
    about the same embedding.
    """
    model = ViTForImageClassification(config())
    state = coarse.state_dict()
    projection, positions = "vit.embeddings.patch_embeddings.projection.weight", "vit.embeddings.position_embeddings"
    factor = COARSE // model.config.patch_size
    state[projection] = F.avg_pool2d(state[projection], factor) * factor**2
    side = 32 // COARSE
    grid = state[positions][:, 1:].transpose(1, 2).unflatten(2, (side, side))
    grid = F.interpolate(grid, scale_factor=factor, mode="bilinear").flatten(2).transpose(1, 2)
    state[positions] = torch.cat([state[positions][:, :1], grid], dim=1)
    model.load_state_dict(state)
    return model


def train(model: Model, rows: Augmented, out: Path, *, epochs: int, learning_rate: float, bf16: bool) -> Model:
    """`model` trained on `rows`, from `out` if it is there already."""
    if (out / "config.json").is_file():
        return type(model).from_pretrained(out)
    torch.manual_seed(0)
    checkpoints = out.with_name(f".{out.name}")
    arguments = TrainingArguments(
        str(checkpoints), num_train_epochs=epochs, per_device_train_batch_size=128, learning_rate=learning_rate,
        weight_decay=0.05, warmup_ratio=0.05, lr_scheduler_type="cosine", label_smoothing_factor=0.1, bf16=bf16,
        save_strategy="epoch", save_total_limit=1, logging_steps=50, report_to="none", disable_tqdm=True, seed=0,
        use_cpu=not torch.cuda.is_available(), dataloader_pin_memory=torch.cuda.is_available(),
    )  # fmt: skip
    trainer = Trainer(model=model, args=arguments, train_dataset=rows)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(checkpoints)) if checkpoints.is_dir() else None)
    model.save_pretrained(out)
    shutil.rmtree(checkpoints)
    return model


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/models/vit-cifar10"))
    parser.add_argument("--coarse-epochs", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--classes", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16, where the machine has it")
    wanted = parser.parse_args()
    rows = Augmented(*read_images(wanted.classes))
    torch.manual_seed(0)
    coarse = train(
        ViTForImageClassification(config(COARSE)), rows, wanted.out.with_name(f"{wanted.out.name}-coarse"),
        epochs=wanted.coarse_epochs, learning_rate=1e-3, bf16=wanted.bf16,
    )  # fmt: skip
    train(refined(coarse), rows, wanted.out, epochs=wanted.epochs, learning_rate=5e-4, bf16=wanted.bf16)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(wanted.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
