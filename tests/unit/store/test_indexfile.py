"""Index files as bytes: beside those that Apache RocketMQ 5.5.0 wrote (tests/vectors/store)."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from store_stage import Stage, message

from saturnmq.disk.real import RealDisk
from saturnmq.store import indexfile
from saturnmq.store.indexfile import HEADER, HEADER_BYTES, ITEM, IndexFile, Shape, key_hash, read_pages
from saturnmq.store.keys import KeyKind, hashes
from saturnmq.wire.record import decode

VECTORS = Path(__file__).parents[2] / "vectors" / "store" / "index-apache-5.5.0"
CONFIG: dict[str, Any] = {
    "mapped_file_size_commit_log": 65536,
    "mapped_file_size_consume_queue": 400,
    "max_hash_slot_num": 20,
    "max_index_num": 60,
}
END_MS = (1 << 63) - 1


@pytest.fixture
def root(tmp_path: Path) -> Path:
    shutil.copytree(VECTORS, tmp_path / "store")
    return tmp_path / "store"


def contents(root: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted((root / "index").iterdir())]


def opened(root: Path, **config: Any) -> Stage:
    stage = Stage(RealDisk(str(root)), **(CONFIG | config)).open()
    stage.clock.run_soon()
    return stage


def find(stage: Stage, key: str, kind: KeyKind = KeyKind.KEY) -> list[bytes]:
    return [decode(record).body for record in stage.wait(stage.store.query("TopicA", key, 64, 0, END_MS, kind))]


def check_all(stage: Stage) -> None:
    """What the program that sent them says of the 80 messages (tests/vectors/store/README.md)."""

    def bodies(takes: range) -> list[bytes]:
        return [b"body%d" % number for number in reversed(takes)]

    assert find(stage, "a") == bodies(range(10, 80, 11))
    assert find(stage, "鍵") == [b"body%d" % n for n in range(75, -1, -5) if n % 4 != 3 and n % 11 != 10]
    assert find(stage, "k5") == [b"body%d" % n for n in range(75, 0, -1) if n % 7 == 5 and n % 4 != 3 and n % 11 != 10]
    assert find(stage, "tag1", KeyKind.TAG) == bodies(range(3, 80, 6))
    for stored in stage.all("TopicA"):
        unique = stored.properties.split(b"UNIQ_KEY\x01")[1].split(b"\x02")[0].decode()
        assert find(stage, unique, KeyKind.UNIQUE) == [stored.body]


def test_an_index_made_anew_is_apaches_byte_for_byte(root: Path) -> None:
    before = contents(root)
    assert [HEADER.unpack_from(content)[5] for content in before] == [60, 60, 60, 19]
    shutil.rmtree(root / "index")
    stage = opened(root)
    check_all(stage)
    stage.close()
    assert contents(root) == before


def test_a_store_of_apache_is_left_as_it_is(root: Path) -> None:
    before = contents(root)
    stage = opened(root)
    check_all(stage)
    stage.close()
    assert contents(root) == before
    again = opened(root)
    again.store.append([message(b"new", "TopicA", properties=b"KEYS\x01k5\x02")])
    again.clock.run_soon()
    assert find(again, "k5")[:2] == [b"new", b"body68"]
    again.close()
    assert contents(root)[:3] == before[:3]
    assert HEADER.unpack_from(contents(root)[3])[5] == 20
    check = opened(root)
    assert find(check, "k5")[:2] == [b"new", b"body68"]


@pytest.mark.parametrize("full", [0, 2])
def test_after_a_crash_of_apaches_broker_only_what_it_had_forced_to_disk_counts(root: Path, full: int) -> None:
    """Its files are mapped: of one that was not full any page may be missing, whatever the header says."""
    before = contents(root)
    times = [HEADER.unpack_from(content)[1] for content in before]
    (root / "abort").write_text("4242")
    checkpoint = bytearray((root / "checkpoint").read_bytes())
    checkpoint[16:24] = (times[full - 1] if full else 0).to_bytes(8, "big")
    (root / "checkpoint").write_bytes(checkpoint)
    names = sorted(path.name for path in (root / "index").iterdir())
    for name in names[full:]:
        content = bytearray((root / "index" / name).read_bytes())
        content[HEADER_BYTES + 80 + 100 : HEADER_BYTES + 80 + 400] = bytes(300)
        (root / "index" / name).write_bytes(content)
    stage = opened(root)
    check_all(stage)
    stage.close()
    assert contents(root) == before
    assert sorted(path.name for path in (root / "index").iterdir())[:full] == names[:full]


def reference_hash(text: str) -> int:
    """Java: Math.abs(String.hashCode()), 0 when that is negative."""
    value = 0
    units = text.encode("utf-16-be")
    for at in range(0, len(units), 2):
        value = (31 * value + units[at] * 256 + units[at + 1]) % (1 << 32)
    signed = value - (1 << 32) if value >= 1 << 31 else value
    return 0 if signed == -(1 << 31) else abs(signed)


@given(st.text(max_size=700) | st.text(st.characters(codec="ascii"), max_size=700))
def test_the_hash_is_javas(text: str) -> None:
    assert key_hash(text.encode()) == reference_hash(text)


def test_hashes_that_are_known() -> None:
    assert key_hash(b"tag") == 114586
    assert key_hash(b"polygenelubricants") == 0  # its hashCode is Integer.MIN_VALUE
    assert key_hash(b"") == 0
    assert key_hash("鍵".encode()) == 0x9375
    assert key_hash(b"x" * 5000) == reference_hash("x" * 5000)
    assert key_hash(b"\xff\xfe") == reference_hash("\ufffd\ufffd")


def test_what_a_message_is_found_by() -> None:
    def of(properties: str) -> list[int]:
        return hashes("T", properties.replace("=", "\x01").replace(";", "\x02").encode())

    def expected(*names: str) -> list[int]:
        return [reference_hash(f"T#{name}") for name in names]

    assert of("UNIQ_KEY=u;KEYS=a b;TAGS=t;") == expected("u", "a", "b", "T#t")
    assert of("TAGS=t;X=y;KEYS= b  a ;UNIQ_KEY=u") == expected("u", "b", "a", "T#t")
    assert of("") == of("XKEYS=a;TAGSX=t;MY_UNIQ_KEY=u;") == of("KEYS=;TAGS=;") == of("KEYS") == []
    assert of("UNIQ_KEY=;KEYS=a a;") == expected("", "a", "a")
    assert of("KEYS=a;KEYS=b;") == expected("b")  # MessageDecoder.string2messageProperties: a map


@given(
    slots=st.integers(1, 700),
    limit=st.integers(2, 300),
    keys=st.lists(st.tuples(st.integers(0, 0x7FFFFFFF), st.integers(0, 5)), max_size=400),
    write_at=st.lists(st.integers(0, 400)),
)
def test_the_file_beside_a_plain_table(
    slots: int, limit: int, keys: list[tuple[int, int]], write_at: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """IndexFile.putKey, one key after the other, into a table; ours in pieces, through the disk."""
    disk = RealDisk(str(tmp_path_factory.mktemp("index")))
    items, stored_ms = [], 5000
    for at, (hash_, pause) in enumerate(keys):
        stored_ms += pause * 700
        items.append((hash_, at * 100, stored_ms))
    shape = Shape(slots, limit)
    file = IndexFile("20260101000000000", shape, begin_ms=1000, begin_position=7)

    taken = 0
    for stop in [*sorted(write_at), len(items)]:
        while taken < min(stop, len(items)) and not file.full:
            taken = file.put(items[: min(stop, len(items))], taken)
        write = file.take(sync=stop % 2 == 0, slots=False)
        if write is not None:
            write.run(disk)
            file.wrote(write)
    write = file.take(sync=True, slots=True)
    assert write is not None
    write.run(disk)
    file.wrote(write)
    assert taken == min(len(items), limit - 1)
    assert file.full == (taken == limit - 1)

    table, entries, begin_ms = [0] * slots, [(0, 0, 0, 0)], 1000
    for hash_, position, stored_ms in items[:taken]:
        entries.append((hash_, position, (stored_ms - begin_ms) // 1000, table[hash_ % slots]))
        table[hash_ % slots] = len(entries) - 1
        if len(entries) == 2:
            begin_ms = stored_ms
    expected = (
        HEADER.pack(
            begin_ms, items[taken - 1][2], items[0][1], items[taken - 1][1], sum(map(bool, table)), len(entries)
        )
        if taken
        else HEADER.pack(1000, 1000, 7, 7, 0, 1)
    )
    expected += b"".join(slot.to_bytes(4, "big") for slot in table) + b"".join(ITEM.pack(*entry) for entry in entries)
    assert disk.read_file(file.path) == expected + bytes(shape.file_bytes - len(expected))

    pages = read_pages(disk, file.path, shape)
    made = indexfile.SlotMaker(file)
    while not made.done:
        made.step(disk)
    assert [page or None for page in made.pages] == [page or None for page in pages]
    assert made.slots_used == sum(map(bool, table))
    loaded = IndexFile.load(disk, "20260101000000000", shape)
    assert (loaded.count, loaded.slots_used, loaded.full) == (len(entries), file.slots_used, file.full)
    assert list(loaded.last_positions(disk)) == [entry[1] for entry in entries[:0:-1]]
    loaded.close()
