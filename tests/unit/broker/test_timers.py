"""Messages for an arbitrary time: when they come, what is refused, what a restart leaves of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from saturnmq.kernel import properties as names
from saturnmq.testing.offline import Asked, OfflineBroker
from saturnmq.wire.record import BatchEntry, encode_batch
from saturnmq.wire.remoting.codes import ResponseCode

DAY_MS = 24 * 3600 * 1000


@pytest.fixture
def offline() -> OfflineBroker:
    return started()


def started(**settings: Any) -> OfflineBroker:
    broker = OfflineBroker(store_settings=settings)
    broker.clock.run_soon()
    return broker


def bodies(broker: OfflineBroker, topic: str = "orders", queue_id: int = 0) -> list[bytes]:
    return [stored.body for stored in broker.stored(topic, queue_id)]


def send(broker: OfflineBroker, timers: Mapping[str, str], body: bytes = b"x") -> Asked:
    return broker.send("orders", body, header={"i": names.encode({names.UNIQUE_KEY: "KEY", **timers}).decode()})


def comes_after(broker: OfflineBroker, milliseconds: int) -> bool:
    """Nothing until then, the message at that moment."""
    count = len(bodies(broker))
    broker.clock.advance(milliseconds - 1)
    assert len(bodies(broker)) == count, "early"
    broker.clock.advance(1)
    return len(bodies(broker)) == count + 1


@pytest.mark.parametrize(
    ("due_ms", "comes_ms"),
    [(1, 1000), (999, 1000), (1000, 1000), (1001, 2000), (5500, 6000), (6000, 6000), (86_400_000, 86_400_000)],
)
def test_a_message_comes_at_the_first_whole_second_from_its_time_on(
    offline: OfflineBroker, due_ms: int, comes_ms: int
) -> None:
    now_ms = offline.clock.now_ms()
    assert now_ms % 1000 == 0
    assert offline.send("orders", TIMER_DELIVER_MS=str(now_ms + due_ms)).code == 0
    assert comes_after(offline, comes_ms)


@pytest.mark.parametrize(
    ("timers", "comes_ms"),
    [
        ({"TIMER_DELAY_SEC": "2"}, 2000),
        ({"TIMER_DELAY_MS": "2500"}, 3000),
        ({"TIMER_DELAY_SEC": "2", "TIMER_DELAY_MS": "60000", "TIMER_DELIVER_MS": "1"}, 2000),
        ({"TIMER_DELAY_MS": "4000", "TIMER_DELIVER_MS": "1"}, 4000),
        ({"TIMER_DELAY_SEC": "+3"}, 3000),
        ({"TIMER_DELAY_SEC": "60", "DELAY": "1"}, 1000),
    ],
)
def test_the_properties_that_ask_for_a_time(offline: OfflineBroker, timers: dict[str, str], comes_ms: int) -> None:
    assert send(offline, timers).code == 0
    assert comes_after(offline, comes_ms)


@pytest.mark.parametrize("timers", [{"TIMER_DELIVER_MS": "1"}, {"TIMER_DELAY_SEC": "0"}, {"TIMER_DELAY_MS": "-5"}])
def test_what_is_due_is_stored_at_once(offline: OfflineBroker, timers: dict[str, str]) -> None:
    response = send(offline, timers)
    assert response.code == 0
    assert "recallHandle" not in response.fields
    assert len(bodies(offline)) == 1


@pytest.mark.parametrize(
    "timers",
    [{"TIMER_DELAY_SEC": "259201"}, {"TIMER_DELAY_MS": "9223372036854775807"}, {"TIMER_DELAY_SEC": str(1 << 63)}],
)
def test_too_far_away_is_refused_with_the_limit_and_its_setting(offline: OfflineBroker, timers: dict[str, str]) -> None:
    response = send(offline, timers)
    assert response.code == ResponseCode.MESSAGE_ILLEGAL
    assert "timerMaxDelaySec=259200" in response.remark
    assert offline.stored("rmq_sys_wheel_timer") == []
    assert bodies(offline) == []


@pytest.mark.parametrize("value", ["", "soon", "1_000", " 5", "5s", "1e3", "٣"])
def test_what_is_no_number_is_refused(offline: OfflineBroker, value: str) -> None:
    response = offline.send("orders", TIMER_DELAY_SEC=value)
    assert (response.code, "TIMER_DELAY_SEC" in response.remark) == (ResponseCode.MESSAGE_ILLEGAL, True)


def test_nobody_sends_into_the_timer_topic_itself(offline: OfflineBroker) -> None:
    """Where messages wait with the names of their real topics: any topic, whoever may send there."""
    assert offline.send("rmq_sys_wheel_timer", b"x").code == ResponseCode.NO_PERMISSION


def test_nothing_is_taken_without_the_wheel() -> None:
    offline = started(timer_wheel_enable=False)
    response = offline.send("orders", TIMER_DELAY_SEC="5")
    assert (response.code, "timerWheelEnable" in response.remark) == (ResponseCode.SYSTEM_ERROR, True)
    assert "timerwheel" not in offline.disk.names


def test_a_batch_has_no_times(offline: OfflineBroker) -> None:
    packed = names.encode({"UNIQ_KEY": "A", "TIMER_DELAY_SEC": "5"})
    body = encode_batch([BatchEntry(0, b"x", packed)])
    response = offline.send("orders", body, header={"m": True})
    assert (response.code, "one by one" in response.remark) == (ResponseCode.MESSAGE_ILLEGAL, True)


def test_what_consumers_see(offline: OfflineBroker) -> None:
    offline.send("orders", b"body", queue_id=3, TIMER_DELAY_SEC="5", TAGS="a", color="blue")
    sent_ms = offline.clock.now_ms()
    offline.clock.advance(5000)
    (stored,) = offline.stored("orders", 3)
    (waiting,) = offline.stored("rmq_sys_wheel_timer")
    assert (stored.body, stored.born_ms, stored.born_host) == (b"body", waiting.born_ms, waiting.born_host)
    seen = names.decode(stored.properties)
    assert {
        "TAGS": "a",
        "color": "blue",
        "UNIQ_KEY": "KEY",
        "REAL_TOPIC": "orders",
        "REAL_QID": "3",
    }.items() <= seen.items()
    assert seen["TIMER_OUT_MS"] == str(sent_ms + 4000)
    assert (seen["TIMER_ENQUEUE_MS"], seen["TIMER_DEQUEUE_MS"]) == (str(sent_ms), str(sent_ms + 5000))


def test_messages_of_a_second_come_in_order_however_many(offline: OfflineBroker) -> None:
    expected = [b"%d" % number for number in range(300)]
    for body in expected:
        offline.send("orders", body, TIMER_DELAY_SEC="10")
    offline.clock.advance(10_000)
    assert bodies(offline) == expected


def test_a_message_for_every_second(offline: OfflineBroker) -> None:
    for seconds in reversed(range(1, 60)):
        offline.send("orders", b"%d" % seconds, TIMER_DELAY_SEC=str(seconds))
    for seconds in range(1, 60):
        offline.clock.advance(1000)
        assert len(bodies(offline)) == seconds
    assert bodies(offline) == [b"%d" % seconds for seconds in range(1, 60)]


def test_what_comes_late_to_the_wheel_is_delivered_at_once(offline: OfflineBroker) -> None:
    """It was due when its record became visible."""
    offline.clock.advance(999)
    offline.send("orders", b"late", TIMER_DELAY_MS="1")
    offline.clock.advance(1)
    assert bodies(offline) == [b"late"]


@pytest.mark.parametrize("off_ms", [0, 3000, 10 * DAY_MS, 40 * DAY_MS])
def test_a_restart_delivers_everything_that_fell_due(offline: OfflineBroker, off_ms: int) -> None:
    for seconds in (2, 30, 3600, 3 * 86_400):
        offline.send("orders", b"%d" % seconds, TIMER_DELAY_SEC=str(seconds))
    offline.clock.advance(2000)
    again = offline.restart()
    again.clock.run_soon()
    assert bodies(again) == [b"2"]
    again.stop()
    again.clock.advance(off_ms)
    third = OfflineBroker(again.disk, again.clock)
    third.clock.run_soon()
    due = [b"%d" % seconds for seconds in (2, 30, 3600, 3 * 86_400) if seconds * 1000 <= 2000 + off_ms]
    third.clock.advance(10)
    assert bodies(third) == due
    third.clock.advance(4 * DAY_MS)
    assert bodies(third) == [b"2", b"30", b"3600", b"259200"]
