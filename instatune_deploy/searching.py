"""The fronts of a run: kept where nothing they follow from has changed, else searched, for several targets at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from instatune_deploy.deployed import DeployedEvaluator
from instatune_deploy.errors import UsageError
from instatune_deploy.stages.evaluate import Evaluator
from instatune_deploy.stages.predict import AccuracyPredictor, fit_predictor
from instatune_deploy.stages.search import RoundReport, SearchSettings, search
from instatune_deploy.values.costs import Costs, Goal
from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.front import Evaluation, ParetoFront
from instatune_deploy.values.hashing import content_key
from instatune_deploy.values.latency import LatencyTable
from instatune_deploy.values.macs import NetworkShape
from instatune_deploy.values.recipe import Recipe
from instatune_deploy.values.space import SearchSpace
from instatune_deploy.values.steadying import steadied
from instatune_deploy.workspace import Workspace, read_json, write_json

#: Says which targets' search evaluates, and whether it is done; written before it begins, so that one that was stopped is
#: resumed as it was.
OWNER_FILE = "searched_by.json"


def evaluations_key(supernet_key: str, recipe: Recipe) -> str:
    """What decides whether evaluations count."""
    return content_key(supernet_key, recipe.metric)


class Fronts:
    """The fronts of one super-network by a recipe's objectives and limits."""

    def __init__(
        self, recipe: Recipe, workspace: Workspace, report: Callable[[str], None], supernet_key: str,
        space: SearchSpace, shape: NetworkShape,
    ) -> None:  # fmt: skip
        self.recipe, self.workspace, self.report = recipe, workspace, report
        self.supernet_key, self.space, self.shape = supernet_key, space, shape
        self.objectives, self.limits = recipe.search.goals(recipe.metric)
        self._fitted: tuple[list[Evaluation], AccuracyPredictor] | None = None
        self._saved: AccuracyPredictor | None = None

    @property
    def places(self) -> list[str]:
        """The places, ``target:deployment``, whose latencies the objectives and limits name."""
        named = (*self.objectives, *(limit.objective for limit in self.limits))
        return sorted({objective.place for objective in named if objective.place is not None})

    def goal(self, tables: Sequence[LatencyTable], elsewhere: Mapping[str, LatencyTable]) -> Goal:
        """What is searched for on the target of `tables`."""
        costs = Costs(self.space, self.shape, tables, self.recipe.percentile, elsewhere)
        return Goal(costs, self.objectives, self.limits)

    def kept(self, goal: Goal) -> ParetoFront | None:
        """The front that was found before, if there is one."""
        if not self.holds(goal):
            return None
        self.report(f"front of {goal.costs.target}: reused, its super-network, tables and search are the same")
        return read_json(self._path(goal), ParetoFront.from_dict)

    def groups(self, missing: Sequence[str], servable: Callable[[str], bool]) -> list[list[str]]:
        """The searches to make now, each for the targets named, where those of `missing` are wanted.

        The first search of a super-network evaluates, once it is done no other does. One that was stopped, or found that
        nothing keeps its limits, is gone on with where its targets are wanted by the same objectives and limits; any other
        search takes its place. It brings all of its targets along: together they decide what is evaluated, also where a
        run was stopped after some of their fronts were kept.

        Args:
            servable: whether a target can be measured here.
        """
        owner = self.owner()
        same = owner is not None and _claimed(owner) == self._claim(owner["targets"])
        owned: list[str] = owner["targets"] if owner is not None and same else []
        first = owned if set(owned) & set(missing) and all(map(servable, owned)) else []
        if not first and (owner is None or not owner["done"]):
            self._own(self._claim(missing), done=False)
            return [list(missing)]
        return [names for names in (first, [name for name in missing if name not in first]) if names]

    def search(
        self,
        goals: Sequence[Goal],
        evaluator: Evaluator,
        deployed: DeployedEvaluator,
        deployments: Sequence[Deployment],
        *,
        evaluate: bool = True,
    ) -> dict[str, ParetoFront]:
        """Search and keep the front of each goal, by its target's name.

        Args:
            deployed: evaluates networks in other precisions than fp32.
            deployments: those of the goals that can be run.
            evaluate: whether networks may be evaluated, where it is these goals' search that does so.
        """
        names = [goal.costs.target for goal in goals]
        owner, claim = self.owner(), self._claim(names)
        evaluates = evaluate and owner is not None and _claimed(owner) == claim
        chosen = self.recipe.search.model_dump(exclude={"objectives", "limits"})
        found = search(
            self.space, goals, evaluate=(lambda wanted: evaluator(wanted, report=self.report)) if evaluates else None,
            deploy=(lambda wanted: deployed(wanted, deployments)) if evaluates else None,
            fit=self._fit,
            evaluations=[] if evaluates else [*evaluator.known.values(), *deployed.known.values()],
            settings=SearchSettings(**chosen), seed=self.recipe.seed, on_round=self._report_round,
        )  # fmt: skip
        self._keep_predictor(found.evaluations)
        rounds = [asdict(found_round) for found_round in found.rounds]
        for goal, front in zip(goals, found.fronts, strict=True):
            head = {"target": goal.costs.target, "percentile": self.recipe.percentile, "rounds": rounds}
            write_json(self._path(goal), {**head, **front.to_dict()})
            self.workspace.mark_done(
                self._stage(goal), self._key(goal), [self._path(goal)], made_from=self._parts(goal)
            )
        if evaluates:
            self._own(claim, done=True)
        return dict(zip(names, found.fronts, strict=True))

    # -- what fronts follow from ----------------------------------------------------------------------------------

    def _path(self, goal: Goal) -> Path:
        return self.workspace.path(self.recipe.front_file(goal.costs.target))

    def _stage(self, goal: Goal) -> str:
        return f"search-{self._path(goal).stem}"

    def _key(self, goal: Goal) -> str:
        tables = [table.to_json() for table in (*goal.costs.tables, *goal.costs.elsewhere.values())]
        return content_key(
            evaluations_key(self.supernet_key, self.recipe), self.recipe.search.model_dump(), tables,
            self.recipe.percentile, self.recipe.seed,
        )  # fmt: skip

    def _parts(self, goal: Goal) -> dict[str, Any]:
        """What `_key` is the hash of, by name."""
        tables = {table.deployment.name: content_key(table.to_json()) for table in goal.costs.tables}
        elsewhere = {place: content_key(table.to_json()) for place, table in goal.costs.elsewhere.items()}
        return {
            "content of the super-network": self.supernet_key, "search": self.recipe.search.model_dump(),
            **{f"content of the table of {name}": key for name, key in {**tables, **elsewhere}.items()},
            **{name: getattr(self.recipe, name) for name in ("metric", "percentile", "seed")},
        }  # fmt: skip

    def holds(self, goal: Goal) -> bool:
        """Whether the front of `goal` was found before."""
        return self.workspace.is_done(self._stage(goal), self._key(goal))

    def why_anew(self, goal: Goal) -> str | None:
        """Why there is no front of `goal` to keep; None: there never was one."""
        return self.workspace.why_anew(self._stage(goal), self._parts(goal))

    def _claim(self, targets: Sequence[str]) -> dict[str, Any]:
        wanted = {"objectives": [str(o) for o in self.objectives], "limits": [str(limit) for limit in self.limits]}
        return {
            "supernet": self.supernet_key, "metric": self.recipe.metric, "targets": sorted(targets),
            "percentile": self.recipe.percentile, **wanted,
        }  # fmt: skip

    def _own(self, claim: Mapping[str, Any], *, done: bool) -> None:
        write_json(self.workspace.path(OWNER_FILE), {**claim, "done": done})

    def owner(self) -> dict[str, Any] | None:
        """Whose search evaluates this super-network by this metric, and whether it is done; None: nobody's yet."""
        path = self.workspace.path(OWNER_FILE)
        owner = read_json(path, _read_owner) if path.exists() else None
        same = owner is not None and (owner["supernet"], owner["metric"]) == (self.supernet_key, self.recipe.metric)
        return owner if same else None

    # -- predictor ------------------------------------------------------------------------------------------------

    def _fit(self, known: list[Evaluation]) -> AccuracyPredictor:
        if self._fitted is None or self._fitted[0] != known:
            # Where nothing was sorted, more heads or neurons need not be better.
            monotone = self.recipe.finetune.importance != "none"
            self._fitted = known, fit_predictor(self.space, steadied(known), seed=self.recipe.seed, monotone=monotone)
        return self._fitted[1]

    def _keep_predictor(self, known: list[Evaluation]) -> None:
        predictor = self._fit(known)
        if predictor is self._saved:
            return
        quality = predictor.quality
        self.report(
            f"accuracy predictor: Kendall tau {quality.kendall_tau:.3f}, MAPE {quality.mape_pct:.2f}%, R2 {quality.r2:.3f}, "
            f"{quality.folds}-fold cross-validation on {quality.n} evaluations ({quality.metric}, {quality.split} split, "
            "steadied)"
        )
        predictor.save(self.workspace.path("predictor"))
        self._saved = predictor

    def _report_round(self, found: RoundReport) -> None:
        tau = "" if found.kendall_tau is None else f", predicted against measured: Kendall tau {found.kendall_tau:.3f}"
        self.report(
            f"search round {found.round}: {found.evaluated} evaluated, hypervolume {found.hypervolume:.4f}{tau}"
        )


def _read_owner(found: Any) -> dict[str, Any] | None:
    """What stands in `OWNER_FILE`; None: not what this version writes there."""
    keys = {"supernet", "metric", "targets", "done"}
    return found if isinstance(found, dict) and keys <= found.keys() else None


def _claimed(owner: Mapping[str, Any]) -> dict[str, Any]:
    """What an owner claims, whether its search is done or not."""
    return {key: value for key, value in owner.items() if key != "done"}


def read_front(workspace: Workspace, recipe: Recipe, target: str) -> ParetoFront:
    """The front of a target as it was found; nothing is searched.

    Raises:
        UsageError: there is none.
    """
    path = workspace.path(recipe.front_file(target))
    if not path.is_file():
        raise UsageError(f"no front of {target} was found yet: {path} is missing; call search without --front")
    return read_json(path, ParetoFront.from_dict)
