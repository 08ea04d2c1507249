"""`Site`: a machine on which targets are measured; this one, unless something says another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from instatune_deploy.device.fingerprint import check_target, detect, runtime_versions, usable_deployments
from instatune_deploy.device.runtimes.base import get_runtime
from instatune_deploy.device.settings import TimingSettings
from instatune_deploy.device.timing import Measurement, measure
from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.latency import Machine
from instatune_deploy.values.target import Target

#: Row numbers, and a model's inputs or outputs for these rows.
Inputs = tuple[np.ndarray, dict[str, np.ndarray]]
Outputs = tuple[np.ndarray, Sequence[np.ndarray]]


class Site:
    """This machine, as one on which targets are measured; a class of another one does the same elsewhere."""

    def machine(self) -> Machine:
        """What it is, with the load it has now."""
        return detect()

    def versions(self) -> dict[str, str]:
        """Of what latency depends on there."""
        return runtime_versions()

    def check(self, target: Target) -> None:
        """Make sure that `target` can be served there.

        Raises:
            TargetError: it cannot; says why.
        """
        check_target(target, detect())

    def usable(self, target: Target) -> tuple[list[Deployment], list[str]]:
        """Deployments of `target` that make sense there, and for each of the others a line that says why not."""
        return usable_deployments(target, detect())

    def outputs(self, model_file: Path, deployment: Deployment, batches: Iterable[Inputs]) -> Iterator[Outputs]:
        """What a file puts out for `batches`, run by the deployment's runtime.

        Raises:
            ArtifactError: the file cannot be loaded.
        """
        session = get_runtime(deployment.runtime).load(model_file, deployment)
        try:
            for numbers, inputs in batches:
                yield numbers, session.run(inputs)
        finally:
            session.close()

    def measure(
        self, models: Mapping[str, Path], inputs: dict[str, np.ndarray], deployment: Deployment, *,
        visits: Mapping[str, int] | None = None, sure: Sequence[str] | None = None, seed: int = 0,
        settings: TimingSettings | None = None,
    ) -> Measurement:  # fmt: skip
        """The latency of `models`; see `timing.measure`."""
        return measure(models, inputs, deployment, visits=visits, sure=sure, seed=seed, settings=settings)


#: This machine.
HERE = Site()
