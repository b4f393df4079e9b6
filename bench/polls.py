"""`bench/polls.py`: what 50,000 consumers cost that wait for a message, and how soon one is woken.

They wait over 500 connections, for 1,000 pairs of topic and group, by gRPC (ReceiveMessage) or Remoting (POP_MESSAGE).
Told is the memory of the server for each that waits, its CPU while nothing happens, and, while `--rate` messages come
a second at times that nothing delays (open loop), how long after its time a message is with a consumer (p50, p99).
Of each topic's two groups one wants another tag: it must not be woken. Exits non-zero when somebody gets what he did
not want, or not what he did, or when a waiting consumer takes more than LIMIT_BYTES.

    bench/polls.py [--polls 50000] [--connections 500] [--pairs 1000] [--rate 200] [--seconds 10] [--only grpc]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import resource
import statistics
import struct
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import hpack
import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "conformance"))

from harness.admin import Admin, decoded, encoded

from saturnmq.testing.server import LocalServer
from saturnmq.wire import record
from saturnmq.wire.proto import rocketmq_pb2 as pb

POP_MESSAGE, SEND_MESSAGE_V2 = 200050, 310
DATA, HEADERS, SETTINGS, PING, WINDOW_UPDATE = 0, 1, 4, 6, 8
ACK, END_STREAM, END_HEADERS = 1, 1, 4
#: longer than the program runs
WAIT_MS = 900_000
#: anonymous memory of the server for each that waits
LIMIT_BYTES = 8192
SERVICE = "/apache.rocketmq.v2.MessagingService/"


class Polls(Protocol):
    """Many that wait on one connection."""

    async def open(self, port: int) -> None: ...
    def poll(self, topic: str, group: str, tag: str) -> None: ...


class Arrivals:
    """What came, to whom."""

    def __init__(self) -> None:
        #: seconds from the time of a message to its arrival
        self.late: list[float] = []
        self.unwanted = 0

    def came(self, body: bytes, tag: str) -> None:
        due, wanted = body.decode().split()
        self.late.append(time.time() - float(due))
        self.unwanted += wanted != tag


class GrpcPolls(asyncio.Protocol):
    """A gRPC client that can do just this."""

    def __init__(self, arrivals: Arrivals) -> None:
        self._arrivals, self._encoder = arrivals, hpack.Encoder()
        self._polls: dict[int, tuple[str, str, str]] = {}
        self._next_stream, self._data = 1, b""
        self._id = os.urandom(8).hex()

    async def open(self, port: int) -> None:
        self._transport, _ = await asyncio.get_running_loop().create_connection(lambda: self, "127.0.0.1", port)
        self._write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(SETTINGS, 0, 0, b""))

    def poll(self, topic: str, group: str, tag: str) -> None:
        request = pb.ReceiveMessageRequest(
            group=pb.Resource(name=group),
            message_queue=pb.MessageQueue(topic=pb.Resource(name=topic)),
            filter_expression=pb.FilterExpression(type=pb.TAG, expression=tag),
            batch_size=32,
            invisible_duration=timedelta(hours=1),
            long_polling_timeout=timedelta(milliseconds=WAIT_MS),
        )
        self._polls[self._call("ReceiveMessage", request.SerializeToString())] = topic, group, tag

    def send(self, topic: str, tag: str, body: bytes) -> None:
        system = pb.SystemProperties(message_id=os.urandom(17).hex().upper(), message_type=pb.NORMAL, tag=tag)
        message = pb.Message(topic=pb.Resource(name=topic), system_properties=system, body=body)
        self._call("SendMessage", pb.SendMessageRequest(messages=[message]).SerializeToString())

    def _call(self, method: str, message: bytes) -> int:
        stream, self._next_stream = self._next_stream, self._next_stream + 2
        headers = [
            (":method", "POST"), (":scheme", "http"), (":path", SERVICE + method), (":authority", "localhost"),
            ("content-type", "application/grpc"), ("te", "trailers"), ("user-agent", "grpc-go/1.68.0"),
            ("x-mq-client-id", self._id), ("x-mq-language", "GO"), ("x-mq-client-version", "5.1.2"),
            ("x-mq-protocol", "v2"), ("x-mq-request-id", os.urandom(16).hex()), ("x-mq-namespace", ""),
        ]  # fmt: skip
        body = b"\0" + struct.pack(">I", len(message)) + message
        self._write(
            _frame(HEADERS, END_HEADERS, stream, self._encoder.encode(headers)) + _frame(DATA, END_STREAM, stream, body)
        )
        return stream

    def data_received(self, data: bytes) -> None:
        data, at, seen = self._data + data, 0, 0
        while len(data) - at >= 9 and len(data) - at >= 9 + (size := int.from_bytes(data[at : at + 3], "big")):
            kind, flags, stream = data[at + 3], data[at + 4], int.from_bytes(data[at + 5 : at + 9], "big")
            payload, at = data[at + 9 : at + 9 + size], at + 9 + size
            if kind == DATA:
                seen += size
                self._read(stream, payload)
            elif kind in (SETTINGS, PING) and not flags & ACK:
                self._write(_frame(kind, ACK, 0, payload if kind == PING else b""))
            elif kind == HEADERS and flags & END_STREAM and (poll := self._polls.pop(stream, None)):
                self.poll(*poll)
        self._data = data[at:]
        if seen:
            self._write(_frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", seen)))

    def _read(self, stream: int, payload: bytes) -> None:
        poll = self._polls.get(stream)
        while payload and poll:
            size = 5 + int.from_bytes(payload[1:5], "big")
            response = pb.ReceiveMessageResponse.FromString(payload[5:size])
            if response.HasField("message"):
                self._arrivals.came(response.message.body, poll[2])
            payload = payload[size:]

    def _write(self, data: bytes) -> None:
        self._transport.write(data)

    def connection_made(self, transport: Any) -> None:
        self._transport = transport


class RemotingPolls(asyncio.Protocol):
    def __init__(self, arrivals: Arrivals) -> None:
        self._arrivals = arrivals
        self._polls: dict[int, tuple[str, str, str]] = {}
        self._opaque, self._data = 0, b""

    async def open(self, port: int) -> None:
        await asyncio.get_running_loop().create_connection(lambda: self, "127.0.0.1", port)

    def poll(self, topic: str, group: str, tag: str) -> None:
        self._opaque += 1
        self._polls[self._opaque] = topic, group, tag
        fields = {
            "consumerGroup": group, "topic": topic, "queueId": "-1", "maxMsgNums": "32", "invisibleTime": "3600000",
            "pollTime": str(WAIT_MS), "bornTime": str(time.time_ns() // 1_000_000), "initMode": "0", "expType": "TAG",
            "exp": tag, "order": "false",
        }  # fmt: skip
        self._transport.write(encoded(POP_MESSAGE, self._opaque, fields))

    def send(self, topic: str, tag: str, body: bytes) -> None:
        self._opaque += 1
        fields = {"a": "p", "b": topic, "c": "TBW102", "d": "4", "e": "0", "f": "0", "g": "0", "h": "0",
                  "i": f"TAGS\1{tag}", "j": "0", "k": "false", "m": "false"}  # fmt: skip
        self._transport.write(encoded(SEND_MESSAGE_V2, self._opaque, fields, body))

    def data_received(self, data: bytes) -> None:
        data, at = self._data + data, 0
        while len(data) - at >= 4 and len(data) - at >= 4 + (size := int.from_bytes(data[at : at + 4], "big")):
            header, body = decoded(data[at + 4 : at + 4 + size])
            at += 4 + size
            if poll := self._polls.pop(header["opaque"], None):
                for one in record.split(body):
                    self._arrivals.came(record.decode(one).body, poll[2])
                self.poll(*poll)
        self._data = data[at:]

    def connection_made(self, transport: Any) -> None:
        self._transport = transport


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


FACES: dict[str, type[GrpcPolls] | type[RemotingPolls]] = {"grpc": GrpcPolls, "remoting": RemotingPolls}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("polls", 50_000), ("connections", 500), ("pairs", 1000), ("rate", 200), ("seconds", 10)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--only", choices=FACES, default="")
    arguments = parser.parse_args()
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    print("| face | waiting | bytes each | idle CPU % | messages | p50 ms | p99 ms | worst ms | unwanted |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    wrong = [face for face in FACES if face.startswith(arguments.only) and not measured(face, arguments)]
    if wrong:
        raise SystemExit(f"not as they must be: {', '.join(wrong)}")


def measured(face: str, arguments: argparse.Namespace) -> bool:
    settings = ("flushDiskType=ASYNC_FLUSH", f"grpcClientConsumerMaxLongPollingTimeoutMillis={WAIT_MS}")
    with LocalServer(*(f"--set={setting}" for setting in settings), dev=False) as server:
        admin = Admin(server.namesrv, server.broker)
        topics = [admin.create_topic(name=f"t{number}", queues=1) for number in range(arguments.pairs // 2)]
        pairs = [(topic, admin.create_group(name=f"{topic}-{tag}"), tag) for topic in topics for tag in "ab"]
        admin.close()
        return uvloop.run(_measure(face, server, pairs, arguments))


async def _measure(face: str, server: LocalServer, pairs: list[Any], arguments: argparse.Namespace) -> bool:
    port = int((server.grpc if face == "grpc" else server.broker).rpartition(":")[2])
    arrivals = Arrivals()
    connections = [FACES[face](arrivals) for _ in range(arguments.connections)]
    for connection in connections:
        await connection.open(port)
    before = server.rss_anon_bytes()
    for number in range(arguments.polls):
        connections[number % len(connections)].poll(*pairs[number % len(pairs)])
        if number % 500 == 499:
            await asyncio.sleep(0.02)
    await _settled(server)
    each = (server.rss_anon_bytes() - before) / arguments.polls
    began, used = time.monotonic(), cpu_s(server.pid)
    await asyncio.sleep(10)
    idle = (cpu_s(server.pid) - used) / (time.monotonic() - began)
    sender = FACES[face](arrivals)
    await sender.open(port)
    gc.disable()  # this program's pauses are not the server's
    sent = await _send(sender, [topic for topic, _, tag in pairs if tag == "a"], arguments)
    await asyncio.sleep(5)
    gc.enable()
    late = sorted(1000 * seconds for seconds in arrivals.late) or [float("nan")]
    p99 = late[int(len(late) * 0.99)]
    print(
        f"| {face} | {arguments.polls} | {each:.0f} | {100 * idle:.1f} | {len(arrivals.late)} of {sent} "
        f"| {statistics.median(late):.1f} | {p99:.1f} | {late[-1]:.1f} | {arrivals.unwanted} |",
        flush=True,
    )
    return len(arrivals.late) == sent and not arrivals.unwanted and each <= LIMIT_BYTES


async def _settled(server: LocalServer) -> None:
    """Until it has taken in everybody."""
    used = -1.0
    while (now := cpu_s(server.pid)) - used > 0.1:
        used = now
        await asyncio.sleep(2)


async def _send(sender: GrpcPolls | RemotingPolls, topics: list[str], arguments: argparse.Namespace) -> int:
    """Each at its time, whatever became of those before; the time it should be sent is in it."""
    began, count = time.time() + 0.5, arguments.rate * arguments.seconds
    for number in range(count):
        due = began + number / arguments.rate
        await asyncio.sleep(max(0.0, due - time.time()))
        sender.send(topics[number * 7919 % len(topics)], "a", f"{due:.6f} a".encode())
    return count


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
