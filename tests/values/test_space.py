"""Laws of architectures and their spaces."""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instatune_deploy.errors import ArchitectureError, SpaceError, UnknownNameError
from instatune_deploy.values.presets import FAMILY_PRESETS, PRESETS, preset
from instatune_deploy.values.space import Architecture, SearchSpace

counts = st.integers(1, 4096)


@st.composite
def architectures(draw: st.DrawFn) -> Architecture:
    """Of one stage or several, with one count a layer or several."""
    depths = draw(st.lists(st.integers(1, 12), min_size=1, max_size=4))
    choice = st.tuples(*[counts] * draw(st.integers(1, 3)))
    return Architecture(tuple(draw(choice) for _ in range(sum(depths))), tuple(depths))


@st.composite
def spaces(draw: st.DrawFn, max_layers: int = 5) -> SearchSpace:
    """Spaces of one stage or two, whose layers have one count or two, differ in choices and go in any order; of a stage
    some layers may have to stay."""
    stages = draw(st.sampled_from([(n,) for n in range(1, max_layers + 1)] + [(1, 2), (2, 1), (2, max_layers - 2)]))
    dimensions = draw(st.sampled_from([("heads", "ffn"), ("filters",)]))
    depths = [draw(st.sets(st.integers(1, layers), min_size=1).map(sorted)) for layers in stages]
    choices = st.sets(st.integers(1, 64), min_size=1, max_size=3).map(lambda found: tuple(sorted(found)))
    widths = tuple(tuple(draw(choices) for _ in range(sum(stages))) for _ in dimensions)
    order: list[int] = []
    for number, (layers, known) in enumerate(zip(stages, depths, strict=True)):
        drops = draw(st.permutations(range(layers)))[: draw(st.integers(layers - known[0], layers))]
        order += [sum(stages[:number]) + layer for layer in drops]
    return SearchSpace(tuple(map(tuple, depths)), widths, tuple(draw(st.permutations(order))), stages, dimensions)


seeds = st.integers(0, 2**32)


@given(architectures())
def test_what_prints_parses_back(architecture: Architecture) -> None:
    assert Architecture.parse(str(architecture)) == architecture
    assert hash(Architecture.parse(str(architecture))) == hash(architecture)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2L[12-1536]",
        "1L[]",
        "2L[1 |]",
        "2L[1 2-3]",
        "2L[1 || 1]",
        "1L[0-16]",
        "1L[12:16]",
        "L[1-1]",
        "1L[12-16] x",
        "-1L[1-1]",
    ],
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
    assert all(d in pair for d, *pair in zip(child.depths, first.depths, second.depths, strict=True))


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
    for depths in itertools.product(*space.depths):
        kept = space.kept_layers(depths)
        for layers, depth in zip(space.stage_layers, depths, strict=True):
            drops = [layer for layer in space.drop_order if layer in layers]
            assert set(kept) & set(layers) == set(layers) - set(drops[: len(layers) - depth])
            assert len(set(kept) & set(layers)) == depth


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


@given(spaces(), seeds)
def test_what_tables_are_measured_with_holds_every_choice_of_a_stage_at_any_depth(
    space: SearchSpace, seed: int
) -> None:
    probing, rng = space.probing, random.Random(seed)
    assert probing.stages == space.stages
    assert all(known == tuple(range(1, n + 1)) for known, n in zip(probing.depths, space.stages, strict=True))
    for layers, kind in itertools.product(space.stage_layers, range(len(space.dimensions))):
        assert {probing.widths[kind][i] for i in layers} == {
            tuple(sorted({count for i in layers for count in space.widths[kind][i]}))
        }
    assert probing.sample_one(rng) in probing


@given(spaces())
def test_uniform_architectures_are_alike_in_a_stage_and_hold_the_extremes_of_equal_layers(space: SearchSpace) -> None:
    found = list(space.probing.uniform())
    assert len(found) == len(set(found)) or len(space.stages) > 1
    assert all(len(set(stage)) == 1 for architecture in found for stage in architecture.stages)
    assert {space.probing.smallest, space.probing.largest} <= set(found)


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
        SearchSpace.stack(*parts)


@pytest.mark.parametrize(
    "data",
    [
        {}, {"depths": 1}, {"depths": [1], "heads": [["x"]], "ffn": [[1]], "drop_order": []},
        {"depths": [float("inf")], "heads": [[1]], "ffn": [[1]], "drop_order": []},
    ],
)  # fmt: skip
def test_a_damaged_description_is_refused(data: dict) -> None:
    with pytest.raises(SpaceError):
        SearchSpace.from_dict(data)


def test_the_published_space_of_bert_base() -> None:
    space = preset("bert-base").fitted(Architecture.uniform(12, 12, 3072))
    assert space.size == sum(math.prod([4 * 3] * depth) for depth in range(6, 13))
    assert space.largest == Architecture.uniform(12, 12, 3072)
    assert space.smallest == Architecture.uniform(6, 6, 1024)
    assert set(FAMILY_PRESETS.values()) <= set(PRESETS)


@given(
    st.sampled_from(sorted(PRESETS)), st.lists(st.integers(1, 12), min_size=1, max_size=4), st.integers(1, 32),
    st.integers(1, 512),
)  # fmt: skip
def test_a_preset_fits_any_model_of_its_kind_and_no_other(name: str, depths: list[int], heads: int, ffn: int) -> None:
    transformer = Architecture.uniform(sum(depths), heads, ffn)
    filters = tuple((ffn + stage,) for stage, depth in enumerate(depths) for _ in range(depth))
    convolutional = Architecture(filters, tuple(depths))
    fitting, other = (convolutional, transformer) if name == "resnet" else (transformer, convolutional)
    space = preset(name).fitted(fitting)
    assert space.largest == fitting
    with pytest.raises(SpaceError, match="this model has not"):
        preset(name).fitted(other)


def test_the_first_layer_of_a_stage_stays_in_a_convolutional_network() -> None:
    full = Architecture(((64,),) * 3 + ((128,),) * 4 + ((256,),), (3, 4, 1))
    space = preset("resnet").fitted(full)
    assert space.depths == ((2, 3), (2, 3, 4), (1,))
    assert not {0, 3, 7} & set(space.drop_order)
    assert space.smallest == Architecture.parse("5L[16 16 | 32 32 | 64]")
    assert space.widths[0][0] == (16, 32, 48, 64)


def test_spaces_written_before_there_were_stages_read_the_same() -> None:
    written = {"depths": [1, 2], "heads": [[2, 4], [4]], "ffn": [[16], [16, 64]], "drop_order": [1, 0]}
    space = SearchSpace.from_dict(written)
    assert space == SearchSpace.stack((1, 2), ((2, 4), (4,)), ((16,), (16, 64)), (1, 0))
    assert json.loads(json.dumps(space.to_dict())) == written


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="bert-base"):
        preset("bert-bse")


def test_nothing_depends_on_the_hash_seed() -> None:
    code = (
        "import random; from instatune_deploy.values.presets import preset; from instatune_deploy.values.space import Architecture; s = preset('bert-base').fitted(Architecture.uniform(12, 12, 3072));"
        "a = s.sample(20, seed=3); print(a, s.mutate(a[0], random.Random(1), probability=0.2))"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(runs) == 1
