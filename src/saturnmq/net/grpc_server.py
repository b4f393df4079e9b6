"""A port that speaks gRPC, with TLS and without it."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
from collections.abc import Mapping

from saturnmq.kernel.clock import Clock, Timer
from saturnmq.kernel.config import Limits
from saturnmq.kernel.host import Address
from saturnmq.kernel.metrics import Metrics
from saturnmq.net.grpc_connection import Call, GrpcConnection, Kind, Method, Route, Traffic
from saturnmq.wire.grpc import GrpcError, GrpcStatus

__all__ = ["Call", "GrpcError", "GrpcServer", "GrpcStatus", "Kind", "Method"]

log = logging.getLogger("saturnmq.net.grpc")

BACKLOG = 1024
#: connections taken in one turn of the loop: their TLS handshakes cost half a millisecond each
ACCEPTS_PER_TURN = 16
#: after the process ran out of descriptors
ACCEPT_AGAIN_MS = 1000
#: how the looks at connections divide the shortest time that they watch
SWEEPS = 4
#: the first byte of a TLS record that begins a handshake
TLS_HANDSHAKE = b"\x16"
#: milliseconds that clients have to take their last answers before they are cut off
LAST_WORDS_MS = 1000
#: a peer that vanished is noticed by TCP: seconds of silence, seconds between probes, probes
KEEP_ALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4}


class GrpcServer:
    """Owner of its listening sockets, of the sockets that have not said yet what they speak, and of the connections."""

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
        self._listeners: list[socket.socket] = []
        #: accepted, silent so far: its peer, and when we give up
        self._silent: dict[socket.socket, tuple[Address, int]] = {}
        self._handshakes: set[asyncio.Task[None]] = set()
        self._connections: set[GrpcConnection] = set()
        self._sweep_timer: Timer | None = None
        self._closing = False
        self._all_gone = asyncio.Event()

    async def listen(self, host: str, port: int) -> Address:
        """Accept connections, on port 0 on any, for an empty host on every address. May be called again. OSError."""
        self._loop = asyncio.get_running_loop()
        flags = socket.AI_PASSIVE
        found = await self._loop.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=flags)
        bound: list[socket.socket] = []
        try:
            for family, address in dict.fromkeys((family, address) for family, _, _, _, address in found):
                taken = bound[0].getsockname()[1] if bound else port
                bound.append(_bind(family, (address[0], taken, *address[2:])))
        except OSError:
            for listener in bound:
                listener.close()
            raise
        for listener in bound:
            self._listeners.append(listener)
            self._loop.add_reader(listener, self._accept, listener)
        host, port = bound[0].getsockname()[:2]
        return Address(host, port)

    async def close(self, drain_ms: int) -> None:
        """Accept no more, say GOAWAY, finish what runs for at most `drain_ms`, then end what is left as UNAVAILABLE."""
        self._closing = True
        for listener in self._listeners:
            self._loop.remove_reader(listener)
            listener.close()
        for silent in list(self._silent):
            self._give_up(silent)
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

    # -- from accept to a protocol

    def _accept(self, listener: socket.socket) -> None:
        self._plan_sweep()
        for _ in range(ACCEPTS_PER_TURN):
            try:
                accepted, name = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    raise
                log.warning("accepts no connection for %d ms: %s", ACCEPT_AGAIN_MS, error)
                self._loop.remove_reader(listener)
                self._clock.call_at(self._clock.now_ms() + ACCEPT_AGAIN_MS, lambda: self._accept_again(listener))
                return
            accepted.setblocking(False)
            _set_options(accepted)
            self._silent[accepted] = Address(*name[:2]), self._clock.steady_ms() + self._limits.handshake_ms
            self._loop.add_reader(accepted, self._peek, accepted)

    def _accept_again(self, listener: socket.socket) -> None:
        if not self._closing:
            self._loop.add_reader(listener, self._accept, listener)

    def _peek(self, accepted: socket.socket) -> None:
        """The first byte says whether it is TLS. It stays in the socket: TLS that starts after reading hangs."""
        try:
            first = accepted.recv(1, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            first = b""
        if not first:  # came and went, as health checks do
            self._give_up(accepted)
            return
        peer = self._silent[accepted][0]
        wants_tls = first == TLS_HANDSHAKE
        if wants_tls and self._ssl_context is None:
            log.warning("closed the connection of %s: it wants TLS, which is not configured", peer)
            self._give_up(accepted)
            return
        del self._silent[accepted]
        self._loop.remove_reader(accepted)
        adoption = self._adopt(accepted, peer, self._ssl_context if wants_tls else None)
        handshake = self._loop.create_task(adoption, name=f"grpc handshake with {peer}")
        self._handshakes.add(handshake)
        handshake.add_done_callback(self._handshakes.discard)

    async def _adopt(self, accepted: socket.socket, peer: Address, context: ssl.SSLContext | None) -> None:
        try:
            if context is None:
                await self._loop.connect_accepted_socket(self._connection, accepted)
            else:
                await self._loop.connect_accepted_socket(
                    self._connection, accepted, ssl=context, ssl_handshake_timeout=self._limits.handshake_ms / 1000
                )
        except (OSError, TimeoutError) as error:
            log.warning("closed the connection of %s: TLS: %s", peer, error or type(error).__name__)
            accepted.close()

    def _connection(self) -> GrpcConnection:
        return GrpcConnection(self._routes, self._clock, self._limits, self._traffic, self._opened, self._gone)

    def _give_up(self, accepted: socket.socket) -> None:
        del self._silent[accepted]
        self._loop.remove_reader(accepted)
        accepted.close()

    def _opened(self, connection: GrpcConnection) -> None:
        self._connections.add(connection)
        if self._closing:  # its handshake ended just now
            connection.abort()

    def _gone(self, connection: GrpcConnection) -> None:
        self._connections.discard(connection)
        if self._closing and not self._connections:
            self._all_gone.set()

    # -- those that came and do nothing

    def _plan_sweep(self) -> None:
        if self._sweep_timer is None and not self._closing:
            period_ms = min(self._limits.handshake_ms, self._limits.idle_connection_ms) // SWEEPS
            self._sweep_timer = self._clock.call_at(self._clock.now_ms() + period_ms, self._sweep)

    def _sweep(self) -> None:
        self._sweep_timer = None
        now_ms = self._clock.steady_ms()
        for silent, (peer, until_ms) in list(self._silent.items()):
            if now_ms >= until_ms:
                log.warning("closed the connection of %s: it said nothing in %d ms", peer, self._limits.handshake_ms)
                self._traffic.limits.add(("handshake_ms",))
                self._give_up(silent)
        for connection in list(self._connections):
            connection.sweep(now_ms)
        if self._silent or self._handshakes or self._connections:
            self._plan_sweep()


def _route(path: bytes, method: Method) -> Route:
    name = path.decode().removeprefix("/")
    return Route(method, name, (name, GrpcStatus.OK.name))


def _bind(family: int, address: tuple[object, ...]) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.setblocking(False)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def _set_options(accepted: socket.socket) -> None:
    accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    accepted.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEP_ALIVE.items():
        option = getattr(socket, name, None)  # macOS has other names for some
        if option is not None:
            accepted.setsockopt(socket.IPPROTO_TCP, option, value)
