"""Recipes: what is written is what is meant, and what is wrong is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from instatune_deploy.errors import RecipeError
from instatune_deploy.values.recipe import (
    METRICS,
    FinetuneSection,
    Recipe,
    SearchSection,
    TrainingSection,
    preset_names,
    read_preset,
    read_recipe,
)

MINIMAL: dict[str, Any] = {
    "model": "./model",
    "task": "text-classification",
    "data": {"train": "./train.parquet", "report": "../report.csv"},
    "targets": {"cpu-avx512": ["8ms", "50%", 3]},
}


SPACE: dict[str, Any] = {"depths": [1, 2], "heads": [2, 4], "ffn": [16, 32]}


def write(path: Path, data: Any) -> Path:
    path.write_text(data if isinstance(data, str) else yaml.safe_dump(data), encoding="utf-8")
    return path


def test_paths_are_relative_to_the_recipe_and_other_names_stay(tmp_path: Path) -> None:
    recipe = read_recipe(write(tmp_path / "r.yaml", MINIMAL))
    assert Path(recipe.model) == tmp_path / "model"
    assert Path(recipe.data.train) == tmp_path / "train.parquet"
    assert Path(recipe.data.report or "").resolve() == tmp_path.parent / "report.csv"
    hub = read_recipe(
        write(tmp_path / "r.yaml", {**MINIMAL, "model": "google/bert", "data": {"train": "glue@sst2:train"}})
    )
    assert (hub.model, hub.data.train) == ("google/bert", "glue@sst2:train")


def test_a_located_recipe_holds_wherever_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows").mkdir()
    (tmp_path / "box.yaml").touch()
    recipe = Recipe.model_validate(
        {
            "model": "org/name", "task": "text-classification", "data": {"train": "rows", "report": "org/rows"},
            "targets": {"box.yaml": ["50%"], "cpu-avx2": ["50%"]},
        }
    )  # fmt: skip
    found = recipe.located()
    assert (found.model, found.data.train, found.data.report) == ("org/name", str(tmp_path / "rows"), "org/rows")
    assert list(found.targets) == [str(tmp_path / "box.yaml"), "cpu-avx2"]


def test_a_recipe_round_trips(tmp_path: Path) -> None:
    recipe = read_recipe(write(tmp_path / "r.yaml", MINIMAL))
    assert read_recipe(write(tmp_path / "again.yaml", recipe.model_dump())) == recipe
    assert Recipe.model_validate(recipe.model_dump()) == recipe


@pytest.mark.parametrize(
    "space", ["auto", "paper", SPACE, {**SPACE, "heads": [[2, 4], [4]]}, {**SPACE, "ffn": [[16], [32]]}]
)
def test_a_space_is_a_name_or_choices_of_every_layer_alike_or_of_each(tmp_path: Path, space: Any) -> None:
    recipe = read_recipe(write(tmp_path / "r.yaml", {**MINIMAL, "space": space}))
    assert (recipe.space if isinstance(recipe.space, str) else recipe.space.model_dump()) == space
    assert read_recipe(write(tmp_path / "again.yaml", recipe.model_dump())) == recipe


def test_a_metric_is_the_tasks_first_unless_another_is_named(tmp_path: Path) -> None:
    for task, metrics in METRICS.items():
        recipe = read_recipe(write(tmp_path / "r.yaml", {**MINIMAL, "task": task}))
        assert recipe.metric == metrics[0]
        assert read_recipe(write(tmp_path / "again.yaml", recipe.model_dump())) == recipe
        for metric in metrics:
            named = read_recipe(write(tmp_path / "r.yaml", {**MINIMAL, "task": task, "metric": metric}))
            assert named.metric == metric


def test_the_papers_numbers_are_the_defaults(tmp_path: Path) -> None:
    finetune = read_recipe(write(tmp_path / "r.yaml", MINIMAL)).finetune
    assert (finetune.alpha, finetune.subnetworks, finetune.temperature) == (0.3, 1, 1.0)


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_shows_every_number(name: str) -> None:
    assert set(read_preset(name)) == set(FinetuneSection.model_fields) - {"preset"}
    assert set(read_preset(name)["teacher"]) == set(TrainingSection.model_fields)


def test_a_preset_is_a_name_or_what_other_keys_are_on_top_of(tmp_path: Path) -> None:
    def finetune(given: Any) -> FinetuneSection:
        return read_recipe(write(tmp_path / "r.yaml", {**MINIMAL, "finetune": given})).finetune

    paper = finetune("paper")
    assert (paper.sampling, paper.importance, paper.start, paper.gamma) == ("uniform", "none", "pretrained", "off")
    assert finetune({"preset": "paper"}) == paper
    changed = finetune({"preset": "paper", "gamma": "on", "teacher": {"epochs": 9}})
    assert changed == paper.model_copy(
        update={"gamma": "on", "teacher": paper.teacher and paper.teacher.model_copy(update={"epochs": 9.0})}
    )
    assert finetune({}).preset == "best"
    assert finetune({"teacher": None}).teacher is None


def test_latency_may_be_limited_here_and_in_another_place() -> None:
    texts = ["latency@cpu-avx512:ort-fp32-1t<=8ms", "latency<=50%", "macs<=1G"]
    limits = SearchSection(limits=texts).goals("accuracy")[1]
    assert [(limit.objective.kind, limit.objective.place) for limit in limits] == [
        ("latency", None), ("latency", "cpu-avx512:ort-fp32-1t"), ("macs", None),
    ]  # fmt: skip


def test_the_fine_tuned_model_is_made_only_where_it_is_used() -> None:
    def needs(**changes: Any) -> bool:
        return FinetuneSection.model_validate({"preset": "paper", **changes}).needs_teacher

    assert not needs()
    assert all(needs(**{key: value}) for key, value in [
        ("gamma", "on"), ("start", "teacher"), ("importance", "fisher"), ("layer_order", "importance"),
    ])  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modle": "x"}, "unknown key 'modle'; did you mean 'model'"),
        ({"finetune": {"epoch": 3}}, "unknown key 'finetune.epoch'; did you mean 'epochs'"),
        ({"finetune": {"teacher": {"lr": 3}}}, "unknown key 'finetune.teacher.lr'"),
        ({"data": {"train": "x", "txt": "y"}}, "unknown key 'data.txt'; did you mean 'text'"),
        (
            {"task": "translation"},
            "task: Input should be 'text-classification', 'text-regression', 'token-classification', ",
        ),
        (
            {"metric": "pearson"},
            "metric: pearson does not fit text-classification, which takes accuracy or f1 or matthews",
        ),
        (
            {"task": "question-answering", "metric": "f1"},
            "f1 does not fit question-answering, which takes answer_f1 or exact_match",
        ),
        ({"metric": "bleu"}, "metric: Input should be 'accuracy', 'f1', "),
        (
            {"task": "token-classification", "data": {"train": "x", "text_pair": "y"}},
            "data: text_pair goes with text-classification and text-regression, not with token-classification",
        ),
        ({"data": {"train": "x", "doc_stride": -1}}, "data.doc_stride: Input should be greater than or equal to 0"),
        (
            {"finetune": {"augment": 0.5, "gamma": "off"}},
            "finetune: augment needs a teacher to judge what is changed: set gamma: on",
        ),
        (
            {"task": "text-regression", "finetune": {"augment": 0.5}},
            "finetune: augment goes with text-classification and image-classification, not with text-regression",
        ),
        ({"finetune": {"alpha": 2}}, "finetune.alpha: Input should be less than or equal to 1"),
        ({"finetune": {"gamma": "maybe"}}, "finetune.gamma: Input should be 'off', 'on' or 'first_epochs'"),
        ({"finetune": "papr"}, "finetune: unknown fine-tuning preset 'papr'; did you mean 'paper'"),
        ({"finetune": {"preset": "bst", "alpha": 1}}, "unknown fine-tuning preset 'bst'; did you mean 'best'"),
        ({"search": {"objectives": ["metric", "mcas"]}}, "search: unknown objective 'mcas'; did you mean 'macs'"),
        ({"search": {"objectives": ["accuracy", "metric"]}}, "search: objectives repeat: accuracy and metric are the"),
        ({"search": {"limits": ["size>=3MB"]}}, "search: limit 'size>=3MB' contradicts itself: size is made small"),
        ({"search": {"limits": ["macs<=3G", "macs<=2G"]}}, "search: limits repeat: macs is limited twice"),
        ({"search": {"method": "lians"}}, "search.method: Input should be 'linas', 'nsga2', 'evolution' or 'random'"),
        ({"targets": {"cpu-avx512": ["8ms, sizes<=3MB"]}}, "targets: unknown limit 'sizes'; did you mean 'size'"),
        ({"search": {"rounds": 0}}, "search.rounds: Input should be greater than 0"),
        ({"targets": {}}, "targets: name at least one target, each with at least one budget"),
        ({"targets": {"cpu-avx512": []}}, "name at least one target, each with at least one budget"),
        ({"targets": {"cpu-avx512": ["fast"]}}, "budget 'fast' is neither milliseconds such as 8ms nor a share"),
        ({"targets": {"cpu-avx512": ["-3ms"]}}, "budget '-3ms' is neither"),
        ({"data": None}, "data: Input should be a valid dictionary"),
        ({"seed": -1}, "seed: Input should be greater than or equal to 0"),
        ({"seed": 2**32}, "seed: Input should be less than 4294967296"),
        ({"space": 3}, "space: expected a preset's name, auto, or depths, heads and ffn"),
        ({"space": {**SPACE, "width": [3]}}, "unknown key 'space.width'"),
        ({"space": {"depths": [1], "heads": [1]}}, "space.ffn: Field required"),
        ({"space": {**SPACE, "heads": [[1], [1, 0]]}}, "space.heads.1.1: Input should be greater than 0"),
        (
            {"space": {**SPACE, "ffn": [[16], 32]}},
            "space.ffn: expected numbers for every layer alike or a list for each",
        ),
        ({"space": {**SPACE, "ffn": [[["x"]]]}}, "space.ffn.0.0: Input should be a valid integer"),
        (
            {"space": "auto", "finetune": "paper"},
            "space: auto goes by importance, but finetune says importance: none, layer_order: last_first; it takes "
            "first_order or fisher, and importance",
        ),
        (
            {"space": "auto", "reset_head": True, "finetune": {"teacher": None}},
            "space: auto scores a fine-tuned model: with reset_head, finetune.teacher must not be null",
        ),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read_recipe(write(tmp_path / "r.yaml", {**MINIMAL, **change}))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"r\.yaml: model: Field required"):
        read_recipe(write(tmp_path / "r.yaml", {k: v for k, v in MINIMAL.items() if k != "model"}))


@pytest.mark.parametrize("text", ["", "just words", "a: [1", "- 1\n- 2", "!!python/object/apply:os.system ['true']"])
def test_files_that_hold_no_recipe(tmp_path: Path, text: str) -> None:
    with pytest.raises(RecipeError, match=r"r\.yaml"):
        read_recipe(write(tmp_path / "r.yaml", text))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such file; `instatune-deploy init"):
        read_recipe(tmp_path / "none.yaml")


def test_objectives_and_limits_are_read_with_the_tasks_metric(tmp_path: Path) -> None:
    search = {"objectives": ["macs", "f1"], "limits": ["loss<=1", "latency@cpu-avx2:ort-fp32-1t<=8ms"]}
    targets = {"cpu-avx512": ["8ms, f1>=0.8", "loss<=0.5, smallest"]}
    recipe = read_recipe(write(tmp_path / "r.yaml", {**MINIMAL, "metric": "f1", "search": search, "targets": targets}))
    objectives, limits = recipe.search.goals(recipe.metric)
    assert [str(objective) for objective in objectives] == ["macs", "metric"]
    assert {str(limit.objective) for limit in limits} == {"metric", "latency@cpu-avx2:ort-fp32-1t"}
    assert read_recipe(write(tmp_path / "again.yaml", recipe.model_dump())) == recipe
