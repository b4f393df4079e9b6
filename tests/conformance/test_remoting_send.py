"""What the official Java and Go Remoting producers send is stored once, whole, and where they were told."""

from __future__ import annotations

import re
import time
import uuid
from collections import Counter

import pytest
from harness.admin import Admin
from harness.remoting import Receipt, RemotingClient, RemotingMessage

EVERY_BYTE = bytes(range(256))


def three_messages(topic: str) -> list[RemotingMessage]:
    """Different in all that a message can have."""
    return [
        RemotingMessage(topic, "Grüße, 世界".encode(), "blue", ("key-1", "key-2"), {"city": "Zürich", "n": "1"}),
        RemotingMessage(topic, EVERY_BYTE, "green", ("key-3",), {"a b": "c=d;e"}),
        RemotingMessage(topic, b"x"),
    ]


@pytest.mark.parametrize("mode", ["sync", "async", "one_way", "batch"])
def test_every_way_of_sending(remoting: RemotingClient, admin: Admin, mode: str) -> None:
    topic = admin.create_topic()
    sent = three_messages(topic)
    receipts = remoting.producer().send(sent, mode)
    consumer = remoting.push(uuid.uuid4().hex, {topic: "*"})
    received = consumer.received(len(sent))
    assert Counter(delivery.message.body for delivery in received) == Counter(message.body for message in sent)
    assert not consumer.take(1, timeout_s=0.3)
    by_body = {delivery.message.body: delivery for delivery in received}
    for message in sent:
        delivery = by_body[message.body]
        assert delivery.message.topic == topic
        assert delivery.attempt == 1
        assert delivery.message.tag == message.tag
        assert delivery.message.keys == message.keys
        assert delivery.message.properties == message.properties
    assert all(receipt.status == "SEND_OK" for receipt in receipts)
    assert len(receipts) == {"one_way": 0, "batch": 1}.get(mode, len(sent))
    if mode in ("sync", "async"):
        told = [(receipt.id, receipt.queue_id, receipt.queue_offset) for receipt in receipts]
        came = [by_body[message.body] for message in sent]
        assert told == [(delivery.id, delivery.queue_id, delivery.queue_offset) for delivery in came]


def test_a_batch_lies_together_in_one_queue(remoting: RemotingClient, admin: Admin) -> None:
    topic = admin.create_topic(queues=1)
    producer = remoting.producer()
    producer.send([RemotingMessage(topic, b"before")])
    [receipt] = producer.send([RemotingMessage(topic, b"%d" % number) for number in range(10)], "batch")
    assert receipt.queue_offset == 1
    assert len(set(receipt.offset_id.split(","))) == 10
    puller = remoting.pull(uuid.uuid4().hex, {topic: "*"}, assigned=True)
    received = puller.read(topic, 0, offset=1)
    assert [(delivery.queue_offset, delivery.message.body) for delivery in received] == [
        (1 + number, b"%d" % number) for number in range(10)
    ]


def test_offsets_of_a_queue_count_up(remoting: RemotingClient, admin: Admin) -> None:
    topic = admin.create_topic(queues=4)
    messages = [RemotingMessage(topic, b"%d" % number, queue_id=3) for number in range(20)]
    receipts = remoting.producer().send(messages)
    assert [(receipt.queue_id, receipt.queue_offset) for receipt in receipts] == [(3, number) for number in range(20)]
    assert len({receipt.offset_id for receipt in receipts}) == 20
    assert all(re.fullmatch("[0-9A-F]{32}", receipt.offset_id) for receipt in receipts)


def test_a_large_body_comes_back_as_it_was(remoting: RemotingClient, admin: Admin) -> None:
    """Both clients compress it."""
    topic = admin.create_topic()
    body = EVERY_BYTE * 4000
    remoting.producer().send([RemotingMessage(topic, body)])
    [delivery] = remoting.push(uuid.uuid4().hex, {topic: "*"}).received(1)
    assert delivery.message.body == body


def test_an_unknown_topic_is_created(remoting: RemotingClient) -> None:
    """autoCreateTopicEnable, on by default: from the template TBW102, with the producer's number of queues."""
    topic = f"created-{uuid.uuid4().hex[:8]}"
    producer = remoting.producer()
    sent = [RemotingMessage(topic, b"%d" % number) for number in range(8)]
    receipts = producer.send(sent)
    assert {receipt.queue_id for receipt in receipts} <= set(range(4))
    received = remoting.push(uuid.uuid4().hex, {topic: "*"}).received(8)
    assert {delivery.message.body for delivery in received} == {message.body for message in sent}


def test_the_vip_port_takes_messages(remoting: RemotingClient, admin: Admin) -> None:
    topic = admin.create_topic()
    receipts = remoting.producer(vip=True).send([RemotingMessage(topic, b"by the VIP port")])
    assert [receipt.status for receipt in receipts] == ["SEND_OK"]


def test_offsets_by_bound_and_by_time(java_remoting: RemotingClient, admin: Admin) -> None:
    """Minimum, maximum, by time, and the age of the oldest: codes 31, 30, 29, 32."""
    topic = admin.create_topic(queues=1)
    producer = java_remoting.producer()
    begun_ms = int(time.time() * 1000)
    receipts: list[Receipt] = []
    for number in range(3):
        receipts += producer.send([RemotingMessage(topic, b"%d" % number)])
        time.sleep(0.02)  # so that store times differ
    after_ms = int(time.time() * 1000)
    assert [receipt.queue_offset for receipt in receipts] == [0, 1, 2]
    offsets = producer.offsets(topic, 0, stored_ms=begun_ms - 1000)
    earliest_ms = offsets.pop("earliest_ms")
    assert offsets == {"min": 0, "max": 3, "at": 0}
    assert begun_ms - 1 <= earliest_ms <= after_ms
    assert producer.offsets(topic, 0, stored_ms=earliest_ms + 1)["at"] == 1
    assert producer.offsets(topic, 0, stored_ms=after_ms + 1000)["at"] in (2, 3)
