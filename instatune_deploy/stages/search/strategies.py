"""The ways to search, behind one seam: LINAS and, for comparison, NSGA-II, regularised evolution and random sampling.

A strategy is asked what to evaluate, is told everything that was evaluated, and is asked again.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from pymoo.algorithms.base.genetic import GeneticAlgorithm
from pymoo.core.evaluator import Evaluator
from pymoo.core.population import Population

from instatune_deploy.stages.search.beliefs import Beliefs, Fit, Predictor
from instatune_deploy.stages.search.choose import OPTIMISM, choose
from instatune_deploy.stages.search.evolve import CandidateProblem, Point, evolve, genetic_algorithm
from instatune_deploy.values.costs import Goal
from instatune_deploy.values.front import Evaluation, ParetoFront
from instatune_deploy.values.sampling import fill_up, random_new, warm_start
from instatune_deploy.values.space import Architecture, SearchSpace


@dataclass(frozen=True)
class Task:
    """What a strategy is for.

    `sizes` are how many architectures to begin with and how many more a round (counts); `inner`, `population` and
    `generations` are of genetic searches on predictions; `fit` makes a predictor of all evaluations.
    """

    space: SearchSpace
    goals: tuple[Goal, ...]
    sizes: tuple[int, int]
    population: int
    generations: int
    fit: Fit
    inner: str = "nsga2"


class Strategy(Protocol):
    """Says what to evaluate next."""

    predictor: Predictor | None
    """What it went by when it was last asked, if it predicts."""

    def begin(self, known: Sequence[Evaluation], rng: random.Random) -> list[Architecture]:
        """What to evaluate first, where `known` is known already."""
        ...

    def propose(self, known: Sequence[Evaluation], rng: random.Random) -> list[Architecture]:
        """What to evaluate next, the most wanted first; what is known already among it costs nothing."""
        ...


class Linas:
    """LINAS (arXiv 2205.10358): fit a predictor, search its predictions, evaluate some of what that finds, repeat.

    As published, all of the last population of the inner search is evaluated. Here those of it are that improve the
    front or teach the most (see `choose`), so that a round is small and the predictor is fitted often; it begins
    with the extremes and the homogeneous networks; and the inner search goes on where that of the round before ended.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.predictor: Predictor | None = None
        self._populations: list[list[Point]] = [[] for _ in task.goals]

    def begin(self, known: Sequence[Evaluation], rng: random.Random) -> list[Architecture]:
        return warm_start(self.task.space, _architectures(known), self.task.sizes[0], rng)

    def propose(self, known: Sequence[Evaluation], rng: random.Random) -> list[Architecture]:
        task = self.task
        self.predictor = task.fit(list(known))
        beliefs = Beliefs(self.predictor, known)
        pool: dict[Architecture, None] = {}
        for number, goal in enumerate(task.goals):
            self._populations[number] = search_beliefs(task, goal, beliefs, rng, before=self._populations[number])
            pool.update(dict.fromkeys(architecture for architecture, _ in self._populations[number]))
        fresh = [architecture for architecture in pool if architecture not in beliefs.measured]
        chosen = choose(task.goals, beliefs, fresh, task.sizes[1])
        return fill_up(task.space, chosen, list(pool), beliefs.measured, task.sizes[1], rng)


def search_beliefs(
    task: Task, goal: Goal, beliefs: Beliefs, rng: random.Random, *, before: Sequence[Point] = (),
    optimism: float = OPTIMISM,
) -> list[Point]:  # fmt: skip
    """The last population of a genetic search on what is believed, begun from the measured front and `before`."""
    numbers = {table.deployment: number for number, table in enumerate(goal.costs.tables)}
    front = ParetoFront.of(beliefs.candidates(goal, beliefs.measured), goal.objectives).candidates
    start = [(c.architecture, numbers[c.deployment]) for c in front]
    return evolve(
        goal, beliefs, [*start, *before], rng, algorithm=task.inner, population=task.population,
        generations=task.generations, optimism=optimism,
    )  # fmt: skip


class RandomSampling:
    """New architectures, drawn uniformly over depth, then over each layer's choices."""

    predictor: Predictor | None = None

    def __init__(self, task: Task) -> None:
        self.task = task

    def begin(self, known: Sequence[Evaluation], rng: random.Random) -> list[Architecture]:
        return random_new(self.task.space, _architectures(known), self.task.sizes[0], rng)

    def propose(self, known: Sequence[Evaluation], rng: random.Random) -> list[Architecture]:
        return random_new(self.task.space, _architectures(known), self.task.sizes[1], rng)


class RegularizedEvolution:
    """Regularised evolution (arXiv 1802.01548): the best of a few of the last `population` evaluated is mutated.

    Which is the best of several objectives is decided by weights that are drawn anew for every tournament.
    """

    predictor: Predictor | None = None
    tournament = 10

    def __init__(self, task: Task) -> None:
        self.task, self.begin = task, RandomSampling(task).begin

    def propose(self, known: Sequence[Evaluation], rng: random.Random) -> list[Architecture]:
        space, (goal, *_) = self.task.space, self.task.goals
        alive = list(dict.fromkeys(_architectures(known)))[-self.task.population :]
        beliefs = Beliefs(None, known)
        points = goal.scaled([beliefs.candidate(goal, architecture, 0) for architecture in alive])
        points = (points - points.min(axis=0)) / np.maximum(np.ptp(points, axis=0), 1e-9)
        seen, children = set(_architectures(known)), dict[Architecture, None]()
        for _ in range(20 * self.task.sizes[1]):  # most mutants are new, but a space may be nearly used up
            if len(children) == self.task.sizes[1]:
                break
            fighters = rng.sample(range(len(alive)), min(self.tournament, len(alive)))
            weights = np.array([rng.random() for _ in goal.objectives])
            parent = alive[min(fighters, key=lambda i, w=weights: float((w * points[i]).max()))]  # type: ignore[misc]
            child = space.mutate(parent, rng, probability=1 / (2 * parent.depth + 1))
            if child not in seen:
                children[child] = None
        return list(children)


class Nsga2:
    """NSGA-II, or NSGA-III, on real evaluations, one generation a round."""

    predictor: Predictor | None = None

    def __init__(self, task: Task) -> None:
        self.task = task
        self._algorithm: GeneticAlgorithm | None = None
        self._asked: Population | None = None

    def begin(self, known: Sequence[Evaluation], rng: random.Random) -> list[Architecture]:
        goal = self.task.goals[0]
        self._algorithm = genetic_algorithm(self.task.inner, goal, self.task.population, [], rng)
        problem, endless = CandidateProblem(goal, Beliefs(None, known)), ("n_gen", 10**9)
        self._algorithm.setup(problem, seed=rng.randrange(2**31), termination=endless)
        return self._ask(self._algorithm)

    def propose(self, known: Sequence[Evaluation], rng: random.Random) -> list[Architecture]:
        beliefs = Beliefs(None, known)
        # A generation of nothing but networks that are known, in another deployment perhaps, costs nothing.
        while self._algorithm is not None and self._asked is not None:
            self._algorithm.problem = CandidateProblem(self.task.goals[0], beliefs)
            Evaluator().eval(self._algorithm.problem, self._asked)
            self._algorithm.tell(infills=self._asked)
            asked = self._ask(self._algorithm)
            if any(architecture not in beliefs.measured for architecture in asked):
                return asked
        return []

    def _ask(self, algorithm: GeneticAlgorithm) -> list[Architecture]:
        self._asked = algorithm.ask()
        return [] if self._asked is None else list(dict.fromkeys(self._asked.get("X")[:, 0]))


#: Strategies by the names that recipes have for them.
STRATEGIES: dict[str, Callable[[Task], Strategy]] = {
    "linas": Linas,
    "nsga2": Nsga2,
    "evolution": RegularizedEvolution,
    "random": RandomSampling,
}


def _architectures(known: Sequence[Evaluation]) -> list[Architecture]:
    return [evaluation.architecture for evaluation in known]
