"""Progress: plain lines where nobody looks at a terminal, bars with the time left where somebody does."""

from __future__ import annotations

import io
import re
import time

import pytest
from rich.console import Console

from instatune_deploy.faces.cli.bars import Lines, Stages, clock
from instatune_deploy.values.progress import Begun, Counted


def told(*, terminal: bool) -> str:
    """What a run of two stages puts on stderr."""
    stream = io.StringIO()
    lines = Lines(Console(file=stream, force_terminal=terminal, width=120, color_system=None, legacy_windows=False))
    assert lines.draws is terminal
    lines.expect({"teacher": 60.0, "front of x": 30.0})
    lines(Begun("teacher", 1, 2))
    for step in (5, 10):
        lines(Counted(f"step {step}/20: training loss 0.5 [b]not markup[/b]", "steps", step, 20))
        time.sleep(0.25)  # bars are drawn ten times a second
    lines(Counted("step 20/20: training loss 0.1", "steps", 20, 20))
    lines(Begun("front of x", 2, 2))
    time.sleep(0.25)
    lines.close()
    return stream.getvalue()


def test_without_a_terminal_there_are_lines_alone() -> None:
    lines = told(terminal=False).splitlines()
    assert [re.sub(r"^\[ +\d+\.\d s\] ", "", line) for line in lines] == [
        "stage 1 of 2: teacher",
        "step 5/20: training loss 0.5 [b]not markup[/b]",
        "step 10/20: training loss 0.5 [b]not markup[/b]",
        "step 20/20: training loss 0.1",
        "stage 2 of 2: front of x",
    ]


def test_a_terminal_shows_stages_and_steps_with_the_time_left() -> None:
    text = told(terminal=True)
    assert re.search(r"stage 1 of 2: teacher .*? 0/2 1:(30|29) left", text)  # all that is expected
    assert re.search(r"steps .*? 10/20 0:0\d left", text)
    assert re.search(r"stage 2 of 2: front of x .*? 1/2 0:\d\d left", text)
    assert "step 10/20: training loss 0.5 [b]not markup[/b]" in text


def test_the_time_left_follows_the_pace_of_the_stages_before() -> None:
    stages = Stages({"a": 10.0, "b": 10.0, "c": 20.0})
    assert stages.left_s() is None
    stages.begin("a")
    assert stages.left_s(stages._began) == 40.0
    stages._first -= 20.0  # the first took twice as long as expected
    stages.begin("b")
    assert stages.left_s(stages._began) == pytest.approx(60.0, rel=1e-3)
    assert stages.left_s(stages._began + 5) == pytest.approx(55.0, rel=1e-3)
    assert stages.left_s(stages._began + 100) == pytest.approx(40.0, rel=1e-3)  # late: the rest is left
    stages.begin("unknown")
    assert stages.left_s() is None


def test_lines_that_count_are_lines() -> None:
    assert Begun("x", 1, 3) == "stage 1 of 3: x"
    assert [clock(5), clock(65.4), clock(3723)] == ["0:05", "1:05", "1:02:03"]
