"""Genetic search of one goal: a pymoo problem over (architecture, deployment), and operators that stay in the space."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from pymoo.algorithms.base.genetic import GeneticAlgorithm
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.algorithms.moo.nsga3 import NSGA3
from pymoo.core.crossover import Crossover
from pymoo.core.duplicate import DuplicateElimination
from pymoo.core.mutation import Mutation
from pymoo.core.population import Population
from pymoo.core.problem import Problem
from pymoo.core.sampling import Sampling
from pymoo.optimize import minimize
from pymoo.util.ref_dirs import get_reference_directions

from instatune_deploy.stages.search.beliefs import Beliefs
from instatune_deploy.values.budget import Bound
from instatune_deploy.values.costs import Goal
from instatune_deploy.values.sampling import random_new
from instatune_deploy.values.space import Architecture

#: A candidate as a search sees it: an architecture and the number of its deployment's table.
Point = tuple[Architecture, int]


def evolve(
    goal: Goal, beliefs: Beliefs, start: Sequence[Point], rng: random.Random, *, algorithm: str, population: int,
    generations: int, optimism: float = 0.0,
) -> list[Point]:  # fmt: skip
    """The last population of a genetic search on beliefs: candidates that are thought to be good, and differ.

    It sets out from `start`, at most half of a population of it, and random candidates. A space that is small enough is
    looked at whole instead: exact, and no generation is spent on finding duplicates.

    Args:
        algorithm: see `genetic_algorithm`.
        optimism: see `Beliefs.metric`.
    """
    tables = range(len(goal.costs.tables))
    if goal.costs.space.size * len(tables) <= 10 * population:
        return [(architecture, index) for architecture in goal.costs.space for index in tables]
    found = minimize(
        CandidateProblem(goal, beliefs, optimism), genetic_algorithm(algorithm, goal, population, start, rng),
        ("n_gen", generations), seed=rng.randrange(2**31), copy_algorithm=False,
    )  # fmt: skip
    return [(architecture, index) for architecture, index in found.pop.get("X")]


def genetic_algorithm(
    name: str, goal: Goal, population: int, start: Sequence[Point], rng: random.Random
) -> GeneticAlgorithm:
    """NSGA-II or NSGA-III, by `name` (``nsga2``, ``nsga3``), with operators of this space.

    NSGA-II is the better one also for three objectives: MACs and latency go together, so that the front is nearly a curve
    and most of NSGA-III's directions lead nowhere. On MiniLM-L6's space with five deployments NSGA-II's populations had
    0.6360 of the hypervolume three times over, NSGA-III's 0.633 with a standard deviation of 0.004.
    """
    options: dict[str, Any] = {
        "pop_size": population,
        "sampling": _Start(start, rng),
        "crossover": _LayerCrossover(rng),
        "mutation": _SpaceMutation(rng),
        "eliminate_duplicates": _ByValue(),
    }
    if name == "nsga2":
        return NSGA2(**options)
    # As many directions as there is room for: of n partitions there are n + 1 or, on a triangle, (n + 1)(n + 2) / 2.
    objectives = len(goal.objectives)
    partitions = next(n for n in itertools.count(1) if math.comb(n + objectives, objectives - 1) > population)
    return NSGA3(get_reference_directions("das-dennis", objectives, n_partitions=partitions), **options)


class CandidateProblem(Problem):
    """Believed objectives, and limits, of candidates; its two variables are those of a `Point`."""

    def __init__(self, goal: Goal, beliefs: Beliefs, optimism: float = 0.0) -> None:
        super().__init__(n_var=2, n_obj=len(goal.objectives), n_ieq_constr=len(goal.limits), vtype=object)
        self.goal, self.beliefs, self.optimism = goal, beliefs, optimism

    @cached_property
    def bounds(self) -> list[Bound]:
        """What the limits come to, once something is known."""
        return self.beliefs.bounds(self.goal)

    def _evaluate(self, x: np.ndarray, out: dict[str, Any], *_args: Any, **_kwargs: Any) -> None:
        self.beliefs.look_at(x[:, 0])
        candidates = [self.beliefs.candidate(self.goal, a, index, optimism=self.optimism) for a, index in x]
        out["F"] = np.array([c.point(self.goal.objectives) for c in candidates], dtype=np.float64)
        if self.bounds:
            excess = [[bound.predicted_excess(c.predicted) for bound in self.bounds] for c in candidates]
            out["G"] = np.array(excess, dtype=np.float64)


class _Start(Sampling):
    """The best candidates known, at most half of a population, and random ones."""

    def __init__(self, best: Sequence[Point], rng: random.Random) -> None:
        super().__init__()
        self.best, self.rng = best, rng

    def _do(self, problem: CandidateProblem, n_samples: int, *_args: Any, **_kwargs: Any) -> np.ndarray:
        step = max(1, math.ceil(2 * len(self.best) / n_samples))
        points = list(dict.fromkeys(self.best[::step]))
        costs = problem.goal.costs
        for architecture in random_new(costs.space, {}, n_samples - len(points), self.rng):
            points.append((architecture, self.rng.randrange(len(costs.tables))))
        return _to_array(points)


class _LayerCrossover(Crossover):
    """Two children, each with layers and deployment of either parent."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__(n_parents=2, n_offsprings=2)
        self.rng = rng

    def _do(self, problem: CandidateProblem, x: np.ndarray, *_args: Any, **_kwargs: Any) -> np.ndarray:
        children = np.empty_like(x)
        for pair in range(x.shape[1]):
            (first, index), (second, other) = x[0, pair], x[1, pair]
            for child in range(2):
                architecture = problem.goal.costs.space.crossover(first, second, self.rng)
                children[child, pair] = architecture, self.rng.choice((index, other))
        return children


class _SpaceMutation(Mutation):
    """Redraws about one gene of the architecture, and the deployment one time in ten.

    pymoo's own probability is that an individual is mutated at all (its polynomial mutation at 0.02, a usual setting,
    leaves 98% as they are); here nine of ten are, and each of them changes.
    """

    def __init__(self, rng: random.Random) -> None:
        super().__init__(prob=0.9)
        self.rng = rng

    def _do(self, problem: CandidateProblem, x: np.ndarray, *_args: Any, **_kwargs: Any) -> np.ndarray:
        costs, mutants = problem.goal.costs, np.empty_like(x)
        for row, (architecture, index) in enumerate(x):
            mutant = costs.space.mutate(architecture, self.rng, probability=1 / (2 * architecture.depth + 1))
            mutants[row] = mutant, self.rng.randrange(len(costs.tables)) if self.rng.random() < 0.1 else index
        return mutants


class _ByValue(DuplicateElimination):
    """Equal candidates are duplicates."""

    def _do(self, pop: Population, other: Population | None, is_duplicate: np.ndarray) -> np.ndarray:
        seen = {tuple(x) for x in other.get("X")} if other is not None else set()
        for row, x in enumerate(pop.get("X")):
            is_duplicate[row] = tuple(x) in seen
            seen.add(tuple(x))
        return is_duplicate


def _to_array(points: Sequence[Point]) -> np.ndarray:
    """Shape ``(n, 2)``, of objects."""
    array = np.empty((len(points), 2), dtype=object)
    for row, point in enumerate(points):
        array[row] = point
    return array
