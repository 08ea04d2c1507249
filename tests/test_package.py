"""What users install: the wheel holds the data that the package looks for."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as a wheel installs it, in a directory of its own."""
    directory = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", str(ROOT), "--no-deps", "--no-build-isolation", "-w", str(directory)], check=True)
    (wheel,) = directory.glob("*.whl")
    subprocess.run(
        [*pip, "install", "--no-deps", "--no-index", "--target", str(directory / "site"), str(wheel)], check=True
    )
    return directory / "site"


def test_an_installed_copy_finds_its_targets(installed: Path, tmp_path: Path) -> None:
    code = (
        "import instatune_deploy, pathlib, sys\n"
        "from instatune_deploy.faces.cli import main\n"
        f"assert pathlib.Path(instatune_deploy.__file__).is_relative_to({str(installed)!r})\n"
        "sys.argv = ['instatune-deploy', 'targets', 'list']\n"
        "main()"
    )
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    shipped = {path.stem for path in (ROOT / "targets").glob("*.yaml")}
    assert {line.split()[0] for line in found.stdout.splitlines()} == shipped
    tables = {path.relative_to(ROOT) for path in (ROOT / "latency_tables").rglob("*.json")}
    assert tables == {
        p.relative_to(installed / "instatune_deploy")
        for p in (installed / "instatune_deploy" / "latency_tables").rglob("*.json")
    }


def test_an_installed_copy_has_what_its_reports_are_made_of(installed: Path) -> None:
    parts = {path.name for path in (ROOT / "instatune_deploy" / "reporting" / "page").iterdir()}
    assert {"run.html", "compare.html", "page.css", "front.js"} <= parts
    assert {path.name for path in (installed / "instatune_deploy" / "reporting" / "page").iterdir()} == parts


def test_help_and_targets_import_no_framework(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "import instatune_deploy.faces.cli\n"
        "heavy = {'torch', 'transformers', 'datasets', 'onnxruntime', 'openvino', 'pymoo', 'lightgbm', 'sklearn'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def test_the_demos_lock_has_the_versions_of_the_constraints_and_a_hash_each() -> None:
    def pins(text: str) -> dict[str, str]:
        lines = [line.split()[0].split("==") for line in text.splitlines() if "==" in line and not line.startswith("#")]
        return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in lines}

    lock = (ROOT / "requirements-demo.txt").read_text(encoding="utf-8")
    pinned, constrained = pins(lock), pins((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    assert {"torch", "openvino", "onnxruntime", "transformers", "lightgbm", "pydantic"} <= pinned.keys()
    assert all(constrained.get(name, version) == version.partition("+")[0] for name, version in pinned.items())
    assert all(re.fullmatch(r"\S+==\S+ --hash=sha256:[0-9a-f]{64}|#.*", line) for line in lock.splitlines())
