"""Progress: lines with the seconds since the start and, on a terminal, bars with the time left for stages and steps."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

from instatune_deploy.values.progress import Begun, Counted


class Lines:
    """Prints lines to stderr with the seconds since it was made, and draws bars where stderr is a terminal.

    Args:
        console: of stderr.
    """

    def __init__(self, console: Console) -> None:
        self.console, self.started = console, time.monotonic()
        self.stages: Stages | None = None
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    @property
    def draws(self) -> bool:
        """Whether there are bars."""
        return self.console.is_terminal

    def expect(self, seconds: Mapping[str, float]) -> None:
        """Take these times for those of the stages, by name, so that the time left can be told."""
        self.stages = Stages(seconds)

    def __call__(self, line: str) -> None:
        """Print a line and draw what it counts."""
        if self.draws:
            self._draw(line)
        passed = time.monotonic() - self.started
        self.console.print(f"[{passed:7.1f} s] {line}", markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Remove the bars; what comes to stdout afterwards meets none."""
        if self._bars is not None:
            self._bars.stop()
        self._bars, self._tasks = None, {}

    def _draw(self, line: str) -> None:
        if isinstance(line, Begun):
            if self.stages is not None:
                self.stages.begin(line.name)
            self._drop("steps")
            self._show("stages", str(line), line.number - 1, line.total)
        elif isinstance(line, Counted):
            if line.done >= line.total:
                self._drop("steps")
            else:
                self._show("steps", line.what, line.done, line.total)

    def _show(self, bar: str, what: str, done: int, total: int) -> None:
        if self._bars is None:
            # Results go to stdout, which may be somebody's pipe: bars keep away from it.
            self._bars = Progress(
                TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f}"), _Left(self),
                console=self.console, transient=True, redirect_stdout=False, redirect_stderr=False,
            )  # fmt: skip
            self._bars.start()
        if bar not in self._tasks:
            self._tasks[bar] = self._bars.add_task(what, total=total, bar=bar)
        self._bars.update(self._tasks[bar], description=what, completed=done, total=total)

    def _drop(self, bar: str) -> None:
        if self._bars is not None and bar in self._tasks:
            with suppress(KeyError):
                self._bars.remove_task(self._tasks.pop(bar))
            if not self._tasks:
                self.close()


class Stages:
    """How long stages should take, corrected by how long those before took.

    Args:
        seconds: of each stage in their order, by name; estimates.
    """

    def __init__(self, seconds: Mapping[str, float]) -> None:
        self.seconds = dict(seconds)
        self._current: str | None = None
        self._began = self._first = time.monotonic()

    def begin(self, name: str) -> None:
        """The stage called `name` begins, so those before it are over."""
        now = time.monotonic()
        if self._current is None:
            self._first = now
        self._current, self._began = name, now

    def left_s(self, now: float | None = None) -> float | None:
        """Seconds that are left for all stages; None where they are not known."""
        if self._current not in self.seconds:
            return None
        now = time.monotonic() if now is None else now
        names = list(self.seconds)
        at = names.index(self._current)
        before = sum(self.seconds[name] for name in names[:at])
        # After some stages it shows how far off estimates are on this machine.
        pace = (self._began - self._first) / before if before > 0 and self._began > self._first else 1.0
        current = max(pace * self.seconds[self._current] - (now - self._began), 0.0)
        return current + pace * sum(self.seconds[name] for name in names[at + 1 :])


class _Left(ProgressColumn):
    """The time left for a bar."""

    def __init__(self, lines: Lines) -> None:
        super().__init__()
        self._lines = lines

    def render(self, task: Task) -> Text:
        if task.fields.get("bar") == "stages":
            left = self._lines.stages.left_s() if self._lines.stages is not None else None
        else:
            left = task.time_remaining
        return Text("" if left is None else f"{clock(left)} left")


def clock(seconds: float) -> str:
    """``0:05``, ``1:02:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
