"""Apache's broker and ours go on with each other's leases: in flight, acknowledged, changed, over, come back already.

One directory changes hands twice. A consumer keeps what it was told; what counts is who gets what, and when.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from harness.admin import AdminError
from harness.apache import Apache
from harness.pipeline import records
from harness.shared_broker import BROKER, OTHER, PATIENT, SMALL_FILES, SOON_WRITTEN, Server, SharedBroker

UPDATE_AND_CREATE_TOPIC = 17
UPDATE_AND_CREATE_SUBSCRIPTIONGROUP = 200
SEND_MESSAGE_V2 = 310
POP_MESSAGE, ACK_MESSAGE, CHANGE_MESSAGE_INVISIBLETIME = 200_050, 200_051, 200_053

#: a lease that is over when the next server has come up
SHORT_MS = 8_000
#: Apache gives out again what is over when it sees something that is over for longer, or after some seconds of nothing
LATE_S = 20


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass
class Held:
    """A message in a consumer's hands."""

    name: str
    topic: str
    queue_id: int
    offset: int
    until_ms: int
    handle: str


class Story:
    """What a consumer group was given, and what became of it."""

    def __init__(self, broker: SharedBroker, topic: str = "popped", long_ms: int = 60_000) -> None:
        """`long_ms`: a lease that is still good when the next server has come up."""
        self.broker, self.topic, self.group, self.long_ms = broker, topic, f"{topic}-consumers", long_ms
        #: by name: the end of the last lease that somebody was given
        self.until_ms: dict[str, int] = {}
        self.acknowledged: set[str] = set()
        #: how often each message came
        self.came: dict[str, int] = {}
        #: what is in hands when a server ends, by name
        self.held: dict[str, Held] = {}

    def make(self) -> None:
        self.broker.connection.call(
            UPDATE_AND_CREATE_TOPIC, topic=self.topic, defaultTopic="TBW102", readQueueNums="1", writeQueueNums="1",
            perm="6", topicFilterType="SINGLE_TAG", topicSysFlag="0", order="false",
        )  # fmt: skip
        self.broker.connection.call(
            UPDATE_AND_CREATE_SUBSCRIPTIONGROUP,
            json.dumps({"groupName": self.group, "consumeFromMinEnable": True}).encode(),
        )
        self.broker.wait_for_route(self.topic)

    def send(self, *names: str) -> None:
        fields = {"a": "producers", "b": self.topic, "c": "TBW102", "d": "4", "e": "0", "f": "0", "h": "0"}
        for name in names:
            self.broker.connection.call(
                SEND_MESSAGE_V2, name.encode(), **fields, g=str(now_ms()), i=f"UNIQ_KEY\x01{name}\x02", j="0",
                k="false", m="false",
            )  # fmt: skip

    def pop(self, most: int, invisible_ms: int, *, fifo: bool = False) -> list[Held]:
        """Nobody else may hold what comes, nor have acknowledged it."""
        try:
            body, fields = self.broker.connection.ask(
                POP_MESSAGE, consumerGroup=self.group, topic=self.topic, queueId="-1", maxMsgNums=str(most),
                invisibleTime=str(invisible_ms), pollTime="0", bornTime=str(now_ms()), initMode="0", exp="*",
                expType="TAG", order=str(fifo).lower(),
            )  # fmt: skip
        except AdminError:
            return []
        pop_ms, revive_queue = int(fields["popTime"]), fields["reviveQid"]
        starts = {tuple(text.split(" ")[:2]): text.split(" ")[2] for text in fields["startOffsetInfo"].split(";")}
        held = []
        for stored in records(body):
            handle, topic = stored.properties.get("POP_CK"), self.topic
            if handle is None:
                start = starts["0", str(stored.queue_id)]
                handle = (
                    f"{start} {pop_ms} {invisible_ms} {revive_queue} 0 {BROKER} {stored.queue_id} {stored.queue_offset}"
                )
            else:
                topic = f"%RETRY%{self.group}_{self.topic}"
            name = stored.body.decode()
            assert name not in self.acknowledged, f"{name} was acknowledged"
            assert pop_ms >= self.until_ms.get(name, 0), f"{name} came {self.until_ms[name] - pop_ms} ms early"
            self.until_ms[name] = pop_ms + invisible_ms
            self.came[name] = self.came.get(name, 0) + 1
            held.append(Held(name, topic, stored.queue_id, stored.queue_offset, pop_ms + invisible_ms, handle))
        return held

    def take(self, *names: str, invisible_ms: int) -> list[Held]:
        """Pop just these."""
        held = self.pop(len(names), invisible_ms)
        assert [one.name for one in held] == list(names)
        return held

    def _settle(self, code: int, held: Held, **more: str) -> dict[str, str]:
        return self.broker.connection.ask(
            code, b"", consumerGroup=self.group, topic=held.topic, queueId=str(held.queue_id), extraInfo=held.handle,
            offset=str(held.offset), **more,
        )[1]  # fmt: skip

    def ack(self, held: Held) -> None:
        self._settle(ACK_MESSAGE, held)
        self.acknowledged.add(held.name)

    def change(self, held: Held, invisible_ms: int) -> Held:
        said = self._settle(CHANGE_MESSAGE_INVISIBLETIME, held, invisibleTime=str(invisible_ms))
        pop_ms = int(said["popTime"])
        kind = held.handle.split(" ")[4]
        self.until_ms[held.name] = pop_ms + invisible_ms
        handle = (
            f"{held.offset} {pop_ms} {invisible_ms} {said['reviveQid']} {kind} {BROKER} {held.queue_id} {held.offset}"
        )
        return Held(held.name, held.topic, held.queue_id, held.offset, pop_ms + invisible_ms, handle)

    def come(self, *names: str, more_ms: int = 0, within_s: float = LATE_S) -> dict[str, Held]:
        """Wait until they have come, and nothing else; their leases are long, and `more_ms`."""
        held: dict[str, Held] = {}
        deadline = time.monotonic() + within_s
        while set(held) != set(names):
            assert time.monotonic() < deadline, f"{set(names) - set(held)} did not come"
            for one in self.pop(32, self.long_ms + more_ms):
                assert one.name in names, f"{one.name} came"
                held[one.name] = one
            time.sleep(0.05)
        return held

    def wait_written(self, offset: int) -> None:
        """A crash of Apache's broker forgets how far groups are, unless it has written that since."""
        path = self.broker.data_dir / "config" / "consumerOffset.json"
        wanted = re.compile(rf'"{self.topic}@{self.group}":{{\s*"?0"?:{offset}\s*}}')
        deadline = time.monotonic() + LATE_S
        while not (path.exists() and wanted.search(path.read_text())):
            assert time.monotonic() < deadline, path.read_text()
            time.sleep(0.1)

    def wait_until(self, time_ms: int) -> None:
        time.sleep(max(0, time_ms - now_ms()) / 1000)

    # --------------------------------------------------------------------------------------------- the chapters

    def first(self) -> None:
        """Leases in every state."""
        self.make()
        self.send(*(f"m{number}" for number in range(12)))
        again = self.take("m0", "m1", invisible_ms=1_000)
        self.send("over")
        come = self.come(*(one.name for one in again), *(f"m{number}" for number in range(2, 12)), "over")
        self.ack(come["m0"])
        self.ack(come["m2"])
        come["m3"] = self.change(come["m3"], self.long_ms + 10_000)
        come["over"] = self.change(come["over"], SHORT_MS)
        time.sleep(4)
        self.ack(come["m4"])
        come["m5"] = self.change(come["m5"], self.long_ms - 4_000)
        self.send("new")
        self.wait_written(13)
        self.held = {name: come[name] for name in come if name not in self.acknowledged}

    def second(self) -> None:
        """Another server: handles are good there, what was in flight still is, what is over comes."""
        held, over = self.held, self.held.pop("over")
        assert now_ms() < min(one.until_ms for one in held.values()) - 15_000, "the machine is too slow for this"
        self.wait_until(over.until_ms)
        come = self.come("over", "new", more_ms=20_000)
        self.ack(come["over"])
        for name in ("m1", "m3", "m6"):
            self.ack(held[name])
        changed = self.change(held["m7"], self.long_ms + 20_000)
        self.wait_until(held["m8"].until_ms)
        come |= self.come("m8", "m9", "m10", "m11", "m5", within_s=LATE_S + 5)
        self.ack(come["m8"])
        self.send("newest")
        come |= self.come("newest", more_ms=20_000)
        self.wait_written(15)
        self.held = {"m7": changed} | {name: come[name] for name in ("m9", "m10", "m11", "m5", "new", "newest")}

    def third(self) -> None:
        """The first one once more: nothing is lost, nothing comes twice."""
        self.ack(self.held.pop("m10"))
        last_ms = max(one.until_ms for one in self.held.values())
        come = self.come(*self.held, within_s=(last_ms - now_ms()) / 1000 + LATE_S)
        for one in come.values():
            self.ack(one)
        time.sleep(5)
        assert self.pop(32, self.long_ms) == []
        assert max(self.came.values()) <= 3, self.came


class OrderedStory(Story):
    """The same of a group that is given one batch of a queue at a time."""

    def come_in_order(self, *names: str) -> list[Held]:
        """Wait until the queue is free; then these come."""
        deadline = time.monotonic() + self.long_ms / 1000 + LATE_S
        while not (held := self.pop(32, self.long_ms, fifo=True)):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert [one.name for one in held] == list(names)
        return held

    def wait_kept(self, offset: int) -> None:
        """A crash of Apache's broker forgets batches, and how far groups are, unless it has written them since."""
        path, popped_ms = self.broker.data_dir / "config" / "consumerOrderInfo.json", now_ms()
        self.wait_written(offset)
        deadline = time.monotonic() + 15
        while not (path.exists() and path.stat().st_mtime * 1000 > popped_ms):
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def _keep(self, held: list[Held], offset: int) -> None:
        """The first of them is acknowledged."""
        self.ack(held[0])
        self.held = {one.name: one for one in held[1:]}
        self.wait_kept(offset)

    def first(self) -> None:
        self.make()
        self.send("a", "b", "c", "d", "e")
        self._keep(self.pop(3, self.long_ms, fifo=True), 1)

    def second(self) -> None:
        assert self.pop(32, self.long_ms, fifo=True) == [], "the queue is blocked"
        self.ack(self.held["b"])
        self._keep(self.come_in_order("c", "d", "e"), 3)

    def third(self) -> None:
        assert self.pop(32, self.long_ms, fifo=True) == []
        self.ack(self.held["d"])
        [e] = self.come_in_order("e")
        self.ack(e)
        self.send("f")
        self.come_in_order("f")


@pytest.fixture
def broker(tmp_path: Path, apache: Apache, namesrv: str) -> Iterator[SharedBroker]:
    broker = SharedBroker(tmp_path, apache, namesrv, {**SMALL_FILES, **PATIENT, **SOON_WRITTEN})
    yield broker
    broker.kill()


def change_hands_twice(story: Story, first: Server, end: str) -> None:
    broker = story.broker
    broker.start(first)
    story.first()
    getattr(broker, end)()
    broker.start(OTHER[first])
    story.second()
    getattr(broker, end)()
    broker.start(first)
    story.third()


@pytest.mark.parametrize("end", ["stop", "kill"])
@pytest.mark.parametrize("first", ["apache", "saturn"])
def test_leases_change_hands_twice(broker: SharedBroker, first: Server, end: str) -> None:
    change_hands_twice(Story(broker), first, end)


@pytest.mark.parametrize("end", ["stop", "kill"])
@pytest.mark.parametrize("first", ["apache", "saturn"])
def test_fifo_leases_change_hands_twice(broker: SharedBroker, first: Server, end: str) -> None:
    change_hands_twice(OrderedStory(broker), first, end)
