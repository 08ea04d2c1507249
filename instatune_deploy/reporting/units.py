"""`Scale`: in which unit a page shows the values of an objective, and how `select` is told a budget on it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from markupsafe import Markup

#: Of each cost: its name for people, the option of `select`, and its units, the largest first, as budgets write them.
_COSTS: dict[str, tuple[str, str, tuple[tuple[str, float], ...]]] = {
    "latency": ("latency", "--latency-budget", (("ms", 1.0),)),
    "macs": ("multiply-accumulates", "--macs-budget", (("G", 1e9), ("M", 1e6), ("K", 1e3))),
    "parameters": ("parameters", "--parameters-budget", (("M", 1e6), ("K", 1e3))),
    "size": ("file size, estimated", "--size-budget", (("MB", 1e6), ("kB", 1e3))),
    "memory": ("peak memory, estimated", "--memory-budget", (("MB", 1e6), ("kB", 1e3))),
}
COSTS = tuple(_COSTS)


@dataclass(frozen=True)
class Scale:
    """A unit for values of one cost: `factor` of it is one in the values' own unit (ms, counts, bytes)."""

    cost: str
    title: str
    option: str
    unit: str
    factor: float

    @classmethod
    def of(cls, cost: str, values: Iterable[float]) -> Scale:
        """The largest unit in which the largest of `values` is at least 1, else the smallest there is."""
        title, option, units = _COSTS[cost]
        largest = max(values, default=0.0)
        unit, factor = next(((u, f) for u, f in units if largest >= f), units[-1])
        return cls(cost, title, option, unit, factor)


def shown(value: float | None, digits: int = 3) -> str:
    """A number with so many significant digits, never in powers of ten; a dash for None."""
    if value is None:
        return "-"
    if value == 0:
        return "0"
    text = f"{value:.{digits}g}"
    return text if "e" not in text else f"{value:,.0f}" if abs(value) >= 1 else f"{value:.{digits + 4}f}".rstrip("0")


def words(text: str) -> Markup:
    """Text that a page breaks between words only, as architectures and commands must; escaped."""
    return Markup(" ").join(Markup('<span class="word">{}</span>').format(word) for word in text.split(" "))


def megabytes(count: float) -> str:
    """Bytes in MB, or kB where that is less than one."""
    return f"{shown(count / 1e6)} MB" if count >= 1e6 else f"{shown(count / 1e3)} kB"
