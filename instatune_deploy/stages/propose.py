"""Stage of `space: auto`: scores the fine-tuned model and proposes the choices that each layer needs on the targets."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import yaml
from transformers import PreTrainedModel

from instatune_deploy.data.dataset import Split
from instatune_deploy.data.processor import Processor
from instatune_deploy.elastic.importance import SCORERS, layer_drops
from instatune_deploy.elastic.processes import is_main_process
from instatune_deploy.elastic.subnetwork import full_architecture
from instatune_deploy.elastic.supernet import Supernet
from instatune_deploy.elastic.training import labelled_batches
from instatune_deploy.errors import RecipeError, UsageError
from instatune_deploy.values.hashing import content_key
from instatune_deploy.values.latency import LatencyTable
from instatune_deploy.values.proposal import Proposal, Scores, propose
from instatune_deploy.values.recipe import FinetuneSection, Recipe, SpaceSection, read_recipe
from instatune_deploy.values.space import SearchSpace
from instatune_deploy.workspace import Workspace, write_text

Report = Callable[[str], None]

SPACE_FILE = "space.yaml"
#: Settings that a proposal depends on beside model, data and seed.
_SCORED_BY = {"teacher", "importance", "importance_rows", "batch_size"}
#: Fewer are no space to search.
_LEAST_NETWORKS = 16


def propose_space(
    recipe: Recipe, fine_tuned: Callable[[], PreTrainedModel], tables: Callable[[PreTrainedModel], list[LatencyTable]],
    train: Split, processor: Processor, workspace: Workspace, *, key: str, report: Report,
    inputs: Mapping[str, Any] | None = None,
) -> SpaceSection:  # fmt: skip
    """The space for a recipe that asks for `auto`, made or, where `workspace` holds it for the same inputs, read.

    It is written to ``space.yaml``, the same recipe with the space and its reasons in it: to be read, and to be edited
    and run. What stands there is what is used. Targets are not in the key: one more target needs no other training.

    Args:
        fine_tuned: makes or reads the fine-tuned full model.
        tables: finds or measures latency tables of `values.proposal.probing_space` for that model, on all targets.
        train: rows to score on.
        key: hash of model, data and seed; with the settings of the scoring it decides what is reused.
        report: is told each step and each reason, a line each.
        inputs: what `key` is the hash of, by name, for the record.

    Raises:
        UsageError: the fine-tuned model has learnt nothing, or the tables can hardly tell a network from another.
        RecipeError: what stands in ``space.yaml`` is no recipe, or says no space.
    """
    key = proposal_key(recipe, key)
    path = workspace.path(SPACE_FILE)
    if workspace.is_done("space", key):
        report(f"space: reused, as {path} says")
    else:
        teacher = fine_tuned()  # by all processes that train together
        if is_main_process():
            scores = score(recipe.finetune, teacher, train, processor, report)
            measured = tables(teacher)
            proposal = propose(full_architecture(teacher.config), scores, measured)
            if (size := proposal.space.size) < _LEAST_NETWORKS:
                noise_pct = min(table.error.noise_floor_pct for table in measured)
                raise UsageError(
                    f"space: auto found {size} networks worth choosing from: others save no time that the latency tables "
                    f"can tell, whose noise is {noise_pct:.1f}% at least; measure for longer on a quieter machine "
                    f"(profile.seconds, after removing {workspace.path('tables')}), or name the choices"
                )
            for line in proposal.to_yaml().splitlines():
                report(line)
            write_text(path, _with_reasons(recipe, proposal))
            workspace.mark_done("space", key, [path], made_from=proposal_parts(recipe, inputs or {}))
        while not workspace.is_done("space", key):  # the others sleep: they would disturb what is measured
            time.sleep(1)
    found = read_recipe(path).space
    if isinstance(found, str):
        raise RecipeError(f"{path}: space: is {found!r}, expected depths, heads and ffn; remove the file to start anew")
    return found


def proposal_key(recipe: Recipe, key: str) -> str:
    """What decides whether a proposed space is reused; `key` is the hash of model, data and seed."""
    return content_key(key, recipe.finetune.model_dump(include=_SCORED_BY))


def proposal_parts(recipe: Recipe, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What `proposal_key` is the hash of, by name."""
    return {**inputs, "finetune": recipe.finetune.model_dump(include=_SCORED_BY)}


def score(
    settings: FinetuneSection, teacher: PreTrainedModel, train: Split, processor: Processor, report: Report
) -> Scores:
    """What heads, neurons and layers matter to the fine-tuned model, on the first `importance_rows` of `train`.

    Raises:
        UsageError: it does no better with all of its layers than with one, so that scores would mean nothing.
    """
    full = full_architecture(teacher.config)
    heads, ffn = full.layers[0]
    network = Supernet(teacher, SearchSpace.homogeneous(full.depth, range(1, full.depth + 1), [heads], [ffn]))
    batches = labelled_batches(train, settings.importance_rows, settings.batch_size, processor)
    report(f"importance of heads, neurons and layers on {min(settings.importance_rows, len(train))} training samples")
    importance = SCORERS[settings.importance](network, batches)
    losses = layer_drops(network, batches, report=report).losses
    if full.depth > 1 and losses[full.depth] >= losses[1]:
        raise UsageError(
            f"space: auto: the model's loss is {losses[full.depth]:.3f} and {losses[1]:.3f} with one layer alone, so it is "
            "not fine-tuned for this task; finetune.teacher says how it shall be"
        )
    of_heads, of_neurons = (tuple(tuple(layer.tolist()) for layer in sets[0]) for sets in importance.units)
    return Scores(of_heads, of_neurons, losses)


def _with_reasons(recipe: Recipe, proposal: Proposal) -> str:
    """The recipe as YAML with the proposed space, its reasons as comments."""
    rest = yaml.safe_dump(recipe.model_dump(exclude={"space"}), sort_keys=False)
    head = "# What `space: auto` proposed, and why. Edited or not, it is a recipe that can be run.\n"
    return f"{head}{proposal.to_yaml()}{rest}"
