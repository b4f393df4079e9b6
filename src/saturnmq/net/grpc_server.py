"""A port that speaks gRPC, with TLS and without it."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable, Mapping
from functools import partial

from saturnmq.kernel.clock import Clock, Timer
from saturnmq.kernel.config import Limits
from saturnmq.kernel.host import Address
from saturnmq.kernel.metrics import Metrics
from saturnmq.net.accepting import Acceptor
from saturnmq.net.grpc_connection import Call, GrpcConnection, Kind, Method, Route, Traffic
from saturnmq.net.newcomers import Newcomer, Newcomers
from saturnmq.wire.grpc import GrpcError, GrpcStatus

__all__ = ["Call", "GrpcError", "GrpcServer", "GrpcStatus", "Kind", "Method"]

log = logging.getLogger("saturnmq.net.grpc")

#: how the looks at connections divide the shortest time that they watch
SWEEPS = 4
#: connections looked at in one turn of the loop: half a millisecond
SWEPT_PER_TURN = 100
#: the first byte of a TLS record that begins a handshake
TLS_HANDSHAKE = b"\x16"
#: that of what HTTP/2 clients say first (RFC 9113, 3.4)
HTTP2_PREFACE = b"P"
#: milliseconds that clients have to take their last answers before they are cut off
LAST_WORDS_MS = 1000


class GrpcServer:
    """Owner of its listeners, of TLS handshakes, and of the connections."""

    def __init__(
        self,
        methods: Mapping[bytes, Method],
        clock: Clock,
        limits: Limits,
        metrics: Metrics,
        ssl_context: ssl.SSLContext | None,
    ) -> None:
        """Without `ssl_context` a client that wants TLS is turned away."""
        self._routes = {path: _route(path, method) for path, method in methods.items()}
        self._clock = clock
        self._limits = limits
        self._traffic = Traffic(metrics)
        self._ssl_context = ssl_context
        self._acceptor = Acceptor(clock, self.adopt)
        self._newcomers = Newcomers(
            clock, limits, limits.handshake_ms, self.take, self._too_silent, self._traffic.limited
        )
        self._handshakes: set[asyncio.Task[None]] = set()
        self._connections: set[GrpcConnection] = set()
        self._sweep_timer: Timer | None = None
        self._closing = False
        self._all_gone = asyncio.Event()

    async def listen(self, host: str, port: int) -> Address:
        """Accept connections, see `Acceptor.listen`. May be called again. Raises OSError."""
        return await self._acceptor.listen(host, port)

    def adopt(self, accepted: socket.socket, peer: Address) -> None:
        """Serve a connection, however it was accepted."""
        self._newcomers.enter(accepted, peer)

    async def close(self, drain_ms: int) -> None:
        """Accept no more, say GOAWAY, finish what runs for at most `drain_ms`, then end what is left as UNAVAILABLE."""
        self._closing = True
        self._acceptor.close()
        self._newcomers.close()
        for handshake in self._handshakes:
            handshake.cancel()
        await asyncio.gather(*self._handshakes, return_exceptions=True)
        now_ms = self._clock.now_ms()
        for connection in list(self._connections):
            connection.drain(self._clock.steady_ms() + drain_ms + LAST_WORDS_MS)
        if self._connections:
            cut = self._clock.call_at(now_ms + drain_ms, self._cut)
            abort = self._clock.call_at(now_ms + drain_ms + LAST_WORDS_MS, self._abort)
            await self._all_gone.wait()
            cut.cancel()
            abort.cancel()
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()

    def _cut(self) -> None:
        for connection in list(self._connections):
            connection.cut()

    def _abort(self) -> None:
        for connection in list(self._connections):
            connection.abort()

    @property
    def open_connections(self) -> int:
        return self._newcomers.open

    # -- from accept to a protocol

    def take(self, newcomer: Newcomer, first: bytes, otherwise: Callable[[], asyncio.Protocol] | None = None) -> None:
        """Serve a connection; the first byte says whether it is TLS. `otherwise` makes the protocol for a client behind
        TLS that does not offer HTTP/2, where the port has another protocol."""
        self._plan_sweep()
        wants_tls = first == TLS_HANDSHAKE
        if wants_tls and self._ssl_context is None:
            log.warning("closed the connection of %s: it wants TLS, which is not configured", newcomer.peer)
            newcomer.socket.close()
            newcomer.left()
            return
        make: Callable[[], asyncio.Protocol] = partial(self._connection, newcomer)
        if wants_tls and otherwise is not None:
            make = partial(_ByAlpn, make, otherwise)
        adoption = self._adopt(newcomer, make, self._ssl_context if wants_tls else None)
        handshake = asyncio.get_running_loop().create_task(adoption, name=f"grpc handshake with {newcomer.peer}")
        self._handshakes.add(handshake)
        handshake.add_done_callback(self._handshakes.discard)

    async def _adopt(
        self, newcomer: Newcomer, make: Callable[[], asyncio.Protocol], context: ssl.SSLContext | None
    ) -> None:
        handshake_s = None if context is None else self._limits.handshake_ms / 1000
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                make, newcomer.socket, ssl=context, ssl_handshake_timeout=handshake_s
            )
        except (OSError, TimeoutError) as error:
            log.warning("closed the connection of %s: TLS: %s", newcomer.peer, error or type(error).__name__)
            newcomer.socket.close()
            newcomer.left()

    def _connection(self, newcomer: Newcomer) -> GrpcConnection:
        gone = partial(self._gone, newcomer)
        ends = newcomer.peer, newcomer.local
        return GrpcConnection(self._routes, self._clock, self._limits, self._traffic, self._opened, gone, ends)

    def _too_silent(self, newcomer: Newcomer) -> None:
        log.warning("closed the connection of %s: it said nothing in %d ms", newcomer.peer, self._limits.handshake_ms)
        self._traffic.limited("handshake_ms")

    def _opened(self, connection: GrpcConnection) -> None:
        self._connections.add(connection)
        if self._closing:  # its handshake ended just now
            connection.abort()

    def _gone(self, newcomer: Newcomer, connection: GrpcConnection) -> None:
        newcomer.left()
        self._connections.discard(connection)
        if self._closing and not self._connections:
            self._all_gone.set()

    # -- those that came and do nothing

    def _plan_sweep(self) -> None:
        if self._sweep_timer is None and not self._closing:
            period_ms = min(self._limits.handshake_ms, self._limits.grpc_idle_ms) // SWEEPS
            self._sweep_timer = self._clock.call_at(self._clock.now_ms() + period_ms, self._sweep)

    def _sweep(self) -> None:
        self._sweep_timer = None
        self._sweep_some(list(self._connections))

    def _sweep_some(self, left: list[GrpcConnection]) -> None:
        """As many as nobody waits for; the others in later turns of the loop."""
        now_ms = self._clock.steady_ms()
        for connection in left[-SWEPT_PER_TURN:]:
            if connection in self._connections:
                connection.sweep(now_ms)
        del left[-SWEPT_PER_TURN:]
        if left:
            self._clock.call_soon(partial(self._sweep_some, left))
        elif self._handshakes or self._connections:
            self._plan_sweep()


class _ByAlpn(asyncio.Protocol):
    """A connection behind TLS, on a port of two protocols: gRPC clients offer h2, others do not."""

    def __init__(self, http2: Callable[[], asyncio.Protocol], other: Callable[[], asyncio.Protocol]) -> None:
        self._http2, self._other = http2, other

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        offers_h2 = transport.get_extra_info("ssl_object").selected_alpn_protocol() == "h2"
        protocol = self._http2() if offers_h2 else self._other()
        transport.set_protocol(protocol)
        protocol.connection_made(transport)


def _route(path: bytes, method: Method) -> Route:
    name = path.decode().removeprefix("/")
    return Route(method, name, (name, GrpcStatus.OK.name))
