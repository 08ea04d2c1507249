"""Many sub-networks on the same batch: what several have in common is computed once, and what no head reads is not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.utils.generic import ModelOutput

from instatune_deploy.elastic.axes import Axis
from instatune_deploy.elastic.positions import positions_read
from instatune_deploy.elastic.statistics import BATCH_NORMS, Kept, Statistics
from instatune_deploy.elastic.supernet import Supernet
from instatune_deploy.values.space import Architecture, LayerChoice


class SharedPrefixes:
    """Runs the same sub-networks batch after batch, for evaluation: without gradients, dropout or a copy of the weights.

    They are run in the order of a depth-first walk through the tree that their layers span, so that

    - sub-networks that begin with the same layers, kept alike, share these layers' outputs;
    - such that go on with the same layer at different sizes share what it computes: heads add up, in the projection after
      them, and so do the neurons of an MLP, so a larger choice adds its own heads and neurons to the sum of a smaller one
      (but where norms stand before these projections, only the output of the same heads is shared);
    - of the last layer of each, what does not mix positions is computed only for those that the task head reads (a
      classifier reads the first).

    Only what is on the way from the root to the present layer is remembered, at most four hidden states a layer. Outputs
    are those of `Supernet.forward` but for the rounding of sums in another order.

    Args:
        supernet: holds the sub-networks; it must be in evaluation mode.
        architectures: the sub-networks.
        dtype: matrix products are computed in it (by PyTorch's autocast), everything else in fp32. The elastic
            parameters are then cast once, for all sub-networks.
        first: the batch by which it is found which positions the task head reads; None: the first one that is run.

    Raises:
        ArchitectureError: an architecture is neither in the space nor the full network.
    """

    def __init__(
        self, supernet: Supernet, architectures: Sequence[Architecture], *, dtype: torch.dtype | None = None,
        first: Mapping[str, Tensor] | None = None,
    ) -> None:  # fmt: skip
        self.supernet, self.dtype, self._first = supernet, dtype, first
        self._kept: list[list[Kept]] = [supernet.kept(architecture) for architecture in architectures]
        self._statistics = [supernet.statistics(architecture) for architecture in architectures]
        self._walk = sorted(range(len(self._kept)), key=self._kept.__getitem__)
        self._whole = {index: self._cast(index) for index in {index for kept in self._kept for index, _ in kept}}
        self._positions: int | None = None

    @torch.no_grad()
    def _cast(self, index: int) -> dict[str, Tensor] | None:
        if self.dtype is None:
            return None
        # What norms of batches compute with stays as exact as it was measured.
        exact = {name for name, part in self.supernet.layers[index].named_modules() if isinstance(part, BATCH_NORMS)}
        return {
            name: tensor if name.rpartition(".")[0] in exact else tensor.to(self.dtype)
            for name, tensor in self.supernet.elastic_parameters(index).items()
        }

    def __call__(self, batch: Mapping[str, Tensor]) -> list[ModelOutput]:
        """The model's output for `batch`, once for each of the sub-networks, in the order they were given in.

        Args:
            batch: the model's inputs by name, such as `input_ids` of shape (samples, tokens).
        """
        if self._positions is None:
            first = batch if self._first is None else self._first
            self._positions = positions_read(self.supernet, first) if self.supernet.map.additive else 0
        with torch.inference_mode(), torch.autocast(
            self.supernet.model.device.type, dtype=self.dtype, enabled=self.dtype is not None
        ):  # fmt: skip
            return self._run(batch)

    def _run(self, batch: Mapping[str, Tensor]) -> list[ModelOutput]:
        outputs: list[Any] = [None] * len(self._kept)
        path: list[_Step] = []
        embeddings = _embeddings(self.supernet)
        with _replaced(embeddings, _once(embeddings.forward, [])):
            for number, following in zip(self._walk, [*self._walk[1:], None], strict=True):
                kept = self._kept[number]
                after = [] if following is None else self._kept[following]
                path = _next_path(path, kept, self._statistics[number])
                layers = [_Remembered(self, step) for step in path]
                common = _common(kept, after)
                if self._positions and common < len(kept):
                    layers[-1].positions = self._positions
                    goes_on = common == len(kept) - 1 < len(after)
                    layers[-1].keep_attention = goes_on and _same_attention(kept[-1], after[common])
                with self.supernet.running([(layer.step.layer[0], layer) for layer in layers]):
                    outputs[number] = self.supernet.model(**batch)
        return outputs

    def sliced(self, step: _Step, beyond: LayerChoice) -> nn.Module:
        """See `Supernet.sliced`."""
        index, choice = step.layer
        return self.supernet.sliced(index, choice, beyond, self._whole[index], step.statistics)


@dataclass
class _Sum:
    """What the first `size` heads or neurons of a layer put out together, after their projection."""

    size: int = 0
    total: Tensor | None = None


@dataclass
class _Step:
    """One layer of the present path, with what is known of it."""

    layer: Kept
    #: Of its batch norms: those of any sub-network that begins with the layers up to this one.
    statistics: Statistics
    #: Of its first heads, and of its first neurons given its heads.
    heads: _Sum = field(default_factory=_Sum)
    neurons: _Sum = field(default_factory=_Sum)
    #: Outputs of the attention block and of the layer; none or one.
    attention: list[Any] = field(default_factory=list)
    output: list[Any] = field(default_factory=list)


def _next_path(path: Sequence[_Step], kept: Sequence[Kept], statistics: Sequence[Statistics]) -> list[_Step]:
    """The path of a sub-network, with what those before it on the walk have computed of it."""
    common = _common([step.layer for step in path], kept)
    steps = [*path[:common], *map(_Step, kept[common:], statistics[common:])]
    if common < min(len(path), len(kept)) and path[common].layer[0] == kept[common][0]:
        before, step = path[common], steps[common]
        step.heads = before.heads
        if _same_attention(before.layer, step.layer):
            step.attention, step.neurons = before.attention, before.neurons
    return steps


def _common(one: Sequence[Kept], other: Sequence[Kept]) -> int:
    """How many layers both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


def _same_attention(one: Kept, other: Kept) -> bool:
    return (one[0], one[1][0]) == (other[0], other[1][0])


class _Remembered(nn.Module):
    """A layer that computes what is not known yet of its step on the path, and adds it there."""

    def __init__(self, run: SharedPrefixes, step: _Step) -> None:
        super().__init__()
        self.sliced, self.step = run.sliced, step
        self.axes, self.full = run.supernet.map, run.supernet.layers[step.layer[0]]
        #: If set, only so many first positions of the output are right, and it is not kept.
        self.positions: int | None = None
        #: Whether the attention block's output must be whole and kept even so.
        self.keep_attention = False

    def forward(self, *inputs: Any, **options: Any) -> Any:
        step = self.step
        if step.output:
            return step.output[0]
        tokens = inputs[0].shape[1]
        beyond = (0,) * len(step.layer[1])
        if self.axes.additive:
            beyond = (0 if step.attention else step.heads.size, step.neurons.size)
        with ExitStack() as stack:
            self._share_attention(stack, tokens)
            self._share_neurons(stack, tokens)
            output = self.sliced(step, beyond)(*inputs, **options)
        if self.positions is None:
            step.output.append(output)
        return output

    def _share_attention(self, stack: ExitStack, tokens: int) -> None:
        """Until `stack` is closed, the attention block computes what is needed of it."""
        if self.axes.attention is None:
            return
        step, positions = self.step, None if self.keep_attention else self.positions
        block = self.full.get_submodule(self.axes.attention)
        if step.attention or positions is None:
            stack.enter_context(_replaced(block, _once(block.forward, step.attention)))
        if step.attention or not self.axes.additive:
            return
        (projection,) = _modules(self.full, self.axes.heads, dim=1)
        if positions is not None and self.axes.keys_values:
            keys_values = [self.full.get_submodule(name) for name in self.axes.keys_values]
            _ask_first(stack, block, keys_values, positions)
            tokens = positions  # the projection sees no others
        step.heads = _add(stack, projection, step.heads, step.layer[1][0], positions, tokens)

    def _share_neurons(self, stack: ExitStack, tokens: int) -> None:
        """Until `stack` is closed, the MLP computes what is needed of it."""
        if not self.axes.additive:
            return
        (first,), (last,) = (_modules(self.full, self.axes.ffn, dim) for dim in (0, 1))
        if self.positions is not None:
            stack.enter_context(_replaced(first, _narrowed(first.forward, self.positions)))
        self.step.neurons = _add(stack, last, self.step.neurons, self.step.layer[1][1], self.positions, tokens)


def _modules(layer: nn.Module, axes: Sequence[Axis], dim: int) -> list[nn.Linear]:
    """The linear modules whose weights are sliced along `dim`: 0 of those before the heads or neurons, 1 after them."""
    names = (axis.parameter.rpartition(".") for axis in axes if axis.dim == dim and not axis.one_per_head)
    found: list[Any] = [layer.get_submodule(module) for module in dict.fromkeys(module for module, _, _ in names)]
    return found


def _add(
    stack: ExitStack, projection: nn.Linear, before: _Sum, size: int, positions: int | None, tokens: int
) -> _Sum:  # fmt: skip
    """Until `stack` is closed, `projection` adds what it puts out, without its bias, to the sum `before`, if that is any.

    Args:
        size: heads or neurons that this makes together.
        positions: if given, it does so for the first positions only, of all `tokens` there are.

    Returns:
        The sum, made when `projection` runs; `before` where `positions` are given.
    """
    after = _Sum(size)

    def forward(states: Tensor) -> Tensor:
        states = states[:, :positions]
        total = functional.linear(states, projection.weight, projection.bias if before.total is None else None)
        if before.total is not None:
            total = total + before.total[:, : total.shape[1]]
        after.total = total
        return total

    stack.enter_context(_replaced(projection, forward if positions is None else _padded(forward, tokens)))
    return after if positions is None else before


def _ask_first(stack: ExitStack, block: nn.Module, keys_values: Sequence[nn.Module], positions: int) -> None:
    """Until `stack` is closed, an attention block runs for its first positions, whose queries see all keys and values; its
    output has zeros at the others."""
    run, whole = block.forward, list[Tensor]()

    def forward(*inputs: Any, **options: Any) -> Any:
        named: dict[Any, Any] = {**dict(enumerate(inputs)), **options}
        first = next(name for name, value in named.items() if isinstance(value, Tensor))
        states: Tensor = named[first]
        whole.append(states)
        for name, value in named.items():
            if isinstance(value, Tensor) and value.dim() == 4:  # a mask of queries and keys
                named[name] = value[:, :, :positions]
        named[first] = states[:, :positions]
        output = run(*(named[place] for place in range(len(inputs))), **{name: named[name] for name in options})
        pad = _padded(lambda found: found, states.shape[1])
        return pad(output) if isinstance(output, Tensor) else (pad(output[0]), *output[1:])

    stack.enter_context(_replaced(block, forward))
    for module in keys_values:
        stack.enter_context(_replaced(module, lambda states, read=module.forward: read(whole[-1])))


def _narrowed(run: Callable[[Tensor], Tensor], positions: int) -> Callable[[Tensor], Tensor]:
    """`run` for the first positions only."""
    return lambda states: run(states[:, :positions])


def _padded(run: Callable[[Tensor], Tensor], tokens: int) -> Callable[[Tensor], Tensor]:
    """`run` with zeros at the positions up to `tokens` that it leaves out."""

    def forward(states: Tensor) -> Tensor:
        found = run(states)
        return functional.pad(found, (0, 0, 0, tokens - found.shape[1]))

    return forward


def _once(run: Callable[..., Any], found: list[Any]) -> Callable[..., Any]:
    """`run` if `found` is empty, to which its output is added; what is in `found` otherwise."""

    def forward(*inputs: Any, **options: Any) -> Any:
        if not found:
            found.append(run(*inputs, **options))
        return found[0]

    return forward


@contextmanager
def _replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """While open, calls of `module` are calls of `forward`; its attributes, which models read, stay what they are."""
    own = vars(module).get("forward")  # some library may have put one in the place of the class's
    try:
        vars(module)["forward"] = forward
        yield
    finally:
        del vars(module)["forward"]
        if own is not None:
            vars(module)["forward"] = own


def _embeddings(supernet: Supernet) -> nn.Module:
    """The part of the model that the first layer's input comes from; the same for all sub-networks."""
    base: Any = supernet.model.base_model
    if supernet.map.embeddings is not None:
        part: nn.Module = base.get_submodule(supernet.map.embeddings)
        return part
    inputs = base.get_input_embeddings()
    return next(part for part in base.children() if any(module is inputs for module in part.modules()))
