"""`instatune-deploy report`, and its pages in a real browser."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from instatune_deploy.reporting.fronts import best_within
from instatune_deploy.reporting.record import read_run
from instatune_deploy.workspace import write_json
from tests.helpers import call_main
from tests.recorded import write_recorded_run

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: apt-get install chromium")


@pytest.fixture(scope="module")
def run(copy_project: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    return copy_project(tmp_path_factory.mktemp("finished") / "project")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A larger run, as far as it is committed."""
    return write_recorded_run(tmp_path_factory.mktemp("recorded") / "runs" / "minilm-sst2")


@pytest.fixture(scope="module")
def pages(run: Path, recorded: Path) -> dict[str, Path]:
    """The reports of both runs, and of both side by side."""
    written = {"tiny": run / "report.html", "recorded": recorded / "report.html", "both": recorded.parent / "both.html"}
    command = [sys.executable, "-m", "instatune_deploy", "report"]
    subprocess.run([*command, "runs/tiny"], cwd=run.parents[1], check=True, capture_output=True)
    subprocess.run([*command, "minilm-sst2"], cwd=recorded.parents[1], check=True, capture_output=True)
    both = ["--compare", str(recorded), str(run), "--output", str(written["both"])]
    subprocess.run([*command, *both], check=True, capture_output=True)
    return written


Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    return lambda *arguments: call_main(monkeypatch, capsys, *arguments)


# -- the command ------------------------------------------------------------------------------------------------------


def test_a_finished_run_lacks_nothing(run: Path, call: Call, tmp_path: Path) -> None:
    code, out, _ = call("report", run, "--output", tmp_path / "page.html", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["missing"] == {str(run): []}
    assert found["size_bytes"] == (tmp_path / "page.html").stat().st_size
    # Beside plotly.js, which is all but a hundredth of it.
    assert found["size_bytes"] < 6e6


def test_a_run_that_is_not_finished_is_reported_with_what_it_lacks(run: Path, call: Call, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    (begun / ".stages").mkdir(parents=True)
    shutil.copy(run / "recipe.yaml", begun)
    code, out, _ = call("report", begun)
    assert code == 0
    assert "not in it: the super-network is not trained yet" in out
    assert "not in it: nothing was selected for 90% on cpu-test yet" in out
    assert (begun / "report.html").is_file()


def test_what_a_report_cannot_be_made_of_is_refused(
    run: Path, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.html").write_text("<html>mine</html>")
    (tmp_path / "other").mkdir()
    bare = tmp_path / "bare"
    (bare / ".stages").mkdir(parents=True)
    for arguments, message in (
        (("nowhere",), "error: there is no run nowhere"),
        (("other",), "error: other is not a run directory: `instatune-deploy run` makes those"),
        (("bare",), "error: bare/recipe.yaml: no such file; `instatune-deploy init MODEL DATA` drafts a recipe"),
        ((run, "--output", "mine.html"), "error: mine.html exists already and is no report: name another file"),
        ((run, "--output", "other"), "error: other exists already and is no report: name another file"),
        ((run, run), "error: one run directory, please, found 2; --compare shows two side by side"),
        (("--compare", run), "error: --compare takes two run directories, found 1"),
    ):
        code, out, last = call("report", *arguments)
        assert (code, out, last) == (2, "", message)
    assert (tmp_path / "mine.html").read_text() == "<html>mine</html>"
    assert sorted(path.name for path in tmp_path.rglob("*.html")) == ["mine.html"]
    monkeypatch.setitem(sys.modules, "plotly", None)
    assert call("report", run)[2] == "error: plotly is not installed: pip install 'instatune-deploy[report]'"


def test_a_report_is_replaced_by_a_newer_one(run: Path, call: Call, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    for _ in range(2):
        assert call("report", run, "--output", page)[0] == 0
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_a_report_imports_no_framework(recorded: Path, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from instatune_deploy.faces.cli import main\n"
        f"sys.argv = ['instatune-deploy', 'report', {str(recorded)!r}, '--output', 'page.html']\n"
        "main()\n"
        "heavy = {'torch', 'transformers', 'datasets', 'onnxruntime', 'openvino', 'pymoo', 'lightgbm', 'sklearn'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


# -- the page ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


Open = Callable[..., "Page"]


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    """Opens a file; at the end, that it said nothing to the console and asked nothing of any network."""
    said: list[str] = []
    contexts = []

    def visit(path: Path, **options: Any) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **options})
        contexts.append(context)
        context.set_default_timeout(120_000)  # the machine may be busy
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: said.append(dialog.message))
        page.on("request", lambda r: said.append(r.url) if not r.url.startswith(("file:", "data:", "blob:")) else None)
        page.goto(path.as_uri())
        page.wait_for_function("document.querySelectorAll('.figure .main-svg').length > 0")
        return page

    yield visit
    for context in contexts:
        context.close()
    assert said == []


#: How long a hand holds a button: a chart takes a mark for the one clicked where the pointer has been on it for 50 ms.
PRESS_MS = 100


def budget(page: Page, step: int) -> float:
    """Move the slider to a step; the budget it then says, in its unit."""
    page.locator("#budget").evaluate(
        "(slider, step) => { slider.value = step; slider.dispatchEvent(new Event('input')); }", step
    )
    return float(page.locator("#budget-value").inner_text().split()[0])


@needs_browser
@pytest.mark.parametrize(("name", "theme"), [("tiny", "light"), ("recorded", "dark"), ("both", "light")])
def test_every_figure_is_drawn_and_nothing_is_wider_than_a_phone(
    open_page: Open, pages: dict[str, Path], name: str, theme: str
) -> None:
    page = open_page(pages[name], viewport={"width": 360, "height": 780}, color_scheme=theme, has_touch=True)
    page.evaluate("document.querySelectorAll('details').forEach((box) => { box.open = true; })")
    drawn = page.evaluate(
        "[...document.querySelectorAll('.figure')].map((f) => f.querySelectorAll('.main-svg').length > 0)"
    )
    assert len(drawn) >= 3
    assert all(drawn)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    ground, ink = page.evaluate("((s) => [s.backgroundColor, s.color])(getComputedStyle(document.body))")
    assert (ground, ink) == (("rgb(255, 255, 255)", "rgb(26, 29, 33)"), ("rgb(20, 23, 26)", "rgb(232, 235, 238)"))[
        theme == "dark"
    ]


@needs_browser
def test_the_slider_moves_the_selection_as_select_would(
    open_page: Open, pages: dict[str, Path], recorded: Path
) -> None:
    page = open_page(pages["recorded"])
    (found,) = read_run(recorded).fronts
    assert page.locator("#budget-value").inner_text() == "14.8 ms"  # what the run was asked for
    slider = page.locator("#budget")
    least, most = int(slider.get_attribute("min") or ""), int(slider.get_attribute("max") or "")
    chosen = set()
    for step in [least, *range(least + 1, most, 9), most]:
        ms = budget(page, step)
        best = best_within(found, ms)
        said = page.locator("#selection").inner_text()
        if best is None:
            assert said == f"No candidate is predicted to keep {page.locator('#budget-value').inner_text()}."
            assert not page.locator("#command").is_visible()
            continue
        assert said.startswith(f"{best.architecture} on {best.deployment.name}: predicted p50 ")
        words = shlex.split(page.locator("#command").inner_text())
        assert words[:4] == [
            "instatune-deploy",
            "select",
            "--latency-budget",
            f"{page.locator('#budget-value').inner_text().replace(' ', '')}",
        ]
        assert words[4:] == ["--target", "cpu-avx512", "--percentile", "p50", "--run", "runs/minilm-sst2"]
        chosen.add(best.architecture)
    assert len(chosen) >= 8
    assert best is not None
    assert page.locator("#candidates tr.selected td").first.text_content() == str(best.architecture)


@needs_browser
def test_the_command_on_the_page_exports_the_network_on_the_page(
    open_page: Open, pages: dict[str, Path], run: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = open_page(pages["tiny"])
    page.locator("#scale-choice").select_option(label="multiply-accumulates")  # they are exact: no try can miss
    least, most = (int(page.locator("#budget").get_attribute(name) or "") for name in ("min", "max"))
    budget(page, (least + most) // 2)
    shown = page.locator("#pins thead th, #pins tbody tr:first-child td").all_text_contents()
    command = shlex.split(page.locator("#command").inner_text())
    monkeypatch.chdir(run.parents[1])
    code, out, last = call(*command[1:], "--json")
    assert code == 0, last
    selection = json.loads(out)
    assert selection["architecture"] in shown
    assert (
        page.locator("#selection")
        .inner_text()
        .startswith(f"{selection['architecture']} on {selection['deployment']}: ")
    )


@needs_browser
def test_a_click_pins_a_network_beside_the_full_one(open_page: Open, pages: dict[str, Path]) -> None:
    page = open_page(pages["recorded"])
    points = page.locator("#front-plot .scatterlayer .trace").first.locator(".points path")

    def headers() -> list[str]:
        return [text.replace(" Remove", "") for text in page.locator("#pins thead th").all_text_contents()]

    assert headers() == ["full network", "within the budget"]
    points.nth(2).hover(force=True)
    label = page.locator("#front-plot .hoverlayer").text_content() or ""
    for part in ("3L[8-512 8-512 6-512]", "ov-fp32-1t", "accuracy 84.52%", "predicted p50: 7.463 ms", "0.3126 G"):
        assert part in label
    place = points.nth(3).bounding_box()
    points.nth(2).click(force=True, delay=PRESS_MS)
    assert headers() == ["full network", "within the budget", "pin 1"]
    column = [row.locator("td").nth(2).text_content() for row in page.locator("#pins tbody tr").all()]
    assert column[:3] == ["3L[8-512 8-512 6-512]", "ov-fp32-1t", "7.463 ms"]
    assert page.locator("#pins tbody tr").last.locator("td").nth(2).locator("svg").count() == 1
    budget(page, int(page.locator("#budget").get_attribute("max") or ""))  # a pin stays where the selection moves
    assert headers() == ["full network", "within the budget", "pin 1"]
    page.wait_for_timeout(700)  # two at once count as one, which a tap on a screen is
    points.nth(2).click(force=True, delay=PRESS_MS)
    assert headers() == ["full network", "within the budget"]
    for number in range(4):
        points.nth(number).click(force=True, delay=PRESS_MS)
    assert headers() == ["full network", "within the budget", "pin 1", "pin 2", "pin 3"]
    assert page.locator("#pins tbody tr").first.locator("td").last.text_content() == "4L[6-512 6-512 6-512 6-512]"
    assert points.nth(3).bounding_box() == place  # none moved under the pointer


@needs_browser
def test_a_tap_pins_a_network_once(open_page: Open, pages: dict[str, Path]) -> None:
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
    page = open_page(pages["recorded"], **phone)
    page.locator("#front-plot .scatterlayer .trace").first.locator(".points path").nth(2).tap(force=True)
    page.wait_for_function("document.querySelectorAll('#pins thead th').length > 2")
    page.wait_for_timeout(300)  # the click that follows a touch
    assert page.locator("#pins thead th").count() == 3


@needs_browser
def test_everything_can_be_done_by_keyboard(open_page: Open, pages: dict[str, Path]) -> None:
    page = open_page(pages["recorded"])

    def tab_to(selector: str) -> None:
        for _ in range(80):
            if page.evaluate("(selector) => document.activeElement.matches(selector)", selector):
                assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
                return
            page.keyboard.press("Tab")
        raise AssertionError(f"no way to {selector}")

    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    tab_to("#budget")
    before = page.locator("#selection").inner_text()
    page.keyboard.press("ArrowRight")
    assert page.locator("#budget-value").inner_text() == "15.0 ms"
    assert page.locator("#budget").get_attribute("aria-valuetext") == "15.0 ms"
    page.keyboard.press("Home")
    assert "No candidate" in page.locator("#selection").inner_text()
    page.keyboard.press("End")
    assert page.locator("#selection").inner_text() != before
    tab_to("#pin-selection")
    page.keyboard.press("Enter")
    assert page.locator("#pins thead th").count() == 3
    page.keyboard.press("Shift+Tab")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Remove pin 1"
    page.keyboard.press("Enter")
    assert page.locator("#pins thead th").count() == 2
    tab_to("#candidates-box summary")
    page.keyboard.press("Enter")
    tab_to("#candidates button")
    page.keyboard.press("Space")
    assert (
        page.evaluate("document.activeElement.getAttribute('aria-label')")
        == "Unpin 3L[6-512 6-512 6-512] on ov-fp32-1t"
    )
    assert page.locator("#pins thead th").count() == 3


@needs_browser
def test_figures_follow_the_theme_while_the_page_is_open(open_page: Open, pages: dict[str, Path]) -> None:
    page = open_page(pages["recorded"], color_scheme="light")
    tick = page.locator("#front-plot .xtick text").first
    light = tick.evaluate("(text) => getComputedStyle(text).fill")
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(
        "(light) => getComputedStyle(document.querySelector('#front-plot .xtick text')).fill !== light", arg=light
    )
    assert (light, page.locator("#front-plot .xtick text").first.evaluate("(text) => getComputedStyle(text).fill")) == (
        "rgb(26, 29, 33)", "rgb(232, 235, 238)",
    )  # fmt: skip


@needs_browser
def test_what_a_run_says_is_text_and_never_markup(open_page: Open, recorded: Path, call: Call, tmp_path: Path) -> None:
    spoilt = tmp_path / "a <img src=x onerror=alert(1)> run"
    shutil.copytree(recorded, spoilt)
    evil = "</script><script>alert(2)</script><img src=x onerror=alert(3)>"
    recipe = (spoilt / "recipe.yaml").read_text()
    (spoilt / "recipe.yaml").write_text(recipe.replace("name: minilm-sst2", f"name: {json.dumps(evil)}"))
    selection = json.loads((spoilt / "selections" / "cpu-avx512-p50-50pct.json").read_text())
    write_json(spoilt / "selections" / "cpu-avx512-p50-50pct.json", {**selection, "budget": evil, "target": evil})
    front = json.loads((spoilt / "fronts" / "cpu-avx512-p50.json").read_text())
    front["front"][0]["predicted"]["metric_source"] = evil
    write_json(spoilt / "fronts" / "cpu-avx512-p50.json", {**front, "target": evil})
    (spoilt / "evaluations.jsonl").write_text(evil)
    assert call("report", spoilt, "--output", tmp_path / "page.html")[0] == 0
    page = open_page(tmp_path / "page.html")
    assert page.locator("h1").text_content() == evil
    assert page.locator("img").count() == 0
    page.locator("#front-plot .scatterlayer .trace").first.locator(".points path").first.hover(force=True)
    assert evil in (page.locator("#front-plot .hoverlayer").text_content() or "")
    assert shlex.join(["--target", evil]) in page.locator("#command").inner_text()


@needs_browser
def test_two_runs_stand_side_by_side(open_page: Open, recorded: Path, call: Call, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(recorded, other)
    recipe = other / "recipe.yaml"
    recipe.write_text(
        recipe.read_text().replace("name: minilm-sst2", "name: other").replace("alpha: 0.3", "alpha: 0.5")
    )
    front = json.loads((other / "fronts" / "cpu-avx512-p50.json").read_text())
    write_json(other / "fronts" / "cpu-avx512-p50.json", {**front, "front": front["front"][5:]})
    assert call("report", "--compare", recorded, other, "--output", tmp_path / "both.html")[0] == 0
    page = open_page(tmp_path / "both.html")
    assert page.locator("h1").text_content() == "minilm-sst2 and other"
    assert page.locator("#recipes tbody tr").all_inner_texts() == ["finetune.alpha\t0.3\t0.5"]
    assert page.locator("#fronts .scatterlayer .trace").count() == 2
    first = page.locator("#fronts tbody tr").first.inner_text()
    assert "3L[6-512 6-512 6-512]" in first  # the other run has nothing so fast
    assert "none" in first
