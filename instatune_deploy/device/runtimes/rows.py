"""Files whose outputs for a row follow from the whole call are run row by row; see `Deployment.runs_rows_alone`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from instatune_deploy.device.runtimes.base import Session, feed
from instatune_deploy.device.runtimes.fixed import of_tokens


class RowSession:
    """A session that runs each text alone, without the padding at its end, and gives outputs as one call would: those of
    tokens have zeros where the padding is."""

    def __init__(self, path: Path, session: Session, inputs: Iterable[str]) -> None:
        """Args:
        inputs: names of the file's inputs, all of shape (batch, tokens).
        """
        self._path, self._session, self._inputs = path, session, list(inputs)

    def run(self, inputs: dict[str, np.ndarray]) -> tuple[np.ndarray, ...]:
        """See `Session.run`."""
        arrays = feed(self._inputs, inputs, self._path)
        first = next(iter(arrays.values()))
        tokens = first.shape[1]
        # Up to the last token that is not masked.
        lengths = tokens - arrays.get("attention_mask", np.ones_like(first))[:, ::-1].argmax(axis=1)
        if len(first) == 1 and lengths[0] == tokens:
            return self._session.run(arrays)
        found = []
        for row, length in enumerate(lengths.tolist()):
            outputs = self._session.run({name: array[row : row + 1, :length] for name, array in arrays.items()})
            found.append([
                _filled(output, tokens) if of_tokens(output, outputs, length) else output for output in outputs
            ])  # fmt: skip
        return tuple(np.concatenate(parts) for parts in zip(*found, strict=True))

    def close(self) -> None:
        """See `Session.close`."""
        self._session.close()


def _filled(output: np.ndarray, tokens: int) -> np.ndarray:
    """An output of fewer tokens with zeros up to `tokens`."""
    return np.pad(output, [(0, 0), (0, tokens - output.shape[1]), *[(0, 0)] * (output.ndim - 2)])
