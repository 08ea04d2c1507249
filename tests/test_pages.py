"""What README and the pages tell users to type is typed here, in their order, from a model and data to a served artifact."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from datasets import Dataset

from tests.helpers import TARGET, call_main, write_text_data, write_text_model
from tests.walkthrough import QUICK

ROOT = Path(__file__).parents[1]
#: Pages in the order in which somebody reads them: what is made on one is used on the next.
PAGES = [
    "README.md",
    *(f"docs/{name}.md" for name in ("start", "recipes", "search", "report")),
]
#: Whose verbs have tests of their own, and which are not typed here yet; the commands of a cluster need several machines.
UNTYPED = [f"docs/{name}.md" for name in ("targets", "artifacts", "serving", "fleet", "cluster", "security")]
QUICK_DATA = {"search_rows": 100, "sequence_length": 16}
#: Appended to a command that would otherwise measure for minutes.
QUICK_OPTIONS = {
    "profile": ["--seconds", "0.5", "--heldout", "2", "--wait-seconds", "0"],
    "bench": ["--seconds", "1"],
    "doctor": ["--seconds", "0.5"],
}
#: The tiny model reads no more tokens, and its networks are hardly faster than it is.
TINY = {
    "--fixed-length 128": "--fixed-length 16", "p50-50pct": "p50-95pct",
    "--latency-budget 50% --latency-budget 80%": "--latency-budget 95% --latency-budget 300%",
}  # fmt: skip
TINY_TARGETS = {"cpu-avx512": ["8ms", "95%"]}
NEEDS_MORE_THAN_A_TINY_MODEL = (
    "select",
    "search",
)  # whose networks lose too much, or are no faster: nothing may fit a budget
STARTED_WITHIN_S = 60
READY = "http://localhost:8080/v2/health/ready"


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)


def commands(page: str) -> list[str]:
    """Lines of a page that are to be typed, without their comments."""
    lines = [line for block in blocks(page, "console") for line in block.splitlines()]
    found = [shlex.join(shlex.split(line.partition("$ ")[2], comments=True)) for line in lines]
    for written, tiny in TINY.items():
        found = [command.replace(written, tiny) for command in found]
    return found


def test_every_page_with_commands_is_read_here() -> None:
    found = [path for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")) if "```console" in path.read_text()]
    assert {str(path.relative_to(ROOT)) for path in found} == {*PAGES, *UNTYPED}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder, as README has it: a model, data and a recipe, with targets that any CPU can serve."""
    directory = tmp_path_factory.mktemp("user")
    write_text_model(directory / "my-model")
    for name, rows, seed in (("train", 400, 1), ("validation", 100, 2)):
        file = write_text_data(directory / f"{name}.parquet", rows, seed)
        Dataset.from_parquet(str(file)).rename_column("text", "sentence").to_parquet(file)
    recipe = yaml.safe_load(blocks("README.md", "yaml")[0])
    recipe = {**recipe, **QUICK, "targets": TINY_TARGETS, "data": {**recipe["data"], **QUICK_DATA}}
    (directory / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    (directory / "targets").mkdir()
    deployments = [{"runtime": "openvino"}]
    for path in ("targets/cpu-avx512", "targets/cpu-avx2", "targets/cpu-arm-neon", "my-box"):
        target = {**TARGET, "name": Path(path).name, "deployments": deployments}
        (directory / f"{path}.yaml").write_text(yaml.safe_dump(target), encoding="utf-8")
    return directory


@pytest.fixture(scope="module")
def typed() -> set[str]:
    """What was typed already: no command is run twice."""
    return set()


@pytest.fixture
def server() -> Iterator[list[subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    assert process.wait(30) in (0, -signal.SIGTERM)


def await_ready(process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + STARTED_WITHIN_S
    while time.monotonic() < end:
        assert process.poll() is None, "the server stopped"
        try:
            with urllib.request.urlopen(READY, timeout=1) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"not ready after {STARTED_WITHIN_S} s")


@pytest.mark.parametrize("page", PAGES)
def test_commands_work_as_they_are_written(
    page: str, folder: Path, typed: set[str], server: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for command in commands(page):
        words = shlex.split(command)
        if command in typed and words[1:2] != ["serve"]:  # what follows asks that server
            continue
        typed.add(command)
        if words[0] == "make":
            assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text(encoding="utf-8")
        elif words[:2] == ["instatune-deploy", "serve"]:
            if server:
                stop(server.pop())
            server.append(subprocess.Popen([sys.executable, "-m", "instatune_deploy", *words[1:]]))
            await_ready(server[-1])
        elif words[0] == "instatune-deploy":
            code, out, error = call_main(monkeypatch, capsys, *words[1:], *QUICK_OPTIONS.get(words[1], []))
            if words[1] in NEEDS_MORE_THAN_A_TINY_MODEL and code == 3:
                assert "nearest" in error
                continue
            if "--for ovms" in command and code == 2:  # where ONNX Runtime was the faster
                assert "OpenVINO Model Server runs OpenVINO" in error
                continue
            assert code == 0, f"{command}\n{out}\n{error}"
        elif words[:3] != ["pip", "install", "numpy"]:  # what a device without PyTorch needs is here
            line = command.replace("'&&'", "&&").replace("python ", f"{sys.executable} ")
            found = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=200, check=False)
            assert found.returncode == 0, f"{command}\n{found.stdout}\n{found.stderr}"
        if not Path("my-artifact").exists() and command == "instatune-deploy run recipe.yaml":
            shutil.copytree("runs/run/artifacts/cpu-avx512/p50-95pct", "my-artifact")


@pytest.mark.parametrize("page", ["README.md", "docs/python.md"])
def test_the_pages_python_runs(page: str, folder: Path) -> None:
    """After the commands of the pages above, which made the run."""
    (example,) = blocks(page, "python")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    found = subprocess.run(
        [sys.executable, "-c", example], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
