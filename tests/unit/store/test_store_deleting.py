"""Deleting topics: gone for readers and for whatever comes after a crash, while their names may be used again."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import pytest
from store_stage import Answer, HeldBackground, Stage
from test_retention import HOUR_MS, aged, clean, fill
from test_store_crash import torn

from saturnmq.disk.simulated import Operation, SimulatedDisk, Survives, everything_survives, nothing_survives
from saturnmq.kernel.errors import ServiceUnavailable, SystemBusy
from saturnmq.store import deleted, verify
from saturnmq.store.findings import Finding
from saturnmq.store.results import FoundStatus, StoreRefused

OLD = [b"old %d" % number for number in range(30)]
NEW = [b"new %d" % number for number in range(12)]


def filled(**config: Any) -> Stage:
    """Two queues of A, over several files, and one of B."""
    stage = Stage(**config).open()
    for body in OLD:
        stage.send(body, topic="A")
        stage.send(body, topic="A", queue_id=1)
        stage.send(body, topic="B")
    stage.clock.advance(20_000)
    return stage


def damages(disk: SimulatedDisk, stage: Stage) -> list[Finding]:
    findings: list[Finding] = []
    verify.verify(disk, stage.config, findings.append)
    return [finding for finding in findings if finding.is_damage]


def test_a_deleted_topic_is_gone_and_its_name_begins_anew() -> None:
    stage = filled()
    stage.wait(stage.store.delete(["A", "unknown"]))
    assert stage.store.topics() == ["B"]
    assert stage.store.queues("A") == []
    assert (stage.store.max_offset("A", 0), stage.bodies("A")) == (0, [])
    assert stage.wait(stage.store.get("A", 0, 3, 1, 1000)).status is FoundStatus.EMPTY
    assert [one.queue_offset for one in stage.send(*NEW, topic="A")] == list(range(len(NEW)))
    assert (stage.bodies("A"), stage.bodies("B")) == (NEW, OLD)
    assert not [name for name in stage.disk.names if name.startswith("consumequeue/A/1/")]


def test_messages_that_were_not_written_yet_go_too() -> None:
    stage = filled()
    stage.append(b"on its way", topic="A")
    answer = Answer(stage.store.delete(["A"]))
    stage.append(b"and one more", topic="A")  # before the deletion has begun
    stage.clock.run_soon()
    assert (answer.answered, answer.error) == (True, None)
    assert stage.store.queues("A") == []
    stage.send(b"first", topic="A")
    assert stage.bodies("A") == [b"first"]


def test_while_a_topic_is_being_deleted_it_takes_nothing_and_others_go_on() -> None:
    background = HeldBackground()
    stage = filled()
    stage.store._background = stage.store._queues._background = background
    answer = Answer(stage.store.delete(["A"]))
    with pytest.raises(SystemBusy, match="the topic A is being deleted"):
        stage.append(b"too early", topic="A")
    assert stage.store.max_offset("A", 0) == 0
    stage.send(b"other", topic="B")
    assert not answer.answered
    while background.jobs:
        background.go()
        stage.clock.run_soon()
    assert (answer.answered, answer.error) == (True, None)
    stage.send(b"now", topic="A")
    assert stage.bodies("A") == [b"now"]


def test_deletions_and_writes_of_queues_take_turns() -> None:
    background = HeldBackground()
    stage = Stage(reader=background).open()
    stage.append(b"a", topic="A")
    stage.append(b"b", topic="B")
    stage.clock.advance(1_500)  # the entries are on their way to the files
    assert background.jobs
    answers = [Answer(stage.store.delete([topic])) for topic in ("A", "B")]
    while background.jobs:
        background.go()
        stage.clock.run_soon()
    assert all(answer.answered and answer.error is None for answer in answers)
    assert stage.store.topics() == []
    stage.append(b"c", topic="B")
    for _ in range(8):
        stage.clock.advance(3_000)
        background.go()
    assert stage.disk.names.keys() >= {"consumequeue/B/0/00000000000000000000"}


def test_a_read_in_a_thread_finds_the_topic_gone() -> None:
    background = HeldBackground()
    stage = filled()
    stage.store._background = background
    stage.disk.cold.update(name for name in stage.disk.names if name.startswith("consumequeue/A/0/"))
    reading = Answer(stage.store.get("A", 0, 0, 32, 1 << 20))
    deleting = Answer(stage.store.delete(["A"]))
    (read,), background.jobs = background.jobs[:1], background.jobs[1:]
    while background.jobs:
        background.go()
        stage.clock.run_soon()
    assert deleting.answered
    read()
    stage.clock.run_soon()
    assert reading.value.status is FoundStatus.EMPTY


@pytest.mark.parametrize("gone", [lambda stage: None, lambda stage: remove_queues(stage.disk)])
def test_queues_made_anew_from_the_log_do_not_have_what_was_deleted(gone: Callable[[Stage], None]) -> None:
    stage = filled()
    stage.wait(stage.store.delete(["A"]))
    stage.send(*NEW, topic="A")
    assert damages(stage.disk, stage) == []
    disk = stage.disk.crashed(survives=everything_survives)
    after = Stage(disk)
    gone(after)
    after.open()
    assert (after.bodies("A"), after.bodies("B")) == (NEW, OLD)
    assert after.store.queues("A") == [0]
    assert (
        after.wait(after.store.query("A", "k", 64, 0, 1 << 62))
        == after.wait(after.store.get("A", 0, 0, 64, 1 << 20)).records[::-1]
    )


def remove_queues(disk: SimulatedDisk) -> None:
    disk.names = {path: inode for path, inode in disk.names.items() if not path.startswith("consumequeue/")}
    disk.directories = {path for path in disk.directories if not path.startswith("consumequeue")}


@pytest.mark.parametrize("flush_disk_type", ["SYNC_FLUSH", "ASYNC_FLUSH"])
@pytest.mark.parametrize("survives", [nothing_survives, everything_survives, *(torn(seed) for seed in range(4))])
def test_a_crash_at_any_moment_leaves_the_old_messages_or_the_new_ones(
    survives: Survives, flush_disk_type: str
) -> None:
    stage = Stage(flush_disk_type=flush_disk_type).open()
    for body in OLD[:6]:
        stage.send(body, topic="A")
        stage.send(body, topic="B")
    stage.clock.advance(12_000)
    stage.wait(stage.store.flush())
    begun = len(stage.disk.events)
    deletion = Answer(stage.store.delete(["A"]))
    stage.clock.run_soon()
    assert deletion.answered
    over, sent = len(stage.disk.events), []
    for body in NEW[:3]:
        stage.send(body, topic="A")
        stage.send(body, topic="B")
        stage.wait(stage.store.flush())
        sent.append((len(stage.disk.events), body))
    for events in range(begun, len(stage.disk.events) + 1):
        after = Stage(stage.disk.crashed(events, survives), flush_disk_type=flush_disk_type).open()
        bodies, others = after.bodies("A"), after.bodies("B")
        durable = [body for at, body in sent if at <= events]
        if bodies[:1] == OLD[:1]:
            assert (bodies, events < over) == (OLD[:6], True)
        else:
            assert bodies == NEW[: len(bodies)]
            assert len(bodies) >= len(durable)
        assert others[:6] == OLD[:6]
        assert others[6:] == NEW[: len(others) - 6]
        assert len(others) - 6 >= len(durable)
        assert after.send(b"next", topic="A")[0].queue_offset == len(bodies)
        after.close()
        assert damages(after.disk, after) == []


def test_a_deletion_that_finds_no_room_changes_nothing() -> None:
    stage = filled()
    stage.disk.faults[Operation.CREATE, deleted.PATH] = errno.ENOSPC
    with pytest.raises(ServiceUnavailable, match=deleted.PATH):
        stage.wait(stage.store.delete(["A"]))
    assert stage.bodies("A") == OLD
    stage.send(b"more", topic="A")
    stage.disk.faults.clear()
    stage.wait(stage.store.delete(["A"]))
    assert stage.bodies("A") == []


def test_half_a_deletion_is_finished_by_the_next_start() -> None:
    stage = filled()
    stage.disk.faults[Operation.UNLINK, "consumequeue/A/1"] = errno.EIO
    with pytest.raises(ServiceUnavailable, match="consumequeue/A/1"):
        stage.wait(stage.store.delete(["A"]))
    with pytest.raises(SystemBusy):
        stage.append(b"x", topic="A")
    stage.disk.faults.clear()
    stage.close()
    after = stage.again()
    assert after.store.topics() == ["B"]
    after.send(b"new", topic="A", queue_id=1)
    assert after.bodies("A", 1) == [b"new"]


def test_nothing_is_deleted_by_a_store_that_stops() -> None:
    stage = filled()
    stage.wait(stage.store.stop())
    with pytest.raises(ServiceUnavailable):
        stage.wait(stage.store.delete(["A"]))


def test_what_was_deleted_is_forgotten_when_the_log_no_longer_has_it() -> None:
    stage = aged()
    fill(stage, 10, "A")
    stage.wait(stage.store.delete(["A"]))
    fill(stage, 20, "B")
    assert deleted.read(stage.disk).keys() == {"A"}
    stage.clock.advance(HOUR_MS)
    clean(stage)
    assert stage.store.first > deleted.read(stage.disk)["A"]
    stage.send(b"c", topic="C")
    stage.wait(stage.store.delete(["C"]))
    assert deleted.read(stage.disk).keys() == {"C"}


def test_a_damaged_file_refuses_the_store() -> None:
    stage = filled()
    stage.wait(stage.store.delete(["A"]))
    stage.close()
    stage.disk.replace_file(deleted.PATH, b"{")
    with pytest.raises(StoreRefused, match=deleted.PATH):
        stage.again()


def test_a_write_that_was_due_waits_for_the_deletion() -> None:
    """Else it makes the queue's files anew, and the next sync looks for files that the deletion took."""
    stage = filled()
    stage.send(b"not in its queue's file yet", topic="A")  # which has a write planned
    background = HeldBackground()
    stage.store._background = stage.store._queues._background = background
    answer = Answer(stage.store.delete(["A"]))
    stage.clock.advance(20_000)  # the write and a checkpoint are due
    while not answer.answered:
        background.go()
        stage.clock.run_soon()
    assert answer.error is None
    stage.send(b"other", topic="B")
    for _ in range(4):
        stage.clock.advance(20_000)
        while background.jobs:
            background.go()
            stage.clock.run_soon()
    assert stage.store.topics() == ["B"]
    stage.send(b"taken", topic="B")
