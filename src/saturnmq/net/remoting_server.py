"""A port that speaks Remoting."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Mapping

from saturnmq.kernel.clock import Clock
from saturnmq.kernel.config import Limits
from saturnmq.kernel.host import Address
from saturnmq.kernel.metrics import Metrics
from saturnmq.net.accepting import Acceptor
from saturnmq.net.remoting_connection import Handler, RemotingConnection
from saturnmq.net.remoting_traffic import Traffic

__all__ = ["Handler", "RemotingConnection", "RemotingServer"]

log = logging.getLogger(__name__)


class RemotingServer:
    """Owner of its listeners and of the connections that came through them."""

    def __init__(
        self, handlers: Mapping[int, Handler], clock: Clock, limits: Limits, metrics: Metrics, name: str
    ) -> None:
        self._handlers = handlers
        self._clock = clock
        self._traffic = Traffic(metrics, name, clock, limits)
        self._acceptor = Acceptor(clock, self.adopt)
        #: on their way from a socket to a connection
        self._adoptions: set[asyncio.Task[None]] = set()
        self._connections: set[RemotingConnection] = set()
        self._closing = False
        self._all_gone = asyncio.Event()

    async def listen(self, host: str, port: int) -> Address:
        """Accept connections, on port 0 on any. May be called again for another port. Raises OSError."""
        return await self._acceptor.listen(host, port)

    def adopt(self, accepted: socket.socket, peer: Address) -> None:
        """Serve a connection, however it was accepted."""
        adoption = asyncio.get_running_loop().create_task(self._adopt(accepted, peer), name=f"connection of {peer}")
        self._adoptions.add(adoption)
        adoption.add_done_callback(self._adoptions.discard)

    async def _adopt(self, accepted: socket.socket, peer: Address) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(self.connection, accepted)
        except OSError as error:
            log.debug("lost the connection of %s: %s", peer, error)
            accepted.close()

    def connection(self) -> RemotingConnection:
        """The protocol of a new connection."""
        return RemotingConnection(self._handlers, self._clock, self._traffic, self._opened, self._gone)

    async def close(self, drain_ms: int) -> None:
        """Accept no more, and answer what waits and what was sent already. After `drain_ms` cut off who is left."""
        self._closing = True
        self._acceptor.close()
        await asyncio.gather(*self._adoptions)
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
