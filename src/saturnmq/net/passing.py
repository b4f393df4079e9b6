"""Connections that one process accepts and others serve.

The parent has two ways to each worker. Over a Unix socket it passes accepted sockets (SCM_RIGHTS), each with one byte,
the number of the listener it came through; a byte without a socket is a question. Through a pipe the worker answers
questions, and says that it is ready, with a `Report`: JSON, one in a line. When the parent is gone, the worker reads
the end of its socket.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from typing import Protocol

import msgspec

from saturnmq.kernel.host import Address

#: questions; listeners have smaller numbers
ASK, ASK_METRICS = b"\xfe", b"\xff"
#: sockets that a worker takes in one turn of the loop
PASSES_PER_TURN = 16
#: bytes of a report: metrics are some hundred thousand
MAX_REPORT_BYTES = 64 * 1024 * 1024


class Report(msgspec.Struct):
    """What a worker says of itself."""

    #: sockets that it was passed so far
    taken: int
    #: connections that it has
    connections: int
    #: why clients had better go elsewhere, or ""
    trouble: str
    #: as Prometheus text, if that was the question
    metrics: str | None = None


class Server(Protocol):
    """What serves the connections of a listener."""

    @property
    def open_connections(self) -> int: ...

    def adopt(self, accepted: socket.socket, peer: Address) -> None: ...


class Outlet:
    """The parent's end of the ways to one worker."""

    def __init__(self) -> None:
        self._sockets, self._workers_sockets = socket.socketpair()
        self._sockets.setblocking(False)
        self._reports, self._workers_reports = os.pipe()

    def inheritance(self) -> tuple[int, int]:
        """The descriptors of the worker's end, for its process to be started with."""
        return self._workers_sockets.fileno(), self._workers_reports

    def close(self) -> None:
        """There will be no worker."""
        self._sockets.close()
        self._workers_sockets.close()
        os.close(self._reports)
        os.close(self._workers_reports)

    async def reports(self) -> AsyncIterator[Report]:
        """Until the worker is gone. Its process runs already: what it inherits is closed here."""
        self._workers_sockets.close()
        os.close(self._workers_reports)
        reader = asyncio.StreamReader(limit=MAX_REPORT_BYTES)
        pipe = os.fdopen(self._reports, "rb", 0)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), pipe
        )
        try:
            async for line in reader:
                yield msgspec.json.decode(line, type=Report)
        finally:
            transport.close()
            self._sockets.close()

    def ask(self, question: bytes) -> None:
        with suppress(OSError):  # it is gone, or far behind: its silence says so
            self._sockets.send(question)

    def pass_on(self, accepted: socket.socket, listener: int) -> bool:
        """False when the worker takes none now."""
        try:
            socket.send_fds(self._sockets, [bytes([listener])], [accepted.fileno()])
        except OSError:
            return False
        accepted.close()
        return True


class Inlet:
    """The worker's end. Owner: the daemon, which tells it why it is not ready, and what its metrics are."""

    def __init__(
        self, sockets: int, reports: int, trouble: Callable[[], str], metrics: Callable[[], Iterator[str]]
    ) -> None:
        self._sockets = socket.socket(fileno=sockets)
        self._sockets.setblocking(False)
        self._reports_pipe = os.fdopen(reports, "wb", 0)
        self._trouble, self._metrics = trouble, metrics
        #: by the parent's number of the listener
        self._servers: dict[int, Server] = {}
        self._taken = 0
        #: told when the parent is gone
        self.on_gone: Callable[[], None] = lambda: None

    def serve(self, listener: int, server: Server) -> None:
        """What comes through this listener is for this server."""
        self._servers[listener] = server

    async def start(self) -> None:
        """Take sockets from now on, and say so."""
        self._loop = asyncio.get_running_loop()
        self._reports, _ = await self._loop.connect_write_pipe(asyncio.BaseProtocol, self._reports_pipe)
        self._loop.add_reader(self._sockets, self._receive)
        self._report()

    def close(self) -> None:
        """Take none any more: what the parent passes from now on goes to others."""
        self._loop.remove_reader(self._sockets)
        self._sockets.close()
        self._reports.close()

    def _receive(self) -> None:
        for _ in range(PASSES_PER_TURN):
            try:
                what, descriptors, _, _ = socket.recv_fds(self._sockets, 1, 1)
            except (BlockingIOError, InterruptedError):
                return
            if not what:
                self._loop.remove_reader(self._sockets)
                self.on_gone()
                return
            for descriptor in descriptors:
                self._take(socket.socket(fileno=descriptor), self._servers[what[0]])
            if not descriptors:
                self._report("".join(self._metrics()) if what == ASK_METRICS else None)

    def _take(self, accepted: socket.socket, server: Server) -> None:
        self._taken += 1
        accepted.setblocking(False)
        try:
            peer = Address(*accepted.getpeername()[:2])
        except OSError:  # it came and went
            accepted.close()
        else:
            server.adopt(accepted, peer)

    def _report(self, metrics: str | None = None) -> None:
        connections = sum(server.open_connections for server in self._servers.values())
        report = Report(self._taken, connections, self._trouble(), metrics)
        self._reports.write(msgspec.json.encode(report) + b"\n")
