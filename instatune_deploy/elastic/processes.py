"""Several processes that train together, as `accelerate launch` and `torchrun` start them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

#: Where Accelerate's launcher says in which precision to train.
_PRECISION = "ACCELERATE_MIXED_PRECISION"


def process_count() -> int:
    """How many processes train together; 1 unless they were launched so."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Whether this is the one of them that writes files and reports."""
    return int(os.environ.get("RANK", "0")) == 0


def wait_for_all() -> None:
    """Wait until every process is here; nothing for one alone."""
    import torch.distributed  # here, for the command line asks the questions above before it loads torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()


@contextmanager
def kept_precision(own: str | None = None) -> Iterator[None]:
    """The environment's precision is `own` (None: what it was) inside, and as it was found afterwards."""
    found = os.environ.get(_PRECISION)
    if own is not None:
        os.environ[_PRECISION] = own
    try:
        yield
    finally:
        os.environ.pop(_PRECISION, None)
        if found is not None:
            os.environ[_PRECISION] = found
