"""Who may connect to a port, and for whom."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from remoting_stage import Runner, both_loops  # noqa: F401 - a fixture

from saturnmq.kernel.config import Limits
from saturnmq.kernel.host import Address
from saturnmq.net.accepting import Acceptor
from saturnmq.net.clock import LoopClock
from saturnmq.net.newcomers import Newcomer, Newcomers

HEADER = b"PROXY TCP4 192.0.2.1 192.0.2.2 1001 8081\r\n"
CLIENT, DIALLED = Address("192.0.2.1", 1001), Address("192.0.2.2", 8081)


class Stage:
    """A port, and what came of the connections to it."""

    def __init__(self, **limits: Any) -> None:
        self.clock = LoopClock(asyncio.get_running_loop())
        self.adopted: asyncio.Queue[tuple[Newcomer, bytes]] = asyncio.Queue()
        self.taken: list[Newcomer] = []
        self.limited: list[str] = []
        self.silent: list[Newcomer] = []
        self.newcomers = Newcomers(
            self.clock, Limits(**limits), 1_000, self._adopt, self.silent.append, self.limited.append
        )
        self.acceptor = Acceptor(self.clock, self.newcomers.enter)
        self.writers: list[asyncio.StreamWriter] = []

    def _adopt(self, newcomer: Newcomer, first: bytes) -> None:
        self.taken.append(newcomer)
        self.adopted.put_nowait((newcomer, first))

    async def __aenter__(self) -> Stage:
        self.address = await self.acceptor.listen("127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.acceptor.close()
        self.newcomers.close()
        for writer in self.writers:
            writer.close()
        for newcomer in self.taken:
            newcomer.socket.close()

    async def ended(self, reader: asyncio.StreamReader) -> bool:
        """Whether nothing comes but the end; a reset, where what was sent was not read."""
        try:
            return await reader.read() == b""
        except ConnectionResetError:
            return True

    async def dial(self, *said: bytes, host: str = "127.0.0.1") -> asyncio.StreamReader:
        reader, writer = await asyncio.open_connection(host, self.address.port)
        self.writers.append(writer)
        for piece in said:
            writer.write(piece)
            await asyncio.sleep(0)
        return reader


def test_a_client_is_who_the_load_balancer_says(run: Runner) -> None:
    async def main() -> None:
        async with Stage() as stage:
            for pieces in ([HEADER + b"hello"], [HEADER, b"hello"], [bytes([byte]) for byte in HEADER + b"h"]):
                await stage.dial(*pieces)
                newcomer, first = await stage.adopted.get()
                assert (newcomer.peer, newcomer.local, first) == (CLIENT, DIALLED, b"h")
                assert newcomer.socket.recv(1000).startswith(b"h")

    run(main())


def test_a_client_that_comes_by_itself(run: Runner) -> None:
    async def main() -> None:
        async with Stage() as stage:
            await stage.dial(b"PR", b"I * HTTP/2.0")
            newcomer, first = await stage.adopted.get()
            assert newcomer.peer.host == "127.0.0.1"
            assert newcomer.local == stage.address
            assert first == b"P"
            assert newcomer.socket.recv(1000).startswith(b"PR")

    run(main())


def test_it_may_be_switched_off(run: Runner) -> None:
    async def main() -> None:
        async with Stage(proxy_protocol=False) as stage:
            await stage.dial(HEADER)
            newcomer, first = await stage.adopted.get()
            assert newcomer.peer.host == "127.0.0.1"
            assert (first, newcomer.socket.recv(1000)) == (b"P", HEADER)

    run(main())


def test_who_says_it_wrongly_is_turned_away(run: Runner, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with Stage() as stage:
            reader = await stage.dial(b"PROXY TCP4 nobody nowhere 1 2\r\nPRI")
            assert await stage.ended(reader)
            assert stage.newcomers.silent == {}

    run(main())
    assert "a malformed PROXY line" in caplog.text


def test_who_leaves_in_the_middle(run: Runner) -> None:
    async def main() -> None:
        async with Stage() as stage:
            reader = await stage.dial(HEADER[:20])
            stage.writers[0].write_eof()
            assert await stage.ended(reader)
            assert stage.newcomers.silent == {}

    run(main())


def test_who_says_nothing(run: Runner) -> None:
    async def main() -> None:
        async with Stage() as stage:
            reader = await stage.dial()
            for _ in range(100):  # turns of the loop; accepted in one of them
                await asyncio.sleep(0)
            stage.clock.advance(1_000)
            assert await stage.ended(reader)
            assert len(stage.silent) == 1

    run(main())


def test_a_limit_on_connections(run: Runner, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with Stage(max_connections=2) as stage:
            await stage.dial()
            await stage.dial(b"x")
            newcomer, _ = await stage.adopted.get()
            for _ in range(2):
                assert await stage.ended(await stage.dial())
            assert stage.limited == ["max_connections"] * 2
            newcomer.socket.close()
            stage.newcomers.left(newcomer)
            stage.newcomers.left(newcomer)  # counts once
            await stage.dial(b"y")
            newcomer, first = await stage.adopted.get()
            assert first == b"y"
            assert await stage.ended(await stage.dial())

    with caplog.at_level(logging.WARNING):
        run(main())
    assert caplog.text.count("refused the connection") == 1


def test_a_limit_on_the_connections_of_a_host(run: Runner) -> None:
    """Through a load balancer each client counts for itself."""

    async def main() -> None:
        async with Stage(max_connections_per_host=2) as stage:
            for number in range(5):
                await stage.dial(b"PROXY TCP4 192.0.2.%d 192.0.2.2 1 2\r\nx" % number)
                await stage.adopted.get()
            await stage.dial(HEADER + b"x")
            newcomer, _ = await stage.adopted.get()
            assert newcomer.peer == CLIENT
            assert await stage.ended(await stage.dial(HEADER + b"x"))
            assert stage.limited == ["max_connections_per_host"]
            for _ in range(2):
                await stage.dial(b"x")
                await stage.adopted.get()
            assert await stage.ended(await stage.dial())

    run(main())


@pytest.mark.parametrize("host", ["::", ""])
def test_every_address_of_both_families(run: Runner, host: str) -> None:
    async def main() -> None:
        async with Stage() as stage:
            stage.address = await stage.acceptor.listen(host, 0)
            assert stage.address.host == host or host == ""
            for dialled in ("127.0.0.1", "::1"):
                await stage.dial(b"x", host=dialled)
                newcomer, _ = await stage.adopted.get()
                assert (newcomer.peer.host, newcomer.local) == (dialled, Address(dialled, stage.address.port))

    run(main())
