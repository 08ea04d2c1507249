"""`Samples`: every run of a measurement, as it was timed; kept beside a table, so that it can be fitted again."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from instatune_deploy.errors import ArtifactError, MeasurementError
from instatune_deploy.values.archives import check_archive

_NUMBERS = {
    "round": np.int32, "model": np.int16, "session": np.int16, "start_s": np.float32, "wall_ms": np.float32,
    "cpu_ms": np.float32,
}  # fmt: skip
#: Samples of the longest measurement are far below this.
_MOST_BYTES = 1 << 30


@dataclass(frozen=True)
class Samples:
    """Runs in the order they were made; all arrays have shape (runs,).

    `model` is an index into `names`, `session` which of its sessions it was made with; `start_s` is when its visit
    began, in seconds since the round's session began; `wall_ms` the time that passed, `cpu_ms` the CPU time of the process in it, NaN where it says nothing about the run
    (several threads, other devices).
    """

    names: tuple[str, ...]
    round: np.ndarray
    model: np.ndarray
    session: np.ndarray
    start_s: np.ndarray
    wall_ms: np.ndarray
    cpu_ms: np.ndarray

    @classmethod
    def of_rounds(cls, names: Sequence[str], rounds: Sequence[dict[str, Any]]) -> Samples:
        """The runs of rounds as the measuring process writes them: ``{"visits": [[name, start_s, seconds, wall_ms, cpu_ms,
        session], ...]}``."""
        index = {name: number for number, name in enumerate(names)}
        runs = [
            (number, index[name], session, start_s, wall, cpu)
            for number, found in enumerate(rounds)
            for name, start_s, _, walls, cpus, session in found["visits"]
            for wall, cpu in zip(walls, cpus, strict=True)
        ]
        columns = list(zip(*runs, strict=True)) or [()] * len(_NUMBERS)
        arrays = {
            # As `to_bytes` keeps them: a label found now and one found again from the file are the same.
            key: np.asarray([np.nan if value is None else value for value in column]).astype(_NUMBERS[key])
            for key, column in zip(_NUMBERS, columns, strict=True)
        }
        return cls(tuple(names), **{key: _in_memory(array) for key, array in arrays.items()})

    def to_bytes(self) -> bytes:
        """A compressed NumPy archive; microseconds are kept to about seven digits."""
        stream = io.BytesIO()
        arrays = {key: getattr(self, key).astype(kind) for key, kind in _NUMBERS.items()}
        np.savez_compressed(stream, names=np.frombuffer(json.dumps(self.names).encode(), np.uint8), **arrays)
        return stream.getvalue()

    @classmethod
    def read(cls, path: Path) -> Samples:
        """What `to_bytes` gave, from a file.

        Raises:
            MeasurementError: it is missing or damaged; names it.
        """
        try:
            with zipfile.ZipFile(path) as zipped:
                check_archive(zipped, path, most_bytes=_MOST_BYTES)
            with np.load(path, allow_pickle=False) as archive:
                names = tuple(json.loads(bytes(archive["names"]).decode()))
                arrays = {key: _in_memory(archive[key].astype(kind)) for key, kind in _NUMBERS.items()}
        except (ArtifactError, OSError, ValueError, KeyError, EOFError, MemoryError, zipfile.BadZipFile) as error:
            raise MeasurementError(
                f"{path}: no samples can be read: {' '.join(str(error).split()) or error!r}"
            ) from None
        if len({len(array) for array in arrays.values()}) != 1 or not all(0 <= m < len(names) for m in arrays["model"]):
            raise MeasurementError(f"{path}: its samples do not fit together")
        return cls(names, **arrays)


def _in_memory(array: np.ndarray) -> np.ndarray:
    return array.astype(float) if array.dtype == np.float32 else array
