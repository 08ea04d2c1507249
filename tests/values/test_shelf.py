"""Which table holds for a machine: by what is in it, not by its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from instatune_deploy.errors import TableError
from instatune_deploy.values.latency import LatencyTable
from instatune_deploy.values.shelf import find_table
from instatune_deploy.values.space import SearchSpace

SPACE = SearchSpace.homogeneous(4, [2, 4], [6, 12], [512, 1024])
MakeTable = Callable[..., LatencyTable]
Found = tuple[LatencyTable | None, list[str]]


def find(
    table: LatencyTable, *places: Path, space: SearchSpace = SPACE, foreign: bool = False, **changes: object
) -> Found:
    """What is found for the key of `table` on its machine, but for `changes`."""
    versions = {"onnxruntime": changes.pop("version", "1.22.0")}
    machine = replace(table.machine, **changes)  # type: ignore[arg-type]
    return find_table(
        table.target, table.signature, table.deployment, space, places, machine=machine, versions=versions,
        foreign=foreign,
    )  # fmt: skip


def put(table: LatencyTable, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(table.to_json())
    return path


def test_a_table_is_found_only_if_it_fits_space_machine_and_runtime(make_table: MakeTable, tmp_path: Path) -> None:
    table = make_table(SPACE)
    path = put(table, tmp_path / table.file_name)
    assert find(table, tmp_path / "empty", tmp_path, load_1min=3.0) == (table, [])
    for changes, what in (
        ({"cpu_model": "another"}, "measured on 2 x cpu, this is 2 x another"),
        ({"logical_cpus": 8}, "this is 8 x cpu"),
        ({"version": "1.99"}, r"measured with onnxruntime 1.22.0, here: 1.99"),
        ({"space": SearchSpace.homogeneous(4, [4], [6, 12], [2048])}, "no entry for ffn=2048"),
    ):
        other, why = find(table, tmp_path, **changes)
        assert other is None
        assert what in why[0]
        assert str(path) in why[0]


def test_it_is_found_whatever_its_file_is_called(make_table: MakeTable, tmp_path: Path) -> None:
    table = make_table(SPACE)
    put(table, tmp_path / "somewhere" / "renamed.json")
    assert find(table, tmp_path) == (table, [])
    (tmp_path / "unrelated.json").write_text("{}")
    (tmp_path / ".probes").mkdir()
    put(table, tmp_path / ".probes" / "draft.json")
    assert find(table, tmp_path) == (table, [])


def test_two_tables_for_one_key_are_refused_but_the_first_place_wins(make_table: MakeTable, tmp_path: Path) -> None:
    table = make_table(SPACE)
    first, second = tmp_path / "a", tmp_path / "b"
    put(table, first / table.file_name)
    put(replace(table, date="later"), second / table.file_name)
    assert find(table, first, second)[0] == table
    put(table, first / "copy.json")
    with pytest.raises(TableError, match=r"two latency tables for cpu-test, ort-fp32-1t.*copy\.json"):
        find(table, first, second)


def test_a_damaged_table_is_named_and_an_unrelated_one_is_nobodys_problem(
    make_table: MakeTable, tmp_path: Path
) -> None:
    table = make_table(SPACE)
    (tmp_path / "broken.json").write_text("{")
    path = put(table, tmp_path / table.file_name)
    assert find(table, tmp_path)[0] == table
    path.write_text(table.to_json()[:-200])
    with pytest.raises(TableError, match=path.name):
        find(table, tmp_path)
    put(replace(table, signature="vit-h1"), path)
    with pytest.raises(TableError, match="not what its place says"):
        find(table, tmp_path)


def test_a_foreign_table_is_used_only_when_asked_for_and_says_what_differs(
    make_table: MakeTable, tmp_path: Path
) -> None:
    table = make_table(SPACE)
    path = put(table, tmp_path / table.file_name)
    found, lines = find(table, tmp_path, foreign=True, cpu_model="another", version="1.99")
    assert found == table
    assert lines == [
        f"warning: a foreign latency table is used as asked: {path}: measured on 2 x cpu, this is 2 x another, "
        "measured with onnxruntime 1.22.0, here: 1.99"
    ]
    assert find(table, tmp_path, foreign=True)[1] == []
    wider = SearchSpace.homogeneous(4, [4], [6, 12], [2048])
    assert find(table, tmp_path, foreign=True, space=wider, cpu_model="another")[0] is None
