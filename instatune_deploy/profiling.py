"""Latency tables for a model: made in a run, or on their own for a model that nobody has trained yet."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import BertConfig, PretrainedConfig, PreTrainedModel

from instatune_deploy.device.fingerprint import check_target, detect, usable_deployments
from instatune_deploy.device.probes import ProbeFiles
from instatune_deploy.device.timing import TimingSettings
from instatune_deploy.elastic.pretrained import load_config, space_for
from instatune_deploy.elastic.probing import probing_supernet, random_model, synthetic_inputs
from instatune_deploy.elastic.subnetwork import model_shape
from instatune_deploy.elastic.supernet import SPACE_FILE
from instatune_deploy.stages.profile import profile
from instatune_deploy.values.latency import LatencyTable
from instatune_deploy.values.recipe import ProfileSection, read_recipe
from instatune_deploy.values.space import SearchSpace
from instatune_deploy.values.target import Deployment, Target, find_target
from instatune_deploy.workspace import content_key, data_directories, write_text

Report = Callable[[str], None]


class Prober:
    """Makes and measures networks of one model's shape.

    Args:
        model: its family and sizes count, its weights do not.
        space: the choices that tables must cover.
        tokens: length of a text; ignored for images.
        directory: where the networks' files go; they are shared by all deployments.
    """

    def __init__(
        self, model: PreTrainedModel, space: SearchSpace, tokens: int, directory: Path, report: Report, *, seed: int
    ) -> None:
        self.space, self.report, self.seed = space, report, seed
        self.config, self.tokens, self.shape = model.config, tokens, model_shape(model, tokens)
        examples = {name: torch.from_numpy(array) for name, array in self._inputs(2).items()}
        key = content_key(self.shape.signature, space.to_dict())
        self.files = ProbeFiles(probing_supernet(model, space).extract, examples, directory / key)

    def inputs(self, deployment: Deployment) -> dict[str, np.ndarray]:
        """A batch to time the deployment with."""
        return self._inputs(deployment.batch)

    def _inputs(self, batch: int) -> dict[str, np.ndarray]:
        return synthetic_inputs(self.config, self.tokens, batch, seed=self.seed)

    def table(self, target: Target, deployment: Deployment, settings: ProfileSection, *, seed: int) -> LatencyTable:
        """A table measured now, on this machine."""
        networks = settings.heldout + len(self.space.head_choices) + len(self.space.ffn_choices) + 1
        self.report(
            f"profiling {target.name}/{deployment.name}: about {networks} networks, {settings.seconds:g} s at most"
        )
        return profile(
            target, deployment, self.space, self.shape, self.files, self.inputs(deployment), seed=seed,
            settings=TimingSettings(seconds=settings.seconds / networks), heldout=settings.heldout,
        )  # fmt: skip


@dataclass(frozen=True)
class Subject:
    """What is profiled: sizes, the choices that tables must cover, tokens of a text if it says so, and what it is."""

    config: PretrainedConfig
    space: SearchSpace
    tokens: int | None
    what: str


def subject(model: str | None, space_name: str | None, directory: Path) -> Subject:
    """The model named, else the run or model in `directory`, else BERT-base.

    Args:
        space_name: a preset; None is the run's own space, or the preset of the model's family.

    Raises:
        UsageError: the model or the preset are unknown or do not fit.
    """
    run_space = directory / "supernet" / SPACE_FILE
    if model is None and run_space.is_file():
        config = load_config(str(directory / "supernet"))
        own = SearchSpace.from_dict(json.loads(run_space.read_text(encoding="utf-8")))
        tokens = read_recipe(directory / "recipe.yaml").data.sequence_length
        return Subject(
            config, space_for(config, space_name) if space_name else own, tokens, "the run in this directory"
        )
    if model is None and not (directory / "config.json").is_file():
        config, what = BertConfig(), "BERT-base"
    else:
        config = load_config(model or str(directory))
        what = model or "the model in this directory"
    return Subject(config, space_for(config, space_name or "paper"), None, what)


def profile_model(
    target_name: str, model: str | None, space_name: str | None, sequence_length: int | None, settings: ProfileSection,
    out: Path, *, seed: int, report: Report,
) -> list[LatencyTable]:  # fmt: skip
    """Measure and write a table for each deployment of a target that this machine can run.

    Each table is written to `out` as soon as it is measured; one that was there is replaced only then.

    Raises:
        UsageError: target, model or space are unknown or do not fit.
        MeasurementError: measuring failed.
    """
    target = find_target(target_name, data_directories("targets"))
    check_target(target, detect())
    wanted = subject(model, space_name, Path())
    tokens = sequence_length or wanted.tokens or target.workload.sequence_length
    usable, left_out = usable_deployments(target, detect())
    for line in left_out:
        report(line)
    probes = out / ".probes"
    try:
        prober = Prober(random_model(wanted.config), wanted.space, tokens, probes, report, seed=seed)
        report(f"profiling {wanted.what}, signature {prober.shape.signature}, on {target.name}")
        tables = []
        for deployment in usable:
            table = prober.table(target, deployment, settings, seed=seed)
            write_text(out / table.file_name, table.to_json())
            report(describe_table(table))
            tables.append(table)
    finally:
        shutil.rmtree(probes, ignore_errors=True)
    return tables


def describe_table(table: LatencyTable) -> str:
    """A table's error in a line."""
    error = table.error
    return (
        f"latency table {table.target}/{table.deployment.name}: {len(table.samples)} probes, predicted against measured "
        f"on {error.n} held-out networks: MAPE {error.mape_pct:.2f}%, max {error.max_pct:.2f}%, Kendall tau "
        f"{error.kendall_tau:.3f}, noise floor {error.noise_floor_pct:.2f}%"
    )
