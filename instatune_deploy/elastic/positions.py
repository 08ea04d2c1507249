"""Which positions of a text or an image a task head reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from instatune_deploy.elastic.supernet import Supernet


def positions_read(supernet: Supernet, batch: Mapping[str, Tensor]) -> int:
    """How many first positions of the last layer's output what comes after it reads; 0 if that may be any of them.

    Found by differentiation: a position that is not read has no gradient. Only a few samples of `batch` are run.

    Args:
        batch: the model's inputs by name, without labels.
    """
    with torch.inference_mode(False), torch.enable_grad():
        few = {
            name: tensor[:4].clone() for name, tensor in batch.items()
        }  # tensors of inference mode have no gradients
        leaf = _Leaf(supernet.layers[0])
        with supernet.running([(0, leaf)]):
            output = supernet.model(**few)
        total = torch.stack([tensor.square().sum() for tensor in output.values() if isinstance(tensor, Tensor)]).sum()
        (gradient,) = torch.autograd.grad(total, leaf.states)
    read = gradient.abs().amax(dim=(0, 2)).nonzero()
    positions = int(read.max()) + 1 if len(read) else 0
    # A head that reads many positions may read others in other batches.
    return positions if 4 * positions <= gradient.shape[1] else 0


class _Leaf(nn.Module):
    """A layer whose output, in `states`, begins the graph that is differentiated."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.states = layer, list[Tensor]()

    def forward(self, *inputs: Any, **options: Any) -> Any:
        with torch.no_grad():
            output = self.layer(*inputs, **options)
        state = output if isinstance(output, Tensor) else output[0]
        self.states.append(state.detach().requires_grad_())
        return self.states[0] if isinstance(output, Tensor) else (self.states[0], *output[1:])
