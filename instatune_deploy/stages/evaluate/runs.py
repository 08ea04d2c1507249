"""What sub-networks put out for rows of a split, in fp32 or in bf16; computed here, or wherever a `Compute` does it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from instatune_deploy.data.dataset import Split
from instatune_deploy.data.processor import Processor
from instatune_deploy.elastic.prefixes import SharedPrefixes
from instatune_deploy.elastic.supernet import Supernet
from instatune_deploy.values.space import Architecture

#: Tokens of a batch of texts: enough to keep matrix products busy, few enough for a CPU's cache. MiniLM-L6 took as long with
#: 700 and with 1,500 tokens a batch on a Xeon with AVX-512, and a seventh longer with 350 and with 4,500.
TOKENS_A_BATCH = 1536
IMAGES_A_BATCH = 32

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


@dataclass(frozen=True)
class Failed:
    """In the place of a sub-network's outputs: why there are none."""

    reason: str


class Compute(Protocol):
    """Computes what sub-networks put out, somewhere."""

    def __call__(
        self, chunks: Sequence[Sequence[Architecture]], batches: Sequence[Batch], precision: str
    ) -> Iterator[list[list[Found] | Failed]]:
        """For each of `chunks`, in their order and as soon as it is there, what each of its sub-networks puts out.

        Args:
            chunks: sub-networks that are run together. The same ones together have the same outputs wherever they are run.
            precision: see `Arithmetic`.
        """
        ...


def network_outputs(
    supernet: Supernet, architectures: Sequence[Architecture], batches: Sequence[Batch], precision: str,
    names: Sequence[str], *, first: Mapping[str, Tensor] | None = None,
) -> list[list[Found]]:  # fmt: skip
    """What each of `architectures`, run together, puts out for `batches`.

    Args:
        names: of the model's outputs that are wanted.
        first: see `SharedPrefixes`; given where `batches` are some of those that belong together.
    """
    run: Callable[..., list[ModelOutput]]
    if precision == "fp32" and len(architectures) == 1:  # nothing to share
        run = torch.inference_mode()(partial(supernet, architectures=architectures))
    else:
        run = SharedPrefixes(
            supernet, architectures, dtype=torch.bfloat16 if precision == "bf16" else None, first=first
        )
    found: list[list[Found]] = [[] for _ in architectures]
    for numbers, inputs in batches:
        for own, output in zip(found, run(inputs), strict=True):
            own.append((numbers, [output[name].float().cpu().numpy() for name in names]))
    return found


def metric_of(network: PreTrainedModel, split: Split, processor: Processor, metric: str) -> float:
    """The metric of a network that is no super-network on all rows of `split`, in fp32, as a share of 1.

    Args:
        metric: one that fits the task, see `data.metrics`.
    """
    network.eval()

    def found() -> Iterator[Found]:
        with torch.inference_mode():
            for numbers, inputs in processor.even_batches(split.rows, IMAGES_A_BATCH, TOKENS_A_BATCH):
                output = network(**{name: torch.from_numpy(array).to(network.device) for name, array in inputs.items()})
                yield numbers, [output[name].float().cpu().numpy() for name in split.head.outputs]

    return split.score(metric, found())


class Runs:
    """Runs sub-networks on rows of one split.

    Args:
        batch_size: images a forward pass; texts go by their tokens.
        compute: where; None: here.
    """

    def __init__(
        self, supernet: Supernet, split: Split, processor: Processor, batch_size: int, compute: Compute | None = None
    ) -> None:
        self.supernet, self.split, self.processor, self.batch_size = supernet.eval(), split, processor, batch_size
        self._compute: Compute = compute or self._here

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
        """What each of `architectures` puts out for `batches`, computed here."""
        found = network_outputs(
            self.supernet, architectures, batches, arithmetic.precision, self.split.head.outputs
        )  # fmt: skip
        if arithmetic.precision == "bf16":
            for architecture, own in zip(architectures, found, strict=True):
                self._settle(architecture, own, arithmetic.doubt)
        return found

    def stream(
        self, chunks: Sequence[Sequence[Architecture]], batches: Sequence[Batch], arithmetic: Arithmetic
    ) -> Iterator[list[list[Found] | Failed]]:
        """As `outputs`, for one chunk of sub-networks after the other, wherever that is computed."""
        computed = self._compute(chunks, batches, arithmetic.precision)
        for chunk, found in zip(chunks, computed, strict=True):
            for architecture, own in zip(chunk, found, strict=True):
                if arithmetic.precision == "bf16" and not isinstance(own, Failed):
                    self._settle(architecture, own, arithmetic.doubt)
            yield found

    def _here(
        self, chunks: Sequence[Sequence[Architecture]], batches: Sequence[Batch], precision: str
    ) -> Iterator[list[list[Found] | Failed]]:
        for chunk in chunks:
            yield [*network_outputs(self.supernet, chunk, batches, precision, self.split.head.outputs)]

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
