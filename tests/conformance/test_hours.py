"""Hours and days, which pass at once: the server's clock is put forward under official clients that stay."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.admin import Admin, RemotingConnection
from harness.clients import Client, ClientError, Message
from harness.servers import only_saturn

from saturnmq.testing.server import LocalServer

pytestmark = [only_saturn, pytest.mark.clients("python", "go", "java", smoke=())]

MINUTE_MS, HOUR_MS = 60_000, 3_600_000
#: of a group that says nothing else
ATTEMPTS = 17
UPDATE_BROKER_CONFIG = 25
#: about one half message
CHECKS = 2
#: more than the interval between them; three times that, and a client that did not say that it lives would be gone
CHECK_MS = 35_000
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


def wait_stored(local: LocalServer, topic: str) -> None:
    admin = Admin(local.namesrv, local.broker)  # another connection would be idle for hours
    deadline = time.monotonic() + 20
    while admin.end_of_queue(topic) < 1:
        assert time.monotonic() < deadline, f"nothing in {topic}"
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
    wait_stored(local, f"%DLQ%{group}")


def test_a_transaction_is_asked_about_and_given_up(client: Client, local: LocalServer, admin: Admin) -> None:
    connection = RemotingConnection(local.broker)
    connection.call(UPDATE_BROKER_CONFIG, b"transactionCheckMax=%d" % CHECKS)
    connection.close()
    topic = admin.create_topic("TRANSACTION", queues=1)
    producer = client.producer(topic, checks="UNKNOWN")
    left = producer.transact(Message(topic, b"x"), "UNKNOWN")
    for _ in range(CHECKS):
        local.advance_clock(CHECK_MS)
        assert [checked.id for checked in producer.checked(1)] == [left]
    local.advance_clock(CHECK_MS)
    wait_stored(local, "TRANS_CHECK_MAX_TIME_TOPIC")


def test_a_producer_that_comes_back_is_asked(client: Client, local: LocalServer, admin: Admin) -> None:
    topic, group = admin.create_topic("TRANSACTION", queues=1), admin.create_group()
    gone = client.producer(topic, checks="ROLLBACK")
    left = gone.transact(Message(topic, b"x"), "UNKNOWN")
    client.close(gone)
    local.advance_clock(12 * HOUR_MS)
    producer = client.producer(topic, checks="COMMIT")
    local.advance_clock(CHECK_MS)
    assert [checked.id for checked in producer.checked(1)] == [left]
    consumer = client.simple(group, {topic: "*"}, await_ms=5_000)
    assert [delivery.id for delivery in consumer.take(1)] == [left]
