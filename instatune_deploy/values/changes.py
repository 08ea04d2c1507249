"""What differs between what a stage was made from and what it would be made from now, in words."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

#: Differences that a line names.
_NAMED = 3


def flattened(parts: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined by dots, values as JSON has them."""
    return dict(_entries(json.loads(json.dumps(parts, default=str)), prefix))


def _entries(parts: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in parts.items():
        if isinstance(value, dict) and value:
            yield from _entries(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The entries of two flat mappings that differ: ``epochs: 2 -> 3``, or that the content of something changed."""
    lines = []
    for name in dict.fromkeys([*before, *now]):
        old, new = before.get(name), now.get(name)
        if old == new:
            continue
        is_hash = name.startswith("content of ")
        lines.append(f"{name} changed" if is_hash else f"{name}: {_shown(old)} -> {_shown(new)}")
    return lines


def in_a_line(differences: list[str]) -> str:
    """The first of them, and how many more there are."""
    more = len(differences) - _NAMED
    return ", ".join(differences[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _shown(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
