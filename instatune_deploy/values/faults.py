"""What is wrong with a file's content, in one line."""

from __future__ import annotations

import pydantic


def first_fault(error: pydantic.ValidationError) -> str:
    """The first fault as ``field: message``, or the message alone where it names the field itself."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    # What a dataclass' __post_init__ raises has no field; its text begins with it.
    return ": ".join(filter(None, [field, first["msg"].removeprefix("Value error, ")]))
