"""FIFO batches in Apache's file: written for it, and taken over from it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from saturnmq.disk.simulated import SimulatedDisk, everything_survives
from saturnmq.kernel.errors import InvalidReceiptHandle
from saturnmq.testing.clock import VirtualClock
from saturnmq.testing.pops import Held, PopStage

PATH = "config/consumerOrderInfo.json"


def names(held: list[Held]) -> list[str]:
    return [one.name for one in held]


def fifo(stage: PopStage, **fields: Any) -> list[Held]:
    return stage.pop(fifo=True, **fields)


def popped() -> tuple[PopStage, list[Held]]:
    stage = PopStage()
    stage.send(*"abcdef")
    held = fifo(stage, max_messages=4, attempt_id="one")
    stage.ack(held[1])
    held[2] = stage.change(held[2], 90_000)
    return stage, held


def by_apache(stage: PopStage, **info: Any) -> PopStage:
    """The stage on the directory as Apache's broker leaves it."""
    stage.stop()
    disk = stage.disk
    disk.replace_file(PATH, json.dumps({"table": {"orders@g": {"0": info}}}).encode())
    return PopStage(disk, VirtualClock(stage.clock.now_ms() + 1000))


def test_it_is_written_as_apache_reads_it() -> None:
    stage, held = popped()
    now_ms = stage.clock.now_ms()
    stage.advance(9_999)
    assert not stage.disk.exists(PATH)
    stage.advance(1)
    written = json.loads(stage.disk.read_file(PATH))
    assert written.pop("saturnmq")
    info = written["table"]["orders@g"]["0"]
    assert info.pop("h"), "ours, which fastjson passes"
    assert written == {"table": {"orders@g": {"0": info}}}
    assert info == {
        "popTime": now_ms, "i": 60_000, "o": [0, 1, 2, 3], "ot": {"2": now_ms + 90_000}, "l": now_ms, "cm": 2,
        "a": "one",
    }  # fmt: skip
    for one in held:
        stage.ack(one)
    stage.stop()
    assert json.loads(stage.disk.read_file(PATH)) == {"saturnmq": True}


@pytest.mark.parametrize("end", ["restart", "kill"])
def test_our_own_is_not_read(end: str) -> None:
    stage, held = popped()
    stage.advance(10_000)
    stage.ack(held[0])
    stage = getattr(stage, end)()
    assert fifo(stage) == []
    order = stage.pops.leases.queue("g", "orders", 0).order
    assert order is not None
    assert order.remaining() == [2, 3]


def test_what_apache_gave_out_is_held_here() -> None:
    stage, _ = popped()
    pop_ms = stage.clock.now_ms() + 500
    stage = by_apache(stage, popTime=pop_ms, i=30_000, o=[0, 2, 3, 4], ot={"3": pop_ms + 40_000}, oc={"0": 1}, l=pop_ms,
                      cm=2, a="two")  # fmt: skip
    assert fifo(stage) == []
    again = PopStage(stage.disk.crashed(survives=everything_survives), VirtualClock(stage.clock.now_ms()))
    for one in (stage, again):
        one.advance(pop_ms + 40_000 - one.clock.now_ms() - 1)
        assert fifo(one) == []
        one.advance(1)
        held = fifo(one)
        assert [(m.name, m.reconsume_times) for m in held] == [("a", 2), ("d", 1), ("e", 1), ("f", 0)]


def test_a_handle_that_apache_gave_for_a_change_is_good() -> None:
    stage, held = popped()
    pop_ms = held[0].delivery.pop_ms + 500
    stage = by_apache(stage, popTime=pop_ms, i=30_000, o=[0], ot={"0": pop_ms + 40_000}, l=pop_ms, cm=0)
    with pytest.raises(InvalidReceiptHandle):
        stage.ack(held[0])
    stage.ack(held[0].changed(pop_ms=pop_ms, invisible_ms=40_000, revive_queue_id=999))
    assert names(fifo(stage)) == ["b", "c", "d", "e", "f"]


def test_acknowledgements_of_both_count() -> None:
    """Apache's broker knew the batch from our file, which may be older than our log."""
    stage, held = popped()
    stage.ack(held[0])
    pop_ms = held[0].delivery.pop_ms
    stage = by_apache(stage, popTime=pop_ms, i=60_000, o=[0, 1, 2, 3], ot={"2": pop_ms + 90_000}, l=pop_ms, cm=0b1000)
    order = stage.pops.leases.queue("g", "orders", 0).order
    assert order is not None
    assert order.remaining() == [2]
    stage.ack(held[2])
    assert names(fifo(stage)) == ["e", "f"]


def test_a_batch_that_apache_saw_to_its_end_is_done() -> None:
    stage, held = popped()
    pop_ms = held[0].delivery.pop_ms + 500
    stage = by_apache(stage, popTime=pop_ms, i=60_000, o=[0, 1, 2, 3], l=pop_ms, cm=0b1111)
    assert stage.offsets.get("g", "orders", 0) == 4
    assert names(fifo(stage)) == ["e", "f"]


def test_what_is_older_does_not_count() -> None:
    stage, held = popped()
    pop_ms = held[0].delivery.pop_ms
    stage = by_apache(stage, popTime=pop_ms - 1, i=60_000, o=[0], l=pop_ms, cm=1)
    assert fifo(stage) == []
    for one in (held[0], held[2], held[3]):
        stage.ack(one)
    rest = fifo(stage)
    for one in rest:
        stage.ack(one)
    stage = by_apache(stage, popTime=pop_ms, i=60_000, o=[0, 1, 2, 3], l=pop_ms, cm=0)
    stage.send("g")
    assert names(fifo(stage)) == ["g"], "the group is behind that batch"


def test_a_file_that_cannot_be_read_is_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    stage, _ = popped()
    stage.stop()
    disk: SimulatedDisk = stage.disk
    disk.replace_file(PATH, b'{"table":')
    stage = PopStage(disk, VirtualClock(stage.clock.now_ms()))
    assert "FIFO" in caplog.text
    assert fifo(stage) == []
