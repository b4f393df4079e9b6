"""Pop over Remoting: how answers tell clients to build their receipt handles, and what they send back."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from saturnmq.kernel import properties as names
from saturnmq.kernel.topic import TopicConfig
from saturnmq.testing.offline import Asked, OfflineBroker
from saturnmq.wire import record
from saturnmq.wire.remoting import json
from saturnmq.wire.remoting.codes import RequestCode, ResponseCode
from saturnmq.wire.remoting.poprequests import MOST_BITS


@pytest.fixture
def offline() -> OfflineBroker:
    offline = OfflineBroker(settings={"pop_from_retry_probability": 100})
    offline.broker.topics.put(TopicConfig(topic_name="orders", read_queue_nums=1, write_queue_nums=1))
    offline.clock.run_soon()
    return offline


def pop(offline: OfflineBroker, **more: object) -> Asked:
    fields = {
        "consumerGroup": "g", "topic": "orders", "queueId": -1, "maxMsgNums": 32, "invisibleTime": 60_000,
        "pollTime": 0, "bornTime": 1, "initMode": 0, "exp": "*", "expType": "TAG", "order": False,
    }  # fmt: skip
    return offline.ask(RequestCode.POP_MESSAGE, {**fields, **more})


def handle(asked: Asked, offset: int) -> str:
    """As a client builds it of the answer (MQClientAPIImpl#processPopResponse)."""
    kind, queue_id, start = asked.fields["startOffsetInfo"].split(" ")
    lease = " ".join(asked.fields[name] for name in ("popTime", "invisibleTime", "reviveQid"))
    return f"{start} {lease} {kind} broker-a {queue_id} {offset}"


def acknowledge(offline: OfflineBroker, extra_info: str, offset: int, topic: str = "orders", group: str = "g") -> Asked:
    fields = {"consumerGroup": group, "topic": topic, "queueId": 0, "extraInfo": extra_info, "offset": offset}
    return offline.ask(RequestCode.ACK_MESSAGE, fields)


def ack(offline: OfflineBroker, extra_info: str, offset: int, topic: str = "orders") -> int:
    return acknowledge(offline, extra_info, offset, topic).code


def test_an_answer_names_every_message(offline: OfflineBroker) -> None:
    for number in range(3):
        offline.send("orders", b"%d" % number)
    asked = pop(offline)
    assert asked.code == 0
    assert asked.fields["startOffsetInfo"] == "0 0 0"
    assert asked.fields["msgOffsetInfo"] == "0 0 0,1,2"
    assert asked.fields["popTime"] == str(offline.clock.now_ms())
    assert (asked.fields["invisibleTime"], asked.fields["restNum"]) == ("60000", "0")
    assert 0 <= int(asked.fields["reviveQid"]) < 8
    assert "orderCountInfo" not in asked.fields
    assert [record.decode(one).body for one in record.split(asked.body)] == [b"0", b"1", b"2"]
    assert ack(offline, handle(asked, 1), 1) == 0
    assert ack(offline, handle(asked, 1), 99) != 0


def test_nothing_to_pop(offline: OfflineBroker) -> None:
    assert pop(offline).code == ResponseCode.POLLING_TIMEOUT
    waiting = pop(offline, pollTime=5_000)
    assert waiting.waits
    offline.clock.advance(5_000)
    assert waiting.code == ResponseCode.POLLING_TIMEOUT
    waiting = pop(offline, pollTime=5_000)
    offline.send("orders")
    assert waiting.code == 0


def test_a_message_of_the_retry_topic_comes_as_one_of_the_topic_with_its_handle(offline: OfflineBroker) -> None:
    offline.send("orders", b"again")
    pop(offline, invisibleTime=10_000)
    offline.clock.advance(15_000)
    asked = pop(offline)
    assert asked.fields["startOffsetInfo"] == "1 0 0"
    (message,) = [record.decode(one) for one in record.split(asked.body)]
    assert (message.topic, message.body, message.reconsume_times) == ("orders", b"again", 1)
    extra_info = names.decode(message.properties)["POP_CK"]
    assert extra_info == handle(asked, 0)
    assert ack(offline, extra_info, 0, topic="%RETRY%g_orders") == 0, "clients name the retry topic itself"
    offline.clock.advance(120_000)
    assert pop(offline).code == ResponseCode.POLLING_TIMEOUT


def test_hiding_longer_gives_a_new_handle(offline: OfflineBroker) -> None:
    offline.send("orders")
    asked = pop(offline, invisibleTime=10_000)
    offline.clock.advance(9_000)
    changed = offline.ask(
        RequestCode.CHANGE_MESSAGE_INVISIBLETIME,
        {
            "consumerGroup": "g", "topic": "orders", "queueId": 0, "extraInfo": handle(asked, 0), "offset": 0,
            "invisibleTime": 30_000,
        },
    )  # fmt: skip
    assert changed.code == 0
    assert (changed.fields["popTime"], changed.fields["invisibleTime"]) == (str(offline.clock.now_ms()), "30000")
    offline.clock.advance(29_000)
    assert pop(offline).code == ResponseCode.POLLING_TIMEOUT
    start = handle(asked, 0).split(" ")[0]
    fields = changed.fields
    extra_info = f"{start} {fields['popTime']} {fields['invisibleTime']} {fields['reviveQid']} 0 broker-a 0 0"
    assert ack(offline, extra_info, 0) == 0


def batch_ack(offline: OfflineBroker, asked: Asked, bits: int, **more: Any) -> Asked:
    one = {
        "c": "g", "t": "orders", "r": "0", "so": 0, "q": 0, "rq": int(asked.fields["reviveQid"]),
        "pt": int(asked.fields["popTime"]), "it": int(asked.fields["invisibleTime"]),
        "b": base64.b64encode(bits.to_bytes(8 + bits.bit_length() // 8, "little")).decode(),
    }  # fmt: skip
    body = {"brokerName": "broker-a", "acks": [{**one, **more}]}
    return offline.ask(RequestCode.BATCH_ACK_MESSAGE, body=json.write(body))


def test_a_batch_acknowledges_what_its_bits_say(offline: OfflineBroker) -> None:
    for number in range(4):
        offline.send("orders", b"%d" % number)
    asked = pop(offline, invisibleTime=10_000)
    assert batch_ack(offline, asked, 0b1011).code == 0
    offline.clock.advance(15_000)
    again = pop(offline)
    assert [record.decode(one).body for one in record.split(again.body)] == [b"2"]


def test_a_batch_that_cannot_be_read(offline: OfflineBroker) -> None:
    offline.send("orders")
    asked = pop(offline)
    assert batch_ack(offline, asked, 1, b="*").code != 0
    assert batch_ack(offline, asked, 1, r="9").code != 0
    assert batch_ack(offline, asked, 1 << MOST_BITS).code == ResponseCode.MESSAGE_ILLEGAL
    every = base64.b64encode(b"\xff" * (MOST_BITS // 8)).decode()
    assert batch_ack(offline, asked, 0, b=every).code == ResponseCode.INVALID_PARAMETER, "too many at once"
    assert batch_ack(offline, asked, 0b110).code == 0, "offsets that were never popped do not spoil it"


def test_fifo_answers_count_deliveries(offline: OfflineBroker) -> None:
    offline.send("orders", b"0")
    offline.send("orders", b"1")
    first = pop(offline, order=True, invisibleTime=10_000, maxMsgNums=1)
    assert (first.fields["orderCountInfo"], first.fields["reviveQid"]) == ("0 0 0", "999")
    offline.clock.advance(10_001)
    again = pop(offline, order=True, invisibleTime=10_000)
    assert again.fields["msgOffsetInfo"].startswith("0 0 0")
    assert again.fields["orderCountInfo"].startswith("0 qo0%0 1;")


@pytest.mark.parametrize("extra_info", ["", "1 2 3", "a b c d e f g h"])
def test_a_handle_that_cannot_be_read(offline: OfflineBroker, extra_info: str) -> None:
    assert ack(offline, extra_info, 0) == ResponseCode.MESSAGE_ILLEGAL


def test_handles_say_what_they_are(offline: OfflineBroker) -> None:
    offline.send("orders")
    extra_info = handle(pop(offline, invisibleTime=10_000), 0)
    foreign = acknowledge(offline, extra_info, 0, group="strangers")
    assert (foreign.code, "never received by this group" in foreign.remark) == (ResponseCode.MESSAGE_ILLEGAL, True)
    forged = acknowledge(offline, extra_info, 9)
    assert (forged.code, "does not exist" in forged.remark) == (ResponseCode.NO_MESSAGE, True)
    assert [ack(offline, extra_info, 0) for _ in range(2)] == [0, 0], "a repeated one, within the lease"
    offline.clock.advance(10_000)
    expired = acknowledge(offline, extra_info, 0)
    assert (expired.code, "expired" in expired.remark) == (ResponseCode.MESSAGE_ILLEGAL, True)


def test_how_many_wait(offline: OfflineBroker) -> None:
    def waiting(**more: object) -> Asked:
        return offline.ask(RequestCode.POLLING_INFO, {"consumerGroup": "g", "topic": "orders", "queueId": -1, **more})

    assert waiting().fields == {"pollingNum": "0"}
    pop(offline, pollTime=5_000)
    pop(offline, pollTime=5_000)
    assert waiting().fields == {"pollingNum": "2"}
    assert waiting(queueId=0).fields == waiting(consumerGroup="h").fields == {"pollingNum": "0"}
    refused = waiting(topic="none")
    assert refused.code == ResponseCode.TOPIC_NOT_EXIST


def test_older_brokers_can_read_what_pop_keeps(offline: OfflineBroker) -> None:
    assert offline.ask(RequestCode.POP_ROLLBACK).code == ResponseCode.SUCCESS
