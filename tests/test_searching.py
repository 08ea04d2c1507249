"""The fronts of a run: who evaluates, what is kept, what a stopped search leaves."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest

from instatune_deploy.errors import InfeasibleBudgetError, UsageError
from instatune_deploy.searching import Fronts, read_front
from instatune_deploy.values.costs import Goal
from instatune_deploy.values.front import Evaluation
from instatune_deploy.values.latency import LatencyTable
from instatune_deploy.values.macs import ModelShape, count_macs
from instatune_deploy.values.recipe import Recipe
from instatune_deploy.values.space import Architecture, SearchSpace
from instatune_deploy.workspace import Workspace

SHAPE = ModelShape("bert", 64, 16, 4, 4, 256, 8, fixed_macs=10**5, fixed_parameters=10**4)
SPACE = SearchSpace.homogeneous(4, [2, 3, 4], [1, 2, 4], [64, 128, 256])
RECIPE = Recipe.model_validate(
    {
        "model": "m", "task": "text-classification", "data": {"train": "t"}, "targets": {"a": ["8ms"], "b": ["8ms"]},
        "search": {"warm_start": 9, "rounds": 2, "batch": 4, "population": 12, "generations": 3},
    }
)  # fmt: skip


class FakeEvaluator:
    """Says that larger is better, and remembers."""

    def __init__(self) -> None:
        self.known: dict[Architecture, Evaluation] = {}

    def __call__(self, architectures: list[Architecture], **_: object) -> list[Evaluation]:
        for a in architectures:
            self.known.setdefault(a, Evaluation(a, "accuracy", count_macs(SHAPE, a) / 1e7, "search", 100))
        return [self.known[a] for a in architectures]


class FakeDeployed:
    """No network is evaluated in another precision."""

    known: ClassVar[dict[object, Evaluation]] = {}

    def __call__(self, *_: object) -> list[Evaluation]:
        return []


class Run:
    """A run directory and the targets that it knows."""

    def __init__(self, directory: Path, make_table: Callable[..., LatencyTable], recipe: Recipe = RECIPE) -> None:
        self.workspace, self.recipe, self.evaluator = Workspace(directory), recipe, FakeEvaluator()
        self.deployed = FakeDeployed()
        self.fronts = Fronts(recipe, self.workspace, lambda line: None, "key", SPACE, SHAPE)
        self.tables = {
            name: replace(make_table(SPACE, ms=ms), target=name) for name, ms in (("a", 1), ("b", 2), ("c", 3))
        }

    def goal(self, name: str) -> Goal:
        return self.fronts.goal([self.tables[name]], {})

    def search(self, *names: str, here: str = "abc") -> int:
        """How many evaluations it takes to have the fronts of targets on a machine that serves those of `here`."""
        before = len(self.evaluator.known)
        missing = [name for name in names if self.fronts.kept(self.goal(name)) is None]
        for group in self.fronts.groups(missing, here.__contains__) if missing else []:
            self.fronts.search([self.goal(name) for name in group], self.evaluator, self.deployed, [])  # type: ignore[arg-type]
        return len(self.evaluator.known) - before

    def other(self, **changes: object) -> Run:
        """The same directory and evaluations, by a recipe that differs."""
        found = copy.copy(self)
        found.recipe = self.recipe.model_copy(update=changes)
        found.fronts = Fronts(found.recipe, self.workspace, lambda line: None, "key", SPACE, SHAPE)
        return found

    def files(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted(self.workspace.path("fronts").iterdir())}


def test_the_first_search_evaluates_for_all_its_targets_and_later_ones_nothing(
    tmp_path: Path, make_table: Callable[..., LatencyTable]
) -> None:
    run = Run(tmp_path, make_table)
    assert run.search("a", "b") == 9 + 2 * 4
    assert run.search("a", "b") == run.search("b") == run.search("a", "c") == 0
    assert set(run.files()) == {"a-p50.json", "b-p50.json", "c-p50.json"}
    assert read_front(run.workspace, RECIPE, "a") == run.fronts.kept(run.goal("a"))
    sources = {c.predicted.metric_source for c in read_front(run.workspace, RECIPE, "b").candidates}
    assert sources == {"search split and predictor"}


def test_a_search_that_was_stopped_gives_what_it_would_have_given(
    tmp_path: Path, make_table: Callable[..., LatencyTable]
) -> None:
    whole, cut = Run(tmp_path / "whole", make_table), Run(tmp_path / "cut", make_table)
    whole.search("a", "b")
    cut.search("a", "b")
    for lost in ("search-b-p50.json", "search-a-p50.json"):  # before its last front was kept; before any
        cut.workspace.path(".stages", lost).unlink()
        assert cut.search("a", "b", "c") == 0
        assert {name: whole.files()[name] for name in ("a-p50.json", "b-p50.json")}.items() <= cut.files().items()


def test_other_objectives_have_a_front_of_their_own_and_evaluate_nothing(
    tmp_path: Path, make_table: Callable[..., LatencyTable]
) -> None:
    run = Run(tmp_path, make_table)
    run.search("a")
    other = run.other(
        search=RECIPE.search.model_copy(update={"objectives": ["size", "metric"], "limits": ["macs<=80%"]})
    )
    before = run.files()
    with pytest.raises(UsageError, match=r"no front of a was found yet: .*\.json is missing"):
        read_front(other.workspace, other.recipe, "a")
    assert other.search("a") == 0
    assert before.items() <= run.files().items()
    assert Path(other.recipe.front_file("a")).name in run.files()
    assert all(
        c.predicted.macs <= 0.8 * count_macs(SHAPE, SPACE.largest)
        for c in read_front(other.workspace, other.recipe, "a").candidates
    )


def limited(limit: str) -> object:
    return RECIPE.search.model_copy(update={"limits": [limit]})


def test_a_search_whose_limits_nothing_keeps_leaves_the_evaluating_to_the_next(
    tmp_path: Path, make_table: Callable[..., LatencyTable]
) -> None:
    run = Run(tmp_path, make_table)
    with pytest.raises(InfeasibleBudgetError):
        run.other(search=limited("latency<=0.01ms")).search("a")
    with pytest.raises(InfeasibleBudgetError):  # known when all is evaluated
        run.other(search=limited("metric>=0.99")).search("a")
    assert len(run.evaluator.known) == 9 + 2 * 4
    run.evaluator.known.clear()
    assert run.search("a") == 9 + 2 * 4


def test_a_search_that_was_stopped_leaves_the_evaluating_to_another(
    tmp_path: Path, make_table: Callable[..., LatencyTable], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path, make_table)
    answered = FakeEvaluator.__call__

    def stopped_after_ten(self: FakeEvaluator, architectures: list[Architecture], **_: object) -> list[Evaluation]:
        if len(self.known) + len(architectures) > 10:
            raise KeyboardInterrupt
        return answered(self, architectures)

    with monkeypatch.context() as patched:
        patched.setattr(FakeEvaluator, "__call__", stopped_after_ten)
        with pytest.raises(KeyboardInterrupt):
            run.search("a", "b")
    other = run.other(percentile="p90")
    assert 4 <= other.search("a") <= 2 * 4 <= len(run.evaluator.known) - 9
    assert run.search("a") == other.search("b") == 0  # the one that finished has evaluated


def test_a_machine_that_serves_some_targets_of_a_search_goes_on_with_those(
    tmp_path: Path, make_table: Callable[..., LatencyTable]
) -> None:
    done = Run(tmp_path / "done", make_table)
    done.search("a", "b")
    done.tables["b"] = make_table(SPACE, ms=4)
    done.tables["b"] = replace(done.tables["b"], target="b")
    assert done.search("b", here="b") == 0
    begun = Run(tmp_path / "begun", make_table)
    assert begun.fronts.groups(["a", "b"], "ab".__contains__) == [["a", "b"]]
    assert begun.search("b", here="b") == 9 + 2 * 4


def test_another_metric_has_fronts_and_evaluations_of_its_own(
    tmp_path: Path, make_table: Callable[..., LatencyTable]
) -> None:
    run = Run(tmp_path, make_table)
    run.search("a")
    other = run.other(metric="f1")
    assert other.fronts.kept(run.goal("a")) is None
    assert other.fronts.owner() is None
    assert other.fronts.why_anew(run.goal("a")) == "metric: accuracy -> f1"
    other.evaluator = FakeEvaluator()
    assert other.search("a") == 9 + 2 * 4
