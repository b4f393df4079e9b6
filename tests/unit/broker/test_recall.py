"""Recall: what is taken back does not come, and what Apache's tools ask about delayed messages."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Any

import msgspec
import pytest

from saturnmq.kernel import properties as names
from saturnmq.kernel.handle import RecallHandle
from saturnmq.store import timercheck
from saturnmq.testing.offline import Asked, OfflineBroker
from saturnmq.testing.timers import TimerStage
from saturnmq.wire.remoting import json
from saturnmq.wire.remoting.codes import RequestCode, ResponseCode


def started(settings: dict[str, Any] | None = None, **store_settings: Any) -> OfflineBroker:
    broker = OfflineBroker(settings=settings, store_settings=store_settings)
    broker.clock.run_soon()
    return broker


def recall(broker: OfflineBroker, handle: str | None, topic: str = "orders", group: str | None = "producers") -> Asked:
    fields = {"topic": topic, "recallHandle": handle, "producerGroup": group}
    return broker.ask(RequestCode.RECALL_MESSAGE, fields)


def send_two(broker: OfflineBroker) -> str:
    """One to be recalled, and its neighbour in the same second; gives the handle."""
    handle = broker.send("orders", b"recalled", TIMER_DELAY_SEC="10", UNIQ_KEY="A").fields["recallHandle"]
    broker.send("orders", b"stays", TIMER_DELAY_SEC="10", UNIQ_KEY="B")
    return handle


def bodies(broker: OfflineBroker, topic: str = "orders") -> list[bytes]:
    return [stored.body for stored in broker.stored(topic)]


def test_the_handle_is_apaches() -> None:
    broker = started()
    handle = send_two(broker)
    slot_ms = broker.clock.now_ms() + 9000
    assert urlsafe_b64decode(handle).decode() == f"v1 orders broker-a {slot_ms + 1} A"


def test_what_is_recalled_does_not_come() -> None:
    broker = started()
    handle = send_two(broker)
    response = recall(broker, handle)
    assert (response.code, response.fields["msgId"], response.fields["MSG_REGION"]) == (0, "A", "DefaultRegion")
    delete = names.decode(broker.stored("rmq_sys_wheel_timer")[-1].properties)
    assert delete["TIMER_DEL_UNIQKEY"] == "A"
    assert (delete["TAGS"], delete["PGROUP"], delete["REAL_TOPIC"]) == ("_RECALL_TAG_", "producers", "orders")
    broker.clock.advance(60_000)
    assert bodies(broker) == [b"stays"]


def test_a_recall_in_the_last_moment() -> None:
    broker = started()
    handle = send_two(broker)
    broker.clock.advance(9000)
    assert recall(broker, handle).code == 0
    broker.clock.advance(60_000)
    assert bodies(broker) == [b"stays"]


def test_the_topic_may_stand_in_the_key_as_before_5_5() -> None:
    broker = started(append_topic_for_timer_delete_key=True)
    handle = send_two(broker)
    assert recall(broker, handle).code == 0
    assert names.decode(broker.stored("rmq_sys_wheel_timer")[-1].properties)["TIMER_DEL_UNIQKEY"] == "orders+A"
    broker.clock.advance(60_000)
    assert bodies(broker) == [b"stays"]


def test_the_same_id_in_another_topic_is_another_message() -> None:
    broker = started()
    send_two(broker)
    other = broker.send("invoices", b"recalled", TIMER_DELAY_SEC="10", UNIQ_KEY="A").fields["recallHandle"]
    assert recall(broker, other, "invoices").code == 0
    broker.clock.advance(60_000)
    assert (bodies(broker), bodies(broker, "invoices")) == ([b"recalled", b"stays"], [])


def test_what_was_rolled_is_recalled_too() -> None:
    stage = TimerStage(timer_roll_window_slot=100)
    due_ms = stage.clock.now_ms() + 1_000_000
    slot_ms = stage.send(b"far", due_ms)
    assert slot_ms is not None
    stage.send(b"neighbour", due_ms)
    stage.clock.advance(500_000)
    stage.recall(b"far", slot_ms)
    stage.clock.advance(600_000)
    assert stage.bodies() == [b"neighbour"]


@pytest.mark.parametrize("off_ms", [0, 2_000_000])
def test_a_recall_that_was_not_sorted_in_before_a_stop_counts(off_ms: int) -> None:
    """Also when everything, rolled or not, is overdue at the next start."""
    stage = TimerStage(timer_roll_window_slot=100)
    due_ms = stage.clock.now_ms() + 1_000_000
    slots = {body: stage.send(body, due_ms - 900_000 * (body == b"near")) for body in (b"far", b"near", b"stays")}
    stage.clock.advance(10_000)
    stage.timers.configure(_stopped(stage))
    for body in (b"far", b"near"):
        slot_ms = slots[body]
        assert slot_ms is not None
        stage.recall(body, slot_ms)
    again = stage.again(off_ms=off_ms)
    again.clock.advance(1_100_000)
    assert again.bodies() == [b"stays"]


def _stopped(stage: TimerStage) -> Any:
    return msgspec.structs.replace(stage.config, timer_stop_enqueue=True)


@pytest.mark.parametrize("time", ["x", "-5", "", "1" * 5000])
def test_a_time_that_is_none(time: str) -> None:
    broker = started()
    broker.send("orders")
    response = recall(broker, _encode(f"v1 orders broker-a {time} A"))
    assert (response.code, response.remark) == (ResponseCode.ILLEGAL_OPERATION, "recall failed, timestamp invalid")


def test_what_is_no_handle() -> None:
    broker = started()
    broker.send("orders")
    for text in ("", "!", "abc", "aaaa", _encode("v2 orders broker-a 1 A"), _encode("v1 orders broker-a 1"), "é"):
        response = recall(broker, text)
        assert (response.code, response.remark) == (ResponseCode.ILLEGAL_OPERATION, "recall handle is invalid"), text


def _encode(text: str) -> str:
    return urlsafe_b64encode(text.encode()).decode()


def handle_of(broker: OfflineBroker, **changes: Any) -> str:
    fields = {"topic": "orders", "broker_name": "broker-a", "time_ms": broker.clock.now_ms() + 5000, "message_id": "A"}
    return RecallHandle(**{**fields, **changes}).encode()


@pytest.mark.parametrize(
    ("topic", "changes", "code", "remark"),
    [
        ("unknown", {}, ResponseCode.TOPIC_NOT_EXIST, "recall failed, the topic[unknown] not exist"),
        ("orders", {"topic": "others"}, ResponseCode.ILLEGAL_OPERATION, "recall failed, topic not match"),
        ("orders", {"broker_name": "x"}, ResponseCode.ILLEGAL_OPERATION, "recall failed, broker service not available"),
        ("orders", {"time_ms": 1}, ResponseCode.ILLEGAL_OPERATION, "recall failed, timestamp invalid"),
        ("orders", {"time_ms": -1}, ResponseCode.ILLEGAL_OPERATION, "recall failed, timestamp invalid"),
        ("orders", {"time_ms": 1 << 62}, ResponseCode.ILLEGAL_OPERATION, "recall failed, timestamp invalid"),
    ],
)
def test_refusals(topic: str, changes: dict[str, Any], code: ResponseCode, remark: str) -> None:
    broker = started()
    broker.send("orders")
    response = recall(broker, handle_of(broker, **changes), topic)
    assert (response.code, response.remark) == (code, remark)
    assert broker.stored("rmq_sys_wheel_timer") == []


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"recall_message_enable": False}, ResponseCode.NO_PERMISSION),
        ({"broker_permission": 4, "allow_recall_when_broker_not_writeable": False}, ResponseCode.SERVICE_NOT_AVAILABLE),
        ({"broker_permission": 4}, ResponseCode.SUCCESS),
    ],
)
def test_what_operators_allow(settings: dict[str, Any], code: ResponseCode) -> None:
    broker = OfflineBroker()
    broker.send("orders")
    broker.stop()
    again = OfflineBroker(broker.disk, broker.clock, settings=settings)
    assert recall(again, handle_of(again), group=None).code == code


def test_a_recall_in_vain_is_taken() -> None:
    broker = started()
    broker.send("orders", b"other", TIMER_DELAY_SEC="5", UNIQ_KEY="B")
    assert recall(broker, handle_of(broker)).code == 0
    broker.clock.advance(10_000)
    assert bodies(broker) == [b"other"]
    assert waiting(broker) == {"orders": 0}


def test_a_producer_may_take_back_its_messages_itself() -> None:
    """TIMER_DEL_UNIQKEY, before there was a request for it; it must be due at the same time."""
    broker = started()
    send_two(broker)
    assert broker.send("orders", TIMER_DELAY_SEC="10", TIMER_DEL_UNIQKEY="A").code == 0
    response = broker.send("orders", TIMER_DELIVER_MS="1", TIMER_DEL_UNIQKEY="B")
    assert response.code == ResponseCode.MESSAGE_ILLEGAL
    broker.clock.advance(60_000)
    assert bodies(broker) == [b"stays"]


# ----------------------------------------------------------------------------------------------- what tools ask


def waiting(broker: OfflineBroker) -> dict[str, int]:
    table = json.parse(broker.ask(RequestCode.GET_TIMER_METRICS).body)["timingCount"]
    return {topic: metric["count"] for topic, metric in table.items()}


def test_how_many_wait() -> None:
    broker = started()
    handle = send_two(broker)
    broker.send("invoices", TIMER_DELAY_SEC="5")
    assert waiting(broker) == {"orders": 2, "invoices": 1}
    assert recall(broker, handle).code == 0
    assert waiting(broker) == {"orders": 1, "invoices": 1}
    broker.clock.advance(5000)
    again = broker.restart()
    again.clock.run_soon()
    assert waiting(again) == {"orders": 1, "invoices": 0}
    assert "timingCount" in json.parse(again.disk.read_file("config/timermetrics"))
    again.clock.advance(5000)
    assert waiting(again) == {"orders": 0, "invoices": 0}


def test_the_check_point() -> None:
    broker = started()
    broker.send("orders", TIMER_DELAY_SEC="5")
    broker.clock.advance(2000)
    body = broker.ask(RequestCode.GET_TIMER_CHECK_POINT).body
    assert len(body) == 56
    check = timercheck.parse(body)
    assert (check.log_position, check.queue_offset) == (52, 1)
    assert timercheck.load(broker.disk).log_position == 52


def test_there_is_one_engine() -> None:
    response = started().ask(RequestCode.SWITCH_TIMER_ENGINE, {"E_T": "R"})
    assert (response.code, "RocksDB" in response.remark) == (ResponseCode.INVALID_PARAMETER, True)
    assert started().ask(RequestCode.SWITCH_TIMER_ENGINE, {"E_T": "F"}).code == ResponseCode.SUCCESS


def test_how_far_behind() -> None:
    broker = started()
    table = json.parse(broker.ask(RequestCode.GET_BROKER_RUNTIME_INFO).body)["table"]
    assert [table[key] for key in ("timerReadBehind", "timerOffsetBehind", "timerCongestNum")] == ["0", "0", "0"]
    for _ in range(3):
        broker.send("orders", TIMER_DELAY_SEC="1")
    broker.clock.advance(1000)
    table = json.parse(broker.ask(RequestCode.GET_BROKER_RUNTIME_INFO).body)["table"]
    assert (table["timerEnqueueTps"], table["timerDequeueTps"]) == ("3.0", "0.0")
    broker.clock.advance(1000)
    table = json.parse(broker.ask(RequestCode.GET_BROKER_RUNTIME_INFO).body)["table"]
    assert (table["timerEnqueueTps"], table["timerDequeueTps"]) == ("0.0", "3.0")


def test_delivery_and_sorting_in_can_be_stopped_and_go_on() -> None:
    broker = started()

    def change(text: str) -> None:
        assert broker.ask(RequestCode.UPDATE_BROKER_CONFIG, body=text.encode()).code == 0

    change("timerStopDequeue=true")
    broker.send("orders", b"1", TIMER_DELAY_SEC="1")
    broker.clock.advance(5000)
    assert bodies(broker) == []
    change("timerStopEnqueue=true")
    broker.send("orders", b"2", TIMER_DELAY_SEC="1")
    broker.clock.advance(5000)
    assert json.parse(broker.ask(RequestCode.GET_BROKER_RUNTIME_INFO).body)["table"]["timerOffsetBehind"] == "1"
    change("timerStopDequeue=false")
    broker.clock.run_soon()
    assert bodies(broker) == [b"1"]
    change("timerStopEnqueue=false")
    broker.clock.run_soon()
    assert bodies(broker) == [b"1", b"2"]


def test_a_crowded_second_takes_no_more() -> None:
    broker = started(timer_congest_num_each_slot=10)
    answers = [broker.send("orders", b"%d" % number, TIMER_DELAY_SEC="10") for number in range(40)]
    refused = [answer for answer in answers if answer.code]
    assert {answer.code for answer in refused} == {ResponseCode.SYSTEM_ERROR}
    assert refused[0].remark.startswith("timer message is under flow control, max num limit is 20")
    assert 10 < len(answers) - len(refused) <= 20
    assert broker.send("orders", TIMER_DELAY_SEC="12").code == 0
    broker.clock.advance(12_000)
    assert len(bodies(broker)) == len(answers) - len(refused) + 1
