"""Lines of progress that carry numbers: who prints lines takes them for lines, who draws bars reads the numbers."""

from __future__ import annotations


class Begun(str):
    """A line that says that the stage `name` begins, the `number`-th of `total` (from 1)."""

    name: str
    number: int
    total: int

    def __new__(cls, name: str, number: int, total: int) -> Begun:
        line = super().__new__(cls, f"stage {number} of {total}: {name}")
        line.name, line.number, line.total = name, number, total
        return line


class Counted(str):
    """A line that says that `done` of `total` `what` are done."""

    what: str
    done: int
    total: int

    def __new__(cls, line: str, what: str, done: int, total: int) -> Counted:
        counted = super().__new__(cls, line)
        counted.what, counted.done, counted.total = what, done, total
        return counted
