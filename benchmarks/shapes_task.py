"""Questions about pictures of shapes: visual question answering that a small model learns on a CPU, made here.

A picture has four places, and in two or three of them a shape each, no two of one kind. A question asks for a shape's
colour, which it names by its kind or by its place, or how many shapes have a colour, so neither the picture nor the question alone says the answer.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset
from PIL import Image, ImageDraw
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast, ViTImageProcessor

from instatune_deploy.data.processor import Processor
from instatune_deploy.elastic.models.beit3 import Beit3Config, Beit3ForVisualQuestionAnswering

KINDS = ("circle", "square", "triangle", "cross")
COLOURS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 80, 230), "yellow": (235, 210, 40)}
PLACES = ("top left", "top right", "bottom left", "bottom right")
COUNTS = ("none", "one", "two")
#: As in the release: of XLM-R's tokenizer.
_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
#: Tokens of the longest question.
TOKENS = 8


def shapes_row(rng: random.Random, side: int = 32) -> dict[str, Any]:
    """A picture of `side` pixels as a PNG file, a question about it, and the answer."""
    kinds = rng.sample(KINDS, rng.randint(2, 3))
    places = rng.sample(range(4), len(kinds))
    # Every count of one colour is there as often; the others differ, so that guessing one of the picture's helps little.
    colour, *others = rng.sample(list(COLOURS), len(COLOURS))
    count = rng.randint(0, len(COUNTS) - 1)
    colours = [colour] * count + others[: len(kinds) - count]
    rng.shuffle(colours)
    shown = rng.randrange(len(kinds))
    asked = rng.choice(["kind", "place", "count"])
    if asked != "count":
        named = kinds[shown] if asked == "kind" else f"{PLACES[places[shown]]} shape"
        question, answer = f"what colour is the {named}", colours[shown]
    else:
        question, answer = f"how many shapes are {colour}", COUNTS[count]
    grey = rng.randrange(20)
    image = Image.new("RGB", (side, side), (grey, grey, grey))
    for kind, place, own in zip(kinds, places, colours, strict=True):
        _draw(ImageDraw.Draw(image), kind, place, COLOURS[own], side, rng)
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return {"image": {"bytes": stream.getvalue(), "path": None}, "text": question, "label": answer}


def _draw(
    draw: ImageDraw.ImageDraw, kind: str, place: int, colour: tuple[int, int, int], side: int, rng: random.Random
) -> None:
    """Draw a shape about the middle of its quarter of the picture, a little larger or smaller."""
    cell = side // 2
    size = 3 * cell // 4 + rng.randint(-1, 1)
    left, top = (cell * part + (cell - size) // 2 + rng.randint(0, 1) for part in (place % 2, place // 2))
    right, bottom = left + size - 1, top + size - 1
    if kind == "circle":
        draw.ellipse((left, top, right, bottom), fill=colour)
    elif kind == "square":
        draw.rectangle((left, top, right, bottom), fill=colour)
    elif kind == "triangle":
        draw.polygon([(left, bottom), (right, bottom), ((left + right) / 2, top)], fill=colour)
    else:
        third = size // 3
        draw.rectangle((left + third, top, right - third, bottom), fill=colour)
        draw.rectangle((left, top + third, right, bottom - third), fill=colour)


def write_shapes(path: Path, rows: int, seed: int, *, side: int = 32) -> Path:
    """Rows as a parquet file."""
    rng = random.Random(seed)
    Dataset.from_list([shapes_row(rng, side) for _ in range(rows)]).to_parquet(path)
    return path


def shapes_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of the questions' words, with the special tokens of the release's, ``<s> ... </s>``."""
    asked = ["what", "colour", "shape", "is", "the", "top", "bottom", "left", "right", "how", "many", "shapes", "are"]
    words = [*_SPECIAL, *asked, *KINDS, *COLOURS]
    inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", cls_token="<s>", sep_token="</s>", pad_token="<pad>",
        unk_token="<unk>", model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


def write_shapes_model(
    directory: Path, *, side: int = 32, patch: int = 16, hidden: int = 48, layers: int = 4, heads: int = 4,
    ffn: int = 96, seed: int = 0, resize: bool = True,
) -> Path:  # fmt: skip
    """An untrained BEiT-3 that answers the questions, with its tokenizer and its image processor.

    Args:
        resize: whether the image processor gives pictures the right size, for those that have another.
    """
    tokenizer = shapes_tokenizer()
    torch.manual_seed(seed)
    config = Beit3Config(
        vocab_size=len(tokenizer), hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=ffn, image_size=side, patch_size=patch, max_position_embeddings=16,
        num_labels=len(answers()), initializer_range=0.1,
    )  # fmt: skip
    model = Beit3ForVisualQuestionAnswering(config)
    with torch.no_grad():  # hundreds of pixels add up in a patch, and must not drown its position
        model.beit3.vision_embed.proj.weight.mul_(0.3)
        model.beit3.encoder.embed_positions.A.weight.mul_(3.0)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    ViTImageProcessor(do_resize=resize, size={"height": side, "width": side}).save_pretrained(directory)
    return directory


def learn(
    model: PreTrainedModel, batch: Mapping[str, Tensor], *, steps: int, rate: float = 4e-3, size: int = 64, seed: int = 0,
    report: Callable[[str], None] = lambda line: None,
) -> PreTrainedModel:  # fmt: skip
    """Train a model plainly, on rows that are all in memory; the rate rises for a tenth of the steps and falls to nothing.

    Args:
        batch: the model's inputs and labels, rows first.
        size: rows a step.
    """
    generator, rows = torch.Generator().manual_seed(seed), len(batch["labels"])
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: min(10 * (n + 1) / steps, 1 - n / steps))
    model.train()
    for step in range(steps):
        chosen = torch.randint(rows, (size,), generator=generator)
        loss = model(**{name: tensor[chosen] for name, tensor in batch.items()}).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            report(f"step {step + 1}/{steps}: loss {float(loss.detach()):.3f}")
    return model.eval()


@torch.inference_mode()
def accuracy(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> float:
    """Share of the rows of `batch` that a model answers right."""
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    return float((model.eval()(**inputs).logits.argmax(-1) == batch["labels"]).float().mean())


def hide(batch: Mapping[str, Tensor], what: Literal["image", "text"]) -> dict[str, Tensor]:
    """The same rows with every image grey or every question blank: what is left is for a model of one modality."""
    found = dict(batch)
    if what == "image":
        found["pixel_values"] = torch.zeros_like(batch["pixel_values"])
    else:  # <s> and </s> alone
        found["input_ids"] = torch.tensor([[0, 2]]).repeat(len(batch["labels"]), 1)
        found["attention_mask"] = torch.ones_like(found["input_ids"])
    return found


def shapes_batch(rows: int, seed: int, processor: Processor, *, side: int = 32) -> dict[str, Tensor]:
    """Rows as tensors: `input_ids`, `attention_mask`, `pixel_values` and `labels`, rows first."""
    rng, known = random.Random(seed), list(answers())
    found = [shapes_row(rng, side) for _ in range(rows)]
    images = [Image.open(io.BytesIO(row["image"]["bytes"])) for row in found]
    texts = processor.inner([row["text"] for row in found], padding=True, return_tensors="pt")
    return {
        **texts, "pixel_values": torch.from_numpy(processor.encode_images(images)["pixel_values"]),
        "labels": torch.tensor([known.index(row["label"]) for row in found]),
    }  # fmt: skip


def answers() -> Sequence[str]:
    """All answers there are."""
    return sorted([*COLOURS, *COUNTS])
