"""The leases after a start: from a snapshot, wherever a crash comes, and from the log when there is none."""

from __future__ import annotations

from collections.abc import Callable
from zlib import crc32

import msgspec
import pytest

from saturnmq.broker.leasefile import PATH
from saturnmq.broker.reviverecords import ReviveRecords
from saturnmq.disk.simulated import SimulatedDisk, Survives, everything_survives, nothing_survives
from saturnmq.kernel import properties
from saturnmq.kernel.message import Message
from saturnmq.testing.apache_revive import REVIVE_TOPIC, in_flight
from saturnmq.testing.clock import VirtualClock
from saturnmq.testing.pops import Held, PopStage


def names(held: list[Held]) -> list[str]:
    return [one.name for one in held]


@pytest.mark.parametrize("survives", [everything_survives, nothing_survives])
def test_a_crash_behind_every_event_of_the_disk(survives: Survives, monkeypatch: pytest.MonkeyPatch) -> None:
    """Snapshots are under way all the time; what was acknowledged stays so, the others come, a batch is held by one."""
    monkeypatch.setattr("saturnmq.broker.leasefile._MAX_BEHIND", 3)
    monkeypatch.setattr("saturnmq.broker.leasefile._FRAME_ITEMS", 1)
    stage = PopStage()
    #: by name, behind how many events
    acknowledged: dict[str, int] = {}
    stage.send(*"abcdef")
    begin = len(stage.disk.events)
    batch = stage.pop(group="fifo", fifo=True, max_messages=2, invisible_ms=300_000)
    held_from = len(stage.disk.events)
    for _ in range(3):
        one, two = stage.pop(max_messages=2)
        stage.ack(one)
        acknowledged[one.name] = len(stage.disk.events)
        stage.change(two, 30_000)
        stage.advance(5_000)
    now_ms, end = stage.clock.now_ms(), len(stage.disk.events)
    snapshots = 0
    for events in range(begin, end + 1):
        disk = stage.disk.crashed(events, survives)
        snapshots += disk.exists(PATH)
        again = PopStage(disk, VirtualClock(now_ms + 1))
        blocked = again.pop(group="fifo", fifo=True)
        assert not blocked or events < held_from, (events, names(blocked))
        again.advance(100_000)
        come = set(names(again.pop()))
        done = {name for name, at in acknowledged.items() if at <= events}
        doubtful = set(acknowledged) - done
        assert set("abcdef") - done - doubtful <= come <= set("abcdef") - done, events
        if events >= held_from:
            again.ack(batch[0])
    assert snapshots > 10


def test_a_check_point_that_is_delivered_twice_has_not_ended() -> None:
    """A crash repeats the delivery to the revive topic."""
    stage = PopStage()
    stage.send("m")
    stage.pop(invisible_ms=1)
    stage = stage.restart().kill().restart()
    assert max(stage.store.max_offset(REVIVE_TOPIC, queue_id) for queue_id in range(8)) == 2
    stage.advance(10_000)
    assert names(stage.pop()) == ["m"]


def taken(stage: PopStage) -> None:
    """Leases in many states."""
    stage.send(*"abcdefghijklmnop")
    held = stage.pop(max_messages=8)
    stage.ack(held[0])
    stage.change(held[1], 100_000)
    stage.pop(max_messages=2, invisible_ms=4000)
    stage.pop(group="other", max_messages=3)
    stage.advance(3_000)
    stage.ack(held[2])
    stage.change(held[3], 90_000)
    stage.renew(held[4], 80_000)


def without_snapshot(disk: SimulatedDisk) -> None:
    disk.unlink(PATH)


def damaged(disk: SimulatedDisk) -> None:
    data = bytearray(disk.read_file(PATH))
    data[len(data) // 2] ^= 1
    disk.replace_file(PATH, bytes(data))


def cut(disk: SimulatedDisk) -> None:
    disk.replace_file(PATH, disk.read_file(PATH)[:-9])


def of_another_log(disk: SimulatedDisk) -> None:
    """Somebody put away the messages and left the rest."""
    data = disk.read_file(PATH)
    payload = msgspec.msgpack.encode([1, 10_000, [0] * 8])
    size = int.from_bytes(data[:4], "big")
    head = len(payload).to_bytes(4, "big") + crc32(payload).to_bytes(4, "big")
    disk.replace_file(PATH, head + payload + data[8 + size :])


@pytest.mark.parametrize("end", ["kill", "restart"])
@pytest.mark.parametrize("then_ms", [0, 3_000, 10_000, 56_000, 57_500, 70_000])
@pytest.mark.parametrize("how", [without_snapshot, damaged, cut, of_another_log])
def test_without_a_snapshot_the_leases_come_from_the_wheel_and_the_log(
    how: Callable[[SimulatedDisk], None], then_ms: int, end: str
) -> None:
    stage = PopStage()
    taken(stage)
    stage.advance(then_ms)
    expected = in_flight(stage)
    if end == "kill":
        disk = stage.disk.crashed(survives=everything_survives)
    else:
        stage.stop()
        disk = stage.disk
    how(disk)
    again = PopStage(disk, VirtualClock(stage.clock.now_ms()))
    assert in_flight(again) == expected
    assert disk.exists(PATH), "at once"
    everything = set("abcdefghijklmnop")
    again.advance(300_000)
    acked = {"a", "c"}
    assert set(names(again.pop())) == everything - acked


def test_without_a_snapshot_when_what_is_out_of_reach_of_the_wheel_is_written_again() -> None:
    """Of a message whose lease was changed, of one that is acknowledged: what is written again is an older lease."""
    near = {"timer_roll_window_slot": 10}
    stage = PopStage(store_settings=near)
    stage.send(*"abcd")
    held = stage.pop()
    stage.advance(2_000)
    stage.ack(held[0])
    stage.change(held[1], 100_000)
    expected = in_flight(stage)
    begin = len(stage.disk.events)
    stage.advance(30_000)
    for events in range(begin, len(stage.disk.events) + 1):
        disk = stage.disk.crashed(events, everything_survives)
        if disk.exists(PATH):
            without_snapshot(disk)
        again = PopStage(disk, VirtualClock(stage.clock.now_ms()), store_settings=near)
        assert in_flight(again) == expected, events


def test_a_snapshot_that_the_disk_does_not_give_back(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = PopStage()
    taken(stage)
    expected = in_flight(stage)
    read_file = SimulatedDisk.read_file

    def fails(disk: SimulatedDisk, path: str) -> bytes:
        if path == PATH:
            raise OSError(5, "Input/output error", path)
        return read_file(disk, path)

    monkeypatch.setattr(SimulatedDisk, "read_file", fails)
    assert in_flight(stage.restart()) == expected


def test_a_directory_of_an_older_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its records stand in the revive topic, before their time."""
    written = ReviveRecords._message

    def in_revive_topic(records: ReviveRecords, *fields: object) -> Message:
        message = written(records, *fields)  # type: ignore[arg-type]
        pairs = properties.decode(message.properties)
        message.topic, message.queue_id = pairs.pop("REAL_TOPIC"), int(pairs.pop("REAL_QID"))
        del pairs["TIMER_OUT_MS"]
        message.properties = properties.encode(pairs)
        return message

    stage = PopStage()
    with monkeypatch.context() as older:
        older.setattr(ReviveRecords, "_message", in_revive_topic)
        taken(stage)
        stage.pop(group="fifo", fifo=True, max_messages=1, invisible_ms=50_000)
        expected = in_flight(stage)
        disk = stage.disk.crashed(survives=everything_survives)
    without_snapshot(disk)
    for _ in range(2):
        stage = PopStage(disk, VirtualClock(stage.clock.now_ms()))
        assert in_flight(stage) == expected
        assert stage.pop(group="fifo", fifo=True) == []
        disk = stage.disk.crashed(survives=everything_survives)
    stage.advance(300_000)
    assert set(names(stage.pop())) == set("abcdefghijklmnop") - {"a", "c"}
    assert names(stage.pop(group="fifo", fifo=True, max_messages=1)) == ["a"]
    ends = [stage.store.max_offset(REVIVE_TOPIC, queue_id) - 1 for queue_id in range(8)]
    assert [stage.offsets.get("CID_RMQ_SYS_REVIVE_GROUP", REVIVE_TOPIC, queue_id) for queue_id in range(8)] == ends
