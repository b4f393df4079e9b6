"""Messages for an arbitrary time by every official client: never before it, soon after it, and taken back."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from harness.admin import Admin
from harness.clients import Client, ClientError, Message, PushConsumer, SimpleConsumer
from harness.grpc_variants import GRPC_DEFAULTS, GRPC_RUST
from harness.remoting import RemotingClient, RemotingMessage
from harness.servers import only_saturn
from harness.wall_clock import WallClock

from saturnmq.testing.server import LocalServer

HOUR_MS = 3_600_000
#: after the first whole second from the time on; the machine is shared
LATE_MS = 3_000
ILLEGAL_DELIVERY_TIME = 40_012
#: and a day
A_YEAR = ("--set", f"maxDelayTimeMills={366 * 24 * HOUR_MS}", "--set", f"timerMaxDelaySec={366 * 24 * 3600}")


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
    with LocalServer("--test-clock", *A_YEAR, dev=False, home=tmp_path) as local:
        yield local


@contextmanager
def admin_of(local: LocalServer) -> Iterator[Admin]:
    admin = Admin(local.namesrv, local.broker)
    yield admin
    admin.close()


@only_saturn
@pytest.mark.clients("python", "go", "java")
def test_hours_weeks_and_a_year(client: Client, local: LocalServer) -> None:
    """What is farther away than the timer wheel reaches is rolled on the way."""
    client.endpoints = local.grpc
    with admin_of(local) as admin:
        topic, group = admin.create_topic("DELAY", queues=1), admin.create_group()
    begun_ms = now_ms()
    after_hours = (20, 2, 24 * 365, 24 * 40)
    client.producer(topic).send(
        [Message(topic, b"%d" % hours, deliver_ms=begun_ms + hours * HOUR_MS) for hours in after_hours]
    )
    consumer = client.simple(group, {topic: "*"})
    local.advance_clock(2 * HOUR_MS - 30_000)
    assert not consumer.receive()
    local.advance_clock(31_000)
    for hours, then in pairwise((*sorted(after_hours), 24 * 365)):
        assert [delivery.message.body for delivery in consumer.take(1)] == [b"%d" % hours]
        local.advance_clock((then - hours) * HOUR_MS)


@only_saturn
@pytest.mark.clients("python", "go", "java")
def test_farther_away_than_the_raised_maximum(client: Client, local: LocalServer) -> None:
    client.endpoints = local.grpc
    with admin_of(local) as admin:
        topic = admin.create_topic("DELAY")
    with pytest.raises(ClientError, match=f"maxDelayTimeMills={366 * 24 * HOUR_MS}"):
        client.producer(topic).send([Message(topic, b"x", deliver_ms=now_ms() + 367 * 24 * HOUR_MS)])


@only_saturn
def test_remoting_weeks_and_a_year(java_remoting: RemotingClient, local: LocalServer) -> None:
    java_remoting.namesrv = local.namesrv
    with admin_of(local) as admin:
        topic, group = admin.create_topic("DELAY", queues=1), admin.create_group()
    consumer = java_remoting.push(group, {topic: "*"})
    producer = java_remoting.producer()
    for days in (365, 40):
        producer.send([RemotingMessage(topic, b"%d" % days, timers={"TIMER_DELAY_SEC": str(days * 24 * 3600)})])
    with pytest.raises(ClientError, match=f"timerMaxDelaySec={366 * 24 * 3600}"):
        producer.send([RemotingMessage(topic, b"x", timers={"TIMER_DELAY_SEC": str(367 * 24 * 3600)})])
    for days, passed in ((40, 0), (365, 40)):
        local.advance_clock((days - passed) * 24 * HOUR_MS - HOUR_MS)
        assert not consumer.take(1, timeout_s=0.5)
        local.advance_clock(HOUR_MS)
        assert [delivery.message.body for delivery in consumer.take(1, timeout_s=60)] == [b"%d" % days]


@only_saturn
@pytest.mark.clients("python", "go", "java")
def test_a_server_that_was_off_for_ten_days(client: Client, tmp_path: Path) -> None:
    """It delivers what fell due, and keeps the rest."""
    clock = WallClock(tmp_path / "clock")
    local = LocalServer(*A_YEAR, dev=False, home=tmp_path, command=clock.command)
    with local:
        client.endpoints = local.grpc
        with admin_of(local) as admin:
            topic, group = admin.create_topic("DELAY", queues=1), admin.create_group()
        begun_ms = clock.now_ms()
        due_ms = {b"%d" % days: begun_ms + days * 24 * HOUR_MS for days in (9, 1, 11, 5)}
        client.producer(topic).send([Message(topic, body, deliver_ms=due) for body, due in due_ms.items()])
        client.close_all()
    clock.jump(10 * 24 * HOUR_MS)
    with local:
        client.endpoints = local.grpc
        consumer = client.simple(group, {topic: "*"}, await_ms=5_000)
        assert sorted(delivery.message.body for delivery in consumer.take(3, timeout_s=60)) == [b"1", b"5", b"9"]
        assert not consumer.receive()
        clock.jump(24 * HOUR_MS)
        assert [delivery.message.body for delivery in consumer.take(1, timeout_s=60)] == [b"11"]
        client.close_all()
