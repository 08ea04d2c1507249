"""Many sub-networks on the same batch: what several have in common is computed once, and what no head reads is not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.utils.generic import ModelOutput

from instatune_deploy.elastic.axes import Axis, AxisMap
from instatune_deploy.elastic.supernet import Supernet
from instatune_deploy.values.space import Architecture, LayerChoice

#: A layer of the full network by its index, and what is kept of it.
_Kept = tuple[int, LayerChoice]


class SharedPrefixes:
    """Runs the same sub-networks batch after batch, for evaluation: without gradients, dropout or a copy of the weights.

    Sub-networks that begin with the same layers, kept alike, have the same hidden states after these, and such that keep
    as many heads of the next layer have the same attention outputs there. They are run in the order of a depth-first walk
    through the tree that their layers span, and only what is on the way from the root to the present layer is remembered:
    at most two hidden states a layer. Of the last layer of each, what is not attention is computed for the positions that
    the task head reads alone (a classifier reads the first).

    Outputs are those of `Supernet.forward`, but that a matrix product of fewer rows may round its last bit otherwise.

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
        self._layers: dict[_Kept, nn.Module] = {}
        whole: dict[int, dict[str, Tensor] | None] = {}
        for index, choice in sorted({layer for kept in self._kept for layer in kept}):
            if index not in whole:
                whole[index] = self._cast(index)
            self._layers[index, choice] = supernet.sliced(index, choice, whole[index])
        self._positions: int | None = None

    @torch.no_grad()
    def _cast(self, index: int) -> dict[str, Tensor] | None:
        if self.dtype is None:
            return None
        return {name: tensor.to(self.dtype) for name, tensor in self.supernet.elastic_parameters(index).items()}

    def __call__(self, batch: Mapping[str, Tensor]) -> list[ModelOutput]:
        """The model's output for `batch`, once for each of the sub-networks, in the order they were given in.

        Args:
            batch: the model's inputs by name, such as `input_ids` of shape (samples, tokens).
        """
        if self._positions is None:
            self._positions = positions_read(self.supernet, batch)
        with torch.inference_mode(), torch.autocast(
            self.supernet.model.device.type, dtype=self.dtype, enabled=self.dtype is not None
        ):  # fmt: skip
            return self._run(batch)

    def _run(self, batch: Mapping[str, Tensor]) -> list[ModelOutput]:
        outputs: list[Any] = [None] * len(self._kept)
        path: list[_Step] = []
        following = [*self._walk[1:], None]
        with _run_once(_embeddings(self.supernet), []):
            for number, after in zip(self._walk, following, strict=True):
                path = _next_path(path, self._kept[number])
                shared = _Shared.of(self._kept[number], [] if after is None else self._kept[after])
                layers = [self._layer(step) for step in path]
                if not shared.whole:
                    layers[-1] = self._layer(path[-1], self._positions, keep_attention=shared.attention)
                with self.supernet.running(layers):
                    outputs[number] = self.supernet.model(**batch)
        return outputs

    def _layer(self, step: _Step, positions: int | None = None, *, keep_attention: bool = True) -> nn.Module:
        index, _ = step.layer
        full, axes = self.supernet.layers[index], self.supernet.map
        return _Remembered(self._layers[step.layer], full, axes, step, positions, keep_attention)


@dataclass
class _Step:
    """One layer of the present path, with what its attention block and it put out once they have run (none or one)."""

    layer: _Kept
    attention: list[Any] = field(default_factory=list)
    output: list[Any] = field(default_factory=list)


def _next_path(path: Sequence[_Step], kept: Sequence[_Kept]) -> list[_Step]:
    """The path of a sub-network, with what the one before it on the walk has computed of it."""
    common = _common([step.layer for step in path], kept)
    steps = [*path[:common], *(_Step(layer) for layer in kept[common:])]
    if common < min(len(path), len(kept)) and _same_attention(path[common].layer, kept[common]):
        steps[common].attention = path[common].attention
    return steps


@dataclass(frozen=True)
class _Shared:
    """What the next sub-network on the walk needs of the last layer of this one: all of it, its attention, or nothing."""

    whole: bool
    attention: bool

    @classmethod
    def of(cls, kept: Sequence[_Kept], after: Sequence[_Kept]) -> _Shared:
        common, last = _common(kept, after), len(kept) - 1
        return cls(common > last, common == last < len(after) and _same_attention(kept[last], after[last]))


def _common(one: Sequence[_Kept], other: Sequence[_Kept]) -> int:
    """How many layers both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


def _same_attention(one: _Kept, other: _Kept) -> bool:
    return (one[0], one[1].heads) == (other[0], other[1].heads)


class _Remembered(nn.Module):
    """A layer that runs only if its output is not known, and its attention block likewise.

    Args:
        sliced: the layer as a sub-network has it; `full`: the full network's that it is a view of.
        step: its place on the path, to which it adds what it computes.
        positions: of the layer's output only so many first positions are right, and it is not kept; None: it is whole.
        keep_attention: whether the attention block's output must be whole and kept even so.
    """

    def __init__(
        self, sliced: nn.Module, full: nn.Module, axes: AxisMap, step: _Step, positions: int | None, keep_attention: bool
    ) -> None:  # fmt: skip
        super().__init__()
        self.sliced, self.full, self.axes, self.step = sliced, full, axes, step
        self.positions, self.keep_attention = positions, keep_attention

    def forward(self, *inputs: Any, **options: Any) -> Any:
        step = self.step
        if step.output:
            return step.output[0]
        with ExitStack() as stack:
            if self.positions:
                stack.enter_context(_first_positions(self.full, self.axes.ffn, self.positions))
            if self.positions and not self.keep_attention and not step.attention:
                stack.enter_context(_first_positions(self.full, self.axes.heads, self.positions, output_alone=True))
            else:
                stack.enter_context(_run_once(self.full.get_submodule(self.axes.attention), step.attention))
            output = self.sliced(*inputs, **options)
        if not self.positions:
            step.output.append(output)
        return output


def _embeddings(supernet: Supernet) -> nn.Module:
    """The part of the model that the first layer's input comes from; the same for all sub-networks."""
    base = supernet.model.base_model
    inputs = base.get_input_embeddings()
    return next(part for part in base.children() if any(module is inputs for module in part.modules()))


@contextmanager
def _run_once(module: nn.Module, found: list[Any]) -> Iterator[None]:
    """While open, `module` is run only if `found` is empty, and then adds its output; it gives what is in `found`. Calls
    must be with the same inputs. Its attributes, which models read, stay what they are."""
    run = module.forward

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


@contextmanager
def _first_positions(
    layer: nn.Module, axes: Sequence[Axis], positions: int, *, output_alone: bool = False
) -> Iterator[None]:
    """While open, linear modules of `layer` compute the first `positions` only; what follows sees zeros at the others.

    What stands between the first and the last of `axes`' modules must work on each position by itself, as an MLP's
    activation does.

    Args:
        axes: of the MLP, or of the heads with `output_alone`: what mixes positions comes before their output projection.
    """
    first, last = (
        layer.get_submodule(next(axis for axis in axes if axis.dim == dim and not axis.one_per_head).parameter.rpartition(".")[0])
        for dim in (1 if output_alone else 0, 1)
    )  # fmt: skip
    lengths: list[int] = []

    def narrow(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        lengths.append(inputs[0].shape[1])
        return (inputs[0][:, :positions], *inputs[1:])

    def widen(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return functional.pad(output, (0, 0, 0, lengths.pop() - output.shape[1]))

    hooks = [first.register_forward_pre_hook(narrow), last.register_forward_hook(widen)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


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
        with supernet.running([leaf]):
            output = supernet.model(**few)
        total = sum(tensor.square().sum() for tensor in output.values() if isinstance(tensor, Tensor))
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
