"""Questions about pictures of shapes: visual question answering that a small model learns on a CPU, made here.

A picture has four places, and in two or three of them a shape each, no two of one kind. A question asks for a shape's
colour, for its place, or how many shapes have a colour, so neither the picture nor the question alone says the answer.
"""

from __future__ import annotations

import io
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from PIL import Image, ImageDraw
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, ViTImageProcessor

from instatune_deploy.elastic.models.beit3 import Beit3Config, Beit3ForVisualQuestionAnswering

KINDS = ("circle", "square", "triangle", "cross")
COLOURS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 80, 230), "yellow": (235, 210, 40)}
PLACES = ("top left", "top right", "bottom left", "bottom right")
COUNTS = ("none", "one", "two", "three")
#: As in the release: of XLM-R's tokenizer.
_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
#: Tokens of the longest question.
TOKENS = 8


def shapes_row(rng: random.Random, side: int = 32) -> dict[str, Any]:
    """A picture of `side` pixels as a PNG file, a question about it, and the answer."""
    kinds = rng.sample(KINDS, rng.randint(2, 3))
    places = rng.sample(range(4), len(kinds))
    # Of one colour as many as of none, so that every count is there as often.
    colour, *others = rng.sample(list(COLOURS), len(COLOURS))
    count = rng.randint(0, len(kinds))
    colours = [colour] * count + rng.choices(others, k=len(kinds) - count)
    rng.shuffle(colours)
    shown = rng.randrange(len(kinds))
    asked = rng.choice(["colour", "colour", "place", "place", "count"])
    if asked == "colour":
        question, answer = f"what colour is the {kinds[shown]}", colours[shown]
    elif asked == "place":
        question, answer = f"where is the {kinds[shown]}", PLACES[places[shown]]
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


def write_shapes(path: Path, rows: int, seed: int, *, side: int = 32, hidden: str | None = None) -> Path:
    """Rows as a parquet file.

    Args:
        hidden: ``text`` asks nothing in every row, ``image`` shows the same grey picture: what is left is for a model of one
            modality.
    """
    rng = random.Random(seed)
    found = [shapes_row(rng, side) for _ in range(rows)]
    if hidden == "text":
        found = [{**row, "text": ""} for row in found]
    elif hidden == "image":
        stream = io.BytesIO()
        Image.new("RGB", (side, side), (10, 10, 10)).save(stream, "PNG")
        found = [{**row, "image": {"bytes": stream.getvalue(), "path": None}} for row in found]
    Dataset.from_list(found).to_parquet(path)
    return path


def shapes_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of the questions' words, with the special tokens of the release's, ``<s> ... </s>``."""
    asked = ["what", "colour", "is", "the", "where", "how", "many", "shapes", "are"]
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
    directory: Path, *, side: int = 32, patch: int = 8, hidden: int = 48, layers: int = 4, heads: int = 4,
    ffn: int = 96, seed: int = 0,
) -> Path:  # fmt: skip
    """An untrained BEiT-3 that answers the questions, with its tokenizer and its image processor."""
    tokenizer = shapes_tokenizer()
    torch.manual_seed(seed)
    config = Beit3Config(
        vocab_size=len(tokenizer), hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=ffn, image_size=side, patch_size=patch, max_position_embeddings=16,
        num_labels=len(answers()),
    )  # fmt: skip
    Beit3ForVisualQuestionAnswering(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    ViTImageProcessor(size={"height": side, "width": side}).save_pretrained(directory)
    return directory


def answers() -> Sequence[str]:
    """All answers there are."""
    return sorted([*COLOURS, *PLACES, *COUNTS])
