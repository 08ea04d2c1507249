"""Latency tables for a model: made in a run, or on their own for a model that nobody has trained yet."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from transformers import BertConfig, PretrainedConfig, PreTrainedModel

from instatune_deploy.device.fingerprint import machine_key, runtime_versions
from instatune_deploy.device.probes import ProbeFiles
from instatune_deploy.device.samples import Samples
from instatune_deploy.device.settings import TimingSettings
from instatune_deploy.device.site import HERE, Site
from instatune_deploy.elastic.pretrained import load_config, space_for
from instatune_deploy.elastic.probing import longest_text, probing_supernet, random_model, synthetic_inputs
from instatune_deploy.elastic.shapes import model_shape
from instatune_deploy.elastic.supernet import SPACE_FILE
from instatune_deploy.errors import TableError, TargetError, UsageError
from instatune_deploy.stages.profile import Plan, Profiled, plan, profile
from instatune_deploy.stages.profile.table import refit
from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.hashing import content_key, sha256_file
from instatune_deploy.values.latency import LatencyTable, raw_file, table_file
from instatune_deploy.values.macs import NetworkShape
from instatune_deploy.values.recipe import ProfileSection, read_recipe
from instatune_deploy.values.shelf import find_table
from instatune_deploy.values.space import SearchSpace
from instatune_deploy.values.target import Target, find_target
from instatune_deploy.workspace import data_directories, write_bytes, write_text

Report = Callable[[str], None]
#: Seconds of measuring for which each network is loaded anew once.
SESSION_S = 10.0


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
        self.root = directory
        self.directory = directory / content_key(self.shape.signature, space.to_dict())
        self.files = ProbeFiles(probing_supernet(model, space).extract, examples, self.directory, space)

    def inputs(self, deployment: Deployment) -> dict[str, np.ndarray]:
        """A batch to time the deployment with."""
        return self._inputs(deployment.batch)

    def _inputs(self, batch: int) -> dict[str, np.ndarray]:
        return synthetic_inputs(self.config, self.tokens, batch, seed=self.seed)

    def clear(self) -> None:
        """Remove the networks' files: not where measuring was interrupted, for it then goes on from there.

        Those of other shapes and spaces stay, whose measuring may have been interrupted.
        """
        shutil.rmtree(self.directory, ignore_errors=True)
        with suppress(OSError):  # holds others' files, or is not there
            self.root.rmdir()

    def plan(self, settings: ProfileSection, *, seed: int) -> Plan:
        """What is measured for a table."""
        # Loading takes as long however long is measured: a short look at each network has fewer sessions.
        most = TimingSettings.sessions
        sessions = max(2, min(most, round(settings.seconds / SESSION_S)))
        timing = TimingSettings(seconds=settings.seconds, wait_s=settings.wait_seconds, sessions=sessions)
        return plan(
            self.space, heldout=settings.heldout, seed=seed, settings=timing, spare_probes=settings.spare_probes
        )

    def table(
        self, target: Target, deployment: Deployment, settings: ProfileSection, out: Path, *, seed: int
    ) -> LatencyTable:
        """A table measured now, on this machine, and written to `out` with every run it was made from.

        What was measured before an interruption counts; a table that was finished before it, by the same settings on the same
        machine and runtimes, is not measured again.
        """
        planned = self.plan(settings, seed=seed)
        journal = self.directory / f"{target.name}-{deployment.name}"
        finished = journal.with_name(f"{journal.name}.done")
        place = out / table_file(target.name, self.shape.signature, deployment)
        measured_so = content_key(
            machine_key(), runtime_versions(), settings.heldout, settings.seconds, settings.spare_probes, seed
        )
        if finished.is_file() and place.is_file() and finished.read_text() == f"{measured_so} {sha256_file(place)}":
            self.report(f"{target.name}/{deployment.name}: measured before the interruption")
            return LatencyTable.read(place)
        self.report(
            f"profiling {target.name}/{deployment.name}: {len(planned.probes)} probes and {len(planned.heldout)} held-out "
            f"networks, {planned.settings.seconds:.0f} s of measuring at most"
        )
        found = profile(
            target, deployment, planned, self.shape, self.files, self.inputs(deployment), seed=seed, journal=journal
        )
        write_table(out, found)
        finished.write_text(f"{measured_so} {sha256_file(place)}")
        shutil.rmtree(journal, ignore_errors=True)
        return found.table


def look_up(
    target: Target, deployment: Deployment, shape: NetworkShape, space: SearchSpace, settings: ProfileSection, out: Path,
    site: Site = HERE,
) -> tuple[LatencyTable | None, list[str]]:  # fmt: skip
    """The latency table for networks of `shape` that covers `space`, and lines about those passed over; see `find_table`.

    Args:
        out: directory of tables, to look in before others.
        site: the machine that it must be of.
    """
    return find_table(
        target.name, shape.signature, deployment, space, data_directories("latency_tables", out),
        machine=site.machine(), versions=site.versions(), foreign=settings.foreign_tables,
    )  # fmt: skip


def target_tables(
    target: Target, prober: Prober, settings: ProfileSection, out: Path, *, seed: int, report: Report, site: Site = HERE
) -> list[LatencyTable]:
    """A table that covers the prober's space for each deployment of `target` that `site` can run, found or measured now
    by the prober, which must measure there; with foreign tables, also for those that it cannot run, where there is one.

    Args:
        out: directory of tables, to look in before others and to write to.

    Raises:
        TargetError: there is no table of a target that `site` cannot serve.
    """

    def find(deployment: Deployment) -> LatencyTable | None:
        table, lines = look_up(target, deployment, prober.shape, prober.space, settings, out, site)
        for line in [*lines, *([describe_table(table)] if table is not None else [])]:
            report(line)
        return table

    usable, left_out = site.usable(target)
    try:
        site.check(target)
    except TargetError as error:
        usable, left_out = [], [str(error)]
    for line in left_out:
        report(line)
    tables = []
    for deployment in usable:
        table = find(deployment)
        if table is None:
            table = prober.table(target, deployment, settings, out, seed=seed)
            report(describe_table(table))
        tables.append(table)
    if settings.foreign_tables:
        found = [find(deployment) for deployment in target.deployments if deployment not in usable]
        tables += [table for table in found if table is not None]
    if not tables:
        raise TargetError(f"{left_out[0]}, and there is no latency table of it")
    return tables


def refit_table(path: Path) -> LatencyTable:
    """The table in `path`, fitted again to the runs beside it, and written anew.

    Raises:
        TableError: the table is damaged, or the runs are missing or not those it was made from.
    """
    if not path.is_file():
        raise TableError(f"{path}: there is no such latency table")
    table = LatencyTable.read(path)
    raw_path = Path(raw_file(str(path)))
    if not raw_path.is_file():
        raise TableError(f"{raw_path}: missing: without its runs a table cannot be fitted again")
    if (found := sha256_file(raw_path)) != table.raw_sha256:
        raise TableError(f"{raw_path}: is not what {path.name} was made from: its SHA-256 differs")
    # The file stays as it is, whatever this release would write.
    fitted = replace(refit(table, Samples.read(raw_path)), raw_sha256=found)
    write_text(path, fitted.to_json())
    return fitted


def write_table(out: Path, found: Profiled) -> None:
    """Write a table and, before it, every run it was made from."""
    write_bytes(out / found.table.raw_name, found.raw.to_bytes())
    write_text(out / found.table.file_name, found.table.to_json())


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


def text_tokens(wanted: Subject, asked: int | None, target: Target) -> int:
    """How many tokens texts have in a table: what is asked for, else the run's, else the target's or as many as the model reads.

    Raises:
        UsageError: the model reads fewer than are asked for.
    """
    longest = longest_text(wanted.config)
    if asked is not None and longest is not None and asked > longest:
        raise UsageError(f"a sequence length of {asked} will not do: the model reads at most {longest} tokens")
    usual = target.workload.sequence_length
    return asked or wanted.tokens or (usual if longest is None else min(usual, longest))


def profile_model(
    target_name: str, model: str | None, space_name: str | None, sequence_length: int | None, settings: ProfileSection,
    out: Path, *, seed: int, report: Report, site: Site = HERE, prober_of: type[Prober] | Callable[..., Prober] = Prober,
) -> list[LatencyTable]:  # fmt: skip
    """Measure and write a table for each deployment of a target that `site`, by default this machine, can run.

    Each table is written to `out` as soon as it is measured; one that was there is replaced only then.

    Args:
        prober_of: makes the `Prober`, which must measure at `site`.

    Raises:
        UsageError: target, model or space are unknown or do not fit.
        MeasurementError: measuring failed.
    """
    target = find_target(target_name, data_directories("targets"))
    site.check(target)
    wanted = subject(model, space_name, Path())
    tokens = text_tokens(wanted, sequence_length, target)
    usable, left_out = site.usable(target)
    for line in left_out:
        report(line)
    probes = out / ".probes"
    prober = prober_of(random_model(wanted.config), wanted.space, tokens, probes, report, seed=seed)
    report(f"profiling {wanted.what}, signature {prober.shape.signature}, on {target.name}")
    tables = []
    for deployment in usable:
        tables.append(prober.table(target, deployment, settings, out, seed=seed))
        report(describe_table(tables[-1]))
    prober.clear()
    return tables


def describe_table(table: LatencyTable) -> str:
    """A table's error in a line."""
    error = table.error
    other = table.disturbance
    busy = f", while others used {other.others_cpus:.2f} CPUs" if other.others_cpus + other.stolen_cpus > 0.2 else ""
    # A space may have no networks but the probes.
    tried_on = f"{error.n} held-out networks" if error.n else "the probes themselves"
    return (
        f"latency table {table.target}/{table.deployment.name}: {len(table.samples)} probes, predicted against measured "
        f"on {tried_on}: MAPE {error.mape_pct:.2f}%, max {error.max_pct:.2f}%, Kendall tau "
        f"{error.kendall_tau:.3f}, noise floor {error.noise_floor_pct:.2f}%; measured in {table.measure_s:.0f} s{busy}"
    )
