"""One script of clients, told by Apache's server and by ours: what came how often, in which order, when about, and what
was buried. `DIFFERENCES` says where the two stories part, and why."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness.admin import Admin
from harness.clients import Client, ClientError, ClientProcess, Delivery, Message
from harness.grpc_variants import GRPC_DEFAULTS
from harness.programs import built_or_skipped
from harness.servers import Server, start_apache, start_saturn

#: chapter → why ours is another one; there is none
DIFFERENCES: dict[str, str] = {}
LEASE_MS = 10_000
ALWAYS = 1_000_000
WAITS_MS = (100, 100, 300)


class Story:
    """What one client lives through at one server."""

    def __init__(self, client: Client, admin: Admin) -> None:
        self._client, self._admin = client, admin
        self._lines: list[str] = []

    def tell(self) -> dict[str, list[str]]:
        """Its lines, by chapter."""
        chapters: tuple[Callable[[], None], ...] = (
            self.leases, self.order, self.delay, self.dead_letters, self.dead_letters_in_order, self.transactions,
        )  # fmt: skip
        told: dict[str, list[str]] = {}
        for chapter in chapters:
            self._lines = told[chapter.__name__] = []
            chapter()
        return told

    def _say(self, *words: object) -> None:
        self._lines.append(" ".join(map(str, words)))

    def _came(self, what: str, deliveries: list[Delivery]) -> None:
        self._say(what, *(f"{one.message.body.decode()}#{one.attempt}" for one in deliveries))

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

    def _wait(self, receive: Callable[[], list[Delivery]]) -> list[Delivery]:
        deadline = time.monotonic() + 40
        while time.monotonic() < deadline:
            if received := receive():
                return received
        return []


def _when(began: float, wanted_ms: int) -> str:
    """A class of time: these machines are shared."""
    late_ms = (time.monotonic() - began) * 1000 - wanted_ms
    return "too early" if late_ms < -1_000 else "in time" if late_ms < 8_000 else "late"


@pytest.fixture(params=["python", "go"])
def process(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ClientProcess]:
    source = GRPC_DEFAULTS[request.param].source
    process = ClientProcess(list(source.toolchain.run), built_or_skipped(source), tmp_path / "client", {})
    yield process
    process.kill()


def told_at(server: Server, process: ClientProcess) -> dict[str, list[str]]:
    admin = Admin(server.namesrv, server.broker)
    client = Client(process, server.grpc, tls="golang" in process.client, settle_s=server.settle_s)
    try:
        return Story(client, admin).tell()
    finally:
        client.close_all()
        admin.close()


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Server]]:
    ours = start_saturn(tmp_path_factory.mktemp("saturn"))
    apaches = start_apache(tmp_path_factory.mktemp("apache"))
    yield ours, apaches
    ours.stop()
    apaches.stop()


def test_both_tell_the_same_story(servers: tuple[Server, Server], process: ClientProcess) -> None:
    ours, apaches = (told_at(server, process) for server in servers)
    assert all(ours.values())
    assert {chapter: lines for chapter, lines in ours.items() if chapter not in DIFFERENCES} == {
        chapter: lines for chapter, lines in apaches.items() if chapter not in DIFFERENCES
    }
