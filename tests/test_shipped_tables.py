"""The latency tables that ship: each reads, lies where it says, and has the runs it was made from beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from instatune_deploy.device.samples import Samples
from instatune_deploy.values.hashing import sha256_file
from instatune_deploy.values.latency import LatencyTable

DIRECTORY = Path(__file__).parents[1] / "latency_tables"
TABLES = sorted(DIRECTORY.rglob("*.json"))


@pytest.mark.parametrize("path", TABLES, ids=lambda path: str(path.relative_to(DIRECTORY)))
def test_a_shipped_table_reads_and_its_runs_are_there(path: Path) -> None:
    table = LatencyTable.from_json(path.read_text(encoding="utf-8"), str(path))
    assert path == DIRECTORY / table.file_name
    raw = DIRECTORY / table.raw_name
    assert sha256_file(raw) == table.raw_sha256
    names = [sample.architecture for sample in (*table.samples, *table.heldout)]
    assert list(Samples.read(raw).names) == names
    assert table.error.n >= 12


def test_every_file_belongs_to_a_table() -> None:
    files = {path for path in DIRECTORY.rglob("*") if path.is_file() and path.name != ".gitkeep"}
    assert files == {*TABLES, *(path.with_name(path.stem + ".samples.npz") for path in TABLES)}
