"""Drafts a recipe for a model and a dataset: finds out what it can, and names the option that says what it cannot."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from datasets import Dataset

from instatune_deploy.data.dataset import read_rows
from instatune_deploy.data.heads import get_head
from instatune_deploy.data.processor import Processor
from instatune_deploy.device.fingerprint import Servable, detect, servable
from instatune_deploy.drafting.columns import Columns, find_columns
from instatune_deploy.drafting.model import judge, lengths, stride
from instatune_deploy.drafting.source import find_source
from instatune_deploy.drafting.writing import Draft, to_yaml
from instatune_deploy.elastic.families import inputs_of
from instatune_deploy.elastic.pretrained import load_config, space_for
from instatune_deploy.elastic.shapes import model_shape
from instatune_deploy.errors import DatasetError, TargetError, UnknownNameError
from instatune_deploy.job import Job
from instatune_deploy.planning.estimate import Plan, make_plan
from instatune_deploy.values.macs import count_macs
from instatune_deploy.values.presets import FAMILY_PRESETS
from instatune_deploy.values.recipe import METRICS, DataSection, Recipe, Task, parse_recipe
from instatune_deploy.values.space import SearchSpace
from instatune_deploy.values.target import every_target, find_target
from instatune_deploy.workspace import Workspace, data_directories

Report = Callable[[str], None]

#: Rows that a split may take from the training rows: at most, and as a share of them.
_MOST_ASIDE, _SHARE_ASIDE = 1000, 0.2
#: Published spaces of transformers; their choices of depth and width go far enough down with BERT's alone.
_TRANSFORMERS, _CHOICES = {"bert-base", "vit-base", "beit3-base"}, "bert-base"


@dataclass(frozen=True)
class Wishes:
    """What the user says of a recipe; what is None or empty is found out.

    Args:
        columns: by the keys of a recipe's `data`.
        budgets: of each target.
    """

    task: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    report: str | None = None
    targets: Sequence[str] = ()
    budgets: Sequence[str] = ("50%",)


@dataclass(frozen=True)
class Drafted:
    """A recipe, its YAML with the reasons, and what a run of it should take; None where that was not asked."""

    recipe: Recipe
    text: str
    plan: Plan | None


def draft_recipe(model: str, data: str, wishes: Wishes, path: Path, *, estimate: bool, report: Report) -> Drafted:
    """A recipe to stand in `path`, checked as a run would check it; nothing is written.

    Args:
        model: directory or hub name; `data`: file, directory or hub name.
        estimate: whether to measure for some seconds what a run should take.
        report: is told what is looked at, a line each.

    Raises:
        UsageError: something cannot be told, and an option has to say it; or model and data do not fit.
    """
    found = _find(model, data, wishes, report)
    text = to_yaml(found, path.parent, [])
    recipe = parse_recipe(text, path)
    job = Job(recipe, Workspace(path.parent / "runs" / recipe.name), report)
    job.check()
    plan = None
    if estimate:
        report("estimating what a run should take, from a few training steps")
        plan = make_plan(job)
    head = [f"Drafted by `instatune-deploy init`. Look it over, then: instatune-deploy run {path.name}"]
    if plan is not None:
        head.append(plan.lines[-1].replace("in all about", "A run should take about", 1))
    return Drafted(recipe, to_yaml(found, path.parent, head), plan)


def _find(model: str, data: str, wishes: Wishes, report: Report) -> Draft:
    """All that can be told of the model, the data and this machine."""
    config = load_config(model)
    task = _task(wishes.task)
    target, others = _targets(wishes.targets)
    source = find_source(data)
    rows = read_rows(source.train)
    report(f"{source.train}: {len(rows):,} rows with {', '.join(rows.column_names)}")
    columns = find_columns(rows, inputs_of(config), wishes.columns, task=task, source=source.train)
    report(f"task {columns.task}: {', '.join(f'{key} {name}' for key, name in columns.names.items())}")
    section = DataSection.model_validate({"train": source.train, **columns.names})
    given = (wishes.report,) if wishes.report else source.reports
    chosen, report_rows, passed_over = _report_split(given, columns, section, rows)
    if wishes.report and chosen is None:
        raise DatasetError(f"--report {passed_over[0]}")
    processor = Processor(model, columns.task, 10**6)
    counted = lengths(columns.task, rows, section, processor, config)
    if counted is not None:
        processor = Processor(model, columns.task, counted.cut)
        section = section.model_copy(update={"sequence_length": counted.cut, "doc_stride": stride(counted.cut)})
    judgement = judge(model, columns.task, rows, section, processor)
    aside = max(1, int(min(_MOST_ASIDE, _SHARE_ASIDE * len(rows))))
    space = _space(config.model_type, lambda: space_for(config, _CHOICES))
    share = 0.0
    if space is not None:
        shape = model_shape(judgement.model, counted.cut if counted else 1)
        share = count_macs(shape, space.smallest) / count_macs(shape, shape.full())
    return Draft(
        name=_name(model, data), model=model, family=config.model_type, train=source.train, report=chosen,
        passed_over=passed_over, rows=len(rows), report_rows=report_rows if chosen else aside, search_rows=aside,
        columns=columns, classes=get_head(columns.task).classes(rows, section), judgement=judgement, lengths=counted,
        space=space, smallest_share=share, target=target, others=others, budgets=wishes.budgets,
    )  # fmt: skip


def _task(name: str | None) -> Task | None:
    if name is None:
        return None
    if name not in METRICS:
        raise UnknownNameError("task", name, METRICS)
    return name


def _space(family: str, make: Callable[[], SearchSpace]) -> SearchSpace | None:
    """Choices that fit a transformer; None where its family has published ones of another kind."""
    return make() if FAMILY_PRESETS[family] in _TRANSFORMERS else None


def _targets(names: Sequence[str]) -> tuple[Servable, list[Servable]]:
    """The target that this machine serves by most deployments, an accelerator's before the CPU's, and the others.

    Raises:
        TargetError: it serves none, or not the one that is named.
    """
    places = data_directories("targets")
    wanted = [find_target(name, places) for name in names] or every_target(places)
    found = servable(wanted, detect())
    usable = [answer for answer in found if answer.reason is None]
    if not usable:
        reason = found[0].reason if names else "`instatune-deploy targets detect` says why"
        raise TargetError(f"this machine serves no target: {reason}")
    usable.sort(key=lambda answer: (answer.target.device == "cpu", -len(answer.deployments)))
    return usable[0], usable[1:]


def _report_split(
    candidates: Sequence[str], columns: Columns, section: DataSection, train: Dataset
) -> tuple[str | None, int | None, list[str]]:
    """The first candidate whose rows have the columns and labels, its rows, and why others were passed over.

    Of a report split nothing but the labels is looked at, and only whether they are there.
    """
    passed_over = []
    head, numbers = get_head(columns.task), columns.task == "text-regression"  # where -1 says nothing of a label
    for candidate in candidates:
        try:
            rows = read_rows(candidate)
        except DatasetError as error:
            passed_over.append(str(error))
            continue
        missing = [column for column in head.columns(section) if column not in rows.column_names]
        label = columns.names.get("label")
        if missing:
            passed_over.append(f"{candidate}: has no column {missing[0]!r}")
        elif label is not None and any(value is None or (value == -1 and not numbers) for value in rows[label]):
            passed_over.append(f"{candidate}: has rows without a label")
        else:
            return candidate, len(rows), passed_over
    return None, None, passed_over


def _name(model: str, data: str) -> str:
    """A run's name after the model and the data."""
    parts = [Path(text.partition(":")[0].partition("@")[0]).absolute().name for text in (model, data)]
    words = [re.sub(r"[^a-z0-9]+", "-", Path(part).stem.lower()).strip("-") for part in parts]
    return "-".join(word for word in words if word) or "run"


__all__ = ["Drafted", "Wishes", "draft_recipe"]
