"""The official Remoting clients: the line protocol of `clients` with the words that only their programs know.

{"do": "open", "what": "producer", …, "group": "g", "vip": false, "trace": false}
{"do": "open", "what": "push", …, "model": "CLUSTERING" | "BROADCASTING", "orderly": false, "retry_level": 1,
    "begin": "FIRST" | "LAST" | "20260131235959", "trace": false,
    "replier": "p"}                                      its listener answers each message through the producer p
{"do": "open", "what": "push", …, "popping": true, "invisible_ms": 5000}      the broker says which queues, and whether
                                                         to pop; Java only
{"do": "open", "what": "push", …, "holding": true}       its listener does not return; Java only
{"do": "open", "what": "pull", …, "assigned": false}     assigned: the client is told which queue to read
{"do": "open", "what": "classic", …, "group": "g"}       pulls with a filter of its own each time; Java only
{"do": "send", …, "mode": … | "one_way" | "batch"}       → {"receipts": [RECEIPT]}, one for a batch, none one-way
{"do": "transact", "name": "p", "message": MESSAGE, "resolution": RESOLUTION}              → {"receipt": RECEIPT}
{"do": "request", "name": "p", "message": MESSAGE, "timeout_ms": 3000}                     → {"message": DELIVERY}
{"do": "poll", "name": "c", "timeout_ms": 1000}                                            → {"messages": […]}
{"do": "read", "name": "c", "topic": "t", "queue_id": 0, "offset": 5, "timeout_ms": 1000}  → {"messages": […]}
{"do": "filter", "name": "c", "topic": "t", "queue_id": 0, "expression": "a > 5"}          → {"messages": […]}
{"do": "offsets", "name": "p", "topic": "t", "queue_id": 0, "stored_ms": 0}                → {"min": 0, "max": …}

{"event": "assigned", "name": "c", "topic": "t", "queues": [0, 1]}        the rebalance of a consumer gave it these
"""

from __future__ import annotations

import base64
import itertools
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from harness.clients import ClientProcess, Delivery, Message, PushConsumer, taken
from saturnmq.kernel.properties import RESERVED

POLL_MS = 500


@dataclass(frozen=True)
class RemotingMessage(Message):
    """A message to send, with what only Remoting clients can ask for."""

    delay_level: int = 0
    #: TIMER_DELAY_SEC, TIMER_DELAY_MS, TIMER_DELIVER_MS
    timers: Mapping[str, str] = field(default_factory=dict)
    queue_id: int | None = None

    def fields(self) -> dict[str, Any]:
        fields = {**super().fields(), "timers": dict(self.timers)}
        if self.delay_level:
            fields["delay_level"] = self.delay_level
        if self.queue_id is not None:
            fields["queue_id"] = self.queue_id
        return fields


@dataclass(frozen=True)
class Received(Delivery):
    """A message as a Remoting client sees it: the record's own properties lie open, apart from the user's."""

    queue_id: int = 0
    queue_offset: int = 0
    system: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Receipt:
    status: str
    #: the id of the message, made by the client; ids of a batch are joined by commas
    id: str
    offset_id: str
    queue_id: int
    queue_offset: int
    #: Java's client of version 5 only
    recall_handle: str | None = None


def received_of(fields: Mapping[str, Any], *, failed: bool = False) -> Received:
    properties = fields["properties"]
    return Received(
        id=fields.get("id", ""),
        message=Message(
            topic=fields["topic"],
            body=base64.b64decode(fields["body"]),
            tag=fields.get("tag") or None,
            keys=tuple(fields["keys"] or ()),
            properties={key: value for key, value in properties.items() if key not in RESERVED},
        ),
        attempt=fields.get("attempt", 1),
        corrupted=False,
        failed=failed,
        queue_id=fields.get("queue_id", 0),
        queue_offset=fields.get("queue_offset", 0),
        system={key: value for key, value in properties.items() if key in RESERVED},
    )


class RemotingProcess(ClientProcess):
    """A running Remoting client program; knows the queues of each of its consumers."""

    def __init__(self, command: list[str], folder: Path, home: Path, environment: Mapping[str, str]) -> None:
        self.assignments: dict[tuple[str, str], frozenset[int]] = {}
        self.assigned = threading.Condition()
        super().__init__(command, folder, home, environment)

    def _take(self, line: dict[str, Any]) -> None:
        match line.get("event"):
            case "delivered" | "checked":
                self.deliveries(line["name"]).put(received_of(line["message"], failed=line.get("failed", False)))
            case "assigned":
                with self.assigned:
                    self.assignments[line["name"], line["topic"]] = frozenset(line["queues"])
                    self.assigned.notify_all()
            case _:
                super()._take(line)


class RemotingProducer:
    def __init__(self, process: RemotingProcess, name: str) -> None:
        self.process = process
        self.name = name

    def send(self, messages: Iterable[Message], mode: str = "sync") -> list[Receipt]:
        fields = [message.fields() for message in messages]
        answer = self.process.call("send", name=self.name, mode=mode, messages=fields)
        return [Receipt(**receipt) for receipt in answer["receipts"]]

    def transact(self, message: Message, resolution: str) -> Receipt:
        """Send a half message, and COMMIT it, ROLLBACK or leave it (UNKNOWN)."""
        answer = self.process.call("transact", name=self.name, message=message.fields(), resolution=resolution)
        return Receipt(**answer["receipt"])

    def checked(self, count: int, timeout_s: float = 20) -> list[Delivery]:
        """The half messages that it was asked about, until there are `count`, or the time is over."""
        return taken(self.process, self.name, count, timeout_s)

    def request(self, message: Message, timeout_ms: int = 10_000) -> Received:
        answer = self.process.call("request", name=self.name, message=message.fields(), timeout_ms=timeout_ms)
        return received_of(answer["message"])

    def recall(self, topic: str, handle: str) -> str:
        """The message's id. Java's client of version 5 only."""
        return str(self.process.call("recall", name=self.name, topic=topic, handle=handle)["id"])

    def offsets(self, topic: str, queue_id: int, stored_ms: int) -> dict[str, int]:
        """`min`, `max`, `at` (the first stored at or after `stored_ms`), `earliest_ms`. The Java client only."""
        return self.process.call("offsets", name=self.name, topic=topic, queue_id=queue_id, stored_ms=stored_ms)


class RemotingPush(PushConsumer):
    process: RemotingProcess

    def queues(self, topic: str) -> frozenset[int]:
        """The queues of the last rebalance."""
        with self.process.assigned:
            return self.process.assignments.get((self.name, topic), frozenset())

    def received(self, count: int, timeout_s: float = 20) -> list[Received]:
        """As `take`."""
        return [delivery for delivery in self.take(count, timeout_s) if isinstance(delivery, Received)]


class Puller:
    def __init__(self, process: RemotingProcess, name: str) -> None:
        self.process = process
        self.name = name

    def take(self, count: int, timeout_s: float = 20) -> list[Received]:
        """Poll until `count` messages have come, or the time is over."""
        taken: list[Received] = []
        deadline = time.monotonic() + timeout_s
        while len(taken) < count and time.monotonic() < deadline:
            answer = self.process.call("poll", name=self.name, timeout_ms=POLL_MS)
            taken += [received_of(fields) for fields in answer["messages"]]
        return taken

    def read(self, topic: str, queue_id: int, offset: int) -> list[Received]:
        """What lies in the queue from `offset` on: at least the first of it."""
        answer = self.process.call(
            "read", name=self.name, topic=topic, queue_id=queue_id, offset=offset, timeout_ms=10_000
        )
        return [received_of(fields) for fields in answer["messages"]]


class ClassicPuller:
    """The Java client only."""

    def __init__(self, process: RemotingProcess, name: str) -> None:
        self.process = process
        self.name = name

    def filtered(self, topic: str, expression: str, queue_id: int = 0) -> list[Received]:
        """What an SQL92 filter takes of a queue. Raises ClientError when the broker does not understand it."""
        answer = self.process.call("filter", name=self.name, topic=topic, queue_id=queue_id, expression=expression)
        return [received_of(fields) for fields in answer["messages"]]


RemotingOpened = RemotingProducer | RemotingPush | Puller | ClassicPuller
T = TypeVar("T", RemotingProducer, RemotingPush, Puller, ClassicPuller)


class RemotingClient:
    """What a test holds of a Remoting client process: opens producers and consumers and closes them at the end."""

    _numbers = itertools.count(1)

    def __init__(self, process: RemotingProcess, namesrv: str) -> None:
        self.process = process
        self.namesrv = namesrv
        self.opened: list[RemotingOpened] = []

    def producer(
        self, *, vip: bool = False, trace: bool = False, group: str = "remoting-producers", **more: Any
    ) -> RemotingProducer:
        """`trace`: it tells of each message in RMQ_SYS_TRACE_TOPIC; Java's alone."""
        return self._open(RemotingProducer, "producer", group=group, vip=vip, trace=trace, **more)

    def push(
        self,
        group: str,
        subscriptions: Mapping[str, str],
        *,
        failures: int = 0,
        retry_level: int = 1,
        orderly: bool = False,
        broadcasting: bool = False,
        begin: str = "FIRST",
        trace: bool = False,
        replier: RemotingProducer | None = None,
        **more: Any,
    ) -> RemotingPush:
        """`retry_level`: the delay level of a message whose consumption failed; 1 is a second, -1 the dead letters.
        `begin`: where a new group does, FIRST, LAST or a local time like 20260131235959. `trace`: see `producer`."""
        return self._open(
            RemotingPush,
            "push",
            group=group,
            subscriptions=dict(subscriptions),
            failures=failures,
            retry_level=retry_level,
            orderly=orderly,
            model="BROADCASTING" if broadcasting else "CLUSTERING",
            begin=begin,
            trace=trace,
            **({"replier": replier.name} if replier else {}),
            **more,
        )

    def pull(self, group: str, subscriptions: Mapping[str, str], *, assigned: bool = False, **more: Any) -> Puller:
        return self._open(Puller, "pull", group=group, subscriptions=dict(subscriptions), assigned=assigned, **more)

    def classic(self, group: str) -> ClassicPuller:
        return self._open(ClassicPuller, "classic", group=group)

    def _open(self, kind: type[T], what: str, **fields: Any) -> T:
        name = f"{what}-{next(self._numbers)}"
        self.process.call("open", what=what, name=name, endpoints=self.namesrv, **fields)
        opened = kind(self.process, name)
        self.opened.append(opened)
        return opened

    def close(self, opened: RemotingOpened) -> None:
        self.opened.remove(opened)
        self.process.call("close", name=opened.name)

    def close_all(self) -> None:
        """Closes what a test left open. Nobody waits for it: the Java client's own shutdown takes up to 3 s."""
        for opened in self.opened:
            self.process.start("close", name=opened.name)
        self.opened.clear()


def wait_shared(topic: str, queues: int, *consumers: RemotingPush, timeout_s: float = 20) -> None:
    """Until each queue of the topic belongs to exactly one of the consumers, and each consumer has one at least."""
    deadline = time.monotonic() + timeout_s
    while True:
        shares = [consumer.queues(topic) for consumer in consumers]
        if sorted(itertools.chain(*shares)) == list(range(queues)) and all(shares):
            return
        assert time.monotonic() < deadline, f"after {timeout_s} s the {queues} queues are shared as {shares}"
        time.sleep(0.02)


def lived_before(remoting: RemotingClient, group: str, topic: str) -> None:
    """A consumer of the group came and went: its retry topic exists.

    A client reads routes when it starts and then every 30 s: what its own first heart-beat creates, it learns late.
    """
    consumer = remoting.push(group, {topic: "*"})
    wait_shared(topic, 4, consumer)
    remoting.close(consumer)
