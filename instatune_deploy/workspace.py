"""A directory that survives being killed: atomic writes, stages keyed by the hash of what they were made from."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from instatune_deploy.errors import ArtifactError, UsageError
from instatune_deploy.values.changes import changes, flattened, in_a_line
from instatune_deploy.values.documents import parse_json
from instatune_deploy.values.hashing import content_key, sha256_file

Value = TypeVar("Value")


#: What `datasets` writes beside the files that it reads.
_CACHES = "cache-*.arrow"


def tree_key(path: Path) -> str:
    """A hash of the names and bytes of all files below `path` (or of the one file); what `datasets` wrote there does not count."""
    inside = (p for p in path.rglob("*") if p.is_file() and not p.match(_CACHES))
    files = [path] if path.is_file() else sorted(inside)
    return content_key(*((str(p.relative_to(path)), sha256_file(p)) for p in files))


def source_keys(sources: Mapping[str, str | None]) -> dict[str, str]:
    """A hash of the content of each file or directory that lies on this machine, or its name on a hub; by the sources' names."""
    return {
        name: tree_key(Path(source)) if Path(source).exists() else source
        for name, source in sources.items() if source is not None
    }  # fmt: skip


def write_text(path: Path, text: str) -> None:
    """Write `text` so that `path` has either its old content or all of the new, whatever happens."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """As `write_text`, for bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)  # mkstemp makes files that only their owner can read
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read_json(path: Path, make: Callable[[Any], Value]) -> Value:
    """What `make` makes of a run's JSON file.

    Raises:
        ArtifactError: it cannot be read, is not JSON or of another form; says what to do.
    """
    try:
        return make(parse_json(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = error.strerror if isinstance(error, OSError) else " ".join(f"{type(error).__name__}: {error}".split())
        raise ArtifactError(f"{path} is damaged: {why}; remove it, and the same command makes it anew") from None


def write_json(path: Path, data: Any) -> None:
    """Atomically write `data` as readable JSON."""
    write_text(path, json.dumps(data, indent=1) + "\n")


def check_new(path: Path) -> None:
    """Make sure that a directory to write is none that is there, for it would be replaced.

    Raises:
        UsageError: it is.
    """
    if path.exists():
        raise UsageError(f"{path} exists already; name a new directory")


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A directory to fill that becomes `path` (replacing an old one) only when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        draft.chmod(0o755)
        yield draft
        move_directory(draft, path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def move_directory(source: Path, path: Path) -> None:
    """Rename `source` to `path`, both on one file system, replacing a directory that is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        os.replace(source, path)
        return
    old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old."))
    os.replace(path, old / path.name)
    os.replace(source, path)
    shutil.rmtree(old)


#: What is written of the stages that are done.
RECORDS = ".stages"
#: Held by the process that works on a run.
LOCK = ".lock"


def is_run(directory: Path) -> bool:
    """Whether `directory` is that of a run: a folder with a recipe alone may be a user's own."""
    return (directory / RECORDS).is_dir()


def check_run(directory: Path) -> None:
    """Make sure that `directory` is that of a run.

    Raises:
        UsageError: it is not.
    """
    if not is_run(directory):
        raise UsageError(f"{directory} is not a run directory: `instatune-deploy run` makes those")


@dataclass(frozen=True)
class StageRecord:
    """A stage that was finished: its name, its outputs relative to the run's directory, and when (UTC)."""

    stage: str
    outputs: tuple[str, ...]
    finished: datetime


class Workspace:
    """A run's directory. A stage's outputs are reused while the key they were made from stays the same."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def begin(self) -> None:
        """Make the directory one of a run."""
        self.path(RECORDS).mkdir(parents=True, exist_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Within it no other process can work on this run; the lock of a process that died is free. Blocks may be nested.

        Raises:
            UsageError: another process works on it.
        """
        lock = FileLock(self.path(LOCK), timeout=0, is_singleton=True)
        try:
            lock.acquire()
        except Timeout:
            raise UsageError(
                f"another process works on {self.root}: wait for it, or stop it; the same command then goes on"
            ) from None
        try:
            yield
        finally:
            lock.release()

    def check_free(self) -> None:
        """Make sure that a run may write here: into a directory that is new, empty or a run's.

        Raises:
            UsageError: it holds other things, which a run could replace.
        """
        if self.root.is_dir() and not is_run(self.root) and any(self.root.iterdir()):
            raise UsageError(f"{self.root} holds other things than a run: name a new directory with --out")
        if self.root.exists() and not self.root.is_dir():
            raise UsageError(f"{self.root} is a file: name a new directory with --out")

    def path(self, *parts: str) -> Path:
        """A path below the run's directory."""
        return self.root.joinpath(*parts)

    def is_done(self, stage: str, key: str | None) -> bool:
        """Whether `stage` was finished with this key (None: with whatever key) and its outputs still exist."""
        try:
            record = json.loads(self.path(RECORDS, f"{stage}.json").read_text(encoding="utf-8"))
            whole = all(self.path(output).exists() for output in record["outputs"])
            return bool(whole and key in (None, record["key"]))
        except (OSError, ValueError, KeyError, TypeError):  # none, or not one that `mark_done` wrote
            return False

    def mark_done(
        self, stage: str, key: str, outputs: list[Path], *, made_from: Mapping[str, Any] | None = None
    ) -> None:
        """Record that `stage` made `outputs` from what `key` is the hash of; call it after they are in place.

        Args:
            made_from: the same by name, JSON-ready, for `why_anew` to say later what changed.
        """
        names = [str(output.relative_to(self.root)) for output in outputs]
        record = {"key": key, "outputs": names, "made_from": flattened(made_from or {})}
        write_json(self.path(RECORDS, f"{stage}.json"), record)

    def why_anew(self, stage: str, now: Mapping[str, Any]) -> str | None:
        """Why `stage` is to be done anew where `is_done` says no, in a line; None: it was never done.

        Args:
            now: what it would be made from, as `mark_done` was told.
        """
        try:
            record = json.loads(self.path(RECORDS, f"{stage}.json").read_text(encoding="utf-8"))
            before, outputs = record.get("made_from") or {}, record["outputs"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        lost = [output for output in outputs if not self.path(output).exists()]
        if lost:
            return f"{lost[0]} is gone"
        differences = changes(before, flattened(now)) if before else []
        return in_a_line(differences) or "it was made from something else"

    def finished(self) -> list[StageRecord]:
        """Every stage that was finished and whose outputs still exist, in the order in which they were."""
        found = []
        for path in self.path(RECORDS).glob("*.json"):
            try:
                outputs = tuple(json.loads(path.read_text(encoding="utf-8"))["outputs"])
                whole = all(self.path(output).exists() for output in outputs)
            except (OSError, ValueError, KeyError, TypeError):  # not one that `mark_done` wrote
                continue
            if whole:
                when = datetime.fromtimestamp(path.stat().st_mtime, timezone.utc)
                found.append(StageRecord(path.stem, outputs, when))
        return sorted(found, key=lambda record: (record.finished, record.stage))


def data_directories(kind: str, *first: Path) -> list[Path]:
    """Where files of a kind (``targets`` or ``latency_tables``) are looked for, in order: the current directory, `first`,
    the user's data directory, and what the package brings."""
    home = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    inside = Path(__file__).parent / kind
    # In a source checkout the package's data stands beside the package.
    packaged = inside if inside.is_dir() else Path(__file__).parents[1] / kind
    return [Path(kind), *first, home / "instatune-deploy" / kind, packaged]
