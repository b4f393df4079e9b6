"""Listening sockets, and the connections that come through them."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable, Sequence
from typing import Any

from saturnmq.kernel.clock import Clock
from saturnmq.kernel.host import Address

log = logging.getLogger(__name__)

BACKLOG = 1024
#: connections taken in one turn of the loop: their TLS handshakes cost half a millisecond each
ACCEPTS_PER_TURN = 16
#: after the process ran out of descriptors
ACCEPT_AGAIN_MS = 1000
#: tries to find a port that is free for both families
PORT_TRIES = 20
#: a peer that vanished is noticed by TCP: seconds of silence, seconds between probes, probes
KEEP_ALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4}


class Acceptor:
    """Owner of listening sockets. `take` gets each connection, with its peer, and owns it from then on."""

    def __init__(self, clock: Clock, take: Callable[[socket.socket, Address], None]) -> None:
        self._clock, self._take = clock, take
        self._listeners: list[socket.socket] = []
        self._paused = False

    async def listen(self, host: str, port: int) -> Address:
        """Accept connections, on port 0 on any; for an empty host and for `::` on every address of both families.

        May be called again. Raises OSError.
        """
        self._loop = asyncio.get_running_loop()
        name = None if host in ("", "::") else host
        found = await self._loop.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        wanted = sorted(dict.fromkeys((family, address) for family, _, _, _, address in found), reverse=host == "::")
        for tries in range(PORT_TRIES):
            try:
                bound = _bind_all(wanted, port)
                break
            except OSError as error:
                if port or error.errno != errno.EADDRINUSE or tries == PORT_TRIES - 1:
                    raise
        self._listeners += bound
        if not self._paused:
            self._watch(bound)
        return Address(*bound[0].getsockname()[:2])

    def pause(self) -> None:
        """Who comes now waits in the backlog."""
        self._paused = True
        for listener in self._listeners:
            self._loop.remove_reader(listener)

    def resume(self) -> None:
        if self._paused:
            self._paused = False
            self._watch(self._listeners)

    def close(self) -> None:
        self._paused = True
        for listener in self._listeners:
            self._loop.remove_reader(listener)
            listener.close()
        self._listeners.clear()

    def _watch(self, listeners: list[socket.socket]) -> None:
        for listener in listeners:
            self._loop.add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
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
            self._take(accepted, Address(*name[:2]))
            if self._paused:
                return

    def _accept_again(self, listener: socket.socket) -> None:
        if not self._paused:
            self._loop.add_reader(listener, self._accept, listener)


def _bind_all(wanted: Sequence[tuple[int, tuple[Any, ...]]], port: int) -> list[socket.socket]:
    """One socket for each family and address, all on one port. Raises OSError."""
    bound: list[socket.socket] = []
    try:
        for family, address in wanted:
            taken = bound[0].getsockname()[1] if bound else port
            bound.append(_bind(family, (address[0], taken, *address[2:])))
    except OSError:
        for listener in bound:
            listener.close()
        raise
    return bound


def _bind(family: int, address: tuple[Any, ...]) -> socket.socket:
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
