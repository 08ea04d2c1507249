"""The order in which training rows are seen: by seed and epoch alone, texts of like length together."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler


class BucketSampler(Sampler[int]):
    """All rows once an epoch, shuffled by `seed` and epoch; a resumed epoch has the order it was started with.

    Args:
        rows: number of rows.
        lengths: of each row, if it has one, shape (rows,): batches then hold rows of like length, which saves padding.
        batch_size: rows a batch.
        drop_single: whether an epoch goes without the row that would be a last batch of its own; it is another row each time.
    """

    def __init__(
        self, rows: int, lengths: np.ndarray | None, batch_size: int, *, seed: int, drop_single: bool = False
    ) -> None:
        self.rows, self.lengths, self.batch_size, self.seed = rows, lengths, batch_size, seed
        self._seen = rows - 1 if drop_single and rows % batch_size == 1 else rows
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Trainer at the start of each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self._seen

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng((self.seed, self.epoch))
        order = rng.permutation(self.rows)
        if self.lengths is not None:
            # Sort within stretches of 50 batches, then shuffle the batches: like lengths meet, yet every epoch differs.
            stretch = 50 * self.batch_size
            for start in range(0, self.rows, stretch):
                part = order[start : start + stretch]
                order[start : start + stretch] = part[np.argsort(-self.lengths[part], kind="stable")]
            whole = self.rows // self.batch_size
            shuffled = rng.permutation(whole)
            batches = order[: whole * self.batch_size].reshape(whole, self.batch_size)
            order = np.concatenate([batches[shuffled].reshape(-1), order[whole * self.batch_size :]])
        return map(int, order[: self._seen])
