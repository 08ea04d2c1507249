"""The gRPC side: MLServer's service, with requests read and refused by us, and a port that is ours alone."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from mlserver.errors import InferenceError, MLServerError
from mlserver.grpc import dataplane_pb2 as pb
from mlserver.grpc.converters import ModelInferRequestConverter, ModelInferResponseConverter
from mlserver.grpc.dataplane_pb2_grpc import add_GRPCInferenceServiceServicer_to_server
from mlserver.grpc.interceptors import PromServerInterceptor
from mlserver.grpc.server import GRPCServer
from mlserver.grpc.servicers import InferenceServicer
from mlserver.handlers import DataPlane, ModelRepositoryHandlers
from mlserver.registry import MultiModelRegistry
from mlserver.settings import Settings
from mlserver.types import InferenceRequest, TensorData
from pydantic import ValidationError

from instatune_deploy.errors import UsageError
from instatune_deploy.serving.rest import GRACE_S
from instatune_deploy.serving.tensors import from_raw
from instatune_deploy.values.serving import ServeSettings

_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT, 404: grpc.StatusCode.NOT_FOUND, 413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
}  # fmt: skip
#: Seconds after which a connection is to be made anew, which clients do by themselves: a request that never comes whole ends
#: with its connection, for gRPC has no other limit for that.
_AGE_S = 300
logger = logging.getLogger(__name__)

Method = Callable[[Any, Any, Any], Awaitable[Any]]


def _refusing(method: Method) -> Method:
    """A method of the service that answers errors with the code that fits them."""

    async def call(self: Any, request: Any, context: Any) -> Any:
        try:
            return await method(self, request, context)
        except MLServerError as error:
            code, reason = _CODES.get(error.status_code, grpc.StatusCode.UNKNOWN), str(error)
        except Exception as error:
            logger.exception("a request failed")
            code, reason = grpc.StatusCode.INTERNAL, str(error)
        return await context.abort(code, reason)

    return call


class Servicer(InferenceServicer):
    """The protocol's methods. There is no way to load models or to unload them, and none to stream."""

    def __init__(
        self, data_plane: DataPlane, handlers: ModelRepositoryHandlers, registry: MultiModelRegistry
    ) -> None:  # fmt: skip
        super().__init__(data_plane, handlers)
        self._registry = registry

    @_refusing
    async def ModelInfer(self, request: pb.ModelInferRequest, context: Any) -> pb.ModelInferResponse:  # noqa: N802
        """Answer a request."""
        # Before MLServer counts it: metrics keep every name that they are told.
        await self._registry.get_model(request.model_name, request.model_version or None)
        payload = read_message(request)
        response = await self._data_plane.infer(payload, request.model_name, request.model_version)
        return ModelInferResponseConverter.from_types(response, use_raw=bool(request.raw_input_contents))

    @_refusing
    async def ModelReady(self, request: pb.ModelReadyRequest, context: Any) -> pb.ModelReadyResponse:  # noqa: N802
        """Whether a model is ready."""
        await self._registry.get_model(request.name, request.version or None)
        return await super().ModelReady(request, context)

    @_refusing
    async def ModelMetadata(self, request: pb.ModelMetadataRequest, context: Any) -> Any:  # noqa: N802
        """A model's inputs and outputs."""
        await self._registry.get_model(request.name, request.version or None)
        return await super().ModelMetadata(request, context)

    async def ModelStreamInfer(self, requests_stream: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """Not offered."""
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "streams are not served; call ModelInfer")
        yield pb.ModelInferResponse()

    async def _not_offered(self, request: Any, context: Any) -> Any:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "models are not loaded or unloaded by clients")

    RepositoryIndex = RepositoryModelLoad = RepositoryModelUnload = _not_offered


def read_message(request: pb.ModelInferRequest) -> InferenceRequest:
    """The request in a message; raw contents become arrays without a copy.

    Raises:
        InferenceError: it has not the raw contents or parameters that it should.
    """
    raw = list(request.raw_input_contents)
    if raw and len(raw) != len(request.inputs):
        raise InferenceError(f"{len(request.inputs)} inputs and raw contents of {len(raw)}")
    bare = pb.ModelInferRequest()
    bare.CopyFrom(request) if not raw else bare.MergeFrom(_without_raw(request))
    try:
        payload: InferenceRequest = ModelInferRequestConverter.to_types(bare)
    except ValidationError as error:
        raise InferenceError(f"parameters: {error.errors(include_input=False, include_url=False)[0]['msg']}") from None
    for given, contents in zip(payload.inputs, raw, strict=False):
        if given.data:
            raise InferenceError(f"input {given.name!r:.100} has contents and raw contents")
        given.data = TensorData.model_construct(root=from_raw(given.name, str(given.datatype), given.shape, contents))
    return payload


def _without_raw(request: pb.ModelInferRequest) -> pb.ModelInferRequest:
    return pb.ModelInferRequest(
        id=request.id, parameters=request.parameters, inputs=request.inputs, outputs=request.outputs
    )


class GrpcListener(GRPCServer):
    """The protocol over gRPC, on a port that is bound at once."""

    def __init__(
        self, settings: Settings, data_plane: DataPlane, handlers: ModelRepositoryHandlers, registry: MultiModelRegistry,
        limits: ServeSettings,
    ) -> None:  # fmt: skip
        super().__init__(settings, data_plane, handlers)
        self._registry, self._limits, self.port = registry, limits, 0

    def bind(self) -> None:
        """Take the port.

        Raises:
            UsageError: it is taken.
        """
        most, timeout_ms = self._limits.max_connections, int(1000 * self._limits.request_timeout_s)
        self._server = grpc.aio.server(
            ThreadPoolExecutor(1), interceptors=[PromServerInterceptor(enable_handling_time_histogram=True)],
            maximum_concurrent_rpcs=most, options=[
                ("grpc.so_reuseport", 0),  # otherwise a second server would take half of the requests
                ("grpc.max_receive_message_length", self._limits.max_request_bytes),
                ("grpc.max_allowed_incoming_connections", most), ("grpc.server_handshake_timeout_ms", timeout_ms),
                ("grpc.max_connection_age_ms", 1000 * _AGE_S), ("grpc.max_connection_age_grace_ms", timeout_ms),
            ],
        )  # fmt: skip
        servicer = Servicer(self._data_plane, self._model_repository_handlers, self._registry)
        add_GRPCInferenceServiceServicer_to_server(servicer, self._server)
        address = f"{self._settings.host}:{self._settings.grpc_port}"
        try:
            self.port = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise UsageError(f"cannot listen on {address}: {error}") from None

    async def open(self) -> None:
        """Take requests."""
        await self._server.start()

    async def start(self) -> None:
        """Wait until `stop`."""
        await self._server.wait_for_termination()

    async def stop(self, sig: int | None = None) -> None:
        """Take no new requests, and wait for those that are being answered."""
        await self._server.stop(grace=GRACE_S)
