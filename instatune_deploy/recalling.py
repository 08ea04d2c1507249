"""What was selected before, said again without PyTorch: a selection whose grounds, byte by byte, are what they were.

`pipeline.select` finds out by loading the super-network whether anything has to be done. Where every file that it would read
is unchanged, so is its answer; hashing those takes a tenth of the time that importing PyTorch does.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from instatune_deploy.device.fingerprint import detect, runtime_versions
from instatune_deploy.errors import InstatuneError, RecipeError
from instatune_deploy.values.budget import Budget
from instatune_deploy.values.hashing import content_key, sha256_file
from instatune_deploy.values.recipe import Recipe, read_recipe
from instatune_deploy.values.selection import Selection, selection_name
from instatune_deploy.values.target import Target
from instatune_deploy.workspace import (
    RECORDS,
    Workspace,
    data_directories,
    read_json,
    source_keys,
    tree_key,
    write_json,
)

RECIPE_FILE = "recipe.yaml"
#: What of a run's directory decides on a selection, beside its recipe and what its stages were made from.
_PARTS = ("supernet", "tables", "fronts")


def run_recipe(directory: Path) -> Recipe:
    """The recipe of the run whose directory is `directory`.

    Raises:
        RecipeError: it is missing or damaged.
    """
    if not (directory / RECIPE_FILE).is_file():
        raise RecipeError(
            f"{directory}: its {RECIPE_FILE} is gone; `instatune-deploy run RECIPE --out {directory}` writes it anew and reuses "
            "the rest"
        )
    return read_recipe(directory / RECIPE_FILE)


def recall(workspace: Workspace, recipe: Recipe, target: Target, budget: Budget) -> Selection | None:
    """What `pipeline.select` would give for `budget` on `target` without doing anything, if `remember`
    saw that and nothing has changed since; else None.

    Args:
        recipe: the run's own, with the changes that are asked for.

    Raises:
        UsageError: another process works on the run.
    """
    name = selection_name(target.name, recipe.percentile, budget)
    path = _path(workspace, name)
    if not path.is_file():
        return None
    with workspace.locked():
        try:
            kept = read_json(path, dict)
            same = kept.get("grounds") == _grounds(workspace, recipe, target, name)
            if not (same and workspace.is_done(f"select-{name}", None)):
                return None
            return read_json(workspace.path("selections", f"{name}.json"), Selection.from_dict)
        except (InstatuneError, OSError):
            # Whatever is wrong with the files, who reads them for work says it.
            return None


def remember(workspace: Workspace, recipe: Recipe, target: Target, budget: Budget) -> None:
    """Note on what grounds the selection for `budget` on `target`, which was just made or reused, stands; see `recall`."""
    name = selection_name(target.name, recipe.percentile, budget)
    write_json(_path(workspace, name), {"grounds": _grounds(workspace, recipe, target, name)})


def _path(workspace: Workspace, name: str) -> Path:
    return workspace.path(".recalled", f"{name}.json")


def _grounds(workspace: Workspace, recipe: Recipe, target: Target, name: str) -> str:
    """A hash of everything that `pipeline.select` goes by: the recipe, the model and the data, targets and tables wherever
    they are looked for, what the run has made, the machine and the versions installed."""
    machine = {key: value for key, value in asdict(detect()).items() if key != "load_1min"}
    return content_key(
        recipe.model_dump(), repr(target), source_keys(recipe.sources),
        *(_files(directory, "*.yaml") for directory in data_directories("targets")),
        *(_files(directory, "**/*.json") for directory in data_directories("latency_tables")),
        *(tree_key(path) for part in _PARTS if (path := workspace.path(part)).is_dir()),
        [found for found in _files(workspace.path(RECORDS), "*.json") if not _is_other(found[0], name)],
        machine, runtime_versions(),
    )  # fmt: skip


def _is_other(stage_file: str, name: str) -> bool:
    """Whether a stage selects something else."""
    return stage_file.startswith("select-") and stage_file != f"select-{name}.json"


def _files(directory: Path, pattern: str) -> list[tuple[str, str]]:
    """Names and hashes of the files below `directory` that match."""
    paths = sorted(path for path in directory.glob(pattern) if path.is_file())
    return [(str(path.relative_to(directory)), sha256_file(path)) for path in paths]
