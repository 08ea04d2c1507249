"""`torch.compile` for elastic networks: layer by layer, for any sizes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

#: Graphs that one layer may be compiled to; beyond, PyTorch runs it as it is. Tried with BERT: 7 for all sizes of a space.
MOST_GRAPHS = 64


@contextmanager
def compiled(layers: Iterable[nn.Module]) -> Iterator[None]:
    """While open, each layer runs compiled, for any sizes of inputs and slices: sub-networks share what was compiled.

    Whole networks would be compiled anew for every sub-network. Hooks on layers work as ever, on modules in them they are
    compiled anew at every change.
    """
    changed = list(layers)
    options = {
        # Head counts are attributes of modules, which would each be compiled for.
        "allow_unspec_int_on_nn_module": True, "recompile_limit": MOST_GRAPHS,
        "accumulated_recompile_limit": MOST_GRAPHS * max(1, len(changed)),
    }  # fmt: skip
    with torch._dynamo.config.patch(options):
        for layer in changed:
            layer.forward = torch.compile(layer.forward, dynamic=True)
        try:
            yield
        finally:
            for layer in changed:
                del layer.forward  # the class's own is back
