"""The file of evaluations: what is read back, what is passed over, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from instatune_deploy.errors import UsageError
from instatune_deploy.values.evaluations import append_evaluations, read_evaluations
from instatune_deploy.values.front import Evaluation
from instatune_deploy.values.space import Architecture

ONE = Evaluation(Architecture.parse("1L[2-16]"), "accuracy", 0.5, "search", 10)
OTHER = Evaluation(Architecture.parse("2L[2-16 4-64]"), "accuracy", 0.75, "search", 10, computed_in="bf16")


def test_what_is_appended_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "e.jsonl"
    assert read_evaluations(path) == {}
    append_evaluations(path, [ONE])
    append_evaluations(path, [OTHER])
    assert read_evaluations(path) == {1: ONE, 2: OTHER}


def test_lines_without_the_newest_fields_are_read(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    line = {"architecture": "1L[2-16]", "metric": "accuracy", "value": 0.5, "split": "search", "n": 10}
    path.write_text("\n" + json.dumps(line) + "\n" + json.dumps({**line, "schema_version": 1}) + "\n", encoding="utf-8")
    assert read_evaluations(path) == {2: ONE, 3: ONE}


@pytest.mark.parametrize(
    "line",
    [
        b'{"architecture": "1L[2-16]", "metr',
        b"[1, 2]",
        b"null",
        b"\xff\xfe",
        b'{"name": "something else"}',
        json.dumps({**ONE.to_dict(), "architecture": "3L[2-16]"}).encode(),
        json.dumps({**ONE.to_dict(), "architecture": 7}).encode(),
        json.dumps({**ONE.to_dict(), "value": "high"}).encode(),
        json.dumps({**ONE.to_dict(), "value": float("nan")}).encode(),
        json.dumps({**ONE.to_dict(), "colour": "red"}).encode(),
        json.dumps({**ONE.to_dict(), "divergence": float("inf")}).encode(),
        json.dumps({**ONE.to_dict(), "divergence": "far"}).encode(),
    ],
)
def test_a_foreign_line_is_passed_over_and_named(tmp_path: Path, line: bytes) -> None:
    path, told = tmp_path / "e.jsonl", list[str]()
    append_evaluations(path, [ONE])
    path.write_bytes(path.read_bytes() + line)
    append_evaluations(path, [OTHER])
    assert read_evaluations(path, report=told.append) == {1: ONE, 3: OTHER}
    assert len(told) == 1
    assert told[0].startswith(f"{path}:2: passed over")
    assert "\n" not in told[0]


@pytest.mark.parametrize("version", [2, "1.5", None])
def test_a_line_of_a_newer_version_is_refused(tmp_path: Path, version: object) -> None:
    path = tmp_path / "e.jsonl"
    path.write_text(json.dumps({**ONE.to_dict(), "schema_version": version, "more": 1}) + "\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"e\.jsonl:1: is of schema version .* knows 1"):
        read_evaluations(path)
