"""Files whose inputs have fixed sizes take any smaller or larger batch and any shorter text all the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from instatune_deploy.device.runtimes.base import Session, feed
from instatune_deploy.errors import MeasurementError
from instatune_deploy.values.fixed import FixedSizes


class FixedSizeSession:
    """A session of a file with fixed sizes: fills texts up with padding, cuts batches into such as it takes, and gives the
    outputs of what it was asked for alone. Inputs that have the sizes already go straight through."""

    def __init__(self, path: Path, session: Session, inputs: Mapping[str, bool], sizes: FixedSizes) -> None:
        """Args:
        inputs: by name, whether it is a matrix of tokens.
        """
        self._path, self._session, self._inputs, self._sizes = path, session, inputs, sizes

    def run(self, inputs: dict[str, np.ndarray]) -> tuple[np.ndarray, ...]:
        """See `Session.run`.

        Raises:
            MeasurementError: an input is missing, or a text is too long.
        """
        arrays = feed(self._inputs, inputs, self._path)
        count = max(len(array) for array in arrays.values())
        tokens = max((arrays[name].shape[1] for name, is_text in self._inputs.items() if is_text), default=0)
        batch, most = self._sizes.batch or count, self._sizes.tokens or tokens
        if count == batch and tokens == (most if tokens else 0):
            return self._session.run(arrays)
        if tokens > most:
            raise MeasurementError(f"{self._path} reads texts of {most} tokens, found {tokens}")
        found = [self._session.run(part) for part in filled(arrays, self._inputs, self._sizes)]
        outputs = [np.concatenate(parts)[:count] for parts in zip(*found, strict=True)]
        return tuple(
            output[:, :tokens] if tokens and of_tokens(output, outputs, most) else output for output in outputs
        )

    def close(self) -> None:
        """See `Session.close`."""
        self._session.close()


def of_tokens(output: np.ndarray, outputs: Sequence[np.ndarray], tokens: int) -> bool:
    """Whether one of a network's outputs has values of each of `tokens`: of shape (batch, tokens, classes), or one of several
    of (batch, tokens), such as where an answer begins and ends."""
    return (output.ndim == 3 or len(outputs) > 1) and output.shape[1] == tokens


def filled(
    inputs: Mapping[str, np.ndarray], is_text: Mapping[str, bool], sizes: FixedSizes
) -> Iterator[dict[str, np.ndarray]]:
    """Inputs in batches of fixed sizes: texts end with zeros, which masks leave out, and the last batch in rows again.

    Args:
        inputs: arrays by name, batch first; texts are no longer than `sizes` says.
        is_text: by the same names, whether it is a matrix of tokens.
    """
    count = max(len(array) for array in inputs.values())
    batch = sizes.batch or count
    for start in range(0, count, batch):
        rows = np.arange(start, start + batch) % count
        part = {name: array[rows] for name, array in inputs.items()}
        for name in [name for name in part if is_text[name]]:
            missing = 0 if sizes.tokens is None else sizes.tokens - part[name].shape[1]
            part[name] = np.pad(part[name], ((0, 0), (0, missing)))
        yield part


def with_fixed_sizes(path: Path, session: Session, inputs: Mapping[str, tuple[tuple[int, ...], bool]]) -> Session:
    """`session`, or one that takes inputs of other sizes where its file has fixed ones.

    Args:
        inputs: of the file, by name: its sizes, -1 where any will do, and whether it holds whole numbers.
    """
    is_text = {name: whole and len(shape) == 2 for name, (shape, whole) in inputs.items()}
    batches = {shape[0] for shape, _ in inputs.values() if shape} - {-1}
    lengths = {shape[1] for name, (shape, _) in inputs.items() if is_text[name]} - {-1}
    # Sizes that differ between inputs are no batch and no length.
    batch, tokens = (sizes.pop() if len(sizes) == 1 else None for sizes in (batches, lengths))
    if batch is None and tokens is None:
        return session
    return FixedSizeSession(path, session, is_text, FixedSizes(batch, tokens))
