"""Values as HTML tables, for notebooks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


def html_table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table whose texts are escaped; numbers are set to the right."""

    def cell(value: object) -> str:
        right = ' style="text-align: right"' if isinstance(value, (int, float)) else ""
        shown = f"{value:.4g}" if isinstance(value, float) else str(value)
        return f"<td{right}>{escape(shown)}</td>"

    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    return f"<table><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
