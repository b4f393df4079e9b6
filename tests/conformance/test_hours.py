"""Hours and days, which pass at once: the server's clock is put forward under official clients that stay."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.admin import Admin
from harness.clients import Client, ClientError, Message
from harness.servers import only_saturn

from saturnmq.testing.server import LocalServer

pytestmark = [only_saturn, pytest.mark.clients("python", "go", "java", smoke=())]

MINUTE_MS, HOUR_MS = 60_000, 3_600_000
#: of a group that says nothing else
ATTEMPTS = 17
INVALID_RECEIPT_HANDLE = 40_013


@pytest.fixture
def local(tmp_path: Path) -> Iterator[LocalServer]:
    with LocalServer("--test-clock", dev=False, home=tmp_path) as local:
        yield local


@pytest.fixture
def admin(local: LocalServer) -> Iterator[Admin]:
    admin = Admin(local.namesrv, local.broker)
    yield admin
    admin.close()


@pytest.fixture
def client(client: Client, local: LocalServer) -> Client:
    client.endpoints = local.grpc
    return client


def wait_buried(local: LocalServer, group: str) -> None:
    admin = Admin(local.namesrv, local.broker)  # another connection would be idle for hours
    deadline = time.monotonic() + 20
    while admin.end_of_queue(f"%DLQ%{group}") < 1:
        assert time.monotonic() < deadline, "it is not among the dead letters"
        time.sleep(0.02)
    admin.close()


def test_a_lease_of_hours_ends(client: Client, local: LocalServer, admin: Admin) -> None:
    topic, group = admin.create_topic(), admin.create_group()
    client.producer(topic).send([Message(topic, b"x")])
    consumer = client.simple(group, {topic: "*"}, await_ms=5_000)
    [held] = consumer.receive(invisible_ms=12 * HOUR_MS)
    local.advance_clock(12 * HOUR_MS - MINUTE_MS)
    assert not consumer.receive()
    local.advance_clock(2 * MINUTE_MS)
    [again] = consumer.receive(invisible_ms=12 * HOUR_MS)
    assert (again.id, again.attempt) == (held.id, 2)
    consumer.ack([again])
    if "golang" not in client.process.client:  # whose Ack is content with any answer
        with pytest.raises(ClientError) as refused:
            consumer.ack([held])
        assert refused.value.code == INVALID_RECEIPT_HANDLE
    local.advance_clock(13 * HOUR_MS)
    assert not consumer.receive()


def test_what_nobody_acknowledges_is_buried(client: Client, local: LocalServer, admin: Admin) -> None:
    topic, group = admin.create_topic(queues=1), admin.create_group()
    [sent] = client.producer(topic).send([Message(topic, b"x")])
    consumer = client.simple(group, {topic: "*"}, await_ms=5_000)
    for attempt in range(1, ATTEMPTS + 1):
        [delivery] = consumer.receive(invisible_ms=HOUR_MS)
        assert (delivery.id, delivery.attempt) == (sent, attempt)
        local.advance_clock(HOUR_MS + 1)
    assert not consumer.receive()
    wait_buried(local, group)
