"""The three files of messages for a time, byte by byte, whatever is in them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saturnmq.disk.simulated import SimulatedDisk
from saturnmq.store import timercheck, timerlog, timerwheel
from saturnmq.store.inspect import Wanted, inspect
from saturnmq.store.timercheck import TimerCheck
from saturnmq.store.timerlog import NONE, TimerLog, TimerLogDamaged
from saturnmq.store.timerwheel import EMPTY, HALF_SLOTS, SLOTS, Slot, TimerWheel

LONGS = st.integers(0, (1 << 63) - 1)
SECOND_MS = 1_750_000_000_000


def log_of(count: int, file_size: int) -> tuple[TimerLog, list[int]]:
    """One chain of entries, and where they stand."""
    timers = TimerLog(SimulatedDisk(), file_size)
    positions: list[int] = []
    for number in range(count):
        positions.append(timers.place(timers.end))
        previous = positions[-2] if number else NONE
        slot_ms = SECOND_MS + number * 1000
        timers.write([timerlog.pack(previous, timerlog.DEFAULT, SECOND_MS, slot_ms, (number, 100 + number), -number)])
    return timers, positions


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(120, 400))
def test_entries_do_not_cross_files_and_chains_lead_back(count: int, file_size: int) -> None:
    timers, positions = log_of(count, file_size)
    assert all(at // file_size == (at + timerlog.UNIT_BYTES - 1) // file_size for at in positions)
    entries = list(timers.scan(0, timers.end))
    assert [entry.position for entry in entries] == positions
    assert [(entry.slot_ms, entry.commit_log_offset, entry.record_bytes, entry.topic_hash) for entry in entries] == [
        (SECOND_MS + number * 1000, number, 100 + number, -number) for number in range(count)
    ]
    assert list(timers.read_back(positions[-1], wait=True)) == entries[::-1]
    assert list(timers.read_back(positions[-1], wait=False)) == entries[::-1]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 12), st.integers(0, 600))
def test_what_is_cut_off_is_gone_and_the_rest_stays(keep: int, file_size: int) -> None:
    timers, positions = log_of(13, 120 + file_size)
    timers.cut(positions[keep])
    assert [entry.position for entry in timers.scan(0, positions[-1] + timerlog.UNIT_BYTES)] == positions[:keep]
    timers.write([timerlog.pack(NONE, 1, SECOND_MS, SECOND_MS, (7, 7), 7)])
    assert [entry.commit_log_offset for entry in timers.scan(0, timers.end)] == [*range(keep), 7]


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=400))
def test_garbage_is_no_entry(data: bytes) -> None:
    disk = SimulatedDisk()
    timers = TimerLog(disk, 400)
    disk.mkdir(timerlog.DIRECTORY)
    disk.replace_file(timers.path(0), data)
    list(timers.scan(0, 400))
    with pytest.raises(TimerLogDamaged):
        next(timers.read_back(52, wait=True))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2 * HALF_SLOTS - 1), st.integers(-1, 1 << 40), st.booleans()), max_size=12),
    st.integers(SLOTS, 1 << 30),
)
def test_the_wheel_is_a_table_of_seconds(changes: list[tuple[int, int, bool]], now: int) -> None:
    wheel = TimerWheel(SimulatedDisk())
    wheel.open()
    slots: dict[int, Slot] = {}
    for number, last, fails in changes:
        slots[now + number] = Slot(last, last, 1) if last >= 0 else EMPTY
        wheel.put(now + number, slots[now + number])
        taken = wheel.take()
        if fails:
            wheel.not_written()
        else:
            wheel.write(taken)
            wheel.written()
    assert {number: wheel.slot(number) for number in slots} == slots
    assert all(wheel.slot(number + SLOTS) == EMPTY for number in slots)
    used = min((number for number, slot in slots.items() if slot != EMPTY), default=None)
    if used is not None:
        assert wheel.next_used(used, used + 10, wait=True) == used
        assert wheel.next_used(used - 50, used, wait=True) in (None, *slots)


def test_slots_are_whole_seconds_before_the_due_time() -> None:
    assert [timerwheel.slot_of_due(due, 1000) for due in (1000, 1001, 1999, 2000, 2001)] == [0, 1000, 1000, 1000, 2000]


@given(LONGS, LONGS, LONGS, st.integers(1, 60_000), st.integers(NONE, 1 << 60))
def test_the_checkpoint_comes_back(read_ms: int, position: int, queue: int, precision_ms: int, delivered: int) -> None:
    disk = SimulatedDisk()
    check = TimerCheck(
        read_ms=read_ms, log_position=position, queue_offset=queue, precision_ms=precision_ms, delivered=delivered
    )
    timercheck.save(disk, check)
    loaded = timercheck.load(disk)
    assert loaded.is_ours
    assert (loaded.encode(), loaded.precision_ms, loaded.delivered) == (check.encode(), precision_ms, delivered)


@given(st.integers(0, 111), st.integers(1, 255))
def test_what_somebody_else_wrote_over_ours_is_not_ours(at: int, flip: int) -> None:
    """Apache writes its 56 bytes and lets the others stand."""
    disk = SimulatedDisk()
    timercheck.save(disk, TimerCheck(read_ms=1, log_position=2, queue_offset=3, delivered=4))
    data = bytearray(disk.read_file(timercheck.PATH))
    data[at] ^= flip
    assert not timercheck.parse(bytes(data)).is_ours
    assert timercheck.parse(bytes(data)).delivered == NONE


@given(st.binary(max_size=200))
def test_any_bytes_are_a_checkpoint(data: bytes) -> None:
    assert not timercheck.parse(data).is_ours


def test_inspected() -> None:
    disk = SimulatedDisk()
    timers, wheel = TimerLog(disk, 1040), TimerWheel(disk)
    timers.write([timerlog.pack(NONE, timerlog.DEFAULT | timerlog.ROLL, SECOND_MS, SECOND_MS + 5_000, (1, 2), 3)])
    wheel.open()
    wheel.put(SECOND_MS // 1000 + 5, Slot(0, 0, 1))
    wheel.write(wheel.take())
    (unit, _) = inspect(disk, timers.path(0), Wanted())
    (slot,) = inspect(disk, timerwheel.PATH, Wanted())
    assert (unit.fields["magic"], unit.fields["due_ms"]) == ("default+roll", SECOND_MS + 5_000)
    assert slot.fields["due_ms"] == SECOND_MS + 5_000
