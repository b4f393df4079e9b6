"""Pop, acknowledge, change, renew: the rules as scripts."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from saturnmq.broker.leasereplay import LeaseReplay
from saturnmq.kernel.errors import (
    GroupNotFound,
    InvalidParameter,
    InvalidReceiptHandle,
    NoPermission,
    NoSuchMessage,
    ProtocolError,
    ServiceUnavailable,
    TimersDisabled,
    TopicNotFound,
)
from saturnmq.kernel.handle import TopicKind
from saturnmq.kernel.later import Later
from saturnmq.kernel.ports import PopStatus
from saturnmq.kernel.topic import GroupConfig, TopicConfig
from saturnmq.store.results import Found, FoundStatus
from saturnmq.store.store import Store
from saturnmq.testing.pops import Held, PopStage
from saturnmq.wire import record


def names(held: list[Held]) -> list[str]:
    return [one.name for one in held]


def numbered(count: int, first: int = 0) -> list[str]:
    return [f"m{number}" for number in range(first, first + count)]


# ------------------------------------------------------------------------------------------------------ popping


def test_consumers_of_a_group_share_and_groups_do_not() -> None:
    stage = PopStage()
    stage.send(*numbered(5))
    assert names(stage.pop(max_messages=2)) == ["m0", "m1"]
    assert names(stage.pop(max_messages=2)) == ["m2", "m3"]
    assert names(stage.pop()) == ["m4"]
    assert stage.pop() == []
    assert names(stage.pop(group="h")) == numbered(5)
    assert stage.pops.leases.in_flight == 10


def test_a_pop_takes_of_every_queue_and_begins_with_another_one_each_time() -> None:
    stage = PopStage(queues={"orders": 3})
    for queue_id in range(3):
        stage.send(f"a{queue_id}", f"b{queue_id}", queue_id=queue_id)
    assert names(stage.pop(max_messages=3)) == ["a1", "b1", "a2"]
    assert names(stage.pop(max_messages=1)) == ["b2"]
    assert names(stage.pop()) == ["a0", "b0"]


def test_one_queue_can_be_asked_for() -> None:
    stage = PopStage(queues={"orders": 2})
    stage.send("zero", queue_id=0)
    stage.send("one", queue_id=1)
    assert names(stage.pop(queue_id=1)) == ["one"]
    assert stage.pop(queue_id=1) == []


def test_what_the_filter_does_not_take_is_passed() -> None:
    stage = PopStage()
    for number in range(4):
        stage.send(f"a{number}", tags="a")
        stage.send(f"b{number}", tags="b")
    held = stage.pop(expression="a", max_messages=2)
    assert names(held) == ["a0", "a1"]
    assert names(stage.pop(expression="a || c")) == ["a2", "a3"]
    assert stage.pop() == [], "b is not for this group"
    assert names(stage.pop(group="h", expression="b")) == ["b0", "b1", "b2", "b3"]


def test_thousands_that_the_filter_does_not_take_are_passed_by_one_waiting_pop() -> None:
    stage = PopStage()
    for first in range(0, 30_000, 1000):
        stage.send(*numbered(1000, first), tags="other")
    answer = stage.ask(expression="mine", wait_ms=10_000)
    assert answer.waits
    stage.send("found", tags="mine")
    assert [message.queue_offset for message in answer.value.messages] == [30_000]


def test_a_new_group_begins_at_the_first_message_or_the_last_one() -> None:
    stage = PopStage(settings={"init_pop_offset_by_check_msg_in_mem": False})
    stage.send(*numbered(3))
    assert names(stage.pop(group="earliest")) == numbered(3)
    assert names(stage.pop(group="latest", from_latest=True)) == ["m2"]
    assert names(PopStage().pop(from_latest=True)) == []


def test_a_new_group_begins_at_the_first_message_while_that_is_recent() -> None:
    stage = PopStage()
    stage.send(*numbered(3))
    assert names(stage.pop(from_latest=True)) == numbered(3)


def test_messages_of_a_queue_that_was_added_are_not_skipped() -> None:
    stage = PopStage(settings={"init_pop_offset_by_check_msg_in_mem": False})
    stage.send("before")
    assert names(stage.pop(from_latest=True)) == ["before"]
    stage.topics.put(TopicConfig(topic_name="orders", read_queue_nums=2, write_queue_nums=2))
    stage.send("new1", "new2", queue_id=1)
    assert names(stage.pop(from_latest=True)) == ["new1", "new2"]


def test_a_reset_gives_messages_again_but_not_those_under_a_lease() -> None:
    stage = PopStage()
    stage.send(*numbered(4))
    held = stage.pop()
    stage.ack(held[0])
    stage.ack(held[2])
    stage.offsets.commit("g", "orders", 0, 0)
    assert names(stage.pop()) == ["m0", "m2"]
    assert stage.pop() == []
    stage.ack(held[1])
    stage.offsets.commit("g", "orders", 0, 4)
    stage.send("m4")
    assert names(stage.pop()) == ["m4"]


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"max_messages": 33}, InvalidParameter, "1 to 32"),
        ({"max_messages": 0}, InvalidParameter, "1 to 32"),
        ({"queue_id": 1}, InvalidParameter, "readQueueNums"),
        ({"topic": "unknown"}, TopicNotFound, "unknown"),
        ({"topic": "closed"}, NoPermission, "closed"),
        ({"group": "stopped"}, NoPermission, "stopped"),
        ({"group": "not a group"}, GroupNotFound, "not a group"),
    ],
)
def test_refused(change: dict[str, object], error: type[Exception], text: str) -> None:
    stage = PopStage()
    stage.topics.put(TopicConfig(topic_name="closed", perm=2))
    stage.groups.put(GroupConfig(group_name="stopped", consume_enable=False))
    with pytest.raises(error, match=text):
        stage.pop(**change)  # type: ignore[arg-type]


def test_without_the_timer_wheel_nothing_is_popped() -> None:
    stage = PopStage(store_settings={"timer_wheel_enable": False})
    with pytest.raises(TimersDisabled, match="timerWheelEnable is false"):
        stage.pop()


# ------------------------------------------------------------------------------------------------------ waiting


def test_a_pop_waits_for_a_message_that_it_wants() -> None:
    stage = PopStage(queues={"orders": 4})
    answer = stage.ask(expression="a", wait_ms=1000)
    stage.send("b0", tags="b")
    assert answer.waits
    stage.send("a0", tags="a", queue_id=3)
    assert names(stage.held(stage.request(), answer.value)) == ["a0"]


def test_a_group_that_holds_too_much_of_a_queue_gets_no_more_of_it() -> None:
    settings = {"enable_pop_message_threshold": True, "pop_inflight_message_threshold": 2}
    stage = PopStage(queues={"orders": 2}, settings=settings)
    stage.send(*numbered(5))
    held = stage.pop(max_messages=3)
    assert names(held) == ["m0", "m1", "m2"], "the threshold is no limit of one pop"
    assert stage.pop() == []
    stage.send("other", queue_id=1)
    assert names(stage.pop()) == ["other"]
    assert len(stage.pop(group="h")) == 6
    waiting = stage.ask(wait_ms=60_000)
    assert waiting.waits
    stage.ack(held[0])
    assert names(stage.held(stage.request(), waiting.value)) == ["m3", "m4"]
    for one in held[1:]:
        stage.ack(one)
    stage.advance(60_000)
    assert set(names(stage.pop())) == {"other", "m3", "m4"}, "a lease that ends gives room as well"


def test_a_wait_ends_at_its_time() -> None:
    stage = PopStage()
    answer = stage.ask(wait_ms=1000)
    stage.advance(999)
    assert answer.waits
    stage.advance(1)
    assert answer.value.status is PopStatus.POLLING_TIMEOUT
    assert stage.ask().value.status is PopStatus.NOT_FOUND


def test_messages_go_to_one_consumer_after_the_other() -> None:
    stage = PopStage()
    first, second, third = (stage.ask(wait_ms=1000, max_messages=2) for _ in range(3))
    stage.send(*numbered(3))
    assert [message.queue_offset for message in first.value.messages] == [0, 1]
    assert [message.queue_offset for message in second.value.messages] == [2]
    assert third.waits


def test_a_cancelled_pop_takes_nothing() -> None:
    stage = PopStage()
    gone, there = stage.ask(wait_ms=1000), stage.ask(wait_ms=1000)
    assert gone.later is not None
    gone.later.cancel()
    stage.send("m0")
    assert gone.waits
    assert len(there.value.messages) == 1


def test_too_many_waiting() -> None:
    stage = PopStage(settings={"pop_polling_size": 2})
    waiting = [stage.ask(wait_ms=1000) for _ in range(2)]
    assert stage.ask(wait_ms=1000).value.status is PopStatus.POLLING_FULL
    assert all(answer.waits for answer in waiting)
    assert stage.ask(group="h", wait_ms=1000).waits


def test_a_message_that_comes_back_wakes() -> None:
    stage = PopStage()
    stage.send("m0")
    [held] = stage.pop()
    answer = stage.ask(wait_ms=20_000)
    other = stage.ask(group="h", topic="orders", wait_ms=20_000)
    assert not other.waits
    stage.advance(1)
    stage.change(held, 1000)
    stage.advance(999)
    assert answer.waits
    stage.advance(1)
    [again] = stage.held(stage.request(), answer.value)
    assert (again.name, again.delivery.topic_kind) == ("m0", TopicKind.RETRY)


def test_a_cold_read_is_waited_for_and_others_pass_by() -> None:
    stage = PopStage()
    stage.send(*numbered(3))
    stage.clock.run_soon()
    stage.disk.cold.update(path for path in stage.disk.names if path.startswith("commitlog"))
    request = stage.request()
    first = stage.pops.pop(request)
    second = stage.pops.pop(request)
    assert isinstance(first, Later)
    assert not isinstance(second, Later)
    assert second.status is PopStatus.NOT_FOUND
    answers: list[object] = []
    first.then(answers.append, answers.append)
    stage.clock.run_soon()
    [result] = answers
    assert [message.queue_offset for message in result.messages] == [0, 1, 2]  # type: ignore[attr-defined]


def test_a_cold_read_of_a_cancelled_pop_takes_nothing() -> None:
    stage = PopStage()
    stage.send(*numbered(3))
    stage.disk.cold.update(path for path in stage.disk.names if path.startswith("commitlog"))
    first = stage.pops.pop(stage.request())
    assert isinstance(first, Later)
    waiting = stage.pops.pop(stage.request(wait_ms=1000))
    assert isinstance(waiting, Later)
    answers: list[object] = []
    waiting.then(answers.append, answers.append)
    first.cancel()
    stage.clock.run_soon()
    assert len(answers) == 1


# ------------------------------------------------------------------------------------------------------ leases


def test_what_is_not_acknowledged_comes_back_under_its_topic() -> None:
    stage = PopStage()
    stage.send(*numbered(3))
    held = stage.pop()
    stage.ack(held[1])
    stage.advance(59_999)
    assert stage.pop() == []
    stage.advance(1)
    again = stage.pop()
    assert names(again) == ["m0", "m2"]
    for before, after in zip((held[0], held[2]), again, strict=True):
        assert after.stored.topic == "orders"
        assert after.stored.born_host == before.stored.born_host
        assert after.stored.born_ms == before.stored.born_ms
        assert (after.reconsume_times, after.stored.reconsume_times) == (1, 1)
        assert after.delivery.topic_kind is TopicKind.RETRY
        wanted = before.properties | {"1ST_POP_TIME": str(before.delivery.pop_ms), "ORIGIN_GROUP": "g"}
        assert after.properties == wanted | {"POP_CK": after.properties["POP_CK"]}
        d = after.delivery
        assert after.properties["POP_CK"] == (
            f"{d.start_offset} {d.pop_ms} 60000 {d.revive_queue_id} 1 broker-a 0 {d.queue_offset}"
        )
    stage.ack(again[0])
    stage.advance(60_000)
    [third] = stage.pop()
    assert (third.name, third.reconsume_times) == ("m2", 2)
    assert third.properties["1ST_POP_TIME"] == str(held[2].delivery.pop_ms)
    stage.ack(third)
    stage.advance(600_000)
    assert stage.pop() == []
    assert stage.pops.leases.in_flight == 0


def test_the_retry_topic_comes_first_in_some_pops() -> None:
    stage = PopStage()
    stage.send("old")
    stage.pop(invisible_ms=1000)
    stage.advance(1000)
    stage.send("new")
    stage.draws = [19]
    assert names(stage.pop(max_messages=1)) == ["old"]
    stage.pop(group="h", invisible_ms=1000)
    stage.advance(1000)
    stage.draws = [20]
    assert names(stage.pop(max_messages=1)) == ["new"]


def test_retry_topics_of_both_forms_are_read() -> None:
    stage = PopStage()
    stage.send("m0")
    stage.pop(invisible_ms=1000)
    stage.advance(1000)
    assert stage.topics.get("%RETRY%g_orders") is not None
    stage._again["settings"] = {"enable_retry_topic_v2": True}
    stage = stage.restart()
    stage.send("m1")
    held = stage.pop(invisible_ms=1000)
    assert {one.name: one.delivery.topic_kind for one in held} == {"m0": TopicKind.RETRY, "m1": TopicKind.NORMAL}
    stage.ack(held[names(held).index("m0")])
    stage.advance(1000)
    [again] = stage.pop()
    assert (again.name, again.delivery.topic_kind) == ("m1", TopicKind.RETRY_V2)
    stage.ack(again)
    stage.advance(60_000)
    assert stage.pop() == []


def test_the_end_of_a_lease_ends_the_handle() -> None:
    stage = PopStage()
    stage.send("m0")
    [held] = stage.pop(invisible_ms=1000)
    stage.advance(1000)
    for verb in (lambda: stage.ack(held), lambda: stage.change(held, 5000), lambda: stage.renew(held, 5000)):
        with pytest.raises(InvalidReceiptHandle, match=f"expired at {held.delivery.pop_ms + 1000}"):
            verb()
    [again] = stage.pop()
    stage.ack(again)
    with pytest.raises(InvalidReceiptHandle, match="expired at"):
        stage.ack(held)


def test_a_repeated_acknowledgement_is_fine_within_the_lease() -> None:
    stage = PopStage()
    stage.send("m0")
    [held] = stage.pop()
    stage.ack(held)
    stage.ack(held)
    for verb in (lambda: stage.change(held, 1000), lambda: stage.renew(held, 1000)):
        with pytest.raises(InvalidReceiptHandle, match="acknowledged already"):
            verb()
    stage = stage.restart()
    stage.ack(held)
    stage.advance(60_000)
    with pytest.raises(InvalidReceiptHandle, match="expired"):
        stage.ack(held)


def test_a_change_replaces_the_handle() -> None:
    stage = PopStage()
    stage.send("m0")
    [first] = stage.pop()
    second = stage.change(first, 5000)
    assert second.delivery.pop_ms == first.delivery.pop_ms + 1, "in the same millisecond, and yet another delivery"
    for verb in (lambda: stage.ack(first), lambda: stage.change(first, 1000), lambda: stage.renew(first, 1000)):
        with pytest.raises(InvalidReceiptHandle, match="changed"):
            verb()
    stage.advance(2000)
    third = stage.change(second, 5000)
    stage.advance(4999)
    stage.ack(third)
    stage.ack(third)
    for older in (first, second):
        with pytest.raises(InvalidReceiptHandle):
            stage.ack(older)
    stage.advance(1_000_000)
    assert stage.pop() == []


def test_a_handle_whose_lease_was_cut_short_is_not_taken_for_an_acknowledgement() -> None:
    stage = PopStage()
    stage.send("m0")
    [first] = stage.pop()
    second = stage.change(first, 0)
    stage.advance(1)
    [again] = stage.pop()
    assert again.name == "m0"
    with pytest.raises(InvalidReceiptHandle, match="changed"):
        stage.ack(first)
    with pytest.raises(InvalidReceiptHandle, match="expired"):
        stage.ack(second)
    stage = stage.kill()
    with pytest.raises(InvalidReceiptHandle, match="changed"):
        stage.ack(first)
    with pytest.raises(InvalidReceiptHandle, match="expired"):
        stage.ack(second)
    stage.ack(again)


def test_a_renewal_leaves_the_handle_good() -> None:
    stage = PopStage()
    stage.send("m0", "m1")
    held, other = stage.pop()
    for _ in range(5):
        stage.advance(50_000)
        stage.renew(held, 60_000)
    assert names(stage.pop()) == ["m1"]
    with pytest.raises(InvalidReceiptHandle):
        stage.ack(other)
    stage.ack(held)
    stage.ack(held)
    stage.advance(60_000)
    with pytest.raises(InvalidReceiptHandle, match="expired"):
        stage.ack(held)
    assert names(stage.pop()) == ["m1"]


def test_a_renewal_that_is_shorter_ends_earlier() -> None:
    stage = PopStage()
    stage.send("m0")
    [held] = stage.pop()
    stage.renew(held, 1000)
    stage.advance(1001)
    assert names(stage.pop()) == ["m0"]
    with pytest.raises(InvalidReceiptHandle, match="expired"):
        stage.ack(held)


def test_handles_that_are_not_ours() -> None:
    stage = PopStage()
    stage.send(*numbered(3))
    [held] = stage.pop(max_messages=1)

    def forged(**fields: object) -> Held:
        return msgspec.structs.replace(held, delivery=msgspec.structs.replace(held.delivery, **fields))

    with pytest.raises(InvalidReceiptHandle, match="not that of its current delivery"):
        stage.ack(forged(pop_ms=held.delivery.pop_ms - 1))
    with pytest.raises(InvalidReceiptHandle, match="never received by this group"):
        stage.ack(forged(queue_offset=1))
    with pytest.raises(InvalidReceiptHandle, match="never received by this group"):
        stage.ack(forged(group="h"))
    with pytest.raises(NoSuchMessage, match="has 0 to 2"):
        stage.ack(forged(queue_offset=3))
    with pytest.raises(NoSuchMessage):
        stage.ack(forged(queue_id=7))
    with pytest.raises(NoSuchMessage):
        stage.ack(forged(topic="other"))
    stage.ack(held)


def test_a_message_that_comes_back_is_read_from_the_disk_if_need_be() -> None:
    stage = PopStage()
    stage.send(*numbered(3))
    stage.pop(invisible_ms=1000)
    stage.disk.cold.update(path for path in stage.disk.names if path.startswith("commitlog"))
    stage.advance(1000)
    assert names(stage.pop()) == numbered(3)


def test_a_damaged_message_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = PopStage()
    stage.send(*numbered(3))
    stage.pop(invisible_ms=1000)

    def decode(data: bytes) -> Any:
        message = record.decode(data)
        if message.body == b"m1":
            raise ProtocolError("damaged")
        return message

    monkeypatch.setattr("saturnmq.broker.revive.decode", decode)
    stage.advance(1000)
    assert names(stage.pop()) == ["m0", "m2"]
    assert stage.pops.leases.in_flight == 2


def test_a_pop_is_bounded_in_bytes() -> None:
    stage = PopStage(queues={"orders": 2}, settings={"max_transfer_bytes_on_message_in_memory": 2000})
    for queue_id in range(2):
        stage.send(*["x" * 600] * 3, queue_id=queue_id)
    assert [len(stage.pop()) for _ in range(4)] == [2, 2, 2, 0], "a record is longer than half of it"


def test_a_message_of_a_deleted_topic_does_not_come_back() -> None:
    stage = PopStage()
    stage.send("m0")
    stage.pop(invisible_ms=1000)
    del stage.topics._topics["orders"]
    stage.advance(1000)
    assert stage.pops.leases.in_flight == 0


def test_a_disk_that_fails_for_a_while_does_not_lose_the_message(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = PopStage()
    stage.send("m0")
    stage.pop(invisible_ms=1000)

    def fails(messages: object, *, urgent: bool) -> None:
        raise ServiceUnavailable("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(stage.store, "append", fails)
        stage.advance(1000)
    assert stage.pop() == []
    stage.advance(10_000)
    assert names(stage.pop()) == ["m0"]


def test_properties_that_have_no_room_come_back_as_they_are() -> None:
    stage = PopStage()
    stage.send("m0", tags="x" * 32_720)
    stage.pop(invisible_ms=1000)
    stage.advance(1000)
    [held] = stage.pop()
    assert held.properties.keys() == {"UNIQ_KEY", "colour", "TAGS"}


# ------------------------------------------------------------------------------------------------------ crashes


@pytest.mark.parametrize("end", ["restart", "kill", "power_cut"])
def test_leases_go_on_after_the_end_of_the_process(end: str) -> None:
    stage = PopStage(queues={"orders": 2})
    stage.send(*numbered(4))
    stage.send(*numbered(4, 4), queue_id=1)
    held = {one.name: one for one in stage.pop()}
    stage.ack(held["m0"])
    stage.ack(held["m5"])
    stage.advance(1000)
    held["m1"] = stage.change(held["m1"], 5000)
    stage.renew(held["m2"], 90_000)
    stage.store.flush()
    stage.clock.run_soon()

    stage = getattr(stage, end)()
    assert stage.pop() == []
    assert stage.pops.leases.in_flight == 6
    stage.ack(held["m0"])
    stage.advance(held["m1"].delivery.pop_ms + 5000 - stage.clock.now_ms() - 1)
    assert stage.pop() == []
    stage.advance(1)
    assert names(stage.pop()) == ["m1"]
    stage.advance(54_000)
    assert sorted(names(stage.pop())) == ["m3", "m4", "m6", "m7"]
    stage.ack(held["m2"])
    stage.advance(30_000)
    assert names(stage.pop()) == ["m1"]
    assert stage.pop() == []


@pytest.mark.parametrize("end", ["restart", "kill"])
def test_a_crash_after_the_lease_does_not_repeat_what_came_back(end: str) -> None:
    stage = PopStage()
    stage.send(*numbered(2))
    stage.pop(invisible_ms=1000)
    stage.advance(1000)
    stage = getattr(stage, end)()
    assert names(stage.pop()) == ["m0", "m1"]
    assert stage.pop() == []


def test_an_offset_on_the_disk_never_passes_its_check_point() -> None:
    stage = PopStage(flush="ASYNC_FLUSH")
    stage.send(*numbered(4))
    stage.store.flush()
    stage.clock.run_soon()
    stage.pop(max_messages=2)
    stage = stage.power_cut()
    assert names(stage.pop()) == numbered(4)


def read_by_a_restart(stage: PopStage, end: str, monkeypatch: pytest.MonkeyPatch) -> tuple[PopStage, int]:
    """The stage after it, and how many records it had to read."""
    counts: list[int] = []
    finish = LeaseReplay._finish

    def finished(replay: LeaseReplay) -> None:
        counts.append(replay.count)
        finish(replay)

    monkeypatch.setattr(LeaseReplay, "_finish", finished)
    stage = getattr(stage, end)()
    return stage, counts[0]


@pytest.mark.parametrize("fifo", [False, True])
def test_the_handle_of_a_pop_that_a_power_cut_took_is_foreign(fifo: bool) -> None:
    """It was changed within its millisecond, so that its pop time is ahead of the clock."""
    stage = PopStage(flush="ASYNC_FLUSH")
    stage.send("m0")
    stage.store.flush()
    stage.clock.run_soon()
    [first] = stage.pop(fifo=fifo)
    lost = stage.change(first, 0)
    if fifo:
        [lost] = stage.pop(fifo=True)
    assert lost.delivery.pop_ms > stage.clock.now_ms()
    stage = stage.power_cut()
    [held] = stage.pop(fifo=fifo)
    for older in (first, lost):
        with pytest.raises(InvalidReceiptHandle, match="not that of its current delivery"):
            stage.ack(older)
    stage.ack(held)


def test_a_restart_reads_what_came_after_the_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saturnmq.broker.leasefile._MAX_BEHIND", 100)
    stage = PopStage(settings={"revive_queue_num": 1})
    stage.send("slow", "slower", "fifo")
    slow, slower = stage.pop(max_messages=2, invisible_ms=3_600_000)
    stage.pop(group="o", fifo=True, invisible_ms=3_600_000)
    stage.ack(slower)
    for first in range(0, 600, 6):
        stage.send(*numbered(6, first))
        for held in stage.pop():
            stage.ack(held)
    stage, count = read_by_a_restart(stage, "kill", monkeypatch)
    assert count <= 110, "records since the last snapshot"
    assert stage.pops.leases.in_flight == 4
    assert stage.pop(group="o", fifo=True) == []
    stage, count = read_by_a_restart(stage, "restart", monkeypatch)
    assert count == 0
    stage.ack(slow)
    stage.advance(3_600_000)
    assert stage.pop() == []
    assert names(stage.pop(group="o", fifo=True))[:3] == ["slow", "slower", "fifo"]


def test_leases_are_read_from_the_disk_after_a_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = PopStage()
    stage.send(*numbered(3))
    held = stage.pop()
    stage.ack(held[1])
    opened = Store.open

    def cold(store: Store) -> None:
        opened(store)
        store.disk.cold.update(path for path in store.disk.names if path.startswith("commitlog"))  # type: ignore[attr-defined]

    monkeypatch.setattr(Store, "open", cold)
    stage = stage.kill()
    assert stage.started.later is not None, "it had to wait"
    assert (stage.pop(), stage.pops.leases.in_flight) == ([], 2)
    for one in held:
        stage.ack(one)
    stage.advance(60_000)
    assert stage.pop() == []


def test_requests_are_refused_while_leases_are_read() -> None:
    stage = PopStage()
    stage.send("m0")
    stage.pop()
    stage.pops.stop()
    with pytest.raises(ServiceUnavailable):
        stage.pop()


# --------------------------------------------------------------------------------------------------------- FIFO


def fifo(stage: PopStage, **fields: object) -> list[Held]:
    return stage.pop(fifo=True, **fields)  # type: ignore[arg-type]


def test_a_batch_blocks_its_queue_and_no_other() -> None:
    stage = PopStage(queues={"orders": 2})
    stage.send(*numbered(3))
    stage.send(*numbered(3, 10), queue_id=1)
    first = fifo(stage, max_messages=2)
    assert names(first) == ["m10", "m11"]
    second = fifo(stage, max_messages=2)
    assert names(second) == ["m0", "m1"]
    assert fifo(stage) == []
    stage.ack(first[1])
    assert fifo(stage) == []
    stage.ack(first[0])
    assert names(fifo(stage)) == ["m12"]
    assert stage.pops.leases.in_flight == 3


def test_an_orderly_group_is_fifo_unasked() -> None:
    stage = PopStage()
    stage.groups.put(GroupConfig(group_name="g", consume_message_orderly=True))
    stage.send(*numbered(2))
    [held] = stage.pop(max_messages=1)
    assert held.delivery.revive_queue_id == 999
    assert stage.pop() == []


def test_the_same_messages_come_again_in_order_and_are_counted() -> None:
    stage = PopStage()
    stage.send(*numbered(4))
    held = fifo(stage, max_messages=3)
    stage.ack(held[1])
    stage.advance(60_000)
    again = fifo(stage, max_messages=3)
    assert names(again) == ["m0", "m2", "m3"], "what is acknowledged does not come again"
    assert [one.reconsume_times for one in again] == [1, 1, 0]
    with pytest.raises(InvalidReceiptHandle):
        stage.ack(held[0])
    stage.advance(60_000)
    third = fifo(stage, max_messages=1)
    assert [(one.name, one.reconsume_times) for one in third] == [("m0", 2)]
    stage.ack(third[0])
    rest = fifo(stage)
    assert [(one.name, one.reconsume_times) for one in rest] == [("m2", 2), ("m3", 1)]


def test_an_attempt_that_is_repeated_gets_the_same_messages() -> None:
    stage = PopStage()
    stage.send(*numbered(3))
    first = fifo(stage, max_messages=2, attempt_id="one")
    assert fifo(stage, max_messages=2, attempt_id="two") == []
    again = fifo(stage, max_messages=32, attempt_id="one")
    assert names(again) == ["m0", "m1"]
    assert [one.reconsume_times for one in again] == [0, 0]
    with pytest.raises(InvalidReceiptHandle):
        stage.ack(first[0])
    for held in again:
        stage.ack(held)
    assert names(fifo(stage, attempt_id="one")) == ["m2"]


def test_a_waiting_fifo_pop_is_woken_when_the_queue_is_free() -> None:
    stage = PopStage()
    stage.send(*numbered(2))
    [held] = fifo(stage, max_messages=1)
    answer = stage.ask(fifo=True, wait_ms=20_000)
    assert answer.waits
    stage.ack(held)
    assert [message.queue_offset for message in answer.value.messages] == [1]
    answer = stage.ask(fifo=True, wait_ms=100_000)
    stage.advance(59_999)
    assert answer.waits
    stage.advance(1)
    assert [message.queue_offset for message in answer.value.messages] == [1]


def test_handles_of_a_batch() -> None:
    stage = PopStage()
    stage.send(*numbered(3))
    a, b, c = fifo(stage)
    stage.ack(a)
    stage.ack(a)
    stage.advance(1000)
    b2 = stage.change(b, 100_000)
    with pytest.raises(InvalidReceiptHandle, match="changed"):
        stage.ack(b)
    stage.renew(c, 100_000)
    stage.advance(99_999)
    assert fifo(stage) == []
    stage.ack(c)
    stage.ack(b2)
    with pytest.raises(InvalidReceiptHandle, match="expired"):
        stage.ack(a)
    stage.send("m3")
    [d] = fifo(stage)
    stage.change(d, 0)
    [again] = fifo(stage)
    assert (again.name, again.reconsume_times) == ("m3", 1)
    assert again.delivery.pop_ms > d.delivery.pop_ms
    with pytest.raises(InvalidReceiptHandle):
        stage.ack(d)


def test_a_repeated_acknowledgement_of_the_batch_before_is_fine() -> None:
    """Both leave in the same millisecond, for different times."""
    stage = PopStage()
    stage.send(*numbered(2))
    [first] = fifo(stage, max_messages=1, invisible_ms=1000)
    stage.ack(first)
    [second] = fifo(stage, max_messages=1, invisible_ms=2000)
    assert first.delivery.pop_ms == second.delivery.pop_ms
    stage.ack(first)
    stage.advance(1000)
    with pytest.raises(InvalidReceiptHandle, match="expired"):
        stage.ack(first)
    stage.ack(second)


@pytest.mark.parametrize("end", ["restart", "kill", "power_cut"])
def test_a_batch_survives_the_end_of_the_process(end: str) -> None:
    stage = PopStage()
    stage.send(*numbered(4))
    _, b, c = fifo(stage, max_messages=3, attempt_id="x")
    stage.ack(b)
    c = stage.change(c, 90_000)
    stage = getattr(stage, end)()
    assert fifo(stage) == []
    stage.ack(b)
    stage.advance(60_000)
    assert fifo(stage) == [], "c is still held"
    stage.ack(c)
    again = fifo(stage)
    assert [(one.name, one.reconsume_times) for one in again] == [("m0", 1), ("m3", 0)]
    for held in again:
        stage.ack(held)
    stage = getattr(stage, end)()
    assert fifo(stage) == []
    stage.send("m4")
    assert names(fifo(stage)) == ["m4"]


def test_a_batch_forgets_what_the_log_no_longer_has(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = PopStage()
    stage.send(*numbered(4))
    fifo(stage, max_messages=3, invisible_ms=1000)
    stage.advance(1000)
    get = stage.store.get

    def without_the_first(topic: str, queue_id: int, offset: int, *rest: Any) -> Any:
        if offset == 0:
            return Found(status=FoundStatus.BEFORE, next_offset=1, min_offset=1, max_offset=4)
        return get(topic, queue_id, offset, *rest)

    monkeypatch.setattr(stage.store, "get", without_the_first)
    answer = stage.ask(fifo=True, wait_ms=1000)
    assert [message.queue_offset for message in answer.value.messages] == [1, 2, 3]
    assert stage.offsets.get("g", "orders", 0) == 1


def test_a_reset_frees_the_queue() -> None:
    stage = PopStage()
    stage.send(*numbered(3))
    held = fifo(stage)
    stage.advance(1)
    stage.offsets.commit("g", "orders", 0, 1)
    assert names(fifo(stage)) == ["m1", "m2"]
    with pytest.raises(InvalidReceiptHandle):
        stage.ack(held[1])
