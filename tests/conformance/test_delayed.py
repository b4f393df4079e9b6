"""Messages for an arbitrary time by every official client: never before it, soon after it, and taken back."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.admin import Admin
from harness.clients import Client, ClientError, Message, PushConsumer, SimpleConsumer
from harness.grpc_variants import GRPC_DEFAULTS, GRPC_RUST
from harness.remoting import RemotingClient, RemotingMessage
from harness.servers import only_saturn

from saturnmq.testing.server import LocalServer

HOUR_MS = 3_600_000
#: after the first whole second from the time on; the machine is shared
LATE_MS = 3_000
ILLEGAL_DELIVERY_TIME = 40_012


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def in_seconds(seconds: float) -> int:
    """Whole seconds: Python's client knows no other times."""
    return (now_ms() // 1000 + 1) * 1000 + int(seconds * 1000)


def arrivals(consumer: SimpleConsumer | PushConsumer, count: int) -> list[tuple[bytes, int]]:
    """Bodies, and when they were here."""
    taken = []
    for _ in range(count):
        taken += [(delivery.message.body, now_ms()) for delivery in consumer.take(1)]
    return taken


@pytest.mark.clients(*GRPC_DEFAULTS, *GRPC_RUST)
def test_a_message_comes_at_its_time(client: Client, admin: Admin) -> None:
    topic, group = admin.create_topic("DELAY", queues=1), admin.create_group()
    assert_at_its_time(client, topic, client.simple(group, {topic: "*"}))


def test_a_push_consumer_gets_a_message_at_its_time(client: Client, admin: Admin) -> None:
    topic, group = admin.create_topic("DELAY", queues=1), admin.create_group()
    assert_at_its_time(client, topic, client.push(group, {topic: "*"}))


def assert_at_its_time(client: Client, topic: str, consumer: SimpleConsumer | PushConsumer) -> None:
    due_ms = {b"%d" % seconds: in_seconds(seconds) for seconds in (3, 1, 4)}
    producer = client.producer(topic)
    producer.send([Message(topic, body, deliver_ms=due) for body, due in due_ms.items()])
    taken = arrivals(consumer, 3)
    assert [body for body, _ in taken] == sorted(due_ms)
    for body, arrived_ms in taken:
        assert 0 <= arrived_ms - due_ms[body] <= LATE_MS


def test_a_time_that_is_over_is_now(client: Client, admin: Admin) -> None:
    topic, group = admin.create_topic("DELAY", queues=1), admin.create_group()
    consumer = client.simple(group, {topic: "*"})
    client.producer(topic).send([Message(topic, b"past", deliver_ms=now_ms() - HOUR_MS)])
    assert [delivery.message.body for delivery in consumer.take(1)] == [b"past"]


def test_too_far_away(client: Client, admin: Admin) -> None:
    """maxDelayTimeMills of the Proxy is a day."""
    topic = admin.create_topic("DELAY")
    with pytest.raises(ClientError) as refused:
        client.producer(topic).send([Message(topic, b"x", deliver_ms=now_ms() + 25 * HOUR_MS)])
    assert refused.value.code in (ILLEGAL_DELIVERY_TIME, None)
    assert refused.value.code or "llegal" in refused.value.message or "delivery time" in refused.value.message


@pytest.mark.clients("python", "node", "java")
def test_recall(client: Client, admin: Admin) -> None:
    topic, group = admin.create_topic("DELAY", queues=1), admin.create_group()
    consumer = client.simple(group, {topic: "*"})
    producer = client.producer(topic)
    due_ms = in_seconds(3)
    sent = {body: producer.send_recallable(Message(topic, body, deliver_ms=due_ms)) for body in (b"a", b"b", b"c")}
    message_id, handle = sent[b"b"]
    assert producer.recall(topic, handle) == message_id
    taken = arrivals(consumer, 2)
    assert sorted(body for body, _ in taken) == [b"a", b"c"]
    assert all(arrived_ms >= due_ms for _, arrived_ms in taken)
    with pytest.raises(ClientError):  # its time is over
        producer.recall(topic, handle)
    assert not consumer.receive()


# ------------------------------------------------------------------------------------------------ Remoting clients


def test_remoting_messages_come_at_their_time(remoting: RemotingClient, admin: Admin) -> None:
    topic, group = admin.create_topic("DELAY", queues=1), admin.create_group()
    consumer = remoting.push(group, {topic: "*"})
    begun_ms = now_ms()
    timers = {
        b"2": {"TIMER_DELAY_SEC": "2"},
        b"1": {"TIMER_DELAY_MS": "700"},
        b"3": {"TIMER_DELIVER_MS": str(in_seconds(4))},
    }
    remoting.producer().send([RemotingMessage(topic, body, timers=timer) for body, timer in timers.items()])
    taken = arrivals(consumer, 3)
    assert [body for body, _ in taken] == [b"1", b"2", b"3"]
    for (_, arrived_ms), wait_ms in zip(taken, (700, 2000, 4000), strict=True):
        assert begun_ms + wait_ms <= arrived_ms


def test_remoting_recall(java_remoting: RemotingClient, admin: Admin) -> None:
    topic, group = admin.create_topic("DELAY", queues=1), admin.create_group()
    consumer = java_remoting.push(group, {topic: "*"})
    producer = java_remoting.producer()
    timers = {"TIMER_DELIVER_MS": str(in_seconds(3))}
    first, second = producer.send([RemotingMessage(topic, body, timers=timers) for body in (b"stays", b"recalled")])
    assert second.recall_handle
    assert producer.recall(topic, second.recall_handle) == second.id
    assert [delivery.id for delivery in consumer.take(2, timeout_s=6)] == [first.id]


def test_remoting_too_far_away(remoting: RemotingClient, admin: Admin) -> None:
    """timerMaxDelaySec of the Broker is three days."""
    topic = admin.create_topic("DELAY")
    with pytest.raises(ClientError, match="259200"):
        remoting.producer().send([RemotingMessage(topic, b"x", timers={"TIMER_DELAY_SEC": "259201"})])


# ------------------------------------------------------------------------------------------------- ours: other clocks


@pytest.fixture
def local(tmp_path: Path) -> Iterator[LocalServer]:
    """Its clock can be put forward, and it takes messages for a year."""
    days = ("--set", f"maxDelayTimeMills={366 * 24 * HOUR_MS}", "--set", f"timerMaxDelaySec={366 * 24 * 3600}")
    with LocalServer("--test-clock", *days, dev=False, home=tmp_path) as local:
        yield local


@only_saturn
@pytest.mark.clients("go", "java")
def test_hours_and_weeks(client: Client, local: LocalServer) -> None:
    """What is farther away than the timer wheel reaches is rolled on the way."""
    client.endpoints = local.grpc
    admin = Admin(local.namesrv, local.broker)
    topic, group = admin.create_topic("DELAY", queues=1), admin.create_group()
    admin.close()
    begun_ms = now_ms()
    after_hours = (20, 2, 24 * 40)
    client.producer(topic).send(
        [Message(topic, b"%d" % hours, deliver_ms=begun_ms + hours * HOUR_MS) for hours in after_hours]
    )
    consumer = client.simple(group, {topic: "*"})
    local.advance_clock(2 * HOUR_MS - 30_000)
    assert not consumer.receive()
    local.advance_clock(31_000)
    for hours, then in ((2, 20), (20, 24 * 40), (24 * 40, 24 * 40)):
        assert [delivery.message.body for delivery in consumer.take(1)] == [b"%d" % hours]
        local.advance_clock((then - hours) * HOUR_MS)
