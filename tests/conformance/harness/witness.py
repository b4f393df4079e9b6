"""Official simple consumers that are slow, late or forget what they got, while their server is killed and started
again: each writes down what it asked and was told, and `harness.testimony` judges these logs alone."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from harness.admin import Admin
from harness.clients import Client, ClientError, Delivery, Message
from harness.testimony import Answered, Asked, Crashed, Entry, Given, Group, Judge, Sent, read_entries
from saturnmq.testing.server import LocalServer

#: the shortest that every server takes
HIDDEN_MS = 10_000
INVALID_RECEIPT_HANDLE = 40_013
KEYS = ("k1", "k2", "k3")
#: nobody is given anything for so long: nothing is left
QUIET_S = HIDDEN_MS / 1000 + 8


def now_ms() -> float:
    return time.time_ns() / 1e6


class Log:
    """A file with an entry on each line. Owner: who writes it."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab")

    def write(self, entry: Entry) -> None:
        self._file.write(msgspec.json.encode(entry) + b"\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class Witness(threading.Thread):
    """One consumer of a group."""

    def __init__(self, client: Client, name: str, group: str, topic: str, log: Log, seed: int) -> None:
        super().__init__(name=name)
        self._group, self._log, self._chance = group, log, random.Random(seed)
        self._consumer = client.simple(group, {topic: "*"}, await_ms=5_000)
        #: Go's Ack is content with any answer (simple_consumer.go)
        self._is_deaf = "golang" in client.process.client
        #: by reference: how often its handle changed
        self._handles: dict[int, int] = {}
        #: what it has not settled, and when it wants to
        self._held: list[tuple[float, Delivery]] = []
        self._calls = 0
        #: from now on it acknowledges everything at once; it ends
        self.calm, self.stops = threading.Event(), threading.Event()
        self.last_s = time.monotonic()
        self.given = 0

    def run(self) -> None:
        while not self.stops.is_set() or self._held:
            if not self.stops.is_set():
                self._receive()
            now_s = time.monotonic()
            due = [delivery for when_s, delivery in self._held if when_s <= now_s or self.calm.is_set()]
            self._held = [held for held in self._held if held[1] not in due]
            for delivery in due:
                self._settle(delivery)
        self._log.close()

    def _receive(self) -> None:
        asked = self._asked("receive", hidden_ms=HIDDEN_MS)
        most = self._chance.randint(1, 8)
        try:
            received = self._consumer.receive(most, HIDDEN_MS)
        except ClientError as error:
            self._log.write(Answered(now_ms(), asked.call, None, why=str(error)))
            time.sleep(0.2)
            return
        given = [Given(one.message.body.decode(), self._handle(one), one.attempt) for one in received]
        self._log.write(Answered(now_ms(), asked.call, given=given))
        for one in received:
            self.last_s = now_s = time.monotonic()
            self.given += 1
            # at once, late but in time, too late
            late_s = 0 if self.calm.is_set() else self._chance.choices((0, 3, 13), (8, 2, 1))[0]
            self._held.append((now_s + late_s, one))

    def _settle(self, delivery: Delivery) -> None:
        kind = 1 if self.calm.is_set() else self._chance.random()
        if kind < 0.1:
            return  # it forgets it
        if kind < 0.2:
            asked = self._asked("change", self._handle(delivery), hidden_ms=HIDDEN_MS)
            if self._heard(asked, lambda: self._consumer.change_invisible(delivery, HIDDEN_MS), delivery):
                self._held.append((time.monotonic() + self._chance.choice((0, 12)), delivery))
            return
        asked = self._asked("ack", self._handle(delivery))
        self._heard(asked, lambda: self._consumer.ack([delivery]), well=None if self._is_deaf else True)

    def _heard(
        self, asked: Asked, act: Callable[[], None], changed: Delivery | None = None, well: bool | None = True
    ) -> bool:
        ok = well
        handle = why = ""
        try:
            act()
        except ClientError as error:
            ok, why = False if error.code == INVALID_RECEIPT_HANDLE else None, str(error)
        if ok and changed is not None:
            self._handles[changed.ref] = self._handles.get(changed.ref, 0) + 1
            handle = self._handle(changed)
        self._log.write(Answered(now_ms(), asked.call, ok, handle=handle, why=why))
        return bool(ok)

    def _handle(self, delivery: Delivery) -> str:
        """Clients do not show theirs."""
        return f"{self.name} {delivery.ref} {self._handles.get(delivery.ref, 0)}"

    def _asked(self, verb: str, handle: str = "", **more: Any) -> Asked:
        self._calls += 1
        asked = Asked(now_ms(), f"{self.name} {self._calls}", self._group, self.name, verb, handle, **more)
        self._log.write(asked)
        return asked


def kept_port_server(home: Path) -> LocalServer:
    """Its gRPC port is the same after every start."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    return LocalServer(f"--grpc-port={port}", dev=False, home=home)


def examine(
    local: LocalServer, clients: dict[str, Client], logs: Path, *, messages: int, kills: int, seed: int
) -> tuple[Judge, int]:
    """Let them consume, in any order and in order, and kill the server now and then. How much they were given."""
    chance = random.Random(seed)
    admin = Admin(local.namesrv, local.broker)
    topics = {"many": admin.create_topic(), "ordered": admin.create_topic("FIFO")}
    groups = {"many": admin.create_group(), "ordered": admin.create_group(fifo=True)}
    admin.close()
    own = Log(logs / "server and producer.log")
    witnesses = [
        Witness(
            client,
            f"{language} {kind}",
            groups[kind],
            topics[kind],
            Log(logs / f"{language} {kind}.log"),
            seed + number,
        )
        for number, (language, client) in enumerate(clients.items())
        for kind in topics
    ]
    producer = next(iter(clients.values())).producer(*topics.values())
    for witness in witnesses:
        witness.start()
    ends = sorted(chance.sample(range(messages // 5, messages), kills))
    for number in range(messages):
        if number in ends:
            own.write(Crashed(now_ms()))
            local.kill()
            local.start()
        for kind, topic in topics.items():
            _send(producer, own, topic, f"{kind} {number}", chance.choice(KEYS) if kind == "ordered" else "")
    for witness in witnesses:
        witness.calm.set()
    while time.monotonic() - max(one.last_s for one in witnesses) < QUIET_S:
        time.sleep(0.2)
    for witness in witnesses:
        witness.stops.set()
    for witness in witnesses:
        witness.join()
    own.close()
    judge = Judge({groups[kind]: Group((topics[kind],), kind == "ordered") for kind in topics})
    for entry in read_entries(path.read_bytes() for path in sorted(logs.iterdir())):
        judge.hear(entry)
    judge.end({})
    return judge, sum(witness.given for witness in witnesses)


def _send(producer: Any, log: Log, topic: str, name: str, key: str) -> None:
    """Once: a message that may be there twice has another name. Nobody is told of one that may not be there."""
    message = Message(topic, name.encode(), message_group=key or None)
    try:
        producer.send([message])
    except ClientError:
        time.sleep(0.2)
    else:
        log.write(Sent(now_ms(), name, topic, key))
