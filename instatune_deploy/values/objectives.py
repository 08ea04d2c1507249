"""What a search makes large or small: `Objective`, and how objectives are written."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from instatune_deploy.errors import UnknownNameError, UsageError

if TYPE_CHECKING:
    from instatune_deploy.values.front import Predicted

#: Every objective with the field of `Predicted` that holds it. Only the metric is made large.
FIELDS = {
    "metric": "metric",
    "macs": "macs",
    "parameters": "parameters",
    "size": "file_bytes",
    "latency": "latency_ms",
    "memory": "memory_bytes",
}


@dataclass(frozen=True, order=True)
class Objective:
    """One objective: its `kind`, a key of `FIELDS`, and for a latency that is not the candidate's own its `place`.

    ``latency`` is that of a candidate in its own deployment on the target that is searched; with the place
    ``cpu-avx2:ort-fp32-1t`` it is the latency of the candidate's network in that deployment of that target.
    """

    kind: str
    place: str | None = None

    def value(self, predicted: Predicted) -> float:
        """What is to be made small: the cost, or minus the metric.

        Raises:
            UsageError: it was not predicted, as in a front of an older release.
        """
        if self.place is not None:
            return dict(predicted.elsewhere_ms)[self.place]
        found: float | None = getattr(predicted, FIELDS[self.kind])
        if found is None:
            raise UsageError(f"this front does not say the {self.kind} of its candidates: search again")
        return -found if self.kind == "metric" else found

    def __str__(self) -> str:
        return self.kind if self.place is None else f"{self.kind}@{self.place}"


Objectives = tuple[Objective, ...]
#: What is searched where nothing else is asked for.
DEFAULT: Objectives = (Objective("latency"), Objective("macs"), Objective("metric"))


def parse_objectives(texts: Iterable[str], *, metric: str = "metric", constrained: bool = False) -> Objectives:
    """The objectives written as ``macs``, ``latency`` or ``latency@TARGET:DEPLOYMENT``, in an order of their own.

    Args:
        metric: the task's metric, another name for ``metric``.
        constrained: whether a limit is set on the metric, which then need not be an objective.

    Raises:
        UnknownNameError: a name is unknown; names the nearest.
        UsageError: they are not two or three, one is named twice or asks for the wrong direction, or all of them are
            best at the smallest network.
    """
    found: dict[Objective, str] = {}
    for text in texts:
        objective = _parse(text, metric)
        if objective in found:
            both = text if text == found[objective] else f"{found[objective]} and {text}"
            raise UsageError(f"objectives repeat: {both} {'is named twice' if both == text else 'are the same'}")
        found[objective] = text
    named = ", ".join(found.values()) or "none"
    if not 2 <= len(found) <= 3:
        raise UsageError(f"a search has two or three objectives, found {len(found)}: {named}")
    if Objective("metric") not in found and not constrained:
        raise UsageError(f"objectives {named} are all best at the smallest network: add {metric}, or set a limit on it")
    return tuple(sorted(found, key=str))


def _parse(text: str, metric: str) -> Objective:
    words = text.split()
    direction, name = (words[0], words[1]) if len(words) == 2 and words[0] in ("min", "max") else (None, text.strip())
    kind, at, place = name.partition("@")
    kind = "metric" if kind == metric else kind
    if kind not in FIELDS:
        raise UnknownNameError("objective", kind, {*FIELDS, metric})
    if direction is not None and (direction == "max") != (kind == "metric"):
        raise UsageError(
            f"objective {text!r} contradicts itself: {kind} is made {'small' if direction == 'max' else 'large'}"
        )
    if at and (kind != "latency" or not all(place.partition(":"))):
        raise UsageError(f"objective {text!r}: a place is written latency@TARGET:DEPLOYMENT, for latencies only")
    return Objective(kind, place or None)
