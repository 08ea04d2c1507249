"""What the command line does, for Python: `run`, `open_run`, `profile`; and `elastic_trainer`, for scripts of one's own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from instatune_deploy import pipeline
from instatune_deploy.device.lowering.onnx import OPSET
from instatune_deploy.elastic.probing import longest_text
from instatune_deploy.elastic.standard import elastic_trainer
from instatune_deploy.elastic.supernet import Supernet
from instatune_deploy.errors import UnknownNameError, UsageError
from instatune_deploy.executor import Executor
from instatune_deploy.exporting import confirmed, export_network
from instatune_deploy.faces.executors import executor_of
from instatune_deploy.job import Job
from instatune_deploy.profiling import profile_model
from instatune_deploy.searching import read_front
from instatune_deploy.stages.export import Artifact
from instatune_deploy.values.budget import Budget
from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.fixed import FixedSizes
from instatune_deploy.values.front import ParetoFront
from instatune_deploy.values.html import html_table
from instatune_deploy.values.latency import LatencyTable
from instatune_deploy.values.recipe import ProfileSection, Recipe, check_recipe, read_recipe
from instatune_deploy.values.selection import Selection
from instatune_deploy.values.space import Architecture
from instatune_deploy.values.target import Target
from instatune_deploy.workspace import Workspace, check_new

__all__ = ["Run", "Tables", "elastic_trainer", "open_run", "profile", "run"]

Report = Callable[[str], None]
_log = logging.getLogger("instatune_deploy").info


class Tables(tuple[LatencyTable, ...]):
    """Latency tables, which a notebook shows with their errors."""

    def _repr_html_(self) -> str:
        columns = [
            "target",
            "deployment",
            "held-out networks",
            "mean error, %",
            "largest, %",
            "Kendall tau",
            "noise floor, %",
        ]
        rows = [
            (
                table.target, table.deployment.name, table.error.n, table.error.mape_pct, table.error.max_pct,
                table.error.kendall_tau, table.error.noise_floor_pct,
            )
            for table in self
        ]  # fmt: skip
        return html_table("latency tables: predicted against measured", columns, rows)


class Run:
    """A run directory and what can be done with it. Nothing is trained or evaluated that was before.

    Args:
        directory: what `run` made.
        foreign_tables: predict targets that this machine cannot serve by latency tables measured on other machines; nothing
            can be selected for them. Default: as the recipe says.
        ray: a Ray cluster to work on: ``auto``, or ``HOST:PORT`` of its head; None: this machine.
        report: is told what is going on, line by line; default: the logger ``instatune_deploy``, level INFO.

    Raises:
        RecipeError: it is no run, or its recipe is damaged.
    """

    def __init__(
        self, directory: str | Path, *, foreign_tables: bool = False, ray: str | None = None, report: Report = _log
    ) -> None:
        self.directory, self._report, self._ray = Path(directory), report, ray
        self._foreign_tables = foreign_tables
        self.recipe = pipeline.open_run(self.directory, report).recipe.with_foreign_tables(foreign_tables)

    @cached_property
    def _executor(self) -> Executor:
        return executor_of(self._ray, self._report)

    def _job(self, **changes: Any) -> Job:
        """A job of this run, with the changes to its recipe that are not None."""
        job = pipeline.open_run(self.directory, self._report, self._executor)
        job.recipe = job.recipe.with_foreign_tables(self._foreign_tables).changed(**changes)
        return job

    def _target(self, job: Job, name: str | None) -> Target:
        return job.target(name or next(iter(job.recipe.targets)))

    @cached_property
    def supernet(self) -> Supernet:
        """The elastic fine-tuned super-network; ``supernet.extract(architecture)`` is a plain model."""
        return self._job().supernet

    def tables(self, target: str | None = None) -> Tables:
        """The latency tables of a target (default: the recipe's first), found or measured now.

        Raises:
            UsageError: there is no such target, or this machine cannot serve it.
        """
        job = self._job()
        return Tables(job.tables(self._target(job, target)))

    def front(self, target: str | None = None) -> ParetoFront:
        """The front for a target (default: the recipe's first); see `search`."""
        (found,) = self.search([target] if target else []).values()
        return found

    def search(
        self, targets: Sequence[str] = (), *, objectives: Sequence[str] = (), limits: Sequence[str] = (),
        found_before: bool = False,
    ) -> dict[str, ParetoFront]:  # fmt: skip
        """A front for each target, by its name, found before or searched now; values are predicted unless they say otherwise.

        Args:
            targets: default: the recipe's first. What is evaluated for one serves all.
            objectives: two or three of ``metric``, ``macs``, ``parameters``, ``size``, ``latency``, ``memory``,
                ``latency@TARGET:DEPLOYMENT``; default: the recipe's.
            limits: such as ``size<=30MB``, ``latency<=50%``, ``loss<=0.5``; default: the recipe's.
            found_before: search nothing: a front that was not found before is an error.

        Raises:
            UsageError: there is no such target or objective, they contradict each other, or another process works on the run.
        """
        job = self._job()
        given = {"objectives": list(objectives), "limits": list(limits)}
        changed = job.recipe.search.model_copy(update={key: value for key, value in given.items() if value})
        changed.goals(job.recipe.metric)  # raises where they make no sense, before anything else is done
        job.recipe = job.recipe.model_copy(update={"search": changed})
        wanted = [self._target(job, name) for name in targets] or [self._target(job, None)]
        if found_before:
            return {target.name: read_front(job.workspace, job.recipe, target.name) for target in wanted}
        return job.search(wanted)

    def select(
        self, budget: str | float, target: str | None = None, *, percentile: str | None = None,
        tune_epochs: float | None = None,
    ) -> Selection:  # fmt: skip
        """The network that a budget prefers of those whose exported files keep it when they are measured.

        Args:
            budget: ``8ms``, ``50%``, or limits and a preference: ``loss<=0.5, size<=30MB, smallest``.
            percentile: of the latency: p50, p90 or p99; default: the recipe's.
            tune_epochs: for which a candidate is tuned alone before it is exported; default: the recipe's.

        Raises:
            UsageError: the budget or target is none, or another process works on the run.
            InfeasibleBudgetError: nothing keeps it; names the nearest three.
        """
        return self.select_each([budget], target, percentile=percentile, tune_epochs=tune_epochs)[0]

    def select_each(
        self, budgets: Sequence[str | float], target: str | None = None, *, percentile: str | None = None,
        tune_epochs: float | None = None,
    ) -> list[Selection]:  # fmt: skip
        """What `select` gives for each budget, in their order; one super-network is loaded for all."""
        job = self._job(percentile=percentile, tune_epochs=tune_epochs)
        wanted = [Budget.parse(budget, metric=job.recipe.metric) for budget in budgets]
        place = self._target(job, target)
        front = job.search([place])[place.name]
        return [pipeline.select(job, place, front, budget) for budget in wanted]

    def artifact_path(self, selection: Selection) -> Path:
        """The directory of what was selected, which ONNX Runtime, OpenVINO and Optimum load."""
        return self.directory / selection.artifact

    def export(
        self, architecture: str | Architecture, out: str | Path, *, target: str | None = None,
        deployment: str | None = None, confirm: bool = False, tune_epochs: float = 0, max_drop: float | None = None,
        opset: int = OPSET, fixed_length: int | None = None, fixed_batch: bool = False,
    ) -> Artifact:  # fmt: skip
        """Export any network of the space, or ``full``, to the new directory `out`.

        Args:
            deployment: one of the target's, such as ``ov-int8-1t``; default: its first.
            confirm: whether to measure it on the report split and on this machine.
            tune_epochs: passes over the training data for which it is tuned alone first.
            max_drop: points that an int8 file may lose against fp32 on the search split; default: the recipe's.
            fixed_length: tokens to which the length of texts is fixed, and the batch to the deployment's; None: any.
            fixed_batch: whether to fix the batch to the deployment's.

        Raises:
            UsageError: architecture, target, deployment or length are none, or `out` exists already.
            ArtifactError: an exported file does not compute what the model does.
        """
        check_new(Path(out))
        job = self._job()
        wanted = self._target(job, target)
        known = {found.name: found for found in wanted.deployments}
        if deployment is not None and deployment not in known:
            raise UnknownNameError("deployment", deployment, known)
        chosen = known[deployment] if deployment else wanted.deployments[0]
        network = job.supernet.full if architecture == "full" else Architecture.parse(str(architecture))
        made = export_network(
            job, wanted, network, chosen, Path(out), None, tune_epochs=tune_epochs,
            max_drop=job.recipe.max_drop if max_drop is None else max_drop, opset=opset,
            fixed=_fixed_sizes(job, chosen, fixed_length, batch=fixed_batch),
        )  # fmt: skip
        return confirmed(job, wanted, made) if confirm else made


def _fixed_sizes(job: Job, deployment: Deployment, tokens: int | None, *, batch: bool) -> FixedSizes | None:
    """The sizes to fix in a network's files: the deployment's batch, and the length of texts; None: nothing.

    Args:
        tokens: length of every text; None: any. Whoever fixes the length fixes the batch.
        batch: whether to fix the batch.

    Raises:
        UsageError: the run's network reads no texts, or not of that length.
    """
    if tokens is None:
        return FixedSizes(deployment.batch) if batch else None
    if job.processor.head.reads == "image":
        raise UsageError(f"{job.recipe.task} has no texts whose length could be fixed: fix the batch")
    longest = longest_text(job.config)
    if tokens < job.recipe.data.sequence_length or (longest is not None and tokens > longest):
        most = "" if longest is None else f" and at most {longest}"
        raise UsageError(
            f"a length of {tokens} tokens will not do: texts of this run have up to {job.recipe.data.sequence_length}, so "
            f"fix at least that{most}"
        )
    return FixedSizes(deployment.batch, tokens)


def run(
    recipe: str | Path | Mapping[str, Any] | Recipe, directory: str | Path | None = None, *, ray: str | None = None,
    report: Report = _log,
) -> Run:  # fmt: skip
    """Do all a recipe asks for: fine-tune, profile, search, select, export, confirm; what was done before is reused.

    Args:
        recipe: a YAML file, or its keys.
        directory: the run's; default: ``runs/<recipe's name>``.
        ray, report: see `Run`.

    Returns:
        The run; `Run.select` then gives what was selected, without measuring it again.

    Raises:
        UsageError: something in the recipe is wrong; nothing was written.
        InfeasibleBudgetError: nothing keeps a budget; what was made stays.
    """
    if isinstance(recipe, (str, Path)):
        checked = read_recipe(Path(recipe))
    else:
        checked = recipe if isinstance(recipe, Recipe) else check_recipe(dict(recipe), "recipe")
    home = Path(directory or Path("runs") / checked.name)
    pipeline.run(checked, Workspace(home), report, executor=executor_of(ray, report))
    return Run(home, ray=ray, report=report)


def open_run(
    directory: str | Path, *, foreign_tables: bool = False, ray: str | None = None, report: Report = _log
) -> Run:
    """The run in a directory; see `Run`."""
    return Run(directory, foreign_tables=foreign_tables, ray=ray, report=report)


def profile(
    target: str, model: str | None = None, *, space: str | None = None, sequence_length: int | None = None,
    out: str | Path = "latency_tables", seconds: float = 60, seed: int = 0, report: Report = _log,
) -> Tables:  # fmt: skip
    """Measure a latency table for each deployment of a target that this machine can run.

    Args:
        target: its name, or the path of its YAML file.
        model: directory or hub name, whose weights do not matter; default: the run or model in this directory, or BERT-base.
        sequence_length: tokens of a text; default: the target's.
        out: directory of tables to write to.
        seconds: of measuring the probes of a deployment at most.

    Raises:
        UsageError: target, model or space are unknown or do not fit.
        MeasurementError: measuring failed.
    """
    settings = ProfileSection(seconds=seconds)
    return Tables(profile_model(target, model, space, sequence_length, settings, Path(out), seed=seed, report=report))
