"""Bodies of NameServers, brokers and clients."""

from __future__ import annotations

import struct
import zlib
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saturnmq.kernel.errors import InvalidParameter
from saturnmq.kernel.ports import ConsumeType, MessageModel
from saturnmq.kernel.topic import BrokerData, DataVersion, MessageQueue, QueueData, TopicConfig, TopicRoute
from saturnmq.wire.remoting import bodies

TOPICS = {
    "orders": TopicConfig(topic_name="orders", read_queue_nums=4, write_queue_nums=2, perm=6),
    "delays": TopicConfig(topic_name="delays", attributes={"message.type": "DELAY", "note": "with blanks"}),
}
REGISTRATION = bodies.RegisterBrokerBody(bodies.TopicConfigTable(TOPICS, DataVersion(3, 1, 1_700_000_000_000)), ["f:1"])


@pytest.mark.parametrize("compressed", [False, True])
def test_a_registration_comes_back(compressed: bool) -> None:
    body = bodies.encode_registration(REGISTRATION, compressed=compressed)
    assert bodies.decode_registration(body) == REGISTRATION
    assert body.startswith(b"\x78" if compressed else b"{")


def test_an_empty_registration_has_no_topics() -> None:
    assert bodies.decode_registration(b"") == bodies.RegisterBrokerBody()


def test_a_compressed_registration_of_an_old_broker() -> None:
    """Without attributes, and without the section of static topics."""
    entries = [b'{"counter":7,"timestamp":5}', b"old 8 8 6 SINGLE_TAG", b"[]"]
    packed = [struct.pack(">i", len(entry)) + entry for entry in entries]
    body = zlib.compress(b"".join((packed[0], struct.pack(">i", 1), packed[1], packed[2])))
    table = bodies.decode_registration(body).topic_config_serialize_wrapper
    assert table.data_version == DataVersion(7, 0, 5)
    assert table.topic_config_table == {"old": TopicConfig(topic_name="old", read_queue_nums=8, write_queue_nums=8)}


@pytest.mark.parametrize(
    "inflated",
    [
        b"",
        b"\x00\x00\x00\x02{}",
        b"\x00\x00\x00\x02{}\x00\x00\x00\x01\x7f\xff\xff\xff",
        b"\x00\x00\x00\x02{}\x00\x00\x00\x01\xff\xff\xff\xff",
        b"\x00\x00\x00\x02{}\x00\x00\x00\x01\x00\x00\x00\x03abc",
        b"\x00\x00\x00\x02{}\x00\x00\x00\x01\x00\x00\x00\x09a b c d e",
    ],
)
def test_broken_compressed_registrations_are_refused(inflated: bytes) -> None:
    with pytest.raises(InvalidParameter):
        bodies.decode_registration(zlib.compress(inflated))


def test_a_registration_may_not_inflate_without_end() -> None:
    with pytest.raises(InvalidParameter, match="67108864"):
        bodies.decode_registration(zlib.compress(bytes(bodies.MOST_INFLATED_BYTES + 1)))


@given(st.binary(max_size=100))
def test_any_bytes_raise_only_invalid_parameter(data: bytes) -> None:
    for kind in (bodies.HeartbeatData, bodies.LockBatchRequest, TopicRoute):
        with suppress(InvalidParameter):
            bodies.decode(kind, data)
    for body in (data, b"\x78\xda" + data, zlib.compress(data)):
        with suppress(InvalidParameter):
            bodies.decode_registration(body)


def test_a_heartbeat_of_java() -> None:
    heartbeat = bodies.decode(
        bodies.HeartbeatData,
        b'{"clientID":"10.0.0.1@7","consumerDataSet":[{"consumeFromWhere":"CONSUME_FROM_FIRST_OFFSET","consumeType":'
        b'"CONSUME_PASSIVELY","groupName":"g","messageModel":"BROADCASTING","subscriptionDataSet":[{"classFilterMode":'
        b'false,"codeSet":[2598919],"expressionType":"TAG","subString":"TagA","subVersion":1700000000001,"tagsSet":'
        b'["TagA"],"topic":"t"}],"unitMode":false}],"heartbeatFingerprint":0,"producerDataSet":[{"groupName":"p"}],'
        b'"withoutSub":false}',
    )
    [consumer] = heartbeat.consumer_data_set
    assert heartbeat.client_id == "10.0.0.1@7"
    assert heartbeat.producer_data_set == [bodies.ProducerData("p")]
    assert (consumer.consume_type, consumer.message_model) == (ConsumeType.PASSIVELY, MessageModel.BROADCASTING)
    assert consumer.subscription_data_set == [
        bodies.SubscriptionData(
            topic="t", sub_string="TagA", tags_set=["TagA"], code_set=[2598919], sub_version=1_700_000_000_001
        )
    ]


def test_the_dialect_nulls_and_numbers_in_quotes_are_understood() -> None:
    route = bodies.decode(
        TopicRoute,
        b'{brokerDatas:[{brokerAddrs:{0:"h:1",2:"h:2"},brokerName:"b",cluster:"c",zoneName:null}],'
        b'queueDatas:[{brokerName:"b",perm:"6",readQueueNums:4,writeQueueNums:4}],filterServerTable:null}',
    )
    assert route == TopicRoute(
        broker_datas=[BrokerData(cluster="c", broker_name="b", broker_addrs={0: "h:1", 2: "h:2"})],
        queue_datas=[QueueData(broker_name="b", read_queue_nums=4, write_queue_nums=4, perm=6)],
    )
    assert bodies.decode(TopicRoute, bodies.encode(route)) == route
    assert b"null" not in bodies.encode(route)
    assert b'"brokerAddrs":{"0":"h:1"' in bodies.encode(route)


def test_locks() -> None:
    request = bodies.decode(
        bodies.LockBatchRequest,
        b'{"clientId":"c","consumerGroup":"g","mqSet":[{"brokerName":"b","queueId":1,"topic":"t"}]}',
    )
    assert request.mq_set == [MessageQueue("t", "b", 1)]
    assert bodies.encode(bodies.LockBatchResponse(request.mq_set)) == (
        b'{"lockOKMQSet":[{"topic":"t","brokerName":"b","queueId":1}]}'
    )
