"""Laws of architectures and their spaces."""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instatune_deploy.errors import ArchitectureError, SpaceError, UnknownNameError
from instatune_deploy.values.space import FAMILY_PRESETS, PRESETS, Architecture, LayerChoice, SearchSpace, preset

counts = st.integers(1, 4096)
architectures = st.lists(st.tuples(counts, counts), min_size=1, max_size=24).map(
    lambda pairs: Architecture(tuple(LayerChoice(*pair) for pair in pairs))
)


@st.composite
def spaces(draw: st.DrawFn, max_layers: int = 5) -> SearchSpace:
    """Spaces whose layers differ in choices and go in any order."""
    layers = draw(st.integers(1, max_layers))
    depths = draw(st.sets(st.integers(1, layers), min_size=1).map(sorted))
    choices = st.sets(st.integers(1, 64), min_size=1, max_size=3).map(lambda found: tuple(sorted(found)))
    heads, ffn = (tuple(draw(choices) for _ in range(layers)) for _ in range(2))
    order = draw(st.permutations(range(layers)))
    return SearchSpace(tuple(depths), heads, ffn, tuple(order[: draw(st.integers(layers - depths[0], layers))]))


seeds = st.integers(0, 2**32)


@given(architectures)
def test_what_prints_parses_back(architecture: Architecture) -> None:
    assert Architecture.parse(str(architecture)) == architecture
    assert hash(Architecture.parse(str(architecture))) == hash(architecture)


@pytest.mark.parametrize(
    "text", ["", "2L[12-1536]", "1L[]", "1L[0-16]", "1L[12:16]", "L[1-1]", "1L[12-16] x", "-1L[1-1]"]
)
def test_a_malformed_architecture_is_refused(text: str) -> None:
    with pytest.raises(ArchitectureError):
        Architecture.parse(text)


@given(spaces(), seeds)
def test_sampling_mutation_crossover_and_coding_stay_in_the_space(space: SearchSpace, seed: int) -> None:
    rng = random.Random(seed)
    first, second = space.sample_one(rng), space.sample_one(rng)
    mutant = space.mutate(first, rng, probability=rng.random())
    child = space.crossover(first, second, rng)
    for architecture in (first, second, mutant, child, space.largest, space.smallest):
        assert architecture in space
        assert space.decode(space.encode(architecture)) == architecture
    assert (mutant == first) == (space.size == 1)
    assert child.depth in (first.depth, second.depth)


@given(spaces(), seeds)
def test_a_child_has_each_gene_of_a_parent(space: SearchSpace, seed: int) -> None:
    rng = random.Random(seed)
    first, second = space.sample_one(rng), space.sample_one(rng)
    genes = zip(*(space.encode(a) for a in (space.crossover(first, second, rng), first, second)), strict=True)
    assert all(child in (one, other) for child, one, other in genes)


@given(spaces(max_layers=3))
def test_size_counts_what_iteration_yields(space: SearchSpace) -> None:
    everything = list(space)
    assert len(everything) == len(set(everything)) == space.size
    assert all(architecture in space for architecture in everything)
    assert set(space.sample(space.size + 5, seed=0)) == set(everything)


@given(spaces(), st.integers(0, 12), seeds)
def test_samples_are_different_and_repeatable(space: SearchSpace, n: int, seed: int) -> None:
    found = space.sample(n, seed=seed)
    assert len(found) == len(set(found)) == min(n, space.size)
    assert found == space.sample(n, seed=seed)


@given(spaces())
def test_a_space_round_trips(space: SearchSpace) -> None:
    assert SearchSpace.from_dict(space.to_dict()) == space


@given(spaces())
def test_layers_go_in_drop_order(space: SearchSpace) -> None:
    for depth in space.depths:
        kept = space.kept_layers(depth)
        assert len(kept) == depth
        assert set(kept) | set(space.drop_order[: space.layers - depth]) == set(range(space.layers))


def test_decoding_refuses_what_the_drop_order_forbids() -> None:
    space = SearchSpace.homogeneous(3, [2, 3], [4], [16])
    assert space.decode((4, 4, 0, 16, 16, 0)).depth == 2
    for genes in [
        (0, 4, 4, 0, 16, 16),
        (4, 4, 16, 16),
        (4, 4, 0, 16, 0, 16),
        (4, 0, 0, 16, 0, 0),
        (5, 4, 4, 16, 16, 16),
    ]:
        with pytest.raises(ArchitectureError):
            space.decode(genes)


@pytest.mark.parametrize(
    "parts",
    [
        ((), ((1,),), ((1,),), ()),
        ((1,), ((1,), (1,)), ((1,),), (1,)),
        ((2, 1), ((1,), (1,)), ((1,), (1,)), (1,)),
        ((1,), ((2, 1), (1,)), ((1,), (1,)), (1,)),
        ((1,), ((1,), (1,)), ((1,), (0,)), (1,)),
        ((3,), ((1,), (1,)), ((1,), (1,)), ()),
        ((1,), ((1,), (1,)), ((1,), (1,)), ()),
        ((1,), ((1,), (1,)), ((1,), (1,)), (0, 0)),
        ((1,), ((1,), (1,)), ((1,), (1,)), (2,)),
    ],
)
def test_a_space_that_contradicts_itself_is_refused(parts: tuple) -> None:
    with pytest.raises(SpaceError):
        SearchSpace(*parts)


@pytest.mark.parametrize("data", [{}, {"depths": 1}, {"depths": [1], "heads": [["x"]], "ffn": [[1]], "drop_order": []}])
def test_a_damaged_description_is_refused(data: dict) -> None:
    with pytest.raises(SpaceError):
        SearchSpace.from_dict(data)


def test_the_published_space_of_bert_base() -> None:
    space = preset("bert-base").scaled(12, 12, 3072)
    assert space.size == sum(math.prod([4 * 3] * depth) for depth in range(6, 13))
    assert space.largest == Architecture.uniform(12, 12, 3072)
    assert space.smallest == Architecture.uniform(6, 6, 1024)
    assert set(FAMILY_PRESETS.values()) <= set(PRESETS)


@given(st.sampled_from(sorted(PRESETS)), st.integers(1, 48), st.integers(1, 32), st.integers(1, 512))
def test_a_preset_scales_to_any_model(name: str, layers: int, heads: int, ffn: int) -> None:
    assert preset(name).scaled(layers, heads, ffn).largest == Architecture.uniform(layers, heads, ffn)


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="bert-base"):
        preset("bert-bse")


def test_nothing_depends_on_the_hash_seed() -> None:
    code = (
        "import random; from instatune_deploy.values.space import preset; s = preset('bert-base').scaled(12, 12, 3072);"
        "a = s.sample(20, seed=3); print(a, s.mutate(a[0], random.Random(1), probability=0.2))"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(runs) == 1
