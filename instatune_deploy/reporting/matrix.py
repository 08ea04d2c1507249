"""The page of a fleet's plan: what each of its devices gets for each budget."""

from __future__ import annotations

from instatune_deploy.reporting.page import render
from instatune_deploy.values.matrix import Matrix


def matrix_page(name: str, matrix: Matrix) -> str:
    """The page of the plan called `name`; it has no scripts."""
    rows = list(matrix.rows())
    context = {
        "name": name, "matrix": matrix, "rows": rows, "budgets": [cell.budget for cell in rows[0][1]],
        "batches": len({batch for (_, batch), _ in rows}) > 1 or rows[0][0][1] != 1,
        "n": max((cell.n for cell in matrix.cells if cell.n is not None), default=None),
    }  # fmt: skip
    return render("fleet.html", context)
