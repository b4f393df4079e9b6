"""A request reads in one breath: every hop between the socket and the log is listed here, so that a new one is seen."""

from __future__ import annotations

import sys
from types import FrameType
from typing import cast

import pytest

from saturnmq.kernel.config import Limits
from saturnmq.kernel.metrics import Metrics
from saturnmq.kernel.topic import TopicConfig
from saturnmq.net.remoting_connection import RemotingConnection
from saturnmq.net.remoting_traffic import Traffic
from saturnmq.store.store import Store
from saturnmq.testing.offline import OfflineBroker
from saturnmq.wire.remoting.codes import RequestCode
from saturnmq.wire.remoting.command import Command
from saturnmq.wire.remoting.connection import encode


class FakeTransport:
    def set_write_buffer_limits(self, high: int) -> None: ...

    def get_extra_info(self, name: str) -> tuple[str, int]:
        return "127.0.0.1", 10911

    def is_closing(self) -> bool:
        return False

    def write(self, data: bytes) -> None: ...


@pytest.fixture
def connection() -> RemotingConnection:
    offline = OfflineBroker()
    offline.broker.topics.put(TopicConfig(topic_name="orders"))
    offline.send("orders")
    traffic = Traffic(Metrics(), "broker", offline.clock, Limits())
    connection = RemotingConnection(offline.handlers, offline.clock, traffic, lambda _: None, lambda _: None)
    connection.connection_made(cast("object", FakeTransport()))  # type: ignore[arg-type]
    return connection


def stack_of(monkeypatch: pytest.MonkeyPatch, method: str, run: object) -> list[str]:
    """Qualified names from the socket's callback down to a method of the store."""
    stacks: list[list[str]] = []
    original = getattr(Store, method)

    def spy(*args: object) -> object:
        names = [f"Store.{method}"]
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            names.append(frame.f_code.co_qualname)
            if names[-1] == "RemotingConnection.data_received":
                break
            frame = frame.f_back
        stacks.append(names[::-1])
        return original(*args)

    monkeypatch.setattr(Store, method, spy)
    assert callable(run)
    run()
    (stack,) = stacks
    return stack


def test_from_the_socket_to_the_log(connection: RemotingConnection, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = {
        "a": "p", "b": "orders", "c": "TBW102", "d": "4", "e": "0", "f": "0", "g": "7", "h": "0",
        "i": "UNIQ_KEY\x01K\x02",
    }  # fmt: skip
    data = encode(Command(RequestCode.SEND_MESSAGE_V2, 1, fields=fields, body=b"x"))
    assert stack_of(monkeypatch, "append", lambda: connection.data_received(data)) == [
        "RemotingConnection.data_received",
        "RemotingConnection._turn",
        "RemotingConnection._handle",
        "SendRequests.send_v2",
        "Sends.send",
        "Store.append",
    ]


def test_from_the_socket_to_a_read(connection: RemotingConnection, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = {
        "consumerGroup": "g", "topic": "orders", "queueId": "0", "queueOffset": "0", "maxMsgNums": "32",
        "sysFlag": "4", "commitOffset": "0", "suspendTimeoutMillis": "0", "subVersion": "0",
    }  # fmt: skip
    data = encode(Command(RequestCode.PULL_MESSAGE, 1, fields=fields))
    assert stack_of(monkeypatch, "get", lambda: connection.data_received(data)) == [
        "RemotingConnection.data_received",
        "RemotingConnection._turn",
        "RemotingConnection._handle",
        "PullRequests.pull",
        "_pull",
        "Pulls.pull",
        "Pulls._read",
        "Store.get",
    ]
