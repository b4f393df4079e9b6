"""Pulls and offsets: statuses, waiting, subscriptions."""

from __future__ import annotations

from typing import Any

import pytest

from saturnmq.kernel.topic import GroupConfig, TopicConfig
from saturnmq.testing.offline import OfflineBroker
from saturnmq.wire import record
from saturnmq.wire.remoting.codes import RequestCode, ResponseCode


@pytest.fixture
def offline() -> OfflineBroker:
    """Three messages in queue 0 of `orders`, tagged a, b, a."""
    offline = OfflineBroker()
    offline.broker.topics.put(TopicConfig(topic_name="orders", read_queue_nums=4, write_queue_nums=4))
    for number, tag in enumerate("aba"):
        offline.send("orders", b"%d" % number, TAGS=tag)
    return offline


def bodies(data: bytes) -> list[bytes]:
    return [record.decode(one).body for one in record.split(data)]


def test_found(offline: OfflineBroker) -> None:
    response = offline.pull("g", "orders", 1)
    assert (response.code, bodies(response.body)) == (0, [b"1", b"2"])
    assert response.fields == {"suggestWhichBrokerId": "0", "nextBeginOffset": "3", "minOffset": "0", "maxOffset": "3"}
    assert bodies(offline.pull("g", "orders", 0, maxMsgNums=2).body) == [b"0", b"1"]
    size = len(response.body) // 2
    assert bodies(offline.pull("g", "orders", 0, maxMsgBytes=size).body) == [b"0"]
    assert bodies(offline.pull("g", "orders", 0, maxMsgBytes=1).body) == [b"0"], "one at least"
    assert bodies(offline.pull("g", "orders", 1, maxMsgNums=0).body) == [b"1"], "one at least"


def test_no_pull_takes_more_than_the_broker_allows() -> None:
    offline = OfflineBroker(settings={"max_transfer_count_on_message_in_memory": 2})
    for number in range(3):
        offline.send("orders", b"%d" % number)
    assert bodies(offline.pull("g", "orders", 0, maxMsgNums=1000).body) == [b"0", b"1"]


def test_filtered_by_tag(offline: OfflineBroker) -> None:
    response = offline.pull("g", "orders", 0, subscription="a || c")
    assert (bodies(response.body), response.fields["nextBeginOffset"]) == ([b"0", b"2"], "3")
    none = offline.pull("g", "orders", 0, subscription="z")
    assert (none.code, none.fields["nextBeginOffset"]) == (ResponseCode.PULL_RETRY_IMMEDIATELY, "3")


@pytest.mark.parametrize(
    ("queue_id", "offset", "code", "next_offset"),
    [
        (0, 3, ResponseCode.PULL_NOT_FOUND, 3),
        (0, 4, ResponseCode.PULL_OFFSET_MOVED, 3),
        (0, 400, ResponseCode.PULL_OFFSET_MOVED, 3),
        (1, 0, ResponseCode.PULL_NOT_FOUND, 0),
        (1, 5, ResponseCode.PULL_OFFSET_MOVED, 0),
    ],
)
def test_nothing_at_the_offset(offline: OfflineBroker, queue_id: int, offset: int, code: int, next_offset: int) -> None:
    response = offline.pull("g", "orders", offset, queue_id=queue_id)
    assert (response.code, response.fields["nextBeginOffset"]) == (code, str(next_offset))


@pytest.mark.parametrize(
    ("topic", "header", "code"),
    [
        ("nothing", {}, ResponseCode.TOPIC_NOT_EXIST),
        ("orders", {"queueId": 4}, ResponseCode.INVALID_PARAMETER),
        ("orders", {"queueId": -1}, ResponseCode.INVALID_PARAMETER),
        ("write-only", {}, ResponseCode.NO_PERMISSION),
        ("orders", {"consumerGroup": "closed"}, ResponseCode.NO_PERMISSION),
        ("orders", {"consumerGroup": "a b"}, ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST),
        ("orders", {"subscription": "||"}, ResponseCode.SUBSCRIPTION_PARSE_FAILED),
        ("orders", {"expressionType": "SQL92", "subscription": "a >"}, ResponseCode.SUBSCRIPTION_PARSE_FAILED),
        ("orders", {"expressionType": "XPATH", "subscription": "a"}, ResponseCode.SUBSCRIPTION_PARSE_FAILED),
        ("orders", {"sysFlag": 0}, ResponseCode.SUBSCRIPTION_NOT_EXIST),
    ],
)
def test_refusals(offline: OfflineBroker, topic: str, header: Any, code: int) -> None:
    offline.broker.topics.put(TopicConfig(topic_name="write-only", perm=2))
    offline.broker.groups.put(GroupConfig(group_name="closed", consume_enable=False))
    assert offline.pull("g", topic, 0, **header).code == code


def test_a_broker_without_read_permission_gives_nothing() -> None:
    offline = OfflineBroker(settings={"broker_permission": 2})
    assert offline.pull("g", "DefaultCluster", 0).code == ResponseCode.NO_PERMISSION


def test_lite_pull_can_be_forbidden(offline: OfflineBroker) -> None:
    fields = {
        "consumerGroup": "g", "topic": "orders", "queueId": 0, "queueOffset": 0, "maxMsgNums": 32, "sysFlag": 20,
        "commitOffset": 0, "suspendTimeoutMillis": 0, "subVersion": 0, "subscription": "*",
    }  # fmt: skip
    assert offline.ask(RequestCode.LITE_PULL_MESSAGE, fields).code == 0
    forbidden = OfflineBroker(settings={"lite_pull_message_enable": False})
    assert forbidden.ask(RequestCode.LITE_PULL_MESSAGE, fields).code == ResponseCode.NO_PERMISSION


def test_a_pull_waits_for_the_next_message(offline: OfflineBroker) -> None:
    waiting = offline.pull("g", "orders", 3, suspendTimeoutMillis=15_000)
    offline.clock.advance(10_000)
    assert waiting.waits
    offline.send("orders", b"3")
    assert bodies(waiting.body) == [b"3"]
    assert len(offline.broker.polls) == 0


def test_a_pull_waits_no_longer_than_it_said(offline: OfflineBroker) -> None:
    waiting = offline.pull("g", "orders", 3, suspendTimeoutMillis=15_000)
    offline.clock.advance(14_999)
    assert waiting.waits
    offline.clock.advance(1)
    assert waiting.code == ResponseCode.PULL_NOT_FOUND
    assert waiting.fields["nextBeginOffset"] == "3"


def test_a_waiting_pull_is_not_woken_by_what_its_filter_does_not_take(offline: OfflineBroker) -> None:
    waiting = offline.pull("g", "orders", 3, subscription="a", suspendTimeoutMillis=15_000)
    offline.send("orders", TAGS="b")
    offline.send("orders", queue_id=1, TAGS="a")
    assert waiting.waits
    offline.send("orders", b"mine", TAGS="a")
    assert (bodies(waiting.body), waiting.fields["nextBeginOffset"]) == ([b"mine"], "5")


def test_a_pull_of_a_lost_connection_waits_no_longer(offline: OfflineBroker) -> None:
    waiting = offline.pull("g", "orders", 3, suspendTimeoutMillis=15_000)
    assert len(offline.broker.polls) == 1
    waiting.cancel()
    assert len(offline.broker.polls) == 0
    offline.send("orders", b"3")
    assert waiting.waits


def test_without_long_polling_a_pull_is_held_for_a_second() -> None:
    offline = OfflineBroker(settings={"long_polling_enable": False})
    offline.send("orders")
    waiting = offline.pull("g", "orders", 1, suspendTimeoutMillis=15_000)
    offline.clock.advance(1_000)
    assert waiting.code == ResponseCode.PULL_NOT_FOUND


def test_a_cold_read_that_finds_the_end_sees_what_came_in_the_meantime(offline: OfflineBroker) -> None:
    offline.disk.cold |= {path for path in offline.disk.names if path.startswith(("commitlog", "consumequeue"))}
    waiting = offline.pull("g", "orders", 0, suspendTimeoutMillis=15_000)
    assert bodies(waiting.body) == [b"0", b"1", b"2"]


def test_a_pull_may_commit_an_offset(offline: OfflineBroker) -> None:
    offline.pull("g", "orders", 0, commitOffset=2)
    assert offline.broker.offsets.get("g", "orders", 0) == -1
    offline.pull("g", "orders", 0, commitOffset=2, sysFlag=4 | 1)
    assert offline.broker.offsets.get("g", "orders", 0) == 2
    offline.pull("g", "orders", 9, commitOffset=3, sysFlag=4 | 1 | 2, suspendTimeoutMillis=100)
    assert offline.broker.offsets.get("g", "orders", 0) == 3, "whatever the pull finds"
    offline.pull("g", "nothing", 0, commitOffset=3, sysFlag=4 | 1)
    assert offline.broker.offsets.get("g", "nothing", 0) == -1


def test_the_subscription_of_the_heart_beat_counts_and_must_be_as_new_as_the_clients(offline: OfflineBroker) -> None:
    known = offline.clock.now_ms()
    subscriptions = {"g": ["orders"]}
    assert offline.pull("g", "orders", 0, sysFlag=0).remark == "the consumer's group info not exist"
    offline.heartbeat("c1", consumers={"g": ["other"]})
    assert offline.pull("g", "orders", 0, sysFlag=0).remark == "the consumer's subscription not exist"
    offline.heartbeat("c1", consumers=subscriptions)
    assert offline.pull("g", "orders", 0, sysFlag=0, subVersion=known).code == 0
    newer = offline.pull("g", "orders", 0, sysFlag=0, subVersion=known + 1)
    assert newer.code == ResponseCode.SUBSCRIPTION_NOT_LATEST


def test_offsets_are_committed_and_asked_for(offline: OfflineBroker) -> None:
    offline.broker.groups.put(GroupConfig(group_name="g"))
    queue = {"consumerGroup": "g", "topic": "orders", "queueId": 0}
    assert offline.ask(RequestCode.UPDATE_CONSUMER_OFFSET, {**queue, "commitOffset": 2}).code == 0
    assert offline.ask(RequestCode.QUERY_CONSUMER_OFFSET, queue).fields == {"offset": "2"}


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"consumerGroup": "nobody"}, ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST),
        ({"topic": "nothing"}, ResponseCode.TOPIC_NOT_EXIST),
        ({"commitOffset": -1}, ResponseCode.INVALID_PARAMETER),
    ],
)
def test_commits_that_are_refused(offline: OfflineBroker, fields: dict[str, object], code: int) -> None:
    offline.broker.groups.put(GroupConfig(group_name="g"))
    commit = {"consumerGroup": "g", "topic": "orders", "queueId": 0, "commitOffset": 2, **fields}
    assert offline.ask(RequestCode.UPDATE_CONSUMER_OFFSET, commit).code == code


def test_a_group_that_never_committed_begins_at_the_first_message_while_that_is_recent(offline: OfflineBroker) -> None:
    queue = {"consumerGroup": "g", "topic": "orders", "queueId": 0}
    assert offline.ask(RequestCode.QUERY_CONSUMER_OFFSET, queue).fields == {"offset": "0"}
    decides = offline.ask(RequestCode.QUERY_CONSUMER_OFFSET, {**queue, "setZeroIfNotFound": False})
    assert decides.code == ResponseCode.QUERY_NOT_FOUND
    empty = offline.ask(RequestCode.QUERY_CONSUMER_OFFSET, {**queue, "queueId": 1})
    assert empty.code == ResponseCode.QUERY_NOT_FOUND


def test_where_a_queue_begins_and_ends(offline: OfflineBroker) -> None:
    first = offline.clock.now_ms()
    offline.clock.advance(1000)
    offline.send("orders")
    queue = {"topic": "orders", "queueId": 0}

    def offset(code: RequestCode, **fields: object) -> str:
        response = offline.ask(code, {**queue, **fields})
        assert response.code == 0
        return response.fields.get("offset") or response.fields["timestamp"]

    assert offset(RequestCode.GET_MAX_OFFSET) == "4"
    assert offset(RequestCode.GET_MIN_OFFSET) == "0"
    assert offset(RequestCode.GET_MAX_OFFSET, queueId=2) == "0"
    assert offset(RequestCode.GET_EARLIEST_MSG_STORETIME) == str(first)
    assert offset(RequestCode.GET_EARLIEST_MSG_STORETIME, queueId=2) == "-1"
    assert offset(RequestCode.SEARCH_OFFSET_BY_TIMESTAMP, timestamp=first) == "0"
    assert offset(RequestCode.SEARCH_OFFSET_BY_TIMESTAMP, timestamp=first, boundaryType="UPPER") == "2"
    assert offset(RequestCode.SEARCH_OFFSET_BY_TIMESTAMP, timestamp=first + 1, boundaryType="LOWER") == "3"
