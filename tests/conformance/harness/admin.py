"""Topics and groups of a server under test, through the broker's Remoting port.

Has its own twenty lines of Remoting: what tests a server must not share its codec.
"""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

UPDATE_AND_CREATE_TOPIC = 17
GET_ROUTEINFO_BY_TOPIC = 105
GET_MAX_OFFSET = 30
GET_CONSUMER_LIST_BY_GROUP = 38
UPDATE_AND_CREATE_SUBSCRIPTIONGROUP = 200
GET_PRODUCER_CONNECTION_LIST = 204
READ_WRITE = 6
#: servers close connections that nobody uses for twice as long
IDLE_S = 60
#: Apache's broker may need its next heart-beat to register after a start, and registers a new topic after it answered
ROUTE_TIMEOUT_S = 20
POLL_S = 0.01


class AdminError(Exception):
    """The broker refused."""

    def __init__(self, code: int, remark: str | None) -> None:
        super().__init__(f"{code}: {remark}")
        self.code = code


def encoded(code: int, opaque: int, fields: Mapping[str, str], body: bytes = b"") -> bytes:
    """A request as a frame with a JSON header."""
    command = {"code": code, "language": "PYTHON", "version": 479, "opaque": opaque, "flag": 0, "extFields": fields}
    header = json.dumps(command).encode()
    return struct.pack(">II", 4 + len(header) + len(body), len(header)) + header + body


def decoded(frame: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and body of a frame that comes without its length."""
    (length,) = struct.unpack_from(">I", frame)
    end = 4 + (length & 0xFFFFFF)
    header: dict[str, Any] = json.loads(frame[4:end])
    return header, frame[end:]


class RemotingConnection:
    """Blocking requests with JSON headers, one at a time."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._address = host.strip("[]"), int(port)
        self._socket = socket.create_connection(self._address, timeout=10)
        self._used_s = time.monotonic()
        self._lock = threading.Lock()
        self._opaque = 0

    def close(self) -> None:
        self._socket.close()

    def call(self, code: int, body: bytes = b"", **fields: str) -> bytes:
        """The body of the answer. Raises AdminError."""
        return self.ask(code, body, **fields)[0]

    def ask(self, code: int, body: bytes = b"", **fields: str) -> tuple[bytes, dict[str, str]]:
        """The body and the fields of the answer. Raises AdminError."""
        with self._lock:
            self._opaque += 1
            if time.monotonic() - self._used_s > IDLE_S:
                self._socket.close()
                self._socket = socket.create_connection(self._address, timeout=10)
            self._used_s = time.monotonic()
            self._socket.sendall(encoded(code, self._opaque, fields, body))
            (length,) = struct.unpack(">I", self._read(4))
            header, answer = decoded(self._read(length))
        if header["code"]:
            raise AdminError(header["code"], header.get("remark"))
        return answer, header.get("extFields") or {}

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self._socket.recv(size - len(data))
            if not part:
                raise ConnectionError("the broker closed the connection")
            data += part
        return data


class Admin:
    """A connection to a broker and one to its NameServer."""

    def __init__(self, namesrv: str, broker: str) -> None:
        self._namesrv = RemotingConnection(namesrv)
        self._broker = RemotingConnection(broker)

    def close(self) -> None:
        self._namesrv.close()
        self._broker.close()

    def create_topic(self, message_type: str = "NORMAL", queues: int = 4, name: str = "") -> str:
        """A new topic; its name."""
        topic = name or f"topic-{message_type.lower()}-{uuid.uuid4().hex[:8]}"
        self._broker.call(
            UPDATE_AND_CREATE_TOPIC,
            topic=topic,
            defaultTopic="TBW102",
            readQueueNums=str(queues),
            writeQueueNums=str(queues),
            perm=str(READ_WRITE),
            topicFilterType="SINGLE_TAG",
            topicSysFlag="0",
            order=json.dumps(message_type == "FIFO"),
            attributes=f"+message.type={message_type}",
        )
        self.wait_for_route(topic)
        return topic

    def wait_for_route(self, topic: str) -> None:
        """Returns when the NameServer knows the topic. Raises AdminError when it does not learn it in time."""
        deadline = time.monotonic() + ROUTE_TIMEOUT_S
        while True:
            try:
                self._namesrv.call(GET_ROUTEINFO_BY_TOPIC, topic=topic)
            except AdminError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(POLL_S)
            else:
                return

    def create_group(
        self, *, fifo: bool = False, name: str = "", retries: int = 16, waits_ms: Sequence[int] = ()
    ) -> str:
        """A new consumer group; its name. `fifo`: orderly, one message of a message group at a time. `waits_ms`: before
        each of its retries, else the delay levels."""
        group = name or f"group-{uuid.uuid4().hex[:8]}"
        config = {"groupName": group, "consumeMessageOrderly": fifo, "retryQueueNums": 1, "retryMaxTimes": retries}
        if waits_ms:
            config["groupRetryPolicy"] = {"type": "CUSTOMIZED", "customizedRetryPolicy": {"next": list(waits_ms)}}
        self._broker.call(UPDATE_AND_CREATE_SUBSCRIPTIONGROUP, json.dumps(config).encode())
        return group

    def end_of_queue(self, topic: str, queue_id: int = 0) -> int:
        """How many messages were ever stored there."""
        _, fields = self._broker.ask(GET_MAX_OFFSET, topic=topic, queueId=str(queue_id))
        return int(fields["offset"])

    def consumer_ids(self, group: str) -> list[str]:
        """The registered clients of a group: none is not an error here."""
        try:
            return list(
                json.loads(self._broker.call(GET_CONSUMER_LIST_BY_GROUP, consumerGroup=group))["consumerIdList"]
            )
        except AdminError:
            return []

    def producer_ids(self, topic: str, group: str) -> list[str]:
        """The registered producers of a producer group; the Proxy registers gRPC producers under their topic's name."""
        try:
            body = self._broker.call(GET_PRODUCER_CONNECTION_LIST, producerGroup=group, topic=topic)
        except AdminError:
            return []
        return [connection["clientId"] for connection in json.loads(body)["connectionSet"]]
