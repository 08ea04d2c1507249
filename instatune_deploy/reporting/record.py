"""`RunRecord`: what a run's directory holds of a run, finished or not, without making or measuring anything."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pydantic

from instatune_deploy.errors import InstatuneError
from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.evaluations import read_evaluations
from instatune_deploy.values.front import Evaluation, ParetoFront, Predicted
from instatune_deploy.values.history import TrainingHistory
from instatune_deploy.values.latency import PERCENTILES, LatencyTable
from instatune_deploy.values.manifest import MANIFEST_NAME, Manifest
from instatune_deploy.values.recipe import Recipe, read_recipe
from instatune_deploy.values.selection import Selection
from instatune_deploy.values.space import Architecture, SearchSpace
from instatune_deploy.values.target import is_file_name, read_target
from instatune_deploy.workspace import StageRecord, Workspace, check_run

Value = TypeVar("Value")


@dataclass(frozen=True)
class Round:
    """What a round of a search brought; see `stages.search.RoundReport`."""

    round: int
    evaluated: int
    hypervolume: float
    kendall_tau: float | None


@dataclass(frozen=True)
class Quality:
    """How well the accuracy predictor foresaw networks that its fit had not seen; see `stages.predict.quality`."""

    kendall_tau: float
    mape_pct: float
    r2: float
    n: int
    folds: int
    metric: str
    split: str


@dataclass(frozen=True)
class FoundFront:
    """The front of a target that a search of a run left.

    Args:
        selectable: whether `instatune-deploy select` goes by it, which takes the objectives and limits of the recipe.
    """

    target: str
    percentile: str
    rounds: tuple[Round, ...]
    front: ParetoFront
    selectable: bool

    @property
    def title(self) -> str:
        """Names it among the fronts of a run."""
        return f"{self.target}, {self.percentile}: {', '.join(map(str, self.front.objectives))}"


@dataclass(frozen=True)
class FoundArtifact:
    """An artifact of a run: its directory relative to the run's, its manifest, its bytes on the disk."""

    directory: str
    manifest: Manifest
    size_bytes: int


@dataclass(frozen=True)
class FoundHistory:
    """A training's history; `finished` is false where only its checkpoints tell of it."""

    history: TrainingHistory
    finished: bool


@dataclass(frozen=True)
class RunRecord:
    """Everything that is known of a run. What was not made yet is empty or None.

    `faults` are lines on files that could not be read: what stood in them is left out.
    """

    directory: Path
    recipe: Recipe
    space: SearchSpace | None
    stages: tuple[StageRecord, ...]
    histories: tuple[FoundHistory, ...]
    tables: tuple[LatencyTable, ...]
    evaluations: tuple[Evaluation, ...]
    predictor: Quality | None
    fronts: tuple[FoundFront, ...]
    selections: tuple[Selection, ...]
    artifacts: tuple[FoundArtifact, ...]
    faults: tuple[str, ...] = field(default=())

    def full_artifact(self, target: str) -> FoundArtifact | None:
        """The full network as it was exported and measured for a target."""
        wanted = f"artifacts/{target}/full"
        return next((artifact for artifact in self.artifacts if artifact.directory == wanted), None)

    def full_architecture(self) -> Architecture | None:
        """The full network: as exported, or the largest of the space."""
        for artifact in self.artifacts:
            if artifact.directory.endswith("/full"):
                return Architecture.parse(artifact.manifest.architecture)
        return self.space.largest if self.space is not None else None

    def table(self, target: str, deployment: str) -> LatencyTable | None:
        """The run's own latency table of a deployment."""
        found = (t for t in self.tables if (t.target, t.deployment.name) == (target, deployment))
        return next(found, None)

    def missing(self) -> list[str]:
        """What the recipe asks for and the run does not have, a line each."""
        stages = {record.stage for record in self.stages}
        lines = []
        if "finetune" not in stages:
            lines.append("the super-network is not trained yet")
        elif not any(found.history.trained == "super-network" for found in self.histories):
            lines.append("training curves: the release that made this run kept no log of its training")
        if not self.evaluations:
            lines.append("no sub-network was evaluated yet")
        for name, budgets in self.recipe.targets.items():
            target = read_target(Path(name)).name if is_file_name(name) and Path(name).is_file() else name
            fronts = [found for found in self.fronts if found.target == target]
            if not fronts:
                lines.append(f"the front of {target} was not searched yet")
            used = {candidate.deployment.name for found in fronts for candidate in found.front.candidates}
            for name in sorted(used):
                if self.table(target, name) is None:
                    lines.append(f"latency table {target}/{name}: not in the run's directory, it was found elsewhere")
            if self.full_artifact(target) is None:
                lines.append(f"the full network was not measured on {target} yet")
            chosen = {(s.target, s.budget, s.percentile) for s in self.selections}
            lines += [
                f"nothing was selected for {budget} on {target} yet" for budget in map(str, budgets)
                if (target, budget.strip(), self.recipe.percentile) not in chosen
            ]  # fmt: skip
        return lines


def read_run(directory: Path) -> RunRecord:
    """The record of the run in `directory`.

    Raises:
        UsageError: it is no run's directory.
        RecipeError: its recipe is missing or damaged.
    """
    check_run(directory)
    recipe = read_recipe(directory / "recipe.yaml")
    reader = _Reader(directory)
    spaces = reader.all("supernet/search_space.json", lambda path: SearchSpace.from_dict(_json(path)))
    qualities = reader.all("predictor/predictor.json", lambda path: _checked(Quality, _json(path)["quality"]))
    fronts = reader.all("fronts/*.json", lambda path: _front(path, recipe, directory))
    return RunRecord(
        directory=directory,
        recipe=recipe,
        space=next(iter(spaces), None),
        stages=tuple(Workspace(directory).finished()),
        histories=tuple(_histories(reader)),
        tables=tuple(reader.all("tables/**/*.json", LatencyTable.read)),
        evaluations=tuple(_evaluations(reader)),
        predictor=next(iter(qualities), None),
        fronts=tuple(sorted(fronts, key=lambda found: (not found.selectable, found.title))),
        selections=tuple(reader.all("selections/*.json", lambda path: _selection(_json(path)))),
        artifacts=tuple(reader.all(f"artifacts/*/*/{MANIFEST_NAME}", lambda p: _artifact(p.parent, directory))),
        faults=tuple(reader.faults),
    )


class _Reader:
    """Reads the files of a run; one that is damaged becomes a fault, not an end."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.faults: list[str] = []

    def all(self, pattern: str, parse: Callable[[Path], Value]) -> list[Value]:
        """What `parse` makes of each file that fits the pattern, in the order of their names; drafts are passed over."""
        found = []
        for path in sorted(self.root.glob(pattern)):
            if any(part.startswith(".") and part != ".checkpoints" for part in path.relative_to(self.root).parts):
                continue
            try:
                found.append(parse(path))
            except (OSError, ValueError, KeyError, TypeError, AttributeError, InstatuneError) as error:
                said = " ".join(str(error).split()).replace(f"{path}: ", "")
                self.faults.append(
                    f"{path.relative_to(self.root)}: cannot be read ({type(error).__name__}: {said:.150})"
                )
        return found


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _json(path: Path) -> Any:
    return json.loads(_text(path))


def _front(path: Path, recipe: Recipe, root: Path) -> FoundFront:
    data = _json(path)
    target, percentile = str(data["target"]), data["percentile"]
    if percentile not in PERCENTILES:
        raise ValueError(f"percentile: is {percentile!r}")
    if not data["front"]:
        raise ValueError("front: is empty")
    for entry in data["front"]:
        _checked(Predicted, entry["predicted"])
        _checked(Deployment, entry["deployment"])
    wanted = root / recipe.model_copy(update={"percentile": percentile}).front_file(target)
    rounds = tuple(_checked(Round, entry) for entry in data["rounds"])
    return FoundFront(target, percentile, rounds, ParetoFront.from_dict(data), wanted.name == path.name)


def _selection(data: Any) -> Selection:
    """A selection whose numbers can be divided by."""
    selection = _checked(Selection, data)
    Architecture.parse(selection.architecture)
    if selection.percentile not in PERCENTILES:
        raise ValueError(f"percentile: is {selection.percentile!r}")
    latencies = (selection.measured.percentile_ms(selection.percentile), selection.full_beside_ms)
    foreseen = (selection.predicted.latency_ms, selection.full_beside_predicted_ms)
    if any(value is not None and not value > 0 for value in (*latencies, *foreseen, selection.full_macs)):
        raise ValueError("a latency or the full network's multiply-accumulates is not positive")
    return selection


def _checked(kind: type[Value], data: Any) -> Value:
    """A value of a dataclass, whose fields are what they should be.

    Raises:
        ValueError: one is not; or a number is not finite.
    """
    value = pydantic.TypeAdapter(kind).validate_python(data)
    json.dumps(data, allow_nan=False)  # raises where a number is not finite
    return value


def _artifact(directory: Path, root: Path) -> FoundArtifact:
    size = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    return FoundArtifact(directory.relative_to(root).as_posix(), Manifest.read(directory), size)


def _evaluations(reader: _Reader) -> list[Evaluation]:
    path = reader.root / "evaluations.jsonl"
    try:
        return list(read_evaluations(path, report=reader.faults.append).values())
    except (OSError, InstatuneError) as error:
        reader.faults.append(str(error))
        return []


def _histories(reader: _Reader) -> Iterator[FoundHistory]:
    """Of the trainings that are done; where one is under way, of what its last checkpoint says."""
    for history in reader.all("training/*.json", lambda path: TrainingHistory.from_dict(_json(path))):
        yield FoundHistory(history, True)
    names = {"teacher": "full model", "elastic": "super-network", "tune": "a network alone"}
    states = reader.all(
        ".checkpoints/*/checkpoint-*/trainer_state.json", lambda path: (path.parent.parent, _json(path))
    )
    last: dict[Path, dict[str, Any]] = {}
    for folder, state in states:
        if folder not in last or state["global_step"] > last[folder]["global_step"]:
            last[folder] = state
    for folder, state in last.items():
        trained = names.get(folder.name.split("-")[0], folder.name)
        yield FoundHistory(TrainingHistory.of(trained, 0, state["log_history"]), False)
