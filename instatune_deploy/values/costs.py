"""`Costs`: what networks cost on one target, and `Goal`: what a search wants there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from instatune_deploy.errors import TableError, UsageError
from instatune_deploy.values.budget import Bound, Limit, bounds_of
from instatune_deploy.values.front import Candidate, ParetoFront, Predicted, hypervolume
from instatune_deploy.values.latency import LatencyTable
from instatune_deploy.values.macs import NetworkShape, count_macs, count_parameters
from instatune_deploy.values.objectives import DEFAULT, Objective, Objectives
from instatune_deploy.values.sizes import file_bytes, memory_bytes
from instatune_deploy.values.space import Architecture, SearchSpace

#: Hypervolumes are of the box from nothing to this multiple of the largest network, so that it is inside.
REFERENCE = 1.1


class Costs:
    """What a space's architectures cost in every deployment of a target that has a table; remembers what was asked for.

    Args:
        tables: of one target, each of another deployment and covering the space. They are sorted by deployment, so
            that the order in which they are given is of no matter.
        percentile: which latency counts: p50, p90 or p99.
        elsewhere: tables of other places by name, ``target:deployment``, for objectives and limits that name one.

    Raises:
        UsageError: there are no tables, or two of the same deployment.
        TableError: a table lacks an entry or the percentile.
    """

    def __init__(
        self, space: SearchSpace, shape: NetworkShape, tables: Sequence[LatencyTable], percentile: str,
        elsewhere: Mapping[str, LatencyTable] | None = None,
    ) -> None:  # fmt: skip
        if not tables:
            raise UsageError("a search needs a latency table: profile a target first")
        self.space, self.shape, self.percentile = space, shape, percentile
        self.tables = sorted(tables, key=lambda table: table.deployment)
        self.elsewhere = dict(sorted((elsewhere or {}).items()))
        self.target = self.tables[0].target
        for first, second in zip(self.tables, self.tables[1:], strict=False):
            if first.deployment.name == second.deployment.name:
                raise UsageError(f"two latency tables for {first.deployment.name}: give one a deployment")
        for table in [*self.tables, *self.elsewhere.values()]:
            if missing := table.missing(space):
                raise TableError(
                    f"latency table {table.target}/{table.deployment.name} has no entry for {', '.join(missing)}: "
                    "profile the target for this space"
                )
            table.estimate_ms(space.largest, percentile)  # raises where the percentile is unknown
        self._known: dict[tuple[Architecture, int], Predicted] = {}

    def predicted(self, architecture: Architecture, index: int, metric: float, source: str) -> Predicted:
        """What is predicted of `architecture` in the deployment of table `index`, with a metric that is known."""
        found = self._known.get((architecture, index))
        if found is None:
            found = self._known[architecture, index] = self._predict(architecture, index)
        return Predicted(
            metric, found.macs, found.latency_ms, source, found.latency_high_ms, found.parameters, found.file_bytes,
            found.memory_bytes, found.elsewhere_ms,
        )  # fmt: skip

    def _predict(self, architecture: Architecture, index: int) -> Predicted:
        table = self.tables[index]
        latency = table.estimate(architecture, self.percentile)
        return Predicted(
            0.0, count_macs(self.shape, architecture), latency.ms, "", latency.high_ms,
            count_parameters(self.shape, architecture), file_bytes(self.shape, architecture, table.deployment),
            memory_bytes(self.shape, architecture, table.deployment),
            tuple((place, t.estimate_ms(architecture, self.percentile)) for place, t in self.elsewhere.items()),
        )  # fmt: skip

    def candidate(self, architecture: Architecture, index: int, metric: float, source: str) -> Candidate:
        """`architecture` in the deployment of table `index`."""
        predicted = self.predicted(architecture, index, metric, source)
        return Candidate(architecture, self.tables[index].deployment, predicted)

    def largest(self, objective: Objective) -> float:
        """The value of the largest network, of costs: in the deployment where it is the highest."""
        values = (objective.value(self.predicted(self.space.largest, i, 0.0, "")) for i in range(len(self.tables)))
        return max(values)

    def full(self, objective: Objective) -> float:
        """The value of the largest network in the deployment where it is the fastest: what shares are of."""
        options = [self.predicted(self.space.largest, index, 0.0, "") for index in range(len(self.tables))]
        return objective.value(min(options, key=lambda predicted: predicted.latency_ms))


@dataclass(frozen=True)
class Goal:
    """What a search wants on one target: objectives, to be made small or large, and limits, to be kept."""

    costs: Costs
    objectives: Objectives = DEFAULT
    limits: tuple[Limit, ...] = ()

    def __post_init__(self) -> None:
        # The order in which objectives are named is of no matter to anything.
        object.__setattr__(self, "objectives", tuple(sorted(self.objectives, key=str)))
        places = [o.place for o in (*self.objectives, *(limit.objective for limit in self.limits)) if o.place]
        for place in places:
            if place not in self.costs.elsewhere:
                raise UsageError(f"there is no latency table of {place}")

    def bounds(self, full_metric: Callable[[], float]) -> list[Bound]:
        """What the limits come to; `full_metric` gives the full network's metric, where a limit is relative to it."""
        return bounds_of(self.limits, lambda o: full_metric() if o.kind == "metric" else self.costs.full(o))

    def scaled(self, candidates: Sequence[Candidate]) -> np.ndarray:
        """Shape ``(n, objectives)``, to be made small: 1 minus the metric, and costs as shares of the largest
        network's in its costliest deployment."""
        if not candidates:
            return np.empty((0, len(self.objectives)))
        values = np.array([candidate.point(self.objectives) for candidate in candidates], dtype=np.float64)
        for column, objective in enumerate(self.objectives):
            if objective.kind == "metric":
                values[:, column] += 1
            else:
                values[:, column] /= self.costs.largest(objective)
        return values

    def hypervolume(self, candidates: Sequence[Candidate]) -> float:
        """The share (0..1) that `candidates` dominate of the box from nothing to metric 0 and 1.1 times the costs of
        the largest network in its costliest deployment."""
        reference = [1.0 if objective.kind == "metric" else REFERENCE for objective in self.objectives]
        front = ParetoFront.of(candidates, self.objectives).candidates
        return hypervolume(self.scaled(front), reference) / float(np.prod(reference))
