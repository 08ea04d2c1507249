"""Several processes that train together, as `accelerate launch` and `torchrun` start them."""

from __future__ import annotations

import os


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
