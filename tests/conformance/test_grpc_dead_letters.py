"""Push consumers whose listener always fails: the message is tried as often as its group says, then buried once."""

from __future__ import annotations

import time
from collections import Counter

import pytest
from harness.admin import Admin
from harness.clients import Client, Message

ALWAYS = 1_000_000


def buried(admin: Admin, group: str) -> int:
    return admin.end_of_queue(f"%DLQ%{group}")


def wait_buried(admin: Admin, group: str, count: int) -> None:
    """They are there soon, and no more follow."""
    deadline = time.monotonic() + 10
    while buried(admin, group) < count:
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.02)
    time.sleep(1.5)  # clients repeat what was refused after a second
    assert buried(admin, group) == count


def test_the_server_buries_what_was_tried_often_enough(client: Client, admin: Admin) -> None:
    """A consumer that is not FIFO makes each failed message visible again after the group's wait (its first two are
    not used), and never says that it gives up."""
    topic, group = admin.create_topic(), admin.create_group(retries=1, waits_ms=[100, 100, 300])
    consumer = client.push(group, {topic: "*"}, failures=ALWAYS)
    ids = client.producer(topic).send([Message(topic, b"one"), Message(topic, b"two")])
    deliveries = consumer.take(4)
    assert sorted((delivery.id, delivery.attempt) for delivery in deliveries) == sorted(
        (id_, attempt) for id_ in ids for attempt in (1, 2)
    )
    wait_buried(admin, group, 2)
    assert not consumer.take(1, timeout_s=0.2)


def test_a_fifo_consumer_asks_to_bury(client: Client, admin: Admin) -> None:
    """It repeats on its own, then forwards the message to the dead letters. (Node does so after one attempt.)"""
    topic, group = admin.create_topic("FIFO"), admin.create_group(fifo=True, retries=1, waits_ms=[100, 100, 300])
    consumer = client.push(group, {topic: "*"}, failures=ALWAYS)
    client.producer(topic).send([Message(topic, str(number).encode(), message_group="line") for number in range(3)])
    wait_buried(admin, group, 3)
    attempts = Counter(delivery.id for delivery in consumer.take(7, timeout_s=0.2))
    assert set(attempts.values()) in ({1}, {2})
    assert len(attempts) == 3


@pytest.mark.clients("python", "java")
def test_a_fifo_consumer_goes_on_behind_what_it_buried(client: Client, admin: Admin) -> None:
    """Go repeats a message beside the next one, Node does not repeat at all."""
    topic, group = admin.create_topic("FIFO"), admin.create_group(fifo=True, retries=1, waits_ms=[100, 100, 300])
    consumer = client.push(group, {topic: "*"}, failures=ALWAYS)
    ids = client.producer(topic).send(
        [Message(topic, str(number).encode(), message_group="line") for number in range(3)]
    )
    assert [delivery.id for delivery in consumer.take(6)] == [id_ for id_ in ids for _ in range(2)]
