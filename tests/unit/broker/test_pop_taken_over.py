"""If Apache's broker opened our directory next, it would give out again exactly what is in flight, and in time."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from saturnmq.disk.simulated import SimulatedDisk, everything_survives
from saturnmq.testing.apache_revive import REVIVE_TOPIC, in_flight, revived_by_apache
from saturnmq.testing.pops import PopStage


def killed(stage: PopStage) -> SimulatedDisk:
    return stage.disk.crashed(survives=everything_survives)


def stopped(stage: PopStage) -> SimulatedDisk:
    stage.stop()
    return stage.disk


@pytest.mark.parametrize("end", [killed, stopped])
@pytest.mark.parametrize("after_ms", [0, 2000, 58_999, 59_000, 59_001, 59_999, 60_000, 60_001, 61_000, 63_000, 90_000])
def test_a_lease_in_each_of_its_moments(after_ms: int, end: Callable[[PopStage], SimulatedDisk]) -> None:
    stage = PopStage()
    stage.send(*"abcdefghij")
    [late] = stage.pop(max_messages=1)
    held = stage.pop(max_messages=5)
    stage.pop(max_messages=3, invisible_ms=1000)
    stage.ack(held[0])
    stage.advance(min(after_ms, 5000))
    stage.ack(late)
    stage.advance(after_ms - min(after_ms, 5000))
    if after_ms < 60_000:
        stage.ack(held[1])
        if after_ms:
            stage.change(held[2], 100_000)
    expected = in_flight(stage)
    assert revived_by_apache(stage, end(stage)) == expected


def test_an_end_follows_a_check_point_that_was_delivered_before_a_crash() -> None:
    """The crash repeats the delivery, and now nobody holds the message any more."""
    stage = PopStage(settings={"revive_queue_num": 1})
    stage.send("a", "b")
    stage.pop(max_messages=1, invisible_ms=10_000)
    [b] = stage.pop(max_messages=1, invisible_ms=10_000)
    stage.advance(9_100)
    stage.ack(b)
    stage = stage.kill()
    stage.advance(1_400)
    assert revived_by_apache(stage, killed(stage), queues=1) == in_flight(stage) == set()


def test_what_is_acknowledged_soon_never_comes_into_the_wheel() -> None:
    stage = PopStage()
    for _ in range(100):
        stage.send("m")
        [held] = stage.pop()
        stage.advance(10)
        stage.ack(held)
    stage.send("held", "and done later")
    _, other = stage.pop()
    stage.advance(5_000)
    stage.ack(other)
    stage.advance(5_000)
    assert stage.timers.metrics.waiting() == 2, "a check point and an acknowledgement"
    assert in_flight(stage) == revived_by_apache(stage, killed(stage))
    stage.advance(60_000)
    assert stage.timers.metrics.waiting() == 0
    assert stage.store.max_offset(REVIVE_TOPIC, 5) == 3, "the check point, the acknowledgement, and that it came back"
    stage.advance(10_000)
    assert stage.offsets.get("CID_RMQ_SYS_REVIVE_GROUP", REVIVE_TOPIC, 5) == 2
    assert sum(stage.store.max_offset(REVIVE_TOPIC, queue_id) for queue_id in range(8)) == 3
