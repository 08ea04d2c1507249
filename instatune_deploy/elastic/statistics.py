"""Statistics that batch norms keep: of which network they are, and how they are measured anew.

A sub-network's activations are others than the full network's, so it needs statistics of its own (Yu et al., 2018,
slimmable networks; Cai et al., 2020, once-for-all).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

from torch import Tensor, nn

#: What the batch norms of a layer keep, by the buffers' names below it.
Statistics: TypeAlias = dict[str, Tensor]

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def batch_norms(module: nn.Module) -> list[nn.Module]:
    """The batch norms in `module`."""
    return [part for part in module.modules() if isinstance(part, BATCH_NORMS)]


@contextmanager
def unmoved(norms: Iterable[nn.Module]) -> Iterator[None]:
    """While open, `norms` in training normalise by the batch and leave their statistics as they are."""
    with _changed(norms, track_running_stats=False):
        yield


@contextmanager
def measuring(norms: Iterable[nn.Module]) -> Iterator[None]:
    """While open, `norms` normalise by the batch, and their statistics become the means over all batches."""
    with _changed(norms, training=True, momentum=None):
        yield


@contextmanager
def _changed(norms: Iterable[nn.Module], **attributes: object) -> Iterator[None]:
    before = [(norm, {name: getattr(norm, name) for name in attributes}) for norm in norms]
    try:
        for norm, _ in before:
            vars(norm).update(attributes)
        yield
    finally:
        for norm, own in before:
            vars(norm).update(own)
