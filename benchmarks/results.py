"""How benchmarks write their results: one JSON file a claim, with what is needed to judge and repeat it."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from instatune_deploy.device.fingerprint import detect, runtime_versions

RESULTS = Path(__file__).parent / "results"


def write_result(name: str, claim: str, figures: dict[str, float], rows: list[dict[str, Any]]) -> Path:
    """Write `benchmarks/results/<name>.json`.

    Args:
        claim: one sentence that the figures support or refute.
        figures: flat, name to number: what README and docs quote.
        rows: every measurement, with seed, split and sample count.
    """
    root = Path(__file__).parents[1]
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False)
    changed = subprocess.run(
        ["git", "status", "--porcelain", "--", "instatune_deploy"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    data = {
        "claim": claim,
        "command": " ".join(["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]]),
        "commit": commit.stdout.strip() + ("+changes" if changed.stdout.strip() else ""),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": asdict(detect()),
        "versions": runtime_versions(),
        "figures": figures,
        "rows": rows,
    }
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    return path


def read_rows(name: str) -> list[dict[str, Any]]:
    """The rows of a result that was written before; none where there is no such result."""
    path = RESULTS / f"{name}.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []
    return rows
