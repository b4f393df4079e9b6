"""Messages by key and by log position, as operators' tools ask for them."""

from __future__ import annotations

import pytest

from saturnmq.testing.offline import Asked, OfflineBroker
from saturnmq.wire import record
from saturnmq.wire.remoting import json
from saturnmq.wire.remoting.codes import RequestCode, ResponseCode

#: Java's Long.MAX_VALUE, which clients send for `until now`
FOREVER = (1 << 63) - 1


@pytest.fixture
def offline() -> OfflineBroker:
    """Four messages of `orders`: unique keys U0 to U3, all with the keys `all` and `k0` to `k3`, tagged a, b, a, b."""
    offline = OfflineBroker()
    for number, tag in enumerate("abab"):
        offline.send("orders", b"%d" % number, UNIQ_KEY=f"U{number}", KEYS=f"all k{number}", TAGS=tag)
        offline.clock.advance(1000)
    return offline


def query(offline: OfflineBroker, key: str, **header: object) -> Asked:
    fields = {"topic": "orders", "key": key, "maxNum": 32, "beginTimestamp": 0, "endTimestamp": FOREVER}
    return offline.ask(RequestCode.QUERY_MESSAGE, fields | header)


def bodies(response: Asked) -> list[bytes]:
    return [record.decode(one).body for one in record.split(response.body)]


def test_by_key_in_the_order_of_the_log(offline: OfflineBroker) -> None:
    response = query(offline, "all")
    assert (response.code, bodies(response)) == (ResponseCode.SUCCESS, [b"0", b"1", b"2", b"3"])
    last = offline.stored("orders")[-1]
    assert response.fields == {
        "indexLastUpdateTimestamp": str(last.stored_ms),
        "indexLastUpdatePhyoffset": str(last.commit_log_offset),
    }
    assert bodies(query(offline, "k2")) == bodies(query(offline, "k2", indexType="K")) == [b"2"]
    assert bodies(query(offline, "U1")) == [b"1"]
    assert bodies(query(offline, "U1", indexType="anything")) == [b"1"]


def test_of_many_the_newest(offline: OfflineBroker) -> None:
    assert bodies(query(offline, "all", maxNum=2)) == [b"2", b"3"]
    assert query(offline, "all", maxNum=0).code == ResponseCode.QUERY_NOT_FOUND
    many = OfflineBroker(store_settings={"max_msgs_num_batch": 3, "default_query_max_num": 2})
    for number in range(5):
        many.send("orders", b"%d" % number, UNIQ_KEY="same", KEYS="all")
    assert bodies(query(many, "all")) == [b"2", b"3", b"4"]
    assert bodies(query(many, "same", maxNum=1, _UNIQUE_KEY_QUERY="true")) == [b"3", b"4"]


def test_by_unique_key(offline: OfflineBroker) -> None:
    offline.send("orders", b"no", UNIQ_KEY="U9", KEYS="U1")
    for flag in ({"_UNIQUE_KEY_QUERY": "true"}, {"_UNIQUE_KEY_QUERY": "TRUE", "indexType": "T"}, {"indexType": "U"}):
        assert bodies(query(offline, "U1", **flag)) == [b"1"]
        assert query(offline, "all", **flag).code == ResponseCode.QUERY_NOT_FOUND
    assert bodies(query(offline, "U1", _UNIQUE_KEY_QUERY="false")) == [b"1", b"no"]


def test_by_tag(offline: OfflineBroker) -> None:
    assert bodies(query(offline, "a", indexType="T")) == [b"0", b"2"]
    assert query(offline, "a").code == ResponseCode.QUERY_NOT_FOUND


def test_within_a_time(offline: OfflineBroker) -> None:
    times = [stored.stored_ms for stored in offline.stored("orders")]
    assert bodies(query(offline, "all", beginTimestamp=times[1], endTimestamp=times[2])) == [b"1", b"2"]
    assert bodies(query(offline, "all", beginTimestamp=times[2] + 1)) == [b"3"]
    assert query(offline, "all", endTimestamp=times[0] - 1).code == ResponseCode.QUERY_NOT_FOUND


def test_not_found(offline: OfflineBroker) -> None:
    for response in (query(offline, "none"), query(offline, "all", topic="other"), query(OfflineBroker(), "all")):
        assert response.code == ResponseCode.QUERY_NOT_FOUND
        assert response.remark == "can not find message, maybe time range not correct"
        assert response.fields == {"indexLastUpdateTimestamp": "0", "indexLastUpdatePhyoffset": "0"}
        assert response.body == b""


def test_found_after_a_restart_and_from_a_cold_disk(offline: OfflineBroker) -> None:
    again = offline.restart()
    assert bodies(query(again, "all")) == [b"0", b"1", b"2", b"3"]
    again.disk.cold = {f"index/{name}" for name in again.disk.list("index")}
    assert bodies(query(again, "all")) == [b"0", b"1", b"2", b"3"]


def test_by_log_position(offline: OfflineBroker) -> None:
    for stored in offline.stored("orders"):
        response = offline.ask(RequestCode.VIEW_MESSAGE_BY_ID, {"offset": stored.commit_log_offset, "topic": "orders"})
        assert (response.code, record.decode(response.body)) == (ResponseCode.SUCCESS, stored)
    _, position = record.parse_offset_message_id(offline.send("orders", b"last").fields["msgId"])
    assert record.decode(offline.ask(RequestCode.VIEW_MESSAGE_BY_ID, {"offset": position}).body).body == b"last"


@pytest.mark.parametrize("offset", [-1, 1, 7, 1 << 40, FOREVER])
def test_nothing_begins_at_that_position(offline: OfflineBroker, offset: int) -> None:
    response = offline.ask(RequestCode.VIEW_MESSAGE_BY_ID, {"offset": offset})
    assert response.code == ResponseCode.SYSTEM_ERROR
    assert response.remark == f"can not find message by the offset, {offset}"


def test_a_field_is_missing(offline: OfflineBroker) -> None:
    refused = offline.ask(RequestCode.QUERY_MESSAGE, {"topic": "orders", "key": "all"})
    assert (refused.code, "maxNum" in refused.remark) == (ResponseCode.SYSTEM_ERROR, True)
    refused = offline.ask(RequestCode.VIEW_MESSAGE_BY_ID)
    assert (refused.code, "offset" in refused.remark) == (ResponseCode.SYSTEM_ERROR, True)


def entries(offline: OfflineBroker, **header: object) -> Asked:
    fields = {"topic": "orders", "queueId": 0, "index": 0, "count": 10}
    return offline.ask(RequestCode.QUERY_CONSUME_QUEUE, fields | header)


def test_what_a_consume_queue_says(offline: OfflineBroker) -> None:
    page = json.parse(entries(offline).body)
    assert (page["minQueueIndex"], page["maxQueueIndex"]) == (0, 4)
    assert page["queueData"] == [
        {"physicOffset": stored.commit_log_offset, "physicSize": stored.size, "tagsCode": code, "eval": False}
        for stored, code in zip(offline.stored("orders"), (97, 98, 97, 98), strict=True)
    ]
    assert page.keys() == {"queueData", "minQueueIndex", "maxQueueIndex"}
    assert json.parse(entries(offline, index=1, count=2).body)["queueData"] == page["queueData"][1:3]
    again = offline.restart()
    assert json.parse(entries(again).body) == page


def test_what_a_group_wants_of_the_queue(offline: OfflineBroker) -> None:
    assert json.parse(entries(offline, consumerGroup="g").body)["filterData"] == "g@orders is not online!"
    offline.heartbeat("c", consumers={"g": ["orders"]})
    page = json.parse(entries(offline, consumerGroup="g").body)
    assert (page["filterData"], page["subscriptionData"]["subString"]) == ("null", "*")


def test_a_consume_queue_that_does_not_reach_there(offline: OfflineBroker) -> None:
    for index in (-1, 4):
        refused = entries(offline, index=index)
        assert refused.code == ResponseCode.SYSTEM_ERROR
        assert refused.remark.startswith(f"Index {index} of 0@orders is not exist!")
    refused = entries(offline, queueId=3)
    assert (refused.code, refused.remark) == (ResponseCode.SYSTEM_ERROR, "3@orders is not exist!")
