"""Limits on connections that uvicorn does not have: how many, how slow, how long their headers.

uvicorn closes a connection that rests after an answer. Here are the others: one that sends nothing,
or its headers a byte at a time, or never takes its answer, or sends headers without end.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from .errors import ServeError
from .settings import Settings

__all__ = ["Watch", "protocol"]


def protocol(settings: Settings) -> type[asyncio.Protocol]:
    """uvicorn's protocol, httptools' where that is installed, with the limits."""
    base: Any
    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol as base
    except ImportError:
        from uvicorn.protocols.http.h11_impl import H11Protocol as base
    most, longest = settings.max_connections, settings.max_headers

    class Connection(base):
        unread = 0  # bytes of headers that are not whole

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > most:
                others = (c for c in self.connections if c is not self and _rests(c))
                resting = next(others, None)
                if resting is not None:
                    resting.transport.close()
                    self.connections.discard(resting)
                else:
                    self.refuse(ServeError("overloaded", "there are too many connections"))

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is None or self.scope is not self.cycle.scope:
                self.unread += len(data)
                if self.unread > longest:
                    self.refuse(
                        ServeError(
                            "headers_too_large", "the headers are too long", expected=longest
                        )
                    )
            elif self.unread:
                self.unread = 0

        def send_400_response(self, msg: str) -> None:
            self.refuse(ServeError("bad_request", msg))

        def refuse(self, error: ServeError) -> None:
            """Answer and close, whatever comes."""
            body = error.json()
            self.transport.write(
                b"HTTP/1.1 %d \r\nconnection: close\r\ncontent-type: application/json\r\n"
                b"content-length: %d\r\n\r\n%b" % (error.status, len(body), body)
            )
            self.transport.close()

    return Connection


def _rests(connection: Any) -> bool:
    """Whether no request is under way."""
    return connection.cycle is None or connection.cycle.response_complete


class Watch:
    """Looks at the connections now and then, and ends those that are stuck for too long. What is
    stuck: headers that do not come, though the first answer is not yet owed or the keep-alive time
    was interrupted; and an answer that the client does not take."""

    def __init__(self, connections: set[Any], longest: float) -> None:
        self.connections = connections
        self.longest = longest
        self._stuck: dict[Any, tuple[Any, float]] = {}  # at which answer, since when

    def look(self) -> None:
        """End what was stuck for too long."""
        now, before, self._stuck = time.monotonic(), self._stuck, {}
        for connection in list(self.connections):
            blocked = connection.flow.write_paused
            if not blocked and not _headers_awaited(connection):
                continue
            cycle, since = before.get(connection, (connection.cycle, now))
            if cycle is not connection.cycle:
                since = now
            self._stuck[connection] = connection.cycle, since
            if now - since < self.longest:
                continue
            if blocked:
                connection.transport.abort()
            else:
                connection.refuse(ServeError("request_timeout", "the headers did not come in time"))


def _headers_awaited(connection: Any) -> bool:
    return _rests(connection) and connection.timeout_keep_alive_task is None
