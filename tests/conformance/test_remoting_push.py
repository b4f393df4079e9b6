"""The official Java and Go Remoting push consumers get each message as often as their model says."""

from __future__ import annotations

import time
import uuid
from collections import Counter, defaultdict

import pytest
from harness.admin import Admin
from harness.clients import ClientError, Message
from harness.remoting import Received, RemotingClient, RemotingMessage, RemotingPush, lived_before, wait_shared

QUEUES = 8


def numbered(topic: str, count: int, *, first: int = 0, queues: int = QUEUES) -> list[RemotingMessage]:
    """Spread over the queues in turn."""
    return [RemotingMessage(topic, b"%d" % number, queue_id=number % queues) for number in range(first, first + count)]


def numbers(received: list[Received]) -> list[int]:
    return [int(delivery.message.body) for delivery in received]


def first_of_queue(remoting: RemotingClient, topic: str, timeout_s: float = 10) -> list[Received]:
    """What lies in queue 0 of a topic that is about to be created."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return remoting.pull(uuid.uuid4().hex, {topic: "*"}, assigned=True).read(topic, 0, 0)
        except ClientError:  # no route yet
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def test_tags_are_filtered(remoting: RemotingClient, admin: Admin) -> None:
    topic = admin.create_topic()
    tags = ["red", "green", "blue", None, "green", "Green", "red"]
    messages = [RemotingMessage(topic, b"%d" % number, tag) for number, tag in enumerate(tags)]
    consumer = remoting.push(uuid.uuid4().hex, {topic: "green || blue"})
    remoting.producer().send(messages)
    assert sorted(numbers(consumer.received(3))) == [1, 2, 4]
    assert not consumer.take(1, timeout_s=0.5)


def test_a_waiting_consumer_gets_a_message_at_once(remoting: RemotingClient, admin: Admin) -> None:
    """It waits in a long poll of 15 s or more."""
    topic = admin.create_topic(queues=1)
    producer = remoting.producer()
    consumer = remoting.push(uuid.uuid4().hex, {topic: "*"})
    producer.send([RemotingMessage(topic, b"0")])
    assert numbers(consumer.received(1)) == [0]
    time.sleep(0.2)  # the next pull has come and waits
    begun = time.monotonic()
    producer.send([RemotingMessage(topic, b"1")])
    assert numbers(consumer.received(1)) == [1]
    assert time.monotonic() - begun < 10


def test_orderly_keeps_the_order_of_each_queue(remoting: RemotingClient, admin: Admin) -> None:
    """Also when each message fails once: it comes again, and nothing of its queue passes it."""
    topic = admin.create_topic(queues=2)
    consumer = remoting.push(uuid.uuid4().hex, {topic: "*"}, orderly=True, failures=1)
    remoting.producer().send(numbered(topic, 12, queues=2))
    received = consumer.received(24)
    by_queue: dict[int, list[tuple[int, bool]]] = defaultdict(list)
    for delivery in received:
        by_queue[delivery.queue_id].append((int(delivery.message.body), delivery.failed))
    assert by_queue == {
        queue_id: [(number, failed) for number in range(queue_id, 12, 2) for failed in (True, False)]
        for queue_id in range(2)
    }


def test_orderly_consumers_do_not_share_a_queue(java_remoting: RemotingClient, admin: Admin) -> None:
    """Java's alone: Go's asks again for a queue that the other one has not unlocked yet only after 20 s."""
    topic, group = admin.create_topic(queues=QUEUES), uuid.uuid4().hex
    first = java_remoting.push(group, {topic: "*"}, orderly=True)
    second = java_remoting.push(group, {topic: "*"}, orderly=True)
    wait_shared(topic, QUEUES, first, second)
    java_remoting.producer().send(numbered(topic, 5 * QUEUES))
    received = {consumer: consumer.received(20) for consumer in (first, second)}
    for consumer, share in received.items():
        assert {delivery.queue_id for delivery in share} == consumer.queues(topic)
    by_queue = defaultdict(list)
    for delivery in [*received[first], *received[second]]:
        by_queue[delivery.queue_id].append(int(delivery.message.body))
    assert by_queue == {queue_id: list(range(queue_id, 5 * QUEUES, QUEUES)) for queue_id in range(QUEUES)}


def test_broadcasting_gives_everything_to_everyone(remoting: RemotingClient, admin: Admin) -> None:
    topic, group = admin.create_topic(), uuid.uuid4().hex
    consumers = [remoting.push(group, {topic: "*"}, broadcasting=True) for _ in range(2)]
    remoting.producer().send(numbered(topic, 20, queues=4))
    for consumer in consumers:
        assert sorted(numbers(consumer.received(20))) == list(range(20))
    assert not any(consumer.take(1, timeout_s=0.2) for consumer in consumers)


def test_a_delay_level_holds_a_message_back(remoting: RemotingClient, admin: Admin) -> None:
    topic, producer = admin.create_topic(), remoting.producer()
    consumer = remoting.push(uuid.uuid4().hex, {topic: "*"})
    producer.send([RemotingMessage(topic, b"before")])
    assert consumer.take(1)
    begun = time.monotonic()
    message = RemotingMessage(topic, b"later", "tag", ("key",), {"user": "property"}, delay_level=1)
    receipt, _ = producer.send([message, RemotingMessage(topic, b"now")])
    now, later = consumer.received(2)
    waited_s = time.monotonic() - begun
    assert now.message.body == b"now"
    assert (later.message.body, later.message.tag, later.message.keys) == (b"later", "tag", ("key",))
    assert (later.message.topic, later.message.properties) == (topic, {"user": "property"})
    assert later.id == receipt.id
    assert 0.9 < waited_s < 10


def test_what_failed_comes_again(remoting: RemotingClient, admin: Admin) -> None:
    """Sent back (code 36) with delay level 1, it comes from the group's retry topic: same message, next attempt."""
    topic, group = admin.create_topic(), uuid.uuid4().hex
    lived_before(remoting, group, topic)
    consumer = remoting.push(group, {topic: "*"}, failures=1, retry_level=1)
    message = Message(topic, b"again", "tag", ("key-1", "key-2"), {"user": "property"})
    [receipt] = remoting.producer().send([message])
    begun = time.monotonic()
    first, second = consumer.received(2)
    assert time.monotonic() - begun > 0.9
    assert [(delivery.attempt, delivery.failed) for delivery in (first, second)] == [(1, True), (2, False)]
    for delivery in (first, second):
        assert delivery.id == receipt.id
        assert delivery.message == message
    assert second.system["RETRY_TOPIC"] == topic
    assert second.system["ORIGIN_MESSAGE_ID"] == receipt.offset_id
    assert not consumer.take(1, timeout_s=0.5)


def test_delay_level_minus_one_goes_to_the_dead_letters(remoting: RemotingClient, admin: Admin) -> None:
    topic, group = admin.create_topic(), uuid.uuid4().hex
    consumer = remoting.push(group, {topic: "*"}, failures=1, retry_level=-1)
    [receipt] = remoting.producer().send([RemotingMessage(topic, b"dead", "tag", ("key",), {"user": "property"})])
    [failed] = consumer.received(1)
    assert failed.failed
    dead_letters = f"%DLQ%{group}"
    [dead] = first_of_queue(remoting, dead_letters)
    assert (dead.message.topic, dead.message.body, dead.id) == (dead_letters, b"dead", receipt.id)
    assert dead.message.properties == {"user": "property"}
    assert not consumer.take(1, timeout_s=0.2)


@pytest.fixture
def sharing(
    remoting: RemotingClient, second_remoting: RemotingClient, admin: Admin
) -> tuple[str, RemotingPush, RemotingPush]:
    """Two consumers of one group in two processes, and messages 0 to 39 that they shared."""
    topic, group = admin.create_topic(queues=QUEUES), uuid.uuid4().hex
    staying = remoting.push(group, {topic: "*"})
    leaving = second_remoting.push(group, {topic: "*"})
    wait_shared(topic, QUEUES, staying, leaving)
    remoting.producer().send(numbered(topic, 5 * QUEUES))
    received = {consumer: consumer.received(20) for consumer in (staying, leaving)}
    for consumer, share in received.items():
        assert {delivery.queue_id for delivery in share} == consumer.queues(topic)
    assert Counter(numbers(received[staying]) + numbers(received[leaving])) == Counter(range(5 * QUEUES))
    return topic, staying, leaving


def test_who_leaves_hands_its_queues_over(
    remoting: RemotingClient, second_remoting: RemotingClient, sharing: tuple[str, RemotingPush, RemotingPush]
) -> None:
    """The broker tells the group (code 40): clients look on their own only every 20 s. Nothing comes twice."""
    topic, staying, leaving = sharing
    second_remoting.close(leaving)
    wait_shared(topic, QUEUES, staying, timeout_s=10)
    remoting.producer().send(numbered(topic, 3 * QUEUES, first=100))
    assert Counter(numbers(staying.received(3 * QUEUES))) == Counter(range(100, 100 + 3 * QUEUES))
    assert not staying.take(1, timeout_s=0.3)


def test_who_dies_leaves_its_queues(
    remoting: RemotingClient, second_remoting: RemotingClient, sharing: tuple[str, RemotingPush, RemotingPush]
) -> None:
    """Killed: its connection ends. What it did not commit may come again, nothing is lost."""
    topic, staying, _leaving = sharing
    second_remoting.opened.clear()
    second_remoting.process.kill()
    wait_shared(topic, QUEUES, staying, timeout_s=10)
    remoting.producer().send(numbered(topic, 3 * QUEUES, first=100))
    new: set[int] = set()
    deadline = time.monotonic() + 15
    while len(new) < 3 * QUEUES and time.monotonic() < deadline:
        new |= {number for number in numbers(staying.received(1)) if number >= 100}
    assert new == set(range(100, 100 + 3 * QUEUES))
