"""Clients that ask for more than they take, or for more than a server does at once; and servers that go away."""

from __future__ import annotations

import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.request import urlopen

import pytest
from harness.admin import Admin, RemotingConnection, decoded, encoded
from harness.clients import Message
from harness.neighbours import Neighbour
from harness.processes import Processes, wait_for_route
from harness.remoting import RemotingClient, RemotingProcess
from harness.servers import only_saturn

from saturnmq.testing.server import LocalServer

PULL_MESSAGE, SEND_MESSAGE_V2 = 11, 310
SYSTEM_BUSY = 2
#: sysFlag of a pull: wait for a message; the subscription is in the header
SUSPEND, SUBSCRIPTION = 2, 4
MIB = 1 << 20
#: a neighbour that is not disturbed, on a machine that is
SLOWEST_NEIGHBOUR_S = 2

pytestmark = only_saturn


@contextmanager
def server(home: Path, *settings: str) -> Iterator[LocalServer]:
    local = LocalServer(*(f"--set={setting}" for setting in settings), home=home)
    with local:
        yield local


def send(connection: RemotingConnection, topic: str, body: bytes) -> None:
    fields = {
        "a": "g",
        "b": topic,
        "c": "TBW102",
        "d": "1",
        "e": "0",
        "f": "0",
        "g": "0",
        "h": "0",
        "i": "",
        "m": "false",
    }
    connection.call(SEND_MESSAGE_V2, body, **fields)


def pull(opaque: int, topic: str, offset: int = 0, wait_ms: int = 0) -> bytes:
    fields = {
        "consumerGroup": "g", "topic": topic, "queueId": "0", "queueOffset": str(offset), "maxMsgNums": "32",
        "sysFlag": str(SUBSCRIPTION | (SUSPEND if wait_ms else 0)), "commitOffset": "0", "subscription": "*",
        "suspendTimeoutMillis": str(wait_ms), "subVersion": "0",
    }  # fmt: skip
    return encoded(PULL_MESSAGE, opaque, fields)


class Asker:
    """A connection that asks, and reads when the test says so."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        # a time-out of Python's would be one for the thread that writes, too
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 20, 0))
        self._socket.connect((host, int(port)))

    def ask(self, requests: bytes) -> None:
        """As far as the server takes them: a thread goes on with the rest until the connection ends."""
        threading.Thread(target=self._ask, args=(requests,), daemon=True).start()

    def _ask(self, requests: bytes) -> None:
        with suppress(OSError):
            self._socket.sendall(requests)

    def answer(self) -> tuple[int, int, str]:
        """Opaque, code and remark of the next one."""
        header, _ = decoded(self._read(int.from_bytes(self._read(4), "big")))
        return header["opaque"], header["code"], header.get("remark") or ""

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self._socket.recv(size - len(data))
            assert part, "the connection was closed"
            data += part
        return data

    def close(self) -> None:
        self._socket.close()


def metric(local: LocalServer, name: str, **labels: str) -> int:
    """0 when nothing was counted."""
    with urlopen(f"http://{local.http}/metrics", timeout=10) as page:
        text = page.read().decode()
    pairs = ",".join(f'{key}="{value}"' for key, value in labels.items())
    found = re.search(rf"^{name}\{{{re.escape(pairs)}\}} (\d+)$", text, re.MULTILINE)
    return int(found[1]) if found else 0


def test_slow_readers_of_a_large_backlog(tmp_path: Path) -> None:
    """40 connections that ask for 40 GB and read nothing: the server holds what its settings say, and serves others."""
    with server(tmp_path, f"remotingUnsentBytes={32 * MIB}", f"connectionWriteBufferBytes={2 * MIB}") as local:
        admin, producer = Admin(local.namesrv, local.broker), RemotingConnection(local.broker)
        topic, other = admin.create_topic(queues=1), admin.create_topic(queues=1)
        for _ in range(16):
            send(producer, topic, bytes(MIB))
        before = local.rss_anon_bytes()
        with ExitStack() as opened, Neighbour("producer", lambda _: send(producer, other, b"x")) as neighbour:
            readers = [Asker(local.broker) for _ in range(40)]
            for reader in readers:
                opened.callback(reader.close)
                reader.ask(b"".join(pull(number, topic) for number in range(1000)))
            deadline = time.monotonic() + 30
            while not metric(local, "saturnmq_remoting_limited_total", server="broker", limit="remotingUnsentBytes"):
                assert time.monotonic() < deadline, "nobody was cut off"
                time.sleep(0.05)
            calls = neighbour.calls
            while neighbour.calls < calls + 20 and neighbour.error is None:
                assert metric(local, "saturnmq_remoting_unsent_bytes", server="broker") <= 32 * MIB
                time.sleep(0.05)
            # what is unsent, the answers of one turn, and what the allocator keeps of both; of 600 connections no more
            assert local.rss_anon_bytes() - before < 160 * MIB
        assert neighbour.error is None
        assert neighbour.slowest_s < SLOWEST_NEIGHBOUR_S
        admin.close()
        producer.close()


def test_too_many_requests_that_wait(tmp_path: Path) -> None:
    """Each answer says what is full, how full, since when, and which setting it is."""
    with server(tmp_path, "remotingRequestsWaiting=100", "remotingRequestsWaitingInAll=150") as local:
        admin, producer = Admin(local.namesrv, local.broker), RemotingConnection(local.broker)
        topic = admin.create_topic(queues=1)
        first, second = Asker(local.broker), Asker(local.broker)
        for asker, waiting, whose, setting in (
            (first, 100, "of this connection", "remotingRequestsWaiting"),
            (second, 50, "of all connections", "remotingRequestsWaitingInAll"),
        ):
            asker.ask(b"".join(pull(number, topic, wait_ms=20_000) for number in range(waiting + 5)))
            number = 100 if setting == "remotingRequestsWaiting" else 150
            for opaque in range(waiting, waiting + 5):
                assert asker.answer() == (
                    opaque,
                    SYSTEM_BUSY,
                    f"[OVERLOAD]{number} requests {whose} wait for their answers, as many as may ({setting}), since "
                    "0.0 s; try again later",
                )
        assert metric(local, "saturnmq_remoting_waiting_requests", server="broker") == 150
        send_refused = pytest.raises(Exception, match=r"2: \[OVERLOAD\]150 requests of all connections")
        with send_refused:
            send(producer, topic, b"x")
        first.close()
        deadline = time.monotonic() + 10
        while metric(local, "saturnmq_remoting_waiting_requests", server="broker") > 50:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        send(producer, topic, b"x")
        assert {second.answer()[:2] for _ in range(50)} == {(number, 0) for number in range(50)}
        second.close()
        admin.close()
        producer.close()


def test_requests_that_do_not_become_whole(tmp_path: Path) -> None:
    """100 connections with most of a request of 4 MiB each: the server holds 32 MiB of them."""
    with server(tmp_path, f"remotingHeldBytes={32 * MIB}") as local:
        admin, producer = Admin(local.namesrv, local.broker), RemotingConnection(local.broker)
        topic = admin.create_topic(queues=1)
        before = local.rss_anon_bytes()
        whole = encoded(SEND_MESSAGE_V2, 7, {"a": "g", "b": topic}, bytes(4 * MIB))
        with ExitStack() as opened, Neighbour("producer", lambda _: send(producer, topic, b"x")) as neighbour:
            for _ in range(100):
                asker = Asker(local.broker)
                opened.callback(asker.close)
                asker.ask(whole[: 3 * MIB])
            opaque, code, remark = asker_refused(local, opened)
            assert (opaque, code) == (7, SYSTEM_BUSY)
            assert "(remotingHeldBytes)" in remark
            assert metric(local, "saturnmq_remoting_held_bytes", server="broker") <= 32 * MIB
            assert local.rss_anon_bytes() - before < 64 * MIB
        assert neighbour.error is None
        assert neighbour.slowest_s < SLOWEST_NEIGHBOUR_S
        admin.close()
        producer.close()


def asker_refused(local: LocalServer, opened: ExitStack) -> tuple[int, int, str]:
    """The answer to one of those that hold most."""
    asker = Asker(local.broker)
    opened.callback(asker.close)
    asker.ask(encoded(SEND_MESSAGE_V2, 7, {}, bytes(15 * MIB))[: 14 * MIB])
    return asker.answer()


def test_a_broker_that_stops_fails_no_send(tmp_path: Path, remoting_process: Callable[[str], RemotingProcess]) -> None:
    """Java's client, which it tells to go away (GO_AWAY), sends to the other one. Go's has no such word, and tries the
    same broker until it asks for routes again."""
    with ExitStack() as opened:
        processes = Processes(tmp_path, opened)
        namesrv = processes.namesrv().ready["namesrv"]
        brokers = {name: processes.broker("-n", namesrv, name=name) for name in ("broker-a", "broker-b")}
        wait_for_route(namesrv, {name: broker.ready["broker"] for name, broker in brokers.items()})
        for broker in brokers.values():
            admin = Admin(namesrv, broker.ready["broker"])
            admin.create_topic(name="orders", queues=4)
            admin.close()
        client = RemotingClient(remoting_process("java"), namesrv)
        producer = client.producer()
        stopping = threading.Thread(target=brokers["broker-a"].stop)
        for number in range(20):
            receipts = producer.send([Message("orders", b"x")] * 50)
            assert {receipt.status for receipt in receipts} == {"SEND_OK"}
            if number == 5:
                stopping.start()
        stopping.join()
        wait_for_route(namesrv, {"broker-b": brokers["broker-b"].ready["broker"]})
        client.close_all()
