"""Consumers that filter by properties: pulls, pops and waits give what the filter takes, and say when it is wrong."""

from __future__ import annotations

import re
from typing import Any

import pytest

from saturnmq.kernel.metrics import Metrics
from saturnmq.kernel.topic import TopicConfig
from saturnmq.testing.offline import Asked, OfflineBroker
from saturnmq.testing.pops import PopStage
from saturnmq.wire import record
from saturnmq.wire.remoting import json
from saturnmq.wire.remoting.codes import RequestCode, ResponseCode

SQL: dict[str, Any] = {"expressionType": "SQL92"}
#: what a consumer learns of `colour = 'red' AND`
WRONG = r"is wrong at character 19 \(colour = 'red' AND>>>\): found the end, expected a property"


@pytest.fixture
def offline() -> OfflineBroker:
    """Six messages in queue 0 of `orders`, numbered by `n`; every other one is red."""
    offline = OfflineBroker()
    for topic in ("orders", "invoices"):
        offline.broker.topics.put(TopicConfig(topic_name=topic, read_queue_nums=2, write_queue_nums=2))
    send(offline, range(6))
    return offline


def send(offline: OfflineBroker, numbers: range, topic: str = "orders", size: int = 1, **properties: Any) -> None:
    for number in numbers:
        body = b"%d" % number * size
        offline.send(topic, body, n=str(number), colour="red" if number % 2 else "blue", **properties)


def numbers(asked: Asked) -> list[int]:
    return [int(record.decode(one).body[:1]) for one in record.split(asked.body)]


def filtered_out(metrics: Metrics, topic: str = "orders", group: str = "g") -> int:
    [counter] = [c for c in metrics._counters if c.name == "saturnmq_messages_filtered_out_total"]
    return int(counter.values[topic, group])


# --------------------------------------------------------------------------------------------------------- pull


def test_a_pull_gives_what_the_filter_takes(offline: OfflineBroker) -> None:
    found = offline.pull("g", "orders", 0, subscription="colour = 'red' AND n > 1", **SQL)
    assert (numbers(found), found.fields["nextBeginOffset"]) == ([3, 5], "6")
    one = offline.pull("g", "orders", 0, subscription="colour = 'red'", maxMsgNums=1, **SQL)
    assert (numbers(one), one.fields["nextBeginOffset"]) == ([1], "2")
    first = offline.pull("g", "orders", 0, subscription="colour = 'red'", maxMsgBytes=1, **SQL)
    assert (numbers(first), first.fields["nextBeginOffset"]) == ([1], "3"), "one at least, and not what is too much"
    none = offline.pull("g", "orders", 0, subscription="colour = 'green'", **SQL)
    assert (none.code, none.fields["nextBeginOffset"]) == (ResponseCode.PULL_RETRY_IMMEDIATELY, "6")
    assert filtered_out(offline.metrics) == 4 + 1 + 2 + 6


def test_a_pull_of_many_messages_goes_on_where_it_stopped() -> None:
    """It reads so many bytes and messages at most for what it does not give."""
    for count, size in ((1000, 1), (50, 100_000)):
        offline = OfflineBroker(store_settings={"mapped_file_size_commit_log": 1 << 24})
        send(offline, range(count), size=size)
        offset, found, pulls = 0, [], 0
        while True:
            asked = offline.pull("g", "orders", offset, subscription=f"n >= {count - 3}", **SQL)
            offset, pulls = int(asked.fields["nextBeginOffset"]), pulls + 1
            if asked.code == ResponseCode.PULL_NOT_FOUND:
                break
            found += [record.decode(one).queue_offset for one in record.split(asked.body)]
        assert found == [count - 3, count - 2, count - 1]
        assert 3 <= pulls <= 9


def test_a_pull_waits_for_a_message_that_it_wants(offline: OfflineBroker) -> None:
    waiting = offline.pull("g", "orders", 6, subscription="n BETWEEN 8 AND 9", suspendTimeoutMillis=15_000, **SQL)
    everything = offline.pull("g", "orders", 6, suspendTimeoutMillis=15_000)
    send(offline, range(6, 8))
    assert numbers(everything) == [6]
    assert waiting.waits, "these two it does not want"
    send(offline, range(8, 9))
    assert (numbers(waiting), waiting.fields["nextBeginOffset"]) == ([8], "9")
    waiting = offline.pull("g", "orders", 9, subscription="n = 99", suspendTimeoutMillis=15_000, **SQL)
    send(offline, range(9, 10))
    offline.clock.advance(15_000)
    assert (waiting.code, waiting.fields["nextBeginOffset"]) == (ResponseCode.PULL_RETRY_IMMEDIATELY, "10")


def test_values_that_cannot_be_compared_do_not_pass_and_fail_nothing(offline: OfflineBroker) -> None:
    offline.send("orders", b"9", n="nine", colour="red")
    assert numbers(offline.pull("g", "orders", 0, subscription="n > 3", **SQL)) == [4, 5]
    assert numbers(offline.pull("g", "orders", 0, subscription="NOT (n > 3)", **SQL)) == [0, 1, 2, 3]


def test_messages_without_properties_and_with_ipv6_hosts(offline: OfflineBroker) -> None:
    connection = type(offline.connection)(peer="[::1]:50000")
    fields = {
        "a": "p", "b": "orders", "c": "TBW102", "d": 4, "e": 0, "f": 0, "g": 1, "h": 0, "j": 0, "k": False, "m": False,
    }  # fmt: skip
    offline.ask(RequestCode.SEND_MESSAGE_V2, {**fields, "i": "colour\x01red\x02"}, b"7", connection)
    offline.ask(RequestCode.SEND_MESSAGE_V2, fields, b"8", connection)
    assert numbers(offline.pull("g", "orders", 6, subscription="colour = 'red'", **SQL)) == [7]
    assert numbers(offline.pull("g", "orders", 6, subscription="colour IS NULL", **SQL)) == [8]


def test_tags_and_keys_are_properties(offline: OfflineBroker) -> None:
    offline.send("orders", b"6", TAGS="t", KEYS="k")
    assert numbers(offline.pull("g", "orders", 0, subscription="TAGS = 't' AND KEYS IN ('k')", **SQL)) == [6]


def test_a_wrong_filter_is_refused_with_the_place(offline: OfflineBroker) -> None:
    refused = offline.pull("g", "orders", 0, subscription="colour = 'red' AND", **SQL)
    assert refused.code == ResponseCode.SUBSCRIPTION_PARSE_FAILED
    assert re.search(WRONG, refused.remark)


# --------------------------------------------------------------------------------- heart-beats and check 46


def heartbeat(offline: OfflineBroker, expression: str, topic: str = "orders", version: int = 1, **more: Any) -> Asked:
    subscriptions = [
        {"topic": topic, "subString": expression, "subVersion": version, "expressionType": "SQL92"},
        *[
            {"topic": name, "subString": text, "subVersion": 1, "expressionType": "SQL92"}
            for name, text in more.items()
        ],
    ]
    body = {
        "clientID": "c", "producerDataSet": [],
        "consumerDataSet": [{"groupName": "g", "subscriptionDataSet": subscriptions}],
    }  # fmt: skip
    return offline.ask(RequestCode.HEART_BEAT, body=json.write(body))


def test_a_pull_uses_the_filter_of_the_heart_beats(offline: OfflineBroker) -> None:
    assert heartbeat(offline, "n < 2").code == 0
    assert numbers(offline.pull("g", "orders", 0, sysFlag=0)) == [0, 1]
    assert heartbeat(offline, "n > 4", version=2).code == 0
    assert numbers(offline.pull("g", "orders", 0, sysFlag=0)) == [5]


def test_a_heart_beat_with_a_wrong_filter_is_taken_and_its_pulls_are_refused(offline: OfflineBroker) -> None:
    assert heartbeat(offline, "colour = 'red' AND", invoices="n = 1").code == 0
    refused = offline.pull("g", "orders", 0, sysFlag=0)
    assert refused.code == ResponseCode.SUBSCRIPTION_PARSE_FAILED
    assert re.search(WRONG, refused.remark)
    assert offline.pull("g", "invoices", 0, sysFlag=0).code == ResponseCode.PULL_NOT_FOUND, (
        "the others of the group go on"
    )
    assert heartbeat(offline, "colour = 'red'", version=2).code == 0
    assert numbers(offline.pull("g", "orders", 0, sysFlag=0)) == [1, 3, 5]


def check(offline: OfflineBroker, expression: str, kind: str = "SQL92") -> Asked:
    data = {"topic": "orders", "subString": expression, "expressionType": kind}
    body = {"clientId": "c", "group": "g", "subscriptionData": data}
    return offline.ask(RequestCode.CHECK_CLIENT_CONFIG, body=json.write(body))


def test_a_client_asks_whether_its_filter_is_understood(offline: OfflineBroker) -> None:
    assert check(offline, "colour = 'red'").code == 0
    assert check(offline, "a || b", "TAG").code == 0
    refused = check(offline, "colour = 'red' AND")
    assert refused.code == ResponseCode.SUBSCRIPTION_PARSE_FAILED
    assert re.search(WRONG, refused.remark)


def test_pulls_with_filters_can_be_turned_off(offline: OfflineBroker) -> None:
    offline = OfflineBroker(settings={"enable_property_filter": False})
    offline.send("orders", colour="red")
    heartbeat(offline, "colour = 'red'")
    for refused in (
        check(offline, "colour = 'red'"),
        offline.pull("g", "orders", 0, subscription="colour = 'red'", **SQL),
        offline.pull("g", "orders", 0, sysFlag=0),
    ):
        assert refused.code == ResponseCode.SYSTEM_ERROR
        assert "enablePropertyFilter" in refused.remark
    assert check(offline, "a", "TAG").code == 0
    assert offline.pull("g", "orders", 0, subscription="*").code == 0


@pytest.mark.parametrize(("supported", "expected"), [(True, [0, 1, 2, 5]), (False, [3, 5])])
def test_a_filter_for_a_retry_topic(supported: bool, expected: list[int]) -> None:
    """It is that of the message's own topic where the operator wants so."""
    offline = OfflineBroker(settings={"filter_support_retry": supported})
    send(offline, range(4), "%RETRY%g", RETRY_TOPIC="orders")
    send(offline, range(5, 6), "%RETRY%g", RETRY_TOPIC="nobody's")
    heartbeat(offline, "n > 2", topic="%RETRY%g", orders="n < 3")
    found = offline.pull("g", "%RETRY%g", 0, sysFlag=0)
    assert numbers(found) == expected


# ---------------------------------------------------------------------------------------------------------- pop


@pytest.fixture
def stage() -> PopStage:
    return PopStage(queues={"orders": 2})


def names(stage: PopStage, expression: str, **fields: Any) -> list[str]:
    return [held.name for held in stage.pop(expression=expression, kind="SQL92", **fields)]


def test_a_pop_takes_what_the_filter_takes(stage: PopStage) -> None:
    """What it passed over is over for the group."""
    stage.send("a", "b", tags="x")
    stage.send("c", queue_id=1)
    assert names(stage, "UNIQ_KEY IN ('b', 'c')") == ["c", "b"]
    assert names(stage, "TRUE") == []
    assert filtered_out(stage.metrics) == 1


def test_a_fifo_pop_takes_what_the_filter_takes(stage: PopStage) -> None:
    stage.send("a", "b", "c")
    assert names(stage, "UNIQ_KEY <> 'b'", fifo=True) == ["a", "c"]
    assert filtered_out(stage.metrics) == 1


def test_what_comes_back_is_filtered_again(stage: PopStage) -> None:
    stage.send("a", "b")
    assert names(stage, "UNIQ_KEY = 'b'", invisible_ms=1000) == ["b"]
    stage.advance(10_000)
    assert names(stage, "UNIQ_KEY = 'b'", invisible_ms=1000) == ["b"]


def test_a_pop_waits_for_a_message_that_it_wants(stage: PopStage) -> None:
    waiting = stage.ask(expression="UNIQ_KEY = 'c'", kind="SQL92", wait_ms=5000)
    stage.send("a", "b")
    assert waiting.waits
    stage.send("c", queue_id=1)
    assert [record.decode(popped.record).body for popped in waiting.value.messages] == [b"c"]
    assert len(stage.polls) == 0


def test_a_pop_that_finds_nothing_lets_others_have_their_turn() -> None:
    """It reads on and on in a long queue, but not for ever at once."""
    stage = PopStage(store_settings={"mapped_file_size_commit_log": 1 << 24})
    stage.send(*map(str, range(9000)))
    waiting = stage.ask(expression="UNIQ_KEY = '8999'", kind="SQL92", wait_ms=5000)
    assert [record.decode(popped.record).body for popped in waiting.value.messages] == [b"8999"]
    assert filtered_out(stage.metrics) == 8999


def test_remoting_pops(offline: OfflineBroker) -> None:
    def pop(expression: str) -> Asked:
        fields = {
            "consumerGroup": "g", "topic": "orders", "queueId": -1, "maxMsgNums": 32, "invisibleTime": 60_000,
            "pollTime": 0, "bornTime": 1, "initMode": 0, "exp": expression, "expType": "SQL92", "order": False,
        }  # fmt: skip
        return offline.ask(RequestCode.POP_MESSAGE, fields)

    refused = pop("colour = 'red' AND")
    assert refused.code == ResponseCode.SUBSCRIPTION_PARSE_FAILED
    assert re.search(WRONG, refused.remark)
    found = pop("colour = 'red'")
    assert numbers(found) == [1, 3, 5]
    assert found.fields["msgOffsetInfo"] == "0 0 1,3,5"
