"""Many messages fast through the broker's Remoting port, and every message of a topic back, byte for byte.

Has its own reader of records, for the reason that `admin` gives.
"""

from __future__ import annotations

import asyncio
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from harness.admin import RemotingConnection, decoded, encoded

SEND_MESSAGE_V2 = 310
PULL_MESSAGE = 11
GET_MAX_OFFSET = 30
SUBSCRIPTION_IN_HEADER = 4
PULL_BATCH = 32

#: total, magic, CRC, queue id, flag, queue offset, log offset, system flag, born at. Behind it: born host, stored at,
#: store host, reconsume times, transaction offset; body, topic and properties, each behind its length.
HEAD = struct.Struct(">iIIiiqqiq")
BORN_HOST_V6, STORE_HOST_V6 = 16, 32
#: by system flag
HOST_BYTES = {0: 8, BORN_HOST_V6: 20, STORE_HOST_V6: 20}
#: by magic
TOPIC_LENGTH_BYTES = {0xDAA320A7: 1, 0xDAA320AB: 2}


@dataclass(frozen=True)
class Acknowledged:
    """Where the broker said that the message with this number lies."""

    number: int
    queue_id: int
    queue_offset: int


@dataclass(frozen=True)
class Stored:
    queue_id: int
    queue_offset: int
    topic: str
    body: bytes
    properties: dict[str, str]
    log_offset: int
    #: all of it, as it lies in the log
    record: bytes


@dataclass(frozen=True)
class Numbered:
    """How the message with a number looks."""

    body: Callable[[int], bytes]
    properties: Callable[[int], Mapping[str, str]]


class PipelinedSender:
    """Sends the numbered messages over several connections, `window` in flight on each, until all are answered or the
    connections end. Owner of what was acknowledged."""

    def __init__(self, broker: str, topic: str, queues: int, messages: Numbered) -> None:
        host, _, port = broker.rpartition(":")
        self._host, self._port = host.strip("[]"), int(port)
        self._topic = topic
        self._queues = queues
        self._messages = messages
        self.acknowledged: list[Acknowledged] = []
        self._awaited = 0
        self._enough = asyncio.Event()
        self.refused: list[str] = []

    async def wait_acknowledged(self, count: int) -> None:
        self._awaited = count
        await self._enough.wait()

    async def send(self, numbers: Sequence[int], connections: int = 4, window: int = 64) -> None:
        async with asyncio.TaskGroup() as group:
            for first in range(connections):
                group.create_task(self._send_over_one(numbers[first::connections], window))

    async def _send_over_one(self, numbers: Sequence[int], window: int) -> None:
        reader, writer = await asyncio.open_connection(self._host, self._port)
        in_flight = asyncio.Semaphore(window)
        answers = asyncio.create_task(self._receive(reader, len(numbers), in_flight), name="answers")
        try:
            for number in numbers:
                await in_flight.acquire()
                if answers.done():
                    break
                writer.write(self._frame(number))
                await writer.drain()
            await answers
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the server is gone: what it had acknowledged counts
        finally:
            answers.cancel()
            writer.close()

    async def _receive(self, reader: asyncio.StreamReader, count: int, in_flight: asyncio.Semaphore) -> None:
        try:
            for _ in range(count):
                (length,) = struct.unpack(">I", await reader.readexactly(4))
                header, _ = decoded(await reader.readexactly(length))
                if header["code"] == 0:
                    fields = header["extFields"]
                    self.acknowledged.append(
                        Acknowledged(header["opaque"], int(fields["queueId"]), int(fields["queueOffset"]))
                    )
                    if len(self.acknowledged) == self._awaited:
                        self._enough.set()
                else:
                    self.refused.append(f"{header['code']}: {header.get('remark')}")
                in_flight.release()
        finally:
            in_flight.release()

    def _frame(self, number: int) -> bytes:
        fields = {
            "a": "crash-test",
            "b": self._topic,
            "c": "TBW102",
            "d": "4",
            "e": str(number % self._queues),
            "f": "0",
            "g": "1700000000000",
            "h": "0",
            "i": packed(self._messages.properties(number)),
            "j": "0",
            "k": "false",
            "m": "false",
        }
        return encoded(SEND_MESSAGE_V2, number, fields, self._messages.body(number))


def packed(properties: Mapping[str, str]) -> str:
    return "".join(f"{key}\x01{value}\x02" for key, value in properties.items())


def unpacked(properties: str) -> dict[str, str]:
    return dict(entry.split("\x01", 1) for entry in properties.split("\x02") if entry)


def read_back(connection: RemotingConnection, topic: str, queues: int) -> Iterator[Stored]:
    """Every message of the topic, queue by queue, by pulls. Raises AdminError."""
    for queue_id in range(queues):
        _, fields = connection.ask(GET_MAX_OFFSET, topic=topic, queueId=str(queue_id))
        offset, end = 0, int(fields["offset"])
        while offset < end:
            body, fields = connection.ask(
                PULL_MESSAGE,
                consumerGroup="crash-test-reader",
                topic=topic,
                queueId=str(queue_id),
                queueOffset=str(offset),
                maxMsgNums=str(PULL_BATCH),
                sysFlag=str(SUBSCRIPTION_IN_HEADER),
                commitOffset="0",
                suspendTimeoutMillis="0",
                subscription="*",
                subVersion="0",
            )
            yield from records(body)
            offset = int(fields["nextBeginOffset"])


def records(body: bytes) -> Iterator[Stored]:
    """The records of a pull's answer; each must have the check sum of its body."""
    at = 0
    while at < len(body):
        total, magic, crc, queue_id, _, queue_offset, log_offset, flags, _ = HEAD.unpack_from(body, at)
        begin = at + HEAD.size + HOST_BYTES[flags & BORN_HOST_V6] + 8 + HOST_BYTES[flags & STORE_HOST_V6] + 4 + 8
        content = _field(body, begin, 4)
        assert zlib.crc32(content) & 0x7FFFFFFF == crc, f"broken body at queue {queue_id}, offset {queue_offset}"
        begin += 4 + len(content)
        topic_length_bytes = TOPIC_LENGTH_BYTES[magic]
        topic = _field(body, begin, topic_length_bytes)
        properties = unpacked(_field(body, begin + topic_length_bytes + len(topic), 2).decode())
        record = body[at : at + total]
        yield Stored(queue_id, queue_offset, topic.decode(), content, properties, log_offset, record)
        at += total


def _field(body: bytes, at: int, length_bytes: int) -> bytes:
    """Behind its length."""
    begin = at + length_bytes
    return body[begin : begin + int.from_bytes(body[at:begin], "big")]
