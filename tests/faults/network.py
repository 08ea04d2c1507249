"""A Ray cluster of two machines on this one: the second is a network namespace, and the cable to it can be cut. Needs root."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

#: Set aside for tests of networks (RFC 2544).
_HERE, _THERE = "198.18.73.1", "198.18.73.2"
#: Ray finds a node that does not answer in some seconds, not in half a minute.
_QUICK = {
    "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0",
    "RAY_health_check_initial_delay_ms": "1000", "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000", "RAY_health_check_failure_threshold": "3",
}  # fmt: skip
_RAY = str(Path(sys.executable).with_name("ray"))
_STARTED_WITHIN_S = 90


@dataclass(frozen=True)
class TwoMachines:
    """A cluster with a CPU on each of two machines; `address` is that of its head, `environment` for who calls it."""

    address: str
    environment: Mapping[str, str]
    _namespace: str

    def cut(self) -> None:
        """Cut the cable for good."""
        _ip("-n", self._namespace, "link", "set", f"{self._namespace}b", "down")


def problem() -> str | None:
    """Why there can be no such cluster here; None: there can."""
    if os.geteuid() != 0:
        return "makes a network namespace, which needs root"
    name = f"try{os.getpid()}"
    try:
        _ip("netns", "add", name)
        try:
            _lay_cable(name)
            _ip("link", "del", f"{name}a")
        finally:
            _ip("netns", "del", name)
    except (OSError, subprocess.CalledProcessError) as error:
        return f"no network namespace can be made here: {error}"
    return None if Path(_RAY).is_file() else "the extra ray is not installed"


@contextmanager
def two_machines(offered: str) -> Iterator[TwoMachines]:
    """Two machines and the cluster of them; the first, this one, offers the target called `offered`.

    Raises:
        TimeoutError: Ray does not come up on them.
    """
    name, environment = f"itd{os.getpid()}", {**os.environ, **_QUICK}
    with socket.socket() as free:
        free.bind(("", 0))
        address = f"{_HERE}:{free.getsockname()[1]}"
    nodes: list[subprocess.Popen[bytes]] = []

    def start(*command: str) -> None:
        nodes.append(
            subprocess.Popen(
                [*command, "--num-cpus=1", "--block"], env=environment, start_new_session=True, stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        )  # fmt: skip

    _ip("netns", "add", name)
    try:
        _lay_cable(name)
        _ip("addr", "add", f"{_HERE}/30", "dev", f"{name}a")
        _ip("link", "set", f"{name}a", "up")
        _ip("-n", name, "addr", "add", f"{_THERE}/30", "dev", f"{name}b")
        for link in ("lo", f"{name}b"):
            _ip("-n", name, "link", "set", link, "up")
        port = address.partition(":")[2]
        resources = f"--resources={json.dumps({offered: 1})}"
        start(_RAY, "start", "--head", f"--node-ip-address={_HERE}", f"--port={port}", "--include-dashboard=false", resources)  # fmt: skip
        _await(f"{_RAY} health-check --address {address}", environment)
        start("ip", "netns", "exec", name, _RAY, "start", f"--address={address}", f"--node-ip-address={_THERE}")
        seen = f"import ray; ray.init('{address}', log_to_driver=False); raise SystemExit(ray.cluster_resources().get('CPU') != 2)"  # fmt: skip
        _await(f'{sys.executable} -c "{seen}"', environment)
        yield TwoMachines(address, environment, name)
    finally:
        for process in nodes:
            os.killpg(process.pid, signal.SIGTERM)
        for process in nodes:
            process.wait(60)
        subprocess.run(["ip", "link", "del", f"{name}a"], check=False, capture_output=True)
        _ip("netns", "del", name)


def _await(command: str, environment: Mapping[str, str]) -> None:
    """Call a command until it succeeds."""
    end = time.monotonic() + _STARTED_WITHIN_S
    while subprocess.run(["sh", "-c", command], env=environment, capture_output=True, check=False).returncode:
        if time.monotonic() > end:
            raise TimeoutError(f"after {_STARTED_WITHIN_S} s this still fails: {command}")
        time.sleep(0.5)


def _lay_cable(name: str) -> None:
    """From this machine, where it ends in ``<name>a``, into the namespace `name`, where it ends in ``<name>b``."""
    _ip("link", "add", f"{name}a", "type", "veth", "peer", "name", f"{name}b", "netns", name)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
