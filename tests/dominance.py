"""What it means that one point is better than another, written down once more for the tests."""

from __future__ import annotations

from collections.abc import Sequence


def dominates(first: Sequence[float], second: Sequence[float]) -> bool:
    """Whether `first` is nowhere larger than `second` and somewhere smaller."""
    return all(a <= b for a, b in zip(first, second, strict=True)) and tuple(first) != tuple(second)
