"""What README and the pages tell users to type is typed here, in their order, from a model and data to a served artifact."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
import yaml
from datasets import Dataset
from nbclient import NotebookClient

from tests.helpers import TARGET, call_command, call_main, write_text_data, write_text_model
from tests.walkthrough import QUICK

ROOT = Path(__file__).parents[1]
#: Pages in the order in which somebody reads them: what is made on one is used on the next.
PAGES = [
    "README.md",
    *(
        f"docs/{name}.md"
        for name in (
            "start", "recipes", "search", "report", "targets", "artifacts", "serving", "fleet", "security", "cluster"
        )
    ),
]  # fmt: skip
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
#: What docs/fleet.md asks for, of fewer targets and budgets.
TINY_FLEET = {"targets": ["cpu-avx512", "my-box.yaml"], "budgets": ["95%"], "batches": [1]}
#: Its networks lose too much, or are no faster: nothing may fit a budget.
NEEDS_MORE_THAN_A_TINY_MODEL = ("select", "search", "fleet")
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
    assert {str(path.relative_to(ROOT)) for path in found} == {*PAGES}


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
    plan = {**yaml.safe_load(blocks("docs/fleet.md", "yaml")[0]), **TINY_FLEET}
    (directory / "fleet.yaml").write_text(yaml.safe_dump(plan), encoding="utf-8")
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


class RayNodes:
    """Nodes of a Ray cluster on this machine; its head is at `address`."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = "127.0.0.1:{1}".format(*free.getsockname())
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, command: str) -> None:
        """As `command` does; but it stays in the foreground, so that it can be stopped and other clusters are not."""
        port = self.address.partition(":")[2]
        line = command.replace("--head", f"--head --port={port} --include-dashboard=false")
        self._started.append(
            subprocess.Popen(["bash", "-c", f"exec {line} --num-cpus=1 --block"], start_new_session=True)
        )
        end = time.monotonic() + STARTED_WITHIN_S
        while subprocess.run(
            ["ray", "health-check", "--address", self.address], capture_output=True, check=False
        ).returncode:
            assert time.monotonic() < end, "the head of the cluster does not answer"

    def stop(self) -> None:
        for process in self._started:
            os.killpg(process.pid, signal.SIGTERM)
        for process in self._started:
            process.wait(60)


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[RayNodes]:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    found = RayNodes()
    yield found
    found.stop()


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
    page: str, folder: Path, typed: set[str], server: list[subprocess.Popen[bytes]], nodes: RayNodes,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for command in commands(page):
        command = command.replace("HEAD:6379", nodes.address)
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
        elif words[0] == "export":
            for setting in words[1:]:
                monkeypatch.setenv(*setting.split("=", 1))
        elif words[:2] == ["ray", "start"]:
            nodes.start(command)
        elif "--ray" in words:  # Ray may have been set up in another way in this process
            found = call_command(folder, *words[1:])
            assert found.code == 0, found.err
        elif words[0] == "instatune-deploy":
            words += [] if "--import" in words else QUICK_OPTIONS.get(words[1], [])
            if words[1] == "profile" and not {"--model", "--import"} & {*words}:
                words += ["--model", "./my-model"]  # not BERT-base, which takes minutes
            code, out, error = call_main(monkeypatch, capsys, *words[1:])
            if words[1] in NEEDS_MORE_THAN_A_TINY_MODEL and code == 3:
                assert "nearest" in error
                continue
            if "--for ovms" in command and code == 2:  # where ONNX Runtime was the faster
                assert "OpenVINO Model Server runs OpenVINO" in error
                continue
            assert code == 0, f"{command}\n{out}\n{error}"
        elif words[:2] != ["pip", "install"]:  # what is installed so is here
            line = command.replace("'&&'", "&&").replace("python ", f"{sys.executable} ")
            done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=200, check=False)
            assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
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


def test_the_notebook_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the Python of the pages."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(ROOT / "docs" / "choosing.ipynb", as_version=4)
    NotebookClient(
        notebook, timeout=200, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    tables = [output["data"]["text/html"] for output in shown if "text/html" in output.get("data", {})]
    assert "held-out networks" in tables[0]
    assert "latency, ms (predicted)" in tables[1]
    assert any("application/vnd.plotly.v1+json" in output.get("data", {}) for output in shown)
    assert "samples of the report split" in "".join(output.get("text", "") for output in shown)
