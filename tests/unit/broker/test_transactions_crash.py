"""Crashes behind every event of the disk: no acknowledged half message, commit or rollback is lost."""

from __future__ import annotations

from collections import Counter

import pytest

from saturnmq.broker.halves import Halves
from saturnmq.disk.simulated import SimulatedDisk, everything_survives, nothing_survives
from saturnmq.kernel import properties as names
from saturnmq.kernel.host import Address, pack
from saturnmq.kernel.later import Reply, hear
from saturnmq.kernel.message import Message
from saturnmq.kernel.ports import EndTransactionRequest, Resolution, SendReceipt, SendRequest, TransactionCheck
from saturnmq.kernel.topic import HALF_TOPIC, OP_HALF_TOPIC, TopicConfig
from saturnmq.testing.clock import VirtualClock
from saturnmq.testing.offline import OfflineBroker
from saturnmq.testing.timers import sectors
from saturnmq.wire import record

SETTINGS = {
    "transaction_time_out": 300, "transaction_check_interval": 500, "transaction_op_batch_interval": 400,
}  # fmt: skip
TICKS = 36


class Producer:
    """A `kernel.ports.ClientChannel` for transactions. What a number says of a transaction it says again when asked."""

    client_id, language, version, peer = "p", "JAVA", 479, Address("10.0.0.2", 1)

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        #: of whom it was asked
        self.asked: list[bytes] = []

    def check_transaction(self, check: TransactionCheck) -> bool:
        body = record.decode(check.record).body
        self.asked.append(body)
        if not self._stage.silent:
            self._stage.end(body, check.half_offset, check.commit_log_offset, from_check=True)
        return True


class Stage:
    """One process, with a producer that ends some transactions by itself."""

    def __init__(self, flush: str, disk: SimulatedDisk | None = None, now_ms: int | None = None) -> None:
        clock = VirtualClock() if now_ms is None else VirtualClock(now_ms)
        stores = {"flush_disk_type": flush, "mapped_file_size_commit_log": 1 << 16, "message_index_enable": False}
        self.offline = OfflineBroker(disk, clock, settings=SETTINGS, store_settings=stores)
        self.broker, self.clock, self.disk = self.offline.broker, self.offline.clock, self.offline.disk
        self.broker.topics.put(TopicConfig(topic_name="orders"))
        self.producer = Producer(self)
        self.broker.producer_joined(self.producer, "producers")  # type: ignore[arg-type]
        #: it answers no checks; it commits all that it is asked about
        self.silent = self.commits_all = False
        #: in how many events of the disk each was acknowledged: half messages, commits, rollbacks
        self.sent: dict[bytes, int] = {}
        self.committed: dict[bytes, int] = {}
        self.rolled_back: dict[bytes, int] = {}
        self.clock.run_soon()

    def send(self, number: int) -> None:
        body = b"%d" % number
        pairs = {
            names.UNIQUE_KEY: body.decode(), names.TRANSACTION_PREPARED: "true", names.PRODUCER_GROUP: "producers",
        }  # fmt: skip
        if number % 7 == 6:
            pairs[names.CHECK_IMMUNITY_TIME_IN_SECONDS] = "2"
        message = Message("orders", 0, body, names.encode(pairs), self.clock.now_ms(), pack(Address("10.0.0.2", 1)))
        reply = self.broker.send(SendRequest(producer_group="producers", messages=[message], properties=pairs))

        def sent(receipt: SendReceipt) -> None:
            self.sent[body] = len(self.disk.events)
            if number % 4 < 2:
                self.end(body, receipt.queue_offset, receipt.commit_log_offset)

        hear(reply, sent, _raise)

    def end(self, body: bytes, half_offset: int, position: int, *, from_check: bool = False) -> None:
        commits = self.commits_all or int(body) % 2 == 0
        request = EndTransactionRequest(
            topic="orders",
            producer_group="producers",
            half_offset=half_offset,
            commit_log_offset=position,
            resolution=Resolution.COMMIT if commits else Resolution.ROLLBACK,
            from_check=from_check,
            message_id=body.decode(),
        )
        acknowledged = self.committed if commits else self.rolled_back

        def ended(_: None) -> None:
            acknowledged.setdefault(body, len(self.disk.events))

        reply: Reply[None] = self.broker.end_transaction(request)
        hear(reply, ended, _raise)

    def bodies(self, topic: str) -> list[bytes]:
        return [stored.body for stored in self.offline.stored(topic)]


def _raise(error: BaseException) -> None:
    raise error


def scenario(flush: str) -> tuple[Stage, list[tuple[int, int]]]:
    """Each tenth of a second another half message. Of four, one is committed at once, one rolled back at once, and one
    each when the producer is asked. Also which time it was at each event."""
    stage = Stage(flush)
    times = []
    for number in range(TICKS):
        if number < TICKS * 2 // 3:
            stage.send(number)
        stage.clock.advance(100)
        times.append((len(stage.disk.events), stage.clock.now_ms()))
    return stage, times


def crash_everywhere(flush: str, end: str, which: int = 0, step: int = 1) -> None:
    """Behind each event of the scenario, from `which` on with this step."""
    stage, times = scenario(flush)
    loses = flush == "ASYNC_FLUSH" and end != "killed"
    for events in range(which, len(stage.disk.events) + 1, step):
        survives = {"killed": everything_survives, "power cut": nothing_survives, "sectors": sectors(events)}[end]
        done = -1 if loses else events - (flush == "ASYNC_FLUSH")
        now_ms = next((now_ms for count, now_ms in times if count >= events), times[-1][1])
        after = Stage(flush, stage.disk.crashed(events, survives), now_ms)
        sent, committed, rolled_back = (
            {body for body, at in acknowledged.items() if at <= done}
            for acknowledged in (stage.sent, stage.committed, stage.rolled_back)
        )
        check(after, sent, committed, rolled_back)


def check(after: Stage, sent: set[bytes], committed: set[bytes], rolled_back: set[bytes]) -> None:
    """The producer now commits everything that it is asked about."""
    found = Counter(after.bodies("orders"))
    assert committed <= set(found), "a commit was lost"
    halves = after.offline.stored(HALF_TOPIC)
    offsets = [int(text) for op in after.bodies(OP_HALF_TOPIC) for text in op.split(b",") if text]
    ended = {halves[offset].body for offset in offsets}
    pending = {half.body for half in halves if half.queue_offset not in offsets}
    assert sent <= ended | pending | committed, "a half message was lost"
    after.commits_all = True
    after.clock.advance(12_000)
    asked = set(after.producer.asked)
    assert asked.isdisjoint(rolled_back), "a rollback was lost"
    assert asked <= pending, "what is ended was asked about again"
    assert sent - committed - rolled_back <= set(found) | asked | ended, "nobody was asked"
    for body, times in Counter(after.bodies("orders")).items():
        assert times <= found[body] + (body in asked), "came again"
    assert after.broker.transactions._timer is None, "nothing is pending"


def test_the_scenario() -> None:
    stage, _ = scenario("SYNC_FLUSH")
    bodies = set(stage.sent)
    assert len(stage.producer.asked) >= len(bodies) // 2 - 1
    assert stage.committed.keys() | stage.rolled_back.keys() == bodies
    assert sorted(stage.bodies("orders")) == sorted(body for body in bodies if int(body) % 2 == 0)


@pytest.mark.parametrize("flush", ["SYNC_FLUSH", "ASYNC_FLUSH"])
@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize("end", ["killed", "power cut", "sectors"])
def test_nothing_acknowledged_is_lost(flush: str, end: str, which: int) -> None:
    crash_everywhere(flush, end, which, 3)


def test_a_rollback_that_is_not_written_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Halves, "write", lambda halves: None)
    with pytest.raises(AssertionError, match="rollback was lost"):
        crash_everywhere("SYNC_FLUSH", "killed", 0, 3)


def test_offsets_that_say_too_much_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Halves, "low", property(lambda halves: halves.end))
    with pytest.raises(AssertionError):
        crash_everywhere("SYNC_FLUSH", "killed", 0, 3)
