"""What no client should send: an answer that says what is wrong or a closed connection, a warning that names the peer,
and nothing else disturbed."""

from __future__ import annotations

import random
import re
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from harness.admin import Admin, AdminError, RemotingConnection, encoded
from harness.clients import Client, Message
from harness.neighbours import Neighbour
from harness.servers import Server

SEND_MESSAGE = 10
PULL_MESSAGE = 11
ROUTE = 105
NO_SUCH_CODE = 12345
MESSAGE_ILLEGAL = 13
#: maxMessageSize, of Apache and of ours
MOST_BODY_BYTES = 4 << 20

REMOTING = ("namesrv", "broker", "proxy_remoting")
LISTENERS = (*REMOTING, "grpc", "http")

#: more than a client waits for a server that hangs
CLOSED_WITHIN_S = 5
#: of its first handshake a gRPC connection has 10 s (handshake_ms), and the sweep comes every few seconds
SILENT_CLOSED_WITHIN_S = 20
SLOWEST_NEIGHBOUR_S = 2
#: the neighbours' own messages are in it; 660 connections that each leave 16 KiB are not
MOST_GROWTH_BYTES = 8 << 20

NOISE = random.Random(5).randbytes(4096)
HTTP_2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HTTP_2_SETTINGS = bytes(3) + b"\4" + bytes(5)

REMOTING_GARBAGE = {
    "a negative length": b"\xff" * 64,
    "2 GiB claimed": struct.pack(">II", 0x7FFFFFFF, 100) + NOISE,
    "a header longer than its frame": struct.pack(">II", 100, 0xFFFFFF) + NOISE[:96],
    "a header that is noise": struct.pack(">II", 104, 100) + NOISE[:100],
    "an encoding that nobody knows": struct.pack(">II", 104, 100 | 7 << 24) + NOISE[:100],
    "HTTP": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc" + NOISE[:512],
}
GRPC_GARBAGE = {
    "noise": b"\xff" + NOISE,
    "HTTP/1.1": b"POST /apache.rocketmq.v2.MessagingService/QueryRoute HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "HTTP/1.0": b"GET / HTTP/1.0\r\n\r\n",
    "HTTP/3's name": b"PRI * HTTP/3.0\r\n\r\nSM\r\n\r\n" + HTTP_2_SETTINGS,
    "noise after the preface": HTTP_2_PREFACE + NOISE,
    "a frame of 16 MiB": HTTP_2_PREFACE + HTTP_2_SETTINGS + b"\xff\xff\xff\0\0\0\0\0\1" + NOISE,
    "TLS that is noise": b"\x16\x03\x01\x02\x00" + NOISE,
    "a Remoting frame": encoded(ROUTE, 1, {"topic": "t"}),
}


@pytest.fixture(autouse=True)
def undisturbed(server: Server, admin: Admin, open_client: Callable[[str], Client]) -> Iterator[None]:
    """A Remoting and a gRPC producer that send during each test: every message is taken, none waits long."""
    topic = admin.create_topic()
    connection = RemotingConnection(server.broker)
    producer = open_client("python").producer(topic)
    by_remoting = Neighbour("remoting neighbour", lambda number: send_one(connection, topic, b"%d" % number))
    by_grpc = Neighbour("grpc neighbour", lambda number: only_one(producer.send([Message(topic, b"%d" % number)])))
    with by_remoting, by_grpc:
        yield
    connection.close()
    for neighbour in (by_remoting, by_grpc):
        assert neighbour.error is None
        assert neighbour.calls > 0
        assert neighbour.slowest_s < SLOWEST_NEIGHBOUR_S


def only_one(ids: list[str]) -> None:
    assert len(ids) == 1


def send_one(connection: RemotingConnection, topic: str, body: bytes) -> None:
    connection.ask(
        SEND_MESSAGE,
        body,
        producerGroup="neighbours",
        topic=topic,
        defaultTopic="no-such-template",
        defaultTopicQueueNums="4",
        queueId="0",
        sysFlag="0",
        bornTimestamp="1700000000000",
        flag="0",
        properties="",
        reconsumeTimes="0",
        unitMode="false",
        batch="false",
    )


def connect(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=CLOSED_WITHIN_S)


def address_of(server: Server, listener: str) -> str:
    address: str = getattr(server, listener)
    if not address:
        pytest.skip(f"{server.name} does not listen for {listener}")
    return address


def read_to_end(bad: socket.socket) -> bytes:
    """What the server says before it closes. Raises TimeoutError when it does not."""
    said = b""
    try:
        while part := bad.recv(65536):
            said += part
    except ConnectionResetError:  # closed while our bytes lay unread
        pass
    return said


def assert_closed(server: Server, listener: str, garbage: bytes) -> None:
    """The server closes the connection, and warns once, with the peer's address."""
    log = Log(server.log_path)
    with connect(address_of(server, listener)) as bad:
        peer = "{}:{}".format(*bad.getsockname())
        bad.sendall(garbage)
        read_to_end(bad)
    if not server.is_apache:
        log.wait_for_warning(peer)


class Log:
    """What the server wrote since this object was made: a port number comes again after a while."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._begin = path.stat().st_size

    def lines_about(self, peer: str) -> list[str]:
        named = re.compile(rf"{re.escape(peer)}\b")
        text = self._path.read_bytes()[self._begin :].decode(errors="replace")
        return [line for line in text.splitlines() if named.search(line)]

    def wait_for_warning(self, peer: str) -> None:
        """One line names the peer, and it is a warning."""
        deadline = time.monotonic() + 1
        while not self.lines_about(peer) and time.monotonic() < deadline:
            time.sleep(0.01)
        lines = self.lines_about(peer)
        assert len(lines) == 1, f"{len(lines)} lines about {peer} in {self._path}: {lines}"
        assert " WARNING " in lines[0]


@pytest.mark.parametrize("kind", REMOTING_GARBAGE)
@pytest.mark.parametrize("listener", REMOTING)
def test_garbage_on_a_remoting_port(server: Server, listener: str, kind: str) -> None:
    assert_closed(server, listener, REMOTING_GARBAGE[kind])


@pytest.mark.parametrize("kind", GRPC_GARBAGE)
def test_garbage_on_the_grpc_port(server: Server, kind: str) -> None:
    assert_closed(server, "grpc", GRPC_GARBAGE[kind])


def test_garbage_on_the_http_port(server: Server) -> None:
    with connect(address_of(server, "http")) as bad:
        bad.sendall(NOISE + b"\r\n\r\n")
        assert read_to_end(bad).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("listener", ["namesrv", "broker"])
def test_an_unknown_request_code(server: Server, listener: str) -> None:
    """Is answered as such, and the connection goes on."""
    connection = RemotingConnection(address_of(server, listener))
    for _ in range(2):
        with pytest.raises(AdminError, match=r"3: .*12345.* not supported"):
            connection.call(NO_SUCH_CODE)
    connection.close()


def test_an_unknown_topic(server: Server) -> None:
    """Without a template to create it from: the answer names it, and the connection goes on."""
    unknown = "nobody-made-this"
    broker, namesrv = RemotingConnection(server.broker), RemotingConnection(server.namesrv)
    for _ in range(2):
        with pytest.raises(AdminError, match=f"17: .*{unknown}"):
            send_one(broker, unknown, b"body")
        with pytest.raises(AdminError, match=f"17: .*{unknown}"):
            broker.call(
                PULL_MESSAGE,
                consumerGroup="neighbours",
                topic=unknown,
                queueId="0",
                queueOffset="0",
                maxMsgNums="32",
                sysFlag="4",
                commitOffset="0",
                suspendTimeoutMillis="0",
                subscription="*",
                subVersion="0",
            )
        with pytest.raises(AdminError, match=f"17: .*{unknown}"):
            namesrv.call(ROUTE, topic=unknown)
    broker.close()
    namesrv.close()


def test_missing_and_malformed_fields(server: Server) -> None:
    connection = RemotingConnection(server.broker)
    with pytest.raises(AdminError):
        connection.call(PULL_MESSAGE)
    with pytest.raises(AdminError):
        connection.call(PULL_MESSAGE, consumerGroup="g", topic="t", queueId="not a number")
    connection.close()


def test_an_over_long_body(server: Server, admin: Admin) -> None:
    """One byte over the limit is refused with the reason; the limit itself is taken on the same connection."""
    topic = admin.create_topic()
    connection = RemotingConnection(server.broker)
    with pytest.raises(AdminError) as refused:
        send_one(connection, topic, bytes(MOST_BODY_BYTES + 1))
    assert refused.value.code == MESSAGE_ILLEGAL
    send_one(connection, topic, bytes(MOST_BODY_BYTES))
    connection.close()


def test_half_open_connections(server: Server) -> None:
    """Half a frame, a preface, half a handshake, or nothing at all, on every port, and then a reset."""
    beginnings = {
        **{listener: (b"", struct.pack(">II", 1000, 100) + b'{"code":') for listener in REMOTING},
        "grpc": (b"", HTTP_2_PREFACE[:10], HTTP_2_PREFACE, b"\x16\x03\x01"),
        "http": (b"", b"GET / HT"),
    }
    with ExitStack() as opened:
        for listener, said in beginnings.items():
            address: str = getattr(server, listener)
            for beginning in said * 20 if address else ():
                half_open = opened.enter_context(connect(address))
                half_open.sendall(beginning)
                half_open.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        time.sleep(0.5)  # the neighbours go on


def test_a_silent_grpc_connection_is_closed(server: Server) -> None:
    """Whoever does not say HTTP/2 or TLS within 10 s is no client."""
    if server.is_apache:
        pytest.skip("Apache waits for two minutes")
    log = Log(server.log_path)
    with ExitStack() as opened:
        silent = [opened.enter_context(connect(server.grpc)) for _ in range(3)]
        for half_open, beginning in zip(silent, (b"", b"\x16\x03\x01", HTTP_2_PREFACE[:10]), strict=True):
            half_open.sendall(beginning)
            half_open.settimeout(SILENT_CLOSED_WITHIN_S)
        for half_open in silent:
            read_to_end(half_open)
            log.wait_for_warning("{}:{}".format(*half_open.getsockname()))


def test_memory_does_not_grow(server: Server) -> None:
    """Hundreds of bad connections leave nothing behind."""
    if server.is_apache:
        pytest.skip("a JVM's memory says nothing")
    pid = server.pid
    send_all_garbage(server, times=3)
    before_bytes = rss_anon_bytes(pid)
    send_all_garbage(server, times=30)
    assert rss_anon_bytes(pid) - before_bytes < MOST_GROWTH_BYTES


def send_all_garbage(server: Server, times: int) -> None:
    garbage = [(server.broker, bad) for bad in REMOTING_GARBAGE.values()]
    garbage += [(server.namesrv, bad) for bad in REMOTING_GARBAGE.values()]
    garbage += [(server.grpc, bad) for bad in GRPC_GARBAGE.values()]
    for address, bad in garbage * times:
        with connect(address) as connection:
            connection.sendall(bad)
            read_to_end(connection)


def rss_anon_bytes(pid: int) -> int:
    """Memory that only this process holds."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon"))
