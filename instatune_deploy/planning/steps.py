"""The stages of a run in their order, each with what becomes of it: nothing is made, and only files are looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from instatune_deploy.elastic.shapes import model_shape
from instatune_deploy.job import Job
from instatune_deploy.profiling import look_up
from instatune_deploy.searching import Fronts, evaluations_key
from instatune_deploy.stages.finetune import supernet_key, supernet_parts, teacher_key, teacher_parts
from instatune_deploy.stages.propose import proposal_key, proposal_parts
from instatune_deploy.values.budget import Budget
from instatune_deploy.values.costs import Goal
from instatune_deploy.values.evaluations import read_evaluations
from instatune_deploy.values.front import ParetoFront
from instatune_deploy.values.latency import LatencyTable
from instatune_deploy.values.presets import AUTO
from instatune_deploy.values.space import SearchSpace
from instatune_deploy.values.target import Target

Kind = Literal["teacher", "space", "super-network", "table", "front", "selection"]
State = Literal["reused", "goes on", "to do"]
#: Why a stage that was never done is to be done.
_NEW = "nothing of it is there yet"


@dataclass(frozen=True)
class Step:
    """A stage: what it does (`what`), what becomes of it and why.

    Args:
        target: its target's name, where it belongs to one.
        left: the share of it that is left to do.
    """

    kind: Kind
    name: str
    what: str
    state: State
    why: str
    target: str | None = None
    left: float = 1.0

    def __str__(self) -> str:
        return f"{self.name}: {self.state}, {self.why}"


def plan_steps(job: Job) -> list[Step]:
    """The stages of the job in their order; writes nothing.

    Raises:
        UsageError: what is already there is damaged.
    """
    space = _space(job)
    network = _supernet(job, space[1]) if space[1] is not None else _unproposed(job)
    teacher = _teacher(job, network, space[0])
    steps = [step for step in (teacher, space[0], network) if step is not None]
    after = _AfterTraining(job, network, space[1])
    targets = [(job.target(name), budgets) for name, budgets in job.recipe.targets.items()]
    return [*steps, *(step for target, budgets in targets for step in after.steps(target, budgets))]


def _space(job: Job) -> tuple[Step | None, SearchSpace | None]:
    """The step that proposes a space, if there is one, and the space, if it is known."""
    recipe = job.recipe
    if recipe.space != AUTO:
        return None, job.named_space
    what = f"propose a space from {_choices(job.named_space)}"
    if job.workspace.is_done("space", proposal_key(recipe, job.inputs_key)):
        return Step("space", "space", what, "reused", "space.yaml says it"), job.space
    why = job.workspace.why_anew("space", proposal_parts(recipe, job.inputs)) or _NEW
    return Step("space", "space", what, "to do", why), None


def _choices(space: SearchSpace) -> str:
    return f"{len(space.head_choices)} head counts and {len(space.ffn_choices)} MLP widths"


def _supernet(job: Job, space: SearchSpace) -> Step:
    settings = job.recipe.finetune
    return _training(
        job, "super-network",
        f"elastic fine-tuning: {settings.epochs:g} epochs of {len(job.data.train)} samples, {space.size:,} sub-networks",
        ("finetune", "elastic"), supernet_key(settings, space, job.inputs_key),
        supernet_parts(settings, space, job.inputs), "model, data, space and settings",
    )  # fmt: skip


def _unproposed(job: Job) -> Step:
    epochs, samples = job.recipe.finetune.epochs, len(job.data.train)
    return Step(
        "super-network", "super-network", f"elastic fine-tuning: {epochs:g} epochs of {samples} samples", "to do",
        "its space is yet to be proposed",
    )  # fmt: skip


def _teacher(job: Job, network: Step, proposal: Step | None) -> Step | None:
    """The fine-tuning of the full model; None where it needs none."""
    settings = job.recipe.finetune
    needed = settings.needs_teacher or proposal is not None
    if settings.teacher is None or not needed:
        return None
    found = _training(
        job, "teacher", f"fine-tune the full model: {settings.teacher.epochs:g} epochs of {len(job.data.train)} samples",
        ("teacher", "teacher"), teacher_key(settings.teacher, job.inputs_key),
        teacher_parts(settings.teacher, job.inputs), "model, data and settings",
    )  # fmt: skip
    made_without = network.state == "reused" and found.state != "reused"
    return None if made_without else found


def _training(
    job: Job, kind: Literal["teacher", "super-network"], what: str, stage: tuple[str, str], key: str,
    parts: Mapping[str, Any], same: str,
) -> Step:  # fmt: skip
    """What becomes of a training.

    Args:
        stage: the names that its record and its checkpoints have.
        same: what it is reused for.
    """
    record, checkpoints = stage
    if job.workspace.is_done(record, key):
        return Step(kind, kind, what, "reused", f"{same} are the same", left=0)
    found = list(job.workspace.path(".checkpoints", f"{checkpoints}-{key}").glob("checkpoint-*"))
    if found:
        last = max(int(path.name.removeprefix("checkpoint-")) for path in found)
        settings = job.recipe.finetune if kind == "super-network" else job.recipe.finetune.teacher
        assert settings is not None
        return Step(kind, kind, what, "goes on", f"it was stopped after {last} steps", left=0.5)
    why = job.workspace.why_anew(record, parts)
    return Step(kind, kind, what, "to do", _NEW if why is None else f"{why}; all that follows from it is redone")


class _AfterTraining:
    """The stages of a target that follow from a super-network."""

    def __init__(self, job: Job, network: Step, space: SearchSpace | None) -> None:
        self.job = job
        trained = network.state == "reused"
        self.space = (job.supernet.space if trained else space) or job.named_space
        self.shape = job.shape if trained else model_shape(job.load_model(), job.recipe.data.sequence_length)
        self.fronts: Fronts | None = None
        if trained:
            self.fronts = Fronts(job.recipe, job.workspace, _say_nothing, job.supernet_key, self.space, self.shape)

    def steps(self, target: Target, budgets: Sequence[str | float]) -> list[Step]:
        """Those of `target`: its tables, its front, its selections for `budgets`."""
        steps, tables = self._tables(target)
        search, front = self._front(target, tables)
        return [
            *steps,
            search,
            *(self._selection(target, text, front) for text in budgets),
        ]

    def _tables(self, target: Target) -> tuple[list[Step], list[LatencyTable] | None]:
        """A step for each deployment, and the tables if all of them are there."""
        steps, tables = [], list[LatencyTable]()
        profile = self.job.recipe.profile
        site = self.job.executor.site(target)
        usable = site.usable(target)[0]
        others = [d for d in target.deployments if d not in usable] if profile.foreign_tables else []
        for deployment in (*usable, *others):
            name = f"table of {target.name}/{deployment.name}"
            what = f"measure it, {1.5 * profile.seconds:g} s at most"
            table, lines = look_up(
                target, deployment, self.shape, self.space, profile, self.job.workspace.path("tables"), site
            )
            if table is not None:
                why = f"it was measured {table.date[:10]} for these shapes and choices"
                steps.append(Step("table", name, what, "reused", why, target.name, left=0))
                tables.append(table)
            elif deployment in usable:
                why = "; ".join(lines) or "there is none of these shapes on this machine"
                steps.append(Step("table", name, what, "to do", why, target.name))
        return steps, tables if all(step.state == "reused" for step in steps) else None

    def _front(self, target: Target, tables: Sequence[LatencyTable] | None) -> tuple[Step, ParetoFront | None]:
        """The step of the search, and the front if it was found before."""
        job, search = self.job, self.job.recipe.search
        most = search.evaluations or search.warm_start + search.rounds * search.batch
        name = f"front of {target.name}"
        what = (
            f"search {', '.join(search.objectives)} by {search.method}: at most {most} sub-networks evaluated on "
            f"{len(job.data.search)} samples each, {search.deployed} of them in each other precision"
        )
        if self.fronts is None:
            return Step("front", name, what, "to do", "it follows from the super-network", target.name), None
        done = self._evaluated()
        left = max(0.0, 1 - done / most)
        evaluated = f"; {done} of {most} sub-networks are evaluated already" if done else ""
        goal = self._goal(self.fronts, tables) if tables is not None else None
        if goal is None:
            return Step("front", name, what, "to do", f"it follows from the tables{evaluated}", target.name, left), None
        front = self.fronts.kept(goal)
        if front is not None:
            why = "super-network, tables and search are the same"
            return Step("front", name, what, "reused", why, target.name, left=0), front
        why = self.fronts.why_anew(goal) or _NEW
        return Step("front", name, what, "to do", f"{why}{evaluated}", target.name, left), None

    def _goal(self, fronts: Fronts, tables: Sequence[LatencyTable]) -> Goal | None:
        """What is searched for, if the tables of other places that it names are there."""
        elsewhere = {}
        for place in fronts.places:
            name, _, wanted = place.partition(":")
            found = self._tables(self.job.target(name))[1] or []
            named = [table for table in found if table.deployment.name == wanted]
            if not named:
                return None
            elsewhere[place] = named[0]
        return fronts.goal(tables, elsewhere)

    def _evaluated(self) -> int:
        """Sub-networks of this super-network whose metric in fp32 is known."""
        path = self.job.workspace.path("evaluations.jsonl")
        if not self.job.workspace.is_done("evaluations", evaluations_key(self.job.supernet_key, self.job.recipe)):
            return 0
        return sum(found.precision == "fp32" for found in read_evaluations(path).values())

    def _selection(self, target: Target, text: str | float, front: ParetoFront | None) -> Step:
        job = self.job
        budget = Budget.parse(text, metric=job.recipe.metric)
        name = f"artifact for {job.recipe.percentile} {budget.text} on {target.name}"
        what = f"export and confirm on {len(job.report_split)} samples of the report split"
        stage = job.selection_stage(target, budget)
        if front is None:
            return Step("selection", name, what, "to do", "it follows from the front", target.name)
        if job.workspace.is_done(stage, job.selection_key(front, budget)):
            return Step("selection", name, what, "reused", "front and budget are the same", target.name, left=0)
        why = job.workspace.why_anew(stage, job.selection_parts(front, budget)) or _NEW
        return Step("selection", name, what, "to do", why, target.name)


def _say_nothing(line: str) -> None:
    """For what says itself later that it is reused."""
