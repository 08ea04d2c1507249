"""A fleet's index: what is picked from it, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from instatune_deploy.errors import ArtifactError, InfeasibleBudgetError, UnknownNameError
from instatune_deploy.values.fleet import FLEET_NAME, PERCENTILES, Fleet, FleetMember
from instatune_deploy.values.hashing import sha256_file
from instatune_deploy.values.manifest import MANIFEST_NAME

LATENCIES = st.floats(1e-3, 1e4)


@st.composite
def members(draw: st.DrawFn) -> list[FleetMember]:
    """Members in any order, of few metrics, so that some are equally good."""
    names = draw(
        st.lists(st.from_regex(r"[a-z0-9][a-z0-9_.-]{0,8}", fullmatch=True), min_size=1, max_size=6, unique=True)
    )
    return [
        FleetMember(
            name, name, draw(st.sampled_from(["ort-fp32-1t", "ov-int8-2t"])), "1L[2-8]",
            *sorted(draw(st.tuples(LATENCIES, LATENCIES, LATENCIES))),
            draw(st.sampled_from([-0.5, 0.25, 0.9])), draw(st.integers(1, 10**6)), "report", "0" * 64,
        )
        for name in names
    ]  # fmt: skip


def make_fleet(directory: Path, found: list[FleetMember]) -> Fleet:
    """The fleet of `found` in `directory`, each member with a manifest of its own."""
    hashed = []
    for member in found:
        manifest = directory / member.directory / MANIFEST_NAME
        manifest.parent.mkdir(parents=True, exist_ok=True)
        manifest.write_text(member.name)
        hashed.append(replace(member, manifest_sha256=sha256_file(manifest)))
    fleet = Fleet("text-classification", "bert-h32-d8-3x4x64-t16", "accuracy", tuple(hashed))
    fleet.write(directory)
    return fleet


@given(members(), st.randoms())
def test_the_order_does_not_matter_and_the_fastest_is_first(found: list[FleetMember], random: Any) -> None:
    fleet = Fleet("t", "s", "accuracy", tuple(found))
    random.shuffle(found)
    assert Fleet("t", "s", "accuracy", tuple(found)) == fleet
    assert [member.p50_ms for member in fleet.members] == sorted(member.p50_ms for member in found)
    assert all(fleet.by_name(member.name) == member for member in found)


@given(members(), LATENCIES, st.sampled_from(PERCENTILES))
def test_the_most_accurate_that_fits_is_picked(found: list[FleetMember], limit: float, percentile: str) -> None:
    fleet = Fleet("t", "s", "accuracy", tuple(found))
    fitting = [member for member in found if member.percentile_ms(percentile) <= limit]
    if not fitting:
        near = min(member.percentile_ms(percentile) for member in found)
        with pytest.raises(InfeasibleBudgetError, match=f"nearest: .*{near:.3g}".replace("+", r"\+")):
            fleet.within(limit, percentile)
        return
    picked = fleet.within(limit, percentile)
    assert picked in fitting
    assert picked.metric == max(member.metric for member in fitting)
    equal = [member for member in fitting if member.metric == picked.metric]
    assert picked.percentile_ms(percentile) == min(member.percentile_ms(percentile) for member in equal)
    # A looser limit never gives a worse one.
    assert fleet.within(2 * limit, percentile).metric >= picked.metric


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(members())
def test_an_index_round_trips(tmp_path: Path, found: list[FleetMember]) -> None:
    fleet = make_fleet(tmp_path, found)
    assert Fleet.read(tmp_path) == fleet
    text = (tmp_path / FLEET_NAME).read_text()
    fleet.write(tmp_path)
    assert (tmp_path / FLEET_NAME).read_text() == text


TWO = [
    FleetMember(name, name, "ort-fp32-1t", "1L[2-8]", p50, 2 * p50, 3 * p50, 0.9, 872, "report", "0" * 64)
    for name, p50 in (("slow", 9.0), ("fast", 3.0))
]


def test_unknown_names_are_refused_with_the_known(tmp_path: Path) -> None:
    fleet = make_fleet(tmp_path, TWO)
    with pytest.raises(UnknownNameError, match="did you mean 'fast'"):
        fleet.by_name("fats")
    with pytest.raises(UnknownNameError, match="unknown percentile 'p95'"):
        fleet.within(5, "p95")


def first(data: dict[str, Any], **changes: Any) -> None:
    data["members"][0].update(changes)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: d.update(schema_version=2), "schema_version 2 is unknown"),
        (lambda d: d.pop("schema_version"), "schema_version None is unknown"),
        (lambda d: d.pop("task"), "task"),
        (lambda d: d["members"][0].pop("p90_ms"), r"members\.0\.p90_ms"),
        (lambda d: d.update(extra=1), "extra"),
        (lambda d: d.update(members=[]), "has no members"),
        (lambda d: first(d, n="872"), r"members\.0\.n"),
        (lambda d: first(d, p50_ms=0), r"members\.0\.p50_ms"),
        (lambda d: first(d, metric=float("nan")), r"members\.0\.metric"),
        (lambda d: first(d, name="a/b"), r"members\.0\.name"),
        (lambda d: first(d, name="slow"), "several members have the name slow"),
        (lambda d: first(d, directory="slow"), "several members have the directory slow"),
        (lambda d: first(d, directory="/etc"), "'/etc' is no directory in the fleet"),
        (lambda d: first(d, directory="../fast"), r"'\.\./fast' is no directory in the fleet"),
        (lambda d: first(d, directory="."), r"'\.' is no directory in the fleet"),
        (lambda d: first(d, directory=""), "'' is no directory in the fleet"),
        (lambda d: first(d, directory="linked"), "'linked' is no directory in the fleet"),
        (lambda d: first(d, directory="gone"), "missing, a member of the fleet"),
        (lambda d: first(d, manifest_sha256="1" * 64), "its SHA-256 differs from the fleet's"),
    ],
)
def test_a_damaged_index_is_refused(tmp_path: Path, spoil: Callable[[dict[str, Any]], None], message: str) -> None:
    fleet = tmp_path / "fleet"
    make_fleet(fleet, TWO)
    make_fleet(tmp_path / "elsewhere", TWO)
    (fleet / "linked").symlink_to(tmp_path / "elsewhere" / "fast")
    data = json.loads((fleet / FLEET_NAME).read_text())
    spoil(data)
    (fleet / FLEET_NAME).write_text(json.dumps(data))
    with pytest.raises(ArtifactError, match=message):
        Fleet.read(fleet)


def test_what_is_no_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="No such file"):
        Fleet.read(tmp_path)
    for text in ("", "[1]", "null", "{"):
        (tmp_path / FLEET_NAME).write_text(text)
        with pytest.raises(ArtifactError, match=FLEET_NAME):
            Fleet.read(tmp_path)
