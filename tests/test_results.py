"""Committed results hold what DESIGN asks of them, and README and docs quote them truthfully."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks import pages
from benchmarks.chart import CHART, deployed_speed_chart

ROOT = Path(__file__).parents[1]
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_result_says_how_it_came_about(path: Path) -> None:
    result = json.loads(path.read_text(encoding="utf-8"))
    assert {"claim", "command", "commit", "date", "machine", "versions", "rows", "figures"} <= result.keys()
    assert re.fullmatch(r"[0-9a-f]{40}", result["commit"]), "measured on a tree that was not committed"
    assert result["rows"]
    assert all(isinstance(value, (int, float)) for value in result["figures"].values())


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda path: path.name)
def test_pages_quote_the_results(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert pages.rendered(text) == text, "python -m benchmarks.pages writes it anew"


def test_something_is_quoted() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in pages.PAGES)
    assert len(re.findall(r"<!-- \w+:[\w.-]+:\d -->", text)) > 20
    assert {*re.findall(r"<!-- table (\w+) -->", text)} == {*pages.TABLES, pages.OVERVIEW}


def test_the_chart_is_that_of_the_result() -> None:
    assert CHART.read_text(encoding="utf-8") == deployed_speed_chart(), "python -m benchmarks.pages draws it anew"
