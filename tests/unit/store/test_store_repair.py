"""Damage: what of it is taken out of the log, what stays, and what readers see."""

from __future__ import annotations

import logging
import random
from itertools import pairwise
from typing import Any

import pytest
from store_stage import Stage, message

from saturnmq.disk.simulated import Operation, SimulatedDisk, everything_survives, nothing_survives
from saturnmq.kernel.message import Appended, Message
from saturnmq.kernel.ports import Boundary
from saturnmq.store.commitlog import LogReader
from saturnmq.store.consumequeue import ENTRY
from saturnmq.store.repair import FILLER_TOPIC
from saturnmq.store.results import FoundStatus
from saturnmq.store.walk import Walk
from saturnmq.wire.record import MIN_SIZE

FIRST = "commitlog/00000000000000000000"
QUEUE = "consumequeue/Topic/0/00000000000000000000"


def damage(disk: SimulatedDisk, position: int, data: bytes, file_size: int = 2048) -> None:
    file = disk.open(f"commitlog/{position - position % file_size:020d}")
    file.pwrite(data, position % file_size)
    file.fdatasync()
    file.close()


def flip(disk: SimulatedDisk, path: str, offset: int, bit: int) -> None:
    file = disk.open(path)
    (byte,) = file.pread(1, offset)
    file.pwrite(bytes([byte ^ 1 << bit]), offset)
    file.fdatasync()
    file.close()


def killed(stage: Stage, **config: Any) -> Stage:
    """The process dies; everything that it wrote stays."""
    stage.disk.locks.clear()
    return Stage(stage.disk, clock=stage.clock, **config)


def filled(count: int = 20, size: int = 150) -> tuple[Stage, list[Appended]]:
    stage = Stage().open()
    return stage, [stage.send(bytes([65 + number]) * size)[0] for number in range(count)]


def log_of(stage: Stage) -> Walk:
    reader = LogReader(stage.disk, "commitlog", 2048)
    return Walk(reader, 0, stage.store.end, stage.store.end)


def offsets(stage: Stage, topic: str = "Topic", queue_id: int = 0) -> list[int]:
    return [stored.queue_offset for stored in stage.all(topic, queue_id)]


@pytest.mark.parametrize("offset", [0, 4, 8, 28, 30, 84, 150, 160])
def test_what_follows_damage_is_kept(offset: int, caplog: pytest.LogCaptureFixture) -> None:
    stage, places = filled()
    before = stage.bodies()
    place = places[2]
    original = stage.disk.read_file(FIRST)[place.commit_log_offset : place.end]
    flip(stage.disk, FIRST, place.commit_log_offset + offset, 3)
    damaged = stage.disk.read_file(FIRST)[place.commit_log_offset : place.end]
    assert damaged != original
    again = killed(stage).open()
    assert again.bodies() == before[:2] + before[3:]
    assert offsets(again) == [0, 1, *range(3, 20)]
    assert f"{FIRST} is damaged at {place.commit_log_offset} (log position {place.commit_log_offset})" in caplog.text
    kept = f"damaged/{place.commit_log_offset:020d}-{place.size}.bin"
    assert again.disk.read_file(kept) == damaged
    # one filler, exactly there; the log can be read from one end to the other
    (filler,) = [record for record in log_of(again) if record.topic == FILLER_TOPIC]
    assert (filler.commit_log_offset, filler.size) == (place.commit_log_offset, place.size)
    assert again.wait(again.store.record_at(place.commit_log_offset)) is None
    # whoever stands at the lost message is sent on, and new messages come behind the others
    found = again.wait(again.store.get("Topic", 0, 2, 1, 1 << 20))
    assert (found.status, found.next_offset) == (FoundStatus.NO_MATCH, 3)
    assert again.send(b"new")[0].queue_offset == 20
    assert killed(again).open().bodies() == [*before[:2], *before[3:], b"new"]


def test_the_last_messages_damaged() -> None:
    """Nothing whole follows them; their offsets are not given again."""
    stage, places = filled(5)
    stage.clock.advance(1_000)  # the queue's entries are written
    damage(stage.disk, places[3].commit_log_offset, bytes(400))
    again = killed(stage).open()
    assert offsets(again) == [0, 1, 2]
    assert again.store.end == places[4].end
    assert again.store.max_offset("Topic", 0) == 5
    assert again.send(b"new")[0].queue_offset == 5
    assert offsets(again) == [0, 1, 2, 5]


def test_a_queue_whose_only_messages_are_lost() -> None:
    stage = Stage().open()
    stage.send(b"first")
    (lost,) = stage.send(b"x" * 100, topic="Other")
    stage.send(b"last")
    stage.clock.advance(1_000)
    damage(stage.disk, lost.commit_log_offset + 100, b"\xff")
    again = killed(stage).open()
    assert again.bodies() == [b"first", b"last"]
    assert again.bodies("Other") == []
    assert again.wait(again.store.get("Other", 0, 0, 1, 1 << 20)).next_offset == 1
    assert again.send(b"new", topic="Other")[0].queue_offset == 1
    assert again.bodies("Other") == [b"new"]


@pytest.mark.parametrize("length", [1, 9, 700, 5000])
def test_damage_over_records_and_files(length: int) -> None:
    stage, places = filled(40)
    stage.clock.advance(1_000)
    start = places[5].commit_log_offset + 20
    for position in range(start, start + length):
        damage(stage.disk, position, b"\xa5")
    again = killed(stage).open()
    lost = [place.queue_offset for place in places if place.end > start and place.commit_log_offset < start + length]
    assert offsets(again) == [place.queue_offset for place in places if place.queue_offset not in lost]
    walk = log_of(again)
    for _ in walk:
        pass
    assert walk.end == again.store.end == places[-1].end
    # every entry of a lost message leads to a filler
    fillers = {(r.commit_log_offset, r.size) for r in log_of(again) if r.topic == FILLER_TOPIC}
    entries = list(ENTRY.iter_unpack(again.disk.read_file(QUEUE)[:200]))
    assert {entry[:2] for number, entry in enumerate(entries) if number in lost} <= fillers


def test_fillers_of_all_sizes() -> None:
    stage = Stage(mapped_file_size_commit_log=1 << 20).open()
    for size in range(MIN_SIZE + 1, MIN_SIZE + 140):
        start = stage.store.end
        assert stage.store.append([_of_size(size)])[0].size == size
        stage.send(b"whole")
        damage(stage.disk, start + 8, b"\xff\xff\xff\xff", 1 << 20)
    damage(stage.disk, stage.send(b"x" * 300_000)[0].commit_log_offset + 8, bytes(4), 1 << 20)
    stage.send(b"end")
    again = killed(stage, mapped_file_size_commit_log=1 << 20).open()
    assert again.bodies() == [b"whole"] * 139 + [b"end"]
    assert again.bodies("T") == []


def _of_size(size: int) -> Message:
    return message(b"x" * (size - MIN_SIZE - 1), "T", properties=b"")


def test_the_end_of_a_file_damaged() -> None:
    stage, places = filled(40)
    before = stage.bodies()
    last = next(a for a, b in pairwise(places) if b.commit_log_offset >= 2048 > a.commit_log_offset)
    damage(stage.disk, last.end, b"\xff" * 8)  # the blank alone
    again = killed(stage).open()
    assert again.bodies() == before
    damage(again.disk, last.commit_log_offset + 100, b"\xff" * (2048 - last.commit_log_offset - 100))
    third = killed(again).open()
    assert third.bodies() == [body for body, place in zip(before, places, strict=True) if place is not last]


def test_a_whole_file_of_zeros() -> None:
    stage, places = filled(60)
    before = stage.bodies()
    damage(stage.disk, 4096, bytes(2048))
    again = killed(stage).open()
    assert again.bodies() == [
        body for body, place in zip(before, places, strict=True) if not 4096 <= place.commit_log_offset < 6144
    ]


def test_damage_in_a_foreign_log_is_repaired_when_messages_follow() -> None:
    stage, places = filled(5)
    stage.disk.replace_file("abort", b"4242")  # as Apache's broker writes it
    _forget_confirmed(stage)
    damage(stage.disk, places[1].commit_log_offset + 38, b"\xff" * 8)
    assert offsets(killed(stage).open()) == [0, 2, 3, 4]


def _forget_confirmed(stage: Stage) -> None:
    file = stage.disk.open("checkpoint")
    file.pwrite(bytes(64), 32)
    file.fdatasync()
    file.close()


def test_a_checkpoint_that_is_gone_or_damaged() -> None:
    for offset, data in ((0, bytes(4096)), (0, b"\xff" * 80), (32, b"\x01"), (4, b"\xff"), (50, b"\xff")):
        stage, _ = filled(30)
        before = stage.bodies()
        for close in (False, True):
            if close:
                stage.close()
            file = stage.disk.open("checkpoint")
            file.pwrite(data, offset)
            file.fdatasync()
            file.close()
            stage = killed(stage).open()
            assert stage.bodies() == before
    stage.close()
    stage.disk.unlink("checkpoint")
    assert killed(stage).open().bodies() == before


def test_the_copy_is_durable_before_anything_is_overwritten() -> None:
    stage, places = filled(12)
    before = stage.bodies()
    flip(stage.disk, FIRST, places[3].commit_log_offset + 100, 0)
    damaged = stage.disk.read_file(FIRST)[places[3].commit_log_offset : places[3].end]
    disk = stage.disk.crashed(None, everything_survives)
    Stage(disk, clock=stage.clock).open()
    for events in range(len(disk.events) + 1):
        for survives in (nothing_survives, everything_survives):
            after = disk.crashed(events, survives)
            again = Stage(after, clock=stage.clock).open()
            assert again.bodies() == before[:3] + before[4:]
            assert damaged in [after.read_file(f"damaged/{name}") for name in after.list("damaged")]


def test_damage_found_when_everything_is_read_again_takes_nothing_with_it() -> None:
    """Recovery begins late, finds that an entry of a queue is damaged, and begins again at the front."""
    stage = Stage().open()
    for number in range(38):
        stage.send(b"%d" % number * 50, queue_id=number % 2)
        stage.clock.advance(2_000)
    for queue_id in (0, 1):
        stage.send(b"since the checkpoint", queue_id=queue_id)
    before = stage.all(queue_id=0)
    flip(stage.disk, FIRST, 4, 7)
    for name in stage.disk.list("consumequeue/Topic/1"):
        for entry in range(10):
            flip(stage.disk, f"consumequeue/Topic/1/{name}", entry * 20, 6)
    again = killed(stage).open()
    assert again.bodies() == [stored.body for stored in before[1:]]
    assert len(again.bodies(queue_id=1)) == 20
    assert again.disk.list("damaged") == [f"{0:020d}-{before[0].size}.bin"]


def test_a_recovery_that_is_cut_off_forgets_no_offset() -> None:
    """The last message of a queue is lost, and all queues are made anew: only old entries tell that there was one."""
    stage = Stage().open()
    for number in range(12):
        stage.send(b"%d" % number * 50, queue_id=number % 2)
        stage.send(b"%d" % number * 50, topic="Other")
        stage.clock.advance(2_000)
    (lost,) = stage.send(b"last" * 20, topic="Other")
    stage.send(b"behind it")
    stage.clock.advance(1_000)
    damage(stage.disk, lost.commit_log_offset + 90, b"\xff")
    for name in stage.disk.list("consumequeue/Topic/1"):
        for entry in range(10):
            flip(stage.disk, f"consumequeue/Topic/1/{name}", entry * 20, 6)
    disk = stage.disk.crashed(None, everything_survives)
    Stage(disk, clock=stage.clock).open()
    for events in range(len(disk.events) + 1):
        for survives in (nothing_survives, everything_survives):
            again = Stage(disk.crashed(events, survives), clock=stage.clock).open()
            assert again.send(b"new", topic="Other")[0].queue_offset == lost.queue_offset + 1
            assert offsets(again, "Other") == [*range(12), lost.queue_offset + 1]
            assert offsets(again, queue_id=1) == [*range(6)]


def test_a_wrong_time_does_not_hide_what_follows_damage() -> None:
    """A record that says it was stored in a thousand years is whole; all others would be older than it."""
    stage, places = filled()
    before = stage.bodies()
    flip(stage.disk, FIRST, places[2].commit_log_offset + 58, 5)
    flip(stage.disk, FIRST, places[3].commit_log_offset + 4, 7)
    again = killed(stage).open()
    assert again.bodies() == before[:3] + before[4:]


def test_a_full_disk_leaves_the_damage_as_it_is() -> None:
    stage, places = filled(6)
    flip(stage.disk, FIRST, places[3].commit_log_offset + 100, 0)
    content = stage.disk.read_file(FIRST)
    stage.disk.faults[Operation.WRITE, "damaged/"] = 28
    with pytest.raises(OSError, match="No space left"):
        killed(stage).open()
    assert stage.disk.read_file(FIRST) == content
    stage.disk.faults.clear()
    assert offsets(killed(stage).open()) == [0, 1, 2, 4, 5]


def test_queues_made_anew_after_a_repair_keep_the_gap() -> None:
    stage, places = filled()
    flip(stage.disk, FIRST, places[6].commit_log_offset + 100, 0)
    again = killed(stage).open()
    again.close()
    for path in [path for path in again.disk.names if path.startswith("consumequeue/")]:
        again.disk.unlink(path)
    again.disk.directories = {path for path in again.disk.directories if not path.startswith("consumequeue")}
    assert offsets(killed(again).open()) == [number for number in range(20) if number != 6]


# fields that no CRC covers: a record with another place in its queue must not push others out of theirs


@pytest.mark.parametrize("bit", range(8))
@pytest.mark.parametrize("at", [12, 15, 20, 25, 26, 27, 38, 39, 40, 56, 62, 72])
@pytest.mark.parametrize("which", [0, 1, 12, 29])
def test_a_flipped_bit_in_a_head_takes_no_other_message_away(which: int, at: int, bit: int) -> None:
    stage = Stage().open()
    places = [stage.send(b"%d" % number * 40, queue_id=number % 2)[0] for number in range(30)]
    stage.clock.advance(1_000)
    place = places[which]
    flip(stage.disk, stage.store._log.path(place.commit_log_offset), place.commit_log_offset % 2048 + at, bit)
    again = killed(stage).open()
    for place in places:
        if place is not places[which]:
            found = again.wait(again.store.get("Topic", place.queue_id, place.queue_offset, 1, 1 << 20))
            assert found.positions == [place.commit_log_offset]


@pytest.mark.parametrize("whole", [False, True])
def test_flipped_bits_in_topics_and_properties(whole: bool) -> None:
    for seed in range(60):
        chance = random.Random(seed)
        stage = Stage().open()
        places = [stage.send(b"%d" % number * 40, queue_id=number % 2)[0] for number in range(20)]
        stage.clock.advance(1_000)
        place = chance.choice(places)
        at = chance.randrange(place.commit_log_offset, place.end)
        flip(stage.disk, stage.store._log.path(at), at % 2048, chance.randrange(8))
        if whole:
            stage.disk.directories = {path for path in stage.disk.directories if not path.startswith("consumequeue")}
            stage.disk.names = {p: i for p, i in stage.disk.names.items() if not p.startswith("consumequeue")}
        again = killed(stage).open()
        for other in places:
            if other is not place:
                found = again.wait(again.store.get("Topic", other.queue_id, other.queue_offset, 1, 1 << 20))
                assert found.positions == [other.commit_log_offset], seed


# damage that no recovery has seen: readers check what they read


def test_damage_found_when_reading_leaves_the_message_out(caplog: pytest.LogCaptureFixture) -> None:
    for at, data in ((0, b"\xff"), (95, b"\xff"), (110, b"\xff")):
        stage = Stage().open()
        stage.send(b"one" * 10, b"two" * 10, b"three" * 10)
        position = stage.all()[1].commit_log_offset
        damage(stage.disk, position + at, data)
        with caplog.at_level(logging.ERROR):
            found = stage.wait(stage.store.get("Topic", 0, 0, 32, 1 << 20))
        assert (found.offsets, found.next_offset) == ([0, 2], 3)
        assert f"the commit log has no record of {stage.all()[0].size} bytes at {position}" in caplog.text
        found = stage.wait(stage.store.get("Topic", 0, 1, 1, 1 << 20))
        assert (found.status, found.next_offset) == (FoundStatus.NO_MATCH, 2)


@pytest.mark.parametrize("bit", range(96))
@pytest.mark.parametrize("which", [0, 4, 9])
def test_a_damaged_entry_does_not_lose_its_message(which: int, bit: int) -> None:
    stage, _ = filled(10)
    before = stage.bodies()
    stage.clock.advance(1_000)
    flip(stage.disk, QUEUE, which * 20 + bit // 8, bit % 8)
    assert stage.bodies() == before
    stage.close()
    again = killed(stage).open()
    assert again.bodies() == before
    assert again.send(b"new")[0].queue_offset == 10


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_message_with_a_damaged_topic_is_not_served(at: int, caplog: pytest.LogCaptureFixture) -> None:
    """No CRC covers it: neither a name that is no text nor the name of another topic leaves."""
    stage = Stage().open()
    stage.send(b"one" * 10, b"two" * 10, b"three" * 10)
    place = stage.all()[1]
    for bit in range(8):
        flip(stage.disk, FIRST, place.commit_log_offset + 88 + len(place.body) + at, bit)
        assert offsets(stage) == [0, 2]
        assert "Topic/0: the message at offset 1 is lost" in caplog.text
        flip(stage.disk, FIRST, place.commit_log_offset + 88 + len(place.body) + at, bit)
    assert offsets(stage) == [0, 1, 2]


def test_lost_messages_have_a_place_in_time() -> None:
    stage = Stage().open()
    for _ in range(20):
        stage.send(b"x" * 50)
        stage.clock.advance(1_000)
    times = [stored.stored_ms for stored in stage.all()]
    places = [stored.commit_log_offset for stored in stage.all()]
    for number in (5, 6, 7, 10):
        damage(stage.disk, places[number] % 2048 + places[number] // 2048 * 2048 + 90, b"\xff")
    again = killed(stage).open()
    for number, stored_ms in enumerate(times):
        if number not in (5, 6, 7, 10):
            assert again.wait(again.store.offset_by_time("Topic", 0, stored_ms, Boundary.LOWER)) == number
