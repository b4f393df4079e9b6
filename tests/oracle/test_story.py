"""One script of clients, told by Apache's server and by ours: what came how often, in which order, when about, and what
was buried. `DIFFERENCES` says where the two stories part, and why."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from harness.admin import Admin, RemotingConnection
from harness.clients import Client, ClientError, ClientProcess, Delivery, Message
from harness.grpc_variants import GRPC_DEFAULTS
from harness.programs import built_or_skipped
from harness.remoting import RemotingClient, RemotingMessage, RemotingProcess, RemotingPush, lived_before
from harness.remoting_fixtures import client_of
from harness.servers import Server, start_apache, start_saturn

#: chapter → why ours is another one; there is none
DIFFERENCES: dict[str, str] = {}
LEASE_MS = 10_000
ALWAYS = 1_000_000
#: Apache's broker looks at what it was told when its current interval of 30 s is over
CHECKED_WITHIN_S = 60
UPDATE_BROKER_CONFIG = 25
WAITS_MS = (100, 100, 300)


class Story:
    """What one client lives through at one server."""

    def __init__(self, admin: Admin) -> None:
        self._admin = admin
        self._lines: list[str] = []

    @property
    def chapters(self) -> tuple[Callable[[], None], ...]:
        raise NotImplementedError

    def tell(self) -> dict[str, list[str]]:
        """Its lines, by chapter."""
        told: dict[str, list[str]] = {}
        for chapter in self.chapters:
            self._lines = told[chapter.__name__] = []
            chapter()
        return told

    def _say(self, *words: object) -> None:
        self._lines.append(" ".join(map(str, words)))

    def _came(self, what: str, deliveries: list[Delivery]) -> None:
        self._say(what, *(f"{one.message.body.decode()}#{one.attempt}" for one in deliveries))


class GrpcStory(Story):
    def __init__(self, client: Client, admin: Admin) -> None:
        super().__init__(admin)
        self._client = client

    @property
    def chapters(self) -> tuple[Callable[[], None], ...]:
        return (self.leases, self.order, self.delay, self.dead_letters, self.dead_letters_in_order, self.transactions)

    def _send(self, topic: str, *names: str, key: str | None = None, deliver_ms: int | None = None) -> None:
        messages = [Message(topic, name.encode(), message_group=key, deliver_ms=deliver_ms) for name in names]
        self._client.producer(topic).send(messages)

    def leases(self) -> None:
        topic, group = self._admin.create_topic(queues=1), self._admin.create_group()
        consumer = self._client.simple(group, {topic: "*"}, await_ms=5_000)
        consumer.receive(1)  # where a new group begins is not the matter here
        self._send(topic, "a", "b", "c")
        held = consumer.receive(16, LEASE_MS)
        began = time.monotonic()
        self._came("first", held)
        consumer.ack(held[:1])
        consumer.change_invisible(held[1], 2 * LEASE_MS)
        again = self._wait(lambda: consumer.receive(16, 3 * LEASE_MS))
        self._came(_when(began, LEASE_MS), again)
        again = self._wait(lambda: consumer.receive(16, 3 * LEASE_MS))
        self._came(_when(began, 2 * LEASE_MS), again)
        try:
            consumer.change_invisible(held[2], LEASE_MS)
        except ClientError as error:
            self._say("a handle that is over:", error.code)

    def order(self) -> None:
        topic, group = self._admin.create_topic("FIFO", queues=1), self._admin.create_group(fifo=True)
        consumer = self._client.simple(group, {topic: "*"}, await_ms=5_000)
        consumer.receive(1)
        self._send(topic, "a", "b", "c", key="k")
        held = consumer.receive(1, LEASE_MS)
        began = time.monotonic()
        self._came("first", held)
        self._came("while it is held", consumer.receive(1, LEASE_MS))
        held = self._wait(lambda: consumer.receive(1, LEASE_MS))
        self._came(_when(began, LEASE_MS), held)
        for _ in range(3):
            consumer.ack(held)
            held = consumer.receive(1, LEASE_MS)
            self._came("then", held)

    def delay(self) -> None:
        topic, group = self._admin.create_topic("DELAY", queues=1), self._admin.create_group()
        consumer = self._client.simple(group, {topic: "*"}, await_ms=5_000)
        consumer.receive(1)
        began = time.monotonic()
        due_s = int(time.time()) + 4
        lead_ms = int((due_s - time.time()) * 1000)
        self._send(topic, "late", deliver_ms=due_s * 1000)
        self._send(topic, "past", deliver_ms=(due_s - 60) * 1000)
        self._came("at once", self._wait(lambda: consumer.take(1)))
        taken = self._wait(lambda: consumer.take(1))
        self._came(_when(began, lead_ms), taken)

    def dead_letters(self) -> None:
        topic = self._admin.create_topic(queues=1)
        group = self._admin.create_group(retries=1, waits_ms=WAITS_MS)
        consumer = self._client.push(group, {topic: "*"}, failures=ALWAYS)
        self._send(topic, "a")
        self._came("tried", consumer.take(3, timeout_s=15))
        self._say("buried", self._admin.end_of_queue(f"%DLQ%{group}"))

    def dead_letters_in_order(self) -> None:
        topic = self._admin.create_topic("FIFO", queues=1)
        group = self._admin.create_group(fifo=True, retries=1, waits_ms=WAITS_MS)
        consumer = self._client.push(group, {topic: "*"}, failures=ALWAYS)
        self._send(topic, "a", "b", key="k")
        tried = consumer.take(5, timeout_s=15)
        self._say("tried", *sorted(one.message.body.decode() for one in tried))
        self._say("buried", self._admin.end_of_queue(f"%DLQ%{group}"))

    def transactions(self) -> None:
        topic, group = self._admin.create_topic("TRANSACTION", queues=1), self._admin.create_group()
        consumer = self._client.simple(group, {topic: "*"}, await_ms=5_000)
        consumer.receive(1)
        producer = self._client.producer(topic, checks="COMMIT")
        producer.transact(Message(topic, b"rolled back"), "ROLLBACK")
        producer.transact(Message(topic, b"committed"), "COMMIT")
        self._came("committed", consumer.take(2, timeout_s=8))
        producer.transact(Message(topic, b"left"), "UNKNOWN")
        self._came("asked about", producer.checked(1, CHECKED_WITHIN_S))
        self._came("committed then", self._wait(lambda: consumer.take(1)))

    def _wait(self, receive: Callable[[], list[Delivery]]) -> list[Delivery]:
        deadline = time.monotonic() + 40
        while time.monotonic() < deadline:
            if received := receive():
                return received
        return []


class RemotingStory(Story):
    def __init__(self, client: RemotingClient, admin: Admin) -> None:
        super().__init__(admin)
        self._client = client

    @property
    def chapters(self) -> tuple[Callable[[], None], ...]:
        return (self.order, self.delay, self.dead_letters, self.transactions)

    def _push(self, topic: str, **more: Any) -> tuple[str, RemotingPush]:
        """A group's consumer, which knows its retry topic. Its group comes first."""
        group = self._admin.create_group()
        lived_before(self._client, group, topic)
        return group, self._client.push(group, {topic: "*"}, **more)

    def order(self) -> None:
        topic = self._admin.create_topic("FIFO")
        _, consumer = self._push(topic, orderly=True, failures=2)
        self._client.producer().send([RemotingMessage(topic, name, queue_id=0) for name in (b"a", b"b", b"c")])
        self._came("tried", consumer.take(9))

    def delay(self) -> None:
        topic = self._admin.create_topic("DELAY")
        _, consumer = self._push(topic)
        began, due_s = time.monotonic(), int(time.time()) + 8
        lead_ms = int((due_s - time.time()) * 1000)
        timed = [RemotingMessage(topic, b"timed", timers={"TIMER_DELIVER_MS": str(due_s * 1000)})]
        past = [RemotingMessage(topic, b"past", timers={"TIMER_DELIVER_MS": str(due_s * 1000 - 60_000)})]
        self._client.producer().send([*timed, RemotingMessage(topic, b"level", delay_level=2), *past])
        self._came("at once", consumer.take(1))
        for wanted_ms in (5_000, lead_ms):
            taken = consumer.take(1)
            self._came(_when(began, wanted_ms), taken)

    def dead_letters(self) -> None:
        topic = self._admin.create_topic()
        group, consumer = self._push(topic, failures=ALWAYS, retry_level=1)
        began = time.monotonic()
        self._client.producer().send([Message(topic, b"a")])
        taken = consumer.take(17, timeout_s=90)
        self._came(_when(began, 16_000), taken)
        self._came("then", consumer.take(1, timeout_s=3))
        self._say("buried", self._admin.end_of_queue(f"%DLQ%{group}"))

    def transactions(self) -> None:
        topic = self._admin.create_topic("TRANSACTION")
        group, consumer = self._push(topic)
        producer = self._client.producer(group=f"{group}-producers", checks="COMMIT")
        for message, resolution in ((b"rolled back", "ROLLBACK"), (b"committed", "COMMIT"), (b"left", "UNKNOWN")):
            producer.transact(Message(topic, message), resolution)
        self._came("committed", consumer.take(1))
        self._came("asked about", producer.checked(1, CHECKED_WITHIN_S))
        self._came("committed then", consumer.take(1))
        self._came("then", consumer.take(1, timeout_s=3))


def _when(began: float, wanted_ms: int) -> str:
    """A class of time: these machines are shared."""
    late_ms = (time.monotonic() - began) * 1000 - wanted_ms
    return "too early" if late_ms < -1_000 else "in time" if late_ms < 8_000 else "late"


def assert_same(ours: dict[str, list[str]], apaches: dict[str, list[str]]) -> None:
    assert all(ours.values())
    assert {chapter: lines for chapter, lines in ours.items() if chapter not in DIFFERENCES} == {
        chapter: lines for chapter, lines in apaches.items() if chapter not in DIFFERENCES
    }


@contextmanager
def admin_of(server: Server) -> Iterator[Admin]:
    """Producers are asked after seconds; by Apache's broker not before it has written what was ended."""
    connection = RemotingConnection(server.broker)
    connection.call(UPDATE_BROKER_CONFIG, b"transactionTimeOut=4000\ntransactionCheckInterval=5000\n")
    connection.close()
    admin = Admin(server.namesrv, server.broker)
    yield admin
    admin.close()


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Server]]:
    ours = start_saturn(tmp_path_factory.mktemp("saturn"))
    apaches = start_apache(tmp_path_factory.mktemp("apache"))
    yield ours, apaches
    ours.stop()
    apaches.stop()


@pytest.mark.parametrize("language", ["python", "go", "java"])
def test_both_tell_the_same_story(servers: tuple[Server, Server], language: str, tmp_path: Path) -> None:
    def told_at(server: Server) -> dict[str, list[str]]:
        client = Client(process, server.grpc, tls=variant.tls, settle_s=server.settle_s)
        try:
            with admin_of(server) as admin:
                return GrpcStory(client, admin).tell()
        finally:
            client.close_all()

    variant = GRPC_DEFAULTS[language]
    command, built = list(variant.source.toolchain.run), built_or_skipped(variant.source)
    process = ClientProcess(command, built, tmp_path / "client", {})
    try:
        assert_same(*map(told_at, servers))
    finally:
        process.kill()


def test_both_tell_java_the_same_over_remoting(
    servers: tuple[Server, Server], remoting_process: Callable[[str], RemotingProcess]
) -> None:
    def told_at(server: Server) -> dict[str, list[str]]:
        with client_of(remoting_process("java"), server) as client, admin_of(server) as admin:
            return RemotingStory(client, admin).tell()

    assert_same(*map(told_at, servers))
