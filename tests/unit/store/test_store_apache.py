"""A store that Apache RocketMQ 5.5.0 wrote (tests/vectors/store), and ours in its layout."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from store_stage import Stage, message

from saturnmq.disk.real import RealDisk
from saturnmq.kernel.message import StoredMessage
from saturnmq.store.consumequeue import ENTRY
from saturnmq.wire import record
from saturnmq.wire.record import BLANK, MAGIC_BLANK

VECTORS = Path(__file__).parents[2] / "vectors" / "store" / "apache-5.5.0"
SIZES: dict[str, Any] = {"mapped_file_size_commit_log": 16384, "mapped_file_size_consume_queue": 400}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    shutil.copytree(VECTORS, tmp_path / "store")
    return tmp_path / "store"


def queue_files(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted((root / "consumequeue").rglob("*"))
        if path.is_file()
    }


def records() -> list[bytes]:
    """Every record of Apache's log, found by its size fields alone."""
    found = []
    for path in sorted((VECTORS / "commitlog").iterdir()):
        content, at = path.read_bytes(), 0
        while at < len(content) and (head := BLANK.unpack_from(content, at)) != (0, 0):
            size, magic = head
            if magic != MAGIC_BLANK:
                found.append(content[at : at + size])
            at += size
    return found


def test_records_decode_and_encode_to_the_same_bytes() -> None:
    packed = records()
    assert len(packed) == 64
    for data in packed:
        assert record.encode_stored(record.decode(data, check_crc=True)) == data
    assert any("größe".encode() == record.decode(data).body for data in packed)


def test_opens_after_a_clean_stop(root: Path) -> None:
    before = queue_files(root)
    stage = Stage(RealDisk(str(root)), **SIZES).open()
    assert stage.store.end == 29408
    assert [len(stage.all(*key)) for key in (("TopicA", 0), ("TopicA", 1), ("SCHEDULE_TOPIC_XXXX", 17))] == [30, 31, 3]
    assert stage.store.queues("TopicA") == [0, 1]
    assert queue_files(root) == before
    (appended,) = stage.send(b"ours", topic="TopicA", queue_id=1)
    assert (appended.queue_offset, appended.commit_log_offset) == (31, 29408)
    stage.close()
    again = stage.again()
    assert again.bodies("TopicA", 1)[-1] == b"ours"


def _stored(stage: Stage) -> list[StoredMessage]:
    return [*stage.all("TopicA", 0), *stage.all("TopicA", 1), *stage.all("SCHEDULE_TOPIC_XXXX", 17)]


def test_queues_made_anew_are_apaches_byte_for_byte(root: Path) -> None:
    before = queue_files(root)
    shutil.rmtree(root / "consumequeue")
    stage = Stage(RealDisk(str(root)), **SIZES).open()
    assert len(_stored(stage)) == 64
    assert queue_files(root) == before


def test_opens_after_a_crash_of_apaches_broker(root: Path) -> None:
    before = queue_files(root)
    (root / "abort").write_text("4242")
    stage = Stage(RealDisk(str(root)), **SIZES).open()
    assert len(_stored(stage)) == 64
    assert queue_files(root) == before


def test_entries_ahead_of_apaches_log_are_cut(root: Path) -> None:
    """Apache writes queue entries before the log is flushed; a power cut may keep them and lose the record."""
    before = queue_files(root)
    for queue, index in (("SCHEDULE_TOPIC_XXXX/17", 3), ("TopicA/0", 10)):
        path = sorted((root / "consumequeue" / queue).iterdir())[-1]
        content = bytearray(path.read_bytes())
        ENTRY.pack_into(content, index * 20, 29408, 200, 0)
        path.write_bytes(content)
    assert queue_files(root) != before
    (root / "abort").write_text("4242")
    stage = Stage(RealDisk(str(root)), **SIZES).open()
    assert len(_stored(stage)) == 64
    assert queue_files(root) == before


def test_ours_has_apaches_layout(tmp_path: Path) -> None:
    """What Apache's broker checks when it loads a store: names, lengths, the blank, the checkpoint, no abort."""
    disk = RealDisk(str(tmp_path))
    stage = Stage(disk, **SIZES).open()
    assert (tmp_path / "abort").exists()
    appended = [stage.send(b"x" * 1000)[0] for _ in range(30)]
    stage.close()
    assert not (tmp_path / "abort").exists()
    logs = sorted((tmp_path / "commitlog").iterdir())
    assert [path.name for path in logs[:2]] == ["00000000000000000000", "00000000000000016384"]
    assert {path.stat().st_size for path in logs} == {16384}
    first_of_second = next(place for place in appended if place.commit_log_offset == 16384)
    last_of_first = appended[appended.index(first_of_second) - 1]
    assert BLANK.unpack_from(logs[0].read_bytes(), last_of_first.end) == (16384 - last_of_first.end, MAGIC_BLANK)
    queues = sorted((tmp_path / "consumequeue" / "Topic" / "0").iterdir())
    assert [path.name for path in queues] == ["00000000000000000000", "00000000000000000400"]
    assert {path.stat().st_size for path in queues} == {400}
    entries = list(ENTRY.iter_unpack(b"".join(path.read_bytes() for path in queues)))
    assert entries[:30] == [(place.commit_log_offset, place.size, 114586) for place in appended]  # "tag".hashCode()
    assert set(entries[30:]) == {(0, 0, 0)}
    checkpoint = (tmp_path / "checkpoint").read_bytes()
    assert len(checkpoint) == 4096
    assert [int.from_bytes(checkpoint[at : at + 8], "big") for at in (0, 8, 32)] == [
        appended[-1].stored_ms, appended[-1].stored_ms, appended[-1].end,
    ]  # fmt: skip


def test_a_queue_that_begins_late_has_apaches_fillers(tmp_path: Path) -> None:
    """Its older messages were deleted with the log's first files: the rebuilt queue begins at offset 7."""
    stage = Stage(RealDisk(str(tmp_path)), **(SIZES | {"mapped_file_size_commit_log": 2048})).open()
    appended = [stage.send(b"x" * 200)[0] for _ in range(20)]
    stage.close()
    kept = [place for place in appended if place.commit_log_offset >= 2048]
    (tmp_path / "commitlog" / "00000000000000000000").unlink()
    shutil.rmtree(tmp_path / "consumequeue")
    again = stage.again()
    first = kept[0].queue_offset
    assert again.store.min_offset("Topic", 0) == first > 0
    assert len(again.all()) == len(kept)
    again.close()
    content = (tmp_path / "consumequeue" / "Topic" / "0" / "00000000000000000000").read_bytes()
    assert content[: first * 20] == ENTRY.pack(0, 0x7FFFFFFF, 0) * first
    assert stage.again().store.min_offset("Topic", 0) == first


def test_prepared_messages_stand_in_the_log_only(tmp_path: Path) -> None:
    stage = Stage(RealDisk(str(tmp_path)), **SIZES).open()
    (prepared,) = stage.store.append([message(b"half", sys_flag=4)])
    (plain,) = stage.send(b"plain")
    assert (prepared.queue_offset, plain.queue_offset) == (0, 0)
    assert stage.bodies() == [b"plain"]
    stored = stage.wait(stage.store.record_at(prepared.commit_log_offset))
    assert stored is not None
    assert record.decode(stored).body == b"half"
