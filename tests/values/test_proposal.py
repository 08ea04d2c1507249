"""Laws of proposed spaces: what is in them, what is not, and that every reason is told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from instatune_deploy.errors import TableError, UsageError
from instatune_deploy.stages.profile.design import probe_architectures
from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.latency import LatencyTable
from instatune_deploy.values.proposal import Rules, Scores, probing_space, propose
from instatune_deploy.values.recipe import SpaceSection
from instatune_deploy.values.space import Architecture, SearchSpace

FULL = Architecture.uniform(6, 12, 1536)
GRID = probing_space(FULL)
#: Importances of heads, in sum the same.
FEW, EQUAL = [109, *[1] * 11], [10] * 12
LOSSES = {1: 1.0, 2: 0.5, 3: 0.3, 4: 0.2, 5: 0.12, 6: 0.1}
MakeTable = Callable[..., LatencyTable]
#: Whole numbers, so that sums are exact. Few units of a layer may matter, or all, or none.
importances = st.lists(st.integers(0, 1000), min_size=12, max_size=12)
#: What each step of heads or neurons costs, in ms; some cost nothing, and some save time.
steps = st.lists(st.sampled_from([-0.2, 0.0, 0.01, 0.1, 0.5, 2.0]), min_size=8, max_size=8)


def scores(heads: Sequence[Sequence[float]], losses: dict[int, float] = LOSSES) -> Scores:
    """Heads as given, layer by layer, the last as often as there are layers left; neurons that all matter alike."""
    layers = [tuple(layer) for layer in heads] + [tuple(heads[-1])] * (6 - len(heads))
    return Scores(tuple(layers), ((1.0,) * 1536,) * 6, losses)


def with_steps(table: LatencyTable, heads_ms: Sequence[float], ffn_ms: Sequence[float]) -> LatencyTable:
    """A table whose entries rise by these steps."""

    def entries(name: str, counts: Sequence[int], steps_ms: Sequence[float]) -> dict[str, float]:
        return {f"{name}={count}": 5 + sum(steps_ms[: number + 1]) for number, count in enumerate(counts)}

    heads, ffn = entries("heads", GRID.head_choices, heads_ms), entries("ffn", GRID.ffn_choices, ffn_ms)
    return replace(table, layer_ms={**heads, **ffn})


def saved_pct(table: LatencyTable, smaller: Architecture, larger: Architecture) -> float:
    return 100 * (table.estimate_ms(larger) - table.estimate_ms(smaller)) / table.estimate_ms(FULL)


@given(st.lists(importances, min_size=1, max_size=6), steps, steps, steps)
def test_a_proposed_space_is_valid_small_and_holds_the_full_network(
    make_table: MakeTable, heads: list[list[int]], first: list[float], second: list[float], third: list[float]
) -> None:
    tables = [with_steps(make_table(GRID), first, second), with_steps(make_table(GRID), third, first)]
    space = propose(FULL, scores(heads), tables).space
    assert space.largest == FULL
    assert all(len(choices) <= 4 for choices in (*space.heads, *space.ffn))
    assert all(table.missing(space) == [] for table in tables)
    assert set(space.depths[0]) <= set(GRID.depths[0])
    assert propose(FULL, scores(heads), tables[::-1]).space == space


@given(st.lists(importances, min_size=1, max_size=6), steps, steps)
def test_no_choice_saves_too_little_time_to_tell(
    make_table: MakeTable, heads: list[list[int]], heads_ms: list[float], ffn_ms: list[float]
) -> None:
    table = with_steps(make_table(GRID), heads_ms, ffn_ms)
    space = propose(FULL, scores(heads), [table]).space
    for layer in range(6):
        for smaller, larger in zip(space.heads[layer], space.heads[layer][1:], strict=False):
            networks = (Architecture.uniform(6, count, 1536) for count in (smaller, larger))
            assert saved_pct(table, *networks) > table.error.noise_floor_pct
        for smaller, larger in zip(space.ffn[layer], space.ffn[layer][1:], strict=False):
            networks = (Architecture.uniform(6, 12, width) for width in (smaller, larger))
            assert saved_pct(table, *networks) > table.error.noise_floor_pct


@given(importances, steps)
def test_the_more_concentrated_the_importance_the_smaller_the_smallest_choice(
    make_table: MakeTable, importance: list[int], heads_ms: list[float]
) -> None:
    table = with_steps(make_table(GRID), heads_ms, [1.0] * 8)
    # Of the same sum, exactly.
    squares = [score**2 for score in importance]
    first = [score * sum(squares) for score in importance]
    second = [square * sum(importance) for square in squares]
    space = propose(FULL, scores([first, second, first]), [table]).space
    assert space.heads[1][0] <= space.heads[0][0] == space.heads[2][0]


@given(importances, st.integers(1, 9), steps)
def test_the_less_a_layer_matters_the_smaller_its_smallest_choice(
    make_table: MakeTable, importance: list[int], tenths: int, heads_ms: list[float]
) -> None:
    table = with_steps(make_table(GRID), heads_ms, [1.0] * 8)
    layers = [[10 * score for score in importance], [tenths * score for score in importance]]
    space = propose(FULL, scores(layers), [table]).space
    assert space.heads[1][0] <= space.heads[0][0]


@given(importances, st.floats(0, 1))
def test_the_smallest_choice_keeps_its_share_and_the_next_smaller_would_not(
    make_table: MakeTable, importance: list[int], share: float
) -> None:
    table = with_steps(make_table(GRID), [1.0] * 8, [1.0] * 8)
    space = propose(FULL, scores([importance]), [table], Rules(kept_importance=share)).space
    # All layers are alike, so that each is the average one.
    ordered = sorted(importance, reverse=True)
    for count in GRID.head_choices:
        kept = sum(ordered[:count]) / sum(ordered) if any(importance) else 1.0
        assert abs(kept - share) < 1e-9 or (kept >= share) == (count >= space.heads[0][0])


@given(st.lists(st.floats(0, 3), min_size=6, max_size=6), st.floats(0, 1))
def test_a_depth_stays_as_long_as_its_loss_is_within_bounds(
    make_table: MakeTable, losses: list[float], share: float
) -> None:
    by_depth = dict(enumerate(losses, start=1))
    space = propose(FULL, scores([[1] * 12], by_depth), [make_table(GRID)], Rules(lost_by_depth=share)).space
    limit = by_depth[6] + share * max(0.0, by_depth[1] - by_depth[6])
    assert set(space.depths[0]) == {depth for depth in GRID.depths[0] if depth == 6 or by_depth[depth] <= limit}


def test_choices_lie_where_importance_falls_fastest_for_the_time_it_saves(make_table: MakeTable) -> None:
    table = with_steps(make_table(GRID), [1.0] * 8, [1.0] * 8)
    few = [100] * 4 + [1] * 8
    spread = [sum(few) / 12] * 12
    space = propose(FULL, scores([few, spread]), [table]).space
    assert space.heads[0] == (3, 4, 8, 12)
    assert space.heads[1] == (6, 8, 10, 12)


def test_what_saves_no_time_anywhere_is_left_out_and_the_reason_is_told(make_table: MakeTable) -> None:
    # 8, 9 and 10 heads run as 12 do; 2 heads take even longer than 3.
    slow = with_steps(make_table(GRID), [2.0, -1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0], [1.0] * 8)
    proposal = propose(FULL, scores([FEW, EQUAL]), [slow])
    assert proposal.space.heads[0] == (3, 4, 6, 12)
    assert proposal.space.heads[1] == (6, 12)
    assert "on cpu-test (ort-fp32-1t)" in proposal.heads_why
    assert "; 2 left out: as slow as 3, as far as" in proposal.heads_why
    assert "; 8, 9 and 10 left out: as slow as 12, as far as" in proposal.heads_why
    # Where another deployment gains, they stay.
    fast = replace(with_steps(make_table(GRID), [1.0] * 8, [1.0] * 8), deployment=Deployment("openvino"))
    proposal = propose(FULL, scores([[1] * 12]), [slow, fast])
    assert proposal.space.heads[0] == (6, 8, 10, 12)
    assert "cpu-test (ort-fp32-1t, ov-fp32-1t)" in proposal.heads_why


def test_the_section_says_why_line_by_line_and_reads_back(make_table: MakeTable) -> None:
    proposal = propose(FULL, scores([FEW, EQUAL]), [make_table(GRID)])
    text = proposal.to_yaml()
    assert all("  # " in line for line in text.splitlines() if "[" in line and "depths" not in line)
    assert "layer 1: has 1.00 of the average importance, 6 keep 50%" in text
    assert "  # Loss before training 2: 0.500" in text
    assert "  # Latency with so many neurons in every layer, of the full network's: 192: 59%" in text
    section = SpaceSection.model_validate(yaml.safe_load(text)["space"])
    found = SearchSpace.stack(tuple(section.depths), section.heads, section.ffn, proposal.space.drop_order)  # type: ignore[arg-type]
    assert found == proposal.space


@given(st.integers(1, 48), st.integers(1, 64), st.integers(1, 8192))
def test_tables_for_a_proposal_need_few_entries(layers: int, heads: int, ffn: int) -> None:
    full = Architecture.uniform(layers, heads, ffn)
    space = probing_space(full)
    assert space.largest == full
    assert len(space.head_choices) <= 8
    assert len(space.ffn_choices) <= 8


def test_tables_for_a_proposal_need_eighteen_probes() -> None:
    assert len(probe_architectures(GRID)) == 18


def test_what_cannot_be_proposed_is_refused_in_one_line(make_table: MakeTable) -> None:
    with pytest.raises(UsageError, match="needs a latency table"):
        propose(FULL, scores([[1] * 12]), [])
    coarse = make_table(SearchSpace.homogeneous(6, [6], [6, 12], [768, 1536]))
    with pytest.raises(TableError, match=r"no entry for heads=2, heads=3.*profile the target with --space auto"):
        propose(FULL, scores([[1] * 12]), [coarse])
    for wrong in (float("nan"), float("inf"), -1.0):
        with pytest.raises(UsageError, match="layer 1: the importance of its heads is not a number"):
            scores([[1] * 12, [wrong, *[1] * 11]])
    with pytest.raises(UsageError, match="loss is not a number"):
        scores([[1] * 12], {**LOSSES, 6: float("nan")})
