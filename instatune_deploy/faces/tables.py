"""Values as tables that people read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from instatune_deploy.values.front import ParetoFront
from instatune_deploy.values.matrix import Matrix
from instatune_deploy.values.selection import Selection

if TYPE_CHECKING:
    from instatune_deploy.fleets import WrittenFleet


def print_selections(selections: Sequence[Selection], run: Path) -> None:
    """The closing table: for each target the full network and what was selected for each budget."""
    console = Console(width=None if Console().is_terminal else 160)
    for target in dict.fromkeys(selection.target for selection in selections):
        chosen = [selection for selection in selections if selection.target == target]
        first = chosen[0]
        table = Table(
            title=f"{target}: latency {first.percentile} of a call, metric on {first.full.n} samples of the report split"
        )
        for column in (
            "",
            "budget",
            "deployment",
            "GMACs",
            "MACs saved",
            "predicted ms",
            "measured ms",
            "metric",
            "network",
        ):
            table.add_column(column, justify="left" if column in ("", "deployment", "network") else "right")
        table.add_row(
            "full", "", first.full_deployment, f"{first.full_macs / 1e9:.3f}", "", "",
            f"{first.full.percentile_ms(first.percentile):.3f}", f"{100 * first.full.metric:.2f}%", "",
        )  # fmt: skip
        for selection in chosen:
            table.add_row(
                "selected", selection.budget, selection.deployment, f"{selection.macs / 1e9:.3f}",
                f"{100 - 100 * selection.macs / selection.full_macs:.1f}%", f"{selection.predicted.latency_ms:.3f}",
                f"{selection.measured.percentile_ms(selection.percentile):.3f}",
                f"{100 * selection.measured.metric:.2f}%", selection.architecture,
            )  # fmt: skip
        console.print(table)
        for selection in chosen:
            console.print(f"{selection.budget}: {run / selection.artifact}", soft_wrap=True)
            if selection.speed_drift is not None:
                console.print(
                    f"  beside it the full network took {selection.full_beside_ms:.3f} ms, {100 * selection.speed_drift:+.1f}% against "
                    f"what its table says; at that speed the prediction was off by {100 * selection.prediction_error:+.1f}%",
                    soft_wrap=True,
                )
            for what, others in (("runner-up", selection.runners_up), ("passed over", selection.fell)):
                for considered in others:
                    console.print(f"  {what}: {considered}", soft_wrap=True)


def print_front(target: str, front: ParetoFront, percentile: str) -> None:
    """The candidates of a front, the fastest first; everything in it is predicted or from the search split."""
    table = Table(
        title=f"{target}: front of {', '.join(map(str, front.objectives))}; latency: predicted {percentile} of a call; metric: "
        "of the search split unless marked, * and predicted in equal parts, ** predicted; file and memory: estimates"
    )
    for column in ("predicted ms", "GMACs", "M param.", "file MB", "memory MB", "metric", "deployment", "network"):
        table.add_column(column, justify="left" if column in ("deployment", "network") else "right")
    marks = {"search split": "", "search split and predictor": "*", "predictor": "**"}
    for candidate in front.candidates:
        predicted = candidate.predicted
        sizes = (predicted.parameters, predicted.file_bytes, predicted.memory_bytes)
        table.add_row(
            f"{predicted.latency_ms:.3f}", f"{predicted.macs / 1e9:.3f}",
            *("" if size is None else f"{size / 1e6:.1f}" for size in sizes),
            f"{100 * predicted.metric:.2f}%{marks[predicted.metric_source]}",
            candidate.deployment.name, str(candidate.architecture),
        )  # fmt: skip
    Console(width=None if Console().is_terminal else 200).print(table)


def print_fleet(written: WrittenFleet) -> None:
    """The members of a fleet, the fastest first: what was measured of them, and what they take on the disk."""
    fleet = written.fleet
    table = Table(
        title=f"{written.directory}: {fleet.task} with {fleet.signature}; latency of a call and {fleet.metric} on "
        f"{fleet.members[0].n} samples of the {fleet.members[0].split} split: measured"
    )
    for column in ("name", "deployment", "p50 ms", "p90 ms", fleet.metric, "alone MB", "of its own MB", "network"):
        table.add_column(column, justify="left" if column in ("name", "deployment", "network") else "right")
    for member in fleet.members:
        sizes = (written.alone_bytes[member.name], written.own_bytes[member.name])
        table.add_row(
            member.name, member.deployment, f"{member.p50_ms:.3f}", f"{member.p90_ms:.3f}",
            f"{100 * member.metric:.2f}%", *(f"{size / 1e6:.1f}" for size in sizes), member.architecture,
        )  # fmt: skip
    console = Console(width=None if Console().is_terminal else 160)
    console.print(table)
    alone, stored = sum(written.alone_bytes.values()) / 1e6, written.stored_bytes / 1e6
    console.print(
        f"on the disk: {stored:.1f} MB, where the artifacts by themselves take {alone:.1f} MB; shared by several members: "
        f"{stored - sum(written.own_bytes.values()) / 1e6:.1f} MB",
        soft_wrap=True,
    )


def print_matrix(matrix: Matrix) -> None:
    """What each device of a fleet's plan gets for each budget."""
    table = Table(
        title=f"{matrix.run}: latency {matrix.percentile} of a call and {matrix.metric}: measured, the metric on the report split, or "
        "predicted (*)"
    )
    rows = list(matrix.rows())
    table.add_column("target")
    table.add_column("batch", justify="right")
    for cell in rows[0][1]:
        table.add_column(cell.budget)
    for (target, batch), cells in rows:
        shown = []
        for cell in cells:
            if cell.latency_ms is None or cell.metric is None:
                shown.append("none")
                continue
            mark = "*" if cell.state == "predicted" else ""
            shown.append(f"{cell.latency_ms:.3g} ms{mark}, {100 * cell.metric:.2f}%{mark}, {cell.deployment}")
        table.add_row(target, str(batch), *shown)
    console = Console(width=None if Console().is_terminal else 200)
    console.print(table)
    for cell in matrix.cells:
        if cell.artifact is not None:
            console.print(
                f"{cell.target}, batch {cell.batch}, {cell.budget}: {matrix.run}/{cell.artifact}", soft_wrap=True
            )
        elif cell.state == "none":
            console.print(f"{cell.target}, batch {cell.batch}, {cell.budget}: none: {cell.why}", soft_wrap=True)
