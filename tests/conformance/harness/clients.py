"""Official clients, each in a process of its own, driven by one line protocol.

A client program reads a JSON object a line on stdin and writes one a line on stdout; requests run concurrently.
Bodies are base64, durations milliseconds.

    {"event": "ready", "client": "name version"}                                 the first line out

    {"id": 1, "do": "open", "what": "producer", "name": "p", "endpoints": "host:port", "tls": false, "topics": ["t"]}
    {"id": 2, "do": "open", "what": "simple", …, "group": "g", "subscriptions": {"t": "a || b"}, "await_ms": 5000}
    {"id": 3, "do": "open", "what": "push", …, "group": "g", "subscriptions": {…}, "failures": 1}
    {"id": 4, "do": "send", "name": "p", "mode": "sync" or "async", "messages": [MESSAGE]}     → {"ids": […]}
                                                                   sync, where the client can recall: "handles": […] too
    {"id": 4, "do": "transact", "name": "p", "message": MESSAGE, "resolution": RESOLUTION}     → {"id": "…"}
    {"id": 4, "do": "recall", "name": "p", "topic": "t", "handle": "…"}                        → {"id": "…"}
    {"id": 5, "do": "receive", "name": "c", "max": 16, "invisible_ms": 10000}    → {"messages": [DELIVERY]}
    {"id": 6, "do": "ack", "name": "c", "refs": [7]}
    {"id": 7, "do": "invisible", "name": "c", "ref": 7, "invisible_ms": 1000}
    {"id": 8, "do": "resume", "name": "l"}
    {"id": 9, "do": "close", "name": "p"}

    {"id": 1, "ok": {…}} or {"id": 1, "error": {"kind": "NotFoundException", "code": 40402, "message": "…"}}
    {"event": "checked", "name": "p", "message": DELIVERY}              a producer was asked about a transaction
    {"event": "delivered", "name": "l", "failed": false, "message": DELIVERY}    a push consumer's listener ran

A RESOLUTION is COMMIT, ROLLBACK or UNKNOWN. A producer for transactions is opened with "checks": RESOLUTION, what it
says when it is asked. A listener fails the first `failures` deliveries of each message. With "sql": true the
subscriptions are SQL92 filters. With "paused": true a
listener (of Python, Go and Java) holds what it is given until `resume`.
A program may understand more (other kinds to open, more fields); the fields of `open` are passed through. End of stdin
ends the program.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import queue
import subprocess
import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar

START_TIMEOUT_S = 30
#: more than any client's own time-out with its retries
ANSWER_TIMEOUT_S = 60
#: shorter ones are refused by Apache's ReceiveMessage
MIN_INVISIBLE_MS = 10_000


@dataclass(frozen=True)
class Message:
    """A message to send."""

    topic: str
    body: bytes
    tag: str | None = None
    keys: tuple[str, ...] = ()
    properties: Mapping[str, str] = field(default_factory=dict)
    message_group: str | None = None
    #: when it is to be delivered, at the earliest
    deliver_ms: int | None = None

    def fields(self) -> dict[str, Any]:
        fields = {
            "topic": self.topic,
            "body": base64.b64encode(self.body).decode(),
            "tag": self.tag,
            "keys": list(self.keys),
            "properties": dict(self.properties),
            "message_group": self.message_group,
        }
        return fields if self.deliver_ms is None else {**fields, "deliver_ms": self.deliver_ms}


@dataclass(frozen=True)
class Delivery:
    """A received message: what was sent, and what this delivery of it adds."""

    id: str
    message: Message
    attempt: int
    corrupted: bool
    ref: int = 0
    #: by a push consumer's listener, as told
    failed: bool = False


def delivery_of(fields: Mapping[str, Any], *, failed: bool = False) -> Delivery:
    message = Message(
        topic=fields["topic"],
        body=base64.b64decode(fields["body"]),
        tag=fields["tag"],
        keys=tuple(sorted(fields["keys"])),
        properties=fields["properties"],
        message_group=fields["message_group"],
    )
    return Delivery(
        fields["id"], message, fields["attempt"], fields["corrupted"], ref=fields.get("ref") or 0, failed=failed
    )


class ClientError(Exception):
    """What the official client raised: its class, the status code if it tells one, its text."""

    def __init__(self, kind: str, code: int | None, message: str) -> None:
        super().__init__(f"{kind} {code}: {message}")
        self.kind = kind
        self.code = code
        self.message = message


class ClientProcess:
    """A running client program; owner of its pipes and of what it answered."""

    def __init__(self, command: list[str], folder: Path, home: Path, environment: Mapping[str, str]) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self.log_path = home / "stderr.log"
        self._ids = itertools.count(1)
        self._lock = threading.Lock()
        self._answers: dict[int, Future[dict[str, Any]]] = {}
        self._deliveries: dict[str, queue.SimpleQueue[Delivery]] = {}
        self._ready: Future[str] = Future()
        with self.log_path.open("a") as log:
            self._process = subprocess.Popen(
                [part.format(home=home) for part in command],
                cwd=folder,
                env={**os.environ, "HOME": str(home), "rocketmq.client.logRoot": str(home), **environment},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                encoding="utf-8",
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin: IO[str] = self._process.stdin
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), name="client output")
        self._reader.start()
        self.client = self._ready.result(START_TIMEOUT_S)

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def start(self, do: str, **fields: Any) -> Future[dict[str, Any]]:
        """Ask, and be told later. The future raises ClientError."""
        if not self.running:
            raise self._ended()
        answer: Future[dict[str, Any]] = Future()
        with self._lock:
            request_id = next(self._ids)
            self._answers[request_id] = answer
            self._stdin.write(json.dumps({"id": request_id, "do": do, **fields}) + "\n")
            self._stdin.flush()
        return answer

    def call(self, do: str, **fields: Any) -> dict[str, Any]:
        return self.start(do, **fields).result(ANSWER_TIMEOUT_S)

    def deliveries(self, name: str) -> queue.SimpleQueue[Delivery]:
        with self._lock:
            return self._deliveries.setdefault(name, queue.SimpleQueue())

    def kill(self) -> None:
        """At once: a push consumer's own shutdown waits for its long poll, and no server may depend on it."""
        self._process.kill()
        self._process.wait()
        self._reader.join()
        with contextlib.suppress(BrokenPipeError):  # it ended before it had read everything
            self._stdin.close()

    def _read(self, stdout: IO[str]) -> None:
        with stdout:
            for line in stdout:
                self._take(json.loads(line))
        if not self._ready.done():
            self._ready.set_exception(self._ended())
        with self._lock:
            for answer in self._answers.values():
                answer.set_exception(self._ended())
            self._answers.clear()

    def _ended(self) -> ClientError:
        return ClientError("ProcessEnded", None, f"the client program ended, see {self.log_path}")

    def _take(self, line: dict[str, Any]) -> None:
        match line.get("event"):
            case "ready":
                self._ready.set_result(line["client"])
            case "delivered" | "checked":
                self.deliveries(line["name"]).put(delivery_of(line["message"], failed=line.get("failed", False)))
            case _:
                with self._lock:
                    answer = self._answers.pop(line["id"])
                if error := line.get("error"):
                    answer.set_exception(ClientError(error["kind"], error["code"], error["message"]))
                else:
                    answer.set_result(line["ok"])


class Producer:
    def __init__(self, process: ClientProcess, name: str) -> None:
        self.process = process
        self.name = name

    def send(self, messages: Iterable[Message], mode: str = "sync") -> list[str]:
        """Message ids, in order."""
        fields = [message.fields() for message in messages]
        return list(self.process.call("send", name=self.name, mode=mode, messages=fields)["ids"])

    def transact(self, message: Message, resolution: str) -> str:
        """Send a half message, and COMMIT it, ROLLBACK or leave it (UNKNOWN). Its id."""
        answer = self.process.call("transact", name=self.name, message=message.fields(), resolution=resolution)
        return str(answer["id"])

    def checked(self, count: int, timeout_s: float = 20) -> list[Delivery]:
        """The half messages that it was asked about, until there are `count`, or the time is over."""
        return taken(self.process, self.name, count, timeout_s)

    def send_recallable(self, message: Message) -> tuple[str, str]:
        """Its id, and what recalls it."""
        answer = self.process.call("send", name=self.name, mode="sync", messages=[message.fields()])
        return answer["ids"][0], answer["handles"][0]

    def recall(self, topic: str, handle: str) -> str:
        """The message's id."""
        return str(self.process.call("recall", name=self.name, topic=topic, handle=handle)["id"])

    def send_unchecked(self, messages: Iterable[Message]) -> list[int]:
        """Status codes of sends that pass by the client's own checks; Python only."""
        fields = [message.fields() for message in messages]
        return list(self.process.call("send", name=self.name, mode="unchecked", messages=fields)["codes"])


class SimpleConsumer:
    def __init__(self, process: ClientProcess, name: str) -> None:
        self.process = process
        self.name = name

    def start_receive(self, max_messages: int = 16, invisible_ms: int = MIN_INVISIBLE_MS) -> Future[dict[str, Any]]:
        return self.process.start("receive", name=self.name, max=max_messages, invisible_ms=invisible_ms)

    def receive(self, max_messages: int = 16, invisible_ms: int = MIN_INVISIBLE_MS) -> list[Delivery]:
        return self.received(self.start_receive(max_messages, invisible_ms))

    def received(self, answer: Future[dict[str, Any]]) -> list[Delivery]:
        return [delivery_of(fields) for fields in answer.result(ANSWER_TIMEOUT_S)["messages"]]

    def take(self, count: int, timeout_s: float = 20, invisible_ms: int = MIN_INVISIBLE_MS) -> list[Delivery]:
        """Receive and acknowledge until `count` messages have come, or the time is over."""
        taken: list[Delivery] = []
        deadline = time.monotonic() + timeout_s
        while len(taken) < count and time.monotonic() < deadline:
            received = self.receive(invisible_ms=invisible_ms)
            self.ack(received)
            taken += received
        return taken

    def ack(self, deliveries: Iterable[Delivery]) -> None:
        self.process.call("ack", name=self.name, refs=[delivery.ref for delivery in deliveries])

    def change_invisible(self, delivery: Delivery, invisible_ms: int) -> None:
        self.process.call("invisible", name=self.name, ref=delivery.ref, invisible_ms=invisible_ms)


class PushConsumer:
    def __init__(self, process: ClientProcess, name: str) -> None:
        self.process = process
        self.name = name

    def resume(self) -> None:
        """Its listener, which was opened `paused`, goes on."""
        self.process.call("resume", name=self.name)

    def take(self, count: int, timeout_s: float = 20) -> list[Delivery]:
        """Deliveries, in the order in which the listener ran, until `count` have come or the time is over."""
        return taken(self.process, self.name, count, timeout_s)


def taken(process: ClientProcess, name: str, count: int, timeout_s: float) -> list[Delivery]:
    """What was told of the one of this name, until `count` have come or the time is over."""
    deliveries = process.deliveries(name)
    found: list[Delivery] = []
    deadline = time.monotonic() + timeout_s
    while len(found) < count and (left_s := deadline - time.monotonic()) > 0:
        try:
            found.append(deliveries.get(timeout=left_s))
        except queue.Empty:
            break
    return found


Opened = Producer | SimpleConsumer | PushConsumer
Kind = TypeVar("Kind", Producer, SimpleConsumer, PushConsumer)


class Client:
    """What a test holds of a client process: opens producers and consumers on it and closes them at the end."""

    _numbers = itertools.count(1)

    def __init__(self, process: ClientProcess, endpoints: str, *, tls: bool, settle_s: float = 0) -> None:
        self.process = process
        self.endpoints = endpoints
        self.tls = tls
        #: after a simple consumer was opened: for a server that answers INTERNAL when a receive overtakes the settings
        self.settle_s = settle_s
        self.opened: list[Opened] = []

    def producer(self, *topics: str, **more: Any) -> Producer:
        return self._open(Producer, "producer", topics=topics, **more)

    def simple(
        self, group: str, subscriptions: Mapping[str, str], await_ms: int = 10_000, **more: Any
    ) -> SimpleConsumer:
        consumer = self._open(
            SimpleConsumer, "simple", group=group, subscriptions=dict(subscriptions), await_ms=await_ms, **more
        )
        time.sleep(self.settle_s)
        return consumer

    def push(self, group: str, subscriptions: Mapping[str, str], failures: int = 0, **more: Any) -> PushConsumer:
        return self._open(
            PushConsumer, "push", group=group, subscriptions=dict(subscriptions), failures=failures, **more
        )

    def _open(self, kind: type[Kind], what: str, **fields: Any) -> Kind:
        name = f"{what}-{next(self._numbers)}"
        self.process.call("open", what=what, name=name, endpoints=self.endpoints, tls=self.tls, **fields)
        opened = kind(self.process, name)
        self.opened.append(opened)
        return opened

    def close(self, opened: Opened) -> None:
        self.opened.remove(opened)
        self.process.call("close", name=opened.name)

    def close_all(self, *, wait: bool = True) -> None:
        """Closes what a test left open. Push consumers close on their own: most wait for their long poll, 20 s."""
        closing = [(opened, self.process.start("close", name=opened.name)) for opened in self.opened]
        self.opened.clear()
        for opened, closed in closing:
            if wait and not isinstance(opened, PushConsumer):
                closed.result(ANSWER_TIMEOUT_S)
