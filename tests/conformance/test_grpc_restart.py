"""A server that stops and starts under clients that stay: they find back by themselves, and nothing comes twice."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from harness.admin import Admin
from harness.clients import Client, ClientError, Message
from harness.servers import only_saturn

from saturnmq.testing.server import LocalServer

pytestmark = only_saturn

T = TypeVar("T")

#: a stop that waits for nobody
SOON_S = 4.5


@pytest.fixture
def local(tmp_path: Path) -> Iterator[LocalServer]:
    """On a gRPC port that it keeps. It runs when the test ends: clients are closed before it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with LocalServer(f"--grpc-port={port}", dev=False, home=tmp_path) as local:
        yield local


def until_it_works(act: Callable[[], T]) -> T:
    """What a client tried while the server was away has failed; it may need a moment to notice that it is back."""
    deadline = time.monotonic() + 15
    while True:
        try:
            return act()
        except ClientError:
            assert time.monotonic() < deadline, "the client does not find back"
            time.sleep(0.2)


def test_clients_find_back(client: Client, local: LocalServer) -> None:
    client.endpoints = local.grpc
    admin = Admin(local.namesrv, local.broker)
    topic, pushed, simple = admin.create_topic(), admin.create_group(), admin.create_group()
    admin.close()
    try:
        producer = client.producer(topic)
        push, consumer = client.push(pushed, {topic: "*"}), client.simple(simple, {topic: "*"})
        ids = producer.send([Message(topic, b"before")])
        assert [delivery.id for delivery in push.take(1)] == ids
        [held] = consumer.receive(invisible_ms=30_000)

        begun = time.monotonic()
        assert local.stop() == 0
        assert time.monotonic() - begun < SOON_S
        local.start()

        after = until_it_works(lambda: producer.send([Message(topic, b"after")]))
        until_it_works(lambda: consumer.change_invisible(held, 60_000))  # the handle from before is good
        assert [delivery.id for delivery in push.take(1)] == after
        assert [delivery.id for delivery in until_it_works(lambda: consumer.take(1))] == after
        # long enough for streams to be renewed: Java's clients that close before that wait for one that nobody ends
        assert not push.take(1, timeout_s=2.5)
    finally:
        client.close_all()
    assert " ERROR " not in local.log()
    assert "Traceback" not in local.log()
