"""JSON and YAML that come from elsewhere, read so that all that can be wrong with them is one error."""

from __future__ import annotations

import functools
import json
from typing import Any, TypeVar

import pydantic

Value = TypeVar("Value")

#: Levels that brackets may be nested; a recipe has four.
_DEEPEST = 100
#: Values that YAML may stand for once its aliases are followed; a line can say billions.
_MOST_VALUES = 100_000


@functools.cache
def adapter(kind: type[Value]) -> pydantic.TypeAdapter[Value]:
    """What checks values of a kind; to make one takes longer than to check a file."""
    return pydantic.TypeAdapter(kind)


def parse_json(text: str | bytes) -> Any:
    """What JSON says.

    Raises:
        ValueError: it is none, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def parse_yaml(text: str) -> Any:
    """What YAML says: plain values alone, for tags that make Python's objects are none.

    Raises:
        ValueError: it is none, nested too deeply, or stands for too many values; one line.
    """
    import yaml

    if _depth(text) > _DEEPEST:
        raise ValueError(f"brackets are nested more than {_DEEPEST} deep")
    try:
        # Not libyaml's reader, ten times as fast: a few hundred kilobytes of "- - -" overflow its stack and end the process.
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
    except Exception as error:  # what the reader of numbers and dates raises for odd ones, and RecursionError
        raise ValueError(f"{type(error).__name__}: {' '.join(str(error).split())}") from None
    _check_count(data)
    return data


def _depth(text: str) -> int:
    """How deep brackets are nested; those in quotes count as well."""
    depth = deepest = 0
    for character in text:
        if character in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "]}":
            depth -= 1
    return deepest


def _check_count(data: Any) -> None:
    """Make sure that a value has no more parts than anything has that people write, and does not hold itself.

    Raises:
        ValueError: it has, or does.
    """
    left, count = [data], 0
    while left:
        node = left.pop()
        count += 1
        if count > _MOST_VALUES:
            raise ValueError(f"stands for more than {_MOST_VALUES} values: its aliases hold themselves, or each other")
        if isinstance(node, dict):
            left += node.values()
        elif isinstance(node, (list, tuple, set)):
            left += node
