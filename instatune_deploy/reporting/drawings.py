"""Drawings of architectures as SVG: heads and MLP widths by layer, and what the full network has more."""

from __future__ import annotations

from instatune_deploy.values.space import Architecture, LayerChoice, SearchSpace

#: In units of the drawing: a layer's row, where heads begin, a head, the gap before the MLP's bar, and its full length.
_ROW, _LEFT, _HEADS, _GAP, _BAR = 16, 24, 96, 12, 96


def draw(architecture: Architecture, full: Architecture | None, space: SearchSpace | None) -> str:
    """An `<svg>` of a network, a row a layer: its heads as cells, its MLP's neurons as a bar.

    What the full network has beyond it is drawn as outlines. Colours are the page's: classes ``kept-heads``,
    ``kept-ffn``, ``dropped`` and ``words``.

    Args:
        full: the full network; None: as large as the network itself.
        space: says which layers a depth keeps; None, or another depth: the first ones.
    """
    full = full or architecture
    rows = _rows(architecture, full, space)
    most_heads = max(choice.heads for choice in (*full.layers, *architecture.layers))
    most_ffn = max(choice.ffn for choice in (*full.layers, *architecture.layers))
    lines = []
    for number, (whole, kept) in enumerate(rows):
        top = number * _ROW + 2
        lines.append(f'<text class="words" x="{_LEFT - 8}" y="{top + 10}" text-anchor="end">{number + 1}</text>')
        lines.append(
            _cells("dropped", kept.heads if kept else 0, max(whole.heads, kept.heads if kept else 0), most_heads, top)
        )
        lines.append(_bar("dropped", whole.ffn, most_ffn, top))
        if kept is not None:
            lines.append(_cells("kept-heads", 0, kept.heads, most_heads, top))
            lines.append(_bar("kept-ffn", kept.ffn, most_ffn, top))
        says = f"{kept.heads} · {kept.ffn}" if kept is not None else "dropped"
        lines.append(f'<text class="words" x="{_LEFT + _HEADS + _GAP + _BAR + 8}" y="{top + 10}">{says}</text>')
    width, height = _LEFT + _HEADS + _GAP + _BAR + 72, len(rows) * _ROW + 2
    return (
        f'<svg class="drawing" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{describe(architecture, full, space)}">{"".join(filter(None, lines))}</svg>'
    )


def describe(architecture: Architecture, full: Architecture | None, space: SearchSpace | None) -> str:
    """The drawing in words, for who does not see it."""
    rows = _rows(architecture, full or architecture, space)
    said = [
        f"layer {number}: {kept.heads} heads, {kept.ffn} neurons" if kept is not None else f"layer {number}: dropped"
        for number, (_, kept) in enumerate(rows, start=1)
    ]
    return f"{architecture.depth} of {len(rows)} layers; " + "; ".join(said)


def _rows(
    architecture: Architecture, full: Architecture, space: SearchSpace | None
) -> list[tuple[LayerChoice, LayerChoice | None]]:
    """For each layer of the full network its own choice, and what the architecture keeps of it (None: nothing)."""
    total = max(full.depth, architecture.depth)
    places: tuple[int, ...] = tuple(range(architecture.depth))
    if space is not None and space.layers == total and architecture.depth in space.depths:
        places = space.kept_layers(architecture.depth)
    kept = dict(zip(places, architecture.layers, strict=True))
    whole = [full.layers[i] if i < full.depth else architecture.layers[i] for i in range(total)]
    return [(whole[i], kept.get(i)) for i in range(total)]


def _cells(kind: str, first: int, last: int, most: int, top: int) -> str:
    """One path of the cells of heads `first` to `last`."""
    step = _HEADS / most
    size = max(1.0, step - 1.5)
    moves = "".join(
        f"M{_LEFT + head * step:.1f} {top}h{size:.1f}v{_ROW - 4}h-{size:.1f}z" for head in range(first, last)
    )
    return f'<path class="{kind}" d="{moves}"/>' if moves else ""


def _bar(kind: str, neurons: int, most: int, top: int) -> str:
    """The bar of an MLP."""
    length = _BAR * neurons / most
    return f'<rect class="{kind}" x="{_LEFT + _HEADS + _GAP}" y="{top}" width="{length:.1f}" height="{_ROW - 4}"/>'
