"""The order in which training rows are seen: by seed and epoch alone, texts of like length together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler


class BucketSampler(Sampler[int]):
    """All rows once an epoch, shuffled by `seed` and epoch; a resumed epoch has the order it was started with.

    Args:
        rows: number of rows.
        lengths: of each row, if it has one: batches then hold rows of like length, which saves padding.
        batch_size: rows a batch.
    """

    def __init__(self, rows: int, lengths: Sequence[int] | None, batch_size: int, *, seed: int) -> None:
        self.rows, self.lengths, self.batch_size, self.seed = rows, lengths, batch_size, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Trainer at the start of each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng((self.seed, self.epoch))
        order = rng.permutation(self.rows)
        if self.lengths is not None:
            # Sort within stretches of 50 batches, then shuffle the batches: like lengths meet, yet every epoch differs.
            lengths, stretch = np.asarray(self.lengths), 50 * self.batch_size
            parts = [order[i : i + stretch] for i in range(0, self.rows, stretch)]
            order = np.concatenate([part[np.argsort(-lengths[part], kind="stable")] for part in parts])
            whole = self.rows // self.batch_size
            shuffled = rng.permutation(whole)
            batches = [order[b * self.batch_size : (b + 1) * self.batch_size] for b in shuffled]
            order = np.concatenate([*batches, order[whole * self.batch_size :]])
        return iter(order.tolist())
