"""Delay levels, and the way of a message through retries to the dead letters."""

from __future__ import annotations

import pytest

from saturnmq.disk.simulated import SimulatedDisk
from saturnmq.kernel import properties as names
from saturnmq.kernel.message import StoredMessage
from saturnmq.kernel.topic import CustomizedRetry, ExponentialRetry, GroupConfig, GroupRetryPolicy, TopicConfig
from saturnmq.testing.clock import VirtualClock
from saturnmq.testing.offline import OfflineBroker
from saturnmq.wire.record import parse_offset_message_id
from saturnmq.wire.remoting import json
from saturnmq.wire.remoting.codes import RequestCode, ResponseCode

#: milliseconds of the levels, as `messageDelayLevel` has them
LEVELS = {1: 1_000, 2: 5_000, 3: 10_000, 4: 30_000, 5: 60_000, 18: 7_200_000}


def send_back(offline: OfflineBroker, commit_log_offset: int, **header: object) -> int:
    fields = {"offset": commit_log_offset, "group": "g", "delayLevel": 0, **header}
    return offline.ask(RequestCode.CONSUMER_SEND_MSG_BACK, fields).code


def test_a_delayed_message_is_due_after_its_level_and_not_before() -> None:
    offline = OfflineBroker()
    response = offline.send("orders", b"later", queue_id=2, DELAY="2", TAGS="a")
    assert (response.code, response.fields["queueId"]) == (0, "2")
    assert offline.stored("orders", 2) == []
    (waiting,) = offline.stored("SCHEDULE_TOPIC_XXXX", 1)
    properties = names.decode(waiting.properties)
    assert (properties["REAL_TOPIC"], properties["REAL_QID"], properties["DELAY"]) == ("orders", "2", "2")
    offline.clock.advance(4_999)
    assert offline.stored("orders", 2) == []
    offline.clock.advance(1)
    (delivered,) = offline.stored("orders", 2)
    assert (delivered.body, delivered.born_ms, delivered.born_host) == (b"later", waiting.born_ms, waiting.born_host)
    assert delivered.properties == waiting.properties, "as Apache leaves them"
    assert delivered.stored_ms == waiting.stored_ms + 5_000


def test_a_level_beyond_the_last_is_the_last() -> None:
    offline = OfflineBroker()
    offline.send("orders", DELAY="99")
    offline.clock.advance(LEVELS[18] - 1)
    assert offline.stored("orders") == []
    offline.clock.advance(1)
    assert len(offline.stored("orders")) == 1


def test_the_levels_are_a_setting() -> None:
    offline = OfflineBroker(store_settings={"message_delay_level": "2s 1m"})
    offline.send("orders", DELAY="1")
    offline.clock.advance(2_000)
    assert len(offline.stored("orders")) == 1


def test_messages_of_one_level_come_in_order_each_at_its_time() -> None:
    offline = OfflineBroker()
    for number in range(3):
        offline.send("orders", b"%d" % number, DELAY="1")
        offline.clock.advance(400)
    # 1,200 ms have passed: the first one was due at 1,000, the others are at 1,400 and 1,800
    for number, passes_ms in enumerate([199, 1, 399, 1]):
        offline.clock.advance(passes_ms)
        assert len(offline.stored("orders")) == 1 + (number + 1) // 2
    assert [one.body for one in offline.stored("orders")] == [b"0", b"1", b"2"]


def test_hundreds_that_are_due_together_are_all_delivered() -> None:
    offline = OfflineBroker()
    for number in range(100):
        offline.send("orders", b"%d" % number, DELAY="1")
    offline.clock.advance(1_000)
    assert [one.body for one in offline.stored("orders")] == [b"%d" % number for number in range(100)]


def test_a_delivered_message_wakes_who_waits_for_it() -> None:
    offline = OfflineBroker()
    offline.send("orders", DELAY="1")
    waiting = offline.pull("g", "orders", 0, suspendTimeoutMillis=15_000)
    offline.clock.advance(999)
    assert waiting.waits
    offline.clock.advance(1)
    assert waiting.code == ResponseCode.SUCCESS


def test_a_restart_forgets_neither_what_waits_nor_what_was_delivered() -> None:
    offline = OfflineBroker()
    offline.send("orders", b"first", DELAY="1")
    offline.send("orders", b"second", DELAY="3")
    offline.clock.advance(1_000)
    again = offline.restart()
    assert json.parse(again.disk.read_file("config/delayOffset.json"))["offsetTable"]["1"] == 1
    again.clock.advance(8_999)
    assert [one.body for one in again.stored("orders")] == [b"first"]
    again.clock.advance(1)
    assert [one.body for one in again.stored("orders")] == [b"first", b"second"]


def test_what_became_due_while_the_broker_was_down_is_delivered_at_start() -> None:
    offline = OfflineBroker()
    offline.send("orders", DELAY="1")
    offline.stop()
    offline.clock.advance(60_000)
    again = OfflineBroker(offline.disk, offline.clock)
    again.clock.run_soon()
    assert len(again.stored("orders")) == 1


def test_a_clock_that_was_put_back_delays_by_the_level_at_most() -> None:
    offline = OfflineBroker()
    offline.clock.advance(3_600_000)
    for number in range(100):
        offline.send("orders", b"%d" % number, DELAY="1")
    offline.stop()
    offline.clock._now_ms -= 3_600_000
    offline.clock._timers.clear()
    again = OfflineBroker(offline.disk, offline.clock)
    again.clock.advance(999)
    assert again.stored("orders") == []
    again.clock.advance(1)
    assert len(again.stored("orders")) == 100, "all of them together"
    again.send("orders", b"another", DELAY="1")
    again.clock.advance(999)
    assert len(again.stored("orders")) == 100
    again.clock.advance(1)
    assert len(again.stored("orders")) == 101


def test_an_idle_level_has_no_timer() -> None:
    offline = OfflineBroker()
    before = _timers(offline)
    offline.send("orders", DELAY="1")
    assert _timers(offline) > before
    offline.clock.advance(20_000)
    assert _timers(offline) == before


def _timers(offline: OfflineBroker) -> int:
    return sum(timer.call is not None for _, _, timer in offline.clock._timers)


def test_progress_is_written_every_ten_seconds_while_there_is_some() -> None:
    offline = OfflineBroker()
    offline.send("orders", DELAY="1")
    offline.clock.advance(10_999)
    assert not offline.disk.exists("config/delayOffset.json")
    offline.clock.advance(1)
    offline.clock.run_soon()
    assert json.parse(offline.disk.read_file("config/delayOffset.json"))["offsetTable"]["1"] == 1


@pytest.fixture
def failing() -> OfflineBroker:
    """A message that group g could not handle is at log position 0."""
    offline = OfflineBroker()
    offline.broker.groups.put(GroupConfig(group_name="g", retry_max_times=3))
    offline.send("orders", b"hard", TAGS="a")
    return offline


def test_a_message_comes_back_later_and_later_and_then_no_more(failing: OfflineBroker) -> None:
    position = 0
    origin = None
    for tries, level in enumerate([3, 4, 5]):
        assert send_back(failing, position) == 0
        failing.clock.advance(LEVELS[level] - 1)
        assert len(failing.stored("%RETRY%g")) == tries
        failing.clock.advance(1)
        again = failing.stored("%RETRY%g")[tries]
        properties = names.decode(again.properties)
        origin = origin or properties["ORIGIN_MESSAGE_ID"]
        assert (again.body, again.reconsume_times) == (b"hard", tries + 1)
        assert (properties["RETRY_TOPIC"], properties["ORIGIN_MESSAGE_ID"]) == ("orders", origin)
        assert (properties["TAGS"], properties["UNIQ_KEY"]) == ("a", "KEY")
        position = again.commit_log_offset
    assert send_back(failing, position) == 0
    (dead,) = failing.stored("%DLQ%g")
    assert (dead.body, dead.reconsume_times) == (b"hard", 4)
    assert names.decode(dead.properties)["RETRY_TOPIC"] == "orders"
    assert why(dead) == ("MAX_ATTEMPTS", "orders", "KEY")
    dlq = failing.broker.topics.get("%DLQ%g")
    assert dlq == TopicConfig(topic_name="%DLQ%g", read_queue_nums=1, write_queue_nums=1)


def test_the_consumer_may_choose_the_level_or_give_up(failing: OfflineBroker) -> None:
    assert send_back(failing, 0, delayLevel=1) == 0
    failing.clock.advance(1_000)
    assert len(failing.stored("%RETRY%g")) == 1
    assert send_back(failing, 0, delayLevel=-1) == 0
    (dead,) = failing.stored("%DLQ%g")
    assert why(dead) == ("CONSUMER", "orders", "KEY")
    assert send_back(failing, 0, delayLevel=-1, deadReason="MAX_ATTEMPTS") == 0
    assert why(failing.stored("%DLQ%g")[1])[0] == "MAX_ATTEMPTS", "our Proxy knows"


def test_a_dead_letter_of_a_pop_retry_topic_says_the_topic(failing: OfflineBroker) -> None:
    for name in ("%RETRY%g_orders", "%RETRY%g+orders"):
        failing.broker.topics.put(TopicConfig(topic_name=name))
        position = failing.store.end
        failing.send(name, DLQ_RESENT="of an operator")
        assert send_back(failing, position, delayLevel=-1) == 0
    assert {why(dead)[1] for dead in failing.stored("%DLQ%g")} == {"orders"}


def test_a_reason_that_has_no_room_is_left_out(failing: OfflineBroker) -> None:
    position = failing.store.end
    failing.send("orders", note="x" * 32_550)
    assert send_back(failing, position, delayLevel=-1) == 0
    (dead,) = failing.stored("%DLQ%g")
    assert "DLQ_REASON" not in names.decode(dead.properties)


def why(dead: StoredMessage) -> tuple[str, str, str]:
    properties = names.decode(dead.properties)
    return properties["DLQ_REASON"], properties["DLQ_ORIGIN_TOPIC"], properties["DLQ_ORIGIN_MESSAGE_ID"]


def test_nobody_counts_beyond_a_java_int(failing: OfflineBroker) -> None:
    """What a client says that a message was tried is believed."""
    sent = failing.send("orders", header={"j": (1 << 31) - 1})
    position = parse_offset_message_id(sent.fields["msgId"])[1]
    assert send_back(failing, position) == 0
    (dead,) = failing.stored("%DLQ%g")
    assert dead.reconsume_times == (1 << 31) - 1


def test_the_consumer_may_say_how_often(failing: OfflineBroker) -> None:
    assert send_back(failing, 0, maxReconsumeTimes=0) == 0
    assert len(failing.stored("%DLQ%g")) == 1


@pytest.mark.parametrize(
    ("policy", "levels"),
    [
        (GroupRetryPolicy(), [3, 4, 5]),
        (GroupRetryPolicy(type="EXPONENTIAL"), [3, 4, 5]),
        (GroupRetryPolicy("EXPONENTIAL", ExponentialRetry(1_000, 60_000, 7)), [1, 3, 5]),
        (GroupRetryPolicy("EXPONENTIAL", ExponentialRetry(10_000_000, 10**9, 2)), [18, 18, 18]),
        (GroupRetryPolicy(customized_retry_policy=CustomizedRetry([0, 0, 1_000, 2_000])), [1, 2, 2]),
        (GroupRetryPolicy(customized_retry_policy=CustomizedRetry([-5])), [1, 1, 1]),
    ],
)
def test_the_policy_of_the_group_chooses_the_level(policy: GroupRetryPolicy, levels: list[int]) -> None:
    """The next longer one of what the policy says; where it says nothing, one level more each time."""
    offline = OfflineBroker()
    offline.broker.groups.put(GroupConfig(group_name="g", group_retry_policy=policy))
    chosen = []
    for times in range(3):
        offline.send("orders", queue_id=times, header={"j": times})
        (sent,) = offline.stored("orders", times)
        assert send_back(offline, sent.commit_log_offset) == 0
    for level in range(18):
        for waiting in offline.stored("SCHEDULE_TOPIC_XXXX", level):
            chosen.append((waiting.reconsume_times, level + 1))
    assert [level for _, level in sorted(chosen)] == levels


def test_what_cannot_be_sent_back(failing: OfflineBroker) -> None:
    assert send_back(failing, failing.store.end) == ResponseCode.NO_MESSAGE
    failing.broker.topics.put(TopicConfig(topic_name="%DLQ%g", perm=4))
    assert send_back(failing, 0, delayLevel=-1) == ResponseCode.NO_PERMISSION
    failing.broker.groups.put(GroupConfig(group_name="g", retry_queue_nums=0))
    end = failing.store.end
    assert send_back(failing, 0) == 0
    assert failing.store.end == end, "a group without retry queues retries nothing"
    closed = OfflineBroker(settings={"auto_create_subscription_group": False})
    assert send_back(closed, 0) == ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST


def test_fewer_levels_than_before_leave_the_rest_alone() -> None:
    offline = OfflineBroker()
    offline.send("orders", DELAY="3")
    offline.stop()
    fewer = OfflineBroker(offline.disk, offline.clock, store_settings={"message_delay_level": "1s"})
    fewer.broker.delays.arrived(2)
    fewer.send("orders", b"now", DELAY="3")
    fewer.clock.advance(1_000)
    assert [one.body for one in fewer.stored("orders")] == [b"now"]


@pytest.mark.parametrize("passes_ms", [0, 999, 1_000, 11_000])
def test_a_power_cut_loses_no_delayed_message_and_repeats_one_only_before_its_offset_was_written(
    passes_ms: int,
) -> None:
    offline = OfflineBroker(store_settings={"flush_disk_type": "SYNC_FLUSH"})
    assert offline.send("orders", DELAY="1").code == 0
    offline.clock.advance(passes_ms)
    clock = VirtualClock(offline.clock.now_ms())
    again = OfflineBroker(offline.disk.crashed(), clock, store_settings={"flush_disk_type": "SYNC_FLUSH"})
    clock.advance(1_000)
    assert len(again.stored("orders")) == (2 if passes_ms == 1_000 else 1)


def test_a_delayed_message_lost_in_damage_does_not_hold_up_the_others() -> None:
    offline = OfflineBroker()
    offline.send("orders", b"lost", DELAY="1")
    (waiting,) = offline.stored("SCHEDULE_TOPIC_XXXX")
    file = offline.disk.open(f"commitlog/{0:020d}")
    file.pwrite(b"L", waiting.commit_log_offset + 88)
    file.close()
    offline.clock.advance(1_000)
    assert offline.stored("orders") == []
    offline.send("orders", b"whole", DELAY="1")
    offline.clock.advance(1_000)
    assert [stored.body for stored in offline.stored("orders")] == [b"whole"]


def test_an_offset_that_the_queue_never_had_takes_no_message_away() -> None:
    """delayOffset.json is of another store, or the queues are."""
    disk = SimulatedDisk()
    disk.replace_file("config/delayOffset.json", b'{"offsetTable":{"1":7}}')
    offline = OfflineBroker(disk)
    offline.send("orders", DELAY="1")
    offline.clock.advance(1_000)
    assert len(offline.stored("orders")) == 1
