"""Sends: what is stored, what is refused, when they are answered."""

from __future__ import annotations

from typing import Any

import pytest

from saturnmq.disk.simulated import Operation
from saturnmq.kernel import properties as names
from saturnmq.kernel.later import Later
from saturnmq.kernel.message import Message
from saturnmq.kernel.ports import SendReceipt, SendRequest
from saturnmq.kernel.topic import GroupConfig, MessageQueue, TopicConfig
from saturnmq.testing.offline import OfflineBroker, OfflineConnection
from saturnmq.wire.record import BatchEntry, encode_batch, parse_offset_message_id
from saturnmq.wire.remoting.codes import RequestCode, ResponseCode
from saturnmq.wire.remoting.command import Command


def test_a_message_is_stored_as_it_came_with_the_brokers_own_properties() -> None:
    offline = OfflineBroker()
    response = offline.send("orders", b"body", queue_id=3, TAGS="a", KEYS="k1 k2", colour="blue", header={"h": 9})
    assert response.code == 0
    assert response.fields == {
        "msgId": response.fields["msgId"],
        "queueId": "3",
        "queueOffset": "0",
        "transactionId": "KEY",
        "MSG_REGION": "DefaultRegion",
        "TRACE_ON": "true",
    }
    (stored,) = offline.stored("orders", 3)
    assert (stored.body, stored.flag, stored.born_ms, stored.reconsume_times) == (b"body", 9, 1_600_000_000_000, 0)
    assert stored.born_host == bytes([10, 0, 0, 1]) + (50000).to_bytes(4, "big")
    assert names.decode(stored.properties) == {
        "UNIQ_KEY": "KEY", "TAGS": "a", "KEYS": "k1 k2", "colour": "blue",
        "MSG_REGION": "DefaultRegion", "TRACE_ON": "true", "CLUSTER": "DefaultCluster",
    }  # fmt: skip
    assert parse_offset_message_id(response.fields["msgId"]) == (offline.store.store_host, stored.commit_log_offset)


def test_code_10_has_long_names() -> None:
    offline = OfflineBroker()
    fields = {
        "producerGroup": "p", "topic": "orders", "defaultTopic": "TBW102", "defaultTopicQueueNums": 4, "queueId": 1,
        "sysFlag": 0, "bornTimestamp": 5, "flag": 0, "properties": "UNIQ_KEY\x01K\x02TAGS\x01a", "reconsumeTimes": 0,
        "unitMode": False, "batch": False, "unknownField": "ignored",
    }  # fmt: skip
    assert offline.ask(RequestCode.SEND_MESSAGE, fields, b"x").code == 0
    (stored,) = offline.stored("orders", 1)
    properties = names.decode(stored.properties)
    assert (properties["TAGS"], properties["CLUSTER"]) == ("a", "DefaultCluster"), "the last separator was missing"


def test_a_message_without_an_id_gets_one_and_a_negative_queue_is_chosen() -> None:
    offline = OfflineBroker()
    response = offline.send("orders", queue_id=-1, UNIQ_KEY="")
    assert 0 <= int(response.fields["queueId"]) < 4
    (stored,) = offline.stored("orders", int(response.fields["queueId"]))
    unique = names.decode(stored.properties)["UNIQ_KEY"]
    assert len(unique) == 32
    assert response.fields["transactionId"] == unique


def test_only_the_broker_sets_its_properties() -> None:
    offline = OfflineBroker()
    offline.send("orders", CLUSTER="other", MSG_REGION="r", TRACE_ON="false", POP_CK="0 0 0", WAIT="true")
    (stored,) = offline.stored("orders")
    assert names.decode(stored.properties) == {
        "UNIQ_KEY": "KEY", "WAIT": "true",
        "MSG_REGION": "DefaultRegion", "TRACE_ON": "true", "CLUSTER": "DefaultCluster",
    }  # fmt: skip
    assert stored.properties.count(b"CLUSTER") == 1


@pytest.mark.parametrize(
    ("topic", "header", "properties", "body", "code", "remark"),
    [
        ("SCHEDULE_TOPIC_XXXX", {}, {}, b"x", ResponseCode.NO_PERMISSION, "is forbidden"),
        ("RMQ_SYS_TRANS_HALF_TOPIC", {}, {}, b"x", ResponseCode.NO_PERMISSION, "is forbidden"),
        ("SELF_TEST_TOPIC", {}, {}, b"x", ResponseCode.NO_PERMISSION, "is forbidden"),
        ("TRANS_CHECK_MAX_TIME_TOPIC", {}, {}, b"x", ResponseCode.NO_PERMISSION, "is forbidden"),
        ("read-only", {}, {}, b"x", ResponseCode.NO_PERMISSION, "read-only"),
        ("a b", {}, {}, b"x", ResponseCode.INVALID_PARAMETER, "a b"),
        ("x" * 128, {}, {}, b"x", ResponseCode.INVALID_PARAMETER, "128"),
        ("orders", {"e": 4}, {}, b"x", ResponseCode.INVALID_PARAMETER, "request queueId[4] is illegal"),
        ("orders", {}, {"TIMER_DELAY_SEC": "259201"}, b"x", ResponseCode.MESSAGE_ILLEGAL, "timerMaxDelaySec"),
        ("orders", {}, {"TIMER_DELIVER_MS": "soon"}, b"x", ResponseCode.MESSAGE_ILLEGAL, "TIMER_DELIVER_MS"),
        ("orders", {}, {"INNER_MULTI_DISPATCH": "%LMQ%a"}, b"x", ResponseCode.REQUEST_CODE_NOT_SUPPORTED, "light"),
        ("orders", {}, {}, bytes(4 * 1024 * 1024 + 1), ResponseCode.MESSAGE_ILLEGAL, "4194304"),
        ("orders", {}, {"big": "x" * 32768}, b"x", ResponseCode.MESSAGE_ILLEGAL, "32767"),
    ],
)
def test_refusals(topic: str, header: dict[str, object], properties: Any, body: bytes, code: int, remark: str) -> None:
    offline = OfflineBroker()
    offline.broker.topics.put(TopicConfig(topic_name="orders", read_queue_nums=4, write_queue_nums=4))
    offline.broker.topics.put(TopicConfig(topic_name="read-only", perm=4))
    end = offline.store.end
    response = offline.send(topic, body, header=header, **properties)
    assert (response.code, remark in response.remark) == (code, True), response.remark
    assert offline.store.end == end, "nothing was appended"


def test_a_broker_without_write_permission_takes_nothing() -> None:
    offline = OfflineBroker(settings={"broker_permission": 4})
    assert offline.send("DefaultCluster").code == ResponseCode.NO_PERMISSION


def test_a_missing_header_field_is_named() -> None:
    refused = OfflineBroker().ask(RequestCode.SEND_MESSAGE_V2, {"a": "p"})
    assert (refused.code, "`b`" in refused.remark) == (ResponseCode.SYSTEM_ERROR, True)


@pytest.mark.parametrize("name", ["e", "f", "h", "j"])
def test_numbers_have_javas_32_bits(name: str) -> None:
    offline = OfflineBroker()
    for value in (1 << 31, -(1 << 31) - 1):
        refused = offline.send("orders", header={name: value})
        assert refused.code == ResponseCode.SYSTEM_ERROR
    if name != "f":
        assert offline.send("orders", header={name: -1}).code == 0


def test_flags_of_an_answer_are_bits() -> None:
    """Where nobody looks at them all may be set, but for the two that say which part of a transaction it is."""
    offline, requester = OfflineBroker(), OfflineConnection()
    offline.heartbeat("requester", producers=["p"], connection=requester)
    properties = names.encode({"REPLY_TO_CLIENT": "requester"}).decode()
    fields = {
        "a": "p", "b": "DefaultCluster_REPLY_TOPIC", "c": "TBW102", "d": 4, "e": 0, "f": ~12, "g": 7, "h": -1,
        "i": properties,
    }  # fmt: skip
    asked = offline.ask(RequestCode.SEND_REPLY_MESSAGE_V2, fields, b"answer")
    requester.asked[0][3].resolve(Command(0, 1))
    assert asked.code == 0
    (stored,) = offline.stored("DefaultCluster_REPLY_TOPIC")
    assert (stored.flag, stored.sys_flag & 0xF) == (-1, 3)


@pytest.mark.parametrize(
    "timer", [{"TIMER_DELIVER_MS": "0"}, {"TIMER_DELIVER_MS": "1600000000000"}, {"TIMER_DELAY_MS": "0"}]
)
def test_a_delivery_time_that_has_passed_is_now(timer: Any) -> None:
    offline = OfflineBroker()
    assert offline.send("orders", **timer).code == 0
    assert len(offline.stored("orders")) == 1


def syncs_of_the_log(offline: OfflineBroker) -> int:
    return sum(
        event.operation is Operation.SYNC and event.path.startswith("commitlog/") for event in offline.disk.events
    )


def test_with_synchronous_flush_an_answer_waits_for_the_disk_unless_told_not_to() -> None:
    offline = OfflineBroker(store_settings={"flush_disk_type": "SYNC_FLUSH"})
    offline.broker.topics.put(TopicConfig(topic_name="orders"))
    offline.clock.run_soon()
    before = syncs_of_the_log(offline)

    request = send_request("orders")
    reply = offline.broker.send(request)
    assert isinstance(reply, Later)
    receipts: list[SendReceipt] = []
    reply.then(receipts.append, lambda error: pytest.fail(str(error)))
    assert (receipts, syncs_of_the_log(offline)) == ([], before)
    offline.clock.run_soon()
    assert receipts[0].queue_offset == 0
    assert syncs_of_the_log(offline) > before

    receipt = offline.broker.send(send_request("orders", WAIT="false"))
    assert isinstance(receipt, SendReceipt), "answered in the same turn"
    assert receipt.queue_offset == 1


def send_request(topic: str, **properties: str) -> SendRequest:
    properties = {"UNIQ_KEY": "K", **properties}
    message = Message(topic, 0, b"x", names.encode(properties), 1, bytes(8))
    return SendRequest(producer_group="p", messages=[message], properties=properties)


def test_a_flush_that_takes_too_long_is_answered_with_the_place_of_the_message() -> None:
    offline = OfflineBroker(store_settings={"flush_disk_type": "SYNC_FLUSH"})
    offline.broker.topics.put(TopicConfig(topic_name="orders"))
    offline.clock.run_soon()
    offline.store._commit._flusher = StuckDisk()
    asked = offline.send("orders", queue_id=2)
    offline.clock.advance(4_999)
    assert asked.waits
    offline.clock.advance(1)
    assert asked.code == ResponseCode.FLUSH_DISK_TIMEOUT
    assert (asked.fields["queueId"], asked.fields["queueOffset"]) == ("2", "0")
    assert len(asked.fields["msgId"]) == 32


class StuckDisk:
    """A Background whose work never ends."""

    def run(self, work: object, done: object, failed: object) -> None: ...


def test_a_batch_is_consecutive_messages() -> None:
    offline = OfflineBroker()
    offline.send("orders", queue_id=1)
    entries = [
        BatchEntry(flag=number, body=b"%d" % number, properties=b"UNIQ_KEY\x01%d\x02" % number) for number in range(3)
    ]
    response = offline.ask(
        RequestCode.SEND_BATCH_MESSAGE,
        {
            "a": "p",
            "b": "orders",
            "c": "TBW102",
            "d": 4,
            "e": 1,
            "f": 0,
            "g": 7,
            "h": 0,
            "i": "WAIT\x01true\x02",
            "m": True,
        },
        encode_batch(entries),
    )
    assert (response.code, response.fields["queueOffset"]) == (0, "1")
    stored = offline.stored("orders", 1)[1:]
    assert [(one.body, one.flag, one.properties, one.queue_offset, one.born_ms) for one in stored] == [
        (entry.body, entry.flag, entry.properties, number + 1, 7) for number, entry in enumerate(entries)
    ]
    ids = response.fields["msgId"].split(",")
    assert [parse_offset_message_id(one)[1] for one in ids] == [one.commit_log_offset for one in stored]


@pytest.mark.parametrize(
    ("topic", "bodies", "remark"),
    [
        ("%RETRY%g", [b"a"], "batch request does not support retry group"),
        ("orders", [bytes(3 << 20), bytes(2 << 20)], "4194304"),
        ("inner", [b"a"], "BatchCQ"),
        ("orders", [], "no messages"),
    ],
)
def test_batches_that_are_refused(topic: str, bodies: list[bytes], remark: str) -> None:
    offline = OfflineBroker()
    offline.broker.topics.put(TopicConfig(topic_name="inner", attributes={"queue.type": "BatchCQ"}))
    response = offline.ask(
        RequestCode.SEND_BATCH_MESSAGE,
        {"a": "p", "b": topic, "c": "TBW102", "d": 4, "e": 0, "f": 0, "g": 7, "h": 0, "m": True},
        encode_batch([BatchEntry(flag=0, body=body, properties=b"") for body in bodies]),
    )
    assert response.code in (ResponseCode.MESSAGE_ILLEGAL, ResponseCode.REQUEST_CODE_NOT_SUPPORTED)
    assert remark in response.remark
    assert offline.store.end == 0


def test_a_retry_that_was_tried_too_often_becomes_a_dead_letter() -> None:
    offline = OfflineBroker()
    offline.broker.groups.put(GroupConfig(group_name="g", retry_max_times=2))
    assert offline.send("%RETRY%g", b"2", header={"j": 2}).code == 0
    assert offline.send("%RETRY%g", b"3", header={"j": 3}, DELAY="3").code == 0
    assert offline.send("%RETRY%g", b"5", header={"j": 5, "l": 9}).code == 0
    assert [one.body for one in offline.stored("%RETRY%g")] == [b"2", b"5"]
    (dead,) = offline.stored("%DLQ%g")
    properties = names.decode(dead.properties)
    assert (dead.body, properties["DELAY"], properties["DLQ_REASON"]) == (b"3", "-1", "MAX_ATTEMPTS")
    old_client = offline.ask(
        RequestCode.SEND_MESSAGE_V2,
        {"a": "p", "b": "%RETRY%g", "c": "", "d": 4, "e": 0, "f": 0, "g": 7, "h": 0, "j": 5, "l": 9},
        b"old",
        version=100,
    )
    assert old_client.code == 0
    assert [one.body for one in offline.stored("%DLQ%g")] == [b"3", b"old"], "old clients' l means nothing"


def test_an_orderly_group_only_sends_what_it_gives_up_on() -> None:
    offline = OfflineBroker()
    offline.broker.locks.lock("g", [MessageQueue("orders", "broker-a", 0)], "c1")
    offline.send("%RETRY%g", b"first", DELAY="3")
    offline.send("%RETRY%g", b"by an operator", DLQ_RESENT="id")
    offline.clock.advance(60_001)
    offline.send("%RETRY%g", b"second")
    (dead,) = offline.stored("%DLQ%g")
    assert (dead.body, names.decode(dead.properties)["DLQ_REASON"]) == (b"first", "CONSUMER")
    assert [one.body for one in offline.stored("%RETRY%g")] == [b"by an operator", b"second"]


def test_a_retry_for_an_unknown_group_is_refused() -> None:
    offline = OfflineBroker(settings={"auto_create_subscription_group": False})
    assert offline.send("%RETRY%g").code == ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST


def test_metrics_count_messages_and_bytes() -> None:
    offline = OfflineBroker()
    offline.send("orders")
    offline.send("orders")
    text = "".join(offline.metrics.lines())
    assert 'rocketmq_messages_in_total{topic="orders"} 2' in text
    assert f'rocketmq_throughput_in_total{{topic="orders"}} {offline.store.end}' in text
