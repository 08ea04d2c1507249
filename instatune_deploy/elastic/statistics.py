"""Statistics that batch norms keep: of which network they are, and how they are measured anew.

A sub-network's activations are others than the full network's, so it needs statistics of its own (Yu et al., 2018,
slimmable networks; Cai et al., 2020, once-for-all).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor, nn

from instatune_deploy.values.space import LayerChoice

if TYPE_CHECKING:
    from instatune_deploy.elastic.supernet import Supernet

#: What the batch norms of a layer keep, by the buffers' names below it.
Statistics: TypeAlias = dict[str, Tensor]

#: A layer of the full network by its index, and what is kept of it.
Kept: TypeAlias = tuple[int, LayerChoice]

#: Sub-networks whose statistics are remembered.
_REMEMBERED = 64

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def batch_norms(module: nn.Module) -> list[nn.Module]:
    """The batch norms in `module`."""
    return [part for part in module.modules() if isinstance(part, BATCH_NORMS)]


class Calibration:
    """Measures what sub-networks' batch norms keep, and remembers it.

    All norms normalise by the batch while they are measured, and keep the mean over batches. So a layer's statistics
    depend on the layers up to it alone.

    Args:
        batches: makes inputs by name, without labels; called once, when the first is measured.
    """

    def __init__(self, batches: Callable[[], Sequence[Mapping[str, Tensor]]]) -> None:
        self._make, self._batches = batches, list[Mapping[str, Tensor]]()
        self._known: dict[tuple[Kept, ...], list[Statistics]] = {}

    def batches(self) -> Sequence[Mapping[str, Tensor]]:
        """What is measured on."""
        self._batches = self._batches or list(self._make())
        return self._batches

    def forget(self) -> None:
        """Measure anew whatever is asked for from now on."""
        self._known.clear()

    def statistics(self, supernet: Supernet, kept: Sequence[Kept]) -> list[Statistics]:
        """Those of each layer of the sub-network that keeps `kept` of `supernet`'s layers."""
        found = self._known.pop(tuple(kept), None)
        if found is None:
            while len(self._known) >= _REMEMBERED:
                del self._known[next(iter(self._known))]
            found = self._measure(supernet, kept)
        self._known[tuple(kept)] = found  # the last asked for is the last to be forgotten
        return found

    @torch.inference_mode(False)
    @torch.no_grad()
    def _measure(self, supernet: Supernet, kept: Sequence[Kept]) -> list[Statistics]:
        batches = self.batches()
        found = [_unset(supernet.layers[index], supernet.layer_views(index, choice)) for index, choice in kept]
        layers = [
            (index, supernet.sliced(index, choice, statistics=own))
            for (index, choice), own in zip(kept, found, strict=True)
        ]
        norms = [norm for index, _ in kept for norm in batch_norms(supernet.layers[index])]
        with supernet.running(layers), measuring(norms):
            for batch in batches:
                supernet.model(**{name: tensor.to(supernet.model.device) for name, tensor in batch.items()})
        return found


def _unset(layer: nn.Module, views: Mapping[str, Tensor]) -> Statistics:
    """What the batch norms of a layer keep before they have seen anything, in the sizes of `views` where it has them."""
    norms = ((name, part) for name, part in layer.named_modules() if isinstance(part, BATCH_NORMS))
    buffers = {f"{name}.{key}": buffer for name, norm in norms for key, buffer in norm.named_buffers()}
    return {name: torch.zeros_like(views.get(name, buffer)) for name, buffer in buffers.items()}


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
