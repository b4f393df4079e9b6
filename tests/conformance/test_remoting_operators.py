"""What operators do to running consumers, and what consumers see of it; the official Java and Go Remoting clients."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator

import pytest
from harness.admin import Admin
from harness.operators import Operator, wait_until
from harness.remoting import Received, RemotingClient, RemotingMessage, RemotingProducer, RemotingPush, wait_shared
from harness.servers import Server

QUEUES = 4
TRACE_TOPIC = "RMQ_SYS_TRACE_TOPIC"


@pytest.fixture
def operator(server: Server) -> Iterator[Operator]:
    operator = Operator(server.broker)
    yield operator
    operator.close()


def send(producer: RemotingProducer, topic: str, numbers: range) -> None:
    producer.send([RemotingMessage(topic, b"%d" % number, queue_id=number % QUEUES) for number in numbers])


def numbers(received: list[Received]) -> list[int]:
    return sorted(int(delivery.message.body) for delivery in received)


def consuming(remoting: RemotingClient, admin: Admin) -> tuple[str, str, RemotingPush, int]:
    """A group that has 0 to 19, a consumer that is there, and a time between 9 and 10."""
    topic, group = admin.create_topic(queues=QUEUES), admin.create_group()
    producer = remoting.producer()
    send(producer, topic, range(10))
    time.sleep(0.01)
    between_ms = producer_clock_ms()
    time.sleep(0.01)
    send(producer, topic, range(10, 20))
    consumer = remoting.push(group, {topic: "*"})
    assert numbers(consumer.received(20)) == list(range(20))
    return topic, group, consumer, between_ms


def producer_clock_ms() -> int:
    """Server and test run on one machine."""
    return time.time_ns() // 1_000_000


def test_a_running_consumer_goes_back_in_time(remoting: RemotingClient, admin: Admin, operator: Operator) -> None:
    topic, group, consumer, between_ms = consuming(remoting, admin)
    assert operator.reset(group, topic, between_ms) == {0: 3, 1: 3, 2: 2, 3: 2}
    assert numbers(consumer.received(10, timeout_s=40)) == list(range(10, 20))
    send(remoting.producer(), topic, range(20, 24))
    assert numbers(consumer.received(4)) == list(range(20, 24))


def test_a_running_consumer_skips_what_it_has_not_taken(
    java_remoting: RemotingClient, admin: Admin, operator: Operator
) -> None:
    """`mqadmin skipAccumulatedMessage`; the consumer is stuck at its first message, which fails again and again."""
    topic, group = admin.create_topic(queues=1), admin.create_group()
    producer = java_remoting.producer()
    producer.send([RemotingMessage(topic, b"%d" % number) for number in range(50)])
    consumer = java_remoting.push(group, {topic: "*"}, orderly=True, failures=1_000_000)
    assert numbers(consumer.received(1)) == [0]
    assert operator.reset(group, topic, -1) == {0: 50}
    wait_until(lambda: operator.progress(group, topic)[0], lambda queue: queue["pullOffset"] == 50)
    producer.send([RemotingMessage(topic, b"50")])
    deadline = time.monotonic() + 40
    seen = {0}
    while 50 not in seen and time.monotonic() < deadline:
        seen |= set(numbers(consumer.received(1)))
    assert seen == {0, 50}


def test_a_consumer_says_how_it_does(java_remoting: RemotingClient, admin: Admin, operator: Operator) -> None:
    """Java's alone: Go's does not for as long as its statistics have no number."""
    topic, group, _, _ = consuming(java_remoting, admin)
    [client_id] = admin.consumer_ids(group)
    info = operator.running_info(group, client_id, stack=True)
    for part in ('"properties":{', '"subscriptionSet":[', f'"topic":"{topic}"', '"mqTable":{{', '"jstack":'):
        assert part in info
    assert '"jstack":' not in operator.running_info(group, client_id, stack=False)


def test_who_consumes_and_where_it_is(remoting: RemotingClient, admin: Admin, operator: Operator) -> None:
    topic, group, _, _ = consuming(remoting, admin)
    [client_id] = admin.consumer_ids(group)
    connection = operator.connection(group)
    assert [client["clientId"] for client in connection["connectionSet"]] == [client_id]
    assert connection["subscriptionTable"].keys() >= {topic}
    assert (connection["consumeType"], connection["messageModel"]) == ("CONSUME_PASSIVELY", "CLUSTERING")
    wait_until(lambda: operator.positions(group, topic), dict.fromkeys(range(QUEUES), 5).__eq__)


def test_a_message_is_handed_to_a_consumer(remoting: RemotingClient, admin: Admin, operator: Operator) -> None:
    """Past its queue: it comes once more, and the offset stays."""
    topic, group, consumer, _ = consuming(remoting, admin)
    [receipt] = remoting.producer().send([RemotingMessage(topic, b"20", queue_id=0)])
    assert numbers(consumer.received(1)) == [20]
    [client_id] = admin.consumer_ids(group)
    result = operator.consume(group, client_id, receipt.offset_id, topic)
    assert result["consumeResult"] in ("CR_SUCCESS", 0), "Go's client says it with a number"
    [again] = consumer.received(1)
    assert (again.message.body, again.queue_offset) == (b"20", 5)


def test_who_consumed_a_message(remoting: RemotingClient, admin: Admin, operator: Operator) -> None:
    """What tools make a message's track of: committed offsets say who is done with it. Who leaves commits."""
    topic, group, consumer, _ = consuming(remoting, admin)
    behind = admin.create_group()
    remoting.close(consumer)
    done = wait_until(
        lambda: operator.progress(group, topic),
        lambda progress: all(queue["consumerOffset"] == 5 for queue in progress.values()),
    )
    assert all(queue["brokerOffset"] == queue["pullOffset"] == 5 for queue in done.values())
    assert [queue["consumerOffset"] for queue in operator.progress(behind, topic).values()] == [0] * QUEUES


def test_a_new_group_begins_with_what_is_recent(remoting: RemotingClient, admin: Admin) -> None:
    """Wherever it says that it begins: brokers answer 0 as long as the first message counts as in memory, and only
    then are clients asked. As at Apache, where this surprises everyone once."""
    topic = admin.create_topic(queues=QUEUES)
    producer = remoting.producer()
    send(producer, topic, range(10))
    tomorrow = time.strftime("%Y%m%d%H%M%S", time.localtime(time.time() + 86_400))
    consumers = [remoting.push(uuid.uuid4().hex, {topic: "*"}, begin=begin) for begin in ("FIRST", "LAST", tomorrow)]
    for consumer in consumers:
        assert numbers(consumer.received(10)) == list(range(10))


def test_a_group_that_may_not_consume(remoting: RemotingClient, admin: Admin, operator: Operator) -> None:
    topic, group = admin.create_topic(queues=QUEUES), admin.create_group()
    operator.set_group(group, consumeEnable=False)
    consumer = remoting.push(group, {topic: "*"})
    send(remoting.producer(), topic, range(8))
    wait_shared(topic, QUEUES, consumer)
    assert not consumer.take(1, timeout_s=1)
    operator.set_group(group, consumeEnable=True)
    assert numbers(consumer.received(8)) == list(range(8))


def test_a_group_that_may_not_broadcast(remoting: RemotingClient, admin: Admin, operator: Operator) -> None:
    topic, group = admin.create_topic(queues=QUEUES), admin.create_group()
    operator.set_group(group, consumeBroadcastEnable=False)
    consumer = remoting.push(group, {topic: "*"}, broadcasting=True)
    send(remoting.producer(), topic, range(8))
    assert not consumer.take(1, timeout_s=2)
    operator.set_group(group, consumeBroadcastEnable=True)
    assert numbers(consumer.received(8)) == list(range(8))


def test_members_that_want_other_topics_do_not_get_each_others(
    java_remoting: RemotingClient, admin: Admin, operator: Operator
) -> None:
    """A mistake that users make: the last heart-beat says what the group takes, and queues are shared all the same.
    Whoever has a queue of a topic that it did not subscribe to leaves it alone."""
    first_topic, second_topic = admin.create_topic(queues=2), admin.create_topic(queues=2)
    group = admin.create_group()
    first = java_remoting.push(group, {first_topic: "*"})
    second = java_remoting.push(group, {second_topic: "*"})
    java_remoting.producer().send(
        [RemotingMessage(topic, b"%d" % number) for number in range(20) for topic in (first_topic, second_topic)]
    )
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        for consumer, topic in ((first, first_topic), (second, second_topic)):
            assert all(delivery.message.topic == topic for delivery in consumer.take(1, timeout_s=0.2))
    assert set(operator.connection(group)["subscriptionTable"]) & {first_topic, second_topic}


def test_the_trace_of_a_message_is_found_by_its_id(
    java_remoting: RemotingClient, admin: Admin, operator: Operator
) -> None:
    topic, group = admin.create_topic(), admin.create_group()
    consumer = java_remoting.push(group, {topic: "*"}, trace=True)
    [receipt] = java_remoting.producer(trace=True).send([RemotingMessage(topic, b"traced", keys=("key-1",))])
    assert numbers_of(consumer.received(1)) == [receipt.id]
    records = wait_until(
        lambda: operator.query(TRACE_TOPIC, receipt.id),
        lambda found: all(kind in found for kind in (b"Pub\x01", b"SubBefore\x01", b"SubAfter\x01")),
    )
    assert records.count(receipt.id.encode()) >= 3
    assert topic.encode() in records
    assert b"Pub\x01" in operator.query(TRACE_TOPIC, "key-1")


def numbers_of(received: list[Received]) -> list[str]:
    return [delivery.id for delivery in received]
