"""Work on a Ray cluster: sub-networks evaluated on all of its CPUs, targets measured on the nodes that offer them.

`connect` gives a `Cluster`, which takes the place of `executor.Executor`. `tasks` is what runs on nodes. Only this package
knows Ray, and imports it when it connects.
"""

from __future__ import annotations

import logging
import os
import socket
from typing import TYPE_CHECKING, Any

from instatune_deploy.device.fingerprint import available_cpus, detect, servable
from instatune_deploy.errors import MissingExtraError, UsageError
from instatune_deploy.profiling import Report
from instatune_deploy.values.target import every_target
from instatune_deploy.workspace import data_directories

if TYPE_CHECKING:
    from instatune_deploy.cluster.cluster import Cluster

__all__ = ["ENVIRONMENT", "connect"]

#: Ray's settings for a process that starts it: nothing is sent anywhere, and nothing stands back behind other processes.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}  # fmt: skip


def connect(address: str, report: Report) -> Cluster:
    """The cluster at `address`.

    Args:
        address: ``HOST:PORT`` of its head, or ``auto``: the one that this machine belongs to, else one of this machine
            alone, which is started, offers what this machine can serve, and ends with this process.
        report: is told what the cluster is, which tasks are tried again, and why.

    Raises:
        MissingExtraError: Ray is not installed.
        UsageError: no cluster answers there, or a node has another version of this package, or none.
    """
    try:
        import ray
    except ImportError:
        raise MissingExtraError("ray", "ray") from None
    from instatune_deploy.cluster.cluster import Cluster

    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if not ray.is_initialized():
        options: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
        try:
            if address != "auto":
                _knock(address)
            ray.init(address, **options)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            if address != "auto":
                reason = " ".join(str(error).split())
                raise UsageError(
                    f"no Ray cluster answers at {address} ({reason:.200}): start one with `ray start --head` and name its "
                    "HOST:6379, set RAY_AUTH_MODE=token if it asks for a token, or give --ray auto"
                ) from None
            ray.init(num_cpus=len(available_cpus()), resources=_offered_here(), **options)
    cluster = Cluster(report)
    cluster.check()
    return cluster


def _offered_here() -> dict[str, float]:
    """The targets that this machine can serve, as resources."""
    found = servable(every_target(data_directories("targets")), detect())
    return {one.target.device_kind: 1.0 for one in found if one.reason is None}


def _knock(address: str) -> None:
    """Make sure that somebody listens at ``HOST:PORT``: Ray itself waits for a minute.

    Raises:
        OSError, ValueError: nobody does, or it is no such address.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError("not of the form HOST:PORT")
    socket.create_connection((host, int(port)), timeout=5).close()
