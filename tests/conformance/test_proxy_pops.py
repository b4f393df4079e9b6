"""Pops, orders and notifications through the class of the official Java client that Apache's Proxy has for its brokers.

The client's own push consumers do not pop in order and are not notified yet.
"""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from harness.admin import Admin
from harness.mqadmin import JVM
from harness.programs import SOURCES as FOLDERS
from harness.programs import built_or_skipped
from harness.remoting import RemotingClient, RemotingMessage
from harness.remoting_fixtures import SOURCES
from harness.servers import Server, only_saturn

PROGRAM = FOLDERS / "java_pop" / "Pop.java"
ANSWER_TIMEOUT_S = 40
#: Apache shows messages some milliseconds after it acknowledged them
SOON_MS = 5_000


class Popper:
    """The running program; requests may be under way at once."""

    def __init__(self, jars: Path, home: Path, broker: str) -> None:
        with (home / "stderr.log").open("w") as log:
            self._process = subprocess.Popen(
                [*JVM, f"-Drocketmq.client.logRoot={home}", "-cp", f"{jars}/*", str(PROGRAM), broker, "broker-a"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                encoding="utf-8",
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        self._answers: list[Future[dict[str, Any]]] = []
        self._reader = threading.Thread(target=self._read, name="answers of the popper")
        self._reader.start()

    def start(self, do: str, **fields: Any) -> Future[dict[str, Any]]:
        answer: Future[dict[str, Any]] = Future()
        self._answers.append(answer)
        request = {"do": do, "id": len(self._answers) - 1, "queue_id": -1, **fields}
        self._stdin.write(json.dumps(request) + "\n")
        self._stdin.flush()
        return answer

    def ask(self, do: str, **fields: Any) -> dict[str, Any]:
        return self.start(do, **fields).result(ANSWER_TIMEOUT_S)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        self._stdin.close()
        self._stdout.close()

    def _read(self) -> None:
        for line in self._stdout:
            answer = json.loads(line)
            self._answers[answer["id"]].set_result(answer)


@pytest.fixture(scope="module")
def popper(tmp_path_factory: pytest.TempPathFactory, server: Server) -> Iterator[Popper]:
    home = tmp_path_factory.mktemp("popper")
    popper = Popper(built_or_skipped(SOURCES["java"]) / "target" / "dependency", home, server.broker)
    yield popper
    popper.close()


class Share:
    """A new group at a new topic of one queue."""

    def __init__(self, popper: Popper, admin: Admin, client: RemotingClient, *, order: bool) -> None:
        self._popper, self._producer = popper, client.producer()
        self.names = {"topic": admin.create_topic(queues=1), "group": admin.create_group()}
        self.order = order

    def send(self, *bodies: str, **properties: str) -> None:
        messages = [RemotingMessage(self.names["topic"], body.encode(), properties=properties) for body in bodies]
        self._producer.send(messages, mode="batch")

    def pop(self, most: int = 32, wait_ms: int = 0, attempt_id: str | None = None) -> list[dict[str, Any]]:
        answer = self._popper.ask(
            "pop",
            max=most,
            invisible_ms=60_000,
            poll_ms=wait_ms,
            order=self.order,
            attempt_id=attempt_id,
            **self.names,
        )
        return list(answer["messages"])

    def notified(self, wait_ms: int = 0, **more: Any) -> Future[dict[str, Any]]:
        return self._popper.start("notify", poll_ms=wait_ms, order=self.order, **self.names, **more)

    def has_message(self, **more: Any) -> bool:
        return bool(self.notified(**more).result(ANSWER_TIMEOUT_S)["has_message"])

    def settle(self, do: str, message: dict[str, Any], **more: Any) -> dict[str, Any]:
        handle = {name: message[name] for name in ("handle", "queue_id", "offset")}
        return self._popper.ask(do, **{**self.names, **handle, **more})


def bodies(messages: list[dict[str, Any]]) -> list[tuple[str, int]]:
    return [(message["body"], message["attempt"]) for message in messages]


@pytest.fixture
def orderly(popper: Popper, admin: Admin, java_remoting: RemotingClient) -> Share:
    return Share(popper, admin, java_remoting, order=True)


@pytest.fixture
def share(popper: Popper, admin: Admin, java_remoting: RemotingClient) -> Share:
    return Share(popper, admin, java_remoting, order=False)


def test_an_orderly_pop_blocks_its_queue(orderly: Share) -> None:
    orderly.send("1", "2", "3")
    first, second = orderly.pop(2, SOON_MS)
    assert bodies([first, second]) == [("1", 1), ("2", 1)]
    assert orderly.pop() == [], "others wait until these are done"
    assert orderly.settle("ack", first)["status"] == "OK"
    assert orderly.pop() == []
    assert orderly.settle("ack", second)["status"] == "OK"
    assert bodies(orderly.pop()) == [("3", 1)]


def test_an_orderly_pop_is_repeated_by_its_attempt(orderly: Share) -> None:
    orderly.send("1", "2")
    assert bodies(orderly.pop(1, SOON_MS, attempt_id="one")) == [("1", 1)]
    assert orderly.pop(1, attempt_id="another") == []
    assert bodies(orderly.pop(1, attempt_id="one")) == [("1", 1)], "its answer was lost"


def test_an_orderly_message_is_counted_when_it_comes_again(orderly: Share) -> None:
    orderly.send("1", "2")
    [message] = orderly.pop(1, SOON_MS)
    changed = orderly.settle("invisible", message, invisible_ms=1_000)
    assert changed["status"] == "OK"
    deadline = time.monotonic() + 10
    while not (again := orderly.pop(2)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert bodies(again) == [("1", 2), ("2", 1)]


def test_who_asks_is_notified(share: Share) -> None:
    waiting = share.notified(20_000)
    time.sleep(0.2)
    assert not waiting.done()
    begun = time.monotonic()
    share.send("1")
    assert waiting.result(ANSWER_TIMEOUT_S)["has_message"]
    assert time.monotonic() - begun < 10
    assert share.has_message(), "nothing was taken"
    assert bodies(share.pop()) == [("1", 1)]
    assert not share.has_message()


@only_saturn
def test_who_asks_with_a_filter_is_notified_of_what_it_takes(share: Share) -> None:
    """Apache's broker notifies of the first message, whatever it is, for it does not filter by properties here."""
    waiting = share.notified(20_000, sql="colour = 'red'")
    share.send("1", colour="blue")
    time.sleep(0.3)
    assert not waiting.done()
    share.send("2", colour="red")
    assert waiting.result(ANSWER_TIMEOUT_S)["has_message"]


def test_a_queue_in_order_has_nothing_while_it_is_blocked(orderly: Share) -> None:
    orderly.send("1", "2")
    [message] = orderly.pop(1, SOON_MS, attempt_id="one")
    assert not orderly.has_message(attempt_id="another")
    assert orderly.has_message(attempt_id="one")
    waiting = orderly.notified(20_000)
    time.sleep(0.2)
    assert not waiting.done()
    orderly.settle("ack", message)
    assert waiting.result(ANSWER_TIMEOUT_S)["has_message"]


def test_a_handle_that_is_not_good(share: Share) -> None:
    share.send("1")
    [message] = share.pop(1, SOON_MS)
    assert share.settle("ack", message)["status"] == "OK"
    wrong = {**message, "handle": "1 2 3"}
    assert share.settle("invisible", wrong, invisible_ms=1_000).get("status") != "OK"
