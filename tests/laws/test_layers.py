"""The floors of the house: imports go down only, and a few libraries have one door."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

PACKAGE = "instatune_deploy"
ROOT = Path(__file__).parents[2] / PACKAGE

#: The package itself (its version) is on the ground. `data` may use `values`, which share a floor with it.
FLOORS = {
    "": 0,
    "errors": 0,
    "values": 1,
    "data": 1,
    "elastic": 2,
    "device": 2,
    "workspace": 2,
    "recalling": 3,
    "reporting": 3,
    "sentences": 3,
    "stages": 3,
    "benching": 4,
    "doctoring": 4,
    "deployed": 4,
    "profiling": 4,
    "repositories": 4,
    "executor": 5,
    "fleets": 5,
    "searching": 5,
    "cluster": 6,
    "kit": 6,
    "serving": 6,
    "job": 6,
    "exporting": 7,
    "planning": 7,
    "verifying": 7,
    "pipeline": 8,
    "drafting": 8,
    "many_devices": 9,
    "faces": 10,
    "__main__": 11,
}
#: `data` and `values`, `errors` and the version; and the names that the package gives to Python, imported when they are asked for.
ALLOWED = {("data", "values"), ("errors", ""), ("", "faces")}
DOORS = {
    "pymoo": {"stages.search"},
    "lightgbm": {"stages.predict", "stages.profile"},
    "ray": {"cluster"},
}
#: transformers and nncf import torch.
NOT_IN_VALUES = {"torch", "torchvision", "onnx", "onnxruntime", "openvino", "transformers", "nncf", "optimum"}


def read_package() -> dict[str, str]:
    """Source by dotted name below the package; the package itself is the empty name."""
    sources = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        sources[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text(encoding="utf-8")
    return sources


def imported(name: str, source: str, modules: Mapping[str, str], is_package: bool) -> Iterator[str]:
    """Every module that a module imports, wherever in it; ours by their full dotted names."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = [PACKAGE, *filter(None, name.split("."))]
                up = node.level - 1 if is_package else node.level
                base = ".".join([*here[: len(here) - up], *filter(None, [node.module])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield inner if inner.removeprefix(f"{PACKAGE}.") in modules else base
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if function in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.args[0].value


def broken_laws(modules: Mapping[str, str]) -> list[str]:
    """One line for every forbidden import of `modules` (source by dotted name below the package)."""
    broken = []
    for name, source in sorted(modules.items()):
        top = name.split(".")[0]
        if top not in FLOORS:
            broken.append(f"{name} is on no floor")
            continue
        is_package = name == "" or any(other.startswith(f"{name}.") for other in modules)
        for target in imported(name, source, modules, is_package):
            library = target.split(".")[0]
            if library != PACKAGE:
                if not any(name == door or name.startswith(f"{door}.") for door in DOORS.get(library, {name})) or (
                    top == "values" and library in NOT_IN_VALUES
                ):
                    broken.append(f"{name} imports {library}")
                continue
            inner = target.removeprefix(PACKAGE).removeprefix(".")
            other = inner.split(".")[0]
            if other not in FLOORS:
                broken.append(f"{name} imports {inner}, which is on no floor")
            elif top == other:
                # A package's modules know each other, but one stage does not know another.
                if top == "stages" and inner.split(".")[1:2] != name.split(".")[1:2]:
                    broken.append(f"{name} imports {inner}")
            elif FLOORS[other] >= FLOORS[top] and (top, other) not in ALLOWED:
                broken.append(f"{name} imports {inner}")
    return broken


def test_imports_go_down_the_floors_only() -> None:
    assert broken_laws(read_package()) == []


def test_the_package_is_read() -> None:
    assert {"", "errors", "values.space", "workspace", "stages.search", "faces", "device.runtimes"} <= set(
        read_package()
    )


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("errors", "from instatune_deploy.values import space"),
        ("values.front", "import instatune_deploy.workspace"),
        ("values.macs", "import torch.nn"),
        ("values.latency", "def f():\n    from openvino import Core"),
        ("values", "from instatune_deploy import data"),
        ("data.dataset", "from ..elastic import axes"),
        ("elastic.axes", "from instatune_deploy.device.timing import measure"),
        ("device.timing", "from instatune_deploy.elastic import axes"),
        ("device", "from .. import elastic"),
        ("workspace", "from instatune_deploy.device import timing"),
        ("stages.search", "from instatune_deploy.stages.predict import AccuracyPredictor"),
        ("stages.search", "from . import predict"),
        ("stages.search", "from .predict import fit_predictor"),
        ("stages", "from instatune_deploy.stages import search"),
        ("stages.search", "import lightgbm"),
        ("stages.predict", "from pymoo.optimize import minimize"),
        ("device.timing", "import importlib\nimportlib.import_module('pymoo.core')"),
        ("stages.search", "from instatune_deploy import pipeline"),
        ("pipeline", "if TYPE_CHECKING:\n    from instatune_deploy.faces import cli"),
        ("", "from instatune_deploy.values.space import SearchSpace"),
        ("helpers", "import os"),
        ("values.space", "import instatune_deploy.helpers"),
    ],
)
def test_a_forbidden_import_is_found(name: str, line: str) -> None:
    modules = dict.fromkeys(
        [*FLOORS, "values.space", "elastic.axes", "device.timing", "stages.predict", "stages.search", "faces.cli"], ""
    )
    assert broken_laws(modules) == []
    assert len(broken_laws({**modules, name: line})) == 1


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("workspace", "from instatune_deploy.values.hashing import sha256_file"),
        (
            "stages.search",
            "import pymoo.optimize\nfrom instatune_deploy.values import space\nfrom instatune_deploy import errors",
        ),
        ("stages.profile", "import lightgbm\nfrom ..device import timing"),
        ("pipeline", "from instatune_deploy.stages import predict"),
        ("faces.cli.run", "from .. import report\nfrom instatune_deploy import __version__, pipeline"),
        ("elastic.families", "from . import bert"),
        ("data.metrics", "from instatune_deploy.values.space import Architecture\nimport torch"),
    ],
)
def test_an_allowed_import_is_let_pass(name: str, line: str) -> None:
    modules = dict.fromkeys([*FLOORS, "values.space", "stages.predict", "faces.cli"], "")
    assert broken_laws({**modules, name: line}) == []
