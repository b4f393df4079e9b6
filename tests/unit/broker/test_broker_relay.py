"""What operators ask of a consumer, through the broker that it is connected to."""

from __future__ import annotations

import pytest

from saturnmq.kernel.errors import ConnectionLost, ProtocolError, RequestTimeout
from saturnmq.kernel.topic import GroupConfig, MessageQueue, TopicConfig
from saturnmq.testing.offline import Asked, OfflineBroker, OfflineConnection
from saturnmq.wire.remoting import json
from saturnmq.wire.remoting.codes import RequestCode, ResponseCode
from saturnmq.wire.remoting.command import Command


@pytest.fixture
def offline() -> OfflineBroker:
    """The consumer `c` of the group `g`, on a connection of its own."""
    offline = OfflineBroker()
    offline.broker.topics.put(TopicConfig(topic_name="orders", topic_sys_flag=1))
    offline.broker.groups.put(GroupConfig(group_name="g", group_sys_flag=2))
    return offline


@pytest.fixture
def consumer(offline: OfflineBroker) -> OfflineConnection:
    consumer = OfflineConnection("10.0.0.2:1")
    offline.heartbeat("c", consumers={"g": ["orders"]}, connection=consumer)
    return consumer


def running_info(offline: OfflineBroker, client_id: str = "c") -> Asked:
    fields = {"consumerGroup": "g", "clientId": client_id, "jstackEnable": True}
    return offline.ask(RequestCode.GET_CONSUMER_RUNNING_INFO, fields)


def test_what_a_consumer_says_of_itself_goes_back_as_it_is(offline: OfflineBroker, consumer: OfflineConnection) -> None:
    asked = running_info(offline)
    assert asked.waits
    [(code, fields, body, answer)] = consumer.asked
    assert (code, body) == (RequestCode.GET_CONSUMER_RUNNING_INFO, b"")
    assert fields == {"consumerGroup": "g", "clientId": "c", "jstackEnable": "true"}
    answer.resolve(Command(0, 1, body=b'{"mqTable":{{"topic":"orders"}:{}}}'))
    assert (asked.code, asked.body) == (0, b'{"mqTable":{{"topic":"orders"}:{}}}')


def test_nobody_to_ask(offline: OfflineBroker, consumer: OfflineConnection) -> None:
    refused = running_info(offline, "gone")
    assert (refused.code, refused.remark) == (ResponseCode.SYSTEM_ERROR, "The Consumer <g> <gone> not online")


def test_a_client_that_came_back_is_asked_over_its_new_connection(
    offline: OfflineBroker, consumer: OfflineConnection
) -> None:
    again = OfflineConnection("10.0.0.2:2")
    offline.heartbeat("c", consumers={"g": ["orders"]}, connection=again)
    running_info(offline)
    assert (len(consumer.asked), len(again.asked)) == (0, 1)


def test_what_the_client_cannot_do_is_its_own_word(offline: OfflineBroker, consumer: OfflineConnection) -> None:
    asked = running_info(offline)
    consumer.asked[0][3].resolve(Command(1, 1, remark="The Consumer Group <g> not exist in this consumer"))
    assert (asked.code, asked.remark) == (1, "The Consumer Group <g> not exist in this consumer")
    asked = running_info(offline)
    consumer.asked[1][3].resolve(Command(3, 1))
    assert (asked.code, asked.remark) == (1, "the client answered 3")
    asked = running_info(offline)
    consumer.asked[2][3].resolve(Command(0, 1, remark="json marshal error: NaN"))
    assert (asked.code, asked.remark) == (1, "json marshal error: NaN")


def test_a_client_that_does_not_answer(offline: OfflineBroker, consumer: OfflineConnection) -> None:
    asked = running_info(offline)
    consumer.asked[0][3].fail(RequestTimeout("too late"))
    assert (asked.code, asked.remark) == (ResponseCode.CONSUME_MSG_TIMEOUT, "consumer <g> <c> Timeout: too late")
    asked = running_info(offline)
    consumer.asked[1][3].fail(ConnectionLost("gone"))
    assert (asked.code, asked.remark) == (ResponseCode.SYSTEM_ERROR, "gone")


def consume(offline: OfflineBroker, message_id: str, **fields: object) -> Asked:
    header = {"consumerGroup": "g", "clientId": "c", "msgId": message_id, **fields}
    return offline.ask(RequestCode.CONSUME_MESSAGE_DIRECTLY, header)


def test_a_message_is_handed_to_a_consumer(offline: OfflineBroker, consumer: OfflineConnection) -> None:
    message_id = offline.send("orders", b"body").fields["msgId"]
    asked = consume(offline, message_id, topic="orders")
    [(code, fields, record, answer)] = consumer.asked
    assert code == RequestCode.CONSUME_MESSAGE_DIRECTLY
    assert fields == {
        "consumerGroup": "g", "clientId": "c", "msgId": message_id, "topic": "orders", "brokerName": "broker-a",
        "topicSysFlag": "1", "groupSysFlag": "2",
    }  # fmt: skip
    assert record == offline.pull("g", "orders", 0).body
    answer.resolve(Command(0, 1, body=b'{"consumeResult":"CR_SUCCESS"}'))
    assert (asked.code, asked.body) == (0, b'{"consumeResult":"CR_SUCCESS"}')
    consume(offline, message_id)
    assert consumer.asked[1][1].keys() == {"consumerGroup", "clientId", "msgId", "brokerName", "groupSysFlag"}


def test_a_message_that_is_not_there_is_handed_to_nobody(offline: OfflineBroker, consumer: OfflineConnection) -> None:
    message_id = offline.send("orders").fields["msgId"]
    assert consume(offline, message_id[:-2] + "01").code == ResponseCode.QUERY_NOT_FOUND
    with pytest.raises(ProtocolError, match="no offset message id"):
        consume(offline, "not an id")
    assert consumer.asked == []


def positions(offline: OfflineBroker, **fields: object) -> Asked:
    return offline.ask(RequestCode.INVOKE_BROKER_TO_GET_CONSUMER_STATUS, {"topic": "orders", "group": "g", **fields})


def test_where_the_members_are(offline: OfflineBroker, consumer: OfflineConnection) -> None:
    other = OfflineConnection("10.0.0.3:1")
    offline.heartbeat("d", consumers={"g": ["orders"]}, connection=other)
    asked = positions(offline)
    [(code, fields, _, answer)] = consumer.asked
    assert (code, fields) == (RequestCode.GET_CONSUMER_STATUS_FROM_CLIENT, {"topic": "orders", "group": "g"})
    table = b'{"messageQueueTable":{{"brokerName":"broker-a","queueId":1,"topic":"orders"}:7}}'
    answer.resolve(Command(0, 1, body=table))
    assert asked.waits, "for the other one"
    other.asked[0][3].fail(RequestTimeout("too late"))
    assert json.parse(asked.body)["consumerTable"] == {"c": {MessageQueue("orders", "broker-a", 1): 7}}


def test_where_one_member_is(offline: OfflineBroker, consumer: OfflineConnection) -> None:
    other = OfflineConnection("10.0.0.3:1")
    offline.heartbeat("d", consumers={"g": ["orders"]}, connection=other)
    asked = positions(offline, clientAddr="d")
    other.asked[0][3].resolve(Command(0, 1, body=b'{"messageQueueTable":{}}'))
    assert json.parse(asked.body) == {"consumerTable": {"d": {}}, "messageQueueTable": {}}
    assert consumer.asked == []


@pytest.mark.parametrize("body", [b"{", b"[]", b"{}", b'{"messageQueueTable":{"a":1}}', b'{"messageQueueTable":3}'])
def test_a_member_that_cannot_be_understood_is_left_out(
    offline: OfflineBroker, consumer: OfflineConnection, body: bytes
) -> None:
    asked = positions(offline)
    consumer.asked[0][3].resolve(Command(0, 1, body=body))
    assert json.parse(asked.body) == {"consumerTable": {}, "messageQueueTable": {}}


def test_no_member_is_connected(offline: OfflineBroker) -> None:
    refused = positions(offline)
    assert refused.code == ResponseCode.SYSTEM_ERROR
    assert refused.remark == "No Any Consumer online in the consumer group: [g]"
