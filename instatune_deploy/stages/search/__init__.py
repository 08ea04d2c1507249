"""Search networks and deployments for several objectives at once, on one target or several, with few evaluations.

As in InstaTune (arXiv 2308.15609), by LINAS: evaluate a first sample, then repeat: fit a predictor to all evaluations,
let a genetic search find what it thinks is good, evaluate some of that. `strategies` holds it and what it is compared to.
"""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import kendalltau

from instatune_deploy.errors import InfeasibleBudgetError, UnknownNameError, UsageError
from instatune_deploy.stages.search.beliefs import Beliefs, Fit
from instatune_deploy.stages.search.strategies import STRATEGIES, Strategy, Task, search_beliefs
from instatune_deploy.values.budget import Bound, excess, nearest
from instatune_deploy.values.costs import Goal
from instatune_deploy.values.front import Candidate, Evaluation, ParetoFront
from instatune_deploy.values.sampling import random_new, spread_by_macs, warm_start
from instatune_deploy.values.space import Architecture, SearchSpace

Evaluate = Callable[[list[Architecture]], list[Evaluation]]
#: Growth of the hypervolume, as a share of it, over `SearchSettings.patience` rounds, below which a search has stalled.
STALL = 5e-4


@dataclass(frozen=True)
class SearchSettings:
    """How much is searched, and how.

    A fresh search evaluates ``warm_start + rounds * batch`` architectures, or, where that is given, `evaluations`. It ends
    before that after `minutes`, or when the hypervolume has not grown in `patience` rounds (0: never).
    `deployed` architectures are also evaluated in the other precisions of the targets.
    `inner` (``nsga2`` or ``nsga3``), `population` and `generations` are of genetic searches on predictions and cost no
    evaluation; with method ``nsga2`` the population is what is evaluated a round.

    Raises:
        UsageError: a number is too small.
        UnknownNameError: there is no such method.
    """

    method: str = "linas"
    inner: str = "nsga2"
    population: int = 100
    generations: int = 30
    rounds: int = 7
    batch: int = 10
    warm_start: int = 30
    evaluations: int | None = None
    minutes: float | None = None
    patience: int = 3
    deployed: int = 0

    def __post_init__(self) -> None:
        least = {
            "population": 4, "generations": 1, "rounds": 0, "batch": 1, "warm_start": 2, "evaluations": 1, "patience": 0,
            "deployed": 0,
        }  # fmt: skip
        for name, smallest in least.items():
            if (value := getattr(self, name)) is not None and value < smallest:
                raise UsageError(f"search setting {name} must be at least {smallest}, found {value}")
        if self.minutes is not None and not self.minutes > 0:
            raise UsageError(f"search setting minutes must be more than 0, found {self.minutes}")
        if self.method not in STRATEGIES:
            raise UnknownNameError("search method", self.method, STRATEGIES)
        if self.inner not in ("nsga2", "nsga3"):
            raise UnknownNameError("inner search", self.inner, ("nsga2", "nsga3"))


@dataclass(frozen=True)
class RoundReport:
    """What a round brought; round 0 is the warm start.

    `evaluated` counts all different architectures so far. `hypervolume` is the share (0..1) of the box from nothing
    to metric 0 and 1.1 times the costs of the largest network that evaluated ones dominate, the mean over targets.
    `kendall_tau` compares what was predicted of the round's batch before it was evaluated with what was measured; None
    without both.
    """

    round: int
    evaluated: int
    hypervolume: float
    kendall_tau: float | None


@dataclass(frozen=True)
class SearchResult:
    """A front for each goal, every evaluation known (those given first), and a report of each round."""

    fronts: tuple[ParetoFront, ...]
    evaluations: list[Evaluation]
    rounds: tuple[RoundReport, ...]

    @property
    def front(self) -> ParetoFront:
        """The front of the first goal."""
        return self.fronts[0]


def search(
    space: SearchSpace, goals: Sequence[Goal], *, evaluate: Evaluate | None, fit: Fit,
    evaluations: Sequence[Evaluation], settings: SearchSettings, seed: int,
    deploy: Evaluate | None = None,
    strategy: Callable[[Task], Strategy] | None = None, on_round: Callable[[RoundReport], None] | None = None,
) -> SearchResult:  # fmt: skip
    """The fronts of one or several goals over architectures and deployments; what is evaluated serves all of them.

    With `evaluate`, only evaluated architectures are on the fronts: `evaluations` count towards the warm start, then
    every round evaluates a batch of new ones. Without it, for another device say, the fronts hold the evaluated
    architectures and, from one search on predictions, predicted ones. Only what keeps a goal's limits is on its front.

    Args:
        goals: one a target. Methods other than ``linas`` go by the first; the fronts are of all.
        evaluate: measures the metric of different architectures, on the search split.
        fit: makes a predictor from all evaluations so far.
        deploy: measures the metric of architectures in every precision but fp32 of the goals' deployments.
        evaluations: known ones.
        strategy: makes the strategy, if not the one that `settings` name.
        on_round: called after the warm start and after every round.

    Raises:
        UsageError: there is no goal.
        ArchitectureError: an evaluation is outside the space.
        InfeasibleBudgetError: nothing can keep a goal's limits (raised before anything is evaluated, as far as that can
            be known), or nothing that was found does; names the nearest three.
    """
    if not goals:
        raise UsageError("a search needs a goal: profile a target first")
    found = list(evaluations)
    known = {space.check(e.architecture): None for e in found}  # a dict keeps the order in which they came
    for goal in goals:
        check_feasible(goal)
    task = Task(
        space, tuple(goals), sizes=(settings.warm_start, settings.batch), inner=settings.inner,
        population=settings.population, generations=settings.generations, fit=fit,
    )  # fmt: skip
    reports: list[RoundReport] = []
    way = (strategy or STRATEGIES[settings.method])(task)
    if evaluate is not None:
        began, given = time.monotonic(), len(known)
        for number in itertools.count():
            rng = random.Random(f"{seed}/{number}")
            wanted = way.begin(found, rng) if number == 0 else way.propose(found, rng)
            batch = [a for a in dict.fromkeys(wanted) if a not in known]
            if number == 0:
                batch = _with_largest(goals, known, batch)
            elif not batch:
                batch = random_new(space, known, settings.batch, rng)
            if settings.evaluations is not None:
                batch = batch[: settings.evaluations - (len(known) - given)]
            fresh = evaluate(batch) if batch else []
            predictor = way.predictor
            tau = _rank_agreement(batch, predictor.predict(batch), fresh) if predictor is not None else None
            found.extend(fresh)
            known.update(dict.fromkeys(batch))
            if number == 0 and deploy is not None:
                found.extend(deploy(spread_by_macs(goals[0].costs.shape, known, math.ceil(settings.deployed / 2))))
            reports.append(RoundReport(number, len(known), _mean_hypervolume(goals, found), tau))
            if on_round is not None:
                on_round(reports[-1])
            new = len(known) - given
            spent = number >= settings.rounds if settings.evaluations is None else new >= settings.evaluations
            late = settings.minutes is not None and time.monotonic() - began >= 60 * settings.minutes
            if spent or late or len(known) >= space.size or _stalled(reports, settings.patience):
                break
        if deploy is not None:
            found.extend(deploy(_of_fronts(task, found, way, settings.deployed // 2)))
    return SearchResult(_fronts(task, found, way, evaluate is None, seed), found, tuple(reports))


def front_of(goal: Goal, found: Sequence[Evaluation], fit: Fit | None) -> ParetoFront:
    """The front of what was evaluated; by predictions, too, where there is a `fit` (see `Beliefs`).

    Raises:
        InfeasibleBudgetError: nothing keeps the goal's limits; names the nearest three.
    """
    beliefs = Beliefs(fit(list(found)) if fit is not None else None, found)
    return _kept(goal, beliefs, beliefs.candidates(goal, beliefs.measured))


def _fronts(task: Task, found: list[Evaluation], way: Strategy, predict: bool, seed: int) -> tuple[ParetoFront, ...]:
    """The front of each goal; where `predict`, with networks that were not evaluated."""
    rng = random.Random(f"{seed}/last")
    # A space of which all is known needs no predictions to tell luck from merit: its front is what was measured.
    unknown = len({evaluation.architecture for evaluation in found}) < task.space.size
    predicted = unknown and (predict or way.predictor is not None)
    beliefs = Beliefs(task.fit(list(found)) if predicted else None, found)
    fronts = []
    for goal in task.goals:
        candidates = beliefs.candidates(goal, beliefs.measured)
        if predict and predicted:
            points = search_beliefs(task, goal, beliefs, rng, optimism=0.0)
            candidates += [beliefs.candidate(goal, *point) for point in points if point[0] not in beliefs.measured]
        fronts.append(_kept(goal, beliefs, candidates))
    return tuple(fronts)


def _of_fronts(task: Task, found: list[Evaluation], way: Strategy, count: int) -> list[Architecture]:
    """Up to `count` architectures of the fronts, to look at in other precisions, none of which was."""
    seen = {evaluation.architecture for evaluation in found if evaluation.precision != "fp32"}
    fronts = _fronts(task, found, way, False, 0) if count else ()
    wanted = [c.architecture for front in fronts for c in front.candidates if c.deployment.arithmetic != "fp32"]
    return spread_by_macs(task.goals[0].costs.shape, [a for a in dict.fromkeys(wanted) if a not in seen], count)


def _kept(goal: Goal, beliefs: Beliefs, candidates: Sequence[Candidate]) -> ParetoFront:
    """The front of the candidates that keep a goal's limits.

    Raises:
        InfeasibleBudgetError: none does, though there are candidates.
    """
    bounds = beliefs.bounds(goal) if candidates else []
    kept = [candidate for candidate in candidates if excess(candidate, bounds) <= 0]
    if candidates and not kept:
        raise _infeasible(goal, f"of {len(candidates)} candidates none keeps", bounds, candidates)
    return ParetoFront.of(kept, goal.objectives)


def check_feasible(goal: Goal) -> None:
    """Look at the cheapest networks of every deployment, before anything is evaluated.

    Raises:
        InfeasibleBudgetError: none of them keeps the goal's limits; names the nearest three.
    """
    bounds = [bound for bound in goal.bounds(lambda: math.nan) if bound.objective.kind != "metric"]
    space, tables = goal.costs.space, range(len(goal.costs.tables))
    small = [space.smallest, *warm_start(space, [], 200, random.Random(0))] if bounds else []
    candidates = [goal.costs.candidate(a, index, 0.0, "predictor") for a in dict.fromkeys(small) for index in tables]
    if bounds and not any(excess(candidate, bounds) <= 0 for candidate in candidates):
        raise _infeasible(goal, "no network of the space keeps", bounds, candidates)


def _infeasible(
    goal: Goal, what: str, bounds: Sequence[Bound], candidates: Sequence[Candidate]
) -> InfeasibleBudgetError:
    limits = ", ".join(f"{bound.objective} {bound}" for bound in bounds)
    near = nearest(candidates, bounds, goal.costs.percentile)
    return InfeasibleBudgetError(f"{what} the limits on {goal.costs.target} ({limits}); nearest: {near}")


def _with_largest(
    goals: Sequence[Goal], known: dict[Architecture, None], batch: list[Architecture]
) -> list[Architecture]:
    """`batch`, with the largest network where a limit is relative to its metric."""
    largest = goals[0].costs.space.largest
    relative = any(limit.basis == "loss" for goal in goals for limit in goal.limits)
    return [largest, *batch] if relative and largest not in known and largest not in batch else batch


def _mean_hypervolume(goals: Sequence[Goal], found: Sequence[Evaluation]) -> float:
    """Of what was measured, whatever is predicted of it."""
    beliefs = Beliefs(None, found)
    volumes = []
    for goal in goals:
        candidates = beliefs.candidates(goal, beliefs.measured)
        bounds = beliefs.bounds(goal) if candidates else []
        volumes.append(goal.hypervolume([c for c in candidates if excess(c, bounds) <= 0]))
    return math.fsum(volumes) / len(volumes)


def _stalled(reports: Sequence[RoundReport], patience: int) -> bool:
    """Whether the hypervolume has hardly grown in the last `patience` rounds."""
    if not 0 < patience < len(reports):
        return False
    return reports[-1].hypervolume <= (1 + STALL) * reports[-1 - patience].hypervolume


def _rank_agreement(batch: Sequence[Architecture], predicted: np.ndarray, fresh: Sequence[Evaluation]) -> float | None:
    """Kendall tau of predictions and measurements of a batch; None where either leaves no order to agree on."""
    before = dict(zip(batch, predicted.tolist(), strict=True))
    pairs = [(before[e.architecture], e.value) for e in fresh if e.architecture in before]
    if len(pairs) < 2:
        return None
    tau = float(kendalltau(*zip(*pairs, strict=True)).statistic)
    return None if math.isnan(tau) else tau
