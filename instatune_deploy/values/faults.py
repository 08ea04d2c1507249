"""What is wrong with a file's content, in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pydantic

from instatune_deploy.errors import ArtifactError

Value = TypeVar("Value")


def first_fault(error: pydantic.ValidationError) -> str:
    """The first fault as ``field: message``, or the message alone where it names the field itself."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    # What a dataclass' __post_init__ raises has no field; its text begins with it.
    return ": ".join(filter(None, [field, first["msg"].removeprefix("Value error, ")]))


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
