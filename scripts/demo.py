"""`make demo`: Local mode and the official Python client, from nothing to 1,000 messages there and back."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections import Counter

from saturnmq.testing.server import LocalServer

COUNT = 1000


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="saturnmq-demo-") as home, LocalServer() as server:
        os.environ["HOME"] = home  # the client writes its logs there
        print(server.log(), flush=True)
        exchange(server.grpc)
    print("The server is stopped and its data removed. Next: saturnmq local --dev")


def exchange(endpoints: str) -> None:
    from rocketmq import ClientConfiguration, Credentials, FilterExpression, Message, Producer, SimpleConsumer

    configuration = ClientConfiguration(endpoints, Credentials())
    consumer = SimpleConsumer(configuration, "demo-group", {"demo": FilterExpression()}, 15)
    consumer.startup()
    producer = Producer(configuration, {"demo"})
    producer.startup()

    started = time.perf_counter()
    sent = {send(producer, Message, f"message {number}") for number in range(COUNT)}
    sending_s = time.perf_counter() - started
    print(f"sent      {len(sent)} messages, {COUNT / sending_s:.0f}/s, one after the other")

    received: Counter[str] = Counter()
    started = time.perf_counter()
    while received.total() < COUNT and time.perf_counter() - started < 60:
        for message in consumer.receive(32, 15):
            received[message.message_id] += 1
            consumer.ack(message)
    receiving_s = time.perf_counter() - started
    print(f"received  {received.total()} messages and acknowledged each, {received.total() / receiving_s:.0f}/s")
    producer.shutdown()
    consumer.shutdown()
    if set(received) != sent or received.total() != COUNT:
        sys.exit(
            f"not each exactly once: {len(sent - set(received))} missing, {received.total() - len(received)} twice"
        )
    print("each exactly once")


def send(producer: object, message_type: type, text: str) -> str:
    message = message_type()
    message.topic = "demo"
    message.body = text.encode()
    return str(producer.send(message).message_id)  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
