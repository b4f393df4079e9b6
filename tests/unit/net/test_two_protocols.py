"""One port for Remoting and gRPC, each with TLS and without it."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from remoting_stage import Peer, Runner, both_loops, echo  # noqa: F401 - a fixture

from saturnmq.kernel.clock import Clock
from saturnmq.kernel.config import Limits
from saturnmq.kernel.host import Address
from saturnmq.kernel.metrics import Metrics
from saturnmq.net import tls
from saturnmq.net.clock import LoopClock
from saturnmq.net.grpc_server import GrpcServer
from saturnmq.net.remoting_server import RemotingServer
from saturnmq.wire.http2 import frames
from saturnmq.wire.http2.frames import frame
from saturnmq.wire.remoting.command import Command

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(frames.SETTINGS, 0, 0)


@contextlib.asynccontextmanager
async def one_port(directory: Path, handshake_ms: int = 10_000) -> AsyncIterator[Address]:
    clock: Clock = LoopClock(asyncio.get_running_loop())
    metrics, bounds = Metrics(), Limits(handshake_ms=handshake_ms)
    grpc = GrpcServer({}, clock, bounds, metrics, tls.server_context(tls.certificate_files(directory)))
    port = RemotingServer({7: echo}, clock, bounds, metrics, "proxy", grpc)
    yield await port.listen("127.0.0.1", 0)
    await port.close(1000)
    await grpc.close(0)


def trusting(*protocols: str) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(protocols)
    return context


async def speaks_remoting(address: Address, context: ssl.SSLContext | None) -> None:
    reader, writer = await asyncio.open_connection(address.host, address.port, ssl=context)
    peer = Peer(reader, writer)
    peer.send(Command(7, 1, body=b"hello"))
    assert (await peer.receive()).body == b"hello"
    writer.close()


async def speaks_http2(address: Address, context: ssl.SSLContext | None) -> None:
    reader, writer = await asyncio.open_connection(address.host, address.port, ssl=context)
    writer.write(PREFACE)
    header = await reader.readexactly(9)
    assert header[3] == frames.SETTINGS
    writer.close()


def test_what_comes_first_says_which(run: Runner, tmp_path: Path) -> None:
    async def main() -> None:
        async with one_port(tmp_path) as address:
            for context in (None, trusting()):
                await speaks_remoting(address, context)
            for context in (None, trusting("h2")):
                await speaks_http2(address, context)

    run(main())


@pytest.mark.parametrize("first", [b"\x16", b"GET / HTTP/1.1\r\n\r\n"])
def test_who_speaks_neither_is_cut_off(run: Runner, tmp_path: Path, first: bytes) -> None:
    async def main() -> None:
        async with one_port(tmp_path, handshake_ms=200) as address:
            reader, writer = await asyncio.open_connection(address.host, address.port)
            writer.write(first)
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
            writer.close()

    run(main())
