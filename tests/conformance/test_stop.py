"""The end of a server: asked to stop it finishes what runs, loses nothing, and is gone within seconds."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from pathlib import Path

import pytest
from harness.admin import Admin, RemotingConnection, encoded
from harness.clients import Client, ClientProcess, Message
from harness.grpc_variants import GRPC_DEFAULTS
from harness.pipeline import PULL_MESSAGE, Numbered, PipelinedSender, read_back
from harness.programs import built_or_skipped
from harness.remoting import RemotingClient
from harness.remoting_fixtures import start as start_remoting
from harness.servers import only_saturn

from saturnmq.testing.server import LocalServer

QUEUES = 4
#: for a server that nobody holds up: far below the 5 s that requests have
SOON_S = 4.5
#: for one that has 100,000 sends to refuse
LOADED_S = 60
DRAIN_MS = 5_000

pytestmark = only_saturn


@pytest.fixture
def local(tmp_path: Path) -> Iterator[LocalServer]:
    """Durable, as by default. The test stops it."""
    local = LocalServer("--test-clock", dev=False, home=tmp_path)
    local.start()
    yield local
    if local.running:
        local.kill()


def stop_in(local: LocalServer, seconds: float) -> None:
    begun = time.monotonic()
    assert local.stop() == 0, local.log()
    assert time.monotonic() - begun < seconds
    assert " ERROR " not in local.log()
    assert "Traceback" not in local.log()


def test_a_stop_under_load_loses_nothing(local: LocalServer) -> None:
    """Every send that was answered with success is there after a start, at its place."""
    admin = Admin(local.namesrv, local.broker)
    topic = admin.create_topic(queues=QUEUES)
    admin.close()
    messages = Numbered(lambda number: b"%d" % number, lambda number: {"UNIQ_KEY": f"{number:032X}"})
    sender = PipelinedSender(local.broker, topic, QUEUES, messages)

    async def send_and_stop() -> None:
        sending = asyncio.create_task(sender.send(range(100_000)), name="sending")
        await sender.wait_acknowledged(2_000)
        await asyncio.to_thread(stop_in, local, LOADED_S)
        await sending

    asyncio.run(send_and_stop())
    assert {refusal.partition(":")[0] for refusal in sender.refused} <= {"1500"}, "GO_AWAY, and nothing else"

    local.start()
    connection = RemotingConnection(local.broker)
    stored = {(one.queue_id, one.queue_offset): one.body for one in read_back(connection, topic, QUEUES)}
    connection.close()
    stop_in(local, SOON_S)
    for one in sender.acknowledged:
        assert stored[one.queue_id, one.queue_offset] == b"%d" % one.number


def test_consumers_do_not_hold_it_up(local: LocalServer, tmp_path: Path) -> None:
    """Push consumers and long polls over both protocols, with TLS and without."""
    admin = Admin(local.namesrv, local.broker)
    topic, idle = admin.create_topic(), admin.create_topic()
    admin.close()
    with ExitStack() as ended:
        grpc = []
        for name in ("python", "go"):
            variant = GRPC_DEFAULTS[name]
            command = list(variant.source.toolchain.run)
            process = ClientProcess(command, built_or_skipped(variant.source), tmp_path / name, {})
            ended.callback(process.kill)
            grpc.append(Client(process, local.grpc, tls=variant.tls))
        remoting = []
        for name in ("java", "go"):
            remoting_process = start_remoting(name, tmp_path / f"{name}-remoting")
            ended.callback(remoting_process.kill)
            remoting.append(RemotingClient(remoting_process, local.namesrv))

        grpc[0].producer(topic).send([Message(topic, b"first")])
        for number, client in enumerate(grpc):
            assert len(client.push(f"grpc-push-{number}", {topic: "*"}).take(1)) == 1
            client.simple("grpc-simple", {idle: "*"}).start_receive()
        for number, remoting_client in enumerate(remoting):
            assert len(remoting_client.push(f"remoting-push-{number}", {topic: "*"}).take(1)) == 1
        stop_in(local, SOON_S)


@contextmanager
def held_up(local: LocalServer) -> Iterator[None]:
    """A client that asks for 50 MB and does not read them: its answers cannot be finished."""
    admin = Admin(local.namesrv, local.broker)
    topic = admin.create_topic(queues=1)
    admin.close()
    messages = Numbered(lambda _: bytes(250_000), lambda _: {})
    asyncio.run(PipelinedSender(local.broker, topic, 1, messages).send(range(1)))
    pull = dict.fromkeys(("queueId", "queueOffset", "commitOffset", "suspendTimeoutMillis", "subVersion"), "0")
    pull |= {"consumerGroup": "held-up", "topic": topic, "maxMsgNums": "1", "sysFlag": "4", "subscription": "*"}
    host, _, port = local.broker.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as unread:
        unread.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        for number in range(200):
            unread.sendall(encoded(PULL_MESSAGE, number, pull))
        yield


def wait_for(local: LocalServer, words: str) -> None:
    deadline = time.monotonic() + 10
    while words not in local.log():
        assert time.monotonic() < deadline, local.log()
        time.sleep(0.01)


def test_while_it_drains_it_is_not_ready(local: LocalServer) -> None:
    """Load balancers see it; who does not read is cut off when the time is over."""
    connection = HTTPConnection(local.http, timeout=10)
    with held_up(local):
        connection.request("GET", "/readyz")
        assert connection.getresponse().read() == b"ready\n"
        os.kill(local.pid, signal.SIGTERM)
        wait_for(local, "stopping")
        connection.request("GET", "/readyz")
        response = connection.getresponse()
        assert (response.status, response.read()) == (503, b"the server starts or stops\n")
        assert not (local.home / "ready.json").exists()
        connection.close()
        local.advance_clock(DRAIN_MS)
        stop_in(local, SOON_S)


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_ctrl_c_ends_it_at_once_when_it_stops_already(local: LocalServer, first: signal.Signals) -> None:
    with held_up(local):
        os.kill(local.pid, first)
        wait_for(local, "stopping")
        os.kill(local.pid, signal.SIGTERM)  # once more: supervisors may; changes nothing
        os.kill(local.pid, signal.SIGINT)
        wait_for(local, "stopped at once")
        assert local.stop() == 128 + signal.SIGINT
    local.start()
    stop_in(local, SOON_S)
