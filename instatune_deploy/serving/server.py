"""`serve`: an artifact or a fleet on an Open Inference Protocol server, from binding its ports to the last answer."""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from mlserver import MLServer, ModelSettings, Settings

from instatune_deploy.errors import UsageError
from instatune_deploy.serving.grpc import GrpcListener
from instatune_deploy.serving.rest import MetricsListener, RestListener
from instatune_deploy.values.fleet import is_fleet
from instatune_deploy.values.serving import ServeSettings

#: Sockets for each of `max_connections`: one of gRPC, and of REST and metrics each one, one that is being accepted and one that
#: is being closed.
_SOCKETS_A_CONNECTION = 7
_OTHER_FILES = 256


class Server(MLServer):
    """MLServer in one process, with our listeners."""

    def __init__(self, settings: Settings, limits: ServeSettings) -> None:
        self._limits = limits
        super().__init__(settings)

    def _configure_logger(self) -> None:
        """Warnings and errors to stderr: stdout is the user's. uvicorn warns of every client that speaks no HTTP."""
        for name, level in (("mlserver", logging.WARNING), ("uvicorn.error", logging.ERROR)):
            logger = logging.getLogger(name)
            logger.setLevel(level)
            if not logger.handlers:
                logger.addHandler(logging.StreamHandler(sys.stderr))

    def _create_servers(self) -> None:
        self._serving = self._stopped = False
        shared = (self._settings, self._data_plane, self._model_repository_handlers, self._model_registry, self._limits)
        self._rest_server, self._grpc_server = RestListener(*shared), GrpcListener(*shared)
        self._metrics_server = MetricsListener(self._settings, self._limits)
        self._kafka_server = None

    def bind(self) -> dict[str, str]:
        """Take the ports; their addresses by what they serve.

        Raises:
            UsageError: one is taken, or the host is not this machine's.
        """
        settings = self._settings
        self._rest_server.socket = _bound(settings.host, settings.http_port)
        self._metrics_server.socket = _bound(settings.host, settings.metrics_port)
        self._grpc_server.bind()
        http, metrics = (s.socket.getsockname()[1] for s in (self._rest_server, self._metrics_server))
        ports = {"http": http, "grpc": self._grpc_server.port, "metrics": metrics}
        return {what: f"{settings.host}:{port}" for what, port in ports.items()}

    async def run(self, model: ModelSettings, ready: Callable[[], None]) -> None:
        """Load a model, call `ready` when requests are taken, and serve until a signal says to stop."""
        await self._model_registry.load(model)
        await asyncio.sleep(0.01)  # lets a signal that came meanwhile be heard
        if not self._stopped:
            for listener in (self._rest_server, self._metrics_server):
                listener.socket.listen()
            await self._grpc_server.open()
            self._serving = True
            servers = [s.start() for s in (self._rest_server, self._grpc_server, self._metrics_server)]
            serving = asyncio.gather(*servers)
            ready()
            await serving
        await self._model_registry.unload(model.name)

    async def stop(self, sig: int | None = None) -> None:
        """Take no new requests, answer those that have come, and end."""
        self._stopped = True
        if self._serving:
            await asyncio.gather(self._rest_server.stop(sig), self._grpc_server.stop(sig))
            await self._metrics_server.stop(sig)


def serve(directory: Path, settings: ServeSettings, ready: Callable[[dict[str, str]], None]) -> None:
    """Serve the artifact or fleet in `directory` until SIGTERM or SIGINT; requests that have come by then are answered.

    Args:
        ready: is told the addresses (``host:port``) of `http`, `grpc` and `metrics` when requests are taken.

    Raises:
        ArtifactError: it is neither, or a file was changed.
        TargetError: this machine cannot run its deployment.
        UsageError: a port is taken, a single artifact is to hold a latency, or the system allows no process so many
            connections.
    """
    _allow_files(_OTHER_FILES + _SOCKETS_A_CONNECTION * settings.max_connections)
    if settings.hold_ms is not None and not is_fleet(directory):
        raise UsageError(f"{directory} is no fleet: a latency is held by going to faster members of one")
    asyncio.run(_serve(directory, settings, ready))


async def _serve(directory: Path, settings: ServeSettings, ready: Callable[[dict[str, str]], None]) -> None:
    server = Server(
        Settings(
            **settings.server(), host=settings.host, http_port=settings.http_port, grpc_port=settings.grpc_port,
            metrics_port=settings.metrics_port, gzip_enabled=False, load_models_at_startup=False,
            server_name="instatune-deploy",
            # uvicorn's own would set its loggers to chat.
            logging_settings={"version": 1, "disable_existing_loggers": False},
        ), settings,
    )  # fmt: skip
    addresses = server.bind()
    model = ModelSettings.model_validate(settings.model(str(directory)))
    await server.run(model, lambda: ready(addresses))


def _allow_files(wanted: int) -> None:
    """Let this process have so many files and sockets open.

    Raises:
        UsageError: the system does not.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY != hard < wanted:
        most = max(0, hard - _OTHER_FILES) // _SOCKETS_A_CONNECTION
        raise UsageError(
            f"a process may have {hard} files open here (ulimit -Hn): give --max-connections {most} or less"
        )
    if resource.RLIM_INFINITY != soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _bound(host: str, port: int) -> socket.socket:
    """A socket that has taken a port.

    Raises:
        UsageError: it is taken, or the host is not this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as error:
        raise UsageError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None
    found.setblocking(False)
    return found
