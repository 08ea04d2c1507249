"""Rows in, splits out; what is wrong with rows is said with their number."""

from __future__ import annotations

import io
import itertools
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from PIL import Image
from transformers import AutoTokenizer, ViTImageProcessor

from instatune_deploy.data.dataset import open_report_split, open_task_data, read_rows
from instatune_deploy.data.metrics import score
from instatune_deploy.data.processor import Processor
from instatune_deploy.errors import CheckpointError, DatasetError, UnknownNameError
from instatune_deploy.values.recipe import DataSection
from instatune_deploy.workspace import tree_key
from tests.helpers import make_family, write_image_data, write_image_model, write_text_data, write_text_model

TEXT = "text-classification"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Processor:
    return Processor(str(write_text_model(tmp_path_factory.mktemp("m") / "model")), TEXT, 16)


def section(path: Path, **changes: Any) -> DataSection:
    return DataSection(**{"train": str(path), "search_rows": 20, "report_rows": 10, **changes})


def write(path: Path, rows: dict[str, list[Any]]) -> Path:
    Dataset.from_dict(rows).to_parquet(path)
    return path


def numbered(path: Path, n: int = 60) -> Path:
    return write(
        path, {"text": [f"good film {i}" for i in range(n)], "label": [i % 2 for i in range(n)], "id": list(range(n))}
    )


def test_splits_are_disjoint_complete_and_fixed_by_the_seed(tmp_path: Path, tokenizer: Processor) -> None:
    words = ["good", "bad", "film", "plot"]
    texts = [" ".join(combination) for combination in itertools.islice(itertools.product(words, repeat=4), 60)]
    path = write(tmp_path / "t.parquet", {"text": texts, "label": [i % 2 for i in range(60)]})
    parts = []
    for _ in range(2):
        data = open_task_data(section(path), TEXT, tokenizer, seed=3)
        report = open_report_split(section(path), TEXT, tokenizer, seed=3)
        parts.append([{tuple(ids) for ids in split.rows["input_ids"]} for split in (data.train, data.search, report)])
    assert parts[0] == parts[1]
    assert [len(part) for part in parts[0]] == [30, 20, 10]
    assert set().union(*parts[0]) == {tuple(ids) for ids in tokenizer.encode_texts(texts)["input_ids"]}
    other = open_task_data(section(path), TEXT, tokenizer, seed=4)
    assert {tuple(ids) for ids in other.search.rows["input_ids"]} != parts[0][1]


def test_without_shuffling_the_last_rows_are_kept_aside(tmp_path: Path, tokenizer: Processor) -> None:
    labels = [0] * 25 + [1] * 5 + [0] * 20 + [1] * 10
    path = write(tmp_path / "t.parquet", {"text": ["film"] * 60, "label": labels})
    data = open_task_data(section(path, shuffle=False), TEXT, tokenizer, seed=0)
    report = open_report_split(section(path, shuffle=False), TEXT, tokenizer, seed=0)
    assert data.train.labels.tolist() == labels[:30]
    assert data.search.labels.tolist() == labels[30:50]
    assert report.labels.tolist() == labels[50:]


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "deberta-v2"])
def test_a_model_of_texts_without_a_tokenizer_is_said(tmp_path: Path, family: str) -> None:
    make_family(family).model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="no tokenizer can be loaded"):
        Processor(str(tmp_path), TEXT, 16)


@pytest.mark.parametrize(
    ("trained", "reported"),
    [
        (Features(text=Value("string"), label=ClassLabel(names=["neg", "pos"])), ["pos", "neg"]),
        (Features(text=Value("string"), label=ClassLabel(names=["neg", "neutral", "pos"])), ["neg", "pos"]),
    ],
)
def test_a_class_of_the_report_rows_is_the_one_of_its_name(
    tmp_path: Path, tokenizer: Processor, trained: Features, reported: list[str]
) -> None:
    texts = [f"good film {i}" for i in range(60)]
    names = trained["label"].names
    rows = {"text": texts, "label": [i % len(names) for i in range(60)]}
    Dataset.from_dict(rows, features=trained).to_parquet(tmp_path / "train.parquet")
    features = Features(text=Value("string"), label=ClassLabel(names=reported))
    Dataset.from_dict({"text": texts[:4], "label": [0, 1, 1, 0]}, features=features).to_parquet(tmp_path / "r.parquet")
    data = section(tmp_path / "train.parquet", report=str(tmp_path / "r.parquet"))
    found = open_report_split(data, TEXT, tokenizer, seed=0)
    assert [names[label] for label in found.labels] == [reported[number] for number in (0, 1, 1, 0)]


def test_numbers_of_the_report_rows_are_names_where_the_training_rows_have_names(
    tmp_path: Path, tokenizer: Processor
) -> None:
    labels = ["1", "2", "3", "many"]
    path = tmp_path / "train.csv"
    path.write_text("text,label\n" + "".join(f"good film {i},{labels[i % 4]}\n" for i in range(60)))
    (tmp_path / "report.csv").write_text("text,label\n" + "".join(f"bad film,{number}\n" for number in (1, 2, 3)))
    found = open_report_split(section(path, report=str(tmp_path / "report.csv")), TEXT, tokenizer, seed=0)
    assert [labels[label] for label in found.labels] == ["1", "2", "3"]


def test_csv_json_lines_and_saved_directories_give_the_same_rows(tmp_path: Path, tokenizer: Processor) -> None:
    parquet = write_text_data(tmp_path / "t.parquet", 60, seed=0)
    rows = Dataset.from_parquet(str(parquet))
    rows.to_csv(tmp_path / "t.csv")
    rows.to_json(tmp_path / "t.jsonl")
    rows.save_to_disk(tmp_path / "saved")
    found = [
        open_task_data(section(tmp_path / name), TEXT, tokenizer, seed=0).train.rows["input_ids"][:]
        for name in ("t.parquet", "t.csv", "t.jsonl", "saved")
    ]
    assert all(part == found[0] for part in found)


@pytest.mark.parametrize("task", [TEXT, "image-classification"])
def test_a_saved_directory_stays_as_it_is(tmp_path: Path, task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    write, write_model = (write_text_data, write_text_model) if task == TEXT else (write_image_data, write_image_model)
    processor = Processor(str(write_model(tmp_path / "model")), task, 16)
    Dataset.from_parquet(str(write(tmp_path / "t.parquet", 60, seed=0))).save_to_disk(tmp_path / "saved")
    before = sorted((path.name, path.stat().st_mtime_ns) for path in (tmp_path / "saved").iterdir())
    key = tree_key(tmp_path / "saved")
    data = open_task_data(section(tmp_path / "saved"), task, processor, seed=0)
    report = open_report_split(section(tmp_path / "saved"), task, processor, seed=0)
    assert len(data.train.rows[:]["labels"]) + len(data.search.rows[:]["labels"]) + len(report.rows[:]["labels"]) == 60
    assert sorted((path.name, path.stat().st_mtime_ns) for path in (tmp_path / "saved").iterdir()) == before
    assert tree_key(tmp_path / "saved") == key
    files = [Path(file["filename"]) for rows in (data.train.rows, report.rows) for file in rows.cache_files]
    assert files  # rows are not in memory
    assert all(cache in file.parents for file in files)


def test_a_directory_that_was_saved_anew_is_read_anew(tmp_path: Path) -> None:
    for texts in (["good film"] * 3, ["bad film"] * 2):
        Dataset.from_dict({"text": texts}).save_to_disk(tmp_path / "saved")
        assert read_rows(str(tmp_path / "saved"))["text"][:] == texts


def test_quotes_in_tab_separated_files_are_text_unless_they_stand_around_fields(tmp_path: Path) -> None:
    glue = ['"good', 'film "', "bad", 'a "fine" plot', '"very" sad', '"', '"quoted"']
    (tmp_path / "glue.tsv").write_text("text\tlabel\n" + "".join(f"{text}\t1\n" for text in glue))
    assert read_rows(str(tmp_path / "glue.tsv"))["text"][:] == glue
    quoted = ['"good', 'film "', "bad\tfilm", "of\nlines", "plain", '"quoted"']
    Dataset.from_dict({"text": quoted, "label": [1] * 6}).to_csv(tmp_path / "quoted.tsv", sep="\t")
    assert read_rows(str(tmp_path / "quoted.tsv"))["text"][:] == quoted
    one_a_line = [text for text in quoted if "\n" not in text and "\t" not in text]
    Dataset.from_dict({"text": one_a_line, "label": [1] * 4}).to_csv(tmp_path / "lines.tsv", sep="\t")
    assert read_rows(str(tmp_path / "lines.tsv"))["text"][:] == one_a_line


def test_class_names_become_indices(tmp_path: Path, tokenizer: Processor) -> None:
    names = write(tmp_path / "names.parquet", {"text": ["film"] * 60, "label": ["pos", "neg"] * 30})
    data = open_task_data(section(names), TEXT, tokenizer, seed=0)
    assert data.classes == ("neg", "pos")
    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes", "maybe"])})
    Dataset.from_dict({"text": ["film"] * 60, "label": [0, 1] * 30}, features).save_to_disk(tmp_path / "typed")
    assert open_task_data(section(tmp_path / "typed"), TEXT, tokenizer, seed=0).classes == ("no", "yes", "maybe")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"text": [], "label": []}, "is empty"),
        ({"sentence": ["film"] * 60, "label": [0, 1] * 30}, "has no column 'text'; its columns: sentence, label"),
        ({"text": ["film"] * 60, "y": [0, 1] * 30}, "has no column 'label'; its columns: text, y"),
        ({"text": ["film"] * 60, "label": [1] * 60}, "all 30 training rows have the same label"),
        ({"text": ["film"] * 60, "label": [0.5, 1.5] * 30}, "holds neither whole numbers nor class names"),
        ({"text": ["film"] * 60, "label": [0, 1, -1] * 20}, "label -1 is not one of the 2 training classes"),
        ({"text": ["film"] * 60, "label": [0, 1, None] * 20}, "label None is not one of the 2 training classes"),
        ({"text": ["film", None] * 30, "label": [0, 1] * 30}, "text is None, not a text"),
        ({"text": ["film"] * 25, "label": [0, 1] * 12 + [0]}, "25 rows are too few to keep 30 aside"),
    ],
)
def test_unusable_rows_are_refused_with_the_reason(
    tmp_path: Path, tokenizer: Processor, rows: dict[str, list[Any]], message: str
) -> None:
    path = write(tmp_path / "t.parquet", rows)
    with pytest.raises(DatasetError, match=message):
        open_task_data(section(path), TEXT, tokenizer, seed=0)


def test_a_report_label_that_training_does_not_know_is_refused(tmp_path: Path, tokenizer: Processor) -> None:
    train = write_text_data(tmp_path / "t.parquet", 60, seed=0)
    report = write(tmp_path / "r.parquet", {"text": ["film"] * 3, "label": [0, 1, 2]})
    with pytest.raises(DatasetError, match="report split, row 2: label 2 is not one of the 2 training classes"):
        open_report_split(section(train, report=str(report)), TEXT, tokenizer, seed=0)


def test_sources_that_are_not_there_or_not_data(tmp_path: Path, tokenizer: Processor) -> None:
    with pytest.raises(DatasetError, match="no such file or directory"):
        open_task_data(section(tmp_path / "none.parquet"), TEXT, tokenizer, seed=0)
    (tmp_path / "bad.parquet").write_bytes(b"these are no rows")
    with pytest.raises(DatasetError, match=r"bad\.parquet: cannot be read as a dataset"):
        open_task_data(section(tmp_path / "bad.parquet"), TEXT, tokenizer, seed=0)


def test_text_batches_hold_every_row_once_with_little_padding(tmp_path: Path, tokenizer: Processor) -> None:
    split = open_task_data(section(write_text_data(tmp_path / "t.parquet", 90, seed=0)), TEXT, tokenizer, seed=0).train
    seen = []
    for numbers, inputs in tokenizer.batches(split.rows, 16):
        seen += numbers.tolist()
        assert set(inputs) == {"input_ids", "attention_mask", "token_type_ids"}
        for number, ids, mask in zip(numbers, inputs["input_ids"], inputs["attention_mask"], strict=True):
            assert ids[mask == 1].tolist() == split.rows[int(number)]["input_ids"]
        assert inputs["attention_mask"].sum(axis=1).max() == inputs["input_ids"].shape[1]
    assert sorted(seen) == list(range(len(split)))


class Read:
    """A tokenizer that keeps how many characters it was given at a time."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.characters = inner, list[int]()

    def __call__(self, texts: list[str], pairs: list[str] | None = None, **options: Any) -> Any:
        self.characters.append(sum(map(len, [*texts, *(pairs or [])])))
        return self.inner(texts, pairs, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


@pytest.mark.parametrize(
    ("text", "most"),
    [
        ("good film " * 20_000, 2_000), ("good " * 5, 2_000), (" " * 100_000 + "bad film " * 30, None),
        ("x" * 100_000 + " good" * 30, None), ("very bad" + " " * 100_000, None),
    ],
)  # fmt: skip
def test_a_text_is_read_as_far_as_it_is_kept(tmp_path: Path, text: str, most: int | None) -> None:
    processor = Processor(str(write_text_model(tmp_path / "model")), TEXT, 16)
    whole, read = processor.inner, Read(processor.inner)
    processor.inner = read
    for pairs in (None, ["bad good"]):
        expected = whole([text], pairs, truncation="longest_first", max_length=16)
        assert processor.encode_texts([text], pairs) == dict(expected)
    assert most is None or max(read.characters) < most
    processor.inner = whole
    rooms = processor.room_beside([text, "good"])
    assert rooms[1] == 12
    assert rooms[0] == 13 - len(whole.tokenize(text)) or rooms[0] < 0


def test_a_tokenizer_makes_what_its_model_reads_alone(tmp_path: Path) -> None:
    """DistilBERTs are saved with tokenizers of BERTs, which make segments, too."""
    write_text_model(tmp_path / "model")
    model = make_family("distilbert").model
    model.save_pretrained(tmp_path / "model")
    processor = Processor(str(tmp_path / "model"), TEXT, 16)
    rows = open_task_data(
        section(write_text_data(tmp_path / "t.parquet", 90, seed=0)), TEXT, processor, seed=0
    ).train.rows
    assert set(next(processor.batches(rows, 4))[1]) == {"input_ids", "attention_mask"}
    assert model(**next(processor.labelled_batches(rows, 4))).loss > 0
    processor.save(tmp_path / "saved")
    saved = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert set(saved("good film", "bad plot")) == {"input_ids", "attention_mask"}


def _png(value: int, dtype: Any = np.uint8) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((8, 8), value, dtype=dtype)).save(stream, "PNG")
    return stream.getvalue()


def test_images_come_as_bytes_or_arrays(tmp_path: Path) -> None:
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(tmp_path / "model")
    processor = Processor(str(tmp_path / "model"), "image-classification", 1)
    as_bytes = write(tmp_path / "b.parquet", {"image": [_png(4 * i) for i in range(60)], "label": [0, 1] * 30})
    arrays = [[[4 * i] * 8] * 8 for i in range(60)]
    deep = [_png(257 * 4 * i, np.uint16) for i in range(60)]
    of_16_bits = write(tmp_path / "d.parquet", {"image": deep, "label": [0, 1] * 30})
    as_arrays = write(tmp_path / "a.parquet", {"image": arrays, "label": [0, 1] * 30})
    found = []
    for path in (as_bytes, as_arrays, of_16_bits):
        split = open_task_data(section(path), "image-classification", processor, seed=0).search
        numbers, inputs = next(processor.batches(split.rows, 20))
        assert numbers.tolist() == list(range(20))
        assert inputs["pixel_values"].shape == (20, 3, 8, 8)
        found.append(inputs["pixel_values"])
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])
    broken = write(tmp_path / "c.parquet", {"image": [b"no image"] * 60, "label": [0, 1] * 30})
    split = open_task_data(section(broken), "image-classification", processor, seed=0).search
    with pytest.raises(DatasetError, match="an image cannot be decoded"):
        split.rows[0]


def test_a_model_without_a_processor_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no tokenizer can be loaded"):
        Processor(str(tmp_path), TEXT, 16)


def test_metrics() -> None:
    labels, logits = np.array([0, 1, 1, 0]), np.array([[2, 1], [0, 1], [3, 1], [1, 0]])
    assert score("accuracy", labels, logits) == 0.75
    assert score("f1", labels, logits) == pytest.approx((0.8 + 2 / 3) / 2)
    assert score("matthews", labels, logits) == pytest.approx(0.57735, abs=1e-5)
    with pytest.raises(UnknownNameError, match="did you mean 'accuracy'"):
        score("acuracy", labels, logits)
