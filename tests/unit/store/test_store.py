"""Appending and finding again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from store_stage import BORN_HOST, Answer, HeldBackground, Stage, message

from saturnmq.disk.port import Buffer
from saturnmq.kernel.errors import BodyTooLarge, PropertiesTooLarge
from saturnmq.kernel.host import Address, pack
from saturnmq.kernel.later import Later
from saturnmq.kernel.ports import Boundary
from saturnmq.kernel.subscription import tag_hash
from saturnmq.store.results import FoundStatus
from saturnmq.wire.record import decode, size_of

LONG = 1 << 20


def test_append_places_messages() -> None:
    stage = Stage().open()
    first, second = stage.append(b"one", b"two")
    other = stage.append(b"three", queue_id=1)[0]
    assert (first.queue_offset, second.queue_offset, other.queue_offset) == (0, 1, 0)
    assert first.commit_log_offset == 0
    assert second.commit_log_offset == first.end == first.size == size_of(message(b"one"))
    assert stage.store.end == other.end
    stage.clock.run_soon()
    assert stage.store.flushed == other.end
    stored = stage.all()[1]
    assert stored.body == b"two"
    assert (stored.born_host, stored.store_host) == (BORN_HOST, pack(Address("127.0.0.1", 10911)))
    assert stored.stored_ms == second.stored_ms == stage.clock.now_ms()


def test_the_store_host_may_come_late() -> None:
    stage = Stage().open()
    stage.store.store_host = pack(Address("::1", 7))
    stage.send(b"x")
    assert stage.all()[0].store_host == pack(Address("::1", 7))


def test_store_times_never_fall() -> None:
    stage = Stage().open()
    stage.send(b"x")
    stage.close()
    stage.clock._now_ms -= 60_000  # somebody set the clock back
    again = stage.again()
    (appended,) = again.send(b"y")
    assert appended.stored_ms == again.all()[0].stored_ms


def test_a_turn_is_one_write() -> None:
    stage = Stage().open()
    stage.send(b"the next file is made now")
    events = len(stage.disk.events)
    for number in range(5):
        stage.append(b"%d" % number, queue_id=number)
    stage.clock.run_soon()
    log = [event for event in stage.disk.events[events:] if event.path.startswith("commitlog/")]
    assert [event.operation for event in log] == ["write", "sync"]


def test_limits() -> None:
    stage = Stage(max_message_size=100).open()
    with pytest.raises(BodyTooLarge, match="the body has 101 bytes, maxMessageSize is 100"):
        stage.append(b"fine", b"x" * 101)
    with pytest.raises(PropertiesTooLarge, match="32768 bytes, the limit is 32767"):
        stage.store.append([message(properties=b"x" * 32768)])
    assert stage.store.end == 0
    with pytest.raises(BodyTooLarge, match="mappedFileSizeCommitLog"):
        Stage().open().append(b"x" * 2000)


def test_files_roll() -> None:
    stage = Stage().open()
    appended = [stage.send(bytes([65 + number]) * 150)[0] for number in range(40)]
    assert len(stage.disk.list("commitlog")) > 4
    assert all(place.commit_log_offset // 2048 == (place.end - 1) // 2048 for place in appended)
    assert stage.bodies() == [bytes([65 + number]) * 150 for number in range(40)]
    stage.close()
    assert stage.again().bodies() == [bytes([65 + number]) * 150 for number in range(40)]


def test_a_roll_finds_its_file_ready() -> None:
    """The next file was made in the background; a turn that crosses files writes to both."""
    held = HeldBackground()
    stage = Stage(reader=held).open()
    stage.send(b"x" * 300)
    held.go()
    events = len(stage.disk.events)
    for _ in range(6):
        stage.append(b"y" * 300)
    stage.clock.run_soon()
    log = [event.operation for event in stage.disk.events[events:] if event.path.startswith("commitlog/")]
    assert log == ["write", "write", "sync", "sync"]
    assert len(stage.all()) == 7


@given(
    st.lists(st.tuples(st.sampled_from(["A", "B"]), st.integers(0, 2), st.binary(max_size=900)), max_size=60), st.data()
)
def test_what_goes_in_comes_out(sends: list[tuple[str, int, bytes]], data: st.DataObject) -> None:
    stage = Stage().open()
    model: dict[tuple[str, int], list[bytes]] = {}
    for topic, queue_id, body in sends:
        appended = stage.append(body, topic=topic, queue_id=queue_id)[0]
        queue = model.setdefault((topic, queue_id), [])
        assert appended.queue_offset == len(queue)
        queue.append(body)
        match data.draw(st.integers(0, 9)):
            case 0:
                stage.clock.advance(data.draw(st.sampled_from([10, 1_000, 11_000])))
            case 1:
                stage.close()
                stage = stage.again()
            case 2 | 3:
                stage.clock.run_soon()
    stage.clock.run_soon()
    for (topic, queue_id), bodies in model.items():
        assert stage.bodies(topic, queue_id) == bodies
        assert stage.store.max_offset(topic, queue_id) == len(bodies)


def test_statuses() -> None:
    stage = Stage().open()
    found = stage.wait(stage.store.get("Topic", 0, 5, 32, LONG))
    assert (found.status, found.next_offset) == (FoundStatus.EMPTY, 0)
    stage.send(b"one", b"two")
    for offset, status, next_offset in [
        (0, FoundStatus.FOUND, 2),
        (1, FoundStatus.FOUND, 2),
        (2, FoundStatus.END, 2),
        (3, FoundStatus.BEYOND, 2),
        (-1, FoundStatus.BEFORE, 0),
    ]:
        found = stage.wait(stage.store.get("Topic", 0, offset, 32, LONG))
        assert (found.status, found.next_offset) == (status, next_offset)
        assert (found.min_offset, found.max_offset) == (0, 2)
    assert stage.wait(stage.store.get("Topic", 1, 0, 32, LONG)).status is FoundStatus.EMPTY
    assert stage.wait(stage.store.get("../commitlog", 0, 0, 32, LONG)).status is FoundStatus.EMPTY


def test_asking_for_unknown_queues_takes_no_memory() -> None:
    stage = Stage().open()
    for number in range(100):
        assert stage.store.max_offset(f"nothing{number}", 0) == 0
        assert stage.store.min_offset(f"nothing{number}", 0) == 0
    assert stage.store._queues.known == {}


def test_message_and_byte_limits() -> None:
    stage = Stage().open()
    size = stage.send(*[b"x" * 100] * 10)[0].size
    get = stage.store.get
    assert stage.wait(get("Topic", 0, 2, 3, LONG)).offsets == [2, 3, 4]
    assert stage.wait(get("Topic", 0, 2, 32, size * 3)).offsets == [2, 3, 4]
    assert stage.wait(get("Topic", 0, 2, 32, size * 3 - 1)).offsets == [2, 3]
    found = stage.wait(get("Topic", 0, 9, 32, 1))  # one message always
    assert (found.offsets, found.next_offset) == ([9], 10)


def test_filter() -> None:
    stage = Stage(mapped_file_size_commit_log=1 << 20, mapped_file_size_consume_queue=60_000).open()
    for number in range(2000):
        tag = b"rare" if number in (5, 1500) else b"often"
        stage.store.append([message(b"%d" % number, properties=b"TAGS\x01" + tag + b"\x02")])
    stage.clock.run_soon()
    codes = frozenset({tag_hash("rare")})
    found = stage.wait(stage.store.get("Topic", 0, 0, 32, LONG, codes))
    assert (found.status, found.offsets, found.next_offset) == (FoundStatus.FOUND, [5], 800)
    found = stage.wait(stage.store.get("Topic", 0, 600, 32, LONG, codes))
    assert (found.status, found.offsets, found.next_offset) == (FoundStatus.NO_MATCH, [], 1400)
    found = stage.wait(stage.store.get("Topic", 0, 1400, 32, LONG, codes))
    assert (found.offsets, found.next_offset) == ([1500], 2000)
    assert stage.wait(stage.store.get("Topic", 0, 0, 32, LONG, frozenset())).offsets == list(range(32))


def test_delay_levels_stand_in_the_queue() -> None:
    stage = Stage().open()
    for level in (b"3", b"99"):
        stage.store.append(
            [message(topic="SCHEDULE_TOPIC_XXXX", queue_id=2, properties=b"DELAY\x01" + level + b"\x02")]
        )
    stage.clock.run_soon()
    due = [arrival.tags_code - arrival.stored_ms for arrival in stage.arrivals]
    assert due == [10_000, 7_200_000]


def test_reading_across_tail_and_files() -> None:
    stage = Stage().open()
    stage.send(*[b"%d" % number for number in range(15)])
    stage.clock.advance(2_000)  # the tail goes to the files, 10 entries each
    stage.send(*[b"%d" % number for number in range(15, 20)])
    found = stage.wait(stage.store.get("Topic", 0, 3, 32, LONG))
    assert [decode(packed).body for packed in found.records] == [b"%d" % number for number in range(3, 20)]


def test_near_records_are_read_together(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(mapped_file_size_commit_log=1 << 20).open()
    for number in range(64):
        stage.append(b"x" * 500, queue_id=number % 2)
    stage.clock.run_soon()
    reads = []
    log = stage.store._hot.log

    def counted(position: int, size: int) -> Buffer:
        reads.append(size)
        return log(position, size)

    monkeypatch.setattr(stage.store._hot, "log", counted)
    assert len(stage.wait(stage.store.get("Topic", 0, 0, 32, LONG)).records) == 32
    assert len(reads) == 1


def test_cold_reads_wait_in_a_thread() -> None:
    held = HeldBackground()
    stage = Stage(reader=held).open()
    stage.send(*[b"%d" % number for number in range(5)])
    stage.clock.advance(1_000)
    held.go()  # the queue's entries go to their file
    held.go()
    stage.disk.cold.update({"commitlog/00000000000000000000", "consumequeue/Topic/0/00000000000000000000"})
    store = stage.store
    found = Answer(store.get("Topic", 0, 1, 32, LONG))
    packed = Answer(store.record_at(0))
    stored_ms = Answer(store.stored_ms_at("Topic", 0, 4))
    offset = Answer(store.offset_by_time("Topic", 0, 0, Boundary.LOWER))
    stage.send(b"meanwhile")
    assert not any(answer.answered for answer in (found, packed, stored_ms, offset))
    held.go()
    assert found.value.offsets == [1, 2, 3, 4]
    assert decode(packed.value).body == b"0"
    assert stored_ms.value == stage.all()[4].stored_ms
    assert offset.value == 0
    assert not isinstance(store.get("Topic", 0, 1, 32, LONG), Later)  # warm now


def test_record_at() -> None:
    stage = Stage().open()
    first, second = stage.append(b"x" * 50, b"y" * 5)
    store = stage.store
    for place, body in ((first, b"x" * 50), (second, b"y" * 5)):  # in the turn of the append already
        packed = stage.wait(store.record_at(place.commit_log_offset))
        assert packed is not None
        assert decode(packed).body == body
    for position in (-1, 1, 8, first.end - 1, first.end + 1, second.end, 1 << 40):
        assert stage.wait(store.record_at(position)) is None
    big = stage.send(b"z" * 1800)[0]  # opens the next file; the last bytes of the first one hold no record
    for position in range(second.end, big.commit_log_offset):
        assert stage.wait(store.record_at(position)) is None


def test_a_body_that_looks_like_a_record_is_none() -> None:
    stage = Stage().open()
    stage.send(b"a")
    packed = stage.wait(stage.store.record_at(0))
    assert packed is not None
    (outer,) = stage.send(packed)
    at = outer.commit_log_offset + 88
    assert stage.wait(stage.store.record_at(at)) is None


def test_long_records_are_read_whole() -> None:
    stage = Stage(mapped_file_size_commit_log=1 << 20).open()
    (appended,) = stage.send(b"x" * 100_000)
    packed = stage.wait(stage.store.record_at(appended.commit_log_offset))
    assert packed is not None
    assert decode(packed, check_crc=True).body == b"x" * 100_000


def test_offset_by_time() -> None:
    stage = Stage().open()
    store, start_ms = stage.store, stage.clock.now_ms()
    for gap_ms in (0, 10, 0, 0, 20):  # at 0, 10 ×3, 30
        stage.clock.advance(gap_ms)
        stage.send(b"x")

    def at(milliseconds: int, boundary: Boundary) -> int:
        return stage.wait(store.offset_by_time("Topic", 0, start_ms + milliseconds, boundary))

    assert [at(time, Boundary.LOWER) for time in (-5, 0, 5, 10, 15, 30, 31)] == [0, 0, 1, 1, 4, 4, 5]
    assert [at(time, Boundary.UPPER) for time in (-5, 0, 5, 10, 15, 30, 31)] == [0, 0, 0, 3, 3, 4, 4]
    assert stage.wait(store.offset_by_time("Unknown", 0, 0, Boundary.LOWER)) == 0
    assert [stage.wait(store.stored_ms_at("Topic", 0, offset)) for offset in (-1, 0, 1, 4, 5)] == [
        -1, start_ms, start_ms + 10, start_ms + 30, -1,
    ]  # fmt: skip
    assert stage.wait(store.stored_ms_at("Unknown", 0, 0)) == -1


@pytest.mark.parametrize("host", [Address("10.0.0.1", 1), Address("2001:db8::1", 1)])
def test_store_times_behind_either_host(host: Address) -> None:
    stage = Stage().open()
    stage.store.append([message(born_host=pack(host))])
    stage.clock.run_soon()
    assert stage.wait(stage.store.stored_ms_at("Topic", 0, 0)) == stage.clock.now_ms()


def test_queue_ids() -> None:
    stage = Stage().open()
    for queue_id in (3, 0, 11):
        stage.send(b"x", queue_id=queue_id)
    assert stage.store.queues("Topic") == [0, 3, 11]
    assert stage.store.queues("Other") == []
    stage.close()
    assert stage.again().store.queues("Topic") == [0, 3, 11]


def test_descriptors_are_bounded() -> None:
    stage = Stage(mapped_file_size_commit_log=1 << 20).open()
    for queue_id in range(700):
        stage.append(b"x", queue_id=queue_id)
    stage.clock.advance(20_000)
    for queue_id in range(700):
        assert stage.bodies(queue_id=queue_id) == [b"x"]
    assert stage.disk.open_files < 520
    assert len(stage.store._queues._dirty) == 0
    assert sum(len(queue.tail) for queue in stage.store._queues.known.values()) == 0


def test_entries_are_written_once_a_second() -> None:
    """Whatever else is still waited for after the first ones: the next checkpoint."""
    stage = Stage().open()
    for count in range(1, 4):
        stage.send(b"x")
        stage.clock.advance(1_000)
        assert stage.store._queues.unwritten == 0
        entries = stage.disk.read_file(f"consumequeue/Topic/0/{0:020d}")
        assert len(entries.rstrip(b"\0")) > (count - 1) * 20
