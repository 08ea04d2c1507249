"""What there is to know of a cluster's nodes and of how tasks end on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

#: How often a task is tried; after that it is given up, and said so.
TRIES = 3
#: Seconds of waiting for a task after which it is looked who is still there. Where a node's network is cut, Ray itself waits for
#: minutes for what it had to do.
SILENCE_S = 15.0


def worker_count() -> int:
    """Tasks of one CPU each that the cluster runs at a time."""
    return int(sum(node["Resources"].get("CPU", 0.0) for node in alive()))


def reason_of(error: Exception) -> str:
    """Why a task failed, in a line."""
    if isinstance(error, ray.exceptions.RayTaskError):
        cause = error.cause or error
        text = " ".join(str(cause).split())
        return f"{type(cause).__name__}: {text:.200}"
    first = " ".join(str(error).split()).partition(". ")[0]
    return f"its worker was lost ({type(error).__name__}: {first:.160})"


def on(
    function: Callable[..., Any], node: dict[str, Any], *, cpus: float, resources: dict[str, float] | None = None
) -> Any:
    """A function as a task of that node alone; it is tried once."""
    where = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    return task(function, num_cpus=cpus, resources=resources or {}, scheduling_strategy=where)


def task(function: Callable[..., Any], **options: Any) -> Any:
    """A function as a task that is tried once; `options` are Ray's."""
    remote: Any = ray.remote
    return remote(max_retries=0, **options)(function)


def result_on(node: dict[str, Any], reference: Any) -> Any:
    """What a task that was given to `node` alone returns.

    Raises:
        RayError: it failed, or the node is gone.
    """
    while not ray.wait([reference], timeout=SILENCE_S)[0]:
        if node["NodeID"] not in alive_ids():
            raise ray.exceptions.NodeDiedError(f"node {node_name(node)} is gone")
    return ray.get(reference)


def alive_ids() -> set[str]:
    """Names of the nodes there are now."""
    return {node["NodeID"] for node in alive()}


def alive() -> list[dict[str, Any]]:
    """The nodes there are now, as Ray describes them."""
    return [node for node in ray.nodes() if node["Alive"]]


def node_name(node: dict[str, Any]) -> str:
    """A node for people."""
    return f"{node['NodeManagerAddress']} ({node['NodeID'][:8]})"


def offers(node: dict[str, Any]) -> list[str]:
    """The custom resources of a node of which there is a whole one: what Ray names itself has a colon in it, or is one of
    its own kinds."""
    own = {"CPU", "GPU", "memory", "object_store_memory"}
    return [name for name, amount in node["Resources"].items() if name not in own and ":" not in name and amount >= 1]
