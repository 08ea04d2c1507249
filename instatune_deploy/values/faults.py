"""What is wrong with a file's content, in one line."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pydantic

from instatune_deploy.errors import ArtifactError, did_you_mean

Value = TypeVar("Value")


def first_fault(error: pydantic.ValidationError) -> str:
    """The first fault as ``field: message``, or the message alone where it names the field itself."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ") + _meant(first)
    # What a dataclass' __post_init__ raises has no field; its text begins with it.
    # A key may hold anything, lines too.
    return " ".join(": ".join(filter(None, [field, message])).split())


def _meant(fault: Any) -> str:
    """What may have been meant where a word is not one of those that are expected; empty if nothing is like it."""
    if fault["type"] != "literal_error":
        return ""
    expected, given = re.findall(r"'([^']*)'", fault["ctx"]["expected"]), fault["input"]
    if isinstance(given, bool) and {"on", "off"} & set(expected):
        return "; YAML takes a bare on, off, yes or no for true or false: write it in quotes"
    found = did_you_mean(given, expected) if isinstance(given, str) else ""
    tells = found.startswith("; did you mean") and not all(name in found for name in expected)
    return found if tells else ""


def read_file(path: Path, parse: Callable[[str], Value]) -> Value:
    """What `parse` makes of the text of an artifact's file.

    Raises:
        ArtifactError: the file cannot be read, is not JSON, or is refused by `parse`; says why in one line.
    """
    try:
        return parse(path.read_text(encoding="utf-8"))
    except pydantic.ValidationError as error:
        raise ArtifactError(f"{path}: {first_fault(error)}") from None
    except OSError as error:
        raise ArtifactError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise ArtifactError(f"{path}: not JSON: {error}") from None
