"""`ServeSettings`: how an artifact or a fleet is served."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

#: MLServer's runtime for artifacts, by its import path.
_IMPLEMENTATION = "instatune_deploy.serving.model.ArtifactModel"


@dataclass(frozen=True)
class ServeSettings:
    """How an artifact or a fleet is served.

    Args:
        name: of the model in requests.
        http_port, grpc_port, metrics_port: 0 is a free one.
        max_batch: rows of requests in one call of the network; `max_wait_s`: seconds that a request may wait for others.
        max_request_bytes: larger requests are refused.
        max_connections: at once, to each port; `request_timeout_s`: seconds in which a request must have come whole.
        calls: how many calls of the network run at once, each with the threads of the artifact's deployment.
        hold_ms: objective for the latency (p90) of requests to a fleet, from their arrival to their answer.
    """

    name: str = "model"
    host: str = "127.0.0.1"
    http_port: int = 8080
    grpc_port: int = 8081
    metrics_port: int = 8082
    max_batch: int = 32
    max_wait_s: float = 0.0
    max_request_bytes: int = 16 * 2**20
    max_connections: int = 512
    request_timeout_s: float = 30.0
    calls: int = 1
    hold_ms: float | None = None

    def model(self, uri: str) -> dict[str, Any]:
        """What MLServer's `model-settings.json` says.

        Args:
            uri: directory of the artifact or fleet; relative to the file, if it is read from one.
        """
        extra = {"calls": self.calls, **({} if self.hold_ms is None else {"hold_ms": self.hold_ms})}
        return {
            "name": self.name, "implementation": _IMPLEMENTATION, "max_batch_size": self.max_batch,
            "max_batch_time": self.max_wait_s, "parameters": {"uri": uri, "extra": extra},
        }  # fmt: skip

    def server(self) -> dict[str, Any]:
        """What MLServer's `settings.json` says, but for where it listens.

        One process: each of MLServer's workers would load the network, and they would fight for the cores that it was
        measured on.
        """
        return {"debug": False, "parallel_workers": 0, "grpc_max_message_length": self.max_request_bytes}
