"""Apache's broker and ours go on with each other's half messages: pending, asked about, not to be asked about yet.

One directory changes hands twice. Nobody is asked about what was ended before, and nothing that was pending is
forgotten.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from harness.admin import decoded, encoded
from harness.apache import Apache
from harness.pipeline import read_back
from harness.shared_broker import OTHER, PATIENT, SMALL_FILES, SOON_WRITTEN, Server, SharedBroker

from saturnmq.wire import record
from saturnmq.wire.remoting import json

HEART_BEAT, END_TRANSACTION, CHECK_TRANSACTION_STATE = 34, 37, 39
UPDATE_AND_CREATE_TOPIC = 17
SEND_MESSAGE_V2 = 310
COMMIT, ROLLBACK = 8, 12

TOPIC, GROUP = "orders", "producers"
SETTINGS = {
    **SMALL_FILES,
    **PATIENT,
    **SOON_WRITTEN,
    # Apache's broker asks about what was ended less than transactionOpBatchInterval (3 s) ago, and delivers it again
    "transactionTimeOut": 6000,
    "transactionCheckInterval": 5000,
    "transactionCheckMax": 1000,
}
#: Apache's broker, too, has written by then what was ended (transactionOpBatchInterval)
WRITTEN_S = 5
#: between two looks for what is pending
QUIET_S = 2.5
ASKED_WITHIN_S = 60
IMMUNE_S = 45
#: half messages of each kind, in each of two chapters
FIRST, SECOND = 8, 4


class Producer:
    """The only one of its group. It answers when it is asked about what it decided."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self._lock = threading.Lock()
        self._opaque = 0
        #: of half messages, by how they begin
        self.decides: dict[str, int] = {}
        #: what it was asked about, and how often
        self.asked: Counter[str] = Counter()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        body = json.write({"clientID": "p", "producerDataSet": [{"groupName": GROUP}], "consumerDataSet": []})
        self._send(HEART_BEAT, {}, body)

    def close(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._reader.join()

    def _send(self, code: int, fields: dict[str, str], body: bytes = b"") -> None:
        with self._lock:
            self._opaque += 1
            self._socket.sendall(encoded(code, self._opaque, fields, body))

    def _read(self) -> None:
        with self._socket, self._socket.makefile("rb") as stream, suppress(OSError):
            while head := stream.read(4):
                header, body = decoded(stream.read(struct.unpack(">I", head)[0]))
                if header["code"] == CHECK_TRANSACTION_STATE and not header["flag"] & 1:
                    self._answer(header["extFields"], record.decode(body).body.decode())

    def _answer(self, fields: dict[str, Any], name: str) -> None:
        self.asked[name] += 1
        resolution = next((how for start, how in self.decides.items() if name.startswith(start)), 0)
        self._send(END_TRANSACTION, ending(fields["tranStateTableOffset"], fields["commitLogOffset"], resolution, True))


def ending(half_offset: str, position: str, resolution: int, from_check: bool) -> dict[str, str]:
    return {
        "producerGroup": GROUP, "topic": TOPIC, "tranStateTableOffset": half_offset, "commitLogOffset": position,
        "commitOrRollback": str(resolution), "fromTransactionCheck": str(from_check).lower(), "msgId": "KEY",
    }  # fmt: skip


class Story:
    """Half messages of one exchange."""

    def __init__(self, broker: SharedBroker) -> None:
        self.broker = broker
        self.producer: Producer | None = None
        self._begun_s = 0.0

    def join(self, **decides: int) -> Producer:
        self.producer = Producer(self.broker.port)
        self.producer.decides = decides
        return self.producer

    def leave(self) -> None:
        if self.producer is not None:
            self.producer.close()

    def wait_quiet(self) -> None:
        """Until nothing moves: Apache's broker asks again about what it had asked about just before a crash."""
        producer = self.producer
        assert producer is not None
        asked = producer.asked.total()
        wait(lambda: producer.asked.total() > asked)
        time.sleep(QUIET_S)

    def send(self, name: str, resolution: int = 0, **properties: str) -> None:
        """A half message, which is ended at once, or left."""
        fields = {
            "a": GROUP, "b": TOPIC, "c": "TBW102", "d": "4", "e": "0", "f": "4", "g": str(time.time_ns() // 1_000_000),
            "h": "0", "j": "0", "k": "false", "m": "false",
        }  # fmt: skip
        pairs = {"UNIQ_KEY": name, "TRAN_MSG": "true", "PGROUP": GROUP, **properties}
        packed = "".join(f"{key}\x01{value}\x02" for key, value in pairs.items())
        _, answer = self.broker.connection.ask(SEND_MESSAGE_V2, name.encode(), **fields, i=packed)
        if resolution:
            _, position = record.parse_offset_message_id(answer["msgId"])
            header = ending(answer["queueOffset"], str(position), resolution, False)
            self.broker.connection.call(END_TRANSACTION, b"", **header)

    def send_all(self, phase: int, count: int) -> None:
        for number in range(count):
            self.send(f"committed-{phase}-{number}", COMMIT)
            self.send(f"rolled back-{phase}-{number}", ROLLBACK)
            for resolution in ("commit", "rollback"):
                for server in ("second", "third"):
                    self.send(f"{server} {resolution} {phase}-{number}")
        self.send(f"third commit immune-{phase}", CHECK_IMMUNITY_TIME_IN_SECONDS=str(IMMUNE_S))

    def stored(self) -> Counter[str]:
        return Counter(record.decode(one.record).body.decode() for one in read_back(self.broker.connection, TOPIC, 1))

    # --------------------------------------------------------------------------------------------- the chapters

    def first(self) -> None:
        producer = self.join()
        self.broker.connection.call(
            UPDATE_AND_CREATE_TOPIC, topic=TOPIC, defaultTopic="TBW102", readQueueNums="1", writeQueueNums="1",
            perm="6", topicFilterType="SINGLE_TAG", topicSysFlag="0", order="false",
            attributes="+message.type=TRANSACTION",
        )  # fmt: skip
        self.broker.wait_for_route(TOPIC)
        self.send_all(1, FIRST)
        self._begun_s = time.monotonic()
        left = left_of(1, FIRST)
        wait(lambda: producer.asked.keys() >= left)
        assert producer.asked.keys() == left, "it was asked about what it had ended, or should not be asked about yet"
        time.sleep(WRITTEN_S)

    def second(self) -> None:
        producer = self.join(**{"second commit": COMMIT, "second rollback": ROLLBACK})
        left = left_of(1, FIRST)
        wait(lambda: producer.asked.keys() >= left)
        self.send_all(2, SECOND)
        left |= left_of(2, SECOND)
        wait(lambda: producer.asked.keys() >= left)
        may_be = {"third commit immune-1"} if time.monotonic() > self._begun_s + IMMUNE_S else set()
        assert producer.asked.keys() <= left | may_be
        time.sleep(WRITTEN_S)

    def third(self) -> None:
        producer = self.join(**{"third commit": COMMIT, "third rollback": ROLLBACK})
        left = left_of(1, FIRST) | left_of(2, SECOND)
        immune = {"third commit immune-1", "third commit immune-2"}
        pending = {name for name in left if name.startswith("third")} | immune
        wait(lambda: producer.asked.keys() >= pending)
        time.sleep(WRITTEN_S)
        assert producer.asked.keys() == pending, "what the second had ended"
        before = Counter(producer.asked)
        time.sleep(6)
        assert producer.asked == before, "nothing is pending any more"
        times = self.stored()
        committed = {f"committed-{phase}-{n}" for phase, count in ((1, FIRST), (2, SECOND)) for n in range(count)}
        assert times.keys() == committed | {name for name in left if "commit" in name} | immune
        assert set(times.values()) == {1}, times


def left_of(phase: int, count: int) -> set[str]:
    """What `send_all` leaves for the servers to come."""
    return {
        f"{server} {how} {phase}-{number}"
        for server in ("second", "third")
        for how in ("commit", "rollback")
        for number in range(count)
    }


def wait(what: Callable[[], bool], seconds: float = ASKED_WITHIN_S) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture
def story(tmp_path: Path, apache: Apache, namesrv: str) -> Iterator[Story]:
    broker = SharedBroker(tmp_path, apache, namesrv, SETTINGS)
    story = Story(broker)
    yield story
    broker.kill()
    story.leave()


@pytest.mark.parametrize("end", ["stop", "kill"])
@pytest.mark.parametrize("first", ["apache", "saturn"])
def test_half_messages_change_hands_twice(story: Story, first: Server, end: str) -> None:
    for server, chapter in ((first, story.first), (OTHER[first], story.second)):
        story.broker.start(server)
        chapter()
        story.wait_quiet()
        story.leave()
        getattr(story.broker, end)()
    story.broker.start(first)
    story.third()
    story.leave()
    story.broker.stop()
    assert story.broker.verify()[0] == []
