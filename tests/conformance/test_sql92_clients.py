"""Consumers that filter by properties get what their expression takes, from every client; a wrong one is explained.

`tests/oracle/test_sql92.py` compares the language itself with Apache's.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence

import pytest
from harness.admin import Admin
from harness.clients import Client, ClientError, Delivery, Message
from harness.grpc_variants import GRPC_DEFAULTS, GRPC_RUST
from harness.remoting import RemotingClient, RemotingMessage, wait_shared
from harness.servers import only_saturn

EXPRESSION = "price BETWEEN 10 AND 20 AND (colour IN ('red', 'blue') OR express IS NOT NULL) AND TAGS = 't'"
#: every property of a message, and whether EXPRESSION takes it
WANTED = [
    ({"price": "10", "colour": "red"}, True),
    ({"price": "21", "colour": "red"}, False),
    ({"price": "15", "colour": "green"}, False),
    ({"price": "15", "colour": "green", "express": "1"}, True),
    ({"price": "much", "colour": "red"}, False),
    ({"colour": "red"}, False),
    ({"price": "20", "colour": "blue", "émoji": "☄"}, True),
]
EXPECTED = [b"%d" % number for number, (_, wanted) in enumerate(WANTED) if wanted]
WRONG = "price > 10 AND colour LIKE 'r%'"
#: what a consumer is told of it
PLACE = "at character 23"
EXPLAINED = "for LIKE there are CONTAINS, STARTSWITH and ENDSWITH"


def bodies(deliveries: Sequence[Delivery]) -> list[bytes]:
    return sorted(delivery.message.body for delivery in deliveries)


def messages(topic: str) -> list[Message]:
    return [Message(topic, b"%d" % number, "t", properties=pairs) for number, (pairs, _) in enumerate(WANTED)]


# ------------------------------------------------------------------------------------------------------- Remoting


def test_push(remoting: RemotingClient, admin: Admin) -> None:
    topic = admin.create_topic()
    consumer = remoting.push(uuid.uuid4().hex, {topic: EXPRESSION}, sql=True)
    remoting.producer().send(messages(topic))
    assert bodies(consumer.received(len(EXPECTED))) == EXPECTED
    assert not consumer.take(1, timeout_s=0.5)


def test_push_wakes_for_what_it_wants_only(remoting: RemotingClient, admin: Admin) -> None:
    """It waits in a long poll of 15 s or more, while messages come that it does not want."""
    topic = admin.create_topic(queues=1)
    producer = remoting.producer()
    consumer = remoting.push(uuid.uuid4().hex, {topic: "n > 5"}, sql=True)
    producer.send([RemotingMessage(topic, b"%d" % n, properties={"n": str(n)}) for n in (1, 6)])
    assert bodies(consumer.received(1)) == [b"6"]
    producer.send([RemotingMessage(topic, b"%d" % n, properties={"n": str(n)}) for n in (2, 3)])
    time.sleep(0.2)
    begun = time.monotonic()
    producer.send([RemotingMessage(topic, b"7", properties={"n": "7"})])
    assert bodies(consumer.received(1)) == [b"7"]
    assert time.monotonic() - begun < 10


def test_what_failed_comes_again(remoting: RemotingClient, admin: Admin) -> None:
    """From the retry topic, which has no filter."""
    topic = admin.create_topic(queues=1)
    group = uuid.uuid4().hex
    before = remoting.push(group, {topic: "n > 5"}, sql=True)
    wait_shared(topic, 1, before)
    remoting.close(before)  # its retry topic is there from now on
    consumer = remoting.push(group, {topic: "n > 5"}, sql=True, failures=1)
    wait_shared(topic, 1, consumer)
    remoting.producer().send([RemotingMessage(topic, b"6", properties={"n": "6"})])
    first, again = consumer.received(2)
    assert (first.failed, again.failed, again.attempt) == (True, False, 2)


def test_lite_pull(java_remoting: RemotingClient, admin: Admin) -> None:
    """Go's pull consumer filters by tags only."""
    topic = admin.create_topic()
    java_remoting.producer().send(messages(topic))
    puller = java_remoting.pull(uuid.uuid4().hex, {topic: EXPRESSION}, sql=True)
    assert bodies(puller.take(len(EXPECTED))) == EXPECTED


def test_pull_with_a_filter_of_its_own(java_remoting: RemotingClient, admin: Admin) -> None:
    topic = admin.create_topic(queues=1)
    java_remoting.producer().send(messages(topic))
    assert bodies(java_remoting.classic(uuid.uuid4().hex).filtered(topic, EXPRESSION)) == EXPECTED


@only_saturn
def test_a_wrong_filter_is_explained(java_remoting: RemotingClient, admin: Admin) -> None:
    """Apache takes this one, for `price > 10 AND colour`."""
    topic = admin.create_topic(queues=1)
    puller = java_remoting.classic(uuid.uuid4().hex)
    with pytest.raises(ClientError, match=PLACE) as refused:
        puller.filtered(topic, WRONG)
    assert refused.value.code == 23
    assert EXPLAINED in refused.value.message


@only_saturn
def test_a_push_consumer_with_a_wrong_filter_does_not_start(java_remoting: RemotingClient, admin: Admin) -> None:
    """It asks before it starts (code 46)."""
    with pytest.raises(ClientError, match=PLACE) as refused:
        java_remoting.push(uuid.uuid4().hex, {admin.create_topic(): WRONG}, sql=True)
    assert EXPLAINED in refused.value.message


# ----------------------------------------------------------------------------------------------------------- gRPC


@pytest.mark.clients(*GRPC_DEFAULTS, *GRPC_RUST)
def test_grpc_simple_consumer(client: Client, admin: Admin) -> None:
    topic, group = admin.create_topic(), admin.create_group()
    consumer = client.simple(group, {topic: EXPRESSION}, sql=True)
    client.producer(topic).send(messages(topic))
    assert bodies(consumer.take(len(EXPECTED))) == EXPECTED


def test_grpc_push_consumer(client: Client, admin: Admin) -> None:
    topic, group = admin.create_topic(), admin.create_group()
    consumer = client.push(group, {topic: EXPRESSION}, sql=True)
    client.producer(topic).send(messages(topic))
    assert bodies(consumer.take(len(EXPECTED))) == EXPECTED
    assert not consumer.take(1, timeout_s=0.5)


def test_grpc_and_remoting_see_each_others_properties(
    open_client: Callable[[str], Client], java_remoting: RemotingClient, admin: Admin
) -> None:
    topic, group = admin.create_topic(), admin.create_group()
    grpc = open_client("python")
    consumer = grpc.simple(group, {topic: EXPRESSION}, sql=True)
    java_remoting.producer().send(messages(topic))
    assert bodies(consumer.take(len(EXPECTED))) == EXPECTED
    listener = java_remoting.push(uuid.uuid4().hex, {topic: EXPRESSION}, sql=True)
    grpc.producer(topic).send(messages(topic))
    assert bodies(listener.received(2 * len(EXPECTED))) == sorted(2 * EXPECTED)


@only_saturn
@pytest.mark.clients("python", "go", "java")
def test_grpc_client_with_a_wrong_filter(client: Client, admin: Admin) -> None:
    """It does not start, or does not receive."""
    topic, group = admin.create_topic(), admin.create_group()
    with pytest.raises(ClientError, match=PLACE):
        client.simple(group, {topic: WRONG}, sql=True).receive()
