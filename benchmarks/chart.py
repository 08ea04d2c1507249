"""The chart of README: latency and accuracy of the full model in every deployment and of what was selected, as measured."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.results import RESULTS

CHART = Path(__file__).parents[1] / "docs" / "images" / "deployed_speed.svg"
#: Colours that colour-blind readers tell apart (Okabe and Ito), a mark of its own each: by what was measured.
_KINDS = {
    "default": ("full, as optimum-cli exports it", "#D55E00", "s"), "full": ("full, as exported here", "#0072B2", "o"),
    "selected": ("selected sub-network", "#009E73", "^"),
}  # fmt: skip
_GREY = "#808080"  # legible on a light page and on a dark one


def deployed_speed_chart(task: str = "sst2") -> str:
    """An SVG of results/deployed_speed.json, on one thread; the same for the same result and version of matplotlib."""
    result = json.loads((RESULTS / "deployed_speed.json").read_text(encoding="utf-8"))
    rows = [row for row in result["rows"] if row["task"] == task and row.get("threads") == 1]
    style = {"svg.fonttype": "none", "svg.hashsalt": "instatune-deploy", "font.size": 9, "text.color": _GREY}
    with mpl.rc_context(style):
        figure = Figure(figsize=(7.2, 3.6), layout="constrained")
        axes = figure.add_subplot()
        for kind, (label, colour, marker) in _KINDS.items():
            mine = [row for row in rows if row["what"] == kind]
            axes.scatter(
                [row["p50_ms"] for row in mine], [100 * row["accuracy"] for row in mine], c=colour, marker=marker, label=label
            )  # fmt: skip
        for row in _labelled(rows):
            text = f"{row['deployment'].rsplit('-', 1)[0]}, {row['p50_ms']:.1f} ms"
            point = (row["p50_ms"], 100 * row["accuracy"])
            axes.annotate(
                text,
                point,
                xytext=(0, -13 if row["what"] == "selected" else 9),
                textcoords="offset points",
                fontsize=8,
                horizontalalignment="center",
            )
        first = rows[0]
        axes.set_xscale("log")
        ticks = [2, 3, 5, 10, 20, 40]
        axes.set_xticks(ticks, [str(tick) for tick in ticks], minor=False)
        axes.set_xticks([], minor=True)
        axes.set_xlabel(f"latency, p50, ms: measured, one thread of an {result['machine']['cpu_model']}")
        axes.set_ylabel(f"accuracy, %: measured,\n{first['n']} samples of the report split")
        axes.xaxis.label.set_color(_GREY)
        axes.yaxis.label.set_color(_GREY)
        axes.tick_params(colors=_GREY)
        for spine in axes.spines.values():
            spine.set_color(_GREY)
        axes.margins(x=0.12, y=0.15)
        axes.legend(frameon=False, loc="lower right")
        written = io.StringIO()
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None})
    return written.getvalue()


def _labelled(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The default export, the fastest full model, and the fastest file of each selected network."""
    default = next(row for row in rows if row["what"] == "default" and row["deployment"].startswith("ort-fp32"))
    full = min((row for row in rows if row["what"] != "selected"), key=lambda row: row["p50_ms"])
    fastest: dict[str, dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: -row["p50_ms"]):
        if row["what"] == "selected":
            fastest[row["architecture"]] = row
    return [default, full, *fastest.values()]
