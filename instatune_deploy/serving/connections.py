"""`Connection`: HTTP with limits on time and number, so that no client keeps others from being answered."""

from __future__ import annotations

import asyncio
import http
from dataclasses import dataclass, field
from typing import Any

import h11
import orjson
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

#: Seconds after which a connection without a request is closed: longer than clients keep idle ones, for a request that meets
#: its closing is lost.
KEEP_ALIVE_S = 120
#: Seconds that what a refused client still sends is read and thrown away: a socket that is closed before tells the client of
#: a broken connection in the place of the answer.
_LINGER_S = 5.0


@dataclass
class Connections:
    """What the connections of one port have in common; called by uvicorn for each new one.

    Args:
        most: connections at once. One more takes the place of that which has been without a request for longest; where
            every one has a request, it is answered 429.
        request_s: seconds in which a request must have come whole, from its first byte, and its answer be taken.
    """

    most: int
    request_s: float
    #: Those without a request, the longest first.
    idle: dict[Connection, None] = field(default_factory=dict)
    #: How many have been answered for the last time, and are still read.
    ending: int = 0

    def __call__(
        self, config: Config, server_state: ServerState, app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> Connection:  # fmt: skip
        return Connection(self, config, server_state, app_state, _loop)


class Connection(H11Protocol):
    """uvicorn's, which waits for ever for the rest of a request, and for a client to take its answer."""

    def __init__(
        self, shared: Connections, config: Config, server_state: ServerState, app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:  # fmt: skip
        super().__init__(config, server_state, app_state, _loop)
        self._shared, self._ended = shared, False
        self._request_timer: asyncio.TimerHandle | None = None
        self._answer_timer: asyncio.TimerHandle | None = None
        self._end_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take it, in the place of another one, or not."""
        super().connection_made(transport)
        if len(self.connections) > self._shared.most:
            idle = next(iter(self._shared.idle), None)
            if idle is None:
                self._refuse(429, f"{self._shared.most} connections have requests already: try again")
                return
            idle.close()
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop every clock."""
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        self._shared.idle.pop(self, None)
        if self._end_timer is not None:
            self._shared.ending -= 1
        for timer in (self._request_timer, self._answer_timer, self._end_timer):
            if timer is not None:
                timer.cancel()

    def data_received(self, data: bytes) -> None:
        """Some of a request."""
        if not self._ended:
            super().data_received(data)
            self._watch()

    def on_response_complete(self) -> None:
        """Go on to the next request, unless the rest of this one, which was refused, is still to come."""
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY and not self.transport.is_closing():
            self._end()
        self._watch()

    def send_400_response(self, msg: str) -> None:
        """What came is no HTTP."""
        self._refuse(400, msg)

    def pause_writing(self) -> None:
        """The client does not take its answer."""
        super().pause_writing()
        self._answer_timer = self.loop.call_later(self._shared.request_s, self.transport.abort)

    def resume_writing(self) -> None:
        """It does."""
        super().resume_writing()
        if self._answer_timer is not None:
            self._answer_timer.cancel()
            self._answer_timer = None

    def close(self) -> None:
        """Close it as one without a request; it counts no more from now on."""
        self.connections.discard(self)
        self._shared.idle.pop(self, None)
        self.timeout_keep_alive_handler()

    def _watch(self) -> None:
        """Set the clock of a request that has begun, stop that of one that has come whole."""
        if self._ended:
            return
        state = self.conn.their_state
        coming = state is h11.SEND_BODY or (state is h11.IDLE and bool(self.conn.trailing_data[0]))
        if coming and self._request_timer is None:
            self._request_timer = self.loop.call_later(self._shared.request_s, self._late)
        elif not coming and self._request_timer is not None:
            self._request_timer.cancel()
            self._request_timer = None
        if coming or not (self.cycle is None or self.cycle.response_complete):
            self._shared.idle.pop(self, None)
        else:
            self._shared.idle.setdefault(self)

    def _late(self) -> None:
        self._refuse(408, f"the request did not come within {self._shared.request_s:g} s")

    def _refuse(self, status: int, reason: str) -> None:
        """Answer for the last time, and let whatever is at work on a request know that its client has gone."""
        if self._ended or self.transport.is_closing():
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            if self.cycle.response_started:
                self.transport.abort()
                return
        body = orjson.dumps({"error": reason})
        head = (
            f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self._end()

    def _end(self) -> None:
        """Send no more, and close once the client does, or soon."""
        self._ended = True
        self._unset_keepalive_if_required()
        if self._request_timer is not None:
            self._request_timer.cancel()
        self._shared.idle.pop(self, None)
        self.connections.discard(self)
        if self._shared.ending >= self._shared.most:
            self.transport.close()
            return
        self._shared.ending += 1
        self._end_timer = self.loop.call_later(_LINGER_S, self.transport.abort)
        self.transport.write_eof()
        self.flow.resume_reading()
