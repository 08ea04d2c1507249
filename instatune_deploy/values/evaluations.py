"""The file of evaluations: JSON lines, one an `Evaluation`, appended one by one so that a stop loses none."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from instatune_deploy.errors import ArchitectureError, UsageError
from instatune_deploy.values.documents import parse_json
from instatune_deploy.values.front import Evaluation

#: Different architectures, in one precision, without which nothing can be predicted of others.
MIN_EVALUATIONS = 8
#: The newest `schema_version` of a line that is understood; a line that says none is of version 1.
SCHEMA_VERSION = 1


def append_evaluations(path: Path, evaluations: Iterable[Evaluation]) -> None:
    """Write a line for each of `evaluations` at the end of the file, which need not exist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as stream:
        if stream.seek(0, os.SEEK_END) > 0:
            stream.seek(-1, os.SEEK_END)
            if stream.read(1) != b"\n":
                stream.write(b"\n")  # the last line is one half, of a process that was killed
        for evaluation in evaluations:
            stream.write(json.dumps(evaluation.to_dict()).encode() + b"\n")


def read_evaluations(path: Path, *, report: Callable[[str], None] = lambda line: None) -> dict[int, Evaluation]:
    """The evaluations in a file by line number, the first is 1; none if there is no file.

    A line that is none, such as one that a killed process left half, is passed over and reported.

    Raises:
        UsageError: a line is of a newer version than this program knows.
    """
    found: dict[int, Evaluation] = {}
    if not path.exists():
        return found
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            found[number] = _parse(line, f"{path}:{number}")
        except (ValueError, KeyError, TypeError, OverflowError, ArchitectureError) as error:
            reason = " ".join(str(error).split())
            report(f"{path}:{number}: passed over, no evaluation stands there ({reason:.100})")
    return found


def _parse(line: bytes, where: str) -> Evaluation:
    """The evaluation in a line; any of the usual errors where it holds none.

    Raises:
        UsageError: it is of a newer version.
    """
    data = parse_json(line)
    if not isinstance(data, dict):
        raise TypeError("not an object")
    version = data.pop("schema_version", SCHEMA_VERSION)
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise UsageError(
            f"{where}: is of schema version {version!r}, and this program knows {SCHEMA_VERSION}: a newer one wrote it"
        )
    evaluation = Evaluation.from_dict(data)
    numbers = (evaluation.value, evaluation.n, *([] if evaluation.divergence is None else [evaluation.divergence]))
    if any(isinstance(n, bool) or not isinstance(n, (int, float)) or not math.isfinite(n) for n in numbers):
        raise ValueError(
            f"value {evaluation.value!r} of {evaluation.n!r} samples, divergence {evaluation.divergence!r}"
        )
    return evaluation
