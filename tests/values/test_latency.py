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
from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.latency import PERCENTILES, Estimate, LatencySample, LatencyTable, table_statistics
from instatune_deploy.values.layer_costs import feature_names, features
from instatune_deploy.values.space import Architecture, SearchSpace

SPACE = SearchSpace.homogeneous(4, [2, 4], [6, 12], [512, 1024])
MakeTable = Callable[..., LatencyTable]
ms = st.floats(1e-3, 1e4)
samples = st.builds(
    LatencySample,
    st.just("2L[12-1024 6-512]"),
    ms,
    st.none() | ms,
    ms,
    ms,
    ms,
    st.integers(1, 10**6),
    st.tuples(ms, ms),
    st.booleans(),
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
    if heldout:
        table = replace(table, error=replace(table.error, mape_pct=table.mean_error_pct()))
    assert LatencyTable.from_json(table.to_json()) == table
    assert table.to_json().count('"label_ms"') == sum('"label_ms"' in line for line in table.to_json().splitlines())
    json.dumps(table_statistics(table))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("fixed_ms",), "fast", "fixed_ms"),
        (("fixed_ms",), float("nan"), "fixed_ms: .*finite"),
        (("percentile_ratio", "p90"), float("inf"), "percentile_ratio: .*finite"),
        (("interval_pct",), {"label": 1.0}, "interval_pct"),
        (("trees",), [{"feature": "switch"}], "trees: one is neither"),
        (("attention_ms", "6"), "slow", "layer_ms.heads=6"),
        (("attention_ms", "x"), 1.0, "layer_ms: 'heads=x' is no choice of heads, ffn"),
        (("ffn_ms",), None, "ffn_ms: holds no cost"),
        (("heldout",), [{"architecture": "1L[1-1]"}], "heldout.0"),
        (("colour",), "red", "colour"),
        (("schema_version",), 99, "schema_version: is 99"),
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


def test_a_transformers_table_is_written_as_before_there_were_others(make_table: MakeTable) -> None:
    """Keys of stages are made of the text."""
    table = make_table(SPACE)
    data = json.loads(table.to_json())
    assert data["attention_ms"] == {"6": 0.5, "12": 1.0}
    assert data["ffn_ms"] == {"512": 0.5, "1024": 1.0}
    assert not {"layer_ms", "dimensions"} & data.keys()
    assert table.to_json().index('"6": 0.5') < table.to_json().index('"12": 1.0')
    stages = replace(table, dimensions=("filters",), layer_ms={"stage1.first.filters=8": 1.0, "stage1.filters=8": 2.0})
    assert LatencyTable.from_json(stages.to_json()) == stages


def test_shipped_text_is_written_again_to_the_byte() -> None:
    for path in sorted((Path(__file__).parents[2] / "latency_tables").rglob("*.json")):
        text = path.read_text(encoding="utf-8")
        assert LatencyTable.from_json(text).to_json() == text


def test_a_truncated_file_is_refused(make_table: MakeTable) -> None:
    text = make_table(SPACE).to_json()
    for length in (0, 1, len(text) // 2, len(text) - 3):
        with pytest.raises(TableError):
            LatencyTable.from_json(text[:length])


def sample(architecture: str, label_ms: float) -> LatencySample:
    return LatencySample(architecture, label_ms, 0.5, label_ms, label_ms, label_ms, 9, (label_ms, label_ms), True)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_a_latency_that_is_not_positive_is_refused(make_table: MakeTable, value: float) -> None:
    with pytest.raises(ValueError, match=r"samples\.0\.label_ms.*positive"):
        replace(make_table(SPACE), samples=(sample("1L[6-512]", value),))


def test_an_entry_edited_by_hand_contradicts_the_error_on_held_out_networks(make_table: MakeTable) -> None:
    table = replace(make_table(SPACE), heldout=(sample("2L[12-1024 6-512]", 7.5),))
    table = replace(table, error=replace(table.error, mape_pct=table.mean_error_pct()))
    assert LatencyTable.from_json(table.to_json()) == table
    assert table.error.mape_pct == pytest.approx(100 * 0.5 / 7.5)
    for field, value in (("fixed_ms", 3.0), ("error", {**json.loads(table.to_json())["error"], "mape_pct": 0.1})):
        data = {**json.loads(table.to_json()), field: value}
        with pytest.raises(TableError, match=r"a\.json: error\.mape_pct: .*edited by hand"):
            LatencyTable.from_json(json.dumps(data), "a.json")


def test_an_estimate_has_the_interval_of_its_percentile(make_table: MakeTable) -> None:
    table, largest = make_table(SPACE), SPACE.largest
    ms, p90_ms = table.estimate_ms(largest), table.estimate_ms(largest, "p90")
    assert table.estimate(largest) == Estimate(ms, pytest.approx(0.98 * ms), pytest.approx(1.02 * ms))
    assert table.estimate(largest, "p90").high_ms == pytest.approx(1.06 * p90_ms)


def test_trees_multiply_the_sum(make_table: MakeTable) -> None:
    tree = {"feature": "heads=12", "threshold": 1.5, "low": -0.1, "high": {"feature": "switch", "threshold": 0.5, "low": 0.2, "high": 0.3}}  # fmt: skip
    plain = make_table(SPACE)
    table = replace(plain, trees=(tree, 0.05))
    assert LatencyTable.from_json(table.to_json()) == table
    for text, factor in (("2L[12-512 6-512]", 0.95), ("2L[12-512 12-512]", 1.25), ("2L[12-512 12-1024]", 1.35)):
        architecture = Architecture.parse(text)
        assert table.estimate_ms(architecture) == pytest.approx(factor * plain.estimate_ms(architecture))


def test_features_count_choices_and_switches() -> None:
    assert features(Architecture.parse("3L[12-512 12-1024 6-512]")) == {
        "heads=12": 2, "heads=6": 1, "ffn=512": 2, "ffn=1024": 1, "switch": 2,
    }  # fmt: skip
    assert feature_names(SPACE) == ["heads=6", "heads=12", "ffn=512", "ffn=1024", "switch"]
