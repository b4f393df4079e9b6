"""The records of the revive topic: Apache's bodies, keys and tags, to the byte; what is read back of them."""

from __future__ import annotations

import json

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from saturnmq.broker.leasefile import _kind_of as kind_of
from saturnmq.broker.leases import CheckPoint, Leases
from saturnmq.broker.order import Order
from saturnmq.broker.reviverecords import AckBody, CkBody, FifoBody, OrderInfo, ReviveRecords, compact
from saturnmq.kernel import properties
from saturnmq.kernel.config import StoreConfig
from saturnmq.kernel.handle import TopicKind


class Host:
    config = StoreConfig()
    store_host = b"\x7f\0\0\1\0\0\x2a\x9f"


RECORDS = ReviveRecords(Host(), "rmq_sys_REVIVE_LOG_c", "broker-a")  # type: ignore[arg-type]


def point(**changes: object) -> CheckPoint:
    queue = Leases().queue("g", "t", 3)
    fields = {
        "queue": queue, "start": 10, "pop_ms": 1_000_000, "invisible_ms": 60_000, "handle_ms": 1_000_000,
        "claim_ms": 1_060_000, "revive_queue_id": 5, "offsets": (10, 12), "pending": 2,
    }  # fmt: skip
    return CheckPoint(**{**fields, **changes})  # type: ignore[arg-type]


def test_a_check_point_as_apache_writes_it() -> None:
    message = RECORDS.check_point(point(), 1_000_001)
    # fastjson of store/pop/PopCheckPoint.java, whose fields come in the order of their names
    assert message.body == (
        b'{"bm":0,"bn":"broker-a","c":"g","d":[0,2],"it":60000,"n":2,"pt":1000000,"q":3,"ro":0,"so":10,"t":"t"}'
    )
    assert properties.decode(message.properties) == {
        "TIMER_DELIVER_MS": "1059000", "UNIQ_KEY": "t@3@10@g@1000000@broker-a@ck", "TAGS": "ck",
        "TIMER_OUT_MS": "1058000", "REAL_TOPIC": "rmq_sys_REVIVE_LOG_c", "REAL_QID": "5",
    }  # fmt: skip
    assert (message.topic, message.queue_id) == ("rmq_sys_wheel_timer", 0)
    assert (message.born_ms, message.born_host) == (1_000_001, Host.store_host)


def test_an_acknowledgement_as_apache_writes_it() -> None:
    message = RECORDS.acknowledgement(point(), 12, 1_000_001)
    assert message.body == b'{"ao":12,"bn":"broker-a","c":"g","pt":1000000,"q":3,"so":10,"t":"t"}'
    assert properties.decode(message.properties) == {
        "TIMER_DELIVER_MS": "1060000", "UNIQ_KEY": "t@3@12@g@1000000@broker-a@ack", "TAGS": "ack",
        "TIMER_OUT_MS": "1059000", "REAL_TOPIC": "rmq_sys_REVIVE_LOG_c", "REAL_QID": "5",
    }  # fmt: skip


def test_what_is_ours_is_beside_what_is_apaches() -> None:
    renewed = point(handle_ms=900_000, claim_ms=1_070_000, changed=True)
    body = json.loads(RECORDS.check_point(renewed, 0).body)
    assert (body["hp"], body["ce"], body["ch"]) == (900_000, 1_070_000, 1)
    body = json.loads(RECORDS.revived(point(), [10, 12], 0).body)
    assert (body["ao"], body["aol"], body["rv"], body["so"]) == (-1, [10, 12], 1, 10)


def test_records_of_apache_are_read() -> None:
    """As its Broker writes them: fields that we do not write, a bit map, the form without differences."""
    body = msgspec.json.decode(
        b'{"bm":2,"bn":"b","c":"g","d":[0,1,5],"it":1,"n":3,"pt":2,"q":0,"ro":7,"rp":"1","so":4,"t":"t"}', type=CkBody
    )
    assert body.offsets() == [4, 9]
    old = msgspec.json.decode(b'{"bm":0,"c":"g","it":1,"n":3,"pt":2,"q":0,"ro":7,"so":4,"t":"t"}', type=CkBody)
    assert old.offsets() == [4, 5, 6]
    ack = msgspec.json.decode(b'{"ao":-1,"aol":[4,9],"bn":"b","c":"g","pt":2,"q":0,"so":4,"t":"t"}', type=AckBody)
    assert (ack.offsets, ack.revived) == ([4, 9], 0)
    info = msgspec.json.decode(
        b'{"popTime":1,"i":60000,"o":[5,1,3],"ot":{"6":70},"oc":{"5":2},"l":1,"cm":2,"a":"x"}', type=OrderInfo
    )
    assert info.order() == Order(
        attempt_id="x", pop_ms=1, invisible_ms=60_000, offsets=[5, 6, 8], counts={5: 2}, acknowledged=frozenset({6}),
        ends_ms={6: 70}, handles_ms={},
    )  # fmt: skip


@given(
    first=st.integers(0, 1 << 40),
    distances=st.lists(st.integers(1, 1 << 20), unique=True, max_size=62).map(sorted),
    data=st.data(),
)
def test_a_batch_is_read_as_it_was_written(first: int, distances: list[int], data: st.DataObject) -> None:
    offsets = [first, *(first + distance for distance in distances)]
    some = st.lists(st.sampled_from(offsets), unique=True)
    order = Order(
        attempt_id=data.draw(st.none() | st.text()),
        pop_ms=data.draw(st.integers(0, 1 << 42)),
        invisible_ms=data.draw(st.integers(0, 1 << 31)),
        offsets=offsets,
        counts=dict.fromkeys(data.draw(some), 3),
        acknowledged=frozenset(data.draw(some)) - {first},
        ends_ms=dict.fromkeys(data.draw(some), 7),
        handles_ms=dict.fromkeys(data.draw(some), 8),
    )
    queue = Leases().queue("g", "%RETRY%g_t", 3)
    message = RECORDS.order(queue, order, first, offsets[-1] + 1, 0)
    body = msgspec.json.decode(message.body, type=FifoBody)
    assert (body.committed, body.next_offset, body.topic) == (first, offsets[-1] + 1, "%RETRY%g_t")
    assert body.order is not None
    assert body.order.order() == order
    assert -(1 << 63) <= body.order.done < 1 << 63


def test_offsets_in_a_row_are_a_range() -> None:
    assert compact([4, 5, 6]) == range(4, 7)
    assert compact([4, 6]) == (4, 6)
    assert compact([4]) == range(4, 5)


def test_which_topics_are_pop_retry_topics_of_a_group() -> None:
    assert kind_of("g", "%RETRY%g_t") is TopicKind.RETRY
    assert kind_of("g", "%RETRY%g+t") is TopicKind.RETRY_V2
    assert kind_of("g", "%RETRY%g") is TopicKind.NORMAL
    assert kind_of("g", "t") is TopicKind.NORMAL
