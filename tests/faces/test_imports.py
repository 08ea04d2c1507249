"""The command line answers at once: what loads for seconds is loaded only where it is needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from instatune_deploy.faces.cli import app

#: What takes half a second or more to import, or brings what does.
HEAVY = {
    "torch", "transformers", "onnx", "onnxruntime", "openvino", "datasets", "sklearn", "scipy", "lightgbm", "pymoo", "nncf",
    "pandas", "accelerate", "mlserver", "plotly",
}  # fmt: skip
VERBS = [
    *(command.name or command.callback.__name__ for command in app.registered_commands if command.callback),
    *(str(group.name) for group in app.registered_groups),
]
CODE = """
import json, sys
sys.argv = ["instatune-deploy", *sys.argv[1:]]
from instatune_deploy.faces.cli import main
try:
    main()
except SystemExit as ended:
    code = ended.code
print(json.dumps([code, sorted({name.split(".")[0] for name in sys.modules})]), file=sys.stderr)
"""


def loaded(*arguments: str, code: int = 0) -> set[str]:
    """The packages that a process has imported when it ends with `code`."""
    done = subprocess.run([sys.executable, "-c", CODE, *arguments], capture_output=True, text=True, check=True)
    ended, modules = json.loads(done.stderr.splitlines()[-1])
    assert (ended or 0) == code, done.stderr
    return set(modules)


def test_the_package_alone_imports_nothing_heavy() -> None:
    code = "import sys, instatune_deploy; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert HEAVY.isdisjoint(done.stdout.split())


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["targets", "list"],
        ["targets", "show", "cpu-avx2"],
        *([verb, "--help"] for verb in VERBS),
    ],
    ids=" ".join,
)
def test_asking_for_help_or_targets_imports_nothing_heavy(arguments: list[str]) -> None:
    assert loaded(*arguments) & HEAVY == set()


def test_a_recipe_is_checked_before_anything_heavy_is_imported() -> None:
    assert loaded("run", "nowhere.yaml", code=2) & HEAVY == set()


def test_shells_complete_verbs_and_options() -> None:
    for words, expected in (
        ("instatune-deploy ta", ["targets"]),
        ("instatune-deploy select --lat", ["--latency-budget"]),
    ):
        asked = {
            "_INSTATUNE_DEPLOY_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" ")),
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", "instatune_deploy"],
            env={**os.environ, **asked},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.split() == expected


def test_what_needs_it_does_import_it() -> None:
    """The test would see it: it is the same look at what was imported."""
    assert "transformers" in loaded("profile", "--target", "cpu-nowhere", code=2)
