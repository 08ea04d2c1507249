"""`space: auto` from a recipe to a search: proposed, written down, used, read again; for every family."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
import yaml

from instatune_deploy.device.fingerprint import detect, runtime_versions
from instatune_deploy.elastic.importance import first_order_importance, layer_drops
from instatune_deploy.elastic.subnetwork import full_architecture
from instatune_deploy.elastic.supernet import Supernet
from instatune_deploy.errors import RecipeError, SpaceError, UsageError
from instatune_deploy.job import Job
from instatune_deploy.planning.steps import plan_steps
from instatune_deploy.stages import propose as stage
from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.latency import LatencyTable
from instatune_deploy.values.proposal import Scores, probing_space, propose
from instatune_deploy.values.recipe import Recipe, SpaceSection, read_recipe
from instatune_deploy.values.space import Architecture
from instatune_deploy.workspace import Workspace
from tests.helpers import FAMILIES, TARGET, make_family, write_project

GRID = probing_space(Architecture.uniform(3, 4, 64))
MakeTable = Callable[..., LatencyTable]


@dataclass
class Auto:
    """A project whose recipe says `space: auto`, with latency tables in which 48 neurons cost what 64 do."""

    directory: Path
    recipe: Recipe
    lines: list[str] = field(default_factory=list)

    def job(self, recipe: Recipe | None = None) -> Job:
        """A job of a process of its own: nothing is remembered but what is on disk."""
        self.lines.clear()
        return Job(recipe or self.recipe, Workspace(self.directory / "run"), self.lines.append)

    def said(self, text: str) -> bool:
        return any(text in line for line in self.lines)


@pytest.fixture(scope="module")
def auto(tmp_path_factory: pytest.TempPathFactory, make_table: MakeTable) -> Iterator[Auto]:
    directory = tmp_path_factory.mktemp("auto")
    path = write_project(directory)
    changes = {
        "space": "auto",
        "search": {"warm_start": 10, "rounds": 1, "batch": 2, "population": 8, "generations": 2},
        "profile": {"heldout": 2, "seconds": 0.2, "wait_seconds": 0},
    }
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}))
    target = directory / "targets" / "cpu-test.yaml"
    fp32 = [way for way in TARGET["deployments"] if "precision" not in way]
    target.write_text(yaml.safe_dump({**TARGET, "deployments": fp32}))
    for runtime in ("onnxruntime", "openvino"):
        table = replace(
            make_table(GRID, Deployment(runtime)),  # type: ignore[arg-type]
            signature="bert-h32-d8-3x4x64-t16", machine=detect(), versions=runtime_versions(),
            ffn_ms={16: 0.1, 32: 0.4, 48: 1.0, 64: 1.0},
        )  # fmt: skip
        place = directory / "latency_tables" / table.file_name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(table.to_json())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        yield Auto(directory, read_recipe(path))


@pytest.fixture(scope="module")
def proposed(auto: Auto) -> SpaceSection:
    """What a fresh run proposes; its super-network is trained."""
    job = auto.job()
    assert {path.name for path in auto.directory.glob("run/*")} == set()
    supernet = job.supernet
    section = read_recipe(auto.directory / "run" / "space.yaml").space
    assert isinstance(section, SpaceSection)
    assert (list(map(list, supernet.space.heads)), list(map(list, supernet.space.ffn))) == (section.heads, section.ffn)
    assert list(supernet.space.depths) == section.depths
    assert supernet.space.largest == supernet.full
    # The search takes the same tables: nothing is measured.
    front = job.search([job.target("cpu-test")])["cpu-test"]
    assert all(candidate.architecture in supernet.space for candidate in front.candidates)
    assert not auto.said("profiling")
    assert auto.said("layer 2: ")
    return section


def test_a_run_proposes_a_space_says_why_and_uses_it(auto: Auto, proposed: SpaceSection) -> None:
    text = (auto.directory / "run" / "space.yaml").read_text()
    assert "48 left out: as slow as 64" in " ".join(text.replace("#", "").split())
    assert "on cpu-test (ort-fp32-1t, ov-fp32-1t)" in " ".join(text.replace("#", "").split())
    assert all(isinstance(layer, list) and layer[-1] == 64 and 48 not in layer for layer in proposed.ffn)


def test_a_later_process_reads_what_was_proposed(auto: Auto, proposed: SpaceSection) -> None:
    before = (auto.directory / "run" / "space.yaml").read_bytes()
    job = auto.job()
    assert list(map(list, job.supernet.space.heads)) == proposed.heads
    assert auto.said("space: reused")
    assert auto.said("super-network: reused")
    assert not auto.said("importance of")
    assert (auto.directory / "run" / "space.yaml").read_bytes() == before


def test_what_was_proposed_is_a_recipe_that_gives_the_same_run(auto: Auto, proposed: SpaceSection) -> None:
    recipe = read_recipe(auto.directory / "run" / "space.yaml")
    assert recipe.model_copy(update={"space": "auto"}) == auto.recipe
    assert auto.job(recipe).supernet.space.heads == tuple(map(tuple, proposed.heads))  # type: ignore[arg-type]
    assert auto.said("super-network: reused")


def test_what_is_edited_is_what_is_used(auto: Auto, proposed: SpaceSection) -> None:
    path = auto.directory / "run" / "space.yaml"
    before = path.read_text()
    recipe = yaml.safe_load(before)
    for space, heads in (
        ({**recipe["space"], "heads": [2, 4]}, (2, 4)),
        ({**recipe["space"], "heads": [[4]] * 3}, (4,)),
    ):
        path.write_text(yaml.safe_dump({**recipe, "space": space}))
        assert auto.job().space.heads == (heads,) * 3
    path.write_text(yaml.safe_dump({**recipe, "space": {**recipe["space"], "heads": [[4]] * 2}}))
    with pytest.raises(SpaceError, match="heads are given for 2 layers, but the model has 3"):
        auto.job().space  # noqa: B018
    path.write_text(yaml.safe_dump({**recipe, "space": "paper"}))
    with pytest.raises(RecipeError, match=r"space\.yaml: space: is 'paper', expected depths, heads and ffn"):
        auto.job().space  # noqa: B018
    path.write_text(before)


def test_a_plan_says_what_is_proposed_from_and_writes_nothing(auto: Auto, tmp_path: Path) -> None:
    steps = plan_steps(Job(auto.recipe, Workspace(tmp_path / "none"), auto.lines.append))
    assert [step.what for step in steps if step.kind == "space"] == [
        "propose a space from 4 head counts and 4 MLP widths"
    ]
    network = next(step for step in steps if step.kind == "super-network")
    assert str(network) == "super-network: to do, its space is yet to be proposed"
    assert not (tmp_path / "none").exists()


def test_a_model_that_has_learnt_nothing_is_refused(auto: Auto, proposed: SpaceSection) -> None:
    job = auto.job()
    teacher = type(job.supernet.model).from_pretrained(auto.directory / "run" / "teacher")
    arguments = (auto.recipe.finetune, teacher, job.data.train, job.processor, auto.lines.append)
    assert set(stage.score(*arguments).losses) == {1, 2, 3}
    with torch.no_grad():  # every answer is wrong
        teacher.classifier.weight.copy_(10 * teacher.classifier.weight.flip(0))
        teacher.classifier.bias.copy_(teacher.classifier.bias.flip(0))
    with pytest.raises(UsageError, match=r"not fine-tuned for this task; finetune\.teacher says how"):
        stage.score(*arguments)


def test_tables_that_tell_nothing_apart_are_refused(auto: Auto, proposed: SpaceSection, tmp_path: Path) -> None:
    job = auto.job()
    noisy = [
        replace(table, error=replace(table.error, noise_floor_pct=40.0)) for table in job.tables(job.target("cpu-test"))
    ]
    model = type(job.supernet.model).from_pretrained(auto.directory / "run" / "teacher")
    with pytest.raises(UsageError, match=r"found \d networks worth choosing from: .* whose noise is 40\.0% at least"):
        stage.propose_space(
            auto.recipe, lambda: model, lambda _: noisy, job.data.train, job.processor, Workspace(tmp_path), key="same",
            report=auto.lines.append,
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_of_several_processes_one_proposes_and_the_others_wait(
    auto: Auto, proposed: SpaceSection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, other = auto.job(), Workspace(tmp_path)
    naps = []

    def propose_as(rank: str) -> SpaceSection:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RANK", rank)
            model = type(job.supernet.model).from_pretrained(auto.directory / "run" / "teacher")
            return stage.propose_space(
                auto.recipe, lambda: model, lambda _: job.tables(job.target("cpu-test")), job.data.train, job.processor,
                other, key="same", report=lambda line: None,
            )  # fmt: skip

    def nap(seconds: float) -> None:
        naps.append(seconds)
        propose_as("0")

    monkeypatch.setattr(stage.time, "sleep", nap)
    assert propose_as("1") == proposed
    assert len(naps) == 1


def test_two_targets_are_measured_in_one_process(auto: Auto, proposed: SpaceSection) -> None:
    for name in ("cpu-one", "cpu-two"):
        target = {**TARGET, "name": name, "deployments": [{"runtime": "onnxruntime"}]}
        (auto.directory / "targets" / f"{name}.yaml").write_text(yaml.safe_dump(target))
    job = auto.job()
    for name in ("cpu-one", "cpu-two"):
        (table,) = job.tables(job.target(name))
        assert table.missing(job.supernet.space) == []
        assert auto.said(f"profiling {name}/ort-fp32-1t")


@pytest.mark.parametrize("name", list(FAMILIES))
def test_every_family_has_a_space_proposed(name: str, make_table: MakeTable) -> None:
    family = make_family(name)
    full = full_architecture(family.model.config)
    grid = probing_space(full)
    network = Supernet(family.model, grid)
    labelled = {**family.inputs, "labels": torch.tensor([0, 1, 2])}
    importance = first_order_importance(network, [labelled])
    scores = Scores(
        tuple(tuple(layer.tolist()) for layer in importance.heads),
        tuple(tuple(layer.tolist()) for layer in importance.ffn),
        layer_drops(network, [labelled]).losses,
    )
    space = propose(full, scores, [make_table(grid)]).space
    assert space.largest == full
    with torch.inference_mode():
        outputs = Supernet(family.model, space).eval()(family.inputs, [space.smallest, space.largest])
    assert all(torch.isfinite(output.logits).all() for output in outputs)
