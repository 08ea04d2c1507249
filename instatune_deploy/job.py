"""`Job`: gives each stage of a recipe what it needs, and keeps what it made."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

from transformers import PretrainedConfig, PreTrainedModel

from instatune_deploy.data.dataset import Split, TaskData, open_report_split, open_task_data
from instatune_deploy.data.processor import Processor
from instatune_deploy.device.fingerprint import check_target, detect, runtime_versions, usable_deployments
from instatune_deploy.elastic.pretrained import load_config, load_pretrained, space_for
from instatune_deploy.elastic.subnetwork import check_space
from instatune_deploy.elastic.supernet import Supernet
from instatune_deploy.profiling import Prober, target_tables
from instatune_deploy.stages.evaluate import Evaluator
from instatune_deploy.stages.finetune import fine_tuned, finetune
from instatune_deploy.stages.predict import AccuracyPredictor, fit_predictor
from instatune_deploy.stages.propose import propose_space
from instatune_deploy.stages.search import RoundReport, SearchSettings, search
from instatune_deploy.stages.tune import tune
from instatune_deploy.values.front import Evaluation, ParetoFront
from instatune_deploy.values.latency import LatencyTable
from instatune_deploy.values.macs import ModelShape
from instatune_deploy.values.recipe import Recipe
from instatune_deploy.values.space import AUTO, Architecture, SearchSpace
from instatune_deploy.values.target import Target, find_target
from instatune_deploy.workspace import (
    Workspace,
    content_key,
    data_directories,
    tree_key,
    write_json,
    write_text,
)

Report = Callable[[str], None]


class Job:
    """What the stages of one recipe share. Each stage's result is made when first asked for, or read if it was made."""

    def __init__(self, recipe: Recipe, workspace: Workspace, report: Report) -> None:
        self.recipe, self.workspace, self.report = recipe, workspace, report
        self._tables: dict[str, list[LatencyTable]] = {}

    # -- inputs ---------------------------------------------------------------------------------------------------

    def target(self, name: str) -> Target:
        """The target called `name`; one that this machine cannot serve only where foreign tables will do.

        Raises:
            UnknownNameError, TargetError: there is none, or it will not do.
        """
        target = find_target(name, data_directories("targets"))
        if not self.recipe.profile.foreign_tables:
            check_target(target, detect())
        return target

    def check(self) -> list[Target]:
        """The recipe's targets, after a look at everything a user can get wrong; writes nothing.

        Raises:
            UsageError: something does not fit.
        """
        targets = [self.target(name) for name in self.recipe.targets]
        check_space(self.named_space, self.config)
        self.load_model()
        for split in (self.data.train, self.data.search, self.report_split):
            self.report(f"{split.name} split: {len(split)} samples")
        self.processor.head.check_metric(self.recipe.metric, self.data.classes)
        return targets

    def plan(self) -> list[str]:
        """What `run` would do, a line a stage; writes nothing."""
        recipe, targets = self.recipe, self.check()
        teacher, search_settings = recipe.finetune.teacher, recipe.search
        space = self.named_space
        choices = f"{len(space.head_choices)} head counts and {len(space.ffn_choices)} MLP widths"
        what = f"a space proposed from {choices}" if recipe.space == AUTO else f"{space.size:,} sub-networks"
        lines = [f"model {recipe.model} ({self.config.model_type}), {what}"]
        if teacher is not None:
            lines.append(f"fine-tune the full model: {teacher.epochs:g} epochs of {len(self.data.train)} samples")
        lines.append(f"elastic fine-tuning: {recipe.finetune.epochs:g} epochs of {len(self.data.train)} samples")
        for target in targets:
            names = ", ".join(deployment.name for deployment in usable_deployments(target, detect())[0])
            lines.append(f"profile {target.name}: {names}, at most {recipe.profile.seconds:g} s of measuring each")
        evaluated = search_settings.warm_start + search_settings.rounds * search_settings.batch
        lines.append(f"search: at most {evaluated} sub-networks evaluated on {len(self.data.search)} samples each")
        budgets = [f"{budget} on {name}" for name, wanted in recipe.targets.items() for budget in wanted]
        lines.append(f"select, export and confirm on {len(self.report_split)} samples: {', '.join(budgets)}")
        return [*lines, "what the run directory holds of this already is reused"]

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
                seed=recipe.seed, report=self.report,
            )  # fmt: skip

        def tables(model: PreTrainedModel) -> list[LatencyTable]:
            targets = [self.target(name) for name in recipe.targets]
            return [table for target in targets for table in self._tables_of(target, model, self.named_space)]

        proposed = propose_space(
            recipe, teacher, tables, self.data.train, self.processor, self.workspace, key=self.inputs_key,
            report=self.report,
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
    def inputs_key(self) -> str:
        """A hash of the model, the data and whatever else training depends on beside its settings."""
        recipe = self.recipe
        sources = [recipe.model, recipe.data.train, *([recipe.data.report] if recipe.data.report else [])]
        bytes_of = [tree_key(Path(source)) if Path(source).exists() else source for source in sources]
        rows = recipe.data.model_dump(exclude={"train", "report"})
        versions = {name: runtime_versions()[name] for name in ("torch", "transformers")}
        return content_key(bytes_of, rows, recipe.task, recipe.metric, recipe.reset_head, recipe.seed, versions)

    # -- stages ---------------------------------------------------------------------------------------------------

    @cached_property
    def supernet(self) -> Supernet:
        """The elastic fine-tuned super-network."""
        recipe = self.recipe
        return finetune(
            recipe.finetune,
            self.load_model,
            self.space, self.data, self.processor, self.workspace, key=self.inputs_key, seed=recipe.seed,
            report=self.report,
        )  # fmt: skip

    def tuned(self, architecture: Architecture, epochs: float) -> PreTrainedModel:
        """A sub-network tuned alone for `epochs`, taught by the teacher or, where there was none, the super-network."""
        settings = self.recipe.finetune.model_copy(update={"epochs": epochs})
        path = self.workspace.path("teacher")
        teacher = (
            type(self.supernet.model).from_pretrained(path) if path.is_dir() else copy.deepcopy(self.supernet.model)
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
    def shape(self) -> ModelShape:
        return self.supernet.shape(self.recipe.data.sequence_length)

    def tables(self, target: Target) -> list[LatencyTable]:
        """A latency table for each deployment of `target` that this machine can run, found or measured now; with foreign
        tables, also for those that it cannot run, where there is one.

        Raises:
            TargetError: there is no table of a target that this machine cannot serve.
        """
        if target.name not in self._tables:
            self._tables[target.name] = self._tables_of(target, self.supernet.model, self.supernet.space)
        return self._tables[target.name]

    def _tables_of(self, target: Target, model: PreTrainedModel, space: SearchSpace) -> list[LatencyTable]:
        """As `tables`, for networks of the sizes of `model` and the choices of `space`."""
        # A prober of its own, for the files that one has made go with its target: hundreds of MB, needed by no one else.
        tables = target_tables(
            target, self._prober(model, space), self.recipe.profile, self.workspace.path("tables"),
            seed=self.recipe.seed, report=self.report,
        )  # fmt: skip
        shutil.rmtree(self.workspace.path(".probes"), ignore_errors=True)
        return tables

    @cached_property
    def prober(self) -> Prober:
        """Makes and measures networks of the super-network's shape."""
        return self._prober(self.supernet.model, self.supernet.space)

    def _prober(self, model: PreTrainedModel, space: SearchSpace) -> Prober:
        return Prober(
            model, space, self.recipe.data.sequence_length, self.workspace.path(".probes"), self.report,
            seed=self.recipe.seed,
        )  # fmt: skip

    @cached_property
    def evaluator(self) -> Evaluator:
        """Measures sub-networks on the search split; evaluations of another super-network are put aside."""
        path = self.workspace.path("evaluations.jsonl")
        key = self.supernet_key
        if not self.workspace.is_done("evaluations", key):
            if path.exists():
                path.replace(path.with_suffix(".old.jsonl"))
            write_text(path, "")
            self.workspace.mark_done("evaluations", key, [path])
        return Evaluator(
            self.supernet, self.data.search, self.processor, metric=self.recipe.metric, path=path, report=self.report
        )

    def search(self, target: Target, tables: list[LatencyTable]) -> ParetoFront:
        """The front of metric, MACs and latency on `target`. The first target's search evaluates sub-networks; those
        of further targets, also in later runs, evaluate nothing."""
        recipe, stage = self.recipe, f"search-{target.name}-{self.recipe.percentile}"
        path, owner_path = (
            self.workspace.path("fronts", f"{target.name}-{recipe.percentile}.json"),
            self.workspace.path("searched_by.json"),
        )
        supernet_key = self.supernet_key
        key = content_key(
            supernet_key,
            recipe.search.model_dump(),
            [table.to_json() for table in tables],
            recipe.percentile,
            recipe.seed,
        )
        if self.workspace.is_done(stage, key):
            self.report(f"front of {target.name}: reused")
            return ParetoFront.from_list(json.loads(path.read_text(encoding="utf-8"))["front"])
        evaluator = self.evaluator
        # Who evaluates is written down first: a run that is stopped and resumed then does as one that was not.
        owner = [supernet_key, target.name, recipe.percentile]
        if not owner_path.exists() or json.loads(owner_path.read_text(encoding="utf-8"))[0] != supernet_key:
            write_json(owner_path, owner)
        evaluates = json.loads(owner_path.read_text(encoding="utf-8")) == owner
        found = search(
            self.supernet.space, self.shape, tables,
            evaluate=(lambda wanted: evaluator(wanted, report=self.report)) if evaluates else None,
            fit=lambda known: self._fit(known), evaluations=[] if evaluates else list(evaluator.known.values()),
            settings=SearchSettings(**recipe.search.model_dump()), seed=recipe.seed, percentile=recipe.percentile,
            on_round=self._report_round,
        )  # fmt: skip
        predictor = self._fit(found.evaluations)
        quality = predictor.quality
        self.report(
            f"accuracy predictor: Kendall tau {quality.kendall_tau:.3f}, MAPE {quality.mape_pct:.2f}%, R2 {quality.r2:.3f}, "
            f"{quality.folds}-fold cross-validation on {quality.n} evaluations ({quality.metric}, {quality.split} split)"
        )
        predictor.save(self.workspace.path("predictor"))
        rounds = [asdict(found_round) for found_round in found.rounds]
        write_json(
            path,
            {"target": target.name, "percentile": recipe.percentile, "rounds": rounds, "front": found.front.to_list()},
        )
        self.workspace.mark_done(stage, key, [path])
        return found.front

    def _fit(self, known: list[Evaluation]) -> AccuracyPredictor:
        # Where nothing was sorted, more heads or neurons need not be better.
        return fit_predictor(
            self.supernet.space, known, seed=self.recipe.seed, monotone=self.recipe.finetune.importance != "none"
        )

    def _report_round(self, found: RoundReport) -> None:
        tau = "" if found.kendall_tau is None else f", predicted against measured: Kendall tau {found.kendall_tau:.3f}"
        self.report(
            f"search round {found.round}: {found.evaluated} evaluated, hypervolume {found.hypervolume:.4f}{tau}"
        )
