"""Where the work that is asked for is done."""

from __future__ import annotations

from collections.abc import Callable

from instatune_deploy.executor import LOCAL, Executor


def executor_of(ray: str | None, report: Callable[[str], None]) -> Executor:
    """This machine, or the Ray cluster at `ray`; see `cluster.connect`.

    Raises:
        UsageError: Ray is not installed, or there is no such cluster.
    """
    if ray is None:
        return LOCAL
    from instatune_deploy.cluster import connect

    return connect(ray, report)
