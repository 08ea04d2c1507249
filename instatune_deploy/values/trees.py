"""Decision trees as plain values: what gradient boosting learnt, without the library that learnt it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Tree = float | dict[str, Any]
"""A leaf's value, or ``{"feature": name, "threshold": x, "low": tree, "high": tree}``: low where feature <= threshold."""


def evaluate(trees: Sequence[Tree], features: Mapping[str, float]) -> float:
    """The sum of the leaves that `features` reach; a feature that is not given is zero."""
    total = 0.0
    for tree in trees:
        while isinstance(tree, dict):
            tree = tree["low"] if features.get(tree["feature"], 0.0) <= tree["threshold"] else tree["high"]
        total += tree
    return total


def problem(tree: Any) -> str | None:
    """What is wrong with something that should be a tree; None if nothing is."""
    if isinstance(tree, (int, float)):
        return None
    if not isinstance(tree, dict) or tree.keys() != {"feature", "threshold", "low", "high"}:
        return "is neither a number nor a mapping of feature, threshold, low and high"
    if not isinstance(tree["feature"], str) or not isinstance(tree["threshold"], (int, float)):
        return "splits by something that is not a feature's name and a number"
    return problem(tree["low"]) or problem(tree["high"])
