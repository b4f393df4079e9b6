"""Apache's broker and ours go on with each other's delayed messages: waiting, rolled, taken back, overdue.

One directory changes hands twice. What counts is when each message was stored in its topic: never before its time, and
soon after it when somebody was there.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from harness.admin import AdminError
from harness.apache import Apache
from harness.pipeline import read_back
from harness.shared_broker import OTHER, PATIENT, SMALL_FILES, Server, SharedBroker

from saturnmq.wire.record import decode

UPDATE_AND_CREATE_TOPIC = 17
GET_TIMER_CHECK_POINT = 60
GET_TIMER_METRICS = 61
SEND_MESSAGE_V2 = 310
RECALL_MESSAGE = 370
ILLEGAL_OPERATION = 604

TOPIC = "delayed"
#: messages that are due later than this are rolled
WINDOW_S = 20
SETTINGS = {
    **SMALL_FILES,
    **PATIENT,
    "timerRollWindowSlot": WINDOW_S,
    "recallMessageEnable": "true",
    # several files of 20 entries
    "mappedFileSizeTimerLog": 52 * 20 + 16,
}
#: a delivery that takes longer than this after its second is late; the machine is shared
LATE_MS = 3_000
#: after a start, before which nobody could deliver
START_S = 2


@dataclass
class Sent:
    body: str
    due_ms: int
    handle: str


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class Story:
    """Messages of one exchange, and who served when."""

    def __init__(self, broker: SharedBroker, stretch: float = 1) -> None:
        """`stretch`: how much longer everything takes."""
        self.broker, self._stretch = broker, stretch
        self._begin_ms = 0
        self._server: Server = "saturn"
        self.sent: dict[str, Sent] = {}
        self.recalled: set[str] = set()
        #: from when until when somebody served
        self.served: list[tuple[int, int]] = []
        #: from the end of one until Apache's broker was up
        self.apache_starts: list[tuple[int, int]] = []

    def started(self, server: Server) -> None:
        self._server = server
        begin_ms = now_ms() + START_S * 1000
        if server == "apache" and self.served:
            self.apache_starts.append((self.served[-1][1], begin_ms))
        self.served.append((begin_ms, 1 << 62))

    def ends(self) -> None:
        self.served[-1] = self.served[-1][0], now_ms()

    def send(self, body: str, due_ms: int) -> None:
        fields = {
            "a": "producers",
            "b": TOPIC,
            "c": "TBW102",
            "d": "4",
            "e": "0",
            "f": "0",
            "g": str(now_ms()),
            "h": "0",
        }
        properties = f"UNIQ_KEY\x01{body}\x02TIMER_DELIVER_MS\x01{due_ms}\x02"
        _, answer = self.broker.connection.ask(
            SEND_MESSAGE_V2, body.encode(), **fields, i=properties, j="0", k="false", m="false"
        )
        self.sent[body] = Sent(body, due_ms, answer["recallHandle"])

    def recall(self, body: str) -> None:
        self.recalled.add(body)
        _, answer = self.broker.connection.ask(
            RECALL_MESSAGE, producerGroup="producers", topic=TOPIC, recallHandle=self.sent[body].handle
        )
        assert answer["msgId"] == body

    def _at_ms(self, seconds: float) -> int:
        return self._begin_ms + int(seconds * self._stretch * 1000)

    def _wait_until(self, seconds: float, late_ms: int = 0) -> None:
        time.sleep(max(0, self._at_ms(seconds) + late_ms - now_ms()) / 1000)

    def check(self, *, most: int) -> None:
        """Each came, in time and no more than `most` times."""
        stored = [decode(one.record) for one in read_back(self.broker.connection, TOPIC, 1)]
        times = Counter(one.body.decode() for one in stored)
        kept = set(self.sent) - self.recalled
        # Apache delivers what was taken back when both are overdue
        excused = {
            body
            for body in self.recalled
            if any(begin <= self.sent[body].due_ms <= end for begin, end in self.apache_starts)
        }
        assert kept <= set(times) <= kept | excused, (set(times) ^ kept, excused, self.apache_starts)
        assert max(times.values()) <= most, times
        for one in stored:
            due_ms = self.sent[one.body.decode()].due_ms
            assert one.stored_ms >= due_ms, f"{one.body!r} came {due_ms - one.stored_ms} ms early"
            second_ms = -(-due_ms // 1000) * 1000
            if any(begin <= second_ms and second_ms + LATE_MS <= end for begin, end in self.served):
                assert one.stored_ms <= second_ms + LATE_MS, f"{one.body!r} came {one.stored_ms - second_ms} ms late"

    # --------------------------------------------------------------------------------------------- the chapters

    def first(self) -> None:
        self.broker.connection.call(
            UPDATE_AND_CREATE_TOPIC, topic=TOPIC, defaultTopic="TBW102", readQueueNums="1", writeQueueNums="1",
            perm="6", topicFilterType="SINGLE_TAG", topicSysFlag="0", order="false", attributes="+message.type=DELAY",
        )  # fmt: skip
        self.broker.wait_for_route(TOPIC)
        self._begin_ms = now_ms() // 1000 * 1000 + 1000
        self._wait_until(0)
        # delivered by the first; overdue when the second starts; by the second, rolled before or not; by the third
        for seconds in (2, 2.5, 3, 7, 9.9, 30, 31.001, 33, 35, 39.999, 45, 50, 70, 72.5, 74):
            for number in range(3):
                self.send(f"{seconds}-{number}", self._at_ms(seconds))
        # what is due before Apache is up again is not for it: it delivers that
        for body in ("33-0", "50-0", "72.5-0") if self._server == "saturn" else ("33-0", "72.5-0"):
            self.recall(body)
        self._wait_until(5.5)

    def second(self) -> None:
        self.recall("74-1")
        with pytest.raises(AdminError) as refused:
            self.recall("2-0")
        assert refused.value.code == ILLEGAL_OPERATION
        self.recalled.discard("2-0")
        self.send("sent to the second", self._at_ms(71))
        self._wait_until(42)

    def third(self, most: int) -> None:
        self._wait_until(74, LATE_MS)
        self.check(most=most)
        assert len(self.broker.connection.call(GET_TIMER_CHECK_POINT)) == 56
        assert TOPIC in self.broker.connection.call(GET_TIMER_METRICS).decode()


@pytest.fixture
def broker(tmp_path: Path, apache: Apache, namesrv: str) -> Iterator[SharedBroker]:
    broker = SharedBroker(tmp_path, apache, namesrv, SETTINGS)
    yield broker
    broker.kill()


@pytest.mark.parametrize("end", ["stop", "kill"])
@pytest.mark.parametrize("first", ["apache", "saturn"])
def test_delayed_messages_change_hands_twice(broker: SharedBroker, first: Server, end: str) -> None:
    story = Story(broker)
    for server, chapter in ((first, story.first), (OTHER[first], story.second)):
        broker.start(server)
        story.started(server)
        chapter()
        story.ends()
        getattr(broker, end)()
    broker.start(first)
    story.started(first)
    story.third(most=1 if end == "stop" else 2)
