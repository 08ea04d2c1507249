"""Search accuracy x MACs x latency: LINAS, a cheap evolutionary search on predictions inside a few measured rounds.

As in InstaTune (arXiv 2308.15609): evaluate a first sample, then repeat: fit a predictor to all evaluations, let
NSGA-II find the front of the predictions, evaluate networks spread along that front.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.core.crossover import Crossover
from pymoo.core.duplicate import DuplicateElimination
from pymoo.core.evaluator import Evaluator
from pymoo.core.mutation import Mutation
from pymoo.core.population import Population
from pymoo.core.problem import Problem
from pymoo.core.sampling import Sampling
from pymoo.operators.survival.rank_and_crowding import RankAndCrowding
from pymoo.optimize import minimize
from scipy.stats import kendalltau

from instatune_deploy.errors import UsageError
from instatune_deploy.values.costs import Costs
from instatune_deploy.values.front import Candidate, Evaluation, ParetoFront
from instatune_deploy.values.latency import LatencyTable
from instatune_deploy.values.macs import ModelShape
from instatune_deploy.values.sampling import next_batch, random_new, warm_start
from instatune_deploy.values.space import Architecture, SearchSpace


class Predictor(Protocol):
    """Whatever predicts a metric (fraction 0..1), shape ``(n,)``, for n architectures."""

    def predict(self, architectures: Sequence[Architecture]) -> np.ndarray: ...


@dataclass(frozen=True)
class SearchSettings:
    """How much is searched (counts). A fresh search evaluates ``warm_start + rounds * batch`` architectures.

    `population` and `generations` are of NSGA-II on predictions and cost no evaluation.
    """

    population: int = 100
    generations: int = 50
    rounds: int = 4
    batch: int = 25
    warm_start: int = 40

    def __post_init__(self) -> None:
        for name, least in (("population", 4), ("generations", 1), ("rounds", 0), ("batch", 1), ("warm_start", 2)):
            if getattr(self, name) < least:
                raise UsageError(f"search setting {name} must be at least {least}, found {getattr(self, name)}")


@dataclass(frozen=True)
class RoundReport:
    """What a round brought; round 0 is the warm start.

    `evaluated` counts all different architectures so far. `hypervolume` is the share (0..1) of the box from nothing
    to metric 0 and 1.1 times the MACs and latency of the largest network that evaluated ones dominate. `kendall_tau`
    compares what was predicted of the round's batch before it was evaluated with what was measured; None without both.
    """

    round: int
    evaluated: int
    hypervolume: float
    kendall_tau: float | None


@dataclass(frozen=True)
class SearchResult:
    """The front, every evaluation known (those given first), and a report of each round."""

    front: ParetoFront
    evaluations: list[Evaluation]
    rounds: tuple[RoundReport, ...]


def search(
    space: SearchSpace,
    shape: ModelShape,
    tables: Sequence[LatencyTable],
    *,
    evaluate: Callable[[list[Architecture]], list[Evaluation]] | None,
    fit: Callable[[list[Evaluation]], Predictor],
    evaluations: Sequence[Evaluation],
    settings: SearchSettings,
    seed: int,
    percentile: str = "p50",
    on_round: Callable[[RoundReport], None] | None = None,
) -> SearchResult:
    """The front of metric (up), MACs (down) and latency (down) over architectures and the tables' deployments.

    With `evaluate`, only evaluated architectures are on the front: `evaluations` count towards the warm start, then
    every round evaluates a batch of new ones, until the space is exhausted. Without it, for another device say, the
    front holds the evaluated architectures and, from one search on predictions, predicted ones.

    Args:
        tables: latency tables of one target, each of another deployment and covering the space; their order is of no
            matter.
        evaluate: measures the metric of different architectures, on the search split.
        fit: makes a predictor from all evaluations so far.
        evaluations: known ones.
        percentile: which latency is searched: p50, p90 or p99.
        on_round: called after the warm start and after every round.

    Raises:
        UsageError: there are no tables, or two of the same deployment.
        TableError: a table lacks an entry or the percentile; raised before anything is evaluated.
        ArchitectureError: an evaluation is outside the space.
    """
    costs = Costs(space, shape, tables, percentile)
    found = list(evaluations)
    known = {space.check(e.architecture): None for e in found}  # a dict keeps the order in which they came
    reports: list[RoundReport] = []

    def measure(batch: list[Architecture], predicted: np.ndarray | None) -> None:
        fresh = evaluate(batch) if evaluate is not None and batch else []
        found.extend(fresh)
        known.update(dict.fromkeys(batch))
        volume = costs.hypervolume(costs.measured_candidates(found))
        tau = None if predicted is None else _rank_agreement(batch, predicted, fresh)
        reports.append(RoundReport(len(reports), len(known), volume, tau))
        if on_round is not None:
            on_round(reports[-1])

    if evaluate is not None:
        measure(warm_start(space, known, settings.warm_start, random.Random(f"{seed}/0")), None)
        for number in range(1, settings.rounds + 1):
            if len(known) >= space.size:
                break
            rng = random.Random(f"{seed}/{number}")
            predictor = fit(list(found))
            fronts = _search_predictions(costs, predictor, costs.measured_candidates(found), settings, rng)
            batch = next_batch(space, fronts, known, settings.batch, rng)
            measure(batch, predictor.predict(batch))
    candidates = costs.measured_candidates(found)
    if evaluate is None and len(known) < space.size:
        fronts = _search_predictions(costs, fit(list(found)), candidates, settings, random.Random(f"{seed}/last"))
        candidates += [candidate for front in fronts for candidate in front if candidate.architecture not in known]
    return SearchResult(ParetoFront.of(candidates), found, tuple(reports))


def _search_predictions(
    costs: Costs, predictor: Predictor, start: Sequence[Candidate], settings: SearchSettings, rng: random.Random
) -> list[list[Candidate]]:
    """A population of candidates that are good by prediction, as fronts, the non-dominated one first.

    The search sets out from the front of `start` and from random candidates.
    """
    problem = _PredictedProblem(costs, predictor)
    if costs.space.size * len(costs.tables) <= 10 * settings.population:
        # Small enough to be looked at whole: exact, and no generation is spent on finding duplicates.
        points = [(a, index) for a in costs.space for index in range(len(costs.tables))]
        everything = Evaluator().eval(problem, Population.new("X", _to_array(points)))
        random_state = np.random.default_rng(rng.randrange(2**31))
        survivors = RankAndCrowding().do(problem, everything, n_survive=settings.population, random_state=random_state)
    else:
        indices = {table.deployment: index for index, table in enumerate(costs.tables)}
        best = [(c.architecture, indices[c.deployment]) for c in ParetoFront.of(start).candidates]
        algorithm = NSGA2(
            pop_size=settings.population,
            sampling=_Start(best, rng),
            crossover=_LayerCrossover(rng),
            mutation=_SpaceMutation(rng),
            eliminate_duplicates=_ByValue(),
        )
        termination = ("n_gen", settings.generations)
        seed = rng.randrange(2**31)
        survivors = minimize(problem, algorithm, termination, seed=seed, copy_algorithm=False).pop
    fronts: dict[int, list[Candidate]] = defaultdict(list)
    for (architecture, index), rank in zip(survivors.get("X"), survivors.get("rank"), strict=True):
        metric = problem.metrics[architecture]
        fronts[int(rank)].append(costs.candidate(architecture, index, metric, "predictor"))
    return [sorted(fronts[rank], key=lambda c: (*c.objectives, str(c.architecture))) for rank in sorted(fronts)]


class _PredictedProblem(Problem):
    """Predicted objectives of (architecture, index of a table), the two variables of a candidate."""

    def __init__(self, costs: Costs, predictor: Predictor) -> None:
        super().__init__(n_var=2, n_obj=3, vtype=object)
        self.costs, self.predictor = costs, predictor
        self.metrics: dict[Architecture, float] = {}

    def _evaluate(self, x: np.ndarray, out: dict[str, Any], *_args: Any, **_kwargs: Any) -> None:
        fresh = list(dict.fromkeys(a for a in x[:, 0] if a not in self.metrics))
        if fresh:
            self.metrics.update(zip(fresh, self.predictor.predict(fresh).tolist(), strict=True))
        rows = [self.costs.candidate(a, index, self.metrics[a], "predictor").objectives for a, index in x]
        out["F"] = np.array(rows, dtype=np.float64)


class _Start(Sampling):
    """The best candidates known, at most half of a population, and random ones."""

    def __init__(self, best: Sequence[tuple[Architecture, int]], rng: random.Random) -> None:
        super().__init__()
        self.best, self.rng = best, rng

    def _do(self, problem: _PredictedProblem, n_samples: int, *_args: Any, **_kwargs: Any) -> np.ndarray:
        step = max(1, math.ceil(2 * len(self.best) / n_samples))
        points = list(self.best[::step])
        tables = range(len(problem.costs.tables))
        for architecture in random_new(problem.costs.space, {}, n_samples - len(points), self.rng):
            points.append((architecture, self.rng.choice(tables)))
        return _to_array(points)


class _LayerCrossover(Crossover):
    """Two children, each with layers and deployment of either parent."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__(n_parents=2, n_offsprings=2)
        self.rng = rng

    def _do(self, problem: _PredictedProblem, x: np.ndarray, *_args: Any, **_kwargs: Any) -> np.ndarray:
        children = np.empty_like(x)
        for pair in range(x.shape[1]):
            (first, index), (second, other) = x[0, pair], x[1, pair]
            for child in range(2):
                architecture = problem.costs.space.crossover(first, second, self.rng)
                children[child, pair] = architecture, self.rng.choice((index, other))
        return children


class _SpaceMutation(Mutation):
    """Redraws about one gene of the architecture, and the deployment one time in ten."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__(prob=0.9)
        self.rng = rng

    def _do(self, problem: _PredictedProblem, x: np.ndarray, *_args: Any, **_kwargs: Any) -> np.ndarray:
        tables, mutants = range(len(problem.costs.tables)), np.empty_like(x)
        for row, (architecture, index) in enumerate(x):
            probability = 1 / (2 * architecture.depth + 1)
            mutant = problem.costs.space.mutate(architecture, self.rng, probability=probability)
            mutants[row] = mutant, self.rng.choice(tables) if self.rng.random() < 0.1 else index
        return mutants


class _ByValue(DuplicateElimination):
    """Equal candidates are duplicates."""

    def _do(self, pop: Population, other: Population | None, is_duplicate: np.ndarray) -> np.ndarray:
        seen = {tuple(x) for x in other.get("X")} if other is not None else set()
        for row, x in enumerate(pop.get("X")):
            is_duplicate[row] = tuple(x) in seen
            seen.add(tuple(x))
        return is_duplicate


def _to_array(points: Sequence[tuple[Architecture, int]]) -> np.ndarray:
    """Shape ``(n, 2)``, of objects."""
    array = np.empty((len(points), 2), dtype=object)
    for row, point in enumerate(points):
        array[row] = point
    return array


def _rank_agreement(batch: Sequence[Architecture], predicted: np.ndarray, fresh: Sequence[Evaluation]) -> float | None:
    """Kendall tau of predictions and measurements of a batch; None where either leaves no order to agree on."""
    before = dict(zip(batch, predicted.tolist(), strict=True))
    pairs = [(before[e.architecture], e.value) for e in fresh if e.architecture in before]
    if len(pairs) < 2:
        return None
    tau = float(kendalltau(*zip(*pairs, strict=True)).statistic)
    return None if math.isnan(tau) else tau
