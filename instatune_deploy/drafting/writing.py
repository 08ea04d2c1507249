"""A drafted recipe as YAML that says why each thing stands in it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from instatune_deploy.device.fingerprint import Servable
from instatune_deploy.drafting.columns import Columns
from instatune_deploy.drafting.model import Judgement, Lengths, stride
from instatune_deploy.values.space import SearchSpace


@dataclass(frozen=True)
class Draft:
    """All that a recipe is written from.

    Args:
        data: the two sources, and how many rows are kept aside for searching and, without a report split, for reporting.
        passed_over: report splits that will not do, each with the reason.
        space: the choices, None where the family's published ones are meant; `smallest_share`: multiply-accumulates of its
            smallest network, as a share of the full one's.
        target, others: what this machine serves best, and what it serves as well.
        budgets: of the target.
    """

    name: str
    model: str
    family: str
    train: str
    report: str | None
    passed_over: Sequence[str]
    rows: int
    report_rows: int | None
    search_rows: int
    columns: Columns
    classes: Sequence[str]
    judgement: Judgement
    lengths: Lengths | None
    space: SearchSpace | None
    smallest_share: float
    target: Servable
    others: Sequence[Servable]
    budgets: Sequence[str]


def to_yaml(draft: Draft, folder: Path, head: Sequence[str]) -> str:
    """The recipe as a file in `folder`; paths in it are relative to that.

    Args:
        head: lines of comment to begin with.
    """
    parts = [
        [f"# {line}" for line in head],
        _model(draft, folder),
        _data(draft, folder),
        _space(draft),
        _finetune(draft),
        _targets(draft),
    ]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def _located(source: str, folder: Path) -> str:
    """A path as a recipe in `folder` says it; a hub name as it is."""
    if not Path(source).exists():
        return source
    relative = os.path.relpath(source, folder)
    return relative if relative.startswith("..") else f"./{relative}"


def _says(key: str, value: Any, why: str = "", indent: int = 0) -> str:
    """A line ``key: value  # why``."""
    text = (
        yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True).removesuffix("\n...\n").strip()
    )
    line = f"{' ' * indent}{key}: {text}"
    return f"{line:40}  # {_in_a_line(why)}" if why else line


def _in_a_line(text: str) -> str:
    """What a comment can hold: names of classes and files may have line ends."""
    return " ".join(text.split())


def _model(draft: Draft, folder: Path) -> list[str]:
    found = draft.judgement
    lines = [
        _says("name", draft.name, "the run's directory is runs/ and this"),
        _says("model", _located(draft.model, folder), f"a {draft.family} model"),
        _says("task", draft.columns.task, draft.columns.why),
    ]
    if found.metric_note:
        lines.append(_says("metric", found.metric, found.metric_note))
    if found.reset_head:
        lines.append(_says("reset_head", True, f"the model's own head does not fit: {found.reset_head}"))
    return lines


def _data(draft: Draft, folder: Path) -> list[str]:
    lines = ["data:", _says("train", _located(draft.train, folder), f"{draft.rows:,} rows", 2)]
    lines += [f"  # passed over as report split: {_in_a_line(line)}" for line in draft.passed_over]
    if draft.report is not None:
        what = f"{draft.report_rows:,} rows that only the confirmation reads"
        lines.append(_says("report", _located(draft.report, folder), what, 2))
    else:
        what = "no other split was found: so many training rows are kept aside for the confirmation"
        lines.append(_says("report_rows", draft.report_rows, what, 2))
    for key, column in draft.columns.names.items():
        lines.append(_says(key, column, _about(draft, key), 2))
    lines.append(_says("search_rows", draft.search_rows, "training rows kept aside for the search to be judged on", 2))
    if draft.lengths is not None:
        found = draft.lengths
        lines += [
            f"  # tokens of {found.rows:,} training texts: median {found.median}, 90% up to {found.p90}, 99% up to "
            f"{found.p99}, longest {found.longest}",
            _says("sequence_length", found.cut, "longer texts are cut; latencies are measured at this length", 2),
        ]
        if draft.columns.task == "question-answering":
            lines[-1] = _says("sequence_length", found.cut, "longer contexts are read in windows", 2)
            lines.append(_says("doc_stride", stride(found.cut), "tokens that neighbouring windows share", 2))
    return lines


def _about(draft: Draft, key: str) -> str:
    if key not in ("label", "tags"):
        return ""
    if draft.columns.task == "text-regression":
        return "a number"
    names = ", ".join(draft.classes[:8]) + (", ..." if len(draft.classes) > 8 else "")
    return f"{len(draft.classes)} classes: {names}"


def _space(draft: Draft) -> list[str]:
    if draft.space is None:
        return [_says("space", "paper", f"the preset for {draft.family} models")]
    space = draft.space
    return [
        f"# {space.size:,} sub-networks; the smallest has {100 * draft.smallest_share:.0f}% of the full network's multiply-accumulates.",
        "# `space: auto` instead proposes the choices of each layer from its importance, once the model is fine-tuned.",
        "space:",
        _says("depths", list(space.depths[0]), "layers", 2),
        _says("heads", list(space.head_choices), "attention heads of a layer", 2),
        _says("ffn", list(space.ffn_choices), "MLP neurons of a layer", 2),
    ]


def _finetune(draft: Draft) -> list[str]:
    found = draft.judgement
    measured = f"{found.metric} {found.value:.3f} on {found.n} training rows before any training"
    if found.is_tuned:
        why = f"fine-tuned already: {measured}"
        return [
            "finetune:",
            _says("preset", "best", "every key of it is in the package's presets/best.yaml", 2),
            _says("teacher", None, why, 2),
        ]
    why = f"not fine-tuned for this task ({measured}): the full model is, first"
    return [_says("finetune", "best", why), "# finetune: {epochs: 1, teacher: {epochs: 1}} is quicker and loses more"]


def _targets(draft: Draft) -> list[str]:
    names = ", ".join(deployment.name for deployment in draft.target.deployments)
    lines = [
        "# Latency budgets of each target: milliseconds (8ms), or a share of the full network's latency.",
        "targets:",
        _says(draft.target.target.name, list(draft.budgets), f"this machine; measured: {names}", 2),
    ]
    for other in draft.others:
        lines.append(f"  # {other.target.name}: {list(draft.budgets)}  # this machine serves it too")
    return lines
