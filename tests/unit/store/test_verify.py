"""`verify` finds every damage, and nothing where nothing is wrong."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from store_stage import Stage, message
from test_store_crash import Workload, torn

from saturnmq.disk.readonly import ReadOnlyDisk
from saturnmq.disk.real import RealDisk
from saturnmq.disk.simulated import SimulatedDisk, everything_survives, nothing_survives
from saturnmq.kernel.config import StoreConfig
from saturnmq.store.consumequeue import ENTRY, FILLER_SIZE
from saturnmq.store.findings import Finding, Totals
from saturnmq.store.verify import verify
from saturnmq.wire.record import BLANK, MAGIC_BLANK, encode_stored

VECTORS = Path(__file__).parents[2] / "vectors" / "store"
INDEX: dict[str, Any] = {"max_hash_slot_num": 20, "max_index_num": 30}

LOG = "commitlog/00000000000000000000"
SECOND = "commitlog/00000000000000002048"
QUEUE = "consumequeue/Topic/0/00000000000000000000"


class Verified:
    def __init__(self, disk: SimulatedDisk | ReadOnlyDisk, config: StoreConfig | None = None) -> None:
        self.findings: list[Finding] = []
        self.totals: Totals = verify(disk, config, self.findings.append)
        self.damages = [finding for finding in self.findings if finding.is_damage]
        self.notes = [finding for finding in self.findings if not finding.is_damage]
        assert (len(self.damages), len(self.notes)) == (self.totals.damages, self.totals.notes)

    @property
    def texts(self) -> str:
        return "\n".join(finding.text() for finding in self.findings)

    def damage(self, path: str, at: int | None, what: str) -> Finding:
        """The one that is there and says so."""
        for finding in self.damages:
            if (finding.path, finding.at) == (path, at) and what in finding.what:
                return finding
        raise AssertionError(f"no damage of {path} at {at} that says {what!r} in:\n{self.texts}")


def store(**config: Any) -> Stage:
    """Two topics, three queues, four log files, two index files, groups; closed cleanly."""
    stage = Stage(**(INDEX | config)).open()
    for number in range(12):
        stage.send(b"body %d" % number * 20, topic="Topic", queue_id=number % 2)
        stage.clock.advance(700)
        stage.send(bytes(number), topic="Other")
    stage.store.append([message(b"half", sys_flag=4)])
    stage.close()
    stage.disk.replace_file(
        "config/consumerOffset.json", b'{"offsetTable":{"Topic@group":{0:6,1:3},"Gone@group":{0:99}}}'
    )
    stage.disk.replace_file("config/topics.json", b'{"topicConfigTable":{}}')
    stage.disk.replace_file("config/topics.json.bak", b'{"topicConfigTable":{}}')
    return stage


def write(disk: SimulatedDisk, path: str, offset: int, data: bytes) -> None:
    file = disk.open(path)
    file.pwrite(data, offset)
    file.close()


def flip(disk: SimulatedDisk, path: str, offset: int, mask: int = 0x10) -> None:
    write(disk, path, offset, bytes([disk.read_file(path)[offset] ^ mask]))


def truncate(disk: SimulatedDisk, path: str, size: int) -> None:
    file = disk.open(path)
    file.truncate(size)
    file.close()


# ------------------------------------------------------------------------------------------------ what is whole


@pytest.mark.parametrize("name", ["apache-5.5.0", "apache-5.5.0-whole", "apache-5.5.0-killed"])
def test_apaches_stores_are_whole(name: str) -> None:
    verified = Verified(ReadOnlyDisk(str(VECTORS / name)))
    assert verified.texts == ""
    assert verified.totals.records == verified.totals.entries in (64, 49)


def test_ours_is_whole() -> None:
    stage = store()
    verified = Verified(stage.disk)
    assert verified.texts == ""
    assert verified.totals.messages == {"Topic": 13, "Other": 12}
    assert (verified.totals.records, verified.totals.queues, verified.totals.entries) == (25, 3, 24)
    assert verified.totals.index_items == 12 * 2 * 2
    assert verified.totals.log_end == stage.store.end
    assert stage.disk.open_files == 0


def test_nothing_is_changed() -> None:
    stage = store()
    flip(stage.disk, LOG, 300)
    before = len(stage.disk.events)
    Verified(stage.disk)
    assert len(stage.disk.events) == before


def test_settings_may_say_what_sizes_files_must_have() -> None:
    stage = store()
    assert Verified(stage.disk, stage.config).texts == ""
    verified = Verified(stage.disk, StoreConfig(mapped_file_size_commit_log=4096, mapped_file_size_consume_queue=400))
    verified.damage(SECOND, None, "is no file of a log of 4096 bytes each")
    verified.damage(QUEUE, None, "has 200 bytes")


def test_an_empty_store() -> None:
    stage = Stage().open()
    stage.close()
    assert Verified(stage.disk).texts == ""


def test_a_store_at_work() -> None:
    """What is not yet written is no damage: queue entries, index, slots."""
    stage = Stage(**INDEX).open()
    stage.send(*(b"x" * 100 for _ in range(5)))
    stage.clock.advance(1500)
    stage.send(*(b"y" * 100 for _ in range(5)))
    verified = Verified(stage.disk)
    assert verified.damages == []
    assert [finding.effect for finding in verified.notes] == ["the server will write them"]


def test_a_killed_store() -> None:
    """A start makes anew what was not durable."""
    stage = Stage(**INDEX).open()
    stage.send(*(b"x" * 100 for _ in range(5)))
    stage.clock.advance(1500)
    stage.send(*(b"y" * 100 for _ in range(5)))
    stage.disk.locks.clear()
    verified = Verified(stage.disk)
    assert verified.damages == []
    assert "5 entries of 1 queues are not written yet; a start makes them from the commit log" in verified.texts
    stage.again().close()
    assert Verified(stage.disk).texts == ""


def test_the_torn_end_of_a_killed_store() -> None:
    stage = Stage(**INDEX).open()
    (appended,) = stage.send(b"x" * 100)
    write(stage.disk, LOG, appended.end, b"\xff" * 40)
    stage.disk.locks.clear()
    verified = Verified(stage.disk)
    assert verified.damages == []
    assert f"note    {LOG} at {appended.end}: what stands behind the log's end is no record" in verified.texts


def test_files_whose_names_a_crash_has_lost() -> None:
    """That of one queue file and not that of the next; an index file has its name and nothing else."""
    stage = Stage(**INDEX).open()
    for _ in range(4):
        stage.send(*(b"x" * 20 for _ in range(6)))
        stage.clock.advance(1500)
    stage.disk.locks.clear()
    stage.disk.unlink("consumequeue/Topic/0/00000000000000000200")
    truncate(stage.disk, f"index/{stage.disk.list('index')[-1]}", 0)
    verified = Verified(stage.disk)
    assert verified.damages == []
    assert "lacks this file; a start makes them from the commit log" in verified.texts
    assert "has left this file without its header; a start makes this file" in verified.texts
    stage.again().close()
    assert Verified(stage.disk).texts == ""
    stage.disk.unlink("consumequeue/Topic/0/00000000000000000200")
    truncate(stage.disk, f"index/{stage.disk.list('index')[-1]}", 0)
    assert len(Verified(stage.disk).damages) > 2


def test_old_messages_that_were_deleted_are_not_missed() -> None:
    stage = store()
    stage.disk.unlink(LOG)
    verified = Verified(stage.disk)
    assert verified.damages == []
    assert verified.totals.log_begin == 2048
    assert verified.totals.entries == 24


def test_a_queue_that_begins_late_has_fillers() -> None:
    stage = store()
    stage.disk.unlink(LOG)
    for path in [path for path in stage.disk.names if path.startswith("consumequeue")]:
        stage.disk.unlink(path)
    stage.disk.directories -= {path for path in stage.disk.directories if path.startswith("consumequeue")}
    verified = Verified(stage.disk)
    assert verified.damage("consumequeue", None, "is missing").effect == "a start makes it anew from the commit log"
    stage.again().close()
    assert Verified(stage.disk).damages == []
    assert stage.disk.read_file(QUEUE).startswith(ENTRY.pack(0, FILLER_SIZE, 0))


def test_a_repaired_store_is_whole() -> None:
    """Fillers stand in the log, and queue entries lead to them."""
    stage = Stage(**INDEX).open()
    for number in range(20):
        stage.send(b"%d" % number * 100)
    damaged = stage.all()[2]
    stage.disk.locks.clear()
    flip(stage.disk, LOG, damaged.commit_log_offset + 150)
    before = Verified(stage.disk)
    found = before.damage(LOG, damaged.commit_log_offset, f"{damaged.size} bytes hold no record")
    assert "a start keeps the bytes in damaged/" in found.effect
    before.damage(LOG, damaged.commit_log_offset + damaged.size, "no messages from offset 2 to 2")
    again = stage.again()
    again.close()
    after = Verified(stage.disk)
    assert after.damages == []
    assert "stood where a start has put a filler" in after.texts


# ---------------------------------------------------------------------------------------------------- the log

#: of a record with IPv4 hosts: field → the offset of its last byte, for every field that something covers
FIELDS = {
    "size": 3, "magic": 7, "body crc": 11, "queue id": 15, "queue offset": 27, "position": 35,
    "sys flag, v6 hosts": 39, "body length": 87, "body": 90, "topic length": 88 + 120, "topic": 89 + 120,
    "properties length": 90 + 5 + 120, "tags": -2,
}  # fmt: skip


@pytest.mark.parametrize("field", FIELDS)
def test_a_bit_of_a_field_of_a_record(field: str) -> None:
    stage = store()
    third = next(m for m in stage.again().all("Topic", 0) if m.queue_offset == 2)
    stage.disk.locks.clear()
    stage.disk.unlink("abort")
    record = encode_stored(third)
    at = FIELDS[field] if FIELDS[field] >= 0 else len(record) + FIELDS[field]
    path = f"commitlog/{third.commit_log_offset // 2048 * 2048:020d}"
    flip(stage.disk, path, third.commit_log_offset % 2048 + at)
    verified = Verified(stage.disk)
    assert verified.damages, field
    near = [
        finding for finding in verified.damages if finding.path in (path, QUEUE) or finding.path.startswith("index/")
    ]
    assert near, verified.texts


def test_records_after_damage_are_looked_at() -> None:
    stage = store()
    flip(stage.disk, LOG, 100)
    flip(stage.disk, SECOND, 100)
    verified = Verified(stage.disk)
    assert [finding.path for finding in verified.damages if "hold no record" in finding.what] == [LOG, SECOND]
    assert verified.totals.records == 23
    assert verified.totals.log_end == stage.store.end


def test_zeros_in_the_middle() -> None:
    stage = store()
    write(stage.disk, LOG, 0, bytes(512))
    verified = Verified(stage.disk)
    assert "hold no record: zeros" in verified.damage(LOG, 0, "").what


def test_a_sector_of_properties_is_lost() -> None:
    """No CRC covers them."""
    stage = Stage(**INDEX).open()
    place = stage.store.append([message(b"x", properties=b"long\x01" + b"v" * 1500 + b"\x02")])[0]
    stage.close()
    write(stage.disk, LOG, 512, bytes(512))
    Verified(stage.disk).damage(LOG, place.commit_log_offset, "zeros stand in the properties of the record")


def test_the_last_record_is_gone() -> None:
    stage = store()
    (last,) = [start for start in stage.disk.list("commitlog") if int(start) <= stage.store.end < int(start) + 2048]
    begin = int(last)
    write(stage.disk, f"commitlog/{last}", 0, bytes(stage.store.end - begin))
    verified = Verified(stage.disk)
    found = verified.damage(f"commitlog/{last}", 0, f"it was durable up to log position {stage.store.end}")
    assert found.effect.startswith("readers leave these messages out, and a start does not look there")
    stage.disk.replace_file("abort", b"saturnmq")
    found = Verified(stage.disk).damage(f"commitlog/{last}", 0, "it was durable up to")
    assert found.effect.startswith("readers leave these messages out, and a start does not look there")
    write(stage.disk, "checkpoint", 56, bytes(40))  # where a start begins
    found = Verified(stage.disk).damage(f"commitlog/{last}", 0, "it was durable up to")
    assert found.effect.startswith("a start keeps the bytes in damaged/")


def test_a_blank_with_a_wrong_size() -> None:
    stage = store()
    content = stage.disk.read_file(LOG)
    at = content.rfind(MAGIC_BLANK.to_bytes(4, "big")) - 4
    assert BLANK.unpack_from(content, at) == (2048 - at, MAGIC_BLANK)
    flip(stage.disk, LOG, at + 3)
    verified = Verified(stage.disk)
    verified.damage(LOG, at, f"{2048 - at} bytes hold no record")
    assert verified.totals.records == 25  # the next file's first one too
    stage.disk.replace_file("abort", b"saturnmq")
    assert len(stage.again().all("Topic", 0)) == 6


def test_two_records_change_places() -> None:
    stage = store()
    first, second = stage.again().all("Topic", 0)[:2]
    stage.disk.locks.clear()
    stage.disk.unlink("abort")
    one, other = encode_stored(first), encode_stored(second)
    assert len(one) == len(other)
    write(stage.disk, LOG, first.commit_log_offset, other)
    write(stage.disk, LOG, second.commit_log_offset, one)
    Verified(stage.disk).damage(LOG, first.commit_log_offset, f"says that it stands at {second.commit_log_offset}")


def test_a_missing_log_file() -> None:
    stage = store()
    stage.disk.unlink(SECOND)
    verified = Verified(stage.disk)
    verified.damage(SECOND, 0, "2048 bytes hold no record: the file is missing")
    assert "they stood in a damaged part of the log" in verified.texts


def test_a_log_file_that_was_cut() -> None:
    stage = store()
    truncate(stage.disk, SECOND, 1000)
    verified = Verified(stage.disk)
    verified.damage(SECOND, None, "has 1000 bytes, not 2048")
    assert "the file ends there" in verified.texts


def test_files_that_are_no_log() -> None:
    stage = store()
    stage.disk.replace_file("commitlog/00000000000000000100", b"x")
    stage.disk.replace_file("commitlog/notes.txt", b"x")
    verified = Verified(stage.disk, stage.config)
    for name in ("00000000000000000100", "notes.txt"):
        assert verified.damage(f"commitlog/{name}", None, "is no file").effect.startswith("a start refuses the store")


def test_the_record_has_a_crc_of_its_own(tmp_path: Path) -> None:
    """Apache writes it with enabledAppendPropCRC=true: every byte counts then."""
    shutil.copytree(VECTORS / "apache-5.5.0-killed", tmp_path / "store")
    path = tmp_path / "store" / LOG
    content = bytearray(path.read_bytes())
    content[19] ^= 1  # flag, which nothing else covers
    path.write_bytes(content)
    Verified(ReadOnlyDisk(str(tmp_path / "store"))).damage(LOG, 0, "does not match the CRC in its properties")


# -------------------------------------------------------------------------------------------------- the queues


@pytest.mark.parametrize("byte", range(20))
def test_a_bit_of_an_entry(byte: int) -> None:
    stage = store()
    flip(stage.disk, QUEUE, 2 * 20 + byte)
    assert Verified(stage.disk).damage(QUEUE, 40, "Topic queue 0 has a wrong entry 2").effect.startswith("a start does")


@pytest.mark.parametrize(
    ("change", "at", "what"),
    [
        (lambda disk: write(disk, QUEUE, 40, bytes(20)), 40, "Topic queue 0 has no entry 2"),
        (lambda disk: write(disk, QUEUE, 40, bytes(60)), 40, "Topic queue 0 lacks 3 entries from 2 on"),
        (lambda disk: write(disk, QUEUE, 0, bytes(120)), 0, "Topic queue 0 lacks 6 entries from 0 on"),
        (
            lambda disk: write(disk, QUEUE, 0, disk.read_file(QUEUE)[20:40] + disk.read_file(QUEUE)[:20]),
            0,
            "Topic queue 0 has wrong 2 entries from 0 on",
        ),
        (lambda disk: write(disk, QUEUE, 120, ENTRY.pack(0, 300, 0)), 120, "entry 6 of Topic queue 0 stands behind"),
        (lambda disk: write(disk, QUEUE, 199, b"x"), 180, "entry 9 of Topic queue 0 stands behind the last one"),
        (lambda disk: write(disk, QUEUE, 120, ENTRY.pack(1 << 40, 300, 0)), 120, "behind the log's end"),
        (lambda disk: truncate(disk, QUEUE, 60), None, "has 60 bytes, other files of queues have 200"),
        (lambda disk: truncate(disk, QUEUE, 60), 60, "Topic queue 0 lacks 3 entries from 3 on"),
        (lambda disk: disk.unlink(QUEUE), 0, "Topic queue 0 lacks 6 entries from 0 on"),
    ],
)
def test_damage_of_a_queue(change: Callable[[SimulatedDisk], None], at: int | None, what: str) -> None:
    stage = store()
    change(stage.disk)
    Verified(stage.disk).damage(QUEUE, at, what)


def test_entries_that_are_older_than_the_log() -> None:
    stage = store()
    stage.disk.unlink(LOG)
    write(stage.disk, QUEUE, 0, disk_swapped(stage.disk.read_file(QUEUE)[:40]))
    Verified(stage.disk).damage(QUEUE, 20, "does not follow the one before it")
    write(stage.disk, QUEUE, 0, bytes(20))
    Verified(stage.disk).damage(QUEUE, 0, "is empty, with others behind it")


def disk_swapped(two: bytes) -> bytes:
    return two[20:] + two[:20]


def test_a_queue_that_the_log_does_not_know() -> None:
    stage = store()
    path = "consumequeue/Strange/0/00000000000000000000"
    stage.disk.replace_file(path, ENTRY.pack(0, 200, 0) + bytes(180))
    Verified(stage.disk).damage(path, 0, "leads to log position 0, where no record of it stands")


def test_files_that_are_no_queue() -> None:
    stage = store()
    stage.disk.replace_file("consumequeue/Topic/0/00000000000000000100", bytes(200))
    stage.disk.mkdir("consumequeue/Topic/notes")
    verified = Verified(stage.disk)
    verified.damage("consumequeue/Topic/0/00000000000000000100", None, "is no part of a queue")
    verified.damage("consumequeue/Topic/notes", None, "is no part of a queue")


def test_a_missing_file_of_a_queue() -> None:
    stage = Stage(**INDEX).open()
    for _ in range(25):
        stage.send(b"x")
    stage.close()
    path = "consumequeue/Topic/0/00000000000000000200"
    stage.disk.unlink(path)
    verified = Verified(stage.disk)
    verified.damage(path, None, "Topic queue 0 lacks this file")
    verified.damage(path, 0, "lacks 10 entries from 10 on")


def test_queues_that_apache_ran_ahead_with() -> None:
    """After a crash of its broker that is usual, and a start sets it right."""
    stage = store()
    stage.disk.replace_file("abort", b"4242")
    write(stage.disk, QUEUE, 120, ENTRY.pack(stage.store.end, 300, 0))
    verified = Verified(stage.disk)
    assert verified.damages == []
    assert "behind the log's end" in verified.texts
    stage.again()


def test_lmq(tmp_path: Path) -> None:
    """Light message queues hold entries of messages of other topics."""
    stage = Stage(**INDEX).open()
    properties = b"INNER_MULTI_DISPATCH\x01%LMQ%a,%LMQ%b\x02INNER_MULTI_QUEUE_OFFSET\x010,0\x02"
    (appended,) = stage.store.append([message(b"x", properties=properties)])
    stage.clock.run_soon()
    stage.close()
    assert Verified(stage.disk).texts == ""
    path = "consumequeue/%LMQ%a/0/00000000000000000000"
    stage.disk.replace_file(path, ENTRY.pack(appended.commit_log_offset, appended.size, 0).ljust(200, b"\0"))
    assert Verified(stage.disk).texts == ""
    flip(stage.disk, path, 11)
    Verified(stage.disk).damage(path, 0, "%LMQ%a queue 0 has a wrong entry 0")


# --------------------------------------------------------------------------------------------------- the index


def index_files(stage: Stage) -> list[str]:
    return [f"index/{name}" for name in stage.disk.list("index")]


@pytest.mark.parametrize("byte", range(20))
def test_a_bit_of_an_item(byte: int) -> None:
    stage = store()
    path = index_files(stage)[0]
    at = 40 + 4 * 20 + 20 * 5
    flip(stage.disk, path, at + byte, 2)
    assert any(finding.path.startswith("index") for finding in Verified(stage.disk).damages)


@pytest.mark.parametrize("byte", range(40))
def test_a_bit_of_the_header(byte: int) -> None:
    stage = store()
    flip(stage.disk, index_files(stage)[0], byte, 1)
    verified = Verified(stage.disk)
    if byte >= 32 and byte < 36 and not verified.damages:
        return  # no slot in use: they are not on disk yet
    assert any(finding.path.startswith("index") for finding in verified.damages), byte


@pytest.mark.parametrize("slot", range(20))
def test_a_bit_of_a_slot(slot: int) -> None:
    stage = store()
    path = index_files(stage)[0]
    flip(stage.disk, path, 40 + slot * 4 + 3)
    Verified(stage.disk).damage(path, 40 + slot * 4, f"slot {slot} does not lead to its newest item")


def test_damage_of_the_index() -> None:
    stage = store()
    first, second = index_files(stage)
    stage.disk.replace_file("index/notes.txt", b"")
    truncate(stage.disk, first, 500)
    verified = Verified(stage.disk)
    verified.damage("index/notes.txt", None, "is no index file")
    verified.damage(first, None, "its size or header is not that of an index file")
    stage.disk.unlink(first)
    stage.disk.unlink(second)
    assert len(Verified(stage.disk).damages) == 1  # a start makes it anew; there need not be any


def test_an_index_behind_the_log() -> None:
    """Of a store whose log was cut, or replaced by an older copy."""
    stage = store()
    for start in stage.disk.list("commitlog")[2:]:
        stage.disk.unlink(f"commitlog/{start}")
    verified = Verified(stage.disk)
    assert any("the log ends at 4096" in finding.what for finding in verified.damages if "index/" in finding.path)


# ----------------------------------------------------------------------------------------------- the small files


def test_config_files() -> None:
    stage = store()
    stage.disk.replace_file("config/topics.json", b"{")
    assert Verified(stage.disk).damage("config/topics.json", None, "cannot be parsed").effect == (
        "a start takes config/topics.json.bak"
    )
    stage.disk.unlink("config/topics.json.bak")
    assert "refuses" in Verified(stage.disk).damage("config/topics.json", None, "cannot be parsed").effect
    stage.disk.replace_file("config/topics.json", b"{}")
    stage.disk.replace_file("config/topics.json.bak", b"")
    Verified(stage.disk).damage("config/topics.json.bak", None, "cannot be parsed")


def test_a_group_ahead_of_its_queue() -> None:
    stage = store()
    stage.disk.replace_file("config/consumerOffset.json", b'{"offsetTable":{"Topic@group":{0:7}}}')
    path = "config/consumerOffset.json"
    Verified(stage.disk).damage(path, None, "group group is at offset 7 of Topic queue 0, which ends at 6")


@pytest.mark.parametrize(
    ("change", "at", "what"),
    [
        (lambda disk: disk.unlink("checkpoint"), None, "is missing"),
        (lambda disk: truncate(disk, "checkpoint", 100), None, "has 100 bytes"),
        (lambda disk: write(disk, "checkpoint", 0, (b"\x01" + bytes(7)) * 3 + bytes(72)), None, "the log holds all up"),
        (lambda disk: write(disk, "checkpoint", 32, (1 << 40).to_bytes(8, "big") + bytes(16)), 32, "it ends at"),
    ],
)
def test_damage_of_the_checkpoint(change: Callable[[SimulatedDisk], None], at: int | None, what: str) -> None:
    stage = store()
    change(stage.disk)
    Verified(stage.disk).damage("checkpoint", at, what)


def test_foreign_formats_are_named() -> None:
    stage = store()
    stage.disk.replace_file("config/topics/CURRENT", b"")
    stage.disk.replace_file("consumequeue/CURRENT", b"")
    verified = Verified(stage.disk)
    assert "a start refuses the store" in verified.damage("config/topics", None, "RocksDB").effect
    verified.damage("consumequeue", None, "RocksDB")
    assert verified.totals.records == 25  # the log is looked at all the same
    assert len(verified.damages) == 2


# ------------------------------------------------------------------------------------------------ any byte at all


def covered(stage: Stage) -> list[tuple[str, int]]:
    """Every byte that something covers: all but what stands behind the ends, and fields of records that no CRC, queue
    or index knows."""
    places = []
    for message_ in (m for topic, queue in (("Topic", 0), ("Topic", 1), ("Other", 0)) for m in stage.all(topic, queue)):
        record, at = encode_stored(message_), message_.commit_log_offset
        path = f"commitlog/{at - at % 2048:020d}"
        fields = [*range(16), *range(20, 36), *range(84, len(record) - len(message_.properties))]
        places += [(path, at % 2048 + byte) for byte in fields]
    for path in stage.disk.names:
        content = stage.disk.read_file(path)
        if path.startswith("consumequeue/"):
            places += [(path, byte) for byte in range(len(content))]
        elif path.startswith("index/"):
            count = int.from_bytes(content[36:40], "big")
            used = (*range(32), *range(36, 120), *range(140, 152), *range(156, 120 + count * 20))
            places += [(path, byte) for byte in used]
    return places


@given(data=st.data())
def test_any_flipped_byte_that_is_covered_is_found(data: st.DataObject) -> None:
    stage = store()
    again = Stage(stage.disk, **INDEX).open()
    places = covered(again)
    again.close()
    path, at = data.draw(st.sampled_from(places))
    flip(stage.disk, path, at, data.draw(st.integers(1, 255)))
    assert Verified(stage.disk).damages, (path, at)


@given(data=st.data())
def test_any_flipped_byte_of_records_with_a_crc_is_found(data: st.DataObject) -> None:
    disk = SimulatedDisk()
    root = VECTORS / "apache-5.5.0-killed"
    for path in (path for path in root.rglob("*") if path.is_file() and path.name != "abort"):
        disk.replace_file(str(path.relative_to(root)), path.read_bytes())
    content = disk.read_file(LOG)
    keys = {at + byte for at in range(len(content)) if content.startswith(b"__CRC32#\x01", at) for byte in range(9)}
    at = data.draw(st.integers(0, 14802).filter(lambda at: at not in keys))  # without its name the CRC is none
    flip(disk, LOG, at, data.draw(st.integers(1, 255)))
    assert Verified(disk).damages


def test_memory_does_not_grow_with_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries are compared in between; damage is found all the same."""
    from saturnmq.store import verifyqueues

    monkeypatch.setattr(verifyqueues, "MOST_HELD", 4)
    stage = store()
    assert Verified(stage.disk).texts == ""
    flip(stage.disk, QUEUE, 45)
    Verified(stage.disk).damage(QUEUE, 40, "wrong entry 2")


def test_a_store_on_a_real_disk(tmp_path: Path) -> None:
    stage = Stage(RealDisk(str(tmp_path)), **INDEX).open()
    stage.send(*(b"x" * 100 for _ in range(30)))
    stage.close()
    assert Verified(ReadOnlyDisk(str(tmp_path))).texts == ""


@pytest.mark.parametrize("flush", ["SYNC_FLUSH", "ASYNC_FLUSH"])
def test_a_crash_is_no_damage(flush: str) -> None:
    """Wherever it comes: what it leaves a start sets right, and then nothing is to be noted either."""
    config = INDEX | {"flush_disk_type": flush}
    disk = Workload(turns=12, **config).stage.disk
    for events in range(0, len(disk.events) + 1, 3):
        for survives in (nothing_survives, everything_survives, torn(events)):
            after = disk.crashed(events, survives)
            assert Verified(after).damages == [], f"crash behind event {events}"
            Stage(after, **config).open().close()
            assert Verified(after).damages == [], f"crash behind event {events}"
