"""The page that shows two runs side by side."""

from __future__ import annotations

from typing import Any

from instatune_deploy.reporting.figures import Figure, fronts_figure, hypervolume_figure, training_figure
from instatune_deploy.reporting.fronts import best_within
from instatune_deploy.reporting.page import machines, named_histories, render, versions
from instatune_deploy.reporting.record import FoundFront, RunRecord
from instatune_deploy.values.front import Candidate

#: What stands for a value that one of the runs has not.
ABSENT = "-"
#: Where between the fastest and the slowest candidate budgets are compared.
_SHARES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


def comparison_page(first: RunRecord, second: RunRecord) -> str:
    """The page of two runs."""
    names = run_names(first, second)
    records = dict(zip(names, (first, second), strict=True))
    shared = _shared_fronts(first, second)
    figures: dict[str, Figure] = {}
    fronts = []
    for number, pair in enumerate(shared):
        figures[f"front-{number}"] = fronts_figure(list(zip(names, records.values(), pair, strict=True)))
        fronts.append({"title": pair[0].title, "budgets": _by_budget(*pair)})
    searched = [(name, f) for name, r in records.items() for f in r.fronts[:1] if f.rounds]
    if searched:
        figures["hypervolume"] = hypervolume_figure(searched)
    trainings = _trainings(records)
    for number, (_, histories) in enumerate(trainings):
        figures[f"training-{number}"] = training_figure(histories, rate=False)
    context = {
        "names": names, "records": list(records.items()), "fronts": fronts, "trainings": [title for title, _ in trainings],
        "data": {"figures": figures, "fronts": [], "deployments": []},
        "differences": recipe_differences(first, second),
        "unshared": [
            f"{name}: {found.title}" for name, record in records.items() for found in record.fronts
            if not any(found in pair for pair in shared)
        ],
        "selections": [(name, s) for name, record in records.items() for s in record.selections],
        "tables": [(name, t) for name, record in records.items() for t in record.tables],
        "searched": searched, "machines": {name: machines(record) for name, record in records.items()},
        "versions": _versions(records),
    }  # fmt: skip
    return render("compare.html", context)


def run_names(first: RunRecord, second: RunRecord) -> tuple[str, str]:
    """What the runs are called on the page: by their recipes or, where these have one name, by their directories."""
    if first.recipe.name != second.recipe.name:
        return first.recipe.name, second.recipe.name
    if str(first.directory) != str(second.directory):
        return str(first.directory), str(second.directory)
    return f"{first.directory} (A)", f"{second.directory} (B)"


def recipe_differences(first: RunRecord, second: RunRecord) -> list[tuple[str, Any, Any]]:
    """The keys of the recipes, with dots between their parts, whose values differ."""
    one, other = (_flat(record.recipe.model_dump(exclude={"name"})) for record in (first, second))
    keys = [*one, *(key for key in other if key not in one)]
    pairs = [(key, one.get(key, ABSENT), other.get(key, ABSENT)) for key in keys]
    return [(key, a, b) for key, a, b in pairs if a != b]


def _flat(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in data.items():
        name = f"{prefix}{key}"
        found |= _flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return found


def _shared_fronts(first: RunRecord, second: RunRecord) -> list[tuple[FoundFront, FoundFront]]:
    """Fronts of the same target, percentile and objectives."""
    return [(one, other) for one in first.fronts for other in second.fronts if one.title == other.title]


def _by_budget(first: FoundFront, second: FoundFront) -> list[tuple[float, Candidate | None, Candidate | None]]:
    """For some latency budgets (ms), what `select` would try first of either front."""
    latencies = [c.predicted.latency_ms for found in (first, second) for c in found.front.candidates]
    if not latencies:
        return []
    low, high = min(latencies), max(latencies)
    # Rounded up, so that the fastest candidate keeps the first budget.
    budgets = [float(f"{1.0005 * (low + share * (high - low)):.4g}") for share in _SHARES]
    return [(ms, best_within(first, ms), best_within(second, ms)) for ms in dict.fromkeys(budgets)]


def _trainings(records: dict[str, RunRecord]) -> list[tuple[str, list[Any]]]:
    """For each kind of training the histories of the runs that have one."""
    found: dict[str, list[Any]] = {}
    for name, record in records.items():
        for title, history in named_histories(record):
            found.setdefault(title, []).append((name, history))
    return list(found.items())


def _versions(records: dict[str, RunRecord]) -> list[tuple[str, list[str]]]:
    """Every package with its version in each of the runs."""
    known = [dict(versions(record)) for record in records.values()]
    return [
        (name, [run.get(name, ABSENT) for run in known]) for name in sorted({name for run in known for name in run})
    ]
