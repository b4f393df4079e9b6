"""Old files go, and nothing else; whoever reads meanwhile notices nothing but that the messages are gone."""

from __future__ import annotations

import errno
import logging
from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise
from typing import Any

import pytest
from store_stage import Answer, HeldBackground, Stage

from saturnmq.disk.simulated import Event, Operation, SimulatedDisk, everything_survives, nothing_survives
from saturnmq.kernel.errors import NotFound, SaturnError, ServiceUnavailable
from saturnmq.kernel.later import Later
from saturnmq.kernel.ports import Boundary
from saturnmq.store.findings import Finding
from saturnmq.store.results import FoundStatus
from saturnmq.store.retention import Cleaned, parse_hours
from saturnmq.store.verify import verify
from saturnmq.testing.clock import VirtualClock

HOUR_MS = 3_600_000
ALWAYS = ";".join(map(str, range(24)))


def aged(**settings: Any) -> Stage:
    """A store whose log files (6 of these messages each) are expired after an hour."""
    clock, disk = VirtualClock(), SimulatedDisk()
    disk.now_ms = clock.now_ms
    fields: dict[str, Any] = {"file_reserved_time": 1, "delete_when": ALWAYS, "message_index_enable": False}
    return Stage(disk, clock=clock, **(fields | settings)).open()


def fill(stage: Stage, count: int, topic: str = "Topic", queue_id: int = 0) -> None:
    for number in range(count):
        stage.send(b"%06d" % number + b"x" * 194, topic=topic, queue_id=queue_id)
    stage.clock.advance(20_000)


def log_files(stage: Stage) -> list[int]:
    return [int(name) for name in stage.disk.list("commitlog")]


def queue_files(stage: Stage, queue: str = "Topic/0") -> list[int]:
    return [int(name) // 20 for name in stage.disk.list(f"consumequeue/{queue}")]


def numbers(stage: Stage, queue_id: int = 0) -> list[int]:
    return [int(body[:6]) for body in stage.bodies(queue_id=queue_id)]


def clean(stage: Stage, **options: bool) -> Cleaned:
    """Ask for it, and see it through."""
    answer = Answer(stage.store.clean(**options))
    stage.clock.advance(60_000)
    assert answer.answered
    if answer.error is not None:
        raise answer.error
    assert isinstance(answer.value, Cleaned)
    return answer.value


# -------------------------------------------------------------------------------------------------------- when


def test_hours() -> None:
    assert parse_hours("04") == {4}
    assert parse_hours(" 4; 16;") == {4, 16}
    for text in ("24", "4,5", "four", "-1"):
        with pytest.raises(ValueError, match=r"deleteWhen = .* cannot be used: write hours"):
            parse_hours(text)
    with pytest.raises(ValueError, match="deleteWhen"):
        Stage(delete_when="noon")


def test_expired_files_go_in_their_hour_and_only_they() -> None:
    now = datetime.fromtimestamp(VirtualClock().now_ms() // 1000)
    stage = aged(delete_when=str((now.hour + 3) % 24), file_reserved_time=2)
    fill(stage, 20)
    files = log_files(stage)
    stage.clock.advance(HOUR_MS)
    fill(stage, 6)
    last = log_files(stage)[-1]
    begin_ms = VirtualClock().now_ms() - now.minute * 60_000 - now.second * 1000 + 3 * HOUR_MS
    stage.clock.advance(begin_ms - stage.clock.now_ms() - 1)
    assert log_files(stage)[0] == 0, "it is not time yet"
    stage.clock.advance(60_000)
    kept = log_files(stage)
    assert kept[0] in files[2:]
    assert kept[-1] == last
    first = stage.store.min_offset("Topic", 0)
    assert numbers(stage) == [*range(20), *range(6)][first:]
    assert 10 < first < 20


def test_a_file_is_expired_a_time_after_its_last_write() -> None:
    stage = aged()
    fill(stage, 13)
    stage.clock.advance(HOUR_MS - 20_000 - 20_000)
    assert log_files(stage)[0] == 0
    stage.clock.advance(60_000)
    assert log_files(stage)[0] > 0


def test_the_file_that_is_written_to_stays() -> None:
    stage = aged()
    fill(stage, 20)
    writing = stage.store.end // 2048 * 2048
    stage.clock.advance(100 * HOUR_MS)
    assert log_files(stage)[0] == writing
    stage.send(b"more")
    assert stage.bodies()[-1] == b"more"


def test_a_full_disk_makes_it_time_but_deletes_nothing_younger(caplog: pytest.LogCaptureFixture) -> None:
    now = datetime.fromtimestamp(VirtualClock().now_ms() // 1000)
    stage = aged(delete_when=str((now.hour + 12) % 24), file_reserved_time=2)
    fill(stage, 20)
    stage.disk.spaces[""] = stage.disk.spaces["commitlog"] = (99, 1 << 40)
    stage.clock.advance(HOUR_MS)
    assert log_files(stage)[0] == 0, "the disk is not full"
    stage.disk.spaces[""] = stage.disk.spaces["commitlog"] = (96 << 40, 4 << 40)
    stage.clock.advance(30_000)
    assert log_files(stage)[0] == 0, "nothing is expired"
    assert [record.message for record in caplog.records if "diskMaxUsedSpaceRatio" in record.message] == [
        "the disk of . is 96 % full (diskMaxUsedSpaceRatio 75), and no log file can be deleted (fileReservedTime 2 "
        "hours)"
    ]
    stage.clock.advance(HOUR_MS)
    assert log_files(stage)[0] > 0
    assert stage.append(b"x"), "there is room enough"


@pytest.mark.parametrize("forced", [False, True])
def test_forced_cleaning_takes_the_oldest_whatever_their_age(forced: bool) -> None:
    stage = aged(clean_file_forcibly_enable=forced, file_reserved_time=72)
    fill(stage, 20)
    stage.disk.spaces[""] = stage.disk.spaces["commitlog"] = (84, 16)
    stage.clock.advance(90_000)
    assert log_files(stage)[0] == 0
    stage.disk.spaces[""] = stage.disk.spaces["commitlog"] = (86, 14)
    stage.clock.advance(30_000)
    assert (log_files(stage)[0] > 0) is forced


def test_files_go_in_batches_with_pauses() -> None:
    stage = aged(delete_file_batch_max=2, delete_commit_log_files_interval=500)
    fill(stage, 40)
    files, gone = log_files(stage), []
    stage.clock.advance(HOUR_MS - 30_000)
    while stage.clock.now_ms() < VirtualClock().now_ms() + HOUR_MS + 60_000:
        stage.clock.advance(100)
        if log_files(stage) != files:
            assert log_files(stage) == files[1:]
            files = log_files(stage)
            gone.append(stage.clock.now_ms())
    assert len(gone) == 6
    assert [after - before for before, after in pairwise(gone)] == [500, 9_500, 500, 9_500, 500]


def test_whoever_asks_need_not_wait_for_the_hour() -> None:
    now = datetime.fromtimestamp(VirtualClock().now_ms() // 1000)
    stage = aged(delete_when=str((now.hour + 12) % 24), delete_file_batch_max=1, mapped_file_size_consume_queue=100)
    fill(stage, 22)
    assert clean(stage) == Cleaned(0, 0, 0)
    stage.clock.advance(HOUR_MS)
    answers = [Answer(stage.store.clean()) for _ in range(2)]
    stage.clock.advance(1_000)
    assert [answer.value for answer in answers] == [Cleaned(1, 1, 0), Cleaned(1, 1, 0)]
    assert log_files(stage)[0] == 4096
    stage.disk.create("consumequeue/Topic/0/00000000000000000100").close()  # it came back
    assert clean(stage, commit_log=False) == Cleaned(0, 1, 0)
    assert log_files(stage)[0] == 4096


# ------------------------------------------------------------------------------------------- queues and index


def test_queues_begin_with_the_first_message_left() -> None:
    stage = aged(mapped_file_size_consume_queue=100)
    fill(stage, 2, queue_id=7)
    fill(stage, 30)
    stage.clock.advance(HOUR_MS)
    assert stage.store.min_offset("Topic", 0) > 20
    first = stage.store.min_offset("Topic", 0)
    assert numbers(stage) == list(range(first, 30))
    assert queue_files(stage)[0] <= first < queue_files(stage)[0] + 5
    found = stage.wait(stage.store.get("Topic", 0, 0, 32, 1 << 20))
    assert (found.status, found.next_offset, found.min_offset) == (FoundStatus.BEFORE, first, first)
    assert stage.store.stored_ms_at("Topic", 0, first - 1) == -1
    assert stage.wait(stage.store.offset_by_time("Topic", 0, 0, Boundary.LOWER)) == first
    assert stage.store.record_at(0) is None
    stage.close()
    again = stage.again()
    assert again.store.min_offset("Topic", 0) == first
    assert numbers(again) == list(range(first, 30))
    assert (again.store.min_offset("Topic", 7), numbers(again, 7)) == (2, [])


def test_an_offset_is_not_given_twice() -> None:
    """A queue without any message left goes on where it was."""
    stage = aged()
    fill(stage, 5, queue_id=3)
    fill(stage, 20)
    stage.clock.advance(HOUR_MS)
    assert (stage.store.min_offset("Topic", 3), stage.store.max_offset("Topic", 3)) == (5, 5)
    assert stage.append(b"next", queue_id=3)[0].queue_offset == 5
    stage.clock.advance(2_000)
    assert stage.bodies(queue_id=3) == [b"next"]
    for end in (Stage.close, lambda stage: None):
        end(stage)
        stage = Stage(stage.disk.crashed(), clock=stage.clock).open()
        assert stage.store.min_offset("Topic", 3) == 5
        assert stage.bodies(queue_id=3) == [b"next"]


def test_queues_that_nobody_used_since_the_start_lose_their_files_too() -> None:
    stage = aged(mapped_file_size_consume_queue=100)
    fill(stage, 30)
    fill(stage, 30, queue_id=1)
    stage.close()
    stage = stage.again()
    stage.clock.advance(HOUR_MS)
    assert stage.store._queues.known == {}
    assert queue_files(stage, "Topic/0") == [25], "the last one stays"
    files = queue_files(stage, "Topic/1")
    assert 15 <= files[0] <= stage.store.min_offset("Topic", 1) < files[0] + 5
    assert stage.store.min_offset("Topic", 0) == stage.store.max_offset("Topic", 0) == 30


def test_entries_that_are_not_written_yet() -> None:
    """They say which offset comes next, which nothing else does when their messages are gone."""
    stage = aged()
    stage.disk.faults[Operation.CREATE, "consumequeue/"] = errno.ENOSPC
    fill(stage, 20)
    stage.clock.advance(HOUR_MS)
    assert stage.store._queues.unwritten == 20
    assert log_files(stage)[0] == 0
    stage.disk.faults.clear()
    stage.clock.advance(60_000)
    first = stage.store.min_offset("Topic", 0)
    assert 10 < first < 20
    assert numbers(stage) == list(range(first, 20))
    stage.close()
    assert numbers(stage.again()) == list(range(first, 20))


def test_index_files_without_any_message_go() -> None:
    stage = aged(message_index_enable=True, max_hash_slot_num=10, max_index_num=20)
    fill(stage, 40)
    files = stage.disk.list("index")
    assert len(files) > 3
    stage.clock.advance(HOUR_MS)
    kept = stage.disk.list("index")
    assert kept == files[-len(kept) :]
    assert 0 < len(kept) < len(files)
    first = stage.store.min_offset("Topic", 0)
    found = stage.wait(stage.store.query("Topic", "k", 64, 0, 1 << 60))
    assert len(found) == 40 - first


# ----------------------------------------------------------------------------------------------------- readers


def test_a_read_in_a_thread_whose_file_goes_begins_again() -> None:
    stage = aged(mapped_file_size_consume_queue=100)
    fill(stage, 30)
    held = HeldBackground()
    paths = [f"commitlog/{name}" for name in stage.disk.list("commitlog")]
    paths += [f"consumequeue/Topic/0/{name}" for name in stage.disk.list("consumequeue/Topic/0")]
    stage.disk.cold.update(paths)
    store = stage.store
    background, store._background = store._background, held
    reads = [
        Answer(store.get("Topic", 0, 1, 32, 1 << 20)),
        Answer(store.record_at(0)),
        Answer(store.stored_ms_at("Topic", 0, 2)),
        Answer(store.offset_by_time("Topic", 0, VirtualClock().now_ms(), Boundary.LOWER)),
        Answer(store.position_at("Topic", 0, 1)),
    ]
    store._background = background
    assert len(held.jobs) == 5
    stage.clock.advance(HOUR_MS)
    first = store.min_offset("Topic", 0)
    assert first > 20
    held.go()
    stage.clock.run_soon()
    assert [answer.error for answer in reads] == [None] * 5
    assert reads[0].value.status is FoundStatus.BEFORE
    assert [answer.value for answer in reads[1:]] == [None, -1, first, -1]


def test_a_file_that_is_missing_for_no_reason_is_an_error() -> None:
    stage = aged()
    fill(stage, 20)
    path = f"commitlog/{stage.disk.list('commitlog')[0]}"
    stage.store._open_files.drop(path)
    stage.disk.unlink(path)
    with pytest.raises(FileNotFoundError):
        stage.wait(stage.store.get("Topic", 0, 0, 32, 1 << 20))


def test_what_is_deleted_is_not_held_open() -> None:
    stage = aged(mapped_file_size_consume_queue=100)
    fill(stage, 30)
    assert numbers(stage) == list(range(30))
    before = stage.disk.open_files
    files = len(log_files(stage)) + len(queue_files(stage))
    stage.clock.advance(HOUR_MS)
    assert before - stage.disk.open_files >= files - len(log_files(stage)) - len(queue_files(stage)) > 7
    stage.close()
    assert stage.disk.open_files == 0


def test_a_queue_file_that_goes_before_its_sync() -> None:
    stage = aged(clean_file_forcibly_enable=True, disk_min_free_bytes=0, mapped_file_size_consume_queue=100)
    stage.disk.spaces[""] = stage.disk.spaces["commitlog"] = (96, 4)
    stage.clock.advance(55_000)
    stage.send(b"x")
    stage.clock.advance(2_000)
    for number in range(30):
        stage.send(b"%06d" % number + b"x" * 194)
    stage.clock.advance(3_000)
    assert any(path.startswith("consumequeue/") for path in stage.store._queues._unsynced)
    stage.clock.advance(20_000)
    assert len(queue_files(stage)) < 4
    stage.send(b"x")
    stage.clock.advance(20_000)
    stage.close()
    assert stage.disk.open_files == 0
    assert stage.again().bodies()[-1] == b"x"


# ----------------------------------------------------------------------------------------------------- lodgers


def test_a_lodger_keeps_what_it_needs(caplog: pytest.LogCaptureFixture) -> None:
    stage = aged()
    fill(stage, 30)
    asked: list[int] = []
    needs = stage.wait(stage.store.position_at("Topic", 0, 8))

    def lodger(end: int) -> int:
        asked.append(end)
        return min(end, needs)

    stage.store.lodgers["somebody"] = lodger
    stage.store.lodgers["nobody"] = lambda end: end
    stage.clock.advance(HOUR_MS)
    assert set(asked) == {stage.store.end // 2048 * 2048}
    assert log_files(stage)[0] == needs // 2048 * 2048 > 0
    assert numbers(stage)[0] <= 8
    [said] = {record.message for record in caplog.records if "kept" in record.message}
    assert said == f"the commit log is expired up to {asked[0]}, but kept from {needs} on for somebody"
    needs = 1 << 60
    stage.clock.advance(20_000)
    assert log_files(stage)[0] == asked[0]


def test_a_lodger_may_have_to_look_it_up() -> None:
    stage = aged()
    fill(stage, 20)
    later: Later[int] = Later()
    stage.store.lodgers["slow"] = lambda end: later
    stage.clock.advance(HOUR_MS)
    assert log_files(stage)[0] == 0
    later.resolve(2048)
    stage.clock.run_soon()
    assert log_files(stage)[0] == 2048


def test_a_lodger_that_cannot_tell_keeps_all() -> None:
    stage = aged()
    fill(stage, 20)

    def fails(end: int) -> int:
        raise NotFound("who knows")

    stage.store.lodgers["confused"] = fails
    stage.clock.advance(HOUR_MS)
    assert log_files(stage)[0] == 0
    with pytest.raises(NotFound):
        clean(stage)
    del stage.store.lodgers["confused"]
    assert clean(stage).log_files > 0


def test_what_lodgers_did_is_durable_before_a_file_goes() -> None:
    """A lodger moves its message on with an append; a power cut must not take both."""
    stage = aged(flush_disk_type="ASYNC_FLUSH", flush_interval_commit_log=1 << 40)
    fill(stage, 20)

    def moves(end: int) -> int:
        stage.append(b"moved")
        return end

    stage.store.lodgers["mover"] = moves
    stage.clock.advance(HOUR_MS + 60_000)
    events = stage.disk.events
    unlinks = [at for at, event in enumerate(events) if event.operation is Operation.UNLINK]
    after = Stage(stage.disk.crashed(unlinks[0] + 1), clock=stage.clock).open()
    assert b"moved" in after.bodies()


# ------------------------------------------------------------------------------ crashes, failures and damage


@pytest.mark.parametrize("survives", [nothing_survives, everything_survives, lambda event: _only_unlinks(event)])
def test_a_crash_at_any_moment_of_a_cleaning(survives: Any) -> None:
    stage = aged(mapped_file_size_consume_queue=100, message_index_enable=True, max_index_num=10)
    fill(stage, 30)
    fill(stage, 8, queue_id=2)
    begin = len(stage.disk.events)
    stage.clock.advance(HOUR_MS)
    assert log_files(stage)[0] == stage.store.end // 2048 * 2048
    states = 0
    for end in range(begin, len(stage.disk.events) + 1):
        disk, clock = stage.disk.crashed(end, survives), VirtualClock(stage.clock.now_ms())
        findings: list[Finding] = []
        verify(disk, stage.config, findings.append)
        assert not any(finding.is_damage for finding in findings), findings
        after = Stage(disk, clock=clock, mapped_file_size_consume_queue=100, max_index_num=10).open()
        low = after.store.min_offset("Topic", 0)
        assert numbers(after) == list(range(low, 30))
        assert numbers(after, 2) == list(range(8))[-len(numbers(after, 2)) :]
        assert after.append(b"x")[0].queue_offset == 30
        after.close()
        states += 1
    assert states > 20


def _only_unlinks(event: Event) -> Sequence[tuple[int, int]]:
    """Deletions are quick to reach the disk, and the last ones first."""
    return everything_survives(event) if event.operation is Operation.UNLINK else ()


def test_a_file_that_cannot_be_deleted_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    stage = aged()
    fill(stage, 20)
    stage.disk.faults[Operation.UNLINK, "commitlog/"] = errno.EIO
    stage.clock.advance(HOUR_MS)
    assert log_files(stage)[0] == 0
    assert any("could not be deleted" in record.message for record in caplog.records)
    low = stage.store.min_offset("Topic", 0)
    assert numbers(stage) == list(range(low, 20))
    stage.disk.faults.clear()
    stage.clock.advance(20_000)
    assert log_files(stage)[0] > 0
    assert numbers(stage) == list(range(low, 20))


def test_a_store_that_stops_does_not_go_on_deleting(caplog: pytest.LogCaptureFixture) -> None:
    stage = aged(delete_commit_log_files_interval=1_000)
    fill(stage, 40)
    caplog.set_level(logging.WARNING)
    now = datetime.fromtimestamp(stage.clock.now_ms() // 1000)
    assert now is not None
    stage.clock.advance(HOUR_MS - 30_000)
    while log_files(stage)[0] == 0:
        stage.clock.advance(100)
    files = log_files(stage)
    asked = Answer(stage.store.clean())
    assert not asked.answered
    stage.close()
    stage.clock.advance(60_000)
    assert isinstance(asked.error, ServiceUnavailable)
    assert log_files(stage) == files
    assert stage.disk.open_files == 0
    assert [numbers(stage.again())[-1]] == [39]


def test_stopping_waits_for_the_file_that_goes() -> None:
    held = HeldBackground()
    stage = aged()
    fill(stage, 20)
    stage.store._retention._background = held
    stage.clock.advance(HOUR_MS)
    assert len(held.jobs) == 1
    stopped = Answer(stage.store.stop())
    stage.clock.run_soon()
    assert not stopped.answered
    held.go()
    stage.clock.run_soon()
    assert stopped.answered
    assert log_files(stage)[0] == 0
    with pytest.raises(SaturnError):
        stage.wait(stage.store.clean(commit_log=False))
    stage.store.close()


@pytest.mark.parametrize("offset", range(10, 26))
@pytest.mark.parametrize("position", [1, 1 << 40])
def test_a_damaged_entry_hides_no_other_message(offset: int, position: int) -> None:
    """It leads before the log, as those of deleted messages do, or behind it."""
    stage = aged(mapped_file_size_consume_queue=100)
    fill(stage, 20)
    stage.clock.advance(HOUR_MS // 2)
    fill(stage, 20)
    places = [(stored.commit_log_offset, stored.queue_offset) for stored in stage.all()]
    file = stage.disk.open(f"consumequeue/Topic/0/{offset // 5 * 100:020d}")
    file.pwrite(position.to_bytes(8, "big"), offset % 5 * 20)
    file.close()
    stage.clock.advance(HOUR_MS // 2)
    left = [at for in_log, at in places if in_log >= log_files(stage)[0]]
    assert 10 < len(left) < 30
    if (offset, position) == (left[0], 1):
        del left[0]  # nothing tells it from the last one that is deleted
    assert [stored.queue_offset for stored in stage.all()] == left
    stage.close()
    assert [stored.queue_offset for stored in stage.again().all()] == left
