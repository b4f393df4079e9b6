"""The official Python client's bytes at our server, beside what Apache's Proxy answered them.

Both connections were recorded (tests/vectors/http2): a consumer's, and a producer's to its end.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any, cast

from google.protobuf.message import Message as ProtoMessage

from saturnmq.kernel.config import Limits, NameserverConfig, ProxyConfig
from saturnmq.kernel.host import Address
from saturnmq.kernel.metrics import Metrics
from saturnmq.kernel.topic import TopicConfig
from saturnmq.nameserver.routes import RouteTable
from saturnmq.net.grpc_connection import GrpcConnection, Route, Traffic
from saturnmq.proxy import grpc
from saturnmq.proxy.proxy import Proxy
from saturnmq.testing.offline import OfflineBroker
from saturnmq.wire.grpc import MessageReader
from saturnmq.wire.http2 import frames
from saturnmq.wire.http2.hpack import Decoder
from saturnmq.wire.proto import rocketmq_pb2 as pb

VECTORS = Path(__file__).parents[2] / "vectors" / "http2"
#: sent by Apache's quick start before the consumer came, more than it takes at once
MESSAGES = 40


class Transport:
    """Collects what is written."""

    def __init__(self) -> None:
        self.written = b""
        self.closed = False

    def write(self, data: bytes) -> None:
        self.written += data

    def get_extra_info(self, name: str) -> tuple[str, int]:
        return "127.0.0.2", 19782

    def set_write_buffer_limits(self, high: int) -> None: ...

    def get_write_buffer_size(self) -> int:
        return 0

    def close(self) -> None:
        self.closed = True


class Server:
    """Local mode without sockets, and one connection to it."""

    def __init__(self) -> None:
        self.offline = OfflineBroker()
        self.clock = self.offline.clock
        broker, routes = self.offline.broker, RouteTable(NameserverConfig(), self.clock)
        broker.topics.put(TopicConfig(topic_name="TopicTest", read_queue_nums=4, write_queue_nums=4))
        broker.register(routes, Address("127.0.0.1", 10911))
        for number in range(MESSAGES):
            self.offline.send("TopicTest", b"Hello RocketMQ %d" % number, queue_id=number % 4, TAGS="TagA")
        table = grpc.methods(Proxy({broker.name: broker}, broker, routes, ProxyConfig(), self.clock))
        self.traffic = Traffic(Metrics())
        self.transport = Transport()
        self.connection = GrpcConnection(
            {path: Route(method, path.decode(), (path.decode(), "OK")) for path, method in table.items()},
            self.clock,
            Limits(),
            self.traffic,
            lambda _: None,
            lambda _: None,
        )
        self.connection.connection_made(cast(Any, self.transport))

    def play(self, data: bytes) -> bytes:
        """A client that takes its time: each of its frames is answered before the next."""
        self.connection.data_received(data[: len(frames.PREFACE)])
        data = data[len(frames.PREFACE) :]
        while data:
            end = frames.HEADER_BYTES + (frames.HEADER.unpack_from(data)[0] >> 8)
            self.connection.data_received(data[:end])
            self.clock.run_soon()
            data = data[end:]
        return self.transport.written


def paths(requests: bytes) -> dict[int, str]:
    """Stream → method."""
    return {
        stream_id: headers[b":path"].decode().rpartition("/")[2] for stream_id, headers, _ in headers_and_data(requests)
    }


def headers_and_data(data: bytes) -> list[tuple[int, dict[bytes, bytes], bytes]]:
    """By stream: all header fields, and the body."""
    data = data.removeprefix(frames.PREFACE)
    decoder = Decoder()
    fields: defaultdict[int, dict[bytes, bytes]] = defaultdict(dict)
    bodies: defaultdict[int, bytes] = defaultdict(bytes)
    while data:
        word, _, stream_id = frames.HEADER.unpack_from(data)
        end = frames.HEADER_BYTES + (word >> 8)
        payload, data = data[frames.HEADER_BYTES : end], data[end:]
        if word & 0xFF == frames.HEADERS:
            fields[stream_id] |= dict(decoder.decode(payload))
        elif word & 0xFF == frames.DATA:
            bodies[stream_id] += payload
    return [(stream_id, headers, bodies[stream_id]) for stream_id, headers in fields.items()]


def answers(replies: bytes, methods: dict[int, str]) -> dict[int, tuple[bytes | None, list[Any]]]:
    """By stream: grpc-status, None where the stream stands, and the messages."""
    found: dict[int, tuple[bytes | None, list[Any]]] = {}
    for stream_id, headers, body in headers_and_data(replies):
        assert headers[b":status"] == b"200"
        assert headers[b"content-type"].startswith(b"application/grpc")
        method = methods[stream_id]
        kind: type[ProtoMessage] = getattr(pb, "TelemetryCommand" if method == "Telemetry" else method + "Response")
        messages = MessageReader(1 << 20, 1 << 20, is_gzip=False).feed(body)
        found[stream_id] = headers.get(b"grpc-status"), [kind.FromString(message) for message in messages]
    return found


def played(number: int) -> tuple[Server, dict[int, str], dict[int, Any], dict[int, Any]]:
    """The server, the methods by stream, our answers, Apache's."""
    requests = (VECTORS / f"proxy-python-{number}-requests.bin").read_bytes()
    methods = paths(requests)
    server = Server()
    ours = answers(server.play(requests), methods)
    theirs = answers((VECTORS / f"proxy-python-{number}-replies.bin").read_bytes(), methods)
    assert not server.traffic.protocol_errors.values
    assert not server.traffic.limits.values
    assert not server.transport.closed
    return server, methods, ours, theirs


def stream_of(methods: dict[int, str], method: str) -> list[int]:
    return [stream_id for stream_id, name in methods.items() if name == method]


def test_a_producer() -> None:
    server, methods, ours, theirs = played(2)
    assert ours.keys() == theirs.keys() == methods.keys()
    for stream_id, method in methods.items():
        for _, messages in (ours[stream_id], theirs[stream_id]):
            for entry in getattr(messages[0], "entries", ()):
                entry.offset = 0
        assert ours[stream_id] == theirs[stream_id], method
    stored = [one for queue_id in range(4) for one in server.offline.stored("TopicTest", queue_id)]
    sent = [one for one in stored if "grün".encode() in one.properties]
    assert len(sent) == len(stored) - MESSAGES == len(stream_of(methods, "SendMessage"))
    assert server.connection._calls() == []


def test_a_consumer() -> None:
    _, methods, ours, theirs = played(1)
    for method in ("QueryRoute", "Telemetry", "Heartbeat"):
        (stream_id,) = stream_of(methods, method)
        assert ours[stream_id] == theirs[stream_id], method
    first, second = stream_of(methods, "ReceiveMessage")
    # the client asks before its settings are there: Apache's Proxy fails then, ours knows enough
    assert theirs[first][1][0].status.code == pb.INTERNAL_SERVER_ERROR
    received = [got.message for stream_id in (first, second) for got in ours[stream_id][1] if got.HasField("message")]
    assert {message.body for message in received} == {b"Hello RocketMQ %d" % number for number in range(MESSAGES)}
    shape = [part.WhichOneof("content") for part in theirs[second][1]]
    assert [part.WhichOneof("content") for part in ours[first][1]] == shape
    assert ours[first][0] == theirs[second][0] == b"0"
    example = theirs[second][1][1].message.system_properties
    assert {field.name for field, _ in received[0].system_properties.ListFields()} == {
        field.name for field, _ in example.ListFields()
    }
    # handles of another server: refused in words that the client understands
    for stream_id in stream_of(methods, "AckMessage"):
        status, (acknowledged,) = ours[stream_id]
        assert status == b"0"
        assert acknowledged.status.code == pb.INVALID_RECEIPT_HANDLE
