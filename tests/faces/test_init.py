"""`init`: what it finds out of models and rows, and that a run accepts what it writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from datasets import ClassLabel, Dataset, DatasetDict
from PIL import Image
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from benchmarks.shapes_task import write_shapes, write_shapes_model
from instatune_deploy.values.recipe import read_recipe
from tests.helpers import TARGET, call_main, write_image_model, write_text_data, write_text_model

Init = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models")
    write_text_model(directory / "text")
    (directory / "image").mkdir()
    write_image_model(directory / "image")
    return directory


@pytest.fixture
def init(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Init:  # fmt: skip
    """Drafts a recipe in an empty directory; what the YAML says, as it stands there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "targets").mkdir()
    (tmp_path / "targets" / "cpu-test.yaml").write_text(yaml.safe_dump(TARGET))

    def draft(data: object, *options: str, model: str = "text", code: int = 0) -> dict[str, Any]:
        arguments = ("init", models / model, data, "--target", "cpu-test", "--no-estimate", *options)
        found, out, last = call_main(monkeypatch, capsys, *arguments)
        assert found == code, last
        if code:
            return {"error": last}
        text = Path("recipe.yaml").read_text()
        assert out == text
        return {**yaml.safe_load(text), "text": text}

    return draft


def sentences(n: int = 200) -> dict[str, list[Any]]:
    """Texts of one to four words, and which of two words they begin with."""
    texts = [" ".join([("good", "bad")[i % 2], *["film"] * (i % 4)]) for i in range(n)]
    return {"text": texts, "label": [i % 2 for i in range(n)]}


def test_a_file_and_the_split_beside_it(init: Init, tmp_path: Path) -> None:
    write_text_data(tmp_path / "train.parquet", 300, seed=1)
    write_text_data(tmp_path / "validation.parquet", 50, seed=2)
    found = init("train.parquet")
    assert found["task"] == "text-classification"
    assert found["data"] == {
        "train": "./train.parquet", "report": "./validation.parquet", "text": "text", "label": "label", "search_rows": 60,
        "sequence_length": 16,
    }  # fmt: skip
    assert found["model"].startswith("../")  # relative to the recipe
    assert found["space"] == {"depths": [1, 2, 3], "heads": [2, 3, 4], "ffn": [16, 48, 64]}
    assert found["finetune"] == "best"
    assert found["targets"] == {"cpu-test": ["50%"]}
    for comment in (
        "# 300 rows",
        "# 2 classes: 0, 1",
        "tokens of 300 training texts: median ",
        "not fine-tuned for this task",
    ):
        assert comment in found["text"]
    recipe = read_recipe(Path("recipe.yaml"))
    assert Path(recipe.data.train) == tmp_path / "train.parquet"


def test_it_replaces_nothing_unless_told(init: Init, tmp_path: Path) -> None:
    write_text_data(tmp_path / "train.parquet", 300, seed=1)
    Path("recipe.yaml").write_text("mine")
    assert "exists already" in init("train.parquet", code=2)["error"]
    assert Path("recipe.yaml").read_text() == "mine"
    assert init("train.parquet", "--force")["task"] == "text-classification"


def test_a_run_would_do_what_it_wrote_and_says_how_long(
    init: Init, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_text_data(tmp_path / "train.parquet", 300, seed=1)
    arguments = ("init", models / "text", "train.parquet", "-o", "new/r.yaml", "--target", "cpu-test", "--json")
    code, out, _ = call_main(monkeypatch, capsys, *arguments)
    plan = json.loads(out)["plan"]
    assert code == 0
    assert plan["estimated_minutes"] > 0
    assert plan["measured"]["elastic_step_s"] > 0
    assert "# A run should take about " in Path("new/r.yaml").read_text()
    code, out, _ = call_main(monkeypatch, capsys, "run", "new/r.yaml", "--dry-run", "--json")
    assert code == 0
    assert [step["kind"] for step in json.loads(out)["steps"]] == [step["kind"] for step in plan["steps"]]


def test_splits_that_datasets_wrote_without_labels_are_passed_over(init: Init) -> None:
    rows = Dataset.from_dict(sentences()).cast_column("label", ClassLabel(names=["up", "down"]))
    unlabelled = rows.map(lambda row: {"label": -1})
    DatasetDict(train=rows, validation=unlabelled, test=rows.select(range(40))).save_to_disk("mine")
    found = init("mine")
    assert (found["data"]["train"], found["data"]["report"]) == ("./mine/train", "./mine/test")
    assert "passed over as report split: mine/validation: has rows without a label" in found["text"]
    assert "2 classes: up, down" in found["text"]


def test_pairs_and_numbers_of_a_csv(init: Init) -> None:
    texts = sentences()["text"]
    Dataset.from_dict(
        {"id": range(200), "sentence1": texts, "sentence2": texts[::-1], "score": [i / 200 - 1 for i in range(200)]}
    ).to_csv("train.csv", index=False)
    found = init("train.csv", "--report", "train.csv")
    assert found["task"] == "text-regression"
    assert found["data"]["report"] == "./train.csv"
    wanted = {"text": "sentence1", "text_pair": "sentence2", "label": "score"}
    assert {key: found["data"][key] for key in wanted} == wanted


def test_classes_by_name_in_json_lines_and_no_report_split(init: Init) -> None:
    rows = sentences()
    path = Path("reviews.jsonl")
    lines = [
        json.dumps({"review_id": f"r{i}", "review": text, "verdict": ("bad", "so\ngood: yes")[label]})
        for i, (text, label) in enumerate(zip(rows["text"], rows["label"], strict=True))
    ]
    path.write_text("\n".join(lines))
    found = init(path, "--text", "review")
    assert (found["data"]["text"], found["data"]["label"]) == ("review", "verdict")
    assert found["data"]["report_rows"] == 40
    assert "the label is the column of few different values" in found["text"]
    assert "# 2 classes: bad, so good: yes" in found["text"]


def test_words_and_tags(init: Init) -> None:
    tokens = [["good", "film"], ["bad", "plot", "cast"]] * 100
    tags = [["O", "B-X"], ["O", "B-X", "I-X"]] * 100
    Dataset.from_dict({"tokens": tokens, "ner_tags": tags}).to_parquet("train.parquet")
    found = init("train.parquet")
    assert found["task"] == "token-classification"
    assert (found["data"]["tokens"], found["data"]["tags"]) == ("tokens", "ner_tags")
    assert "3 classes: B-X, I-X, O" in found["text"]
    assert found["reset_head"] is True or "reset_head" not in found


def test_questions(init: Init) -> None:
    answers = [{"text": ["film"], "answer_start": [5]}] * 200
    Dataset.from_dict(
        {"question": ["good plot"] * 200, "context": ["good film cast"] * 200, "answers": answers}
    ).to_parquet("train.parquet")
    found = init("train.parquet")
    assert found["task"] == "question-answering"
    assert found["data"]["doc_stride"] < found["data"]["sequence_length"] == 16


def test_a_folder_of_images(init: Init) -> None:
    for number in range(60):
        for split in ("train", "val"):
            path = Path("photos") / split / ("cat" if number % 2 else "dog") / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (9, 9), (number * 4, 0, 0)).save(path)
    found = init("photos", model="image")
    assert found["task"] == "image-classification"
    assert (found["data"]["train"], found["data"]["report"]) == ("./photos/train", "./photos/val")
    assert "2 classes: cat, dog" in found["text"]
    assert "sequence_length" not in found["data"]


def test_questions_about_images(init: Init, models: Path, tmp_path: Path) -> None:
    write_shapes_model(models / "shapes", layers=2, hidden=48, heads=4, ffn=96)
    rows = Dataset.from_parquet(str(write_shapes(tmp_path / "shapes.parquet", 120, seed=1)))
    rows.rename_columns({"text": "question", "label": "answer"}).to_parquet("train.parquet")
    found = init("train.parquet", model="shapes")
    assert found["task"] == "visual-question-answering"
    names = {key: found["data"][key] for key in ("image", "text", "label")}
    assert names == {"image": "image", "text": "question", "label": "answer"}
    assert found["data"]["sequence_length"] == 14  # it has no more positions
    assert found["space"]["depths"] == [1, 2]
    assert "7 classes: blue, green, none" in found["text"]


def test_a_head_for_other_classes_is_replaced(init: Init) -> None:
    rows = sentences()
    rows["label"] = [i % 3 for i in range(200)]
    Dataset.from_dict(rows).to_parquet("train.parquet")
    found = init("train.parquet")
    assert found["reset_head"] is True
    assert "has shape (2,), expected (3,)" in found["text"]


def test_a_model_that_does_the_task_needs_no_teacher(init: Init, models: Path, tmp_path: Path) -> None:
    Dataset.from_dict(sentences()).to_parquet("train.parquet")
    model = AutoModelForSequenceClassification.from_pretrained(models / "text")
    tokenizer = AutoTokenizer.from_pretrained(models / "text")
    rows = sentences(64)
    batch = {**tokenizer(rows["text"], padding=True, return_tensors="pt"), "labels": torch.tensor(rows["label"])}
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(40):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    model.save_pretrained(models / "tuned")
    tokenizer.save_pretrained(models / "tuned")
    found = init("train.parquet", model="tuned")
    assert found["finetune"] == {"preset": "best", "teacher": None}
    assert "# fine-tuned already: accuracy 1.000 on 96 training rows before any training" in found["text"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"flag": [True, False] * 50, "text": ["film"] * 100}, "which column is the label? its columns: flag (truth)"),
        ({"label": [True, False] * 50, "text": ["film"] * 100}, "make these the whole numbers 1 and 0"),
        ({"label": [0, 1] * 50, "size": [0.5] * 100}, "no column holds texts"),
    ],
)
def test_what_cannot_be_told_is_a_line(init: Init, columns: dict[str, list[Any]], message: str) -> None:
    Dataset.from_dict(columns).to_parquet("train.parquet")
    assert message in init("train.parquet", code=2)["error"]
