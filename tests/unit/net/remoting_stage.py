"""A Remoting server on loopback and peers by hand, on both event loops."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest
import uvloop

from saturnmq.kernel.config import Limits
from saturnmq.kernel.later import Later
from saturnmq.kernel.metrics import Metrics
from saturnmq.net.clock import LoopClock
from saturnmq.net.remoting_client import RemotingClient
from saturnmq.net.remoting_server import Handler, RemotingConnection, RemotingServer
from saturnmq.wire.remoting.command import Command, Response
from saturnmq.wire.remoting.connection import RemotingDecoder, encode

Runner = Callable[[Awaitable[None]], None]


@pytest.fixture(name="run", params=["asyncio", "uvloop"])
def both_loops(request: pytest.FixtureRequest) -> Runner:
    factory = asyncio.new_event_loop if request.param == "asyncio" else uvloop.new_event_loop

    def run(main: Awaitable[None]) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(20):
                await main

        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(bounded())

    return run


class Stage:
    """A server with these handlers, and what it takes to talk to it."""

    def __init__(self, handlers: Mapping[int, Handler] | None = None, **limits: Any) -> None:
        self.clock = LoopClock(asyncio.get_running_loop())
        self.metrics = Metrics()
        self.limits = Limits(**limits)
        self.server = RemotingServer(handlers or {}, self.clock, self.limits, self.metrics, "stage")
        self.peers: list[Peer] = []

    async def __aenter__(self) -> Stage:
        self.address = await self.server.listen("127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        for peer in self.peers:
            peer.writer.close()
        await self.server.close(1000)

    async def dial(self) -> Peer:
        reader, writer = await asyncio.open_connection(self.address.host, self.address.port)
        self.peers.append(Peer(reader, writer))
        return self.peers[-1]

    def client(self, handlers: Mapping[int, Handler] | None = None) -> RemotingClient:
        return RemotingClient(self.clock, self.limits, self.metrics, handlers)

    def counted(self, start: str) -> list[str]:
        return [line.strip() for line in self.metrics.lines() if line.startswith(start)]


class Peer:
    """The other end of a connection, by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.decoder = RemotingDecoder(Limits())
        self.commands: list[Command] = []

    @property
    def address(self) -> str:
        host, port = self.writer.get_extra_info("sockname")
        return f"{host}:{port}"

    def send(self, *commands: Command) -> None:
        self.writer.write(b"".join(map(encode, commands)))

    async def receive(self) -> Command:
        while not self.commands:
            data = await self.reader.read(65536)
            assert data, "the connection was closed"
            self.commands = self.decoder.receive_data(data)
        return self.commands.pop(0)

    async def closed(self) -> bool:
        try:
            return await self.reader.read() == b""
        except ConnectionError:
            return True


async def result(later: Later[Any]) -> Any:
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    later.then(future.set_result, future.set_exception)
    return await future


def echo(command: Command, connection: RemotingConnection) -> Response:
    return Response(0, None, command.fields, command.body)
