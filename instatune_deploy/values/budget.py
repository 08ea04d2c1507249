"""Budgets: `Limit`, one thing that must hold, `Bound`, the number it comes to, and `Budget`, several and a preference."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from instatune_deploy.errors import UnknownNameError, UsageError
from instatune_deploy.values.front import Candidate, Predicted
from instatune_deploy.values.objectives import Objective

_COUNTS = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_SIZES = {"": 1, "B": 1, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_UNITS: dict[str, dict[str, float]] = {
    "latency": {"": 1.0, "ms": 1.0}, "macs": _COUNTS, "parameters": _COUNTS, "size": _SIZES, "memory": _SIZES,
    "metric": {"": 1.0}, "loss": {"": 0.01, "points": 0.01},
}  # fmt: skip
_EXAMPLES = {
    "latency": "milliseconds such as 8ms nor a share such as 50%",
    "macs": "a number such as 2G nor a share such as 50%",
    "parameters": "a number such as 20M nor a share such as 50%",
    "size": "a size such as 30MB nor a share such as 50%",
    "memory": "a size such as 200MB nor a share such as 50%",
    "metric": "a fraction such as 0.88 nor anything else",
    "loss": "points such as 0.5 nor anything else",
}
#: What can be preferred among networks that keep a budget, and what is then made small.
PREFERENCES = {"best": "metric", "fastest": "latency", "smallest": "size"}


@dataclass(frozen=True, order=True)
class Limit:
    """What one number of a network may be at most or, if it is the metric, at least.

    `basis` says what `number` is: a ``value``, a ``share`` of the full network's, or a ``loss`` against the full
    network's metric (a fraction).
    """

    objective: Objective
    number: float
    basis: Literal["value", "share", "loss"] = "value"

    def order(self) -> tuple[str, str, float, str]:
        """What limits are sorted by; one of a place stands after the same of none, which cannot be compared with it."""
        return self.objective.kind, self.objective.place or "", self.number, self.basis

    @classmethod
    def parse(cls, text: str, *, metric: str = "metric") -> Limit:
        """The limit written as ``latency<=8ms``, ``size<=50%``, ``metric>=0.88`` or ``loss<=0.5`` (points).

        Args:
            metric: the task's metric, another name for ``metric``.

        Raises:
            UsageError: it is written otherwise, or the wrong way round.
        """
        match = re.fullmatch(r"\s*([^<>=\s]+)\s*(<=|>=|<|>|=)\s*([^<>=]+)", text)
        if match is None:
            raise UsageError(f"limit {text!r} is not written like latency<=8ms, size<=30MB, metric>=0.88 or loss<=0.5")
        name, sign, value = match.groups()
        kind, _, place = ("metric" if name == metric else name).partition("@")
        if kind not in _UNITS:
            raise UnknownNameError("limit", kind, {*_UNITS, metric})
        if sign[0] != "=" and (sign[0] == ">") != (kind == "metric"):
            raise UsageError(
                f"limit {text!r} contradicts itself: {kind} is made {'large' if kind == 'metric' else 'small'}"
            )
        if place and (kind != "latency" or not all(place.partition(":"))):
            raise UsageError(f"limit {text!r}: a place is written latency@TARGET:DEPLOYMENT, for latencies only")
        return cls.of(kind, value, place or None)

    @classmethod
    def of(cls, kind: str, value: str | float, place: str | None = None) -> Limit:
        """The limit of a kind (one of the objectives or ``loss``) at a value as people write it.

        Raises:
            UsageError: the value is not of that kind, or not positive.
        """
        match = re.fullmatch(r"\s*((?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)\s*([A-Za-z]*|%)\s*", str(value))
        unit = match[2] if match else ""
        share = unit == "%" and kind not in ("metric", "loss")
        if match is None or (not share and unit not in _UNITS[kind]) or (float(match[1]) <= 0 and kind != "loss"):
            raise UsageError(f"budget {value!r} is neither {_EXAMPLES[kind]}")
        if share:
            return cls(Objective(kind, place), float(match[1]) / 100, "share")
        number = float(match[1]) * _UNITS[kind][unit]
        if kind == "metric" and number > 1:
            raise UsageError(f"budget {value!r}: no metric is above 1: a fraction is meant, such as 0.88")
        return cls(Objective("metric"), number, "loss") if kind == "loss" else cls(Objective(kind, place), number)

    def bound(self, full: float) -> Bound:
        """What it comes to where the full network has the value `full`."""
        numbers = {"value": self.number, "share": self.number * full, "loss": full - self.number}
        return Bound(self.objective, numbers[self.basis])


@dataclass(frozen=True)
class Bound:
    """The largest value an objective may have; of the metric, the smallest."""

    objective: Objective
    number: float

    def excess(self, value: float) -> float:
        """By what share `value` is beyond the bound; 0 or less where it keeps it."""
        over = self.number - value if self.objective.kind == "metric" else value - self.number
        return over / (abs(self.number) or 1.0)

    def predicted_excess(self, predicted: Predicted, *, cautious: bool = False) -> float:
        """The excess of a prediction; where `cautious`, of the upper end of a latency's interval."""
        if cautious and self.objective == Objective("latency") and predicted.latency_high_ms is not None:
            return self.excess(predicted.latency_high_ms)
        value = self.objective.value(predicted)
        return self.excess(-value if self.objective.kind == "metric" else value)

    def __str__(self) -> str:
        return f"{'at least' if self.objective.kind == 'metric' else 'at most'} {shown(self.objective, self.number)}"


@dataclass(frozen=True)
class Budget:
    """Limits that must hold together, what is preferred among the networks that keep them, and how it was written."""

    text: str
    limits: tuple[Limit, ...]
    prefer: str = "best"

    @classmethod
    def parse(cls, text: str | float, *, metric: str = "metric") -> Budget:
        """The budget written as ``8ms`` or ``50%`` (latency), or as limits and a preference with commas between them:
        ``8ms, size<=30MB`` or ``loss<=0.5, smallest``. Without a preference the best is wanted or, where the metric is
        limited, the fastest.

        Raises:
            UsageError: a part is none of that, or something is limited twice.
        """
        limits: dict[Objective, Limit] = {}
        prefer = None
        for part in (part.strip() for part in str(text).split(",")):
            if part in PREFERENCES:
                prefer = part
                continue
            limit = Limit.parse(part, metric=metric) if re.search("[<>=]", part) else Limit.of("latency", part)
            if limit.objective in limits:
                raise UsageError(f"budget {text!r} limits {limit.objective} twice")
            limits[limit.objective] = limit
        if not limits:
            raise UsageError(f"budget {text!r} limits nothing")
        if prefer is None:
            prefer = "fastest" if Objective("metric") in limits else "best"
        return cls(str(text).strip(), tuple(sorted(limits.values(), key=Limit.order)), prefer)

    @property
    def file_name(self) -> str:
        """The budget as a part of a path: ``8ms``, ``50pct``, ``loss-0.5_smallest``."""
        text = self.text.replace("%", "pct").replace(" ", "").replace(",", "_")
        return re.sub(r"[^A-Za-z0-9._-]+", "-", text)


def bounds_of(limits: Iterable[Limit], full: Callable[[Objective], float]) -> list[Bound]:
    """What limits come to; `full` gives a value of the full network and is asked only where one is relative to it."""
    return [limit.bound(full(limit.objective) if limit.basis != "value" else 0.0) for limit in limits]


def excess(candidate: Candidate, bounds: Sequence[Bound], *, cautious: bool = False) -> float:
    """By what share a candidate is predicted to be beyond the bound it misses most; 0 or less where it keeps all."""
    return max((bound.predicted_excess(candidate.predicted, cautious=cautious) for bound in bounds), default=0.0)


def shortlist(candidates: Iterable[Candidate], bounds: Sequence[Bound], prefer: str) -> list[Candidate]:
    """The candidates that are predicted to keep all `bounds`, in the order in which to try them: first those of which
    that holds for the upper end of the latency's interval, too; among them the preferred first."""

    def order(candidate: Candidate) -> tuple[bool, float, float, float, str]:
        predicted = candidate.predicted
        preferred = Objective(PREFERENCES[prefer]).value(predicted)
        risky = excess(candidate, bounds, cautious=True) > 0
        return (risky, preferred, -predicted.metric, predicted.latency_ms, str(candidate.architecture))

    return sorted((c for c in candidates if excess(c, bounds) <= 0), key=order)


def improving(candidates: Iterable[Candidate], prefer: str) -> list[Candidate]:
    """The candidates that are predicted a better metric than all that are preferred to them, the preferred first: the
    further down that list, the likelier is it that a limit on the metric is kept."""
    objective, found = Objective(PREFERENCES[prefer]), list[Candidate]()
    for candidate in sorted(candidates, key=lambda c: (objective.value(c.predicted), -c.predicted.metric)):
        if not found or candidate.predicted.metric > found[-1].predicted.metric:
            found.append(candidate)
    return found


def missed(candidate: Candidate, bounds: Sequence[Bound]) -> str:
    """Which bounds a candidate is predicted to miss, with its values."""
    broken = [bound for bound in bounds if bound.predicted_excess(candidate.predicted) > 0]
    return ", ".join(f"{b.objective} {_predicted(candidate, b.objective)} ({b})" for b in broken)


def nearest(candidates: Iterable[Candidate], bounds: Sequence[Bound], percentile: str, count: int = 3) -> str:
    """The candidates that miss `bounds` by the least, with what they are predicted to be, for an error's line."""
    ordered = sorted(candidates, key=lambda c: (excess(c, bounds), -c.predicted.metric, str(c.architecture)))
    lines = []
    for candidate in ordered[:count]:
        values = [f"{b.objective} {_predicted(candidate, b.objective)}" for b in bounds]
        lines.append(f"{candidate.architecture} on {candidate.deployment.name}: {', '.join(values)}")
    said = f" (predicted; latency {percentile})" if lines else ""
    return ("; ".join(lines) or "none") + said


def _predicted(candidate: Candidate, objective: Objective) -> str:
    value = objective.value(candidate.predicted)
    return shown(objective, -value if objective.kind == "metric" else value)


def shown(objective: Objective, value: float) -> str:
    """A value with its unit, for people."""
    if objective.kind == "metric":
        return f"{value:.4f}"
    units = {
        "latency": (1, "ms"),
        "macs": (1e9, "G"),
        "parameters": (1e6, "M"),
        "size": (1e6, "MB"),
        "memory": (1e6, "MB"),
    }
    scale, unit = units[objective.kind]
    return f"{value / scale:.3g} {unit}"
