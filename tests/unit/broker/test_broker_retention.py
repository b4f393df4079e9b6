"""What is still to be done with a message keeps it from being deleted, whatever fileReservedTime says."""

from __future__ import annotations

from typing import Any

import pytest

from saturnmq.broker.leases import Leases
from saturnmq.disk.simulated import Operation, SimulatedDisk
from saturnmq.kernel.errors import ServiceUnavailable
from saturnmq.kernel.topic import HALF_TOPIC, SCHEDULE_TOPIC
from saturnmq.testing.clock import VirtualClock
from saturnmq.testing.offline import OfflineBroker
from saturnmq.testing.pops import Held, PopStage
from saturnmq.wire.remoting.codes import RequestCode, ResponseCode

HOUR_MS = 3_600_000
FILE_BYTES = 4096
SETTINGS: dict[str, Any] = {
    "file_reserved_time": 1,
    "delete_when": ";".join(map(str, range(24))),
    "mapped_file_size_commit_log": FILE_BYTES,
    "message_index_enable": False,
}


def aging() -> tuple[SimulatedDisk, VirtualClock]:
    clock, disk = VirtualClock(), SimulatedDisk()
    disk.now_ms = clock.now_ms
    return disk, clock


def first_file(disk: SimulatedDisk) -> int:
    return int(disk.list("commitlog")[0])


# ----------------------------------------------------------------------------------------------- delayed messages


@pytest.fixture
def offline() -> OfflineBroker:
    return OfflineBroker(*aging(), store_settings=SETTINGS)


def load(offline: OfflineBroker, count: int = 40) -> None:
    for _ in range(count):
        offline.send("noise", b"x" * 500)


def test_a_delayed_message_outlives_its_file(offline: OfflineBroker) -> None:
    load(offline)
    offline.send("orders", b"later", DELAY="18")
    pending = offline.store.position_at(SCHEDULE_TOPIC, 17, 0)
    assert isinstance(pending, int)
    load(offline)
    offline.clock.advance(2 * HOUR_MS - 1)
    assert first_file(offline.disk) == pending // FILE_BYTES * FILE_BYTES > 0
    assert len(offline.stored(SCHEDULE_TOPIC, 17)) == 1
    offline.clock.advance(1)
    assert [message.body for message in offline.stored("orders")] == [b"later"]
    offline.clock.advance(60_000)
    assert first_file(offline.disk) > pending, "nothing holds the file any more"
    assert [message.body for message in offline.stored("orders")] == [b"later"], "the copy is a message of its own"


def test_each_level_keeps_its_own(offline: OfflineBroker) -> None:
    offline.send("orders", b"17", DELAY="17")
    load(offline)
    offline.send("orders", b"18", DELAY="18")
    load(offline)
    kept = offline.store.position_at(SCHEDULE_TOPIC, 17, 0)
    assert isinstance(kept, int)
    offline.clock.advance(HOUR_MS + 120_000)
    assert [message.body for message in offline.stored("orders")] == [b"17"]
    assert 0 < first_file(offline.disk) <= kept
    offline.clock.advance(HOUR_MS)
    assert [message.body for message in offline.stored("orders")] == [b"17", b"18"]


def test_a_restart_knows_it_too(offline: OfflineBroker) -> None:
    offline.send("orders", b"later", DELAY="18")
    load(offline)
    offline.clock.advance(HOUR_MS + 60_000)
    again = offline.restart()
    again.clock.advance(HOUR_MS - 70_000)
    assert first_file(again.disk) == 0
    assert again.stored("orders") == []
    again.clock.advance(20_000)
    assert [message.body for message in again.stored("orders")] == [b"later"]


# -------------------------------------------------------------------------------------------------- half messages


def test_a_half_message_outlives_its_file(offline: OfflineBroker) -> None:
    load(offline)
    immune = str(3 * HOUR_MS // 1000)
    sent = offline.send("orders", b"half", TRAN_MSG="true", PGROUP="producers", CHECK_IMMUNITY_TIME_IN_SECONDS=immune)
    pending = offline.store.position_at(HALF_TOPIC, 0, 0)
    assert isinstance(pending, int)
    load(offline)
    offline.clock.advance(2 * HOUR_MS)
    assert first_file(offline.disk) == pending // FILE_BYTES * FILE_BYTES > 0
    offline = offline.restart()
    end = {
        "producerGroup": "producers", "tranStateTableOffset": sent.fields["queueOffset"], "commitLogOffset": pending,
        "commitOrRollback": 8, "msgId": "KEY",
    }  # fmt: skip
    assert offline.ask(RequestCode.END_TRANSACTION, end).code == 0
    assert [message.body for message in offline.stored("orders")] == [b"half"]
    load(offline)
    offline.clock.advance(2 * HOUR_MS)
    assert first_file(offline.disk) > pending, "nothing holds the file any more"


# ------------------------------------------------------------------------------------------- messages in flight


def popping() -> PopStage:
    return PopStage(*aging(), store_settings=SETTINGS, queues={"orders": 1, "noise": 1})


def noise(stage: PopStage, count: int = 40) -> None:
    for _ in range(count):
        stage.send("n" * 500, topic="noise")


def aged_in_flight(stage: PopStage, invisible_ms: int = 3 * HOUR_MS, **request: Any) -> Held:
    """A message that a consumer holds, in a file that has been expired for a while."""
    noise(stage)
    stage.send("held")
    [held] = stage.pop(invisible_ms=invisible_ms, **request)
    noise(stage)
    stage.advance(2 * HOUR_MS)
    return held


def position(stage: PopStage) -> int:
    found = stage.store.position_at("orders", 0, 0)
    assert isinstance(found, int)
    return found


def test_a_message_in_flight_outlives_its_file() -> None:
    stage = popping()
    held = aged_in_flight(stage)
    assert 0 < first_file(stage.disk) == position(stage) // FILE_BYTES * FILE_BYTES
    stage.ack(held)
    stage.advance(60_000)
    assert position(stage) >= 0, "the record of its lease stands behind it, and is in the timer wheel"
    stage.advance(HOUR_MS)
    assert position(stage) == -1
    assert stage.pop() == []


def test_a_message_that_waited_before_it_was_taken() -> None:
    """It stands far before the record of its lease."""
    stage = popping()
    noise(stage)
    stage.send("held")
    noise(stage)
    [held] = stage.pop(invisible_ms=3 * HOUR_MS)
    noise(stage)
    stage.advance(2 * HOUR_MS)
    assert 0 < first_file(stage.disk) == position(stage) // FILE_BYTES * FILE_BYTES
    stage.ack(held)
    stage.advance(60_000)
    assert position(stage) == -1


def test_it_comes_back_when_its_lease_ends() -> None:
    stage = popping()
    aged_in_flight(stage)
    stage.advance(HOUR_MS + 60_000)
    assert position(stage) == -1, "the copy has taken its place"
    assert [held.name for held in stage.pop()] == ["held"]


@pytest.mark.parametrize("end", ["restart", "kill", "power_cut"])
def test_leases_go_on_after_the_end_of_the_process(end: str) -> None:
    """Their records in the revive topic are kept as well."""
    stage = popping()
    held = aged_in_flight(stage)
    stage = getattr(stage, end)()
    assert stage.pop() == []
    stage.advance(120_000)
    assert position(stage) >= 0
    stage.ack(held)
    stage.advance(HOUR_MS)
    assert stage.pop() == []


def test_nothing_goes_while_the_leases_are_not_known() -> None:
    stage = popping()
    held = aged_in_flight(stage, invisible_ms=12 * HOUR_MS)
    stage = stage.kill()
    before = first_file(stage.disk)
    log = stage.pops._log
    log._ready, log._leases = False, Leases()
    stage.advance(5 * HOUR_MS)
    assert first_file(stage.disk) == before
    log._ready, log._leases = True, stage.pops.leases
    stage.ack(held)
    stage.advance(6 * HOUR_MS)
    assert first_file(stage.disk) > before


def test_an_acknowledgement_is_durable_before_its_message_goes() -> None:
    stage = PopStage(*aging(), store_settings=SETTINGS, queues={"orders": 1, "noise": 1}, flush="ASYNC_FLUSH")
    held = aged_in_flight(stage)
    stage.ack(held)
    stage.advance(HOUR_MS + 60_000)
    unlinks = [at for at, event in enumerate(stage.disk.events) if event.operation is Operation.UNLINK]
    stage.disk.events = stage.disk.events[: unlinks[-1] + 1]
    again = stage.power_cut()
    assert again.pops.leases.in_flight == 0


@pytest.mark.parametrize("acknowledged", [False, True])
def test_a_fifo_group_that_went_away_keeps_nothing(acknowledged: bool) -> None:
    """Its batch is not in flight any more; what a restart must know of it is in a snapshot."""
    stage = popping()
    stage.send("a", "b")
    first, *_ = stage.pop(fifo=True, invisible_ms=10_000, max_messages=2)
    if acknowledged:
        stage.ack(first)
    noise(stage)
    record = stage.store.position_at("rmq_sys_wheel_timer", 0, 0)
    assert isinstance(record, int)
    stage.advance(2 * HOUR_MS)
    assert first_file(stage.disk) > record
    size = stage.store.end
    stage.advance(10 * HOUR_MS)
    assert stage.store.end - size < 4 * FILE_BYTES, "not again and again"
    stage = stage.kill()
    order = stage.pops.leases.queue("g", "orders", 0).order
    assert order is not None
    assert order.remaining() == ([1] if acknowledged else [0, 1])


def test_many_groups_that_went_away_keep_nothing() -> None:
    stage = PopStage(*aging(), store_settings=SETTINGS, queues={"orders": 17, "noise": 1})
    for queue_id in (0, 8, 16):
        stage.send("a", queue_id=queue_id)
        assert stage.pop(fifo=True, queue_id=queue_id, invisible_ms=10_000)
        noise(stage, 20)
    noise(stage)
    before = first_file(stage.disk)
    stage.advance(2 * HOUR_MS)
    assert first_file(stage.disk) > before
    stage = stage.kill()
    for queue_id in (0, 8, 16):
        order = stage.pops.leases.queue("g", "orders", queue_id).order
        assert order is not None
        assert order.remaining() == [0]


def test_a_fifo_batch_in_flight_is_kept() -> None:
    stage = popping()
    held = aged_in_flight(stage, fifo=True)
    assert first_file(stage.disk) == position(stage) // FILE_BYTES * FILE_BYTES
    stage = stage.kill()
    stage.advance(60_000)
    assert position(stage) >= 0
    stage.ack(held)
    stage.advance(60_000)
    assert position(stage) == -1


def test_the_end_of_a_changed_delivery_is_known_as_long_as_its_handle_lives() -> None:
    """A lease that was cut short and acknowledged: a snapshot says so when the record goes."""
    stage = popping()
    noise(stage)
    stage.send("held")
    [held] = stage.pop(invisible_ms=11 * HOUR_MS)
    changed = stage.change(held, 60_000)
    stage.ack(changed)
    noise(stage)
    stage.advance(3 * HOUR_MS)
    assert position(stage) == -1
    assert len(stage.pops.leases.queue("g", "orders", 0).over) == 1
    stage = stage.kill()
    assert len(stage.pops.leases.queue("g", "orders", 0).over) == 1
    assert stage.pops.leases.in_flight == 0
    assert stage.pop() == []


# ------------------------------------------------------------------------------------------------- a full disk


def test_consumers_finish_what_they_have_while_the_disk_is_full() -> None:
    stage = popping()
    stage.send("a", "b")
    [first] = stage.pop(max_messages=1)
    stage.disk.spaces[""] = (95, 5)
    stage.advance(5_000)
    with pytest.raises(ServiceUnavailable):
        stage.send("c")
    stage.ack(first)
    [second] = stage.pop()
    stage.ack(second)
    stage = stage.power_cut()
    assert stage.pop() == []
    assert stage.pops.leases.in_flight == 0


def test_a_sender_is_told_what_to_do(offline: OfflineBroker) -> None:
    offline.send("orders")
    offline.disk.spaces["commitlog"] = (95, 5)
    offline.clock.advance(5_000)
    answer = offline.send("orders")
    assert answer.code == ResponseCode.SERVICE_NOT_AVAILABLE
    assert "diskSpaceWarningLevelRatio" in answer.remark
    assert "diskMinFreeBytes" in answer.remark
    assert "the disk of commitlog is 95 % full" in answer.remark
    offline.disk.spaces.clear()
    offline.clock.advance(5_000)
    assert offline.send("orders").code == 0


def test_delayed_messages_wait_for_room(offline: OfflineBroker) -> None:
    offline.send("orders", b"later", DELAY="3")
    offline.disk.spaces["commitlog"] = (95, 5)
    offline.clock.advance(60_000)
    assert offline.stored("orders") == []
    offline.disk.spaces.clear()
    offline.clock.advance(6_000)
    assert [message.body for message in offline.stored("orders")] == [b"later"]
