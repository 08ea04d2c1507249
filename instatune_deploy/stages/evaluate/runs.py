"""What sub-networks put out for rows of a split, in fp32 or in bf16."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from transformers.utils.generic import ModelOutput

from instatune_deploy.data.dataset import Split
from instatune_deploy.data.processor import Processor
from instatune_deploy.elastic.prefixes import SharedPrefixes
from instatune_deploy.elastic.supernet import Supernet
from instatune_deploy.values.space import Architecture

#: Tokens of a batch of texts: enough to keep matrix products busy, few enough for a CPU's cache.
TOKENS_A_BATCH = 1024

#: Numbers of some rows of a split, and the model's inputs for them by name.
Batch = tuple[np.ndarray, dict[str, Tensor]]
#: The same numbers, and an array for each of the head's outputs, samples first: what `Split.score` reads.
Found = tuple[np.ndarray, list[np.ndarray]]


@dataclass(frozen=True)
class Arithmetic:
    """How outputs are computed.

    Args:
        precision: ``fp32`` or ``bf16``, of matrix products.
        doubt: in bf16, a row whose first choice beats the second by less is computed in fp32 again.
    """

    precision: str = "fp32"
    doubt: float = 0.0


class Runs:
    """Runs sub-networks on rows of one split.

    Args:
        batch_size: images a forward pass; texts go by their tokens.
    """

    def __init__(self, supernet: Supernet, split: Split, processor: Processor, batch_size: int) -> None:
        self.supernet, self.split, self.processor, self.batch_size = supernet.eval(), split, processor, batch_size

    def batches(self, numbers: np.ndarray | None = None) -> list[Batch]:
        """The rows of the split with these numbers, by default all, on the super-network's device."""
        rows = self.split.rows if numbers is None else self.split.rows.select(numbers)
        device = next(self.supernet.parameters()).device
        return [
            (
                places if numbers is None else numbers[places],
                {name: torch.from_numpy(array).to(device) for name, array in inputs.items()},
            )
            for places, inputs in self.processor.even_batches(rows, self.batch_size, TOKENS_A_BATCH)
        ]

    def outputs(
        self, architectures: Sequence[Architecture], batches: Sequence[Batch], arithmetic: Arithmetic
    ) -> list[list[Found]]:
        """What each of `architectures` puts out for `batches`."""
        run = self._runner(architectures, arithmetic.precision)
        found: list[list[Found]] = [[] for _ in architectures]
        for numbers, inputs in batches:
            for own, output in zip(found, run(inputs), strict=True):
                own.append((numbers, self._arrays(output)))
        if arithmetic.precision == "bf16":
            for architecture, own in zip(architectures, found, strict=True):
                self._settle(architecture, own, arithmetic.doubt)
        return found

    def _runner(self, architectures: Sequence[Architecture], precision: str) -> Callable[..., list[ModelOutput]]:
        if precision == "fp32" and len(architectures) == 1:  # nothing to share
            return torch.inference_mode()(partial(self.supernet, architectures=architectures))
        return SharedPrefixes(self.supernet, architectures, dtype=torch.bfloat16 if precision == "bf16" else None)

    def _arrays(self, output: ModelOutput) -> list[np.ndarray]:
        return [output[name].float().cpu().numpy() for name in self.split.head.outputs]

    def _settle(self, architecture: Architecture, found: list[Found], doubt: float) -> None:
        """Compute the rows of `found` that are in doubt again, in fp32."""
        doubtful = []
        for numbers, arrays in found:
            margins = self.split.head.margins(list(zip(*arrays, strict=True)))
            if margins is not None:
                doubtful += numbers[margins < doubt].tolist()
        if not doubtful:
            return
        again = self.outputs([architecture], self.batches(np.asarray(doubtful)), Arithmetic())
        found += again[0]  # of two outputs for a row, the later one counts
