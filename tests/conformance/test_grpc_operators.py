"""Operators see consumers over gRPC as they see others, through the broker's Remoting port."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from harness.admin import Admin, AdminError
from harness.clients import Client, Message
from harness.forwarder import Forwarder
from harness.operators import Operator, wait_until
from harness.remoting import RemotingClient
from harness.servers import Server, only_saturn

CONSUME_MSG_TIMEOUT = 207


@pytest.fixture
def operator(server: Server) -> Iterator[Operator]:
    operator = Operator(server.broker)
    yield operator
    operator.close()


def test_a_consumer_and_how_far_its_group_has_come(client: Client, admin: Admin, operator: Operator) -> None:
    topic, group = admin.create_topic(queues=1), admin.create_group()
    client.producer(topic).send([Message(topic, b"%d" % number, tag="a") for number in range(3)])
    consumer = client.push(group, {topic: "a || b"})
    assert len(consumer.take(3)) == 3
    connection = operator.connection(group)
    [member] = connection["connectionSet"]
    assert member["clientId"] in admin.consumer_ids(group)
    assert member["clientAddr"].startswith("127.0.0.1:")
    assert connection["subscriptionTable"][topic]["subString"] == "a || b"
    done = {"brokerOffset": 3, "consumerOffset": 3, "pullOffset": 3}
    wait_until(lambda: operator.progress(group, topic)[0], lambda queue: queue.items() >= done.items())


@only_saturn  # Apache's route leads past the load balancer
@pytest.mark.parametrize(
    ("greeting", "told"),
    [
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 1001 8081\r\n", "192.0.2.1:1001"),
        (
            b"\r\n\r\n\0\r\nQUIT\n\x21\x21\0\x24" + bytes(15) + b"\1" + bytes(15) + b"\2" + b"\3\xe9\x1f\x91",
            "[::1]:1001",
        ),
    ],
    ids=["1", "2"],
)
@pytest.mark.clients("python", "java")
def test_a_consumer_behind_a_load_balancer(
    client: Client, admin: Admin, operator: Operator, server: Server, greeting: bytes, told: str
) -> None:
    """It says in HAProxy's PROXY protocol for whom it connects; one client speaks TLS, one does not."""
    topic, group = admin.create_topic(), admin.create_group()
    with Forwarder(server.grpc, greeting) as load_balancer:
        client.endpoints = f"127.0.0.1:{load_balancer.port}"
        consumer = client.push(group, {topic: "*"})
        client.producer(topic).send([Message(topic, b"x")])
        assert len(consumer.take(1)) == 1
        [member] = operator.connection(group)["connectionSet"]
        assert member["clientAddr"] == told
        client.close_all()


@only_saturn
@pytest.mark.clients("python")
def test_tools_find_its_group(client: Client, admin: Admin) -> None:
    """By the route of its retry topic, with which mqadmin begins. At Apache there is none before something fails."""
    topic, group = admin.create_topic(), admin.create_group()
    client.push(group, {topic: "*"})
    admin.wait_for_route(f"%RETRY%{group}")


def test_a_group_goes_back_in_time(client: Client, admin: Admin, operator: Operator) -> None:
    topic, group = admin.create_topic(queues=1), admin.create_group()
    client.producer(topic).send([Message(topic, b"%d" % number) for number in range(3)])
    consumer = client.push(group, {topic: "*"})
    assert len(consumer.take(3)) == 3
    wait_until(lambda: operator.progress(group, topic)[0], lambda queue: queue["consumerOffset"] == 3)
    assert operator.reset(group, topic, 0) == {0: 0}
    assert sorted(delivery.message.body for delivery in consumer.take(3)) == [b"0", b"1", b"2"]


@only_saturn
@pytest.mark.clients("java", "go")
def test_a_consumer_says_where_its_threads_are(client: Client, admin: Admin, operator: Operator) -> None:
    topic, group = admin.create_topic(), admin.create_group()
    client.push(group, {topic: "*"})
    [client_id] = wait_until(lambda: admin.consumer_ids(group), bool)
    info = json.loads(operator.running_info(group, client_id, stack=True))
    assert len(info["jstack"].splitlines()) > 10
    assert info["properties"]["PROP_CONSUME_TYPE"] == "CONSUME_PASSIVELY"
    assert [subscription["topic"] for subscription in info["subscriptionSet"]] == [topic]


@only_saturn
@pytest.mark.clients("python")
def test_a_consumer_that_does_not_say_where_its_threads_are(client: Client, admin: Admin, operator: Operator) -> None:
    topic, group = admin.create_topic(), admin.create_group()
    client.push(group, {topic: "*"})
    [client_id] = wait_until(lambda: admin.consumer_ids(group), bool)
    assert "jstack" not in json.loads(operator.running_info(group, client_id, stack=False))
    with pytest.raises(AdminError, match="Timeout") as error:
        operator.running_info(group, client_id, stack=True)
    assert error.value.code == CONSUME_MSG_TIMEOUT


@pytest.mark.clients("java")
def test_a_message_is_handed_to_a_consumer(
    client: Client, java_remoting: RemotingClient, admin: Admin, operator: Operator
) -> None:
    """Java's alone takes one; it comes past its queue, once more."""
    topic, group = admin.create_topic(), admin.create_group()
    consumer = client.push(group, {topic: "*"})
    [receipt] = java_remoting.producer().send([Message(topic, b"again", "tag", ("key",), {"color": "red"})])
    assert len(consumer.take(1)) == 1
    [client_id] = admin.consumer_ids(group)
    result = operator.consume(group, client_id, receipt.offset_id, topic)
    assert (result["consumeResult"], result["remark"]) == ("CR_SUCCESS", "from gRPC client")
    [again] = consumer.take(1)
    assert (again.message.body, again.message.tag, again.message.properties) == (b"again", "tag", {"color": "red"})
