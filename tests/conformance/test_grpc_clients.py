"""The official gRPC clients in four languages, each in its default transport, through the same scenarios."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
from harness.admin import Admin
from harness.clients import (
    MIN_INVISIBLE_MS,
    Client,
    ClientError,
    ClientProcess,
    Delivery,
    Message,
    SimpleConsumer,
)
from harness.exchange import assert_same, send_and_receive, varied_messages
from harness.forwarder import Forwarder
from harness.grpc_variants import GRPC_DEFAULTS, GRPC_RUST, GRPC_SWITCHED, GRPC_TRUSTING, GRPC_VARIANTS
from harness.servers import Server

ALL_VARIANTS = (*GRPC_DEFAULTS, *GRPC_SWITCHED)
#: what a producer and a simple consumer can do
WITH_RUST = (*GRPC_DEFAULTS, *GRPC_RUST)

# apache.rocketmq.v2.Code
OK = 20000
TOPIC_NOT_FOUND = 40402
MESSAGE_PROPERTY_CONFLICT_WITH_TYPE = 40014
MESSAGE_BODY_TOO_LARGE = 41301
MESSAGE_PROPERTIES_TOO_LARGE = 43101


class Unacked(NamedTuple):
    consumer: SimpleConsumer
    delivery: Delivery
    asked_s: float


@pytest.mark.clients(*ALL_VARIANTS, *GRPC_RUST, smoke=("python", "go"))
def test_simple_consumer_receives_what_was_sent(client: Client, admin: Admin) -> None:
    topic, group = admin.create_topic(), admin.create_group()
    send_and_receive(client.producer(topic), client.simple(group, {topic: "*"}), topic)


@pytest.mark.clients(*ALL_VARIANTS)
def test_push_consumer_receives_what_was_sent(client: Client, admin: Admin) -> None:
    topic, group = admin.create_topic(), admin.create_group()
    send_and_receive(client.producer(topic), client.push(group, {topic: "*"}), topic)


def test_asynchronous_send(client: Client, admin: Admin) -> None:
    topic, group = admin.create_topic(), admin.create_group()
    send_and_receive(client.producer(topic), client.simple(group, {topic: "*"}), topic, mode="async")


@pytest.mark.clients(*GRPC_TRUSTING)
def test_tls_with_a_verified_certificate(client: Client, admin: Admin, server: Server) -> None:
    """Python and Node, told to use TLS, verify: the server's own certificate, once trusted, names the host dialled."""
    topic, group = admin.create_topic(), admin.create_group()
    send_and_receive(client.producer(topic), client.simple(group, {topic: "*"}), topic)


@pytest.mark.clients(*WITH_RUST)
def test_large_body(client: Client, admin: Admin) -> None:
    """Bodies that need more than one flow-control window each way. The Go client sends no more than 2 MiB."""
    topic, group = admin.create_topic(), admin.create_group()
    messages = [Message(topic, bytes([number]) * 1_900_000) for number in range(2)]
    ids = client.producer(topic).send(messages)
    assert_same(messages, ids, client.simple(group, {topic: "*"}).take(2))


@pytest.mark.clients(*WITH_RUST)
def test_tag_filter(client: Client, admin: Admin) -> None:
    topic, group = admin.create_topic(), admin.create_group()
    messages = [
        Message(topic, b"tag " + tag.encode(), tag=tag or None) for tag in ("a", "b", "c", "ab", "", "a", "A", "b")
    ]
    ids = client.producer(topic).send(messages)
    wanted = [number for number, message in enumerate(messages) if message.tag in ("a", "b")]
    received = client.simple(group, {topic: "a || b"}).take(len(wanted))
    assert_same([messages[number] for number in wanted], [ids[number] for number in wanted], received)


def test_changed_invisible_duration_brings_a_message_back(client: Client, admin: Admin) -> None:
    topic, group = admin.create_topic(), admin.create_group()
    ids = client.producer(topic).send([Message(topic, b"later")])
    consumer = client.simple(group, {topic: "*"})
    (first,) = consumer.receive()
    changed = time.monotonic()
    consumer.change_invisible(first, 1000)
    (again,) = consumer.take(1)
    assert 1 <= time.monotonic() - changed < MIN_INVISIBLE_MS / 1000
    assert [first.id, again.id] == ids * 2
    assert (first.attempt, again.attempt) == (1, 2)


def test_failed_consumption_is_repeated(client: Client, admin: Admin) -> None:
    """The listener of a push consumer fails each message once; the group's first retry is due after a second."""
    topic, group = admin.create_topic(), admin.create_group()
    consumer = client.push(group, {topic: "*"}, failures=1)
    ids = client.producer(topic).send([Message(topic, b"one"), Message(topic, b"two")])
    deliveries: dict[str, list[Delivery]] = defaultdict(list)
    for delivery in consumer.take(4):
        deliveries[delivery.id].append(delivery)
    assert sorted(deliveries) == sorted(ids)
    for first, second in deliveries.values():
        assert (first.failed, second.failed) == (True, False)
        assert (first.attempt, second.attempt) == (1, 2)
        assert first.message.body == second.message.body


def fifo_messages(topic: str) -> list[Message]:
    """Messages of three message groups, interleaved."""
    return [Message(topic, str(number).encode(), message_group=f"line-{number % 3}") for number in range(15)]


def assert_ordered(sent: list[Message], received: list[Delivery]) -> None:
    for group in {message.message_group for message in sent}:
        expected = [message.body for message in sent if message.message_group == group]
        assert [delivery.message.body for delivery in received if delivery.message.message_group == group] == expected
    assert len(received) == len(sent)


@pytest.mark.clients(*WITH_RUST)
def test_simple_consumer_keeps_the_order_of_a_message_group(client: Client, admin: Admin) -> None:
    topic, group = admin.create_topic("FIFO"), admin.create_group(fifo=True)
    messages = fifo_messages(topic)
    client.producer(topic).send(messages)
    assert_ordered(messages, client.simple(group, {topic: "*"}).take(len(messages)))


def test_push_consumer_keeps_the_order_of_a_message_group(client: Client, admin: Admin) -> None:
    topic, group = admin.create_topic("FIFO"), admin.create_group(fifo=True)
    messages = fifo_messages(topic)
    client.producer(topic).send(messages)
    assert_ordered(messages, client.push(group, {topic: "*"}).take(len(messages)))


def fail_in_order(client: Client, admin: Admin) -> list[list[tuple[bytes, bool]]]:
    """Of each message group: what the listener of a FIFO push consumer was given, and whether it failed it, which it
    does once with each message."""
    topic, group = admin.create_topic("FIFO"), admin.create_group(fifo=True)
    messages = fifo_messages(topic)[:6]
    consumer = client.push(group, {topic: "*"}, failures=1)
    client.producer(topic).send(messages)
    given = defaultdict(list)
    for one in consumer.take(2 * len(messages)):
        given[one.message.message_group].append((one.message.body, one.failed))
    return [given[f"line-{line}"] for line in range(3)]


@pytest.mark.clients("python", "java")
def test_a_failed_message_holds_up_those_behind_it(client: Client, admin: Admin) -> None:
    assert fail_in_order(client, admin) == [
        [(b"%d" % number, failed) for number in (line, line + 3) for failed in (True, False)] for line in range(3)
    ]


@pytest.mark.clients("go")
def test_failed_messages_of_an_order_in_go(client: Client, admin: Admin) -> None:
    """This client goes on with what it was given together with a failed message (consumer_service.go)."""
    for line, given in enumerate(fail_in_order(client, admin)):
        bodies = [b"%d" % line, b"%d" % (line + 3)]
        assert [body for body, failed in given if failed] == bodies
        assert sorted(body for body, failed in given if not failed) == bodies


@pytest.mark.clients(*WITH_RUST)
def test_properties_too_large(client: Client, admin: Admin) -> None:
    topic = admin.create_topic()
    with pytest.raises(ClientError) as raised:
        client.producer(topic).send([Message(topic, b"x", properties={"wide": "w" * 20_000})])
    assert raised.value.code == MESSAGE_PROPERTIES_TOO_LARGE


def test_body_too_large(client: Client, admin: Admin) -> None:
    """These clients hold the limit that their settings told them, and refuse a longer body themselves."""
    topic = admin.create_topic()
    with pytest.raises(ClientError, match=r"(?i)body size exceeds"):
        client.producer(topic).send([Message(topic, bytes(4 * 1024 * 1024 + 1))])


@pytest.mark.clients("python")
def test_body_too_large_for_the_server(client: Client, admin: Admin) -> None:
    topic = admin.create_topic()
    answer = client.producer(topic).send_unchecked([Message(topic, bytes(4 * 1024 * 1024 + 1)), Message(topic, b"x")])
    assert answer == [MESSAGE_BODY_TOO_LARGE, OK]


@pytest.mark.clients("go", "node", "java", *GRPC_RUST)
def test_unknown_topic(client: Client, admin: Admin) -> None:
    producer = client.producer(admin.create_topic())
    with pytest.raises(ClientError) as raised:
        producer.send([Message("topic-that-nobody-made", b"x")])
    assert raised.value.code == TOPIC_NOT_FOUND


@pytest.mark.clients("python")
def test_unknown_topic_in_python(client: Client, admin: Admin, server: Server) -> None:
    """This client logs the code of a route that it did not get, and raises another error.

    Apache's answer to a send without a route compares the message type with that of the missing topic.
    """
    producer = client.producer(admin.create_topic())
    unknown = [Message("topic-that-nobody-made", b"x")]
    with pytest.raises(ClientError, match="failed to fetch topic"):
        producer.send(unknown)
    code = MESSAGE_PROPERTY_CONFLICT_WITH_TYPE if server.is_apache else TOPIC_NOT_FOUND
    assert producer.send_unchecked(unknown) == [code]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@pytest.mark.clients(*ALL_VARIANTS, *GRPC_RUST)
def test_through_a_forwarded_port(
    client: Client, admin: Admin, server: Server, forwarder: Forwarder, host: str
) -> None:
    """A client that knows a container's published port only is told that address by the route, and uses no other."""
    topic, group = admin.create_topic(), admin.create_group()
    client.endpoints = f"{host}:{forwarder.port}"
    before_bytes = forwarder.sent_bytes
    sent = send_and_receive(client.producer(topic), client.simple(group, {topic: "*"}), topic)
    if not server.is_apache:  # Apache's Local mode names its own port
        assert forwarder.sent_bytes - before_bytes > sum(len(message.body) for message in sent)


@pytest.mark.clients(*WITH_RUST)
def test_long_poll_is_answered_by_a_message_that_arrives(client: Client, admin: Admin) -> None:
    topic, group = admin.create_topic(), admin.create_group()
    producer = client.producer(topic)
    consumer = client.simple(group, {topic: "*"}, await_ms=15_000)
    waiting = consumer.start_receive()
    time.sleep(0.5)
    assert not waiting.done()
    ids = producer.send([Message(topic, b"arrives")])
    sent = time.monotonic()
    assert [delivery.id for delivery in consumer.received(waiting)] == ids
    assert time.monotonic() - sent < 10


#: Go 5.1.3 sends no NotifyClientTermination (client.go: the call stands under `err != nil`); it expires
UNREGISTERING = ("python", "node", "java", *GRPC_RUST)


@pytest.mark.clients(*UNREGISTERING)
def test_closed_consumer_is_unregistered(client: Client, admin: Admin) -> None:
    topic, group = admin.create_topic(), admin.create_group()
    consumer = client.simple(group, {topic: "*"})
    wait_until(lambda: len(admin.consumer_ids(group)) == 1)
    client.close(consumer)
    wait_until(lambda: not admin.consumer_ids(group))


@pytest.mark.clients(*UNREGISTERING)
def test_closed_producer_is_unregistered(client: Client, admin: Admin) -> None:
    topic = admin.create_topic()
    producer = client.producer(topic)
    producer.send([Message(topic, b"x")])
    wait_until(lambda: len(admin.producer_ids(topic, group=topic)) == 1)
    client.close(producer)
    wait_until(lambda: not admin.producer_ids(topic, group=topic))


def test_every_client_reads_every_client(open_client: Callable[[str], Client], admin: Admin) -> None:
    topic = admin.create_topic()
    clients = [open_client(variant) for variant in WITH_RUST]
    messages, ids = [], []
    for client in clients:
        own = varied_messages(topic, count=6)
        ids += client.producer(topic).send(own)
        messages += own
    for client in clients:
        assert_same(messages, ids, client.simple(admin.create_group(), {topic: "*"}).take(len(messages)))


@pytest.fixture(scope="module")
def received_once(
    client_process: Callable[[str], ClientProcess], admin: Admin, server: Server
) -> Iterator[Callable[[str], Unacked]]:
    """Per client a message that was received and not acknowledged: in all at once, so that one wait serves all."""
    clients: list[Client] = []
    unacked: dict[str, Unacked] = {}

    def receive(variant: str) -> Unacked:
        if not unacked:
            for other in WITH_RUST:
                if GRPC_VARIANTS[other].source.missing_tools():
                    continue
                topic, group = admin.create_topic(), admin.create_group()
                client = Client(
                    client_process(other), server.grpc, tls=GRPC_VARIANTS[other].tls, settle_s=server.settle_s
                )
                clients.append(client)
                client.producer(topic).send([Message(topic, b"not acknowledged")])
                consumer = client.simple(group, {topic: "*"})
                asked = time.monotonic()
                (delivery,) = consumer.receive(invisible_ms=MIN_INVISIBLE_MS)
                unacked[other] = Unacked(consumer, delivery, asked)
        return unacked[variant]

    yield receive
    for client in clients:
        client.close_all()


@pytest.mark.parametrize("variant", WITH_RUST)
def test_unacknowledged_message_is_delivered_again(
    client_process: Callable[[str], ClientProcess], received_once: Callable[[str], Unacked], variant: str
) -> None:
    client_process(variant)  # skips a language that is missing
    consumer, first, asked = received_once(variant)
    (again,) = consumer.take(1)
    assert time.monotonic() - asked >= MIN_INVISIBLE_MS / 1000
    assert (first.id, first.attempt) == (again.id, 1)
    assert again.attempt == 2


def wait_until(condition: Callable[[], bool], timeout_s: float = 5) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.02)
