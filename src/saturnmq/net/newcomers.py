"""Connections that were accepted and not read: is there room for them, for whom are they, what do they begin with?"""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
from collections import Counter
from collections.abc import Callable

import msgspec

from saturnmq.kernel.clock import Clock, Timer
from saturnmq.kernel.config import Limits
from saturnmq.kernel.errors import ProtocolError
from saturnmq.kernel.host import Address
from saturnmq.wire import proxy_protocol

log = logging.getLogger(__name__)

#: of one port; four ports leave the rest to files
DESCRIPTOR_SHARE = 5
#: between two lines in the log about connections that are refused
QUIET_MS = 10_000
#: how the looks at those that are silent divide the time that they have
SWEEPS = 4


class Newcomer(msgspec.Struct):
    """A connection of which nothing was read. Through a load balancer the ends are the client's, as it told us."""

    port: Newcomers
    socket: socket.socket
    peer: Address
    local: Address
    #: by when it has to say something
    until_ms: int
    #: whether a load balancer may still say who comes through it, and how much it must have said
    untold: bool
    needed_bytes: int = 1
    counted: bool = True

    def left(self) -> None:
        """It was adopted and is gone, or did not come to be."""
        if self.counted:
            self.counted = False
            self.port.left(self)


class Newcomers:
    """Owner of the connections of a port that have not said yet what they speak, and of how many there are in all.

    `adopt(newcomer, first)` takes over a connection whose first byte is there (unread), and says `newcomer.left()` when
    it is gone. Those that say nothing for `silent_ms` are told to `too_silent` and closed. `limited` is told the field
    of Limits that a connection was refused for.
    """

    def __init__(
        self,
        clock: Clock,
        limits: Limits,
        silent_ms: int,
        adopt: Callable[[Newcomer, bytes], None],
        too_silent: Callable[[Newcomer], None],
        limited: Callable[[str], None],
    ) -> None:
        self._clock, self._limits, self._silent_ms = clock, limits, silent_ms
        self._adopt, self._too_silent, self._limited = adopt, too_silent, limited
        self.silent: dict[socket.socket, Newcomer] = {}
        self._most = min(limits.max_connections, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // DESCRIPTOR_SHARE)
        #: connections, the silent ones too, and how many each host has
        self.open = 0
        self._hosts: Counter[str] = Counter()
        self._loud_ms = 0
        self._timer: Timer | None = None
        self._closing = False

    def close(self) -> None:
        self._closing = True
        for newcomer in list(self.silent.values()):
            self._give_up(newcomer)
        if self._timer is not None:
            self._timer.cancel()

    def left(self, newcomer: Newcomer) -> None:
        """See `Newcomer.left`."""
        self.open -= 1
        self._leave(newcomer.peer.host)

    def enter(self, accepted: socket.socket, peer: Address) -> None:
        """A connection that nobody has read from; it is ours now."""
        if self._closing:
            pass
        elif self.open >= self._most:
            self._refuse("max_connections", self._most, peer)
        elif self._has_too_many(peer):
            self._refuse("max_connections_per_host", self._hosts[peer.host], peer)
        else:
            local = Address(*accepted.getsockname()[:2])
            until_ms = self._clock.steady_ms() + self._silent_ms
            newcomer = Newcomer(self, accepted, peer, local, until_ms, self._limits.proxy_protocol)
            self.open += 1
            self._hosts[peer.host] += 1
            self.silent[accepted] = newcomer
            asyncio.get_running_loop().add_reader(accepted, self._look, newcomer)
            self._plan_sweep()
            return
        accepted.close()

    def _has_too_many(self, peer: Address) -> bool:
        return self._hosts[peer.host] >= self._limits.max_connections_per_host > 0

    def _refuse(self, limit: str, most: int, peer: Address) -> None:
        self._limited(limit)
        now_ms = self._clock.steady_ms()
        if now_ms >= self._loud_ms:
            self._loud_ms = now_ms + QUIET_MS
            log.warning("refused the connection of %s, and maybe others: %d are open (%s)", peer, most, limit)

    def _look(self, newcomer: Newcomer) -> None:
        """Something came, or the end."""
        try:
            if newcomer.untold:
                self._hear_proxy(newcomer)
            # it stays in the socket: TLS that starts after reading hangs
            first = newcomer.socket.recv(1, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            return
        except ProtocolError as error:
            log.warning("closed the connection of %s: %s", newcomer.peer, error)
            first = b""
        except OSError:
            first = b""
        if not first:  # came and went, as health checks do
            self._give_up(newcomer)
            return
        del self.silent[newcomer.socket]
        asyncio.get_running_loop().remove_reader(newcomer.socket)
        self._adopt(newcomer, first)

    def _hear_proxy(self, newcomer: Newcomer) -> None:
        """Take what a load balancer says before the client. Raises BlockingIOError until that is whole: the loop looks
        again when there is more, and no earlier."""
        heard = newcomer.socket.recv(proxy_protocol.LONGEST_2, socket.MSG_PEEK)
        header = proxy_protocol.read(heard)
        if isinstance(header, int):
            if len(heard) < newcomer.needed_bytes:
                raise ConnectionAbortedError("the end came first")
            newcomer.needed_bytes = header
            newcomer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, header)
            raise BlockingIOError
        newcomer.untold = False
        if newcomer.needed_bytes > 1:
            newcomer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
        newcomer.socket.recv(header.length)
        if header.source is not None and header.destination is not None:
            self._rename(newcomer, header.source, header.destination)

    def _rename(self, newcomer: Newcomer, source: Address, destination: Address) -> None:
        self._leave(newcomer.peer.host)
        newcomer.peer, newcomer.local = source, destination
        if self._has_too_many(source):
            self._refuse("max_connections_per_host", self._hosts[source.host], source)
            self._hosts[source.host] += 1
            raise ConnectionAbortedError("refused")
        self._hosts[source.host] += 1

    def _leave(self, host: str) -> None:
        self._hosts[host] -= 1
        if not self._hosts[host]:
            del self._hosts[host]

    def _give_up(self, newcomer: Newcomer) -> None:
        del self.silent[newcomer.socket]
        asyncio.get_running_loop().remove_reader(newcomer.socket)
        newcomer.socket.close()
        newcomer.left()

    def _plan_sweep(self) -> None:
        if self._timer is None and not self._closing:
            self._timer = self._clock.call_at(self._clock.now_ms() + self._silent_ms // SWEEPS, self._sweep)

    def _sweep(self) -> None:
        self._timer = None
        now_ms = self._clock.steady_ms()
        for newcomer in list(self.silent.values()):
            if now_ms >= newcomer.until_ms:
                self._too_silent(newcomer)
                self._give_up(newcomer)
        if self.silent:
            self._plan_sweep()
