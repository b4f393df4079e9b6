"""Requests to other processes that speak Remoting."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from saturnmq.kernel.clock import Clock
from saturnmq.kernel.config import Limits
from saturnmq.kernel.errors import Unreachable
from saturnmq.kernel.host import Address
from saturnmq.kernel.later import Later
from saturnmq.kernel.metrics import Metrics
from saturnmq.net.remoting_connection import Handler, RemotingConnection
from saturnmq.net.remoting_traffic import Traffic
from saturnmq.wire.remoting.command import Command

#: for a TCP handshake, and no longer than the request may take
CONNECT_TIMEOUT_MS = 3000


class RemotingClient:
    """Owner of one connection per address: made when the first request needs it, shared by all, made anew when lost.

    `handlers` answer what the other side asks.
    """

    def __init__(
        self,
        clock: Clock,
        limits: Limits,
        metrics: Metrics,
        handlers: Mapping[int, Handler] | None = None,
        name: str = "client",
    ) -> None:
        self._handlers = {} if handlers is None else handlers
        self._clock = clock
        self._traffic = Traffic(metrics, name, clock, limits)
        #: told of an address whose connection is gone
        self.on_lost: Callable[[Address], None] = lambda address: None
        self._connections: dict[Address, RemotingConnection] = {}
        self._openings: dict[Address, _Opening] = {}

    def request(
        self, address: Address, code: int, fields: Mapping[str, str], body: bytes, timeout_ms: int
    ) -> Later[Command]:
        """Ask. Fails with RequestTimeout, ConnectionLost, Unreachable; any response code is an answer."""
        connection = self._connections.get(address)
        if connection is not None:
            return connection.request(code, fields, body, timeout_ms)
        answer: Later[Command] = Later()
        deadline_ms = self._clock.now_ms() + timeout_ms

        def send(connection: RemotingConnection) -> None:
            if answer.pending:
                asked = connection.request(code, fields, body, max(1, deadline_ms - self._clock.now_ms()))
                answer.on_cancel = asked.cancel
                asked.then(answer.resolve, answer.fail)

        self._open(address, timeout_ms, send, answer.fail)
        return answer

    def one_way(self, address: Address, code: int, fields: Mapping[str, str], body: bytes = b"") -> None:
        """Tell. Nobody hears of it when the address cannot be reached."""
        connection = self._connections.get(address)
        if connection is not None:
            connection.send_one_way(code, fields, body)
        else:
            self._open(address, CONNECT_TIMEOUT_MS, lambda c: c.send_one_way(code, fields, body), lambda _: None)

    def local_address(self, address: Address) -> Address | None:
        """Our end of the connection to it; None while there is none."""
        connection = self._connections.get(address)
        return None if connection is None else connection.local

    async def close(self) -> None:
        """Fail what waits and close every connection."""
        tasks = [opening.task for opening in self._openings.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for address in list(self._openings):
            self._give_up(address, "the client was closed")
        for connection in list(self._connections.values()):
            connection.close()

    def _open(
        self,
        address: Address,
        timeout_ms: int,
        use: Callable[[RemotingConnection], None],
        fail: Callable[[BaseException], None],
    ) -> None:
        opening = self._openings.get(address)
        if opening is None:
            opening = self._openings[address] = _Opening()
            opening.task = asyncio.get_running_loop().create_task(
                self._connect(address, min(timeout_ms, CONNECT_TIMEOUT_MS), opening), name=f"connect to {address}"
            )
        opening.waiters.append((use, fail))

    async def _connect(self, address: Address, timeout_ms: int, opening: _Opening) -> None:
        def opened(connection: RemotingConnection) -> None:
            self._connections[address] = connection
            del self._openings[address]
            for use, _ in opening.waiters:
                use(connection)

        def closed(connection: RemotingConnection) -> None:
            del self._connections[address]
            self.on_lost(address)

        connection = RemotingConnection(self._handlers, self._clock, self._traffic, opened, closed)
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                await asyncio.get_running_loop().create_connection(lambda: connection, address.host, address.port)
        except (OSError, UnicodeError) as error:  # TimeoutError is an OSError
            if self._openings.get(address) is opening:  # else the time-out came with the connection
                self._give_up(address, str(error) or f"no answer within {timeout_ms} ms")

    def _give_up(self, address: Address, reason: str) -> None:
        for _, fail in self._openings.pop(address).waiters:
            fail(Unreachable(f"{address} cannot be reached: {reason}"))


class _Opening:
    """A connection that is being made, and who waits for it."""

    task: asyncio.Task[None]

    def __init__(self) -> None:
        self.waiters: list[tuple[Callable[[RemotingConnection], None], Callable[[BaseException], None]]] = []
