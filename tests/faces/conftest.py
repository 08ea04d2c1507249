"""A finished run that several files of tests look at."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from tests.helpers import call_command, write_project

CopyProject = Callable[[Path], Path]


@pytest.fixture(scope="session")
def copy_project(tmp_path_factory: pytest.TempPathFactory) -> CopyProject:
    """Puts a project with a finished run, ``runs/tiny``, into a directory that does not exist, and returns the run.

    The run is made once for all processes that test together; each file of tests changes a copy of its own.
    """
    base = tmp_path_factory.getbasetemp()
    # Each process of pytest-xdist has a folder of its own in one that they share.
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "finished-project"
    with FileLock(f"{shared}.lock"):
        if not shared.exists():
            draft = shared.with_name("unfinished-project")
            shutil.rmtree(draft, ignore_errors=True)
            write_project(draft)
            found = call_command(draft, "run", "recipe.yaml", "--json")
            assert found.code == 0, found.err
            assert len(found.json["selections"]) == 1
            draft.rename(shared)

    def copy(directory: Path) -> Path:
        shutil.copytree(shared, directory)
        run = directory / "runs" / "tiny"
        # The recipe of a run names its inputs by their whole paths.
        recipe = run / "recipe.yaml"
        recipe.write_text(recipe.read_text().replace(str(shared.with_name("unfinished-project")), str(directory)))
        return run

    return copy
