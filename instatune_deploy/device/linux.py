"""Reads the files in which Linux says what it knows of a machine (/proc, /sys)."""

from __future__ import annotations

from pathlib import Path


def text_of(path: Path) -> str | None:
    """The stripped text of a file; None where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def numbers_of(path: Path) -> set[int]:
    """The numbers in a file like ``0-3,8``; none where it cannot be read."""
    ranges = (part.partition("-") for part in (text_of(path) or "").split(",") if part)
    return {number for first, _, last in ranges for number in range(int(first), int(last or first) + 1)}
