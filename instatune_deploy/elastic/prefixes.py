"""Many sub-networks on the same batch: what the first layers of several have in common is computed once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils.generic import ModelOutput

from instatune_deploy.elastic.supernet import Supernet
from instatune_deploy.values.space import Architecture, LayerChoice

#: A layer of the full network by its index, and what is kept of it.
_Kept = tuple[int, LayerChoice]


class SharedPrefixes:
    """Runs the same sub-networks batch after batch, for evaluation: without gradients, dropout or a copy of the weights.

    Two sub-networks that begin with the same layers, kept alike, have the same hidden states after these. Sub-networks are
    run in the order of a depth-first walk through the tree that their layers span, and only what is on the way from the
    root to the present layer is remembered: at most one hidden state a layer. Outputs equal those of `Supernet.forward` to
    the bit, for the same operations run on the same numbers.

    Args:
        supernet: holds the sub-networks; it must be in evaluation mode.
        architectures: the sub-networks.
        dtype: matrix products are computed in it (by PyTorch's autocast), everything else in fp32. The elastic
            parameters are then cast once, for all sub-networks.

    Raises:
        ArchitectureError: an architecture is neither in the space nor the full network.
    """

    def __init__(
        self, supernet: Supernet, architectures: Sequence[Architecture], *, dtype: torch.dtype | None = None
    ) -> None:
        self.supernet, self.dtype = supernet, dtype
        self._kept: list[list[_Kept]] = [supernet.kept(architecture) for architecture in architectures]
        self._walk = sorted(range(len(self._kept)), key=self._kept.__getitem__)
        self._device = supernet.model.device.type
        self._layers: dict[_Kept, nn.Module] = {}
        cast: dict[int, dict[str, Tensor] | None] = {}
        for index, choice in sorted({layer for kept in self._kept for layer in kept}):
            if index not in cast:
                cast[index] = self._cast(index)
            self._layers[index, choice] = supernet.sliced(index, choice, cast[index])

    @torch.no_grad()
    def _cast(self, index: int) -> dict[str, Tensor] | None:
        if self.dtype is None:
            return None
        return {name: tensor.to(self.dtype) for name, tensor in self.supernet.elastic_parameters(index).items()}

    @torch.inference_mode()
    def __call__(self, batch: Mapping[str, Tensor]) -> list[ModelOutput]:
        """The model's output for `batch`, once for each of the sub-networks, in the order they were given in.

        Args:
            batch: the model's inputs by name, such as `input_ids` of shape (samples, tokens).
        """
        outputs: list[Any] = [None] * len(self._kept)
        states: list[Any] = []
        path: list[_Kept] = []
        autocast = torch.autocast(self._device, dtype=self.dtype, enabled=self.dtype is not None)
        with autocast, _run_once(self._embeddings()):
            for number in self._walk:
                kept = self._kept[number]
                del states[_common(path, kept) :]
                path = kept
                layers = [_Remembered(self._layers[layer], states, at) for at, layer in enumerate(kept)]
                with self.supernet.running(layers):
                    outputs[number] = self.supernet.model(**batch)
        return outputs

    def _embeddings(self) -> nn.Module:
        """The part of the model that the layers' inputs come from; the same for all sub-networks."""
        base = self.supernet.model.base_model
        inputs = base.get_input_embeddings()
        return next(part for part in base.children() if any(module is inputs for module in part.modules()))


class _Remembered(nn.Module):
    """A layer whose output is looked up where a sub-network before had the same layers up to this one.

    Args:
        states: outputs of the layers on the present path, first to last, to which this one adds its own.
        at: its place on the path.
    """

    def __init__(self, layer: nn.Module, states: list[Any], at: int) -> None:
        super().__init__()
        self.layer, self.states, self.at = layer, states, at

    def forward(self, *inputs: Any, **options: Any) -> Any:
        if self.at == len(self.states):
            self.states.append(self.layer(*inputs, **options))
        return self.states[self.at]


def _common(one: Sequence[_Kept], other: Sequence[_Kept]) -> int:
    """How many layers both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


@contextmanager
def _run_once(module: nn.Module) -> Iterator[None]:
    """While open, `module` is run at its first call only; further calls, which must be with the same inputs, give what
    that gave. Its attributes, which models read, stay what they are."""
    run, found = module.forward, list[Any]()

    def forward(*inputs: Any, **options: Any) -> Any:
        if not found:
            found.append(run(*inputs, **options))
        return found[0]

    own = vars(module).get("forward")  # some library may have put one in the place of the class's
    try:
        module.forward = forward
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own
