"""Drawings say what an architecture keeps."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from instatune_deploy.reporting.drawings import draw
from instatune_deploy.values.space import Architecture, SearchSpace

FULL = Architecture.uniform(4, 6, 96)
SPACE = SearchSpace.stack((2, 3, 4), ((2, 6),) * 4, ((32, 96),) * 4, (1, 2))


def cells(svg: str, kind: str) -> list[int]:
    """Cells in each path of a kind."""
    root = ElementTree.fromstring(svg)
    return [path.attrib["d"].count("M") for path in root.iter("path") if path.attrib["class"] == kind]


def lengths(svg: str, kind: str) -> list[float]:
    root = ElementTree.fromstring(svg)
    return [float(bar.attrib["width"]) for bar in root.iter("rect") if bar.attrib["class"] == kind]


def test_a_drawing_has_a_cell_for_every_head_and_bars_in_proportion_to_the_neurons() -> None:
    svg = draw(Architecture.parse("3L[2-32 6-96 6-32]"), FULL, SPACE)
    assert cells(svg, "kept-heads") == [2, 6, 6]
    assert cells(svg, "dropped") == [4, 6]  # of the first layer, and the layer that is gone
    short, long, third = lengths(svg, "kept-ffn")
    assert long == pytest.approx(3 * short, abs=0.1)
    assert third == short
    assert set(lengths(svg, "dropped")) == {long}


def test_a_drawing_says_which_layers_are_dropped() -> None:
    words = re.search(r'aria-label="([^"]*)"', draw(Architecture.uniform(3, 2, 32), FULL, SPACE))
    assert words is not None
    assert words[1] == (
        "3 of 4 layers; layer 1: 2 heads, 32 neurons; layer 2: dropped; layer 3: 2 heads, 32 neurons; "
        "layer 4: 2 heads, 32 neurons"
    )
    assert draw(Architecture.uniform(3, 2, 32), FULL, SPACE).count(">dropped<") == 1


def test_without_a_space_the_first_layers_are_drawn_and_without_a_full_network_it_alone() -> None:
    small = Architecture.uniform(2, 2, 32)
    assert draw(small, FULL, None).count(">dropped<") == 2
    alone = draw(small, None, None)
    assert cells(alone, "dropped") == []
    assert cells(alone, "kept-heads") == [2, 2]
    assert draw(Architecture.uniform(5, 8, 128), FULL, SPACE).count("<text") == 10  # larger than the full network


def test_a_network_of_stages_is_drawn_by_its_filters() -> None:
    space = SearchSpace(((1, 2), (1, 2)), (((8, 16),) * 2 + ((16, 32),) * 2,), (3, 1), (2, 2), ("filters",))
    svg = draw(Architecture.parse("3L[8 16 | 32]"), space.largest, space)
    assert lengths(svg, "kept-filters") == [24, 48, 96]
    assert "layer 2: 16 filters; layer 3: 32 filters; layer 4: dropped" in svg
