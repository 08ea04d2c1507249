"""Columns of rows, read some rows at a time: a data set need not fit in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute
from datasets import Dataset

#: Rows that are in memory at once.
_ROWS = 1000


def values(rows: Dataset, column: str) -> Iterator[Any]:
    """What each row has in `column`, as Python has it."""
    for part in rows.select_columns([column]).with_format(None).iter(_ROWS):
        yield from part[column]


def lengths(rows: Dataset, column: str) -> np.ndarray:
    """How long the list is that each row has in `column`, shape (rows,); images and other columns are not read for it."""
    found = np.empty(len(rows), dtype=np.int32)
    for number, part in enumerate(_arrow(rows, column)):
        found[number * _ROWS : number * _ROWS + len(part)] = pyarrow.compute.list_value_length(part).to_numpy()
    return found


def distinct_elements(rows: Dataset, column: str) -> set[Any]:
    """What is in any of the lists that rows have in `column`."""
    found: set[Any] = set()
    for part in _arrow(rows, column):
        found.update(pyarrow.compute.unique(pyarrow.compute.list_flatten(part)).to_pylist())
    return found


def _arrow(rows: Dataset, column: str) -> Iterator[pyarrow.ChunkedArray]:
    for part in rows.select_columns([column]).with_format("arrow").iter(_ROWS):
        yield part[column]
