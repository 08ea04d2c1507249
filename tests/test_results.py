"""Committed results hold what DESIGN asks of them, and README quotes them truthfully."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks import readme

ROOT = Path(__file__).parents[1]
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_result_says_how_it_came_about(path: Path) -> None:
    result = json.loads(path.read_text(encoding="utf-8"))
    assert {"claim", "command", "commit", "date", "machine", "versions", "rows", "figures"} <= result.keys()
    assert re.fullmatch(r"[0-9a-f]{40}", result["commit"]), "measured on a tree that was not committed"
    assert result["rows"]
    assert all(isinstance(value, (int, float)) for value in result["figures"].values())


def test_readme_quotes_the_figures_of_the_results() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    quoted = re.findall(r"(-?[\d.]+)<!-- (\w+):([\w.-]+):(\d) -->", text)
    assert quoted, "README quotes no figure"
    for number, name, key, digits in quoted:
        figures = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))["figures"]
        assert number == f"{figures[key]:.{digits}f}", f"{name}:{key}"


def test_readme_tables_are_those_of_the_results() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme.rendered(text) == text, "python -m benchmarks.readme writes them anew"
