"""Figures that do not change, as plotly.js takes them; the page's script gives them the colours of its theme."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from instatune_deploy.reporting.record import FoundFront, FoundHistory, RunRecord
from instatune_deploy.values.latency import LatencyTable
from instatune_deploy.values.selection import Selection
from instatune_deploy.values.space import Architecture

#: Of Okabe and Ito (2008), which colour-blind readers can tell apart; those that show on white and on black come first.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")

Figure = dict[str, Any]


def styles(names: Sequence[str]) -> dict[str, dict[str, str]]:
    """A colour, a symbol and a dash for each of `names`: no two of up to six differ by colour alone."""
    return {
        name: {"color": COLOURS[i % len(COLOURS)], "symbol": SYMBOLS[i % len(SYMBOLS)], "dash": DASHES[i % len(DASHES)]}
        for i, name in enumerate(names)
    }


def training_figure(histories: Sequence[tuple[str, FoundHistory]], *, rate: bool) -> Figure:
    """Training losses of named histories over the passes over the data; with `rate` the first one's learning rate, too."""
    look = styles([name for name, _ in histories])
    data: list[dict[str, Any]] = []
    for name, found in histories:
        points = found.history.points
        data.append({
            "type": "scatter", "mode": "lines+markers", "name": html.escape(name),
            "x": [point.epoch for point in points], "y": [point.loss for point in points],
            "line": {"color": look[name]["color"], "dash": look[name]["dash"], "width": 2.5},
            "marker": {"symbol": look[name]["symbol"], "size": 6},
            "customdata": [point.step for point in points],
            "hovertemplate": "step %{customdata}, epoch %{x:.2f}: training loss %{y:.4f}<extra></extra>",
        })  # fmt: skip
    layout = _layout("epochs", "training loss")
    if rate:
        points = histories[0][1].history.points
        data.append({
            "type": "scatter", "mode": "lines", "name": "learning rate", "yaxis": "y2",
            "x": [point.epoch for point in points], "y": [point.learning_rate for point in points],
            "line": {"color": COLOURS[1], "dash": "dot", "width": 2},
            "hovertemplate": "epoch %{x:.2f}: learning rate %{y:.3g}<extra></extra>",
        })  # fmt: skip
        layout["yaxis2"] = {
            "title": {"text": "learning rate"}, "overlaying": "y", "side": "right", "showgrid": False, "tickmode": "auto",
            "rangemode": "tozero",
        }  # fmt: skip
    return {"data": data, "layout": layout}


def hypervolume_figure(fronts: Sequence[tuple[str, FoundFront]]) -> Figure:
    """The hypervolume of what was evaluated after every round of named searches."""
    look = styles([name for name, _ in fronts])
    data = []
    for name, found in fronts:
        taus = ["none" if r.kendall_tau is None else f"{r.kendall_tau:.3f}" for r in found.rounds]
        data.append({
            "type": "scatter", "mode": "lines+markers", "name": html.escape(name),
            "x": [r.evaluated for r in found.rounds], "y": [r.hypervolume for r in found.rounds],
            "line": {"color": look[name]["color"], "dash": look[name]["dash"], "width": 2.5},
            "marker": {"symbol": look[name]["symbol"], "size": 8},
            "customdata": [[r.round, tau] for r, tau in zip(found.rounds, taus, strict=True)],
            "hovertemplate": (
                "round %{customdata[0]}: %{x} sub-networks evaluated, hypervolume %{y:.4f}<br>"
                "predicted against measured: Kendall tau %{customdata[1]}<extra></extra>"
            ),
        })  # fmt: skip
    return {"data": data, "layout": _layout("sub-networks evaluated", "hypervolume, share of the box")}


def error_figure(tables: Sequence[LatencyTable], selections: Sequence[Selection]) -> Figure:
    """By how much measured latencies were above what was predicted of them: held-out networks of the tables (their labels),
    and exported files (the percentile of their budget, at the speed the machine had when they were measured)."""
    look = styles(sorted({table.deployment.name for table in tables} | {s.deployment for s in selections}))
    data = [_held_out(table, look[table.deployment.name]) for table in tables if table.heldout]
    for name in sorted({selection.deployment for selection in selections}):
        chosen = [selection for selection in selections if selection.deployment == name]
        data.append({
            "type": "scatter", "mode": "markers", "name": html.escape(f"{name}, exported"),
            "x": [s.predicted.latency_ms for s in chosen], "y": [_above_pct(s.prediction_error) for s in chosen],
            "marker": {"color": look[name]["color"], "symbol": "star", "size": 14},
            "customdata": [
                [html.escape(f"{s.architecture} for {s.budget}"), s.measured.percentile_ms(s.percentile), s.percentile]
                for s in chosen
            ],
            "hovertemplate": (
                "%{customdata[0]}<br>predicted %{x:.4g} ms, measured %{customdata[2]} %{customdata[1]:.4g} ms<br>"
                "%{y:+.2f}% at the machine's speed then<extra></extra>"
            ),
        })  # fmt: skip
    layout = _layout("predicted latency, ms", "measured above predicted, %")
    layout["yaxis"] |= {"zeroline": True, "zerolinewidth": 2}
    return {"data": data, "layout": layout}


def _held_out(table: LatencyTable, look: dict[str, str]) -> dict[str, Any]:
    networks = [Architecture.parse(sample.architecture) for sample in table.heldout]
    predicted = [table.estimate_ms(network) for network in networks]
    errors = [100 * (s.label_ms / ms - 1) for s, ms in zip(table.heldout, predicted, strict=True)]
    return {
        "type": "scatter", "mode": "markers", "name": html.escape(table.deployment.name),
        "x": predicted, "y": errors,
        "marker": {"color": look["color"], "symbol": look["symbol"], "size": 8, "opacity": 0.85},
        "customdata": [[str(network), s.label_ms] for network, s in zip(networks, table.heldout, strict=True)],
        "hovertemplate": (
            "%{customdata[0]}<br>predicted %{x:.4g} ms, measured %{customdata[1]:.4g} ms: %{y:+.2f}%<extra></extra>"
        ),
    }  # fmt: skip


def _above_pct(prediction_error: float) -> float:
    """By how much what was measured is above a prediction that is off by a fraction of what was measured, in %."""
    return 100 * (1 / (1 + prediction_error) - 1)


def fronts_figure(fronts: Sequence[tuple[str, RunRecord, FoundFront]]) -> Figure:
    """Named fronts over one another: predicted latency and the metric of the search split."""
    look = styles([name for name, _, _ in fronts])
    data = []
    for name, _, found in fronts:
        candidates = found.front.candidates
        data.append({
            "type": "scatter", "mode": "markers", "name": html.escape(name),
            "x": [c.predicted.latency_ms for c in candidates], "y": [100 * c.predicted.metric for c in candidates],
            "marker": {"color": look[name]["color"], "symbol": look[name]["symbol"], "size": 10},
            "customdata": [html.escape(f"{c.architecture} on {c.deployment.name}") for c in candidates],
            "hovertemplate": "%{customdata}<br>predicted %{x:.4g} ms, %{y:.2f}%<extra></extra>",
        })  # fmt: skip
    metric = " and ".join(dict.fromkeys(record.recipe.metric for _, record, _ in fronts))
    percentile = fronts[0][2].percentile
    layout = _layout(f"predicted latency of a call, {percentile}, ms", f"{metric}, search split, %")
    return {"data": data, "layout": layout}


def _layout(x: str, y: str) -> dict[str, Any]:
    return {"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}}}
