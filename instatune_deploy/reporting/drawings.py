"""Drawings of architectures as SVG: what each layer keeps, and what the full network has more."""

from __future__ import annotations

from instatune_deploy.values.space import TRANSFORMER, Architecture, LayerChoice, SearchSpace

#: In units of the drawing: a layer's row, where the first dimension begins, the length of the most of a dimension, and a gap.
_ROW, _LEFT, _LENGTH, _GAP = 16, 24, 96, 12
_WORDS = {"heads": "heads", "ffn": "neurons", "filters": "filters"}


def draw(architecture: Architecture, full: Architecture | None, space: SearchSpace | None) -> str:
    """An `<svg>` of a network, a row a layer: its heads as cells, all else it has counts of as bars.

    What the full network has beyond it is drawn as outlines. Colours are the page's: classes ``kept-heads``, ``kept-ffn``, ``kept-filters``
    ``dropped`` and ``words``.

    Args:
        full: the full network; None: as large as the network itself.
        space: says which layers a depth keeps, and what is counted; None, or one that it is not in: the first layers.
    """
    full = full or architecture
    rows, names = _rows(architecture, full, space), _dimensions(architecture, space)
    most = [max(counts) for counts in zip(*full.layers, *architecture.layers, strict=True)]
    lines = []
    for number, (whole, kept) in enumerate(rows):
        top = number * _ROW + 2
        lines.append(f'<text class="words" x="{_LEFT - 8}" y="{top + 10}" text-anchor="end">{number + 1}</text>')
        for kind, (name, size) in enumerate(zip(names, most, strict=True)):
            place = _LEFT + kind * (_LENGTH + _GAP), top, size
            own = kept[kind] if kept else 0
            if name == "heads":
                lines.append(_cells("dropped", own, max(whole[kind], own), *place))
                lines.append(_cells(f"kept-{name}", 0, own, *place))
            else:
                lines.append(_bar("dropped", whole[kind], *place))
                lines.append(_bar(f"kept-{name}", own, *place) if own else "")
        says = " · ".join(map(str, kept)) if kept is not None else "dropped"
        lines.append(f'<text class="words" x="{_end(names) + 8}" y="{top + 10}">{says}</text>')
    width, height = _end(names) + 72, len(rows) * _ROW + 2
    return (
        f'<svg class="drawing" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{describe(architecture, full, space)}">{"".join(filter(None, lines))}</svg>'
    )


def describe(architecture: Architecture, full: Architecture | None, space: SearchSpace | None) -> str:
    """The drawing in words, for who does not see it."""
    rows, names = _rows(architecture, full or architecture, space), _dimensions(architecture, space)
    said = []
    for number, (_, kept) in enumerate(rows, start=1):
        counts = [f"{count} {_WORDS.get(name, name)}" for count, name in zip(kept or (), names, strict=False)]
        said.append(f"layer {number}: {', '.join(counts) or 'dropped'}")
    return f"{architecture.depth} of {len(rows)} layers; " + "; ".join(said)


def _dimensions(architecture: Architecture, space: SearchSpace | None) -> tuple[str, ...]:
    """What the counts of a layer are of."""
    counts = len(architecture.layers[0])
    if space is not None and len(space.dimensions) == counts:
        return space.dimensions
    return TRANSFORMER if counts == len(TRANSFORMER) else ("filters",) * counts


def _end(names: tuple[str, ...]) -> int:
    return _LEFT + len(names) * (_LENGTH + _GAP) - _GAP


def _rows(
    architecture: Architecture, full: Architecture, space: SearchSpace | None
) -> list[tuple[LayerChoice, LayerChoice | None]]:
    """For each layer of the full network its own choice, and what the architecture keeps of it (None: nothing)."""
    total = max(full.depth, architecture.depth)
    places: tuple[int, ...] = tuple(range(architecture.depth))
    depths = [] if space is None or space.layers != total else list(map(set, space.depths))
    if space is not None and len(depths) == len(architecture.depths):
        known = all(depth in choices for depth, choices in zip(architecture.depths, depths, strict=True))
        places = space.kept_layers(architecture.depths) if known else places
    kept = dict(zip(places, architecture.layers, strict=True))
    whole = [full.layers[i] if i < full.depth else architecture.layers[i] for i in range(total)]
    return [(whole[i], kept.get(i)) for i in range(total)]


def _cells(kind: str, first: int, last: int, left: int, top: int, most: int) -> str:
    """One path of the cells `first` to `last`."""
    step = _LENGTH / most
    size = max(1.0, step - 1.5)
    moves = "".join(
        f"M{left + cell * step:.1f} {top}h{size:.1f}v{_ROW - 4}h-{size:.1f}z" for cell in range(first, last)
    )
    return f'<path class="{kind}" d="{moves}"/>' if moves else ""


def _bar(kind: str, count: int, left: int, top: int, most: int) -> str:
    """A bar as long as its count."""
    return f'<rect class="{kind}" x="{left}" y="{top}" width="{_LENGTH * count / most:.1f}" height="{_ROW - 4}"/>'
