"""What is particular to each task: labels that fit the tokens, scores by hand, bad rows refused by number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Sequence, Value
from transformers import BertTokenizerFast, ByT5Tokenizer, RobertaTokenizerFast

from instatune_deploy.data.dataset import Split, open_report_split, open_task_data
from instatune_deploy.data.heads.questions import MAX_ANSWER_TOKENS, best_span
from instatune_deploy.data.processor import Processor
from instatune_deploy.errors import CheckpointError, DatasetError, RecipeError, UnknownNameError
from instatune_deploy.values.recipe import METRICS, DataSection, Task
from tests.task_data import SECTIONS, TOKENS, write_body, write_rows

TOKENS_TASK, QUESTIONS, REGRESSION = "token-classification", "question-answering", "text-regression"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_body(tmp_path_factory.mktemp("m") / "model"))


def section(path: Path, **changes: Any) -> DataSection:
    return DataSection(**{"train": str(path), "search_rows": 2, "report_rows": 1, "shuffle": False, **changes})


def write(path: Path, rows: list[dict[str, Any]], features: Features | None = None) -> Path:
    Dataset.from_list(rows, features=features).to_parquet(path)
    return path


def opened(path: Path, task: Task, model: str, **changes: Any) -> Split:
    """The training split."""
    return open_task_data(section(path, **changes), task, Processor(model, task, TOKENS), seed=0).train


def pieces(model: str, ids: list[int]) -> list[str]:
    tokens: list[str] = BertTokenizerFast.from_pretrained(model).convert_ids_to_tokens(ids)
    return tokens


# -- pairs of texts, numbers -----------------------------------------------------------------------------------------


def test_a_pair_is_one_input_and_its_longer_text_is_cut(tmp_path: Path, model: str) -> None:
    rows = [{"text": "good film", "text_pair": "bad " * 30, "label": i % 2} for i in range(6)]
    split = opened(write(tmp_path / "t.parquet", rows), "text-classification", model, text_pair="text_pair")
    found = pieces(model, split.rows[0]["input_ids"])
    assert found == ["[CLS]", "good", "film", "[SEP]", *["bad"] * 11, "[SEP]"]
    assert split.rows[0]["token_type_ids"] == [0] * 4 + [1] * 12


def test_numbers_are_learnt_and_scored_as_they_are(tmp_path: Path, model: str) -> None:
    values = [0.5, -2, 3.25, 1, 0, 2]
    path = write(tmp_path / "t.parquet", [{"text": "film", "label": float(value)} for value in values])
    split = opened(path, REGRESSION, model)
    assert split.rows["labels"][:] == values[:3]
    batch = next(Processor(model, REGRESSION, TOKENS).labelled_batches(split.rows, 3))
    assert batch["labels"].tolist() == values[:3]
    assert str(batch["labels"].dtype) == "torch.float32"
    outputs = [(np.array([0, 1]), [np.array([[1.0], [0.0]])]), (np.array([2]), [np.array([[2.0]])])]
    assert split.score("spearman", outputs) == pytest.approx(1.0)
    assert split.score("pearson", outputs) == pytest.approx(np.corrcoef([1, 0, 2], values[:3])[0, 1])
    constant = [(np.array([0, 1, 2]), [np.ones((3, 1))])]
    assert split.score("pearson", constant) == 0.0


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"text": "a", "label": 1.0}, {"text": "b", "label": None}],
            "train split, row 1: label is None, not a number",
        ),
        ([{"text": "a", "label": "x"}] * 2, "train split, row 0: label is 'x', not a number"),
        ([{"text": "a", "label": 1.0}, {"text": "b", "label": float("nan")}], "row 1: label is nan, not a number"),
        ([{"text": "a", "label": 1.0}, {"text": None, "label": 2.0}], "row 1: text is None, not a text"),
        ([{"text": "a", "label": 1.0}] * 2, "all 2 training rows have the same label"),
        ([{"text": "a", "score": 1.0}] * 2, "has no column 'label'; its columns: text, score"),
    ],
)
def test_unusable_numbers_are_refused(tmp_path: Path, model: str, rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        opened(write(tmp_path / "t.parquet", [*rows, rows[0], rows[0], rows[0]]), REGRESSION, model)


# -- tags ------------------------------------------------------------------------------------------------------------

SENTENCE = {"tokens": ["goods", "film", "bads", "very"], "tags": ["B-POS", "O", "B-NEG", "I-NEG"]}


def test_the_first_piece_of_a_word_has_its_tag(tmp_path: Path, model: str) -> None:
    split = opened(write(tmp_path / "t.parquet", [SENTENCE] * 6), TOKENS_TASK, model)
    assert split.labels.classes == ("B-NEG", "B-POS", "I-NEG", "O")
    assert pieces(model, split.rows[0]["input_ids"]) == ["[CLS]", "good", "##s", "film", "bad", "##s", "very", "[SEP]"]
    assert split.rows[0]["labels"] == [-100, 1, -100, 3, 0, -100, 2, -100]
    assert len(split) == 3


def test_words_beyond_the_sequence_length_are_neither_learnt_nor_scored(tmp_path: Path, model: str) -> None:
    rows = [{"tokens": ["goods"] * 20, "tags": ["A", "B"] * 10}] * 6
    split = opened(write(tmp_path / "t.parquet", rows), TOKENS_TASK, model)
    assert len(split.rows[0]["input_ids"]) == TOKENS
    assert [tag for tag in split.rows[0]["labels"] if tag != -100] == [0, 1] * 3 + [0]


def test_tags_may_be_numbers_with_names_or_without(tmp_path: Path, model: str) -> None:
    rows = [{"tokens": ["good", "film"], "tags": [1, 0]}] * 6
    features = Features({"tokens": Sequence(Value("string")), "tags": Sequence(ClassLabel(names=["O", "B-X"]))})
    Dataset.from_list(rows, features=features).save_to_disk(tmp_path / "named")
    named = opened(tmp_path / "named", TOKENS_TASK, model)
    numbered = opened(write(tmp_path / "n.parquet", rows), TOKENS_TASK, model)
    assert (named.labels.classes, numbered.labels.classes) == (("O", "B-X"), ("0", "1"))
    assert named.rows[0]["labels"] == numbered.rows[0]["labels"] == [-100, 1, 0, -100]
    head = Processor(model, TOKENS_TASK, TOKENS).head
    head.check_metric("accuracy", numbered.labels.classes)
    with pytest.raises(UnknownNameError, match="unknown metric 'matthews'"):
        head.check_metric("matthews", named.labels.classes)
    pytest.importorskip("seqeval", reason="needs the extra token")
    head.check_metric("entity_f1", named.labels.classes)
    with pytest.raises(RecipeError, match="entity_f1 needs tags such as B-PER, I-PER and O, not '0'"):
        head.check_metric("entity_f1", numbered.labels.classes)


def test_a_tag_of_the_report_rows_is_the_one_of_its_name(tmp_path: Path, model: str) -> None:
    def typed(path: Path, names: list[str], rows: int) -> str:
        features = Features({"tokens": Sequence(Value("string")), "tags": Sequence(ClassLabel(names=names))})
        Dataset.from_dict(
            {"tokens": [["good", "film", "bad"]] * rows, "tags": [[0, 1, 2]] * rows}, features
        ).to_parquet(path)
        return str(path)

    data = DataSection(
        train=typed(tmp_path / "train.parquet", ["O", "B-X", "B-Y"], 12), search_rows=2,
        report=typed(tmp_path / "report.parquet", ["B-Y", "O", "B-X"], 2),
    )  # fmt: skip
    task: Task = "token-classification"
    found = open_report_split(data, task, Processor(model, task, 16), seed=0)
    assert [row[row != -100].tolist() for row in found.labels.rows] == [[2, 0, 1]] * 2


def tag_logits(split: Split, tags: list[list[int]], padding: int) -> list[tuple[np.ndarray, list[np.ndarray]]]:
    """A batch of outputs that predict `tags` at the scored tokens, and something else elsewhere."""
    length = max(len(row) for row in split.labels.rows) + padding
    logits = np.zeros((len(split), length, len(split.labels.classes)))
    logits[:, :, -1] = 1
    for number, row in enumerate(split.labels.rows):
        for place, tag in zip(np.flatnonzero(row != -100), tags[number], strict=True):
            logits[number, place] = np.eye(len(split.labels.classes))[tag]
    return [(np.arange(len(split)), [logits])]


def test_tags_are_scored_word_by_word_and_entity_by_entity(tmp_path: Path, model: str) -> None:
    split = opened(write(tmp_path / "t.parquet", [SENTENCE] * 6), TOKENS_TASK, model)
    right, wrong = [1, 3, 0, 2], [1, 3, 0, 3]  # the second entity loses its last word
    for padding in (0, 3):
        assert split.score("accuracy", tag_logits(split, [right] * 3, padding)) == 1
        assert split.score("accuracy", tag_logits(split, [right, right, wrong], padding)) == pytest.approx(11 / 12)
    assert split.score("f1", tag_logits(split, [right, right, wrong], 0)) == pytest.approx(
        np.mean([1, 1, 2 * 2 / (2 * 2 + 1), 2 * 3 / (2 * 3 + 1)])
    )
    pytest.importorskip("seqeval", reason="needs the extra token")
    assert split.score("entity_f1", tag_logits(split, [right] * 3, 2)) == 1
    # 5 of 6 entities are found, and 5 of the 6 that were predicted are right.
    assert split.score("entity_f1", tag_logits(split, [right, right, wrong], 2)) == pytest.approx(5 / 6)
    assert split.score("entity_f1", tag_logits(split, [[3] * 4] * 3, 2)) == 0


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tokens": ["good", "film"], "tags": ["O"]}, "train split, row 1: has 2 words and 1 tags"),
        ({"tokens": ["good"], "tags": None}, "row 1: has 1 words and no list of tags"),
        ({"tokens": ["good", None], "tags": ["O", "O"]}, r"row 1: tokens is \['good', None\], not a list of words"),
        ({"tokens": [], "tags": []}, r"row 1: tokens is \[\], not a list of words"),
        ({"tokens": None, "tags": ["O"]}, "row 1: tokens is None, not a list of words"),
        ({"tokens": ["good"], "tags": [None]}, "row 1: tag None is not one of the 4 training tags"),
    ],
)
def test_unusable_tags_are_refused(tmp_path: Path, model: str, row: dict[str, Any], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        opened(write(tmp_path / "t.parquet", [SENTENCE, row, *[SENTENCE] * 4]), TOKENS_TASK, model)


def test_tags_that_are_no_lists_or_all_the_same_or_new_are_refused(tmp_path: Path, model: str) -> None:
    with pytest.raises(DatasetError, match=r"t\.parquet: column 'tags' holds no lists of tags"):
        opened(write(tmp_path / "t.parquet", [{"tokens": ["good"], "tags": "O"}] * 6), TOKENS_TASK, model)
    with pytest.raises(DatasetError, match="all 3 training rows have the same label"):
        opened(write(tmp_path / "s.parquet", [{"tokens": ["good"], "tags": ["O"]}] * 6), TOKENS_TASK, model)
    report = write(tmp_path / "r.parquet", [{"tokens": ["good"], "tags": ["B-NEW"]}])
    data = section(write(tmp_path / "u.parquet", [SENTENCE] * 6), report=str(report))
    with pytest.raises(DatasetError, match="report split, row 0: tag 'B-NEW' is not one of the 4 training tags"):
        open_report_split(data, TOKENS_TASK, Processor(model, TOKENS_TASK, TOKENS), seed=0)


# -- tokenizers ------------------------------------------------------------------------------------------------------


def test_tasks_that_trace_tokens_need_a_fast_tokenizer(tmp_path: Path) -> None:
    ByT5Tokenizer().save_pretrained(tmp_path)  # there is no fast one of its kind
    for task in (TOKENS_TASK, QUESTIONS):
        with pytest.raises(CheckpointError, match=f"{task} needs a fast tokenizer, and the model comes with none"):
            Processor(str(tmp_path), task, TOKENS)
    Processor(str(tmp_path), REGRESSION, TOKENS)


def test_words_are_told_apart_by_tokenizers_that_read_spaces(tmp_path: Path) -> None:
    vocabulary = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "g", "o", "\u0120", "\u0120g"]
    (tmp_path / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(vocabulary)}), encoding="utf-8")
    (tmp_path / "merges.txt").write_text("#version: 0.2\n\u0120 g\n", encoding="utf-8")
    tokenizer = RobertaTokenizerFast(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    tokenizer.save_pretrained(tmp_path / "model")
    processor = Processor(str(tmp_path / "model"), TOKENS_TASK, TOKENS)
    encoded = processor.encode_words([["go", "goo"]])
    assert processor.inner.convert_ids_to_tokens(encoded["input_ids"][0]) == [
        "<s>", "\u0120g", "o", "\u0120g", "o", "o", "</s>",
    ]  # fmt: skip
    assert encoded.word_ids(0) == [None, 0, 0, 1, 1, 1, None]


# -- questions -------------------------------------------------------------------------------------------------------


def question(context: str, answer: str, /, **changes: Any) -> dict[str, Any]:
    answers = {"text": [answer], "answer_start": [context.find(answer)]}
    return {"question": "very good", "context": context, "answers": answers, **changes}


LONG = "film plot cast film plot cast film plot cast film goods very film plot cast film"


def test_a_long_context_comes_in_windows_that_share_the_stride(tmp_path: Path, model: str) -> None:
    path = write(tmp_path / "t.parquet", [question("film goods plot", "goods"), *[question(LONG, "goods very")] * 5])
    split = opened(path, QUESTIONS, model, doc_stride=4)
    assert split.labels.rows == [[0], [1, 2], [3, 4]]
    assert (len(split), len(split.rows)) == (3, 5)
    windows = [pieces(model, row["input_ids"]) for row in split.rows]
    assert windows[0] == ["[CLS]", "very", "good", "[SEP]", "film", "good", "##s", "plot", "[SEP]"]
    assert windows[1][-5:-1] == windows[2][4:8]  # 4 tokens are in both
    answers = [
        window[row["start_positions"] : row["end_positions"] + 1]
        for window, row in zip(windows, split.rows, strict=True)
    ]
    # The first window ends before the answer does: it points at its first token.
    assert answers[:3] == [["good", "##s"], ["[CLS]"], ["good", "##s", "very"]]


def pointing(split: Split, spans: dict[int, tuple[int, int, float]]) -> list[tuple[np.ndarray, list[np.ndarray]]]:
    """Outputs that point at the given first and last positions of rows, with that logit."""
    start, end = np.zeros((2, len(split.rows), TOKENS + 2))
    for row, (first, last, logit) in spans.items():
        start[row, first] = end[row, last] = logit
    return [(np.arange(len(split.rows)), [start, end])]


def test_answers_are_scored_as_texts_over_all_windows(tmp_path: Path, model: str) -> None:
    path = write(tmp_path / "t.parquet", [question("film Goods, plot", "Goods"), *[question(LONG, "goods very")] * 5])
    split = opened(path, QUESTIONS, model, doc_stride=4)
    place = {row: (split.rows[row]["start_positions"], split.rows[row]["end_positions"], 5.0) for row in (0, 2, 4)}
    for metric in ("exact_match", "answer_f1"):
        assert split.score(metric, pointing(split, place)) == 1
    # Another window is surer of something else; and one answer is a word too short.
    worse = {**place, 3: (4, 4, 9.0), 2: (place[2][0], place[2][1] - 1, 5.0)}
    assert split.score("exact_match", pointing(split, worse)) == pytest.approx(1 / 3)
    assert split.score("answer_f1", pointing(split, worse)) == pytest.approx((1 + 2 / 3 + 0) / 3)
    # Positions outside the context are no answers.
    ((numbers, (start, end)),) = pointing(split, dict.fromkeys(range(5), (0, 0, 99.0)))
    start[0, place[0][0]] = end[0, place[0][1]] = 1
    assert split.score("exact_match", [(numbers, [start, end])]) == pytest.approx(1 / 3)
    with pytest.raises(UnknownNameError, match="unknown metric 'f1'; known: answer_f1, exact_match"):
        split.score("f1", pointing(split, place))


def test_several_right_answers_count_alike(tmp_path: Path, model: str) -> None:
    context = "film goods very plot"
    answers = {"text": ["goods", "goods very"], "answer_start": [5, 5]}
    rows = [question(context, "goods", answers=answers)] * 6
    split = opened(write(tmp_path / "t.parquet", rows), QUESTIONS, model, doc_stride=4)
    for last in (6, 7):  # [CLS] very good [SEP] film good ##s very
        assert split.score("exact_match", pointing(split, dict.fromkeys(range(3), (5, last, 1.0)))) == 1


def test_the_best_span_is_that_of_all_pairs() -> None:
    rng = np.random.default_rng(0)
    for tokens in (1, 2, 9, MAX_ANSWER_TOKENS + 5):
        start, end = rng.standard_normal((2, tokens))
        pairs = [(a, b) for a in range(tokens) for b in range(a, min(tokens, a + MAX_ANSWER_TOKENS))]
        expected = max(pairs, key=lambda pair: start[pair[0]] + end[pair[1]])
        value, *found = best_span(start, end)
        assert tuple(found) == expected
        assert value == pytest.approx(start[expected[0]] + end[expected[1]])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (question("film good", "plot"), "train split, row 1: 'plot' at -1 is no answer"),
        (
            question("film good", "good", answers={"text": ["good"], "answer_start": [4]}),
            "row 1: answer 'good' does not stand at character 4 of its context",
        ),
        (
            question("film good", "good", answers={"text": [], "answer_start": []}),
            "row 1: has no answer; questions without",
        ),
        (
            question("film good", "good", answers={"text": ["good"], "answer_start": []}),
            r"answers is .*, not \{text: \[...\]",
        ),
        (question("film good", "good", answers=None), "row 1: answers is None, not"),
        (question("film good", "good", question=None), "row 1: question is None, not a text"),
        (question("film good", "good", context=None), "row 1: context is None, not a text"),
        (
            question("film good", "good", question="good " * 9),
            "row 1: beside its question 4 of sequence_length 16 tokens are left for the context, no more than doc_stride 4",
        ),
    ],
)
def test_unusable_questions_are_refused(tmp_path: Path, model: str, row: dict[str, Any], message: str) -> None:
    fine = question("film good", "good")
    with pytest.raises(DatasetError, match=message):
        opened(write(tmp_path / "t.parquet", [fine, row, *[fine] * 4]), QUESTIONS, model, doc_stride=4)


def test_answers_that_are_texts_are_refused(tmp_path: Path, model: str) -> None:
    rows = [{"question": "good", "context": "film good", "answers": "good"}] * 6
    with pytest.raises(DatasetError, match=r"train split, row 0: answers is 'good', not \{text: \[...\]"):
        opened(write(tmp_path / "t.parquet", rows), QUESTIONS, model, doc_stride=4)


# -- all of them -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", list(SECTIONS))
def test_batches_are_the_rows_without_labels_and_labelled_batches_with_them(
    tmp_path: Path, model: str, task: Task
) -> None:
    processor = Processor(model, task, TOKENS)
    data = section(write_rows(tmp_path / "t.parquet", task, 60, seed=1), search_rows=20, **SECTIONS[task])
    split = open_task_data(data, task, processor, seed=0).train
    seen = []
    batches = zip(processor.batches(split.rows, 16), processor.labelled_batches(split.rows, 16), strict=True)
    for (numbers, inputs), labelled in batches:
        seen += numbers.tolist()
        assert set(inputs) == {"input_ids", "attention_mask", "token_type_ids"}
        assert set(labelled) == {*inputs, *processor.head.label_columns}
        for name, array in inputs.items():
            assert np.array_equal(array, labelled[name].numpy())
        for column in processor.head.label_columns:
            for number, label in zip(numbers.tolist(), labelled[column].tolist(), strict=True):
                right = split.rows[number][column]
                assert label == (right + [-100] * (len(label) - len(right)) if isinstance(right, list) else right)
    assert sorted(seen) == list(range(len(split.rows)))
    assert len(split) == 39


@pytest.mark.parametrize("tokens", [1, 30, 200])
def test_even_batches_are_the_rows_and_hold_few_lengths(tmp_path: Path, model: str, tokens: int) -> None:
    task: Task = "text-classification"
    processor = Processor(model, task, TOKENS)
    data = section(write_rows(tmp_path / "t.parquet", task, 60, seed=1), search_rows=20, **SECTIONS[task])
    rows = open_task_data(data, task, processor, seed=0).train.rows
    seen = []
    for numbers, inputs in processor.even_batches(rows, 1, tokens):
        count, longest = inputs["input_ids"].shape
        assert count == 1 or count * longest <= tokens
        masks = [rows[number]["attention_mask"] for number in numbers.tolist()]
        assert [mask[mask == 1].tolist() for mask in inputs["attention_mask"]] == masks
        # Shorter ones only join where the longest would make too small a batch.
        assert sum(len(mask) == longest for mask in masks) * longest < tokens // 2 or len({*map(len, masks)}) == 1
        seen += numbers.tolist()
    assert sorted(seen) == list(range(len(rows)))


def test_hits_and_margins_are_those_of_first_choices(model: str) -> None:
    head = Processor(model, "text-classification", TOKENS).head
    outputs = [[np.array([0.1, 0.4])], [np.array([2.0, -1.0])], [np.array([0.5, 0.25])]]
    labels = np.array([1, 0, 1])
    assert head.hits(outputs, labels).tolist() == [True, True, False]
    assert head.hits(outputs, labels).mean() == head.score("accuracy", outputs, labels)
    assert head.margins(outputs) == pytest.approx([0.3, 3.0, 0.25])
    other = Processor(model, "question-answering", TOKENS).head
    assert other.margins([[np.zeros(3), np.zeros(3)]]) is None
    assert other.shares == ()


def test_outputs_are_as_far_as_their_probabilities_or_numbers(tmp_path: Path, model: str) -> None:
    head = Processor(model, "text-classification", TOKENS).head
    near, far = [[np.log([0.5, 0.5])], [np.log([0.9, 0.1])]], [[np.log([0.25, 0.75])], [np.log([0.9, 0.1]) + 3]]
    expected = (0.25 * np.log(0.25 / 0.5) + 0.75 * np.log(0.75 / 0.5)) / 2
    assert head.divergence(near, far, np.array([0, 1])) == pytest.approx(expected)
    assert head.divergence(far, far, np.array([0, 1])) == 0
    numbers = Processor(model, REGRESSION, TOKENS).head
    assert numbers.divergence([[np.array([1.0])], [np.array([2.0])]], [[np.array([1.0])], [np.array([4.0])]], None) == 2
    assert Processor(model, QUESTIONS, TOKENS).head.divergence([], [], None) is None
    split = opened(write(tmp_path / "t.parquet", [SENTENCE] * 6), TOKENS_TASK, model)
    right, other = tag_logits(split, [[1, 3, 0, 2]] * 3, 0), tag_logits(split, [[1, 3, 0, 2]] * 3, 2)
    assert split.divergence(other, right) == pytest.approx(0, abs=1e-12)  # padding does not count
    wrong = tag_logits(split, [[1, 3, 0, 3]] * 3, 1)
    classes = len(split.labels.classes)
    share = np.exp([1.0] + [0.0] * (classes - 1)) / (np.e + classes - 1)
    assert split.divergence(wrong, right) == pytest.approx((share[0] - share[1]) / 4)


def test_a_task_has_metrics_that_its_head_computes(tmp_path: Path, model: str) -> None:
    pytest.importorskip("seqeval", reason="needs the extra token")
    for task in SECTIONS:
        data = section(write_rows(tmp_path / f"{task}.parquet", task, 60, seed=1), search_rows=20, **SECTIONS[task])
        processor = Processor(model, task, TOKENS)
        opened_data = open_task_data(data, task, processor, seed=0)
        split, rng = opened_data.search, np.random.default_rng(0)
        shapes = {
            "token-classification": (TOKENS, len(opened_data.classes)), "question-answering": (TOKENS,),
            "text-regression": (1,),
        }  # fmt: skip
        shape = (len(split.rows), *shapes.get(task, (2,)))
        outputs = [(np.arange(len(split.rows)), [rng.standard_normal(shape) for _ in processor.head.outputs])]
        for metric in METRICS[task]:
            processor.head.check_metric(metric, opened_data.classes)
            assert -1 <= split.score(metric, outputs) < 1
