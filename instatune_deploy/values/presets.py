"""Search spaces by name, for models of any size: the paper's, and one for convolutional networks."""

from __future__ import annotations

import math
from dataclasses import dataclass

from instatune_deploy.errors import SpaceError, UnknownNameError
from instatune_deploy.values.space import Architecture, SearchSpace


@dataclass(frozen=True)
class SpacePreset:
    """A published space: the full model's layers, heads and MLP width, and the choices for it (counts)."""

    layers: int
    heads: int
    ffn: int
    depths: tuple[int, ...]
    head_choices: tuple[int, ...]
    ffn_choices: tuple[int, ...]

    def scaled(self, layers: int, heads: int, ffn: int) -> SearchSpace:
        """This preset for a model of another size, by ratio: depths rounded down, heads to the nearest count,
        MLP widths to the nearest multiple of 16; the full sizes are kept exactly."""

        def widths(choices: tuple[int, ...], full: int, size: int, step: int) -> list[int]:
            near = (max(step, step * round(size * choice / full / step)) for choice in choices)
            return [*(width for width in near if width < size), size]

        depths = [max(1, layers * depth // self.layers) for depth in self.depths]
        return SearchSpace.homogeneous(
            layers, depths, widths(self.head_choices, self.heads, heads, 1), widths(self.ffn_choices, self.ffn, ffn, 16)
        )

    def fitted(self, full: Architecture) -> SearchSpace:
        """This preset for a transformer.

        Raises:
            SpaceError: `full` is none.
        """
        if len(full.depths) > 1 or len(full.layers[0]) != 2:
            raise SpaceError("its choices are of attention heads and MLP widths, which this model has not")
        heads, ffn = full.layers[0]
        return self.scaled(full.depth, heads, ffn)


@dataclass(frozen=True)
class StagedPreset:
    """A space for convolutional networks of several stages: shares of the full network's.

    Args:
        depth: share of a stage's layers that the shallowest network keeps, rounded up; all depths above are choices. The
            first layer of a stage, which changes the resolution, always stays.
        filters: of each layer's inner convolutions, as multiples of `step`.
    """

    depth: float
    filters: tuple[float, ...]
    step: int = 8

    def fitted(self, full: Architecture) -> SearchSpace:
        """This preset for a network.

        Raises:
            SpaceError: `full` has other choices in a layer than filters.
        """
        if len(full.layers[0]) != 1:
            raise SpaceError("its choices are of filters, which this model has not")
        depths = tuple(tuple(range(max(1, math.ceil(self.depth * layers)), layers + 1)) for layers in full.depths)
        widths = tuple(self._widths(filters) for (filters,) in full.layers)
        starts = {sum(full.depths[:stage]) for stage in range(len(full.depths))}
        order = tuple(layer for layer in reversed(range(full.depth)) if layer not in starts)
        return SearchSpace(depths, (widths,), order, full.depths, ("filters",))

    def _widths(self, full: int) -> tuple[int, ...]:
        near = {max(self.step, self.step * round(full * share / self.step)) for share in self.filters}
        return (*sorted(width for width in near if width < full), full)


_VISION = SpacePreset(12, 12, 3072, (11, 12), (6, 8, 10, 12), (2048, 2560, 3072))
#: The spaces of InstaTune (arXiv 2308.15609), and ours for convolutional networks, which the paper has none for.
PRESETS: dict[str, SpacePreset | StagedPreset] = {
    "bert-base": SpacePreset(12, 12, 3072, (6, 7, 8, 9, 10, 11, 12), (6, 8, 10, 12), (1024, 2048, 3072)),
    "vit-base": _VISION,
    "beit3-base": _VISION,
    "resnet": StagedPreset(0.5, (0.25, 0.5, 0.75, 1)),
}
#: What stands where a preset's name could: the choices are proposed for model and targets, see `values.proposal`.
AUTO = "auto"
#: The preset that ``paper`` stands for in each family.
FAMILY_PRESETS = {
    "beit": "beit3-base",
    "beit3": "beit3-base",
    "bert": "bert-base",
    "deberta-v2": "bert-base",
    "deit": "vit-base",
    "distilbert": "bert-base",
    "resnet": "resnet",
    "roberta": "bert-base",
    "vit": "vit-base",
}


def preset(name: str) -> SpacePreset | StagedPreset:
    """The preset called `name`.

    Raises:
        UnknownNameError: there is none of that name.
    """
    if name not in PRESETS:
        raise UnknownNameError("space preset", name, PRESETS)
    return PRESETS[name]
