"""`Job`: gives each stage of a recipe what it needs, and keeps what it made."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from transformers import PretrainedConfig, PreTrainedModel

from instatune_deploy.data.dataset import Split, TaskData, open_report_split, open_task_data
from instatune_deploy.data.processor import Processor
from instatune_deploy.deployed import DeployedEvaluator
from instatune_deploy.device.fingerprint import runtime_versions
from instatune_deploy.device.site import Site
from instatune_deploy.elastic.pretrained import check_reads, load_config, load_pretrained, space_for
from instatune_deploy.elastic.probing import longest_text
from instatune_deploy.elastic.subnetwork import check_space
from instatune_deploy.elastic.supernet import Supernet
from instatune_deploy.elastic.training import check_recomputing, check_report_to
from instatune_deploy.errors import (
    CheckpointError,
    RecipeError,
    TableError,
    TargetError,
    UnknownNameError,
    did_you_mean,
)
from instatune_deploy.executor import LOCAL, Executor
from instatune_deploy.profiling import Prober, target_tables
from instatune_deploy.searching import Fronts, evaluations_key
from instatune_deploy.stages.evaluate import Evaluator
from instatune_deploy.stages.evaluate.runs import metric_of
from instatune_deploy.stages.finetune import fine_tuned, finetune, teacher_key
from instatune_deploy.stages.propose import propose_space
from instatune_deploy.stages.tune import tune
from instatune_deploy.values.budget import Budget
from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.front import ParetoFront
from instatune_deploy.values.hashing import content_key
from instatune_deploy.values.latency import LatencyTable
from instatune_deploy.values.macs import NetworkShape
from instatune_deploy.values.presets import AUTO
from instatune_deploy.values.recipe import Recipe
from instatune_deploy.values.selection import selection_name
from instatune_deploy.values.space import Architecture, SearchSpace
from instatune_deploy.values.target import Target, find_target
from instatune_deploy.workspace import Workspace, data_directories, source_keys, tree_key, write_text

Report = Callable[[str], None]
#: Training rows that quantisation is calibrated on.
CALIBRATION_ROWS = 128


class Job:
    """What the stages of one recipe share. Each stage's result is made when first asked for, or read if it was made.

    Args:
        executor: where sub-networks are evaluated and targets measured.
    """

    def __init__(self, recipe: Recipe, workspace: Workspace, report: Report, executor: Executor = LOCAL) -> None:
        self.recipe, self.workspace, self.report, self.executor = recipe, workspace, report, executor
        self._tables: dict[str, list[LatencyTable]] = {}
        #: Where networks are run in the deployments that are searched for.
        self._sites: dict[Deployment, Site] = {}
        #: For each target the metric on the report split of the exported networks that were measured for a budget, kept or not.
        self.confirmed: dict[tuple[str, Architecture, Deployment], float] = {}

    # -- inputs ---------------------------------------------------------------------------------------------------

    def target(self, name: str) -> Target:
        """The target called `name`; one that its site cannot serve only where foreign tables will do.

        Raises:
            UnknownNameError, TargetError: there is none, or it will not do.
        """
        target = find_target(name, data_directories("targets"))
        if not self.recipe.profile.foreign_tables:
            self.executor.site(target).check(target)
        return target

    def check(self) -> list[Target]:
        """The recipe's targets, after a look at everything a user can get wrong; writes nothing.

        Raises:
            UsageError: something does not fit.
        """
        self.workspace.check_free()
        targets = [self.target(name) for name in self.recipe.targets]
        if len({target.name for target in targets}) < len(targets):
            raise RecipeError(f"targets: {', '.join(self.recipe.targets)} are not all different targets")
        check_reads(self.recipe.model, self.config, self.recipe.task)
        check_space(self.named_space, self.config)
        if self.named_space.size < 2:
            raise RecipeError(
                "space: holds the full network alone, so that there is nothing to choose from: give more depths or sizes"
            )
        check_report_to(self.recipe.finetune.report_to)
        check_recomputing(self.recipe.finetune, self.load_model())
        for split in (self.data.train, self.data.search, self.report_split):
            self.report(f"{split.name} split: {len(split)} samples")
        self.processor.head.check_metric(self.recipe.metric, self.data.classes)
        self._check_inputs()
        return targets

    def _check_inputs(self) -> None:
        """Make sure that the model can read what the processor makes.

        Raises:
            RecipeError: texts may be longer than it can read.
            CheckpointError: images are of another size.
        """
        recipe, head = self.recipe, self.processor.head
        longest = longest_text(self.config) if head.reads != "image" else None
        if longest is not None and recipe.data.sequence_length > longest:
            raise RecipeError(
                f"data.sequence_length is {recipe.data.sequence_length}, but {recipe.model} reads at most {longest} tokens"
            )
        side = getattr(self.config, "image_size", None) if head.reads != "text" else None
        if isinstance(side, int):
            height, width = self.data.search.rows[0]["pixel_values"].shape[-2:]
            if (height, width) != (side, side):
                raise CheckpointError(
                    f"{recipe.model}: its image processor makes images of {height}x{width} pixels, but the model reads "
                    f"{side}x{side}"
                )

    @cached_property
    def config(self) -> PretrainedConfig:
        return load_config(self.recipe.model)

    @cached_property
    def named_space(self) -> SearchSpace:
        """The space the recipe names or describes; where it is to be proposed, what tables must cover for that."""
        wanted = self.recipe.space
        return space_for(self.config, wanted if isinstance(wanted, str) else wanted.model_dump())

    @cached_property
    def space(self) -> SearchSpace:
        """The space the recipe asks for, proposed where it says so, before layers are ordered by importance."""
        recipe = self.recipe
        if recipe.space != AUTO:
            return self.named_space

        def teacher() -> PreTrainedModel:
            return fine_tuned(
                recipe.finetune, self.load_model, self.data, self.processor, self.workspace, key=self.inputs_key,
                seed=recipe.seed, report=self.report, inputs=self.inputs,
            )  # fmt: skip

        def tables(model: PreTrainedModel) -> list[LatencyTable]:
            targets = [self.target(name) for name in recipe.targets]
            return [table for target in targets for table in self._tables_of(target, model, self.named_space)]

        proposed = propose_space(
            recipe, teacher, tables, self.data.train, self.processor, self.workspace, key=self.inputs_key,
            report=self.report, inputs=self.inputs,
        )  # fmt: skip
        return space_for(self.config, proposed.model_dump())

    @cached_property
    def processor(self) -> Processor:
        return Processor(self.recipe.model, self.recipe.task, self.recipe.data.sequence_length)

    @cached_property
    def data(self) -> TaskData:
        return open_task_data(self.recipe.data, self.recipe.task, self.processor, seed=self.recipe.seed)

    def load_model(self) -> PreTrainedModel:
        """The pre-trained model, read anew."""
        recipe = self.recipe
        return load_pretrained(
            recipe.model, recipe.task, self.data.classes, reset_head=recipe.reset_head, seed=recipe.seed
        )

    @cached_property
    def report_split(self) -> Split:
        return open_report_split(self.recipe.data, self.recipe.task, self.processor, seed=self.recipe.seed)

    @cached_property
    def full_metric(self) -> float:
        """The full network's metric in fp32 on the report split, which candidates' losses are measured against."""
        network = self.supernet.extract(self.supernet.full)
        value = metric_of(network, self.report_split, self.processor, self.recipe.metric)
        self.report(
            f"full network in fp32: {self.recipe.metric} {value:.4f} on {len(self.report_split)} samples of the report split"
        )
        return value

    @cached_property
    def inputs_key(self) -> str:
        """A hash of `inputs`."""
        found, recipe = self.inputs, self.recipe
        bytes_of = [value for name, value in found.items() if name.startswith("content of ")]
        versions = {name: found[name] for name in ("torch", "transformers")}
        return content_key(bytes_of, found["data"], recipe.task, recipe.reset_head, recipe.seed, versions)

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """The model, the training rows and whatever else training depends on beside its settings, by name; a hash of the
        content stands for what lies on this machine."""
        recipe = self.recipe
        contents = {f"content of {name}": key for name, key in self.contents.items() if name != "data.report"}
        # Rows for the report are carved from the training rows where they have no source of their own.
        apart = {"train", "report"} if recipe.data.report is None else {"train", "report", "report_rows"}
        versions = {name: runtime_versions()[name] for name in ("torch", "transformers")}
        own = {name: getattr(recipe, name) for name in ("task", "reset_head", "seed")}
        return {**contents, "data": recipe.data.model_dump(exclude=apart), **own, **versions}

    @cached_property
    def confirmed_by(self) -> dict[str, Any]:
        """As `inputs`, with what decides on a measured metric alone: by changing it nothing is trained anew."""
        report = self.contents.get("data.report")
        return {**self.inputs, "content of data.report": report, "metric": self.recipe.metric}

    @cached_property
    def contents(self) -> dict[str, str]:
        """A hash of the content of the model and of each file of data that lies on this machine, or its name on a hub."""
        return source_keys(self.recipe.sources)

    # -- stages ---------------------------------------------------------------------------------------------------

    @cached_property
    def supernet(self) -> Supernet:
        """The elastic fine-tuned super-network."""
        recipe = self.recipe
        return finetune(
            recipe.finetune,
            self.load_model,
            self.space, self.data, self.processor, self.workspace, key=self.inputs_key, seed=recipe.seed,
            report=self.report, inputs=self.inputs,
        )  # fmt: skip

    def tuned(self, architecture: Architecture, epochs: float) -> PreTrainedModel:
        """A sub-network tuned alone for `epochs`, taught by the teacher or, where there was none, the super-network."""
        settings = self.recipe.finetune.model_copy(update={"epochs": epochs})
        # Another teacher may lie there, of what the recipe said before.
        made = settings.teacher is not None and self.workspace.is_done(
            "teacher", teacher_key(settings.teacher, self.inputs_key)
        )
        teacher = (
            type(self.supernet.model).from_pretrained(self.workspace.path("teacher"), use_safetensors=True)
            if made
            else copy.deepcopy(self.supernet.model)
        )
        return tune(
            self.supernet, architecture, teacher, settings, self.data, self.processor, self.workspace,
            key=self.supernet_key, seed=self.recipe.seed, report=self.report,
        )  # fmt: skip

    @cached_property
    def supernet_key(self) -> str:
        """A hash of the super-network's files."""
        self.supernet  # noqa: B018  makes them
        return tree_key(self.workspace.path("supernet"))

    @cached_property
    def shape(self) -> NetworkShape:
        return self.supernet.shape(self.recipe.data.sequence_length)

    def tables(self, target: Target) -> list[LatencyTable]:
        """A latency table for each deployment of `target` that its site can run, found or measured now; with foreign
        tables, also for those that it cannot run, where there is one.

        Raises:
            TargetError: there is no table of a target that its site cannot serve.
        """
        if target.name not in self._tables:
            self._tables[target.name] = self._tables_of(target, self.supernet.model, self.supernet.space)
        return self._tables[target.name]

    def _tables_of(self, target: Target, model: PreTrainedModel, space: SearchSpace) -> list[LatencyTable]:
        """As `tables`, for networks of the sizes of `model` and the choices of `space`."""
        # A prober of its own, for the files that one has made go with its target: hundreds of MB, needed by no one else.
        prober = self._prober(model, space)
        tables = target_tables(
            target, prober, self.recipe.profile, self.workspace.path("tables"),
            seed=self.recipe.seed, report=self.report, site=self.executor.site(target),
        )  # fmt: skip
        prober.clear()
        return tables

    @cached_property
    def prober(self) -> Prober:
        """Makes and measures networks of the super-network's shape."""
        return self._prober(self.supernet.model, self.supernet.space)

    def _prober(self, model: PreTrainedModel, space: SearchSpace) -> Prober:
        return self.executor.prober(
            model, space, self.recipe.data.sequence_length, self.workspace.path(".probes"), self.report,
            seed=self.recipe.seed,
        )  # fmt: skip

    @cached_property
    def evaluator(self) -> Evaluator:
        """Measures sub-networks on the search split; evaluations of another super-network or metric are put aside."""
        path = self.workspace.path("evaluations.jsonl")
        key = evaluations_key(self.supernet_key, self.recipe)
        if not self.workspace.is_done("evaluations", key):
            if path.exists():
                path.replace(path.with_suffix(".old.jsonl"))
            write_text(path, "")
            self.workspace.mark_done("evaluations", key, [path])
        return Evaluator(
            self.supernet, self.data.search, self.processor, metric=self.recipe.metric, path=path,
            beside=self.supernet.full, compute=self.executor.compute(self.supernet, self.processor.head.outputs),
            report=self.report,
        )  # fmt: skip

    @cached_property
    def deployed_evaluator(self) -> DeployedEvaluator:
        """Measures sub-networks on the search split in other precisions than fp32, into the same file."""
        return DeployedEvaluator(
            self.supernet, self.data.search, self.processor, metric=self.recipe.metric, path=self.evaluator.path,
            calibration=lambda: self.calibration, site_of=self._sites.__getitem__, report=self.report,
        )  # fmt: skip

    @cached_property
    def calibration(self) -> list[dict[str, np.ndarray]]:
        """Training inputs in batches, from which quantisation learns how large activations are."""
        train = self.data.train.rows.select(range(min(CALIBRATION_ROWS, len(self.data.train))))
        return [inputs for _, inputs in self.processor.batches(train, 8)]

    def search(self, targets: Sequence[Target], *, evaluate: bool = True) -> dict[str, ParetoFront]:
        """The front of every target by its name, kept from before or searched now, all of them in one search.

        The first search of a run evaluates sub-networks; those of further targets, also in later runs, evaluate nothing.

        Args:
            evaluate: whether it may; else it goes by what was evaluated before.

        Raises:
            UsageError: another process works on the run.
        """
        with self.workspace.locked():
            return self._search(targets, evaluate)

    @cached_property
    def fronts(self) -> Fronts:
        """What keeps and searches the fronts of this run."""
        return Fronts(self.recipe, self.workspace, self.report, self.supernet_key, self.supernet.space, self.shape)

    def _search(self, targets: Sequence[Target], evaluate: bool) -> dict[str, ParetoFront]:
        fronts = self.fronts
        elsewhere = self._elsewhere(fronts.places)
        found: dict[str, ParetoFront] = {}
        for target in targets:
            kept = fronts.kept(fronts.goal(self.tables(target), elsewhere))
            if kept is not None:
                found[target.name] = kept
        asked = {target.name: target for target in targets}
        missing = [name for name in asked if name not in found]
        groups = fronts.groups(missing, self._is_servable) if evaluate else [missing]
        for group in groups if missing else []:
            members = [asked[name] if name in asked else self.target(name) for name in group]
            goals = [fronts.goal(self.tables(member), elsewhere) for member in members]
            usable = dict[Deployment, Site]()
            for member in members:
                site = self.executor.site(member)
                usable |= dict.fromkeys(site.usable(member)[0], site)
            self._sites |= usable
            found |= fronts.search(goals, self.evaluator, self.deployed_evaluator, list(usable), evaluate=evaluate)
        return {target.name: found[target.name] for target in targets}

    def _is_servable(self, name: str) -> bool:
        try:
            self.target(name)
        except (UnknownNameError, TargetError):  # there is none of that name any more, or its site cannot serve it
            return False
        return True

    def _elsewhere(self, places: Sequence[str]) -> dict[str, LatencyTable]:
        """The tables of places, each a ``target:deployment``.

        Raises:
            TableError: a target has no table of a deployment; names those it has.
        """
        found = {}
        for place in places:
            name, _, deployment = place.partition(":")
            tables = {table.deployment.name: table for table in self.tables(self.target(name))}
            if deployment not in tables:
                raise TableError(
                    f"target {name} has no latency table for {deployment}{did_you_mean(deployment, tables)}"
                )
            found[place] = tables[deployment]
        return found

    # -- selections -----------------------------------------------------------------------------------------------

    def selection_stage(self, target: Target, budget: Budget) -> str:
        """Names the stage that selects for a budget on a target."""
        return f"select-{selection_name(target.name, self.recipe.percentile, budget)}"

    def selection_key(self, front: ParetoFront, budget: Budget) -> str:
        """What decides whether a selection is reused."""
        recipe = self.recipe
        tuned = recipe.tune_epochs or 0  # the default is 0, which is 0.0 once the run's own recipe was read
        return content_key(
            self.supernet_key, front.to_list(), budget.text, recipe.percentile, self.confirmed_by, recipe.max_drop, tuned
        )  # fmt: skip

    def selection_parts(self, front: ParetoFront, budget: Budget) -> dict[str, Any]:
        """What `selection_key` is the hash of, by name."""
        recipe = self.recipe
        own = {name: getattr(recipe, name) for name in ("percentile", "max_drop", "tune_epochs")}
        return {
            "content of the super-network": self.supernet_key, "content of the front": content_key(front.to_list()),
            "budget": budget.text, **own, **self.confirmed_by,
        }  # fmt: skip
