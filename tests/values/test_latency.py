"""Latency tables: what they estimate, what they refuse, what of them survives a file."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instatune_deploy.errors import TableError
from instatune_deploy.values.latency import PERCENTILES, LatencySample, LatencyTable, find_table, table_statistics
from instatune_deploy.values.space import Architecture, SearchSpace
from instatune_deploy.values.target import Deployment

SPACE = SearchSpace.homogeneous(4, [2, 4], [6, 12], [512, 1024])
MakeTable = Callable[..., LatencyTable]
ms = st.floats(1e-3, 1e4)
samples = st.builds(
    LatencySample, st.just("2L[12-1024 6-512]"), ms, ms, ms, ms, st.integers(1, 10**6), st.tuples(ms, ms), st.booleans()
)


def test_an_estimate_is_the_sum_of_entries(make_table: MakeTable) -> None:
    table = make_table(SPACE, ms=2.0)
    architecture = Architecture.parse("2L[12-1024 6-512]")
    assert table.estimate_ms(architecture) == pytest.approx(8 + (2 + 2) + (1 + 1))
    assert table.estimate_ms(architecture, "p90") == pytest.approx(14 * 1.25)
    assert set(table.percentile_ratio) == set(PERCENTILES)


@pytest.mark.parametrize(("text", "entry"), [("1L[8-512]", "heads=8"), ("2L[6-512 6-640]", "ffn=640")])
def test_a_missing_entry_raises(make_table: MakeTable, text: str, entry: str) -> None:
    table = make_table(SPACE)
    with pytest.raises(TableError, match=entry):
        table.estimate_ms(Architecture.parse(text))
    assert table.missing(Architecture.parse(text)) == [entry]
    assert table.missing(SearchSpace.homogeneous(1, [1], [6, 7], [512])) == ["heads=7"]
    assert table.missing(SPACE) == []


def test_an_unknown_percentile_raises(make_table: MakeTable) -> None:
    with pytest.raises(TableError, match="p95"):
        make_table(SPACE).estimate_ms(SPACE.largest, "p95")


@given(
    st.lists(samples, max_size=3),
    st.lists(samples, max_size=3),
    ms,
    st.sampled_from(["fp32", "bf16"]),
    st.integers(1, 64),
)
def test_a_table_round_trips(
    make_table: MakeTable, fit: list, heldout: list, fixed: float, precision: str, threads: int
) -> None:
    deployment = Deployment("openvino", precision, threads, needs=("avx2",))  # type: ignore[arg-type]
    table = replace(make_table(SPACE, deployment), samples=tuple(fit), heldout=tuple(heldout), fixed_ms=fixed)
    assert LatencyTable.from_json(table.to_json()) == table
    assert table.to_json().count('"label_ms"') == sum('"label_ms"' in line for line in table.to_json().splitlines())
    json.dumps(table_statistics(table))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("fixed_ms",), "fast", "fixed_ms"),
        (("fixed_ms",), float("nan"), "finite"),
        (("attention_ms", "x"), 1.0, "attention_ms"),
        (("heldout",), [{"architecture": "1L[1-1]"}], "heldout.0"),
        (("colour",), "red", "colour"),
        (("schema_version",), 99, "99"),
        (("error", "n"), None, "error.n"),
        (("deployment", "runtime"), "tflite", "deployment.runtime"),
    ],
)
def test_a_damaged_table_names_file_and_field(make_table: MakeTable, path: tuple, value: object, message: str) -> None:
    data = json.loads(make_table(SPACE).to_json())
    part = data
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    with pytest.raises(TableError, match=message) as caught:
        LatencyTable.from_json(json.dumps(data), "tables/a.json")
    assert str(caught.value).startswith("tables/a.json: ")
    assert "\n" not in str(caught.value)


def test_a_truncated_file_is_refused(make_table: MakeTable) -> None:
    text = make_table(SPACE).to_json()
    for length in (0, 1, len(text) // 2, len(text) - 3):
        with pytest.raises(TableError):
            LatencyTable.from_json(text[:length])


def test_a_latency_that_is_not_positive_is_refused(make_table: MakeTable) -> None:
    sample = LatencySample("1L[6-512]", 0.0, 1.0, 1.0, 1.0, 9, (1.0, 1.0), True)
    with pytest.raises(ValueError, match="positive"):
        replace(make_table(SPACE), samples=(sample,))


def test_a_table_is_found_only_if_it_fits_space_machine_and_runtime(make_table: MakeTable, tmp_path: Path) -> None:
    table = make_table(SPACE)
    path = tmp_path / table.file_name
    path.parent.mkdir(parents=True)
    path.write_text(table.to_json())

    def find(space: SearchSpace = SPACE, **changes: object) -> tuple[LatencyTable | None, list[str]]:
        machine = replace(table.machine, **changes)  # type: ignore[arg-type]
        versions = {"onnxruntime": "1.22.0"}
        places = [tmp_path / "empty", tmp_path]
        return find_table(
            table.target, table.signature, table.deployment, space, places, machine=machine, versions=versions
        )

    assert find(load_1min=3.0) == (table, [])
    other, why = find(cpu_model="another")
    assert other is None
    assert "measured on 2 x cpu" in why[0]
    wider, why = find(SearchSpace.homogeneous(4, [4], [6, 12], [2048]))
    assert wider is None
    assert "ffn=2048" in why[0]
    path.write_text("{")
    with pytest.raises(TableError, match=path.name):
        find()
