"""Delayed messages over their files: long waits, full and failing disks, lost and damaged files, Apache's state."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from saturnmq.broker import timerslot
from saturnmq.disk.simulated import Operation, SimulatedDisk, everything_survives
from saturnmq.kernel import properties as names
from saturnmq.kernel.errors import IllegalDeliveryTime, ServiceUnavailable
from saturnmq.kernel.message import Message
from saturnmq.kernel.topic import TIMER_TOPIC
from saturnmq.store import timercheck, timerfiles
from saturnmq.store.timerlog import UNIT_BYTES
from saturnmq.store.timerwheel import SLOT_BYTES, SLOTS
from saturnmq.testing.clock import VirtualClock
from saturnmq.testing.timers import DAY_MS, HOUR_MS, TimerStage


@pytest.fixture
def stage() -> TimerStage:
    return TimerStage()


def send_all(stage: TimerStage, *seconds: float) -> list[bytes]:
    """A message for each of these seconds from now; their names, in the order in which they are due."""
    now_ms = stage.clock.now_ms()
    for second in seconds:
        stage.send(b"%g" % second, now_ms + int(second * 1000))
    return [b"%g" % second for second in sorted(seconds)]


# ------------------------------------------------------------------------------------------------------ long waits


@pytest.mark.parametrize("days", [3, 40, 366])
def test_far_away(days: int) -> None:
    stage = TimerStage(timer_max_delay_sec=days * 86_400)
    due_ms = stage.clock.now_ms() + days * DAY_MS
    stage.send(b"far", due_ms)
    with pytest.raises(IllegalDeliveryTime, match=f"timerMaxDelaySec={days * 86_400} "):
        stage.send(b"too far", due_ms + 1)
    stage.clock.advance(days * DAY_MS - 1)
    assert stage.bodies() == []
    stage.clock.advance(1)
    (stored,) = stage.stored()
    assert stored.stored_ms == due_ms
    assert int(names.decode(stored.properties).get(names.TIMER_ROLL_TIMES, 0)) in (days // 2 - 1, days // 2)


@pytest.mark.parametrize("window", [2, 3, 10, 60, 604_740, 1_000_000])
def test_rolls_of_every_length(window: int) -> None:
    stage = TimerStage(timer_roll_window_slot=window)
    expected = send_all(stage, *(1, 2, 3, 4, 5, 7, 11, 19, 20, 21, 33, 59, 60, 61, 119, 120, 121, 200))
    due_ms = {body: stage.clock.now_ms() + int(body) * 1000 for body in expected}
    stage.clock.advance(201_000)
    assert stage.bodies() == expected
    assert {stored.body: stored.stored_ms for stored in stage.stored()} == due_ms


@pytest.mark.parametrize("precision_ms", [1, 100, 5000, 60_000])
def test_other_precisions(precision_ms: int) -> None:
    stage = TimerStage(timer_precision_ms=precision_ms)
    now_ms = stage.clock.now_ms()
    expected = send_all(stage, 0.05, 0.1, 3.3, 5, 61, 3600, 86_400)
    stage.clock.advance(90_000_000 if precision_ms > 1 else 3_700_000)
    assert stage.bodies() == expected[: len(stage.bodies())]
    assert len(stage.bodies()) >= len(expected) - 1
    for stored in stage.stored():
        due_ms = now_ms + int(float(stored.body) * 1000)
        assert stored.stored_ms == -(-due_ms // precision_ms) * precision_ms


@pytest.mark.parametrize("days", [1, 10, 13.9, 14, 14.1, 28, 100])
def test_off_for_days(stage: TimerStage, days: float) -> None:
    """Longer than the wheel is: what waits keeps its place until it is delivered."""
    expected = send_all(stage, *(1, 3600, 86_400, 2 * 86_400 + 5, 3 * 86_400))
    again = stage.again(off_ms=int(days * DAY_MS))
    now_ms = again.clock.now_ms()
    again.send(b"new", now_ms + 2 * DAY_MS - 1000)
    again.clock.advance(10)
    overdue = [body for body in expected if int(body) <= days * 86_400]
    assert again.bodies() == overdue
    again.clock.advance(4 * DAY_MS)
    assert again.bodies() == ([*expected, b"new"] if days > 1 else again.bodies())
    assert sorted(again.bodies()) == sorted([*expected, b"new"])


def test_an_idle_wheel_is_not_looked_at_every_second(stage: TimerStage) -> None:
    send_all(stage, 5)
    stage.clock.advance(20_000)
    timers = [when_ms for when_ms, _, timer in stage.clock._timers if timer.call is not None]
    assert min(timers) > stage.clock.now_ms() + 5_000
    expected = send_all(stage, 10 * 3600, 5 * 3600, 9)
    stage.clock.advance(11 * HOUR_MS)
    assert stage.bodies() == [b"5", *expected]


# ------------------------------------------------------------------------------------------------ slots of any size


@pytest.mark.parametrize("count", [1, 63, 64, 65, 200, 1000])
def test_a_slot_is_delivered_part_by_part(stage: TimerStage, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(timerfiles, "SEGMENT_ENTRIES", 64)
    monkeypatch.setattr(timerslot, "INLINE_ENTRIES", 100)
    due_ms = stage.clock.now_ms() + 10_000
    slot_ms = 0
    for number in range(count):
        slot_ms = stage.send(b"%d" % number, due_ms) or 0
        if number % 10 == 3:
            stage.recall(b"%d" % (number - 1), slot_ms)
    stage.clock.advance(10_000)
    recalled = {number - 1 for number in range(3, count, 10)}
    assert stage.bodies() == [b"%d" % number for number in range(count) if number not in recalled]


def test_a_crash_in_the_middle_of_a_large_slot_repeats_little(
    stage: TimerStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint says how far in the slot delivery was."""
    monkeypatch.setattr(timerslot, "TURN_MESSAGES", 50)
    due_ms = stage.clock.now_ms() + 5_000
    for number in range(1000):
        stage.send(b"%d" % number, due_ms)
    slot_ms = stage.send(b"recalled", due_ms)
    assert slot_ms is not None
    stage.recall(b"recalled", slot_ms)
    turns: list[int] = []
    append = stage.store.append

    def counting(messages: Any, **more: Any) -> Any:
        turns.append(len(messages))
        if len(turns) == 10:
            stage.timers._checkpoints.pause()
            stage.timers._checkpoints.write()
        return append(messages, **more)

    monkeypatch.setattr(stage.store, "append", counting)
    stage.clock.advance(5_000)
    events = next(
        at
        for at, event in enumerate(stage.disk.events)
        if event.path == timercheck.PATH and len(event.data) > 56 and timercheck.parse(event.data).delivered > 0
    )
    after = stage.crashed(events + 2, everything_survives, stage.clock.now_ms())
    after.clock.advance(1_000)
    bodies = after.bodies()
    assert set(bodies) == {b"%d" % number for number in range(1000)}
    assert len(after.found_delivered) >= 400
    assert len(bodies) <= 1000 + 150


# --------------------------------------------------------------------------------------------------- disks as they are


@pytest.mark.parametrize("paths", [["timerwheel"], ["timerlog/"], ["commitlog/"], ["consumequeue/"], [""]])
def test_cold_files(stage: TimerStage, paths: list[str]) -> None:
    expected = send_all(stage, *range(1, 30))
    for _ in range(60):
        stage.clock.advance(500)
        stage.disk.cold.update(path for path in stage.disk.names if path.startswith(tuple(paths)))
        if len(expected) < 40:
            expected += send_all(stage, 29 + len(expected))
    stage.clock.advance(60_000)
    assert sorted(stage.bodies()) == sorted(expected)


@pytest.mark.parametrize("path", ["timerlog", "timerwheel", "config/timercheck"])
@pytest.mark.parametrize("operation", [Operation.WRITE, Operation.CREATE, Operation.TRUNCATE])
def test_no_room_for_a_while(stage: TimerStage, operation: Operation, path: str) -> None:
    expected = send_all(stage, 1, 2, 3)
    stage.clock.advance(1_500)
    stage.disk.faults[operation, path] = errno.ENOSPC
    expected += send_all(stage, 4, 5, 60)
    stage.clock.advance(20_000)
    stage.disk.faults.clear()
    stage.clock.advance(60_000)
    assert sorted(stage.bodies()) == sorted(expected)
    again = stage.again()
    again.clock.advance(5_000)
    assert sorted(again.bodies()) == sorted(expected)


def test_no_room_in_the_log_when_messages_are_due() -> None:
    stage = TimerStage(watches_disk=True)
    expected = send_all(stage, *range(5, 8))
    stage.clock.advance(4_000)
    stage.disk.spaces["commitlog"] = stage.disk.spaces[""] = (1 << 40, 0)
    stage.clock.advance(60_000)
    assert stage.bodies() == []
    stage.disk.spaces.clear()
    stage.clock.advance(60_000)
    assert stage.bodies() == expected


@pytest.mark.parametrize("path", ["timerlog", "timerwheel", "config/timercheck"])
def test_a_disk_that_fails_ends_it_until_a_restart(stage: TimerStage, path: str) -> None:
    expected = send_all(stage, 1, 30)
    stage.disk.faults[Operation.SYNC, path] = errno.EIO
    stage.clock.advance(5_000)
    with pytest.raises(ServiceUnavailable, match="until the broker is restarted"):
        stage.send(b"refused", stage.clock.now_ms() + 5_000)
    assert stage.timers.pending_from(1 << 40) == 0
    stage.disk.faults.clear()
    again = stage.again()
    again.clock.advance(60_000)
    assert set(again.bodies()) == set(expected)


# ----------------------------------------------------------------------------------------------- files that are wrong


def _no_wheel(disk: SimulatedDisk) -> None:
    disk.unlink("timerwheel")


def _short_wheel(disk: SimulatedDisk) -> None:
    disk.open("timerwheel").truncate(SLOTS * SLOT_BYTES // 2)


def _no_log(disk: SimulatedDisk) -> None:
    for name in disk.list("timerlog"):
        disk.unlink(f"timerlog/{name}")


def _short_log(disk: SimulatedDisk) -> None:
    disk.unlink(f"timerlog/{disk.list('timerlog')[-1]}")


def _no_check(disk: SimulatedDisk) -> None:
    disk.unlink("config/timercheck")


def _empty_check(disk: SimulatedDisk) -> None:
    disk.open("config/timercheck").truncate(0)


def _nothing(disk: SimulatedDisk) -> None:
    for path in [*disk.names]:
        if path.startswith(("timerwheel", "timerlog", "config/timercheck")):
            disk.unlink(path)


def _snapshot(disk: SimulatedDisk) -> None:
    disk.create("timerwheel.104").close()


@pytest.mark.parametrize(
    "damage", [_no_wheel, _short_wheel, _no_log, _short_log, _no_check, _empty_check, _nothing, _snapshot]
)
def test_files_are_made_anew(stage: TimerStage, damage: Callable[[SimulatedDisk], None]) -> None:
    """What was delivered comes again only when nobody knows any more that it was."""
    seconds = [*range(1, 250), 500, 600.5]
    expected = send_all(stage, *seconds)
    stage.clock.advance(100_500)
    stage.stop()
    damage(stage.disk)
    again = TimerStage(stage.disk, stage.clock)
    again.send(b"later", again.clock.now_ms() + 200_000)
    again.clock.advance(600_000)
    assert set(again.bodies()) == {*expected, b"later"}
    knows = damage not in (_no_check, _empty_check, _nothing)
    assert len(again.bodies()) == len(expected) + 1 + (0 if knows else 100)
    for stored in again.stored():
        assert stored.stored_ms >= int(names.decode(stored.properties)[names.TIMER_DELIVER_MS])


@pytest.mark.parametrize("at", [0, UNIT_BYTES * 5 + 3, UNIT_BYTES * 199 + 20])
def test_a_timer_log_that_is_damaged_is_made_anew_at_once(stage: TimerStage, at: int) -> None:
    expected = send_all(stage, *range(1, 250), *(300 + number / 1000 for number in range(1, 60)))
    stage.clock.advance(2_500)
    stage.disk.open("timerlog/" + stage.disk.list("timerlog")[0]).pwrite(b"\xff" * 8, at)
    stage.clock.advance(400_000)
    assert stage.bodies() == expected
    again = stage.again()
    expected += send_all(again, 3)
    again.clock.advance(5_000)
    assert again.bodies() == expected


@pytest.mark.parametrize("precision_ms", [100, 2000])
def test_another_precision_waits_until_nothing_else_does(stage: TimerStage, precision_ms: int) -> None:
    expected = send_all(stage, *range(1, 30))
    stage.clock.advance(5_500)
    refused = stage.again(timer_precision_ms=precision_ms)
    assert "timerPrecisionMs" in str(refused.error)
    refused.store.close()
    again = TimerStage(stage.disk, stage.clock)
    again.clock.advance(60_000)
    third = again.again(timer_precision_ms=precision_ms)
    expected += send_all(third, 1)
    third.clock.advance(60_000)
    assert third.bodies() == expected


def test_a_file_size_that_is_not_the_logs(stage: TimerStage) -> None:
    send_all(stage, *range(1, 300))
    stage.clock.advance(0)
    again = stage.again(mapped_file_size_timer_log=52 * 20 + 16)
    assert "mappedFileSizeTimerLog" in str(again.error)


@pytest.mark.parametrize("properties", [b"", b"TIMER_OUT_MS\x01x\x02", b"TIMER_OUT_MS\x015\x02REAL_TOPIC\x01a\x02"])
def test_what_does_not_say_when_and_where_is_passed(stage: TimerStage, properties: bytes) -> None:
    stage.store.append((Message(TIMER_TOPIC, 0, b"x", properties, 0, bytes(8)),))
    expected = send_all(stage, 2)
    stage.clock.advance(3_000)
    assert stage.bodies() == expected


# ------------------------------------------------------------------------------------------------------ other clocks


@pytest.mark.parametrize("back_ms", [300, 1_500, 3_600_000, 5 * 365 * DAY_MS])
@pytest.mark.parametrize("restart", [False, True])
def test_the_clock_is_put_back(stage: TimerStage, back_ms: int, restart: bool) -> None:
    """Nothing comes before its time on the clock as it is; what had come does not come again."""
    before = send_all(stage, 1, 2, 3)
    stage.clock.advance(3_500)
    assert stage.bodies() == before
    if restart:
        stage.stop()
    stage.clock._now_ms -= back_ms
    if restart:
        stage.clock._timers.clear()
        stage = TimerStage(stage.disk, stage.clock)
    after = send_all(stage, 4, 5.5, 10)
    due_ms = {body: stage.clock.now_ms() + int(float(body) * 1000) for body in after}
    times: dict[bytes, int] = {}
    for _ in range(150):
        stage.clock.advance(100)
        for body in stage.bodies():
            times.setdefault(body, stage.clock.now_ms())
    assert stage.bodies() == before + after
    for body in after:
        assert due_ms[body] <= times[body] <= due_ms[body] + 1_100


# ----------------------------------------------------------------------------------------------------- Apache's files


def as_apaches(disk: SimulatedDisk, **changes: int) -> None:
    """A checkpoint as Apache writes it: without ours."""
    check = msgspec.structs.replace(timercheck.load(disk), **changes)
    disk.open(timercheck.PATH).pwrite(check.encode() + bytes(64), 0)


def test_apaches_entries_behind_its_checkpoint_count(stage: TimerStage) -> None:
    """A clean stop: its log position is that of the flush before the last one, its queue offset is not."""
    expected = send_all(stage, *range(1, 100))
    stage.clock.advance(5_000)
    stage.stop()
    as_apaches(stage.disk, log_position=UNIT_BYTES * 10)
    again = TimerStage(stage.disk, stage.clock)
    again.clock.advance(200_000)
    assert again.bodies() == expected


def test_apaches_wheel_may_be_behind_its_log(stage: TimerStage) -> None:
    """kill -9: entries whose slots were not written yet, and which its queue offset does not count yet."""
    send_all(stage, *range(10, 60))
    stage.clock.advance(2_000)
    stage.stop()
    wheel = bytes(stage.disk.read_file("timerwheel")[: SLOT_BYTES * SLOTS])
    second = TimerStage(stage.disk, stage.clock)
    send_all(second, *range(10, 100))
    second.clock.advance(2_000)
    expected = sorted({b"%d" % number for number in range(10, 100)})
    second.stop()
    second.disk.open("timerwheel").pwrite(wheel, 0)
    as_apaches(second.disk, log_position=UNIT_BYTES * 50, queue_offset=100)
    third = TimerStage(second.disk, second.clock)
    third.clock.advance(200_000)
    assert sorted(set(third.bodies())) == expected
    assert len(third.bodies()) == 50 + 90


# ---------------------------------------------------------------------------------------------------------- retention


def test_nothing_that_waits_is_deleted() -> None:
    """fileReservedTime=1: what is rolled is written again, and its first record may go."""
    clock, disk = VirtualClock(), SimulatedDisk()
    disk.now_ms = clock.now_ms
    stage = TimerStage(
        disk, clock, file_reserved_time=1, delete_when=";".join(map(str, range(24))), clean_resource_interval=HOUR_MS,
        mapped_file_size_commit_log=8192, timer_roll_window_slot=6 * 3600, mapped_file_size_timer_log=52 * 20 + 16,
    )  # fmt: skip
    expected = send_all(stage, *(hour * 3600 for hour in range(1, 70)))
    first: list[int] = []
    for _ in range(72):
        stage.clock.advance(HOUR_MS)
        stage.send(b"noise", stage.clock.now_ms(), topic="noise" + "x" * 100)
        for number in range(10):
            stage.store.append((Message("noise", 0, b"x" * 500, b"", number, bytes(8)),))
        first.append(int(disk.list("commitlog")[0]))
    assert set(expected) >= set(stage.bodies())
    assert stage.timers.metrics.waiting() == 0
    assert first[40] > 0, "what was rolled does not keep the log"
    assert first[-1] > first[40]
    assert int(disk.list("timerlog")[0]) > 0
    late = [stored for stored in stage.stored() if stored.stored_ms % HOUR_MS > 1]
    assert not late
