"""`Costs`: what networks cost on one target, and the candidates that follow from it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

from instatune_deploy.errors import TableError, UsageError
from instatune_deploy.values.front import Candidate, Evaluation, ParetoFront, Predicted, hypervolume
from instatune_deploy.values.latency import LatencyTable
from instatune_deploy.values.macs import ModelShape, count_macs
from instatune_deploy.values.space import Architecture, SearchSpace

#: Hypervolumes are of the box from nothing to this multiple of the largest network, so that it is inside.
_REFERENCE = 1.1


class Costs:
    """MACs and latencies of a space's architectures in every deployment that has a table; remembers those asked for.

    Args:
        tables: of one target, each of another deployment and covering the space. They are sorted by deployment, so
            that the order in which they are given is of no matter.
        percentile: which latency counts: p50, p90 or p99.

    Raises:
        UsageError: there are no tables, or two of the same deployment.
        TableError: a table lacks an entry or the percentile.
    """

    def __init__(self, space: SearchSpace, shape: ModelShape, tables: Sequence[LatencyTable], percentile: str) -> None:
        if not tables:
            raise UsageError("a search needs a latency table: profile a target first")
        self.space, self.shape, self.percentile = space, shape, percentile
        self.tables = sorted(tables, key=lambda table: table.deployment)
        for first, second in zip(self.tables, self.tables[1:], strict=False):
            if first.deployment.name == second.deployment.name:
                raise UsageError(f"two latency tables for {first.deployment.name}: give one a deployment")
        for table in self.tables:
            if missing := table.missing(space):
                raise TableError(
                    f"latency table {table.target}/{table.deployment.name} has no entry for {', '.join(missing)}: "
                    "profile the target for this space"
                )
        self._largest_macs = count_macs(shape, space.largest)
        self._largest_ms = max(table.estimate_ms(space.largest, percentile) for table in self.tables)
        self._costs: dict[Architecture, tuple[int, list[float]]] = {}

    def of(self, architecture: Architecture) -> tuple[int, list[float]]:
        """MACs, and latency in ms in each table."""
        if architecture not in self._costs:
            latencies = [table.estimate_ms(architecture, self.percentile) for table in self.tables]
            self._costs[architecture] = (count_macs(self.shape, architecture), latencies)
        return self._costs[architecture]

    def candidate(self, architecture: Architecture, index: int, metric: float, source: str) -> Candidate:
        """`architecture` in the deployment of table `index`."""
        macs, latencies = self.of(architecture)
        return Candidate(architecture, self.tables[index].deployment, Predicted(metric, macs, latencies[index], source))

    def measured_candidates(self, evaluations: Iterable[Evaluation]) -> list[Candidate]:
        """Every evaluated architecture in every deployment, with the mean of its evaluations.

        Those in the deployment's precision count if there are any, else all do: what a precision costs in accuracy is
        measured on the exported file.
        """
        values: dict[Architecture, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for evaluation in evaluations:
            values[evaluation.architecture][evaluation.precision].append(evaluation.value)
        candidates = []
        for architecture, by_precision in values.items():
            everything = [value for group in by_precision.values() for value in group]
            for index, table in enumerate(self.tables):
                group = by_precision.get(table.deployment.precision, everything)
                metric = math.fsum(group) / len(group)
                candidates.append(self.candidate(architecture, index, metric, "search split"))
        return candidates

    def hypervolume(self, candidates: Iterable[Candidate]) -> float:
        """The share (0..1) that `candidates` dominate of the box from nothing to metric 0 and 1.1 times the MACs and
        latency of the largest network in its slowest deployment."""
        points = [
            (1 - c.predicted.metric, c.predicted.macs / self._largest_macs, c.predicted.latency_ms / self._largest_ms)
            for c in ParetoFront.of(candidates).candidates
        ]
        return hypervolume(points, (1.0, _REFERENCE, _REFERENCE)) / _REFERENCE**2
