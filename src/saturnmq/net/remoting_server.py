"""A port that speaks Remoting."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from saturnmq.kernel.clock import Clock
from saturnmq.kernel.config import Limits
from saturnmq.kernel.host import Address
from saturnmq.kernel.metrics import Metrics
from saturnmq.net.remoting_connection import Handler, RemotingConnection
from saturnmq.net.remoting_traffic import Traffic

__all__ = ["Handler", "RemotingConnection", "RemotingServer"]

_BACKLOG = 1024


class RemotingServer:
    """Owner of its listening sockets and of the connections that came through them."""

    def __init__(
        self, handlers: Mapping[int, Handler], clock: Clock, limits: Limits, metrics: Metrics, name: str
    ) -> None:
        self._handlers = handlers
        self._clock = clock
        self._traffic = Traffic(metrics, name, clock, limits)
        self._listeners: list[asyncio.Server] = []
        self._connections: set[RemotingConnection] = set()
        self._closing = False
        self._all_gone = asyncio.Event()

    async def listen(self, host: str, port: int) -> Address:
        """Accept connections, on port 0 on any. May be called again for another port. Raises OSError."""
        loop = asyncio.get_running_loop()
        listener = await loop.create_server(self.connection, host, port, backlog=_BACKLOG)
        self._listeners.append(listener)
        host, port = listener.sockets[0].getsockname()[:2]
        return Address(host, port)

    def connection(self) -> RemotingConnection:
        """The protocol of a new connection, however its socket was accepted."""
        return RemotingConnection(self._handlers, self._clock, self._traffic, self._opened, self._gone)

    async def close(self, drain_ms: int) -> None:
        """Accept no more, and answer what waits and what was sent already. After `drain_ms` cut off who is left."""
        self._closing = True
        for listener in self._listeners:
            listener.close()
        for connection in list(self._connections):
            connection.drain()
        if self._connections:
            deadline = self._clock.call_at(self._clock.now_ms() + drain_ms, self._abort)
            await self._all_gone.wait()
            deadline.cancel()

    def _abort(self) -> None:
        for connection in list(self._connections):
            connection.abort()

    def _opened(self, connection: RemotingConnection) -> None:
        if self._closing:  # accepted just before the listener closed
            connection.abort()
        self._connections.add(connection)

    def _gone(self, connection: RemotingConnection) -> None:
        self._connections.discard(connection)
        if self._closing and not self._connections:
            self._all_gone.set()
