"""Messages by key: through the store, as its users do."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from errno import EIO, ENOSPC
from typing import Any

import pytest
from store_stage import Answer, HeldBackground, Stage, message

from saturnmq.disk.simulated import Event, Operation, everything_survives, nothing_survives
from saturnmq.kernel.later import Later
from saturnmq.store import index, keys
from saturnmq.store.indexfile import HEADER, ITEM, ITEM_BYTES
from saturnmq.store.keys import KeyKind
from saturnmq.testing.clock import InlineBackground, VirtualClock
from saturnmq.wire.record import decode

END_MS = (1 << 63) - 1


def packed(unique: str = "", words: str = "", tag: str = "") -> bytes:
    pairs = {"UNIQ_KEY": unique, "WAIT": "true", "KEYS": words, "TAGS": tag}
    return "".join(f"{key}\x01{value}\x02" for key, value in pairs.items() if value).encode()


def send(stage: Stage, body: bytes, *, topic: str = "Topic", **names: str) -> None:
    """One message in a turn of its own."""
    stage.store.append([message(body, topic, properties=packed(**names))])
    stage.clock.run_soon()


def find(stage: Stage, key: str, *, count: int = 64, begin_ms: int = 0, end_ms: int = END_MS, topic: str = "Topic",
         kind: KeyKind = KeyKind.KEY) -> list[bytes]:  # fmt: skip
    """The bodies of what a query finds."""
    records = stage.wait(stage.store.query(topic, key, count, begin_ms, end_ms, kind))
    return [decode(record, check_crc=True).body for record in records]


def index_files(stage: Stage) -> list[str]:
    return [f"index/{name}" for name in stage.disk.list("index")]


def counts(stage: Stage) -> list[int]:
    """Of the next item, as each file's header says."""
    return [HEADER.unpack(stage.disk.read_file(path)[:40])[5] for path in index_files(stage)]


# -------------------------------------------------------------------------------------------------------- finding


def test_a_message_is_found_by_unique_key_each_word_of_its_keys_and_its_tag() -> None:
    stage = Stage().open()
    send(stage, b"1", unique="U1", words="a b", tag="t")
    send(stage, b"2", unique="U2", words="b  c")
    send(stage, b"3", unique="U3", words="b", topic="Other")
    for _ in range(2):  # from memory, then from the disk
        assert find(stage, "U1") == find(stage, "a") == find(stage, "U1", kind=KeyKind.UNIQUE) == [b"1"]
        assert find(stage, "t", kind=KeyKind.TAG) == [b"1"]
        assert find(stage, "b") == [b"2", b"1"]
        assert find(stage, "b", count=1) == [b"2"]
        assert find(stage, "b", topic="Other") == [b"3"]
        for nothing in ("t", "", " ", "a b", "d"):
            assert find(stage, nothing) == []
        assert find(stage, "a", kind=KeyKind.UNIQUE) == []
        assert find(stage, "b", topic="Topics") == []
        assert find(stage, "b", count=0) == find(stage, "b", count=-1) == []
        stage.close()
        stage = stage.again()
    assert stage.store.indexed == (stage.clock.now_ms(), stage.all("Other")[0].commit_log_offset)


def test_a_message_that_has_a_key_twice_is_found_once() -> None:
    stage = Stage().open()
    send(stage, b"1", unique="a", words="a b a")
    assert find(stage, "a") == [b"1"]
    send(stage, b"2", unique="#T#t", words="T#t")  # the hash of the tag t
    assert find(stage, "t", kind=KeyKind.TAG) == []
    assert find(stage, "T#t") == [b"2"]


def test_the_window_is_exact_though_the_index_knows_seconds_only() -> None:
    stage = Stage().open()
    start_ms = stage.clock.now_ms()
    for number in range(8):
        send(stage, b"%d" % number, words="k")
        stage.clock.advance(300)
    for first in range(8):
        for last in range(first, 8):
            found = find(stage, "k", begin_ms=start_ms + 300 * first, end_ms=start_ms + 300 * last)
            assert found == [b"%d" % number for number in range(last, first - 1, -1)]
    assert find(stage, "k", begin_ms=start_ms + 2101) == find(stage, "k", end_ms=start_ms - 1) == []
    assert find(stage, "k", begin_ms=start_ms + 301, end_ms=start_ms + 599) == []
    assert find(stage, "k", begin_ms=9, end_ms=1) == []


def test_the_first_item_of_a_file_has_apaches_seconds_and_is_found_at_its_time() -> None:
    stage = Stage(max_index_num=2).open()  # a file for each item
    send(stage, b"1", words="k")
    stage.clock.advance(3_600_000)
    send(stage, b"2", words="k")
    late_ms = stage.clock.now_ms()
    assert find(stage, "k", begin_ms=late_ms, end_ms=late_ms) == [b"2"]
    stage.close()
    (_, item) = [stage.disk.read_file(path)[-ITEM_BYTES:] for path in index_files(stage)]
    assert ITEM.unpack(item)[2] == 3600
    assert find(stage.again(), "k", begin_ms=late_ms, end_ms=late_ms) == [b"2"]


@pytest.mark.parametrize("slots", [1, 2, 1000])
def test_other_keys_with_the_same_hash_or_slot_are_not_found(slots: int) -> None:
    stage = Stage(max_hash_slot_num=slots).open()
    assert b"Aa"[0] * 31 + b"Aa"[1] == b"BB"[0] * 31 + b"BB"[1]  # Java's hash
    for number, key in enumerate(["Aa", "BB", "AaAa", "BBBB", "AaBB", "BBAa"] * 10):
        send(stage, b"%d" % number, words=key)
    assert find(stage, "Aa", count=3) == [b"54", b"48", b"42"]
    assert find(stage, "BBAa") == [b"%d" % number for number in range(59, 0, -6)]
    assert find(stage, "AaAaAa") == []


def test_an_answer_fits_into_a_frame_of_the_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "_MAX_FOUND_BYTES", 500)
    stage = Stage().open()
    for size in (10, 1000, 200, 20):
        send(stage, b"x" * size, words="k")
    assert [len(body) for body in find(stage, "k")] == [20, 200]
    send(stage, b"x" * 1001, words="k")
    assert [len(body) for body in find(stage, "k")] == [1001]
    assert find(stage, "k", count=1000, end_ms=0) == []


def test_no_more_than_the_setting_allows() -> None:
    stage = Stage(max_msgs_num_batch=5).open()
    for number in range(9):
        send(stage, b"%d" % number, words="k")
    assert find(stage, "k", count=32) == [b"8", b"7", b"6", b"5", b"4"]


def test_what_nobody_sees_yet_is_not_found() -> None:
    flusher = HeldBackground()
    stage = Stage(flusher=flusher).open()
    stage.store.append([message(b"1", properties=packed(unique="U"))])
    stage.clock.run_soon()
    assert find(stage, "U") == []
    flusher.go()
    assert find(stage, "U") == [b"1"]


def test_rolled_back_and_prepared_messages_are_not_found() -> None:
    stage = Stage().open()
    stage.store.append([message(b"%d" % flag, properties=packed(words="k"), sys_flag=flag) for flag in (0, 4, 8, 12)])
    stage.clock.run_soon()
    assert find(stage, "k") == [b"8", b"0"]
    stage.close()
    for path in index_files(stage):
        stage.disk.unlink(path)
    again = stage.again()
    again.clock.run_soon()
    assert find(again, "k") == [b"8", b"0"]


def test_what_is_not_in_memory_is_looked_for_in_a_thread() -> None:
    stage = Stage(max_index_num=10).open()
    for number in range(40):
        send(stage, b"%d" % number, words=f"a{number % 4} b{number % 3}")
    stage.close()
    again = stage.again()
    expected = [b"%d" % number for number in range(37, 0, -4)]
    assert find(again, "a1") == expected
    for path in (index_files(again)[0], "commitlog/00000000000000000000"):
        again.disk.cold = {path}
        answer = again.store.query("Topic", "a1", 64, 0, END_MS)
        assert isinstance(answer, Later)
        records: list[bytes] = again.wait(answer)
        assert [decode(record).body for record in records] == expected


def test_a_long_chain_is_followed_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "_HOT_STEPS", 20)
    stage = Stage(max_index_num=1000).open()
    send(stage, b"old", words="needle", tag="hay")
    for number in range(30):
        send(stage, b"%d" % number, tag="hay")
    answer = stage.store.query("Topic", "hay", 64, 0, stage.clock.now_ms(), KeyKind.TAG)
    assert isinstance(answer, Later)
    held = Answer(answer)
    send(stage, b"new", tag="hay")  # does not disturb it
    stage.clock.advance(2000)
    assert [decode(record).body for record in held.value] == [b"%d" % number for number in range(29, -1, -1)] + [b"old"]
    assert isinstance(stage.store.query("Topic", "hay", 3, 0, END_MS, KeyKind.TAG), list)


def test_what_a_thread_looks_for_is_written_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "_HOT_STEPS", 5)
    held = HeldBackground()
    stage = Stage(reader=held, max_index_num=1000).open()
    for number in range(10):
        stage.store.append([message(b"%d" % number, properties=packed(words="k"))])
    stage.clock.run_soon()
    held.jobs.clear()  # of the log
    answer = Answer(stage.store.query("Topic", "k", 64, 0, END_MS))
    (looks,) = held.jobs
    held.jobs.clear()
    for _ in range(5):
        stage.clock.advance(1000)
        held.go()
    assert stage.disk.list("index")
    looks()
    assert [decode(record).body for record in answer.value] == [b"%d" % number for number in range(9, -1, -1)]


def test_a_file_that_is_dropped_while_a_thread_looks() -> None:
    held = HeldBackground()
    stage = Stage(max_index_num=10).open()
    for number in range(25):
        send(stage, b"%d" % number, words="k")
    stage.close()
    again = Stage(stage.disk, clock=stage.clock, reader=held, max_index_num=10).open()
    again.disk.cold = set(index_files(again))
    answer = Answer(again.store.query("Topic", "k", 64, 0, END_MS))
    again.disk.unlink(index_files(again)[-1])
    held.go()
    assert [decode(record).body for record in answer.value] == [b"%d" % number for number in range(17, -1, -1)]


def test_log_files_that_are_deleted_before_they_are_read(caplog: pytest.LogCaptureFixture) -> None:
    stage = Stage(message_index_enable=False, flush_disk_type="ASYNC_FLUSH").open()
    for number in range(60):
        send(stage, b"%d" % number, unique=f"U{number}")
    stage.close()
    held = HeldBackground()
    config: dict[str, Any] = {"max_index_num": 1000, "flush_disk_type": "ASYNC_FLUSH"}
    again = Stage(stage.disk, clock=stage.clock, reader=held, **config).open()
    first, second, *_ = stage.disk.list("commitlog")
    stage.disk.unlink(f"commitlog/{first}")
    again.store._log.first = int(second)
    for _ in range(10):
        held.go()
    assert find(again, "U59") == [b"59"]
    assert find(again, "U0") == []
    assert not caplog.records


def test_messages_that_the_log_has_no_more_are_not_found() -> None:
    stage = Stage(max_index_num=10).open()
    for number in range(60):
        send(stage, b"%d" % number, unique=f"U{number}", words="k")
    stage.close()
    first, *_, last = stage.disk.list("commitlog")
    assert first != last
    stage.disk.unlink(f"commitlog/{first}")
    again = stage.again()
    held = [stored.body for stored in again.all()]
    assert 10 < len(held) < 60
    assert find(again, "k") == held[::-1]
    assert find(again, "U0") == []
    again.close()
    for path in index_files(again):
        stage.disk.unlink(path)
    third = again.again()
    third.clock.run_soon()
    assert find(third, "k") == held[::-1]


def test_a_record_that_is_damaged_is_not_found() -> None:
    stage = Stage().open()
    for number in range(3):
        send(stage, b"%d" % number, words="k")
    damaged = stage.all()[1]
    log = stage.disk.open("commitlog/00000000000000000000")
    for at in (0, 4, damaged.size - 20):  # size, magic, properties
        before = log.pread(4, damaged.commit_log_offset + at)
        log.pwrite(b"\xff\xff\xff\xff", damaged.commit_log_offset + at)
        assert [body for body in find(stage, "k") if body != b"1"] == [b"2", b"0"]
        log.pwrite(before, damaged.commit_log_offset + at)
    assert find(stage, "k") == [b"2", b"1", b"0"]


# ------------------------------------------------------------------------------------------------------ starting


def test_after_a_clean_stop_nothing_is_made_anew() -> None:
    stage = Stage(max_index_num=10).open()
    for number in range(25):
        send(stage, b"%d" % number, unique=f"U{number}")
    stage.close()
    names, before = index_files(stage), [stage.disk.read_file(path) for path in index_files(stage)]
    events = len(stage.disk.events)
    again = stage.again()
    again.clock.advance(5000)
    assert find(again, "U3") == [b"3"]
    again.close()
    assert not [event for event in stage.disk.events[events:] if event.path.startswith("index")]
    assert index_files(again) == names
    assert [stage.disk.read_file(path) for path in names] == before


def test_the_file_that_grows_goes_on_growing() -> None:
    stage = Stage(max_index_num=1000).open()
    for life in range(4):
        for number in range(5):
            send(stage, b"%d.%d" % (life, number), words=f"k l{life}")
        stage.clock.advance(1000)
        send(stage, b"%d.5" % life, words="k")
        stage.close()
        stage = stage.again()
    assert len(index_files(stage)) == 1
    assert counts(stage) == [1 + 4 * (5 * 2 + 1 + 0)]
    assert find(stage, "k") == [b"%d.%d" % (life, number) for life in (3, 2, 1, 0) for number in range(5, -1, -1)]
    assert find(stage, "l2") == [b"2.%d" % number for number in range(4, -1, -1)]


def test_after_a_crash_what_was_not_synced_is_read_from_the_log() -> None:
    stage = Stage(max_index_num=1000).open()
    for number in range(30):
        send(stage, b"%d" % number, unique=f"U{number}")
        stage.clock.advance(5_000)
    assert 1 < counts(Stage(stage.disk.crashed(), clock=stage.clock, max_index_num=1000))[0] < 31
    for survives in (nothing_survives, everything_survives):
        again = Stage(stage.disk.crashed(survives=survives), clock=stage.clock, max_index_num=1000).open()
        reads: list[int] = []
        again.clock.run_soon()
        for number in range(30):
            assert find(again, f"U{number}") == [b"%d" % number], reads
        again.close()
        assert counts(again) == [31]


@pytest.mark.parametrize("survives", [nothing_survives, everything_survives])
def test_slots_that_a_crash_left_behind_are_made_from_the_items(survives: Any) -> None:
    stage = Stage(max_index_num=1000).open()
    for number in range(20):
        send(stage, b"%d" % number, words=f"k{number % 2}")
    stage.clock.advance(61_000)
    send(stage, b"20", words="k0")
    stage.clock.advance(61_000)
    (path,) = index_files(stage)
    assert not any(stage.disk.read_file(path)[40:120])  # no slot is on disk
    assert HEADER.unpack(stage.disk.read_file(path)[:40])[4:] == (0, 22)
    again = Stage(stage.disk.crashed(survives=survives), clock=stage.clock, max_index_num=1000).open()
    again.clock.run_soon()
    assert find(again, "k1") == [b"%d" % number for number in range(19, 0, -2)]
    send(again, b"new", words="k1")
    assert find(again, "k1", count=2) == [b"new", b"19"]
    again.close()
    assert find(again.again(), "k1", count=2) == [b"new", b"19"]


def test_slots_are_made_even_when_the_store_is_closed_at_once() -> None:
    stage = Stage(max_index_num=1000).open()
    send(stage, b"1", words="k")
    stage.clock.advance(61_000)
    send(stage, b"2", words="k")
    stage.clock.advance(61_000)
    held = HeldBackground()
    again = Stage(stage.disk.crashed(), clock=stage.clock, reader=held, max_index_num=1000).open()
    again.close()
    assert held.jobs
    third = again.again()
    third.clock.run_soon()
    assert find(third, "k") == [b"2", b"1"]


def test_a_directory_that_is_gone_is_made_anew() -> None:
    stage = Stage(max_index_num=10).open()
    for number in range(100):
        send(stage, b"%d" % number, unique=f"U{number}")
    stage.close()
    for path in index_files(stage):
        stage.disk.unlink(path)
    again = stage.again()
    send(again, b"new", unique="new")
    assert find(again, "new") == [b"new"]
    assert [find(again, f"U{number}") for number in range(100)] == [[b"%d" % number] for number in range(100)]


def _cut(content: bytearray) -> None:
    del content[-1:]


def _count(content: bytearray) -> None:
    content[36:40] = (5).to_bytes(4, "big")


def _too_many(content: bytearray) -> None:
    content[36:40] = (500).to_bytes(4, "big")


def _behind_the_log(content: bytearray) -> None:
    content[24:32] = (1 << 40).to_bytes(8, "big")


def _other_log(content: bytearray) -> None:
    content[24:32] = content[-16:-8] = (77).to_bytes(8, "big")


def _out_of_order(content: bytearray) -> None:
    content[16:24] = (0).to_bytes(8, "big")


DAMAGES = [_cut, _count, _too_many, _behind_the_log, _out_of_order, bytearray.clear]


@pytest.mark.parametrize(
    ("damage", "which"), [*[(damage, which) for damage in DAMAGES for which in (0, 3, 6)], (_other_log, 6)]
)
def test_a_damaged_file_is_made_anew_with_those_behind_it(
    damage: Callable[[bytearray], None], which: int, caplog: pytest.LogCaptureFixture
) -> None:
    stage = Stage(max_index_num=10).open()
    for number in range(63):
        send(stage, b"%d" % number, unique=f"U{number}")
    stage.close()
    names = index_files(stage)
    assert len(names) == 7
    content = stage.disk.inodes[stage.disk.names[names[which]]]
    assert isinstance(content, bytearray)
    damage(content)
    again = stage.again()
    again.clock.run_soon()
    assert [find(again, f"U{number}") for number in range(63)] == [[b"%d" % number] for number in range(63)]
    again.close()
    assert (damage is _out_of_order and which == 0) or "made anew" in caplog.text
    assert damage is _other_log or index_files(again)[:which] == names[:which]
    assert counts(again) == [10] * 7


def test_a_crash_while_damaged_files_are_dropped() -> None:
    stage = Stage(max_index_num=10).open()
    for number in range(63):
        send(stage, b"%d" % number, unique=f"U{number}")
    stage.close()
    file = stage.disk.open(index_files(stage)[2])
    file.pwrite(bytes(8), 16)
    file.fdatasync()
    damaged = stage.disk.crashed()
    Stage(damaged, clock=stage.clock, max_index_num=10).open()
    assert len(damaged.list("index")) == 2
    for events in range(len(damaged.events) + 1):
        for seed in range(10):
            after = damaged.crashed(events, some(seed * 1000 + events))
            again = Stage(after, clock=stage.clock, max_index_num=10).open()
            again.clock.run_soon()
            assert [find(again, f"U{number}") for number in range(63)] == [[b"%d" % number] for number in range(63)]


def test_a_crash_while_slots_are_written_that_a_header_vouched_for() -> None:
    stage = Stage(max_index_num=1000).open()
    for number in range(10):
        send(stage, b"%d" % number, unique=f"U{number}")
    stage.close()
    grows = Stage(stage.disk.crashed(), clock=stage.clock, max_index_num=1000).open()
    for number in range(10, 20):
        send(grows, b"%d" % number, unique=f"U{number}")
    grows.clock.advance(2000)
    grows.close()
    for events in range(len(grows.disk.events) + 1):
        for survives in (everything_survives, some(events), some(events + 1000), some(events + 2000)):
            again = Stage(grows.disk.crashed(events, survives), clock=grows.clock, max_index_num=1000).open()
            again.clock.run_soon()
            for body in again.bodies():
                assert find(again, f"U{int(body)}") == [body]


def some(seed: int) -> Callable[[Event], list[tuple[int, int]]]:
    """Of what was not synced, half of the events."""
    chance = random.Random(seed)
    return lambda event: [(0, len(event.data))] if chance.random() < 0.5 else []


def test_a_file_of_another_shape_is_made_anew(caplog: pytest.LogCaptureFixture) -> None:
    stage = Stage(max_index_num=10).open()
    for number in range(30):
        send(stage, b"%d" % number, unique=f"U{number}")
    stage.close()
    again = stage.again(max_index_num=1000, max_hash_slot_num=50)
    again.clock.run_soon()
    assert [find(again, f"U{number}") for number in range(30)] == [[b"%d" % number] for number in range(30)]
    assert "has 320 bytes, not 20240 (maxHashSlotNum, maxIndexNum): made anew" in caplog.text
    again.close()
    assert counts(again) == [31]


def test_items_that_do_not_belong_together_are_made_anew_after_a_crash() -> None:
    stage = Stage(max_index_num=1000).open()
    for number in range(30):
        send(stage, b"%d" % number, unique=f"U{number}")
    stage.clock.advance(61_000)
    send(stage, b"30", unique="U30")
    stage.clock.advance(61_000)
    after = stage.disk.crashed()
    (path,) = index_files(stage)
    file = after.open(path)
    file.pwrite(b"\0" * 40, 40 + 20 * 4 + 10 * ITEM_BYTES)
    file.close()
    again = Stage(after, clock=stage.clock, max_index_num=1000).open()
    again.clock.run_soon()
    assert [find(again, f"U{number}") for number in range(31)] == [[b"%d" % number] for number in range(31)]


def test_the_items_of_one_message_in_many_files() -> None:
    words = " ".join(f"k{number}" for number in range(30))
    stage = Stage(max_index_num=3).open()
    send(stage, b"1", unique="U", words=words, tag="t")
    stage.clock.advance(1000)
    send(stage, b"2", words=words)
    for events in range(len(stage.disk.events) + 1):
        again = Stage(stage.disk.crashed(events), clock=stage.clock, max_index_num=3).open()
        again.clock.run_soon()
        messages = again.bodies()[::-1]
        for number in range(30):
            assert find(again, f"k{number}") == messages
        assert find(again, "t", kind=KeyKind.TAG) == messages[-1:]
        again.close()
        assert sum(counts(again)) - len(counts(again)) == {0: 0, 1: 32, 2: 62}[len(messages)]


def test_the_checkpoint_says_what_is_durable_with_its_slots() -> None:
    def checkpoint(stage: Stage) -> int:
        return int.from_bytes(stage.disk.read_file("checkpoint")[16:24], "big")

    stage = Stage(max_index_num=4).open()
    times = []
    for number in range(5):
        send(stage, b"%d" % number, unique=f"U{number}")
        times.append(stage.clock.now_ms())
        stage.clock.advance(15_000)
        assert checkpoint(stage) == (0 if number < 2 else times[2])  # the first file has three items
    stage.close()
    assert checkpoint(stage) == times[4]


def test_what_a_header_counts_is_durable_before_it() -> None:
    stage = Stage(max_index_num=10).open()
    for number in range(25):
        send(stage, b"%d" % number, unique=f"U{number}")
        stage.clock.advance(20_000)
    stage.close()
    unsynced: dict[int, list[Event]] = {}
    headers = 0
    for event in stage.disk.events:
        if not event.path.startswith("index/"):
            continue
        pending = unsynced.setdefault(event.inode, [])
        if event.operation is Operation.SYNC:
            pending.clear()
        elif event.operation is Operation.WRITE:
            is_header = event.offset == 0 and len(event.data) == 40
            if is_header and HEADER.unpack(event.data)[5] == 1:
                continue  # counts nothing
            assert not (is_header and pending)
            assert not any(before.offset == 0 for before in pending)  # nor does what follows overtake it
            headers += is_header
            pending.append(event)
    assert headers >= 3 * 2 + 5
    assert not any(unsynced.values())


def test_a_file_says_from_the_first_write_on_where_the_one_before_it_ends() -> None:
    """After a crash Apache takes in again all that lies behind the end of the last file."""
    stage = Stage(max_index_num=10).open()
    for number in range(9 + 3):
        send(stage, b"%d" % number, unique=f"U{number}")
    stage.clock.advance(1_000)
    full, growing = (stage.disk.read_file(path)[: HEADER.size] for path in index_files(stage))
    _, end_ms, _, end_position, _, count = HEADER.unpack(full)
    assert count == 10
    assert HEADER.unpack(growing) == (end_ms, end_ms, end_position, end_position, 0, 1)


def test_without_index_nothing_is_written_and_later_it_catches_up() -> None:
    stage = Stage(message_index_enable=False).open()
    for number in range(5):
        send(stage, b"%d" % number, unique=f"U{number}")
    stage.clock.advance(20_000)
    assert find(stage, "U1") == []
    assert stage.store.indexed == (0, 0)
    stage.close()
    assert not stage.disk.exists("index")
    again = stage.again(message_index_enable=True)
    again.clock.run_soon()
    assert find(again, "U1") == [b"1"]


def test_names_rise_though_the_clock_does_not() -> None:
    stage = Stage(max_index_num=2).open()
    for number in range(12):
        send(stage, b"%d" % number, unique=f"U{number}")
    stage.close()
    names = index_files(stage)
    assert len(names) == 12
    assert all(len(name) == len("index/") + 17 and name[6:].isdigit() for name in names)
    assert names == sorted(names)
    stage.clock._now_ms -= 86_400_000
    again = stage.again()
    send(again, b"12", unique="U12")
    again.close()
    assert index_files(again)[:12] == names
    assert len(index_files(again)) == 13


# ------------------------------------------------------------------------------------------- disks that do not work


@pytest.mark.parametrize(
    ("operation", "number"),
    [(Operation.CREATE, ENOSPC), (Operation.WRITE, ENOSPC), (Operation.SYNC, EIO), (Operation.TRUNCATE, ENOSPC)],
)
def test_an_index_that_cannot_be_written_does_not_hold_up_messages(
    operation: Operation, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "saturnmq.store.index")
    stage = Stage(max_index_num=10).open()
    for at in range(5):
        send(stage, b"%d" % at, unique=f"U{at}")
    stage.clock.advance(2000)
    stage.disk.faults[operation, "index/"] = number
    for at in range(5, 200):
        stage.send(b"x")
        send(stage, b"%d" % at, unique=f"U{at}")
        stage.clock.advance(2000)
    assert stage.store.flushed == stage.store.end
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "cannot be found by key until the index can be written again" in warnings[0]
    stage.disk.faults.clear()
    stage.clock.advance(120_000)
    assert [find(stage, f"U{at}") for at in range(200)] == [[b"%d" % at] for at in range(200)]
    assert "the index of message keys is complete and written again" in caplog.text
    stage.close()
    again = stage.again()
    assert [find(again, f"U{at}") for at in range(200)] == [[b"%d" % at] for at in range(200)]


def test_a_disk_that_is_full_when_the_store_closes_or_opens() -> None:
    stage = Stage(max_index_num=10).open()
    for at in range(15):
        send(stage, b"%d" % at, unique=f"U{at}")
    stage.disk.faults[Operation.WRITE, "index/"] = ENOSPC
    stage.close()
    assert not stage.disk.exists("abort")
    again = stage.again()
    again.clock.advance(1000)
    assert find(again, "U14") == []
    send(again, b"15", unique="U15")
    stage.disk.faults.clear()
    again.clock.advance(70_000)
    assert [find(again, f"U{at}") for at in range(16)] == [[b"%d" % at] for at in range(16)]


def test_what_comes_while_a_write_fails_is_not_taken_in_twice() -> None:
    held = HeldBackground()
    stage = Stage(reader=held, flusher=InlineBackground(clock := VirtualClock()), clock=clock, max_index_num=100).open()
    stage.disk.faults[Operation.WRITE, "index/"] = ENOSPC
    for number in range(3):
        send(stage, b"%d" % number, words="k")
        stage.clock.advance(500)
        held.go()
    send(stage, b"3", words="k")
    held.go()
    held.go()
    stage.disk.faults.clear()
    for _ in range(200):
        stage.clock.advance(1000)
        held.go()
    assert find(stage, "k") == [b"3", b"2", b"1", b"0"]
    stage.close()
    assert counts(stage) == [5]


def test_what_was_read_from_the_log_is_written_without_new_messages() -> None:
    stage = Stage(max_index_num=1000).open()
    for number in range(50):
        send(stage, b"%d" % number, unique=f"U{number}")
    after = stage.disk.crashed(survives=everything_survives)
    held = HeldBackground()
    again = Stage(
        after, clock=stage.clock, flusher=InlineBackground(stage.clock), reader=held, max_index_num=1000
    ).open()
    again.clock.advance(10_000)  # the next writes of the queues take long: the checkpoint is due
    send(again, b"50", unique="U50")
    for _ in range(100):
        again.clock.advance(1000)
        held.go()
    (path,) = index_files(again)
    positions = [ITEM.unpack_from(after.read_file(path), 40 + 20 * 4 + at * ITEM_BYTES)[1] for at in range(53)]
    assert positions == [0, *[stored.commit_log_offset for stored in again.all()], 0]


def test_it_waits_for_room(caplog: pytest.LogCaptureFixture) -> None:
    stage = Stage().open()
    stage.disk.faults[Operation.WRITE, "index/"] = ENOSPC
    send(stage, b"1", unique="U1")
    stage.clock.advance(1000)
    stage.disk.faults.clear()
    stage.disk.spaces[""] = (1000, 1000)
    events = len(stage.disk.events)
    stage.clock.advance(1_000_000)
    assert not [event for event in stage.disk.events[events:] if event.path.startswith("index")]
    stage.disk.spaces[""] = (1000, 1 << 30)
    stage.clock.advance(70_000)
    assert find(stage, "U1") == [b"1"]
    assert len(caplog.records) == 1


def test_an_index_whose_disk_is_too_slow_reads_the_log_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "_MAX_TAIL_BYTES", 100)
    monkeypatch.setattr(index, "_BATCH", 2)
    monkeypatch.setattr(index, "_LATER_MS", 1)
    held = HeldBackground()
    stage = Stage(reader=held, max_index_num=1000).open()
    for at in range(50):
        stage.store.append([message(b"%d" % at, properties=packed(unique=f"U{at}"))])
        stage.clock.advance(1)
    assert find(stage, "U3") == [b"3"]
    assert find(stage, "U40") == []
    for _ in range(200):
        stage.clock.advance(1000)
        held.go()
    assert [find(stage, f"U{at}") for at in range(50)] == [[b"%d" % at] for at in range(50)]
    stage.close()
    assert counts(stage) == [51]


def test_messages_are_taken_in_in_batches_a_moment_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "_BATCH", 8)
    stage = Stage().open()
    for at in range(7):
        send(stage, b"%d" % at, unique=f"U{at}")
    stage.clock.advance(index._LATER_MS)
    assert stage.store.indexed == (0, 0)
    for at in range(7, 20):
        send(stage, b"%d" % at, unique=f"U{at}")
    assert stage.store.indexed == (0, 0)
    stage.clock.advance(index._LATER_MS)
    assert stage.store.indexed[1] == stage.all()[15].commit_log_offset
    assert find(stage, "U19") == [b"19"]


def test_after_the_store_has_failed_it_is_silent() -> None:
    stage = Stage().open()
    send(stage, b"1", unique="U1")
    stage.disk.faults[Operation.SYNC, "commitlog/"] = EIO
    stage.store.append([message(b"2")])
    stage.clock.run_soon()
    events = len(stage.disk.events)
    stage.clock.advance(200_000)
    assert not [event for event in stage.disk.events[events:] if event.path.startswith("index")]
    assert find(stage, "U1") == [b"1"]
    stage.store.close()
