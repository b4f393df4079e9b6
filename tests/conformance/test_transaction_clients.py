"""Transactions by every official client: committed, rolled back, asked about, given up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness.admin import Admin, RemotingConnection
from harness.clients import Client, ClientProcess, Message
from harness.grpc_variants import GRPC_VARIANTS
from harness.programs import built_or_skipped
from harness.remoting import RemotingClient
from harness.servers import Server, only_saturn

from saturnmq.testing.server import LocalServer

UPDATE_BROKER_CONFIG = 25
#: Apache's broker looks at what it was told when its current interval of 30 s is over
CHECKED_WITHIN_S = 45
GIVEN_UP = "TRANS_CHECK_MAX_TIME_TOPIC"


@pytest.fixture(scope="module", autouse=True)
def _impatient(server: Server) -> Iterator[None]:
    """Producers are asked after seconds, not after half a minute; by Apache's broker not before it has written what was
    ended, or it asks about that too."""

    def configure(time_out_ms: int, interval_ms: int) -> None:
        connection = RemotingConnection(server.broker)
        settings = f"transactionTimeOut={time_out_ms}\ntransactionCheckInterval={interval_ms}\n"
        connection.call(UPDATE_BROKER_CONFIG, settings.encode())
        connection.close()

    if server.is_apache:
        configure(4000, 5000)
    else:
        configure(1000, 500)
    yield
    configure(6000, 30_000)


# -------------------------------------------------------------------------------------------------- gRPC clients


def test_committed_and_rolled_back(client: Client, admin: Admin) -> None:
    topic, group = admin.create_topic("TRANSACTION", queues=1), admin.create_group()
    consumer = client.simple(group, {topic: "a"})
    producer = client.producer(topic, checks="UNKNOWN")
    rolled_back = producer.transact(Message(topic, b"rolled back", tag="a"), "ROLLBACK")
    committed = producer.transact(Message(topic, b"committed", tag="a", properties={"color": "red"}), "COMMIT")
    assert rolled_back != committed
    [delivery] = consumer.take(1)
    assert (delivery.id, delivery.message.body) == (committed, b"committed")
    assert delivery.message.properties.items() >= {"color": "red"}.items()
    assert not consumer.receive()


@pytest.mark.parametrize("resolution", ["COMMIT", "ROLLBACK"])
def test_a_producer_is_asked(client: Client, admin: Admin, resolution: str) -> None:
    topic, group = admin.create_topic("TRANSACTION", queues=1), admin.create_group()
    consumer = client.simple(group, {topic: "*"})
    producer = client.producer(topic, checks=resolution)
    left = producer.transact(Message(topic, b"left", keys=("k",)), "UNKNOWN")
    [checked] = producer.checked(1, CHECKED_WITHIN_S)
    assert (checked.id, checked.message.topic, checked.message.body) == (left, topic, b"left")
    assert [delivery.id for delivery in consumer.take(1, timeout_s=5)] == [left] * (resolution == "COMMIT")
    assert not producer.checked(1, timeout_s=3), "once is enough"


@pytest.fixture
def second(request: pytest.FixtureRequest, run_home: Path, server: Server) -> Iterator[Callable[[str], Client]]:
    """A variant → its client in another process, which the test may kill."""
    processes: list[ClientProcess] = []

    def start(name: str) -> Client:
        variant = GRPC_VARIANTS[name]
        command = list(variant.source.toolchain.run)
        processes.append(ClientProcess(command, built_or_skipped(variant.source), run_home / f"{name}-2", {}))
        return Client(processes[-1], server.grpc, tls=variant.tls)

    yield start
    for process in processes:
        process.kill()


@pytest.mark.parametrize("name", ["python", "go", "node", "java"])
def test_another_producer_is_asked_when_the_first_is_gone(
    name: str, open_client: Callable[[str], Client], second: Callable[[str], Client], admin: Admin
) -> None:
    """It ends the transaction on a connection that the half message did not come over."""
    topic, group = admin.create_topic("TRANSACTION", queues=1), admin.create_group()
    client, gone = open_client(name), second(name)
    left = gone.producer(topic, checks="ROLLBACK").transact(Message(topic, b"left"), "UNKNOWN")
    gone.process.kill()
    producer = client.producer(topic, checks="COMMIT")
    assert [checked.id for checked in producer.checked(1, CHECKED_WITHIN_S)] == [left]
    assert [delivery.id for delivery in client.simple(group, {topic: "*"}).take(1)] == [left]


# ---------------------------------------------------------------------------------------------- Remoting clients


def test_remoting_committed_and_rolled_back(remoting: RemotingClient, admin: Admin) -> None:
    topic, group = admin.create_topic("TRANSACTION", queues=1), admin.create_group()
    consumer = remoting.push(group, {topic: "*"})
    producer = remoting.producer(group="committing", checks="UNKNOWN")
    producer.transact(Message(topic, b"rolled back"), "ROLLBACK")
    committed = producer.transact(Message(topic, b"committed", tag="a", properties={"color": "red"}), "COMMIT")
    [delivery] = consumer.received(1)
    assert (delivery.id, delivery.message.body, delivery.message.tag) == (committed.id, b"committed", "a")
    assert delivery.message.properties["color"] == "red"
    assert delivery.system["TRAN_MSG"] == "true"
    assert not consumer.received(1, timeout_s=2)


@pytest.mark.parametrize("resolution", ["COMMIT", "ROLLBACK"])
def test_a_remoting_producer_is_asked(remoting: RemotingClient, admin: Admin, resolution: str) -> None:
    topic, group = admin.create_topic("TRANSACTION", queues=1), admin.create_group()
    consumer = remoting.push(group, {topic: "*"})
    producer = remoting.producer(group=f"asked-{resolution}", checks=resolution)
    left = producer.transact(Message(topic, b"left"), "UNKNOWN")
    [checked] = producer.checked(1, CHECKED_WITHIN_S)
    assert (checked.message.topic, checked.message.body) == (topic, b"left")
    assert [delivery.id for delivery in consumer.take(1, timeout_s=5)] == [left.id] * (resolution == "COMMIT")
    assert not producer.checked(1, timeout_s=3), "once is enough"


def test_another_remoting_producer_is_asked_when_the_first_is_gone(
    remoting: RemotingClient, second_remoting: RemotingClient, admin: Admin
) -> None:
    topic, group = admin.create_topic("TRANSACTION", queues=1), admin.create_group()
    gone = second_remoting.producer(group="leaving", checks="ROLLBACK")
    left = gone.transact(Message(topic, b"left"), "UNKNOWN")
    second_remoting.process.kill()
    second_remoting.opened.clear()
    # Java's producers join a broker when they send to it
    producer = remoting.producer(group="leaving", checks="COMMIT")
    producer.transact(Message(topic, b"other"), "ROLLBACK")
    assert [checked.message.body for checked in producer.checked(1, CHECKED_WITHIN_S)] == [b"left"]
    consumer = remoting.push(group, {topic: "*"})
    assert [delivery.id for delivery in consumer.take(1)] == [left.id]


# ------------------------------------------------------------------------------------- ours: a server of its own


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


def impatient(home: Path) -> LocalServer:
    settings = {"transactionTimeOut": 500, "transactionCheckInterval": 500, "transactionCheckMax": 2}
    options = [text for key, value in settings.items() for text in ("--set", f"{key}={value}")]
    return LocalServer(*options, dev=False, home=home)


@only_saturn
@pytest.mark.clients("python", "go", "node", "java")
def test_asked_about_too_often(client: Client, home: Path) -> None:
    with impatient(home) as local:
        client.endpoints = local.grpc
        admin = Admin(local.namesrv, local.broker)
        topic = admin.create_topic("TRANSACTION", queues=1)
        producer = client.producer(topic, checks="UNKNOWN")
        left = producer.transact(Message(topic, b"left"), "UNKNOWN")
        assert [checked.id for checked in producer.checked(2)] == [left, left]
        deadline = time.monotonic() + 20
        while admin.end_of_queue(GIVEN_UP) == 0:
            assert time.monotonic() < deadline
            threading.Event().wait(0.05)
        assert (admin.end_of_queue(GIVEN_UP), admin.end_of_queue(topic)) == (1, 0)
        assert not producer.checked(1, timeout_s=2)
        admin.close()
        client.close_all()


@only_saturn
@pytest.mark.clients("python", "go", "node", "java")
def test_a_restart_between_half_and_end(
    client: Client, second: Callable[[str], Client], request: pytest.FixtureRequest, home: Path
) -> None:
    with impatient(home) as local:
        admin = Admin(local.namesrv, local.broker)
        topic, group = admin.create_topic("TRANSACTION", queues=1), admin.create_group()
        admin.close()
        gone = second(request.node.callspec.params["client"])
        gone.endpoints = local.grpc
        left = gone.producer(topic, checks="UNKNOWN").transact(Message(topic, b"left"), "UNKNOWN")
        gone.process.kill()
        local.kill()
    with impatient(home) as local:
        client.endpoints = local.grpc
        producer = client.producer(topic, checks="COMMIT")
        assert [checked.id for checked in producer.checked(1)] == [left]
        assert [delivery.id for delivery in client.simple(group, {topic: "*"}).take(1)] == [left]
        client.close_all()
