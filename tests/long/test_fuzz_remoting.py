"""Two million mutated requests to the handlers of a NameServer and a Broker, and some to their ports.

Nothing escapes a handler, neighbours are answered, and no memory is left behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import re
import time
from pathlib import Path
from random import Random
from urllib.request import urlopen

import pytest
from harness.admin import RemotingConnection
from harness.neighbours import Neighbour

from saturnmq.testing.fuzz import Fuzz, Mutator, recordings
from saturnmq.testing.server import LocalServer
from saturnmq.wire.remoting.codes import RequestCode

RECORDED = recordings(Path(__file__).parents[1] / "vectors")
#: each with servers of their own: what clients may make grow ends with them
ROUNDS, FRAMES_PER_ROUND = 100, 20_000
#: until caches are full and the allocator has what it keeps
WARM_ROUNDS = 10
MOST_GROWTH_BYTES = 24 << 20
FRAMES_OVER_SOCKETS = 200_000
CONNECTIONS = 8
FRAMES_PER_CONNECTION = 200
CLOSED_WITHIN_S = 5
#: of a server with the topics and groups that were made, at most these
MOST_SERVER_GROWTH_BYTES = 128 << 20
SLOWEST_NEIGHBOUR_S = 2

pytestmark = pytest.mark.long


def rss_anon_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon"))


def test_two_million_requests() -> None:
    reached = frames = warm_bytes = 0
    begun = time.monotonic()
    for seed in range(ROUNDS):
        fuzz = Fuzz(seed, RECORDED)
        fuzz.run(FRAMES_PER_ROUND)
        fuzz.close()
        reached, frames = reached + fuzz.reached, frames + fuzz.frames
        del fuzz
        gc.collect()
        if seed == WARM_ROUNDS:
            warm_bytes = rss_anon_bytes()
    growth = rss_anon_bytes() - warm_bytes
    print(
        f"{frames} frames, {reached} reached a handler, {frames / (time.monotonic() - begun):.0f} a second, {growth=}"
    )
    assert frames >= 2_000_000
    assert reached > frames / 2
    assert growth < MOST_GROWTH_BYTES


def test_over_sockets(tmp_path: Path) -> None:
    settings = ("autoCreateTopicEnable=false", "maxQueueNums=5000")
    with LocalServer(*(f"--set={setting}" for setting in settings), dev=False, home=tmp_path) as server:
        ports = {"nameserver": server.namesrv, "broker": server.broker}
        connections = {name: RemotingConnection(address) for name, address in ports.items()}

        def ask(_: int) -> None:
            """Whatever settings the fuzz made: an answer comes."""
            connections["nameserver"].call(RequestCode.GET_BROKER_CLUSTER_INFO)
            connections["broker"].call(RequestCode.GET_BROKER_RUNTIME_INFO)

        asyncio.run(flood(ports, FRAMES_OVER_SOCKETS // 10, seed=1))
        before_bytes = server.rss_anon_bytes()
        with Neighbour("neighbour", ask) as neighbour:
            asyncio.run(flood(ports, FRAMES_OVER_SOCKETS, seed=2))
        assert neighbour.error is None
        assert neighbour.slowest_s < SLOWEST_NEIGHBOUR_S
        assert server.rss_anon_bytes() - before_bytes < MOST_SERVER_GROWTH_BYTES
        with urlopen(f"http://{server.http}/metrics", timeout=10) as page:
            metrics = page.read().decode()
        assert "saturnmq_remoting_unexpected_errors_total{" not in metrics
        handled = re.findall(r'^saturnmq_remoting_requests_total\{(?!.*"unknown").*\} (\d+)$', metrics, re.MULTILINE)
        assert sum(map(int, handled)) > FRAMES_OVER_SOCKETS / 2
        for connection in connections.values():
            connection.close()
        log = server.log()
    assert " ERROR " not in log
    assert "Traceback" not in log


async def flood(ports: dict[str, str], frames: int, seed: int) -> None:
    async with asyncio.TaskGroup() as group:
        for number in range(CONNECTIONS):
            name = "nameserver" if number % 4 == 0 else "broker"
            mutator = Mutator(RECORDED[name], Random(f"{seed} {number}"))
            group.create_task(_flood_one(ports[name], mutator, frames // CONNECTIONS), name=f"flood {number}")


async def _flood_one(address: str, mutator: Mutator, frames: int) -> None:
    """One connection after the other: each ends with a frame that may swallow what would follow it."""
    host, _, port = address.rpartition(":")
    sent = 0
    while sent < frames:
        made: list[bytes] = []
        is_broken = False
        while not is_broken and len(made) < FRAMES_PER_CONNECTION:
            frame, is_broken = mutator.frame()
            made.append(frame)
        sent += len(made)
        reader, writer = await asyncio.open_connection(host, int(port))
        with contextlib.suppress(ConnectionError, TimeoutError):
            writer.write(b"".join(made))
            await writer.drain()
            writer.write_eof()  # the server handles what came, and then closes its end
            async with asyncio.timeout(CLOSED_WITHIN_S):
                while await reader.read(1 << 20):
                    pass
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
