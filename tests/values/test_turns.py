"""Turns: the most preferred choice that will do, in few tries."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from instatune_deploy.values.turns import Turns


def played(does: list[bool], *, halving: bool) -> Turns:
    turns = Turns(len(does), halving=halving)
    while (number := turns.next()) is not None:
        turns.tell(number, does=does[number])
    return turns


@given(st.lists(st.booleans(), max_size=40))
def test_one_by_one_the_first_that_will_do_is_found(does: list[bool]) -> None:
    turns = played(does, halving=False)
    first = does.index(True) if True in does else None
    assert turns.chosen == first
    assert turns.tried == list(range(len(does) if first is None else first + 1))


@given(st.integers(0, 60), st.integers(1, 60))
def test_halving_finds_it_in_few_tries_where_the_less_preferred_are_likelier_to_do(worse: int, better: int) -> None:
    turns = played([False] * worse + [True] * better, halving=True)
    assert turns.chosen == worse
    assert len(turns.tried) <= math.ceil(math.log2(worse + better + 1))


@given(st.lists(st.booleans(), max_size=40))
def test_halving_finds_one_wherever_it_is_and_tries_nothing_twice(does: list[bool]) -> None:
    turns = played(does, halving=True)
    assert (turns.chosen is not None) == any(does)
    assert turns.chosen is None or does[turns.chosen]
    assert len(set(turns.tried)) == len(turns.tried)
    assert any(does) or len(turns.tried) == len(does)


@given(st.integers(0, 60), st.integers(1, 60), st.integers(0, 60))
def test_halving_finds_it_between_too_little_of_the_metric_and_too_much_of_a_cost(
    worse: int, better: int, dearer: int
) -> None:
    count = worse + better + dearer
    turns = Turns(count, halving=True)
    while (number := turns.next()) is not None:
        turns.tell(number, does=worse <= number < worse + better, costs=number >= worse + better)
    assert turns.chosen == worse
    assert len(turns.tried) <= math.ceil(math.log2(count + 1))
