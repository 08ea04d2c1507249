"""`Cluster`: the executor that works on the nodes of a Ray cluster."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
from transformers import PreTrainedModel

import instatune_deploy
from instatune_deploy.cluster import tasks
from instatune_deploy.cluster.evaluating import ClusterCompute
from instatune_deploy.cluster.nodes import TRIES, alive, node_name, offers, on, reason_of, result_on, worker_count
from instatune_deploy.cluster.site import ClusterProber, ClusterSite
from instatune_deploy.elastic.supernet import Supernet
from instatune_deploy.errors import MeasurementError, TargetError, UsageError
from instatune_deploy.executor import Executor
from instatune_deploy.profiling import Report
from instatune_deploy.values.space import SearchSpace
from instatune_deploy.values.target import Target


class Cluster(Executor):
    """Evaluates on all CPUs of a cluster, and measures a target on a node that offers it; made by `connect`."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self._sites: dict[str, ClusterSite] = {}
        #: The node on which each target is measured.
        self._chosen: dict[str, str] = {}

    # -- what an executor does ------------------------------------------------------------------------------------

    def compute(self, supernet: Supernet, outputs: Sequence[str]) -> ClusterCompute:
        return ClusterCompute(supernet, outputs, self.report)

    def site(self, target: Target) -> ClusterSite:
        if target.name not in self._sites:
            self._sites[target.name] = ClusterSite(self, target)
        return self._sites[target.name]

    def prober(
        self, model: PreTrainedModel, space: SearchSpace, tokens: int, directory: Path, report: Report, *, seed: int
    ) -> ClusterProber:
        return ClusterProber(self, model, space, tokens, directory, report, seed=seed)

    # -- nodes and tasks ------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Say what the cluster is, after a look at every node of it.

        Raises:
            UsageError: a node has another version of this package, or none; names it.
        """
        nodes = alive()
        here = instatune_deploy.__version__
        found = [(node, on(tasks.version, node, cpus=0).remote()) for node in nodes]
        for node, reference in found:
            try:
                there = ray.get(reference)
            except ray.exceptions.RayError as error:
                there = f"none ({reason_of(error)})"
            if there != here:
                raise UsageError(
                    f"node {node_name(node)} of the cluster has instatune-deploy {there}, this is {here}: "
                    f"pip install instatune-deploy=={here} there"
                )
        offered = sorted({name for node in nodes for name in offers(node)})
        self.report(
            f"Ray cluster of {len(nodes)} node{'s' if len(nodes) != 1 else ''} with {worker_count()} CPUs; targets offered: "
            f"{', '.join(offered) or 'none'}"
        )

    def node_of(self, target: str) -> dict[str, Any]:
        """A node that offers `target`, always the same while it lives.

        Raises:
            TargetError: none does; says how to start one.
        """
        offering = sorted((node for node in alive() if target in offers(node)), key=node_name)
        if not offering:
            known = sorted({name for node in alive() for name in offers(node)})
            resources = f"'{{\"{target}\": 1}}'"
            raise TargetError(
                f"no node of the cluster offers target {target}: on a machine that serves it, call `ray start "
                f"--address={ray.get_runtime_context().gcs_address} --resources={resources}` (offered now: "
                f"{', '.join(known) or 'none'})"
            )
        before = self._chosen.get(target)
        node = next((node for node in offering if node["NodeID"] == before), offering[0])
        if before not in (None, node["NodeID"]):
            self.report(
                f"{target}: its node {str(before)[:8]} is gone; from now on it is measured on {node_name(node)}"
            )
        self._chosen[target] = node["NodeID"]
        return node

    def describe(self, target: str) -> str:
        """The node that offers `target`, for people."""
        return node_name(self.node_of(target))

    def on_node(self, target: str, doing: str, function: Callable[..., Any], *arguments: Any, alone: bool) -> Any:
        """What a function of `tasks` gives on a node that offers `target`; a node that is lost is replaced by another.

        Args:
            doing: what it does, for people.
            alone: whether the node's CPUs are taken for it all, so that no other task disturbs what it measures.

        Raises:
            InstatuneError: it ended so there.
            TargetError: no node offers the target.
            MeasurementError: it was tried `TRIES` times, and failed or lost its worker each time.
        """
        reason = ""
        for number in range(1, TRIES + 1):
            node = self.node_of(target)
            cpus = node["Resources"].get("CPU", 0.0) if alone else 0
            task = on(tasks.answer, node, cpus=cpus, resources={target: 1} if alone else {})
            try:
                found = result_on(node, task.remote(function, *arguments))
            except ray.exceptions.RayError as error:
                reason = reason_of(error)
                then = f"try {number + 1} of {TRIES} follows" if number < TRIES else "it is given up"
                self.report(f"{doing} on node {node_name(node)}: {reason}; {then}")
                time.sleep(1)  # until it shows which nodes are gone
                continue
            if isinstance(found, tasks.Refusal):
                raise found.error()
            return found
        raise MeasurementError(f"{doing} was given up after {TRIES} tries: {reason}")
