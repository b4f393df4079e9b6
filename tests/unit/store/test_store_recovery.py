"""Opening stores that are not as they should be."""

from __future__ import annotations

import logging
import struct
from typing import Any

import pytest
from store_stage import Answer, Stage

from saturnmq.disk.simulated import everything_survives, nothing_survives
from saturnmq.store.consumequeue import ENTRY
from saturnmq.store.results import StoreRefused
from saturnmq.store.walk import Walk


def damage(stage: Stage, path: str, offset: int, data: bytes) -> None:
    file = stage.disk.open(path)
    file.pwrite(data, offset)
    file.fdatasync()
    file.close()


def killed(stage: Stage, **config: Any) -> Stage:
    """The process dies; everything that it wrote stays."""
    return Stage(stage.disk.crashed(survives=everything_survives), clock=stage.clock, **config)


FIRST = "commitlog/00000000000000000000"
#: and no index, which reads the log in the background
ONE_FILE: dict[str, Any] = {"mapped_file_size_commit_log": 1 << 20, "message_index_enable": False}


def test_a_second_store_is_kept_out() -> None:
    stage = Stage().open()
    with pytest.raises(StoreRefused, match="lock: another broker uses this store"):
        Stage(stage.disk).open()
    stage.close()
    Stage(stage.disk).open()


def test_an_empty_store_opens_again() -> None:
    stage = Stage().open()
    stage.close()
    assert stage.again().store.end == 0


def test_a_clean_start_does_not_read_the_log() -> None:
    stage = Stage().open()
    for _ in range(20):
        stage.send(b"x" * 200)
    stage.close()
    before = len(stage.disk.events)
    again = stage.again()
    assert not [event for event in stage.disk.events[before:] if event.operation == "write" and "log/" in event.path]
    assert len(again.all()) == 20


def test_the_torn_end_of_a_foreign_log_is_cut() -> None:
    stage = Stage().open()
    for _ in range(5):
        stage.send(b"x" * 150)
    last = stage.all()[-1]
    stage.disk.replace_file("abort", b"4242")  # as Apache's broker writes it
    damage(stage, "checkpoint", 40, bytes(40))
    damage(stage, FIRST, last.commit_log_offset + 100, bytes(500))
    again = killed(stage).open()
    assert len(again.all()) == 4
    assert again.store.end == last.commit_log_offset


def test_older_remains_behind_the_end_are_no_messages() -> None:
    """Apache cuts a log by forgetting; what stood there stays, until something is written over it."""
    stage = Stage().open()
    old = [stage.send(b"old" * 50)[0] for _ in range(5)]
    stage.clock.advance(10_000)
    remains = stage.disk.read_file(FIRST)[old[2].commit_log_offset : old[-1].end]
    stage.close()

    other = Stage(clock=stage.clock).open()
    new = [other.send(b"new" * 50)[0] for _ in range(2)]
    assert new[-1].end == old[2].commit_log_offset
    other.send(b"last")
    end = other.store.end
    other.close()
    damage(other, FIRST, end, remains[end - old[2].commit_log_offset :])
    damage(other, "checkpoint", 32, bytes(8))  # Apache does not know it
    again = Stage(other.disk, clock=stage.clock).open()
    assert again.store.end == end
    assert len(again.all()) == 3
    again.send(b"x" * 10)
    assert not any(again.disk.read_file(FIRST)[again.store.end :])


def test_a_missing_log_file_is_refused() -> None:
    stage = Stage().open()
    for _ in range(30):
        stage.send(b"x" * 200)
    stage.close()
    stage.disk.unlink("commitlog/00000000000000002048")
    with pytest.raises(StoreRefused, match="commitlog/00000000000000002048 is missing"):
        stage.again()


@pytest.mark.parametrize("close", [True, False])
def test_a_missing_last_file_is_refused(close: bool) -> None:
    stage = Stage().open()
    for _ in range(30):
        stage.send(b"x" * 200)
    if close:
        stage.close()
    for name in stage.disk.list("commitlog")[2:]:
        stage.disk.unlink(f"commitlog/{name}")
    with pytest.raises(StoreRefused, match="is missing: the commit log was durable up to"):
        killed(stage).open()


def test_other_file_sizes_are_refused() -> None:
    stage = Stage().open()
    for _ in range(30):
        stage.send(b"x" * 200)
    stage.close()
    for size in (1024, 4096):
        with pytest.raises(StoreRefused, match="mappedFileSizeCommitLog"):
            stage.again(mapped_file_size_commit_log=size)
    again = stage.again(mapped_file_size_consume_queue=300)
    with pytest.raises(StoreRefused, match="mappedFileSizeConsumeQueue"):
        again.store.get("Topic", 0, 0, 32, 1000)


def test_foreign_formats_are_refused_by_name() -> None:
    stage = Stage()
    stage.disk.mkdir("consumequeue")
    stage.disk.create("consumequeue/CURRENT").close()
    with pytest.raises(StoreRefused, match="RocksDB"):
        stage.open()


def test_the_log_may_live_elsewhere() -> None:
    stage = Stage(store_path_commit_log="other/log").open()
    stage.send(b"x")
    stage.close()
    assert stage.disk.list("other/log") == ["00000000000000000000", "00000000000000002048"]
    assert stage.again().bodies() == [b"x"]


def test_deleted_queues_come_back_from_the_log() -> None:
    stage = Stage().open()
    for number in range(30):
        stage.send(b"%d" % number * 50, queue_id=number % 2)
    before = [stage.bodies(queue_id=0), stage.bodies(queue_id=1)]
    stage.close()
    for path in [path for path in stage.disk.names if path.startswith("consumequeue/")]:
        stage.disk.unlink(path)
    stage.disk.directories = {path for path in stage.disk.directories if not path.startswith("consumequeue")}
    again = stage.again()
    assert [again.bodies(queue_id=0), again.bodies(queue_id=1)] == before


def test_one_deleted_queue_comes_back_after_a_crash() -> None:
    """The walk begins at the last checkpoint, where the queue has offsets whose predecessors are gone: then all is
    read."""
    stage = Stage().open()
    for number in range(40):
        stage.send(b"%d" % number * 50, queue_id=number % 2)
        stage.clock.advance(2_000)
    stage.send(b"since the checkpoint", queue_id=1)
    before = [stage.bodies(queue_id=0), stage.bodies(queue_id=1)]
    for path in [path for path in stage.disk.names if path.startswith("consumequeue/Topic/1/")]:
        stage.disk.unlink(path)
    again = killed(stage).open()
    assert [again.bodies(queue_id=0), again.bodies(queue_id=1)] == before


def log_bytes_read(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> int:
    """By its start."""
    read, count = stage.store._log.read, 0

    def counted(position: int, size: int) -> bytes:
        nonlocal count
        data = read(position, size)
        count += len(data)
        return data

    monkeypatch.setattr(stage.store._log, "read", counted)
    stage.open()
    return count


def test_a_clean_start_does_not_read_to_the_end_of_the_last_file(monkeypatch: pytest.MonkeyPatch) -> None:
    size = 16 << 20
    stage = Stage(mapped_file_size_commit_log=size).open()
    stage.send(*(b"x" * 100 for _ in range(60)))
    stage.close()
    again = Stage(stage.disk, mapped_file_size_commit_log=size)
    assert log_bytes_read(again, monkeypatch) < size
    assert again.store.end == stage.store.end


@pytest.mark.parametrize("flush", ["SYNC_FLUSH", "ASYNC_FLUSH"])
def test_a_start_after_a_crash_reads_what_was_stored_since_the_checkpoint(
    monkeypatch: pytest.MonkeyPatch, flush: str
) -> None:
    """However long the log is, and its files: at most CHECKPOINT_BYTES, what is stored in the second until that is
    seen, and a chunk more, where the log may end."""
    monkeypatch.setattr("saturnmq.store.store.CHECKPOINT_BYTES", 20_000)
    monkeypatch.setattr(Walk.__init__, "__defaults__", (1_000,))
    config: dict[str, Any] = {"flush_disk_type": flush, **ONE_FILE}
    stage = Stage(**config).open()
    for number in range(300):
        stage.send(*(b"%d" % number * 50 for _ in range(4)), queue_id=number % 7)
        stage.clock.advance(100)
        if number % 20 == 0:
            again = killed(stage, **config)
            ends = [stage.store.max_offset("Topic", queue_id) for queue_id in range(7)]
            assert log_bytes_read(again, monkeypatch) < 20_000 + 11 * 4 * 300 + 2 * 1_000
            assert [again.store.max_offset("Topic", queue_id) for queue_id in range(7)] == ends
    assert stage.store.end > 10 * 20_000


def test_a_quiet_store_is_ready_at_once_after_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Walk.__init__, "__defaults__", (200,))
    stage = Stage(**ONE_FILE).open()
    for number in range(100):
        stage.send(b"%d" % number * 50)
    stage.clock.advance(11_000)
    again = killed(stage, **ONE_FILE)
    assert log_bytes_read(again, monkeypatch) < 300
    assert len(again.bodies()) == 100


def test_recovery_begins_where_the_checkpoint_says(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage().open()
    for number in range(40):
        stage.send(b"%d" % number * 50)
        stage.clock.advance(2_000)
    reads: list[int] = []
    killed_stage = killed(stage)
    log = killed_stage.store._log
    read = log.read

    def counted(position: int, size: int) -> bytes:
        reads.append(position)
        return read(position, size)

    monkeypatch.setattr(log, "read", counted)
    killed_stage.open()
    assert len(stage.disk.list("commitlog")) > 4
    assert min(reads) >= int(stage.disk.list("commitlog")[-4])
    assert len(killed_stage.all()) == 40


def test_a_log_without_files_begins_again() -> None:
    """Somebody deleted the log and left the queues, as Apache tolerates: their entries stand for nothing."""
    stage = Stage().open()
    stage.send(b"x", b"y")
    stage.close()
    for name in stage.disk.list("commitlog"):
        stage.disk.unlink(f"commitlog/{name}")
    again = stage.again()
    assert again.store.max_offset("Topic", 0) == 0
    assert again.send(b"new")[0].queue_offset == 0
    assert again.bodies() == [b"new"]


def test_a_gap_of_offsets_in_the_log_keeps_the_others_in_place(caplog: pytest.LogCaptureFixture) -> None:
    stage = Stage().open()
    places = stage.send(b"zero", b"one", b"two", b"three")
    damage(stage, FIRST, places[1].commit_log_offset + 12, struct.pack(">i", 9))  # another queue's id
    with caplog.at_level(logging.ERROR):
        again = killed(stage).open()
    assert "has no messages from offset 1 to 2" in caplog.text
    found = again.wait(again.store.get("Topic", 0, 0, 32, 1 << 20))
    assert (found.offsets, found.next_offset) == ([0, 2, 3], 4)
    assert again.wait(again.store.stored_ms_at("Topic", 0, 1)) == places[2].stored_ms


def test_crash_while_nothing_was_written_yet() -> None:
    stage = Stage().open()
    answer = Answer(stage.store.when_durable(stage.append(b"x")[0].end, None))
    assert not answer.answered
    again = Stage(stage.disk.crashed(None, everything_survives)).open()
    assert again.bodies() == []


def test_a_missing_queue_file_is_refused_after_a_clean_stop_and_made_anew_after_a_crash() -> None:
    stage = Stage().open()
    for number in range(35):
        stage.send(b"%d" % number)
    before = stage.bodies()
    stage.clock.advance(1_000)
    killed_stage = Stage(stage.disk.crashed(None, everything_survives), clock=stage.clock)
    killed_stage.disk.unlink("consumequeue/Topic/0/00000000000000000200")
    assert killed_stage.open().bodies() == before
    stage.close()
    stage.disk.unlink("consumequeue/Topic/0/00000000000000000200")
    with pytest.raises(StoreRefused, match="consumequeue/Topic/0: the file behind 0 is missing"):
        stage.again().store.max_offset("Topic", 0)


def test_a_crash_while_all_queues_are_made_anew() -> None:
    """Queue 1 has no messages in the last files: after a second crash its half-rebuilt files must not look whole."""
    stage = Stage().open()
    for number in range(20):
        stage.send(b"%d" % number * 50, queue_id=number % 2)
    for number in range(20):
        stage.clock.advance(12_000)
        stage.send(b"%d" % number * 50)
    before = [stage.bodies(queue_id=0), stage.bodies(queue_id=1)]
    disk = stage.disk.crashed(None, everything_survives)
    for path in [path for path in disk.names if path.startswith("consumequeue/Topic/0/")]:
        disk.unlink(path)
    start = len(disk.events)
    first = Stage(disk, clock=stage.clock).open()
    assert [first.bodies(queue_id=0), first.bodies(queue_id=1)] == before
    for events in range(start, len(disk.events) + 1):
        for survives in (nothing_survives, everything_survives):
            again = Stage(disk.crashed(events, survives), clock=stage.clock).open()
            assert [again.bodies(queue_id=0), again.bodies(queue_id=1)] == before


def test_entries_ahead_of_a_foreign_log_are_cut_even_where_nobody_looks() -> None:
    """Were they left, the log would grow over the positions that they name, and the next process would believe them."""
    stage = Stage().open()
    stage.send(b"x", topic="Quiet")
    for _ in range(10):
        stage.send(b"grow" * 90)
    stage.close()
    path = "consumequeue/Quiet/0/00000000000000000000"
    damage(stage, path, 20, ENTRY.pack(stage.store.end + 50, 200, 0))
    stage.disk.replace_file("abort", b"4242")
    damage(stage, "checkpoint", 0, ((1 << 60).to_bytes(8, "big")) * 2 + bytes(4080))
    second = stage.again()
    for _ in range(10):
        second.send(b"grow" * 30)
    second.close()
    third = second.again()
    assert third.store.max_offset("Quiet", 0) == 1
    assert third.bodies("Quiet") == [b"x"]
