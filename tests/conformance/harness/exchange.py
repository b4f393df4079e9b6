"""What every pair of clients must show, whatever their languages and protocols: functions that tests call."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import replace

from harness.clients import Delivery, Message, Producer, PushConsumer, SimpleConsumer


def varied_messages(topic: str, count: int = 12) -> list[Message]:
    """Messages with and without keys, tag and properties; text of several scripts and every byte in their bodies."""
    bodies = (b"plain", "ночь 夜 🪐".encode(), bytes(range(256)), b"\0", b"x" * 70_000)
    messages = []
    for number in range(count):
        mark = f"{number}-{uuid.uuid4().hex}"
        messages.append(
            Message(
                topic,
                body=bodies[number % len(bodies)] + mark.encode(),
                tag=("alpha", "beta", None)[number % 3],
                keys=(f"order-{mark}", f"ключ-{mark}")[: number % 3],
                properties={"mark": mark, "näme": "wert 值", "equals": "a=b"} if number % 2 else {},
            )
        )
    return messages


def assert_same(sent: Sequence[Message], ids: Sequence[str], deliveries: Sequence[Delivery]) -> None:
    """Each came once, with the id, keys, tag, properties and body that it was sent with, at its first attempt."""
    by_id = {delivery.id: delivery for delivery in deliveries}
    assert len(set(ids)) == len(sent)
    assert sorted(delivery.id for delivery in deliveries) == sorted(ids)
    for message, message_id in zip(sent, ids, strict=True):
        assert by_id[message_id].message == replace(message, keys=tuple(sorted(message.keys)))
    assert {delivery.attempt for delivery in deliveries} == {1}
    assert not any(delivery.corrupted for delivery in deliveries)


def send_and_receive(
    producer: Producer, consumer: SimpleConsumer | PushConsumer, topic: str, mode: str = "sync"
) -> list[Message]:
    """Messages of every kind arrive once and as sent; when a last one is sent, nothing comes again before it."""
    messages = varied_messages(topic)
    ids = producer.send(messages, mode)
    assert_same(messages, ids, consumer.take(len(messages)))
    last = [Message(topic, b"last")]
    assert_same(last, producer.send(last), consumer.take(1))
    return messages + last
