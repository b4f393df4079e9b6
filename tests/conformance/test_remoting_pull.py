"""The official pull consumers: Java's lite pull and Go's, by subscription and by queue."""

from __future__ import annotations

import uuid
from collections import Counter

from harness.admin import Admin
from harness.remoting import RemotingClient, RemotingMessage


def test_subscribe_and_poll(remoting: RemotingClient, admin: Admin) -> None:
    """Each once over all queues; a second consumer of the group begins where the first one committed."""
    topic, group = admin.create_topic(), uuid.uuid4().hex
    producer = remoting.producer()
    producer.send([RemotingMessage(topic, b"%d" % number, "ab"[number % 2]) for number in range(20)])
    first = remoting.pull(group, {topic: "a"})
    assert Counter(int(delivery.message.body) for delivery in first.take(10)) == Counter(range(0, 20, 2))
    remoting.close(first)
    producer.send([RemotingMessage(topic, b"100", "a"), RemotingMessage(topic, b"101", "b")])
    second = remoting.pull(group, {topic: "a"})
    assert [delivery.message.body for delivery in second.take(1)] == [b"100"]
    assert not second.take(1, timeout_s=0.5)


def test_assign_and_seek(remoting: RemotingClient, admin: Admin) -> None:
    topic = admin.create_topic(queues=4)
    remoting.producer().send([RemotingMessage(topic, b"%d" % number, queue_id=2) for number in range(10)])
    puller = remoting.pull(uuid.uuid4().hex, {topic: "*"}, assigned=True)
    for offset in (7, 0, 9):
        received = puller.read(topic, 2, offset)
        assert [(delivery.queue_offset, delivery.message.body) for delivery in received] == [
            (number, b"%d" % number) for number in range(offset, 10)
        ]
