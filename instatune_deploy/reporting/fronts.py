"""A front as the page's script needs it: its candidates, the full network beside them, and the commands that export them."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from instatune_deploy.reporting.record import FoundFront, RunRecord
from instatune_deploy.reporting.units import COSTS, Scale
from instatune_deploy.values.budget import Bound, shortlist
from instatune_deploy.values.front import Candidate, Evaluation
from instatune_deploy.values.objectives import Objective
from instatune_deploy.values.selection import Selection
from instatune_deploy.values.space import Architecture

#: Where a candidate's metric comes from, in words.
SOURCES = {
    "search split": "measured on the search split",
    "search split and predictor": "search split and predictor, in equal parts",
    "predictor": "predicted",
}


def front_view(record: RunRecord, found: FoundFront) -> dict[str, Any]:
    """What is shown of a front, JSON-ready: values in their own units (ms, counts, bytes, fractions)."""
    candidates = found.front.candidates
    full = _full(record, found)
    return {
        "title": found.title,
        "target": found.target,
        "percentile": found.percentile,
        "metric": record.recipe.metric,
        "samples": max((e.n for e in record.evaluations if e.split == "search"), default=None),
        "scales": [vars(scale) for scale in _scales(candidates, full)],
        "candidates": [_candidate(record, found, candidate) for candidate in candidates],
        "full": full,
        "start_ms": next((s.limit_ms for s in record.selections if s.target == found.target and s.limit_ms), None),
        "select": _select(record, found) if found.selectable else None,
    }


def _scales(candidates: Sequence[Candidate], full: dict[str, Any] | None) -> list[Scale]:
    """Of every cost that all candidates have."""
    scales = []
    for cost in COSTS:
        values = [_cost(candidate, cost) for candidate in candidates]
        known = [value for value in values if value is not None]
        if known and len(known) == len(values):
            scales.append(Scale.of(cost, [*known, *([full[cost]] if full and full[cost] else [])]))
    return scales


def _cost(candidate: Candidate, cost: str) -> float | None:
    predicted = candidate.predicted
    fields = {
        "latency": predicted.latency_ms, "macs": predicted.macs, "parameters": predicted.parameters,
        "size": predicted.file_bytes, "memory": predicted.memory_bytes,
    }  # fmt: skip
    return fields[cost]


def _candidate(record: RunRecord, found: FoundFront, candidate: Candidate) -> dict[str, Any]:
    predicted = candidate.predicted
    selection = _selection(record, found, candidate)
    measured = selection.measured if selection is not None else None
    return {
        "architecture": str(candidate.architecture),
        "deployment": candidate.deployment.name,
        **{cost: _cost(candidate, cost) for cost in COSTS},
        "latency_high": predicted.latency_high_ms,
        "score": predicted.metric,
        "source": SOURCES.get(predicted.metric_source, predicted.metric_source),
        "measured_ms": measured.percentile_ms(found.percentile) if measured is not None else None,
        "measured_score": measured.metric if measured is not None else None,
        "measured_samples": measured.n if measured is not None else None,
        "artifact": selection.artifact if selection is not None else None,
        "export": _export(record, found, candidate),
    }


def _selection(record: RunRecord, found: FoundFront, candidate: Candidate) -> Selection | None:
    """The selection in which a candidate was exported and measured, if there was one."""
    wanted = (found.target, str(candidate.architecture), candidate.deployment.name)
    matching = (s for s in record.selections if (s.target, s.architecture, s.deployment) == wanted)
    return next(matching, None)


def _full(record: RunRecord, found: FoundFront) -> dict[str, Any] | None:
    """The full network on the deployment it was measured on, or on its fastest by the tables; None: it is not known."""
    architecture = record.full_architecture()
    if architecture is None:
        return None
    estimates = _estimates(record, found, architecture)
    artifact = record.full_artifact(found.target)
    selection = next((s for s in record.selections if s.target == found.target), None)
    if artifact is not None:
        deployment: str | None = artifact.manifest.deployment.name
        measured = artifact.manifest.measured
        known = {"macs": artifact.manifest.macs, "parameters": artifact.manifest.parameters}
    elif selection is not None:
        deployment, measured, known = selection.full_deployment, selection.full, {"macs": selection.full_macs}
    else:
        deployment, measured, known = min(estimates, key=lambda name: estimates[name], default=None), None, {}
    same = [c for c in found.front.candidates if c.architecture == architecture and c.deployment.name == deployment]
    costs = {cost: _cost(same[0], cost) if same else None for cost in COSTS}
    return {
        "architecture": str(architecture),
        "deployment": deployment,
        **costs,
        "latency": estimates.get(deployment or "", costs["latency"]),
        **known,
        "score": _search_score(record.evaluations, architecture),
        "measured_ms": measured.percentile_ms(found.percentile) if measured is not None else None,
        "measured_score": measured.metric if measured is not None else None,
        "measured_samples": measured.n if measured is not None else None,
        "artifact": artifact.directory if artifact is not None else None,
    }


def _estimates(record: RunRecord, found: FoundFront, architecture: Architecture) -> dict[str, float]:
    """Predicted latency of a network in every deployment whose table the run has, in ms."""
    tables = [table for table in record.tables if table.target == found.target and not table.missing(architecture)]
    return {table.deployment.name: table.estimate_ms(architecture, found.percentile) for table in tables}


def _search_score(evaluations: Sequence[Evaluation], architecture: Architecture) -> float | None:
    """The metric of a network on the search split in fp32."""
    found = (e.value for e in evaluations if e.architecture == architecture and e.precision == "fp32")
    return next(found, None)


def _select(record: RunRecord, found: FoundFront) -> list[str]:
    """The parts of the command that selects from a front; the option of the budget stands between them."""
    rest = ["--target", found.target, "--percentile", found.percentile, "--run", str(record.directory)]
    return ["instatune-deploy select", shlex.join(rest)]


def _export(record: RunRecord, found: FoundFront, candidate: Candidate) -> str:
    """The command that exports a candidate whatever it is like when it is measured."""
    words = [
        "instatune-deploy", "export", "--architecture", str(candidate.architecture), "--deployment",
        candidate.deployment.name, "--target", found.target, "--run", str(record.directory), "--out", "my-model",
    ]  # fmt: skip
    return shlex.join(words)


def best_within(found: FoundFront, budget_ms: float) -> Candidate | None:
    """The candidate that `select` tries first for a latency budget; None: none is predicted to keep it."""
    bound = Bound(Objective("latency"), budget_ms)
    return next(iter(shortlist(found.front.candidates, [bound], "best")), None)
