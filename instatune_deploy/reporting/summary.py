"""`RunSummary`: which stages of a run are done, what they take on the disk, and when; and how a run is removed."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from instatune_deploy.errors import UsageError, did_you_mean
from instatune_deploy.workspace import LOCK, RECORDS, StageRecord, Workspace, check_run, is_run

#: Everything that a run makes in its directory, by its name there. Whatever else lies there is not the run's.
OWN = frozenset({
    ".checkpoints", ".drafts", LOCK, ".probes", ".recalled", RECORDS, "artifacts", "evaluations.jsonl", "evaluations.old.jsonl", "fleets", "fronts",
    "predictor", "recipe.yaml", "report.html", "result.json", "searched_by.json", "selections", "space.yaml", "supernet",
    "tables", "teacher", "training", "tuned",
})  # fmt: skip


@dataclass(frozen=True)
class RunSummary:
    """A run's directory, the stages that are done in the order in which they were, and bytes of each part of it."""

    directory: Path
    stages: tuple[StageRecord, ...]
    sizes: dict[str, int]

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(self.sizes.values())

    @property
    def last(self) -> datetime | None:
        """When the last stage was finished (UTC); None: none was."""
        return self.stages[-1].finished if self.stages else None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: sizes in bytes, times as ISO 8601 in UTC."""
        return {
            "run": str(self.directory),
            "stages": [
                {"stage": s.stage, "outputs": list(s.outputs), "finished": s.finished.isoformat(timespec="seconds")}
                for s in self.stages
            ],
            "sizes_bytes": self.sizes,
            "size_bytes": self.size_bytes,
        }


def summarise(directory: Path) -> RunSummary:
    """The summary of the run in `directory`."""
    sizes = {path.name: _size(path) for path in sorted(directory.iterdir())}
    return RunSummary(directory, tuple(Workspace(directory).finished()), {n: size for n, size in sizes.items() if size})


def runs_in(directory: Path) -> list[Path]:
    """The runs right below `directory`, and itself where it is one."""
    below = sorted(path for path in directory.glob("*") if is_run(path))
    return [directory, *below] if is_run(directory) else below


def named_run(name: Path) -> Path:
    """The run of that path or, where there is none, of that name in ``./runs``.

    Raises:
        UsageError: neither is a run; names the nearest.
    """
    for path in (name, Path("runs") / name):
        if is_run(path):
            return path
    if name.exists():
        check_run(name)  # which it is not
    raise UsageError(f"there is no run {name}{did_you_mean(str(name), [str(p) for p in runs_in(Path('runs'))])}")


def remove_run(directory: Path) -> list[str]:
    """Remove what the run in `directory` made, and the directory if nothing else lies there.

    What is not the run's own stays, and with it the recipe, which may be its owner's. Stopped in between, the rest is
    still a run with no stage done, to be removed or run again.

    Returns:
        The names of what was left.

    Raises:
        UsageError: it is no run, a link to one, the directory this process is in, or another process works on it.
    """
    if not is_run(directory):
        raise UsageError(f"{directory} is not a run directory: nothing is removed")
    if directory.is_symlink():
        raise UsageError(f"{directory} is a link: remove the run {os.readlink(directory)} itself")
    if Path.cwd().resolve().is_relative_to(directory.resolve()):
        raise UsageError(f"{directory} holds the current directory: change to another one first")
    names = {path.name for path in directory.iterdir()}
    kept = names - OWN
    if kept:
        kept |= names & {"recipe.yaml"}
    records = directory / RECORDS
    with Workspace(directory).locked():
        for path in records.iterdir():
            path.unlink()
        for name in sorted(names - kept - {LOCK, RECORDS}):
            path = directory / name
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        records.rmdir()
    (directory / LOCK).unlink(missing_ok=True)
    if not kept:
        directory.rmdir()
    return sorted(kept)


def _size(path: Path) -> int:
    """Bytes of a file, or of all files below a directory; links count as themselves."""
    if path.is_dir() and not path.is_symlink():
        return sum(below.lstat().st_size for below in path.rglob("*") if below.is_symlink() or below.is_file())
    return path.lstat().st_size
