"""A small model, and small data for each kind of text task that can be learnt in seconds."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import BertConfig, BertModel, BertTokenizerFast

from tests.helpers import WORDS

#: Longest input of the model, in tokens; contexts of questions are longer.
TOKENS = 16
GOOD, BAD, PLAIN = WORDS[1], WORDS[0], WORDS[None]


def write_body(directory: Path) -> Path:
    """A BERT of 3 layers with random weights and no head, and a tokenizer that splits plurals off."""
    directory.mkdir(parents=True)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *GOOD, *BAD, *PLAIN, "##s"]
    (directory / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    BertTokenizerFast(vocab_file=str(directory / "vocab.txt"), model_max_length=TOKENS).save_pretrained(directory)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=TOKENS,
    )  # fmt: skip
    BertModel(config).save_pretrained(directory)
    return directory


def some(rng: random.Random, words: list[str], least: int, most: int) -> list[str]:
    """Between `least` and `most` of the words, some in the plural."""
    return [rng.choice(words) + rng.choice(["", "s"]) for _ in range(rng.randint(least, most))]


def pair_row(rng: random.Random) -> dict[str, Any]:
    """Two texts; the second one alone says what their class is."""
    label = rng.randrange(2)
    words = [*some(rng, (BAD, GOOD)[label], 1, 2), *some(rng, PLAIN, 1, 2)]
    rng.shuffle(words)
    return {"premise": " ".join(some(rng, PLAIN, 1, 4)), "hypothesis": " ".join(words), "entailed": label}


def score_row(rng: random.Random) -> dict[str, Any]:
    """Two texts, and how many more good than bad words there are in both."""
    good, bad = some(rng, GOOD, 0, 3), some(rng, BAD, 0, 3)
    words = [*good, *bad, *some(rng, PLAIN, 1, 2)]
    rng.shuffle(words)
    middle = len(words) // 2
    return {
        "text": " ".join(words[:middle]),
        "other": " ".join(words[middle:]),
        "stars": 0.5 * (len(good) - len(bad)),
    }


def tagged_row(rng: random.Random) -> dict[str, Any]:
    """Words in which entities are a good or bad word and the word ``very`` after it."""
    words, tags = [], []
    for _ in range(rng.randint(2, 6)):
        kind = rng.choice(["GOOD", "BAD", None, None])
        words += some(rng, {"GOOD": GOOD, "BAD": BAD, None: PLAIN[:3]}[kind], 1, 1)
        tags.append("O" if kind is None else f"B-{kind}")
        if rng.random() < 0.3:
            words.append("very")
            tags.append("O" if kind is None else f"I-{kind}")
    return {"words": words, "entities": tags}


def question_row(rng: random.Random) -> dict[str, Any]:
    """A context, often longer than the model reads, whose only good word, always in the plural, is the answer."""
    words = [rng.choice([*PLAIN, *BAD]) for _ in range(rng.randint(6, 18))]
    place = rng.randrange(len(words))
    words[place] = rng.choice(GOOD) + "s"
    start = len("".join(f"{word} " for word in words[:place]))
    return {
        "question": rng.choice(["very good", "good"]),
        "context": " ".join(words),
        "answers": {"text": [words[place]], "answer_start": [start]},
    }


ROWS: dict[str, Callable[[random.Random], dict[str, Any]]] = {
    "text-classification": pair_row,
    "text-regression": score_row,
    "token-classification": tagged_row,
    "question-answering": question_row,
}
#: What a recipe says of the rows.
SECTIONS: dict[str, dict[str, Any]] = {
    "text-classification": {"text": "premise", "text_pair": "hypothesis", "label": "entailed"},
    "text-regression": {"text_pair": "other", "label": "stars"},
    "token-classification": {"tokens": "words", "tags": "entities"},
    "question-answering": {"doc_stride": 4},
}


def write_rows(path: Path, task: str, rows: int, seed: int) -> Path:
    """Rows of a task as a parquet file."""
    rng = random.Random(seed)
    Dataset.from_list([ROWS[task](rng) for _ in range(rows)]).to_parquet(path)
    return path
