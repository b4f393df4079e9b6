"""A crash behind every single thing that the store does to the disk."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
from store_stage import Answer, HeldBackground, Stage, message

from saturnmq.disk.simulated import Event, Operation, SimulatedDisk, Survives, everything_survives, nothing_survives
from saturnmq.store import flush
from saturnmq.store.commitlog import LogReader
from saturnmq.store.consumequeue import ENTRY
from saturnmq.store.dispatch import is_queued
from saturnmq.store.results import StoreRefused
from saturnmq.store.walk import Walk

#: topic, queue id, queue offset, body and properties
_Sent = tuple[str, int, int, bytes]
QUEUES = [("A", 0), ("A", 1), ("B", 0)]
NEW_PROPERTIES = message().properties


def torn(seed: int) -> Survives:
    """Some of it: nothing, all, a part from the front cut anywhere, or sectors in any order."""
    chance = random.Random(seed)

    def survives(event: Event) -> Sequence[tuple[int, int]]:
        size = len(event.data)
        kind = chance.randrange(4)
        if kind == 0:
            return ()
        if kind == 1 or event.operation is not Operation.WRITE or event.path == "checkpoint":
            return ((0, size),)
        if kind == 2:
            return ((0, chance.randint(0, size)),)
        first = -event.offset % 512
        edges = [0, *range(first, size, 512), size]
        return [(a, b) for a, b in pairwise(edges) if chance.random() < 0.6]

    return survives


class Workload:
    """Sends to three queues over a few files, with pauses in which queues and checkpoint are written, and remembers
    after how many events each message was acknowledged, and seen."""

    def __init__(self, disk: SimulatedDisk | None = None, seed: int = 1, turns: int = 24, **config: Any) -> None:
        self.stage = Stage(disk, **config).open()
        self.sent: set[_Sent] = set()
        self.acknowledged: list[tuple[int, _Sent]] = []
        self.seen: list[tuple[int, str, int, int]] = []
        chance = random.Random(seed)
        disk = self.stage.disk
        self.stage.store.on_arrival = lambda arrival: self.seen.append(
            (len(disk.events), arrival.topic, arrival.queue_id, arrival.queue_offset)
        )
        for turn in range(turns):
            for _ in range(chance.randint(1, 3)):
                topic, queue_id = chance.choice(QUEUES)
                body = bytes([65 + turn % 26]) * chance.choice([0, 1, 40, 300])
                self._send(topic, queue_id, body, b"k\x01" + b"v" * chance.choice([0, 10, 800]) + b"\x02")
            self.stage.clock.run_soon()
            if turn % 5 == 4:
                self.stage.clock.advance(4_000)

    def _send(self, topic: str, queue_id: int, body: bytes, properties: bytes) -> None:
        events = self.stage.disk.events
        (appended,) = self.stage.store.append([message(body, topic, queue_id, properties=properties)])
        sent = (topic, queue_id, appended.queue_offset, body + properties)
        self.sent.add(sent)
        answer = self.stage.store.when_durable(appended.end, sent)
        if isinstance(answer, tuple):
            return  # ASYNC_FLUSH promises nothing
        answer.then(lambda value: self.acknowledged.append((len(events), value)), _unexpected)


def _unexpected(error: BaseException) -> None:
    raise AssertionError(error)


def check(
    after: SimulatedDisk,
    acknowledged: list[_Sent],
    seen: list[tuple[str, int, int]],
    sent: set[_Sent],
    **config: Any,
) -> Stage:
    """What must hold on the disk that a crash left."""
    stage = Stage(after, **config).open()
    held = {key: stage.all(*key) for key in QUEUES}
    assert set(after.list("consumequeue")) <= {"A", "B"}
    for (topic, queue_id), messages in held.items():
        assert [stored.queue_offset for stored in messages] == list(range(len(messages)))
        for stored in messages:  # nothing half-written
            assert (topic, queue_id, stored.queue_offset, stored.body + stored.properties) in sent
    for topic, queue_id, offset, content in acknowledged:
        assert held[topic, queue_id][offset].body + held[topic, queue_id][offset].properties == content
    # the queues hold what the log holds, all of it
    reader = LogReader(after, "commitlog", stage.config.mapped_file_size_commit_log)
    limit = reader.file_size * len(after.list("commitlog"))
    logged = [stored for stored in Walk(reader, 0, limit, limit) if is_queued(stored.sys_flag)]
    assert sorted(stored.commit_log_offset for messages in held.values() for stored in messages) == [
        stored.commit_log_offset for stored in logged
    ]
    # no offset that somebody has seen is given again
    for topic, queue_id in QUEUES:
        used = [o for t, q, o in seen if (t, q) == (topic, queue_id)]
        (appended,) = stage.send(b"new", topic=topic, queue_id=queue_id)
        assert appended.queue_offset == len(held[topic, queue_id])
        assert appended.queue_offset > max(used, default=-1)
        assert stage.bodies(topic, queue_id) == [stored.body for stored in held[topic, queue_id]] + [b"new"]
    return stage


def crash_everywhere(workload: Workload, survives: Callable[[int], Survives], **config: Any) -> None:
    disk = workload.stage.disk
    for events in range(len(disk.events) + 1):
        after = disk.crashed(events, survives(events))
        acknowledged = [sent for at, sent in workload.acknowledged if at <= events]
        seen = [queue for at, *queue in workload.seen if at <= events]
        try:
            check(after, acknowledged, seen, workload.sent, **config)  # type: ignore[arg-type]
        except BaseException as error:
            last = disk.events[events - 1] if events else None
            error.add_note(f"crash behind event {events}: {last}")
            raise


def test_the_workload_does_all_there_is_to_do() -> None:
    workload = Workload()
    disk = workload.stage.disk
    assert len(disk.list("commitlog")) > 3
    assert len(disk.list("consumequeue/A/0")) > 1
    assert len([event for event in disk.events if event.path == "checkpoint" and event.size == 0 and event.data]) > 10
    assert len(workload.acknowledged) == len(workload.seen) > 40


@pytest.mark.parametrize("survives", [nothing_survives, everything_survives])
def test_every_prefix(survives: Survives) -> None:
    crash_everywhere(Workload(), lambda _: survives)


@pytest.mark.parametrize("seed", range(4))
def test_every_prefix_torn(seed: int) -> None:
    crash_everywhere(Workload(seed=seed), lambda events: torn(seed * 1000 + events))


@pytest.mark.parametrize("survives", [nothing_survives, everything_survives, torn(7)])
def test_every_prefix_with_async_flush(survives: Survives) -> None:
    """Nothing is acknowledged as durable, so messages may be missing: but what is there is right. Readers may have
    seen offsets that a power cut takes back; a kill takes none."""
    workload = Workload(flush_disk_type="ASYNC_FLUSH")
    if survives is not everything_survives:
        workload.seen.clear()
    crash_everywhere(workload, lambda _: survives, flush_disk_type="ASYNC_FLUSH")


def test_a_flush_makes_async_messages_durable() -> None:
    stage = Stage(flush_disk_type="ASYNC_FLUSH").open()
    stage.append(b"one")
    answer = Answer(stage.store.flush())
    assert not answer.answered
    stage.clock.run_soon()
    assert answer.answered
    stage.append(b"two")
    stage.clock.run_soon()
    assert Stage(stage.disk.crashed()).open().bodies() == [b"one"]


@pytest.mark.parametrize("seed", range(3))
def test_crash_in_recovery_then_again(seed: int) -> None:
    """Recovery itself is cut off behind every event, three times over; each time everything is still there."""
    workload = Workload(seed=seed, turns=12)
    acknowledged = [sent for _, sent in workload.acknowledged]
    first = workload.stage.disk.crashed(None, torn(seed))
    whole = Stage(first)
    whole.store.open()
    for events in range(len(first.events) + 1):
        second = first.crashed(events, torn(events))
        check(second, acknowledged, [], workload.sent)
        sent = workload.sent | {(*key, offset, b"new" + NEW_PROPERTIES) for key in QUEUES for offset in range(99)}
        third = second.crashed(events // 2, torn(events + 1))
        check(third, acknowledged, [], sent)


def test_messages_after_a_crash_are_as_durable() -> None:
    workload = Workload(turns=8)
    crashed = workload.stage.disk.crashed(None, torn(3))
    again = Workload(crashed, seed=5, turns=8)
    acknowledged = [(at, sent) for at, sent in again.acknowledged]
    for events in range(0, len(crashed.events) + 1, 3):
        due = [sent for at, sent in acknowledged if at <= events]
        check(crashed.crashed(events, torn(events)), due, [], workload.sent | again.sent)


@pytest.mark.parametrize("mode", ["SYNC_FLUSH", "ASYNC_FLUSH"])
def test_queues_on_disk_are_never_ahead_of_the_durable_log(mode: str) -> None:
    disk = Workload(flush_disk_type=mode).stage.disk

    def survives(event: Event) -> Sequence[tuple[int, int]]:
        return () if event.path.startswith("commitlog/") else everything_survives(event)

    for events in range(len(disk.events) + 1):
        after = disk.crashed(events, survives)
        reader = LogReader(after, "commitlog", 2048)
        durable = [stored.commit_log_offset for stored in Walk(reader, 0, 2048 * len(after.list("commitlog")), 0)]
        for path in after.names:
            if path.startswith("consumequeue/"):
                entries = ENTRY.iter_unpack(after.read_file(path))
                assert {position for position, size, _ in entries if size} <= set(durable)


def test_what_recovery_shows_is_durable() -> None:
    """The process dies, its page cache does not: the next process reads messages that no sync covered. Then the power
    goes."""
    held = HeldBackground()
    stage = Stage().open()
    stage.send(b"one")
    stage = Stage(stage.disk, flusher=held)
    stage.disk.locks.clear()
    stage.store.open()
    stage.append(b"two")
    stage.clock.run_soon()
    assert stage.bodies() == [b"one"]
    stage.disk.locks.clear()
    assert Stage(stage.disk).open().bodies() == [b"one", b"two"]
    assert Stage(stage.disk.crashed()).open().bodies() == [b"one", b"two"]


def test_the_tests_notice_a_missing_fdatasync(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole point of a flush, taken out."""
    monkeypatch.setattr(flush, "_sync", lambda files, checkpoint, target: None)
    with pytest.raises((AssertionError, IndexError)):
        crash_everywhere(Workload(), lambda _: nothing_survives)


def test_the_tests_notice_a_disk_that_only_pretends_to_sync() -> None:
    """A mutant disk whose log syncs do nothing, and are not recorded: messages are acknowledged too early."""

    class Forgetful(SimulatedDisk):
        def record(self, operation: Operation, path: str, **fields: Any) -> None:
            if not (operation is Operation.SYNC and path.startswith("commitlog/")):
                super().record(operation, path, **fields)

    with pytest.raises((AssertionError, IndexError, StoreRefused)):
        crash_everywhere(Workload(Forgetful()), lambda _: nothing_survives)
