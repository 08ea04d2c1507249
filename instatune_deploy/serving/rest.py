"""The REST side: MLServer's application, of which inference reads its own bodies, with a limit, and says what is wrong."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import orjson
import uvicorn
from fastapi.routing import APIRoute
from mlserver.codecs.json import encode_to_json_bytes
from mlserver.errors import InferenceError, MLServerError
from mlserver.handlers import DataPlane, ModelRepositoryHandlers
from mlserver.metrics.server import MetricsServer
from mlserver.registry import MultiModelRegistry
from mlserver.rest.server import RESTServer
from mlserver.settings import Settings
from mlserver.types import InferenceRequest, TensorData
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from instatune_deploy.serving.connections import KEEP_ALIVE_S, Connections
from instatune_deploy.serving.tensors import from_raw
from instatune_deploy.values.serving import ServeSettings

#: Seconds that requests get to end when the server stops.
GRACE_S = 30
#: What MLServer's application offers that we keep: the protocol's health and metadata.
_KEPT = {
    "/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/{model_name}", "/v2/models/{model_name}/ready",
    "/v2/models/{model_name}/versions/{model_version}", "/v2/models/{model_name}/versions/{model_version}/ready",
}  # fmt: skip
#: Says how many bytes of a body are JSON; those of tensors follow (Triton's binary tensor data extension).
_JSON_LENGTH = "Inference-Header-Content-Length"
#: Digits that such a length has at most: Python itself refuses to read thousands of them.
_MOST_DIGITS = 20


class _Uvicorn(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to MLServer: those of several servers would take them from each other."""
        yield


class _OnSocket:
    """Serves on a socket that was bound before, so that a port that is taken shows at once, and port 0 as what it became."""

    socket: socket.socket
    limits: ServeSettings

    async def start(self: Any) -> None:
        """Serve until `stop`."""
        config = self._get_config()
        config.timeout_graceful_shutdown, config.timeout_keep_alive = GRACE_S, KEEP_ALIVE_S
        config.ws, config.http = "none", Connections(self.limits.max_connections, self.limits.request_timeout_s)
        config.backlog = self.limits.max_connections  # as many are accepted at a time, before one is counted
        self._server = _Uvicorn(config)
        await self._server.serve(sockets=[self.socket])


class MetricsListener(_OnSocket, MetricsServer):
    """Prometheus' metrics."""

    def __init__(self, settings: Settings, limits: ServeSettings) -> None:
        super().__init__(settings)
        self.limits = limits


class RestListener(_OnSocket, RESTServer):
    """The protocol over HTTP. There is no way to load models or to unload them, and none to stream."""

    def __init__(
        self, settings: Settings, data_plane: DataPlane, handlers: ModelRepositoryHandlers, registry: MultiModelRegistry,
        limits: ServeSettings,
    ) -> None:  # fmt: skip
        super().__init__(settings, data_plane, handlers)
        self._registry, self.limits = registry, limits
        kept = [route for route in self._app.routes if isinstance(route, APIRoute) and route.path in _KEPT]
        inference = [
            Route(f"/v2/models/{{name}}{version}/infer", self._infer, methods=["POST"])
            for version in ("", "/versions/{version}")
        ]
        self._app.router.routes[:] = [*inference, *kept]
        self._app.add_exception_handler(HTTPException, _http_error)
        self._app.add_middleware(_KnownMethods)

    async def _infer(self, request: Request) -> Response:
        name, version = request.path_params["name"], request.path_params.get("version")
        # Before MLServer counts it: metrics keep every name that they are told.
        await self._registry.get_model(name, version)
        payload = read_payload(await self._body(request), request.headers.get(_JSON_LENGTH))
        response = await self._data_plane.infer(payload, name, version)
        if response.parameters is not None:
            response.parameters.headers = None
        return Response(encode_to_json_bytes(response.model_dump()), media_type="application/json")

    async def _body(self, request: Request) -> bytes:
        """The body of a request.

        Raises:
            MLServerError: it is too large (413), or compressed (415).
        """
        if request.headers.get("content-encoding", "identity") != "identity":
            raise MLServerError("send the body without a Content-Encoding", 415)
        limit = self.limits.max_request_bytes
        if int(request.headers.get("content-length", 0)) > limit:  # digits, as the connection has made sure
            raise MLServerError(f"the body has more than {limit} bytes", 413)
        body = bytearray()
        try:
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    raise MLServerError(f"the body has more than {limit} bytes", 413)
        except ClientDisconnect:
            raise InferenceError("the client went before its request had come") from None
        return bytes(body)


def read_payload(body: bytes, json_length: str | None) -> InferenceRequest:
    """The request in a body.

    Args:
        json_length: how many bytes of it are JSON, as its header says; None: all.

    Raises:
        InferenceError: it is no JSON, no request, or tensors after it have not the bytes that it says.
    """
    text, raw = body, b""
    if json_length is not None:
        digits = json_length.isascii() and json_length.isdigit() and len(json_length) <= _MOST_DIGITS
        if not digits or int(json_length) > len(body):
            raise InferenceError(f"{_JSON_LENGTH} is {json_length:.20}, the body has {len(body)} bytes")
        text, raw = body[: int(json_length)], body[int(json_length) :]
    try:
        data = orjson.loads(text)
        if json_length is not None and isinstance(data, dict) and isinstance(data.get("inputs"), list):
            # Inputs whose data follow as bytes have none here.
            data["inputs"] = [{"data": [], **one} if isinstance(one, dict) else one for one in data["inputs"]]
        payload = InferenceRequest.model_validate(data)
    except orjson.JSONDecodeError as error:
        raise InferenceError(f"the body is not JSON: {error}") from None
    except ValidationError as error:
        fault = error.errors(include_input=False, include_url=False)[0]
        raise InferenceError(f"{'.'.join(map(str, fault['loc']))[:200] or 'body'}: {fault['msg']}") from None
    start = 0
    for given in payload.inputs if json_length is not None else []:
        size = getattr(given.parameters, "binary_data_size", None)
        if size is not None:
            if not isinstance(size, int) or not 0 <= size <= len(raw) - start:
                raise InferenceError(f"input {given.name!r:.100}: binary_data_size is {size!r:.40}")
            values = from_raw(given.name, str(given.datatype), given.shape, raw[start : start + size])
            given.data = TensorData.model_construct(root=values)
            start += size
    if start != len(raw):
        raise InferenceError(f"{len(raw) - start} bytes after the inputs belong to none of them")
    return payload


async def _http_error(request: Request, error: Exception) -> Response:
    """An unknown path or method as the protocol has errors."""
    status, reason = (error.status_code, error.detail) if isinstance(error, HTTPException) else (500, str(error))
    return Response(orjson.dumps({"error": reason}), status, media_type="application/json")


class _KnownMethods:
    """Refuses methods that HTTP does not have, of which the metrics would keep every one."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        known = ("GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT")
        if scope["type"] == "http" and scope["method"] not in known:
            await Response(orjson.dumps({"error": "Method Not Allowed"}), 405)(scope, receive, send)
        else:
            await self._app(scope, receive, send)
