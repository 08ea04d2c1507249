"""`ClusterSite` and `ClusterProber`: a target measured on a node that offers it."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import PreTrainedModel

from instatune_deploy.cluster import tasks
from instatune_deploy.device.lowering.variants import parts
from instatune_deploy.device.settings import TimingSettings
from instatune_deploy.device.site import Inputs, Outputs, Site
from instatune_deploy.device.timing import Measurement
from instatune_deploy.errors import InstatuneError, TargetError
from instatune_deploy.profiling import Prober, Report
from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.hashing import content_key
from instatune_deploy.values.latency import LatencyTable, Machine, table_file
from instatune_deploy.values.recipe import ProfileSection
from instatune_deploy.values.space import SearchSpace
from instatune_deploy.values.target import Target
from instatune_deploy.workspace import write_bytes, write_text

if TYPE_CHECKING:
    from instatune_deploy.cluster.cluster import Cluster


class ClusterSite(Site):
    """A node of a cluster that offers a target; what is measured there has the node's CPUs for itself."""

    def __init__(self, cluster: Cluster, target: Target) -> None:
        self.cluster, self.target = cluster, target
        self._surveys: dict[str, tasks.Survey] = {}

    @property
    def survey(self) -> tasks.Survey:
        """What the node says of itself.

        Raises:
            TargetError: there is no such node.
        """
        node: str = self.cluster.node_of(self.target.device_kind)["NodeID"]
        if node not in self._surveys:
            self._surveys[node] = self._call("looking at the machine", tasks.survey, self.target, alone=False)
        return self._surveys[node]

    def machine(self) -> Machine:
        return self.survey.machine

    def versions(self) -> dict[str, str]:
        return self.survey.versions

    def check(self, target: Target) -> None:
        if self.survey.problem is not None:
            raise TargetError(f"node of {target.name}: {self.survey.problem}")

    def usable(self, target: Target) -> tuple[list[Deployment], list[str]]:
        return self.survey.usable

    def outputs(self, model_file: Path, deployment: Deployment, batches: Iterable[Inputs]) -> Iterator[Outputs]:
        files, doing = _files(model_file), f"running a file on {deployment.name}"
        found: list[Outputs] = self._call(doing, tasks.run_file, files, deployment, list(batches), alone=True)
        return iter(found)

    def measure(
        self, models: Mapping[str, Path], inputs: dict[str, np.ndarray], deployment: Deployment, *,
        visits: Mapping[str, int] | None = None, sure: Sequence[str] | None = None, seed: int = 0,
        settings: TimingSettings | None = None,
    ) -> Measurement:  # fmt: skip
        files = {name: _files(path) for name, path in models.items()}
        found: Measurement = self._call(
            f"measuring {deployment.name}", tasks.measure, files, inputs, deployment, visits, sure, seed, settings,
            alone=True,
        )  # fmt: skip
        return found

    def _call(self, doing: str, function: Callable[..., Any], *arguments: Any, alone: bool) -> Any:
        kind = self.target.device_kind
        return self.cluster.on_node(kind, f"{self.target.name}: {doing}", function, *arguments, alone=alone)


def _files(model_file: Path) -> tasks.Files:
    return tasks.Files(model_file.name, {path.name: np.fromfile(path, np.uint8) for path in parts(model_file)})


class ClusterProber(Prober):
    """Makes and measures networks on the node that offers a target: only a table, and its runs, come back."""

    def __init__(
        self, cluster: Cluster, model: PreTrainedModel, space: SearchSpace, tokens: int, directory: Path, report: Report,
        *, seed: int,
    ) -> None:  # fmt: skip
        super().__init__(model, space, tokens, directory, report, seed=seed)
        self.cluster, self.model_class = cluster, type(model)
        self._names: set[tuple[str, str]] = set()

    def table(
        self, target: Target, deployment: Deployment, settings: ProfileSection, out: Path, *, seed: int
    ) -> LatencyTable:
        place = f"{target.name}/{deployment.name}"
        name = content_key(
            socket.gethostname(), str(self.directory.absolute()), target.name, settings.model_dump(), seed
        )
        self._names.add((target.device_kind, name))
        self.report(f"profiling {place} on node {self.cluster.describe(target.device_kind)}, when it is free")
        table, raw, lines = self.cluster.on_node(
            target.device_kind, f"{place}: profiling", tasks.profile, name, self.model_class, self.config, self.space,
            self.tokens, target, deployment, settings, seed, alone=True,
        )  # fmt: skip
        for line in lines:
            self.report(line)
        write_bytes(out / table.raw_name, raw)
        write_text(out / table_file(target.name, self.shape.signature, deployment), table.to_json())
        found: LatencyTable = table
        return found

    def clear(self) -> None:
        for target, name in self._names:
            with suppress(InstatuneError):  # a node that is gone keeps its files
                self.cluster.on_node(target, f"{target}: removing files", tasks.forget, name, alone=False)
        self._names.clear()
        super().clear()
