"""`instatune-deploy serve`: an artifact behind the Open Inference Protocol."""

from __future__ import annotations

import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from instatune_deploy.errors import MissingExtraError, UsageError
from instatune_deploy.faces.cli.app import JsonOption, app, emit
from instatune_deploy.values.serving import ServeSettings


@app.command()
def serve(
    artifact: Annotated[Path, typer.Argument(help="Directory that `run`, `select`, `export` or `fleet` wrote.")],
    name: Annotated[str, typer.Option(help="Of the model, in requests.")] = "model",
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0: all.")] = "127.0.0.1",
    http_port: Annotated[int, typer.Option(min=0, max=65535, help="REST; 0: a free port.")] = 8080,
    grpc_port: Annotated[int, typer.Option(min=0, max=65535, help="gRPC; 0: a free port.")] = 8081,
    metrics_port: Annotated[int, typer.Option(min=0, max=65535, help="Prometheus' /metrics; 0: a free port.")] = 8082,
    calls: Annotated[
        int, typer.Option(min=1, help="Calls of the network at once, each with the threads it was measured with.")
    ] = 1,
    max_batch_size: Annotated[int, typer.Option(min=1, help="Rows of requests that go into one call.")] = 32,
    max_batch_time: Annotated[
        float, typer.Option(min=0, help="Milliseconds that a request waits for others; 0: only while a call runs.")
    ] = 0,
    max_request_bytes: Annotated[int, typer.Option(min=1, help="Larger requests are refused.")] = 16 * 2**20,
    max_connections: Annotated[
        int, typer.Option(min=1, help="At once, to each port; idle ones make way for new ones.")
    ] = 512,
    request_timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds in which a request must have come whole, and its answer be taken.")
    ] = 30,
    hold: Annotated[
        str | None,
        typer.Option(
            help="Of a fleet: latency (p90, such as 20ms, waiting included) to hold by going to faster members."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Serve an artifact or a fleet by the Open Inference Protocol (V2), REST and gRPC, until SIGTERM or Ctrl-C.

    Requests have texts, or images, that are encoded here, or the network's own inputs; GET /v2/models/NAME lists them.
    Needs the extra `serve`.

    Of a fleet, the request's parameter `member` or `latency_budget_ms` says which network answers; otherwise the load does.

    Example: instatune-deploy serve my-artifact --http-port 8080

    Example: instatune-deploy serve my-fleet --hold 20ms
    """
    if find_spec("mlserver") is None:
        raise MissingExtraError("mlserver", "serve")
    # Processes that are started while it listens do not use gRPC, whose preparations for them say that they were left out.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    from instatune_deploy.serving.server import serve as run

    settings = ServeSettings(
        name=name, host=host, http_port=http_port, grpc_port=grpc_port, metrics_port=metrics_port, calls=calls,
        max_batch=max_batch_size, max_wait_s=max_batch_time / 1000, max_request_bytes=max_request_bytes,
        max_connections=max_connections, request_timeout_s=request_timeout,
        hold_ms=None if hold is None else _milliseconds(hold),
    )  # fmt: skip

    def ready(addresses: dict[str, str]) -> None:
        if as_json:
            emit({"artifact": str(artifact), "model": name, **addresses})
            return
        typer.echo(
            f"{artifact} is served as {name}: http://{addresses['http']}/v2/models/{name}, gRPC {addresses['grpc']}, "
            f"metrics http://{addresses['metrics']}/metrics"
        )

    run(artifact, settings, ready)


def _milliseconds(text: str) -> float:
    """A latency such as ``20ms``.

    Raises:
        UsageError: it is not written so.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*ms", text.strip())
    if found is None or float(found[1]) == 0:
        raise UsageError(f"--hold {text!r} is not written like 20ms")
    return float(found[1])
