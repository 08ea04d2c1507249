"""Latency tables for a model: made in a run, or on their own for a model that nobody has trained yet."""

from __future__ import annotations

import shutil
from collections.abc import Callable
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
from instatune_deploy.stages.profile import profile
from instatune_deploy.values.latency import LatencyTable
from instatune_deploy.values.recipe import ProfileSection
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


def default_config(directory: Path) -> tuple[PretrainedConfig, str]:
    """The config to profile where none is named, and what it is of: the run or model in `directory`, or BERT-base."""
    for path, what in ((directory / "supernet", "run"), (directory, "model")):
        if (path / "config.json").is_file():
            return load_config(str(path)), f"the {what} in {directory.absolute()}"
    return BertConfig(), "BERT-base"


def profile_model(
    target_name: str, model: str | None, space_name: str, sequence_length: int | None, settings: ProfileSection,
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
    config, what = (load_config(model), model) if model else default_config(Path())
    space = space_for(config, space_name)
    tokens = sequence_length or target.workload.sequence_length
    usable, left_out = usable_deployments(target, detect())
    for line in left_out:
        report(line)
    probes = out / ".probes"
    try:
        prober = Prober(random_model(config), space, tokens, probes, report, seed=seed)
        report(f"profiling {what}, signature {prober.shape.signature}, on {target.name}")
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
