"""Stage `profile`: what each choice of a sub-network costs on one target and deployment.

A few whole networks (probes) are measured and ``fixed + sum over layers (cost[heads] + cost[width]) + switch *
(layers unlike the one before)`` is fitted to them; other whole networks, which no fit sees, say how well that predicts.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from instatune_deploy.device.fingerprint import detect, runtime_versions
from instatune_deploy.device.samples import Samples
from instatune_deploy.device.settings import TimingSettings
from instatune_deploy.device.timing import Measurement, measure
from instatune_deploy.stages.profile.design import heldout_architectures, probe_architectures
from instatune_deploy.stages.profile.table import fitted_fields
from instatune_deploy.values.deployment import Deployment
from instatune_deploy.values.latency import LatencyTable, Machine
from instatune_deploy.values.macs import NetworkShape
from instatune_deploy.values.space import TRANSFORMER, Architecture, SearchSpace
from instatune_deploy.values.target import Target

#: Visits to a probe for each to a held-out network: the table is made of the probes alone.
PROBE_VISITS = 3


class ProbeSource(Protocol):
    """Where the files of networks to measure come from."""

    def path(self, architecture: Architecture, deployment: Deployment) -> Path:
        """The file of `architecture`, of any weights, that `deployment` loads."""
        ...


@dataclass(frozen=True)
class Profiled:
    """A table, and every run it was made from."""

    table: LatencyTable
    raw: Samples


@dataclass(frozen=True)
class Plan:
    """The networks to measure, and how: `visits` in a round by name, and `settings` for all of them together;
    `dimensions` are what their layers' choices count."""

    probes: tuple[Architecture, ...]
    heldout: tuple[Architecture, ...]
    visits: dict[str, int]
    settings: TimingSettings
    dimensions: tuple[str, ...] = TRANSFORMER

    @property
    def sure(self) -> list[str]:
        """The networks whose labels must be sure: the probes."""
        return [str(architecture) for architecture in self.probes]

    @property
    def networks(self) -> tuple[Architecture, ...]:
        """Probes, then held-out networks."""
        return (*self.probes, *self.heldout)


def plan(
    space: SearchSpace, *, heldout: int, seed: int, settings: TimingSettings | None = None, spare_probes: int = 1
) -> Plan:
    """What to measure for a table of `space`.

    Args:
        heldout: how many networks to hold out; fewer if the space is small.
        settings: `seconds` are those for the probes; the held-out networks get as much in proportion to their visits.
        spare_probes: probes beyond those that the table needs.
    """
    settings = settings or TimingSettings()
    probes = probe_architectures(space, spare_probes)
    held = heldout_architectures(space, heldout, seed=seed, probes=probes)
    visits = {str(a): PROBE_VISITS for a in probes} | {str(a): 1 for a in held}
    share = sum(visits.values()) / (PROBE_VISITS * len(probes))
    return Plan(
        tuple(probes), tuple(held), visits, replace(settings, seconds=settings.seconds * share), space.dimensions
    )


def with_batch(inputs: Mapping[str, np.ndarray], batch: int) -> dict[str, np.ndarray]:
    """`inputs` (batch first) repeated or cut to `batch` samples."""
    return {name: array[np.arange(batch) % len(array)] for name, array in inputs.items()}


def profile(
    target: Target,
    deployment: Deployment,
    planned: Plan,
    shape: NetworkShape,
    networks: ProbeSource,
    inputs: dict[str, np.ndarray],
    *,
    seed: int,
    journal: Path | None = None,
) -> Profiled:
    """Measure probes and held-out networks under `deployment` and fit a table to the probes.

    Args:
        shape: of the full network; gives the table's signature.
        networks: gives the file of each network, of any weights.
        inputs: arrays by name, batch first, real in shape; repeated or cut to the deployment's batch.
        seed: of the order of visits.
        journal: a directory that keeps what was measured, so that it goes on from there if it is interrupted.

    Raises:
        ArtifactError: a network cannot be exported or loaded.
        MeasurementError: measuring failed or gave impossible latencies.
    """
    files = {str(network): networks.path(network, deployment) for network in planned.networks}
    machine = detect()  # before measuring, for its load is what others cause
    measurement = measure(
        files,
        with_batch(inputs, deployment.batch),
        deployment,
        visits=planned.visits,
        sure=planned.sure,
        seed=seed,
        settings=planned.settings,
        journal=journal,
    )
    return tabulate(target.name, deployment, planned, shape, measurement, machine, runtime_versions(), seed=seed)


def tabulate(
    target: str,
    deployment: Deployment,
    planned: Plan,
    shape: NetworkShape,
    measurement: Measurement,
    machine: Machine,
    versions: dict[str, str],
    *,
    seed: int,
) -> Profiled:
    """The table that a measurement of a plan's networks gives.

    Args:
        machine, versions: what measured.
        seed: of the fit's cross-validation.
    """

    def seconds(group: Sequence[Architecture]) -> float:
        return round(sum(measurement.seconds[str(architecture)] for architecture in group), 2)

    probes, held = ([measurement.samples[str(a)] for a in group] for group in (planned.probes, planned.heldout))
    table = LatencyTable(
        target=target,
        deployment=deployment,
        signature=shape.signature,
        machine=machine,
        disturbance=measurement.disturbance,
        versions=versions,
        options=measurement.options,
        settings={
            "rounds": float(measurement.rounds),
            "precision": planned.settings.precision,
            "seconds": float(planned.settings.seconds),
            "sessions": float(planned.settings.sessions),
            "probe_visits_a_round": float(PROBE_VISITS),
            "seed": float(seed),
        },
        date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        measure_s=seconds(planned.probes),
        heldout_s=seconds(planned.heldout),
        **fitted_fields(probes, held, measurement.raw, seed=seed, dimensions=planned.dimensions),
    )
    return Profiled(table, measurement.raw)
