"""How far groups have come, as operators' tools ask for it."""

from __future__ import annotations

from typing import Any

import pytest

from saturnmq.kernel.topic import MessageQueue, TopicConfig
from saturnmq.testing.offline import OfflineBroker
from saturnmq.wire.remoting import json
from saturnmq.wire.remoting.codes import RequestCode, ResponseCode


@pytest.fixture
def offline() -> OfflineBroker:
    """Two messages, a second apart, in queue 0 of `orders`, one in queue 1; `g` is done with the first."""
    offline = OfflineBroker()
    offline.broker.topics.put(TopicConfig(topic_name="orders", read_queue_nums=2, write_queue_nums=2))
    offline.broker.groups.get("g")
    for queue_id in (0, 0, 1):
        offline.send("orders", queue_id=queue_id)
        offline.clock.advance(1000)
    commit(offline, 1)
    return offline


def commit(offline: OfflineBroker, offset: int, topic: str = "orders") -> None:
    fields = {"consumerGroup": "g", "topic": topic, "queueId": 0, "commitOffset": offset}
    assert offline.ask(RequestCode.UPDATE_CONSUMER_OFFSET, fields).code == 0


def stats(offline: OfflineBroker, **fields: object) -> dict[tuple[str, int], tuple[int, int, int, int]]:
    """(topic, queue id) → broker offset, consumer offset, pull offset, last timestamp"""
    body = offline.ask(RequestCode.GET_CONSUME_STATS, {"consumerGroup": "g", **fields}).body
    table: dict[MessageQueue, dict[str, int]] = json.parse(body)["offsetTable"]
    assert {queue.broker_name for queue in table} <= {"broker-a"}
    return {
        (queue.topic, queue.queue_id): (
            progress["brokerOffset"],
            progress["consumerOffset"],
            progress["pullOffset"],
            progress["lastTimestamp"],
        )
        for queue, progress in table.items()
    }


def test_a_map_of_queues_is_written_as_apaches_tools_read_it(offline: OfflineBroker) -> None:
    body = offline.ask(RequestCode.GET_CONSUME_STATS, {"consumerGroup": "g", "topic": "orders"}).body
    assert body.startswith(b'{"offsetTable":{{"topic":"orders","brokerName":"broker-a","queueId":0}:{"brokerOffset":2,')
    assert body.endswith(b',"consumeTps":0.0}')


def test_lag_of_a_group(offline: OfflineBroker) -> None:
    first_ms = offline.stored("orders")[0].stored_ms
    expected = {("orders", 0): (2, 1, 1, first_ms), ("orders", 1): (1, 0, 0, 0)}
    assert stats(offline) == stats(offline, topic="orders") == stats(offline, topicList="orders;none;") == expected
    assert stats(offline, topic="none") == {}


def test_what_consumers_hold_was_pulled_and_is_not_done(offline: OfflineBroker) -> None:
    offline.pull("g", "orders", 1)
    assert stats(offline)["orders", 0][:3] == (2, 1, 2)
    again = offline.restart()
    assert stats(again)["orders", 0][:3] == (2, 1, 1), "what was held then is pulled again"


def test_what_was_popped_is_not_done_before_it_is_acknowledged(offline: OfflineBroker) -> None:
    fields = {
        "consumerGroup": "g", "topic": "orders", "queueId": 0, "maxMsgNums": 32, "invisibleTime": 60_000,
        "pollTime": 0, "bornTime": 0, "initMode": 0,
    }  # fmt: skip
    popped = offline.ask(RequestCode.POP_MESSAGE, fields).fields
    assert stats(offline)["orders", 0][:3] == (2, 1, 2)
    lease = " ".join(popped[name] for name in ("popTime", "invisibleTime", "reviveQid"))
    acked = {
        "consumerGroup": "g",
        "topic": "orders",
        "queueId": 0,
        "extraInfo": f"1 {lease} 0 broker-a 0 1",
        "offset": 1,
    }
    assert offline.ask(RequestCode.ACK_MESSAGE, acked).code == 0
    assert stats(offline)["orders", 0][:3] == (2, 2, 2)


def test_what_pop_gives_again_counts(offline: OfflineBroker) -> None:
    offline.broker.topics.ensure_pop_retry("g", "orders")
    offline.send("%RETRY%g_orders")
    assert stats(offline)["%RETRY%g_orders", 0] == (1, 0, 0, 0)
    offline.heartbeat("c", consumers={"g": ["orders"]})
    assert ("%RETRY%g_orders", 0) in stats(offline)
    offline.heartbeat("c", consumers={"g": ["more"]})
    assert stats(offline) == {}


def test_connected_members_say_which_topics_count(offline: OfflineBroker) -> None:
    offline.broker.topics.put(TopicConfig(topic_name="left", read_queue_nums=1))
    commit(offline, 0, "left")
    assert {topic for topic, _ in stats(offline)} == {"orders", "left"}
    offline.heartbeat("c", consumers={"g": ["orders"]})
    assert {topic for topic, _ in stats(offline)} == {"orders"}
    assert stats(offline, topic="left") == {}
    assert list(stats(offline, topicList="left")) == [("left", 0)], "a list is taken as it is"


def test_how_fast_a_group_consumes(offline: OfflineBroker) -> None:
    offline.pull("g", "orders", 0)
    offline.pull("g", "orders", 0, queue_id=1)
    offline.clock.advance(10_000)
    for fields in ({}, {"topic": "orders"}, {"topicList": "orders"}):
        body = offline.ask(RequestCode.GET_CONSUME_STATS, {"consumerGroup": "g", **fields}).body
        assert json.parse(body)["consumeTps"] == pytest.approx(0.3)


def test_lag_of_all_groups(offline: OfflineBroker) -> None:
    offline.pull("g", "orders", 0)
    body = json.parse(offline.ask(RequestCode.GET_BROKER_CONSUME_STATS, {"isOrder": False}).body)
    groups: dict[str, list[Any]] = {}
    for entry in body["consumeStatsList"]:
        groups |= entry
    assert groups.keys() == offline.broker.groups.configs.keys()
    [of_orders] = groups.pop("g")
    assert [progress["brokerOffset"] for progress in of_orders["offsetTable"].values()] == [2, 1]
    assert not any(groups.values())
    assert (body["brokerAddr"], body["totalDiff"], body["totalInflightDiff"]) == ("127.0.0.1:10911", 2, 1)


def test_lag_of_ordered_topics(offline: OfflineBroker) -> None:
    def total(*, ordered: bool) -> int:
        body = offline.ask(RequestCode.GET_BROKER_CONSUME_STATS, {"isOrder": ordered}).body
        return int(json.parse(body)["totalDiff"])

    assert (total(ordered=False), total(ordered=True)) == (2, 0)
    offline.broker.topics.put(TopicConfig(topic_name="orders", read_queue_nums=2, write_queue_nums=2, order=True))
    assert total(ordered=True) == 2


def spans(offline: OfflineBroker, group: str) -> list[dict[str, Any]]:
    body = offline.ask(RequestCode.QUERY_CONSUME_TIME_SPAN, {"group": group, "topic": "orders"}).body
    return list(json.parse(body)["consumeTimeSpanSet"])


def test_times_of_what_is_there_done_and_next(offline: OfflineBroker) -> None:
    now_ms = offline.clock.now_ms()
    first_ms, second_ms, third_ms = now_ms - 3000, now_ms - 2000, now_ms - 1000
    queues = [{"topic": "orders", "brokerName": "broker-a", "queueId": queue_id} for queue_id in range(2)]

    def span(queue_id: int, low: int, high: int, done: int, delay: int) -> dict[str, Any]:
        return {
            "messageQueue": queues[queue_id], "minTimeStamp": low, "maxTimeStamp": high, "consumeTimeStamp": done,
            "delayTime": delay,
        }  # fmt: skip

    assert spans(offline, "g") == [
        span(0, first_ms, second_ms, first_ms, 2000),
        span(1, third_ms, third_ms, third_ms, 1000),
    ]
    assert spans(offline, "nobody")[0] == span(0, first_ms, second_ms, first_ms, 3000)
    commit(offline, 2)
    assert spans(offline, "g")[0] == span(0, first_ms, second_ms, second_ms, 0)


def test_times_of_an_empty_queue_and_of_no_topic(offline: OfflineBroker) -> None:
    offline.broker.topics.put(TopicConfig(topic_name="orders", read_queue_nums=3, write_queue_nums=3))
    empty = spans(offline, "g")[2]
    assert (empty["minTimeStamp"], empty["maxTimeStamp"], empty["consumeTimeStamp"], empty["delayTime"]) == (
        -1, -1, -1, 0,
    )  # fmt: skip
    refused = offline.ask(RequestCode.QUERY_CONSUME_TIME_SPAN, {"group": "g", "topic": "none"})
    assert (refused.code, refused.remark) == (ResponseCode.TOPIC_NOT_EXIST, "topic[none] not exist")


def test_offsets_of_all_groups_as_they_stand_in_the_file(offline: OfflineBroker) -> None:
    body = json.parse(offline.ask(RequestCode.GET_ALL_CONSUMER_OFFSET).body)
    assert body["offsetTable"] == {"orders@g": {"0": 1}}
    assert body["dataVersion"].keys() == {"counter", "stateVersion", "timestamp"}


def test_how_far_back_the_groups_of_a_topic_are(offline: OfflineBroker) -> None:
    def corrections(compare: str, without: str = "") -> dict[str, int]:
        fields = {"compareGroup": compare, "topic": "orders", "filterGroups": without}
        response = offline.ask(RequestCode.QUERY_CORRECTION_OFFSET, fields)
        return dict(json.parse(response.body)["correctionOffsets"])

    offline.broker.offsets.commit("ahead", "orders", 0, 2)
    offline.broker.offsets.commit("ahead", "orders", 1, 1)
    offline.broker.offsets.commit("behind", "orders", 0, 0)
    assert corrections("nobody") == {"0": 0, "1": 1}
    assert corrections("nobody", "behind,g") == {"0": 2, "1": 1}
    assert corrections("behind", "behind") == {"0": (1 << 63) - 1, "1": 1}, "who is behind the others needs none"
    assert offline.broker.offsets.get("behind", "orders", 0) == 0, "left out is not forgotten"
