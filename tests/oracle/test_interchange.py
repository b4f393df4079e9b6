"""The interchange matrix: {our, Apache's} NameServer × Broker × Proxy, one script for all eight.

What a step may do wrong is what it does wrong where all three are Apache's; that one runs first, and what it did is
printed. `-s` shows a line for every step.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import pytest
from harness.admin import GET_CONSUMER_LIST_BY_GROUP, Admin, AdminError, RemotingConnection
from harness.clients import Client, ClientError, ClientProcess, Delivery, Message, SimpleConsumer
from harness.grpc_variants import GRPC_VARIANTS
from harness.programs import built_or_skipped
from harness.remoting import RemotingClient, RemotingMessage, RemotingProcess, RemotingProducer
from harness.servers import APACHES, OURS, Server, start_cluster

from saturnmq.testing.server import ServerProcess

#: half messages are asked about soon, but not before Apache's broker has written which ones are over (every 3 s)
SETTINGS = {"transactionTimeOut": "6000", "transactionCheckInterval": "1000"}
#: of a step whose machine has two cores for three JVMs and a client
PATIENCE_S = 60
ALL_APACHES = (APACHES, APACHES, APACHES)
CELLS = sorted(product((APACHES, OURS), repeat=3), key=lambda cell: cell != ALL_APACHES)


@dataclass(frozen=True)
class Stand:
    """Running servers, and the client of a step."""

    server: Server
    admin: Admin
    grpc: Client
    remoting: RemotingClient


# ------------------------------------------------------------------------------------------------------ over gRPC


def send_and_receive(stand: Stand) -> None:
    topic, group = stand.admin.create_topic(), stand.admin.create_group()
    consumer = stand.grpc.simple(group, {topic: "a"})
    ids = stand.grpc.producer(topic).send([Message(topic, b"%d" % number, tag="a") for number in range(5)])
    deliveries = consumer.take(5, PATIENCE_S)
    assert sorted(delivery.id for delivery in deliveries) == sorted(ids)


def receive_by_push(stand: Stand) -> None:
    topic, group = stand.admin.create_topic(), stand.admin.create_group()
    consumer = stand.grpc.push(group, {topic: "*"})
    ids = stand.grpc.producer(topic).send([Message(topic, b"x") for _ in range(5)])
    assert sorted(delivery.id for delivery in consumer.take(5, PATIENCE_S)) == sorted(ids)


def order(stand: Stand) -> None:
    topic, group = stand.admin.create_topic("FIFO"), stand.admin.create_group(fifo=True)
    consumer = stand.grpc.push(group, {topic: "*"})
    ids = stand.grpc.producer(topic).send(
        [Message(topic, b"%d" % number, message_group="line") for number in range(10)]
    )
    assert [delivery.id for delivery in consumer.take(10, PATIENCE_S)] == ids


def delay(stand: Stand) -> None:
    topic, group = stand.admin.create_topic("DELAY"), stand.admin.create_group()
    consumer = stand.grpc.push(group, {topic: "*"})
    due_ms = time.time_ns() // 1_000_000 + 4_000
    stand.grpc.producer(topic).send([Message(topic, b"later", deliver_ms=due_ms)])
    assert len(consumer.take(1, PATIENCE_S)) == 1
    assert time.time_ns() // 1_000_000 >= due_ms


def transaction(stand: Stand) -> None:
    topic, group = stand.admin.create_topic("TRANSACTION", queues=1), stand.admin.create_group()
    consumer = stand.grpc.simple(group, {topic: "*"})
    producer = stand.grpc.producer(topic, checks="COMMIT")
    producer.transact(Message(topic, b"rolled back"), "ROLLBACK")
    committed = producer.transact(Message(topic, b"committed"), "COMMIT")
    left = producer.transact(Message(topic, b"left"), "UNKNOWN")
    assert [checked.id for checked in producer.checked(1, PATIENCE_S)] == [left]
    assert sorted(delivery.id for delivery in consumer.take(2, PATIENCE_S)) == sorted([committed, left])


def retry_to_dead_letters(stand: Stand) -> None:
    group = stand.admin.create_group(retries=1, waits_ms=[100, 100, 300])
    topic = stand.admin.create_topic()
    consumer = stand.grpc.push(group, {topic: "*"}, failures=1_000_000)
    stand.grpc.producer(topic).send([Message(topic, b"bad")])
    assert [delivery.attempt for delivery in consumer.take(2, PATIENCE_S)] == [1, 2]
    deadline = time.monotonic() + PATIENCE_S
    while not stand.admin.end_of_queue(f"%DLQ%{group}"):
        assert time.monotonic() < deadline, "it is not among the dead letters"
        time.sleep(0.05)


def other_invisible_time(stand: Stand) -> None:
    topic, group = stand.admin.create_topic(queues=1), stand.admin.create_group()
    consumer = stand.grpc.simple(group, {topic: "*"})
    stand.grpc.producer(topic).send([Message(topic, b"x")])
    [delivery] = received(consumer, invisible_ms=600_000)
    consumer.change_invisible(delivery, 1_000)
    [again] = consumer.take(1, PATIENCE_S)
    assert (again.id, again.attempt) == (delivery.id, 2)


def received(consumer: SimpleConsumer, invisible_ms: int) -> list[Delivery]:
    """Not acknowledged."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if deliveries := consumer.receive(invisible_ms=invisible_ms):
            return deliveries
    return []


# --------------------------------------------------------------------------------- through the Proxy by Remoting


def warm(stand: Stand) -> RemotingProducer:
    """One whose first message was taken: the first of a JVM takes longer than its client waits."""
    topic, producer = stand.admin.create_topic(), stand.remoting.producer()
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            producer.send([RemotingMessage(topic, b"x")])
        except ClientError:
            if time.monotonic() > deadline:
                raise
        else:
            return producer


def remoting_send_and_push(stand: Stand) -> None:
    topic, group = stand.admin.create_topic(), stand.admin.create_group()
    receipts = warm(stand).send([RemotingMessage(topic, b"%d" % number) for number in range(5)])
    deliveries = stand.remoting.push(group, {topic: "*"}).received(5, PATIENCE_S)
    assert sorted(delivery.id for delivery in deliveries) == sorted(receipt.id for receipt in receipts)


def remoting_pull(stand: Stand) -> None:
    topic, group = stand.admin.create_topic(), stand.admin.create_group()
    receipts = warm(stand).send([RemotingMessage(topic, b"%d" % number) for number in range(5)])
    deliveries = stand.remoting.pull(group, {topic: "*"}).take(5, PATIENCE_S)
    assert sorted(delivery.id for delivery in deliveries) == sorted(receipt.id for receipt in receipts)


GRPC_STEPS = (
    send_and_receive, receive_by_push, order, delay, transaction, retry_to_dead_letters, other_invisible_time,
)  # fmt: skip
REMOTING_STEPS = (remoting_send_and_push, remoting_pull)


# -------------------------------------------------------------------------------------------------------- the matrix


@pytest.fixture(scope="session")
def java(run_home: Path) -> Iterator[ClientProcess]:
    source = GRPC_VARIANTS["java-plaintext"].source
    process = ClientProcess(list(source.toolchain.run), built_or_skipped(source), run_home / "java", {})
    yield process
    process.kill()


@pytest.fixture(scope="session")
def baseline() -> dict[str, str]:
    """Step → what went wrong where all are Apache's; empty: nothing."""
    return {}


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: "-".join(cell))
def test_a_cell(
    cell: tuple[str, str, str],
    tmp_path: Path,
    java: ClientProcess,
    remoting_process: Callable[[str], RemotingProcess],
    baseline: dict[str, str],
) -> None:
    server = start_cluster(tmp_path, *cell, settings=SETTINGS)
    try:
        outcomes = run(server, java, remoting_process("java"))
    finally:
        server.stop()
    for name, outcome in outcomes.items():
        print(f"{' × '.join(cell)}: {name}: {outcome or 'done'}")
    if cell == ALL_APACHES:
        baseline |= outcomes
        return
    wrong = {
        name: outcome for name, outcome in outcomes.items() if outcome and kind(outcome) != kind(baseline.get(name, ""))
    }
    assert not wrong, f"see {server.log_path}"


def kind(outcome: str) -> str:
    """Of an error, without its words."""
    return outcome.partition(":")[0]


def run(server: Server, java: ClientProcess, remoting: RemotingProcess) -> Mapping[str, str]:
    outcomes = {}
    admin = Admin(server.namesrv, server.broker)
    for step in GRPC_STEPS + (REMOTING_STEPS if server.proxy_remoting else ()):
        grpc = Client(java, server.grpc, tls=False, settle_s=server.settle_s)
        through_proxy = RemotingClient(remoting, server.proxy_remoting)
        outcomes[step.__name__] = outcome_of(partial(step, Stand(server, admin, grpc, through_proxy)))
        grpc.close_all()
        through_proxy.close_all()
    admin.close()
    return outcomes


def outcome_of(step: Callable[[], None]) -> str:
    """Empty when it went well."""
    try:
        step()
    except Exception as error:  # noqa: BLE001 - it is what is compared
        return f"{type(error).__name__}: {error}"
    return ""


def test_proxies_know_of_one_anothers_clients(tmp_path: Path, java: ClientProcess) -> None:
    """Ours and Apache's, over one Broker of ours."""
    server = start_cluster(tmp_path, proxy=APACHES)
    files = tmp_path / "ours"
    files.mkdir()
    ports = ("--grpc-port=0", "--proxy-remoting-port=0", "--http-port=0", f"--data-dir={files}")
    ours = ServerProcess("proxy", "-n", server.namesrv, *ports, home=files)
    ours.start()
    admin = Admin(server.namesrv, server.broker)
    try:
        topic = admin.create_topic()
        for endpoints, other in (
            (server.grpc, ours.ready["proxy_remoting"]),
            (ours.ready["grpc"], server.proxy_remoting),
        ):
            group = admin.create_group()
            client = Client(java, endpoints, tls=False)
            client.push(group, {topic: "*"})
            wait_for_members(other, group, 1)
            client.close_all()
            wait_for_members(other, group, 0)
    finally:
        admin.close()
        ours.stop()
        server.stop()


def wait_for_members(proxy: str, group: str, count: int) -> None:
    """As this Proxy tells it."""
    deadline = time.monotonic() + PATIENCE_S
    while len(members(proxy, group)) != count:
        assert time.monotonic() < deadline, f"{proxy} knows {members(proxy, group)}"
        time.sleep(0.2)


def members(proxy: str, group: str) -> list[str]:
    connection = RemotingConnection(proxy)
    try:
        return list(json.loads(connection.call(GET_CONSUMER_LIST_BY_GROUP, consumerGroup=group))["consumerIdList"])
    except AdminError:
        return []
    finally:
        connection.close()
