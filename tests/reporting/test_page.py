"""Pages of recorded, unfinished and damaged runs."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from instatune_deploy.errors import UsageError
from instatune_deploy.reporting import page as page_module
from instatune_deploy.reporting.comparison import recipe_differences, run_names
from instatune_deploy.reporting.figures import COLOURS, error_figure, fronts_figure, hypervolume_figure, training_figure
from instatune_deploy.reporting.fronts import best_within, front_view
from instatune_deploy.reporting.page import run_page
from instatune_deploy.reporting.record import FoundHistory, read_run
from instatune_deploy.reporting.units import Scale, shown
from instatune_deploy.values.history import TrainingHistory, TrainingPoint
from instatune_deploy.workspace import Workspace, write_json, write_text
from tests.recorded import write_recorded_run

#: Okabe and Ito (2008).
OKABE_ITO = {"#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recorded_run(tmp_path_factory.mktemp("recorded") / "minilm-sst2")


@pytest.fixture
def own(recorded: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    shutil.copytree(recorded, tmp_path / "own")
    return tmp_path / "own"


def data_of(page: str) -> Any:
    """What a page's scripts read."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_a_record_holds_what_the_run_left(recorded: Path) -> None:
    record = read_run(recorded)
    assert record.faults == ()
    assert len(record.tables) == 5
    (found,) = record.fronts
    assert (found.target, found.percentile, found.selectable, len(found.front.candidates)) == (
        "cpu-avx512",
        "p50",
        True,
        17,
    )
    assert [r.evaluated for r in found.rounds] == [40, 55, 70, 85, 100]
    assert str(record.full_architecture()) == "6L[12-1536 12-1536 12-1536 12-1536 12-1536 12-1536]"
    assert [s.architecture for s in record.selections] == ["5L[6-512 6-1024 12-1024 6-512 8-512]"]


def test_what_is_missing_is_said(own: Path) -> None:
    assert read_run(own).missing() == [
        "training curves: the release that made this run kept no log of its training",
        "no sub-network was evaluated yet",
        "the full network was not measured on cpu-avx512 yet",
    ]
    for name in ("supernet", "fronts", "selections", "tables"):
        shutil.rmtree(own / name)
    assert read_run(own).missing() == [
        "the super-network is not trained yet",
        "no sub-network was evaluated yet",
        "the front of cpu-avx512 was not searched yet",
        "the full network was not measured on cpu-avx512 yet",
        "nothing was selected for 50% on cpu-avx512 yet",
    ]
    page = run_page(read_run(own))
    assert "the super-network is not trained yet" in page
    assert data_of(page)["fronts"] == []
    assert f"instatune-deploy run {own}/recipe.yaml --out {own}" in page


def test_a_front_whose_table_lies_elsewhere_says_so(own: Path) -> None:
    shutil.rmtree(own / "tables")
    record = read_run(own)
    assert "latency table cpu-avx512/ov-fp32-1t: not in the run's directory, it was found elsewhere" in record.missing()
    view = front_view(record, record.fronts[0])
    assert view["full"]["latency"] is None
    run_page(record)


@pytest.mark.parametrize(
    "name",
    [
        "supernet/search_space.json", "fronts/cpu-avx512-p50.json", "selections/cpu-avx512-p50-50pct.json",
        "tables/cpu-avx512/bert-h384-d32-6x12x1536-t128/ov-fp32-1t.json", "evaluations.jsonl", "predictor/predictor.json",
        "training/supernet.json", "artifacts/cpu-avx512/full/instatune.json",
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", "null", '{"front": 3, "points": "x", "schema_version": 1}', "\udcff"]
)
def test_a_damaged_file_is_named_and_the_rest_is_shown(own: Path, name: str, content: str) -> None:
    path = own / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode(errors="surrogateescape"))
    record = read_run(own)
    assert record.faults == () if (name, content) == ("evaluations.jsonl", "") else name in record.faults[0]
    assert all("\n" not in fault and len(fault) < 400 for fault in record.faults)
    record.missing()


def changed(value: Any) -> Iterator[Any]:
    """`value` with one of its parts replaced by what does not belong there, for each of its parts."""
    if isinstance(value, dict):
        for key in value:
            yield {k: v for k, v in value.items() if k != key}
            yield from ({**value, key: other} for other in changed(value[key]))
    elif isinstance(value, list) and value:
        yield []
        yield from ([other, *value[1:]] for other in changed(value[0]))
    else:
        yield from ("<i>", None, -1)


@pytest.mark.parametrize("name", ["fronts/cpu-avx512-p50.json", "selections/cpu-avx512-p50-50pct.json"])
def test_whatever_stands_in_a_file_gives_a_page(own: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "get_plotlyjs", lambda: "")  # it is the same 5 MB in every page
    shutil.rmtree(own / "tables")  # they take most of the time
    original = json.loads((own / name).read_text())
    for spoilt in changed(original):
        (own / name).write_text(json.dumps(spoilt))
        record = read_run(own)
        page = run_page(record)
        assert "<i>" not in page


def test_a_training_under_way_is_shown_by_its_last_checkpoint(own: Path) -> None:
    for step in (5, 10):
        log = [{"step": s, "epoch": s / 5, "loss": 1 / s, "learning_rate": 0.1} for s in range(1, step + 1)]
        state = {"global_step": step, "log_history": log}
        write_json(own / ".checkpoints" / "elastic-abc" / f"checkpoint-{step}" / "trainer_state.json", state)
    (history,) = read_run(own).histories
    assert (history.finished, history.history.trained, len(history.history.points)) == (False, "super-network", 10)
    page = run_page(read_run(own))
    assert "super-network (not finished)" in page
    assert data_of(page)["figures"]["training-0"]["data"][0]["y"][0] == 1


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a run directory"):
        read_run(tmp_path)


def test_a_front_of_other_objectives_is_exported_from_not_selected(own: Path) -> None:
    kept = json.loads((own / "fronts" / "cpu-avx512-p50.json").read_text())
    write_json(own / "fronts" / "cpu-avx512-p50-0123abcd.json", {**kept, "objectives": ["latency", "metric"]})
    record = read_run(own)
    assert [found.selectable for found in record.fronts] == [True, False]
    usual, other = (front_view(record, found) for found in record.fronts)
    assert usual["select"] == ["instatune-deploy select", f"--target cpu-avx512 --percentile p50 --run {own}"]
    assert other["select"] is None
    assert other["candidates"][0]["export"] == (
        "instatune-deploy export --architecture '3L[6-512 6-512 6-512]' --deployment ov-fp32-1t --target cpu-avx512 "
        f"--run {own} --out my-model"
    )


def test_the_best_within_a_budget_is_what_select_tries_first(recorded: Path) -> None:
    (found,) = read_run(recorded).fronts
    best = best_within(found, 14.5)
    assert best is not None
    assert str(best.architecture) == "5L[6-512 6-1024 12-1024 6-512 8-512]"
    assert best_within(found, 6.6) is None


def test_figures_are_such_as_plotly_takes(recorded: Path) -> None:
    graph_objects = pytest.importorskip("plotly.graph_objects")
    record = read_run(recorded)
    history = FoundHistory(TrainingHistory("super-network", 9, (TrainingPoint(1, 0.5, 1.0, None),)), True)
    figures = [
        training_figure([("super-network", history)], rate=True),
        training_figure([("a", history), ("b", history)], rate=False),
        hypervolume_figure([(found.title, found) for found in record.fronts]),
        error_figure(record.tables, record.selections),
        fronts_figure([("a", record, record.fronts[0]), ("b", record, record.fronts[0])]),
    ]
    for figure in figures:
        built = graph_objects.Figure(figure)  # raises at a name or value that plotly does not know
        assert all(len(trace.x) == len(trace.y) > 0 for trace in built.data)
    held_out = {trace["name"]: trace for trace in figures[3]["data"]}["ov-fp32-1t"]
    table = record.table("cpu-avx512", "ov-fp32-1t")
    assert table is not None
    assert sum(map(abs, held_out["y"])) / 40 == pytest.approx(table.error.mape_pct, rel=0.05)


def test_colours_are_okabe_and_itos_and_two_series_never_differ_by_colour_alone(recorded: Path) -> None:
    assert set(COLOURS) <= OKABE_ITO
    record = read_run(recorded)
    traces = error_figure(record.tables, record.selections)["data"]
    looks = [(trace["marker"]["color"], trace["marker"]["symbol"]) for trace in traces]
    assert len({symbol for _, symbol in looks}) == len(looks)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_stands_out_from_its_ground(theme: str) -> None:
    css = (Path(page_module.__file__).parent / "page" / "page.css").read_text()
    themes = css.split("@media (prefers-color-scheme: dark)")
    named = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", themes[theme == "dark"]))

    def luminance(colour: str) -> float:
        shares = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in shares]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(one: str, other: str) -> float:
        high, low = sorted((luminance(named[one]), luminance(named[other])), reverse=True)
        return (high + 0.05) / (low + 0.05)

    # WCAG 2.2: 4.5 for text, 3 for what else must be seen.
    for ink, ground, least in (
        ("ink", "paper", 4.5), ("ink", "card", 4.5), ("soft", "paper", 4.5), ("soft", "card", 4.5), ("accent", "paper", 4.5),
        ("ink", "notice", 4.5), ("heads", "card", 3), ("ffn", "card", 3), ("accent", "card", 3),
    ):  # fmt: skip
        assert contrast(ink, ground) >= least, (ink, ground)


def test_two_recipes_differ_in_what_differs(recorded: Path, own: Path) -> None:
    text = (
        (own / "recipe.yaml").read_text().replace("epochs: 4", "epochs: 5").replace("name: minilm-sst2", "name: other")
    )
    write_text(own / "recipe.yaml", text)
    first, second = read_run(recorded), read_run(own)
    assert recipe_differences(first, second) == [("finetune.epochs", 4.0, 5.0)]
    assert run_names(first, second) == ("minilm-sst2", "other")
    assert run_names(first, first) == (f"{recorded} (A)", f"{recorded} (B)")


def test_scales_are_round_and_numbers_are_short() -> None:
    assert (Scale.of("macs", [3e8, 1.4e9]).unit, Scale.of("macs", [58_000]).unit) == ("G", "K")
    assert Scale.of("size", [500]).unit == "kB"
    assert [shown(v) for v in (None, 0, 14.6214, 0.026054, 1234567, 2.5e-7)] == [
        "-",
        "0",
        "14.6",
        "0.0261",
        "1,234,567",
        "0.0000002",
    ]


def test_finished_stages_are_those_whose_outputs_are_there(recorded: Path) -> None:
    assert {record.stage for record in Workspace(recorded).finished()} == {"finetune", "search-cpu-avx512-p50"}
