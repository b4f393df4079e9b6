"""A port that speaks Remoting."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Mapping
from functools import partial

import msgspec

from saturnmq.kernel.clock import Clock
from saturnmq.kernel.config import Limits
from saturnmq.kernel.host import Address
from saturnmq.kernel.metrics import Metrics
from saturnmq.net.accepting import Acceptor
from saturnmq.net.grpc_server import HTTP2_PREFACE, TLS_HANDSHAKE, GrpcServer
from saturnmq.net.newcomers import Newcomer, Newcomers
from saturnmq.net.remoting_connection import Handler, RemotingConnection
from saturnmq.net.remoting_traffic import Traffic

__all__ = ["Handler", "RemotingConnection", "RemotingServer"]

log = logging.getLogger(__name__)

SETTINGS = {field.name: field.encode_name for field in msgspec.structs.fields(Limits)}


class RemotingServer:
    """Owner of its listeners and of the connections that came through them."""

    def __init__(
        self,
        handlers: Mapping[int, Handler],
        clock: Clock,
        limits: Limits,
        metrics: Metrics,
        name: str,
        grpc: GrpcServer | None = None,
    ) -> None:
        """`grpc` serves those who come to this port and speak gRPC, and decides about TLS; without it there is none."""
        self._handlers = handlers
        self._grpc = grpc
        self._clock = clock
        self._traffic = Traffic(metrics, name, clock, limits)
        # Java's clients open a connection to each NameServer and keep it until they need it
        silent_ms = limits.idle_connection_ms
        self._acceptor = Acceptor(clock, self.adopt)
        self._newcomers = Newcomers(clock, limits, silent_ms, self._take, self._too_silent, self._limited)
        self._adoptions: set[asyncio.Task[None]] = set()
        self._connections: set[RemotingConnection] = set()
        self._closing = False
        self._all_gone = asyncio.Event()

    async def listen(self, host: str, port: int) -> Address:
        """Accept connections, see `Acceptor.listen`. May be called again. Raises OSError."""
        return await self._acceptor.listen(host, port)

    @property
    def open_connections(self) -> int:
        return self._newcomers.open

    def adopt(self, accepted: socket.socket, peer: Address) -> None:
        """Serve a connection, however it was accepted."""
        self._newcomers.enter(accepted, peer)

    def _take(self, newcomer: Newcomer, first: bytes) -> None:
        """Remoting begins with a length, which does not begin as gRPC or TLS do."""
        if self._grpc is not None and first in (TLS_HANDSHAKE, HTTP2_PREFACE):
            self._grpc.take(newcomer, first, otherwise=partial(self._connection, newcomer))
            return
        adoption = asyncio.get_running_loop().create_task(self._adopt(newcomer), name=f"remoting with {newcomer.peer}")
        self._adoptions.add(adoption)
        adoption.add_done_callback(self._adoptions.discard)

    async def _adopt(self, newcomer: Newcomer) -> None:
        try:
            make = partial(self._connection, newcomer)
            await asyncio.get_running_loop().connect_accepted_socket(make, newcomer.socket)
        except OSError as error:
            log.warning("lost the connection of %s: %s", newcomer.peer, error)
            newcomer.left()

    def _connection(self, newcomer: Newcomer) -> RemotingConnection:
        gone = partial(self._gone, newcomer)
        ends = newcomer.peer, newcomer.local
        return RemotingConnection(self._handlers, self._clock, self._traffic, self._opened, gone, ends)

    def _too_silent(self, newcomer: Newcomer) -> None:
        log.debug("%s: closed the idle connection of %s", self._traffic.name, newcomer.peer)

    def _limited(self, limit: str) -> None:
        self._traffic.limited(SETTINGS[limit])

    async def close(self, drain_ms: int) -> None:
        """Accept no more, and answer what waits and what was sent already. After `drain_ms` cut off who is left."""
        self._closing = True
        self._acceptor.close()
        self._newcomers.close()
        if self._adoptions:
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

    def _gone(self, newcomer: Newcomer, connection: RemotingConnection) -> None:
        newcomer.left()
        self._connections.discard(connection)
        if self._closing and not self._connections:
            self._all_gone.set()
