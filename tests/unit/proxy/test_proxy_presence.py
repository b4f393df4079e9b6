"""Cluster mode: who is connected, what brokers hear of it, and how they reach a client through its Proxy."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from cluster_stage import ClusterStage, FakeCall
from proxy_fakes import message

from saturnmq.kernel.errors import SaturnError
from saturnmq.kernel.ports import ConsumerMembership, ConsumeType, MessageModel
from saturnmq.kernel.topic import GroupConfig, MessageQueue
from saturnmq.net.remoting_channel import RemotingChannel
from saturnmq.proxy.cluster import Cluster
from saturnmq.proxy.heartbeats import CLIENT_ID
from saturnmq.proxy.heartbeatsync import HeartbeatSync
from saturnmq.testing.offline import Asked, OfflineConnection
from saturnmq.wire.proto import rocketmq_pb2 as pb
from saturnmq.wire.remoting import json
from saturnmq.wire.remoting.codes import LanguageCode, RequestCode, ResponseCode
from saturnmq.wire.remoting.command import Command
from saturnmq.wire.remoting.extensions import MANY_CLIENTS


@pytest.fixture
def stage() -> ClusterStage:
    stage = ClusterStage()
    stage.add_topic("t")
    stage.brokers["broker-a"].broker.groups.put(GroupConfig(group_name="g"))
    return stage


def consumer(stage: ClusterStage) -> FakeCall:
    """A push consumer of group `g`, and its telemetry stream."""
    subscription = pb.Subscription(group=pb.Resource(name="g"))
    subscription.subscriptions.add(
        topic=pb.Resource(name="t"), expression=pb.FilterExpression(type=pb.TAG, expression="a")
    )
    stream = stage.telemetry()
    stage.settings(pb.Settings(client_type=pb.PUSH_CONSUMER, subscription=subscription), stream)
    return stream


def producer(stage: ClusterStage, topic: str = "t") -> FakeCall:
    stream = stage.telemetry()
    publishing = pb.Publishing(topics=[pb.Resource(name=topic)])
    stage.settings(pb.Settings(client_type=pb.PRODUCER, publishing=publishing), stream)
    return stream


def known(stage: ClusterStage) -> list[str]:
    found = stage.brokers["broker-a"].broker.members("g")
    return [] if found is None else found.client_ids()


def test_a_broker_of_ours_knows_the_clients_of_a_proxy(stage: ClusterStage) -> None:
    broker = stage.brokers["broker-a"].broker
    consumer(stage)
    assert known(stage) == ["client-1"]
    found = broker.members("g")
    assert found is not None
    assert [(one.topic, one.expression) for one in found.subscriptions.values()] == [("t", "a")]
    producer(stage)  # of the same client: it is no consumer any more
    assert known(stage) == []
    assert [channel.client_id for channel in broker.clients.producers("t")] == ["client-1"]
    stage.unary("NotifyClientTermination", pb.NotifyClientTerminationRequest(), pb.NotifyClientTerminationResponse)
    assert broker.clients.producers("t") == []


def test_they_are_kept_alive_there(stage: ClusterStage) -> None:
    consumer(stage)
    for _ in range(30):
        stage.clock.advance(10_000)
        stage.unary("Heartbeat", pb.HeartbeatRequest(), pb.HeartbeatResponse)
    assert known(stage) == ["client-1"]
    stage.clock.advance(140_000)
    assert known(stage) == []
    assert stage.cluster.members("g") is None


def test_a_broker_that_comes_back_hears_of_them(stage: ClusterStage) -> None:
    consumer(stage)
    stage.others.connections.pop(stage.address("broker-a")).close()
    assert known(stage) == []
    stage.cluster.heartbeats.again()
    stage.clock.advance(2_000)
    assert known(stage) == ["client-1"]


def test_a_broker_hears_of_many_clients_one_after_the_other(stage: ClusterStage) -> None:
    for number in range(450):
        stage.headers[b"x-mq-client-id"] = b"client-%d" % number
        consumer(stage)
    assert len(known(stage)) == 450
    stage.network.asked.clear()
    stage.clock.advance(20_000)
    assert stage.network.count(RequestCode.HEART_BEAT) == 1 + 200
    stage.clock.advance(100)
    assert stage.network.count(RequestCode.HEART_BEAT) == 1 + 450


def test_apaches_broker_hears_of_producers_under_one_name(stage: ClusterStage) -> None:
    stage.network.unknown_fields.add(MANY_CLIENTS)
    stage.start_proxy()
    consumer(stage)
    stage.headers[b"x-mq-client-id"] = b"client-2"
    producer(stage)
    stage.clock.advance(20_000)
    assert known(stage) == []
    clients = stage.brokers["broker-a"].broker.clients
    assert [channel.client_id for channel in clients.producers("t")] == [CLIENT_ID]
    found = stage.cluster.members("g")
    assert found is not None
    assert found.client_ids() == ["client-1"], "the Proxy knows"


def relayed(stage: ClusterStage, code: int, fields: Mapping[str, str], body: bytes = b"") -> Asked:
    """What a broker asks over the connection of the Proxy."""
    connection = OfflineConnection(peer=str(stage.address("broker-a")))
    return Asked(stage.cluster.relay.table()[code](Command(code, 1, fields=dict(fields), body=body), connection))


def test_an_operator_asks_for_the_stacks_of_a_client(stage: ClusterStage) -> None:
    stream = consumer(stage)
    fields = {"consumerGroup": "g", "clientId": "client-1", "jstackEnable": "true"}
    asked = relayed(stage, RequestCode.GET_CONSUMER_RUNNING_INFO, fields)
    command = pb.TelemetryCommand.FromString(stream.out[-1]).print_thread_stack_trace_command
    trace = pb.ThreadStackTrace(nonce=command.nonce, thread_stack_trace="main")
    stage.tell(stream, pb.TelemetryCommand(thread_stack_trace=trace))
    assert json.parse(asked.body)["jstack"] == "main"


def test_a_client_that_does_not_answer(stage: ClusterStage) -> None:
    consumer(stage)
    fields = {"consumerGroup": "g", "clientId": "client-1", "jstackEnable": "true"}
    asked = relayed(stage, RequestCode.GET_CONSUMER_RUNNING_INFO, fields)
    stage.clock.advance(5_000)
    assert asked.code == ResponseCode.CONSUME_MSG_TIMEOUT


def test_a_transaction_is_checked_through_one_proxy_and_ended_through_another() -> None:
    stage = ClusterStage()
    stage.add_topic("t", "TRANSACTION")
    stream = producer(stage)
    stage.clock.advance(20_000)  # the broker knows the producer
    request = pb.SendMessageRequest(messages=[message("t", message_type=pb.TRANSACTION)])
    sent = stage.unary("SendMessage", request, pb.SendMessageResponse).entries[0]
    assert sent.status.code == pb.OK
    connection = stage.others.connections[stage.address("broker-a")]
    while not any(code == RequestCode.CHECK_TRANSACTION_STATE for code, _ in connection.told):
        stage.clock.advance(10_000)
        stage.unary("Heartbeat", pb.HeartbeatRequest(), pb.HeartbeatResponse)
    [(fields, body)] = [
        (fields, body)
        for (code, fields), body in zip(connection.told, connection.bodies, strict=True)
        if code == RequestCode.CHECK_TRANSACTION_STATE
    ]
    relayed(stage, RequestCode.CHECK_TRANSACTION_STATE, fields, body)
    command = pb.TelemetryCommand.FromString(stream.out[-1]).recover_orphaned_transaction_command
    assert command.message.body == b"hello"
    stage.start_proxy()
    end = pb.EndTransactionRequest(
        topic=pb.Resource(name="t"),
        message_id=sent.message_id,
        transaction_id=command.transaction_id,
        resolution=pb.COMMIT,
        source=pb.SOURCE_SERVER_CHECK,
    )
    assert stage.unary("EndTransaction", end, pb.EndTransactionResponse).status.code == pb.OK
    assert stage.stored() == [("broker-a", b"hello")]


# ------------------------------------------------------------------------------------------ Proxies among themselves

TOPIC = "DefaultHeartBeatSyncerTopic"
#: as Apache's Proxy writes it
APACHES = (
    '{"channelData":"{\\"localAddress\\":\\"10.0.0.5:8081\\",\\"extendAttribute\\":\\"{}\\",\\"remoteProxyIp\\":'
    '\\"10.0.0.5\\",\\"type\\":\\"GRPC_V2\\",\\"remoteAddress\\":\\"10.0.0.7:4711\\"}","clientId":"theirs",'
    '"consumeFromWhere":"CONSUME_FROM_LAST_OFFSET","consumeType":"CONSUME_PASSIVELY","group":"g","heartbeatType":'
    '"REGISTER","language":"JAVA","lastUpdateTimestamp":1700000000000,"localProxyId":"10.0.0.5%8080%8081",'
    '"messageModel":"CLUSTERING","subscriptionDataSet":[{"classFilterMode":false,"codeSet":[97],"expressionType":'
    '"TAG","subString":"a","subVersion":1700000000000,"tagsSet":["a"],"topic":"t"}],"version":475}'
)


def synced(stage: ClusterStage, place: str) -> HeartbeatSync:
    """The Proxy that the stage has now tells others of its clients, and hears of theirs."""
    cluster = stage.cluster
    sync = HeartbeatSync(cluster, cluster.presence, TOPIC, "DefaultCluster", place, stage.clock)
    sync.start()
    stage.clock.advance(35_000)  # the topic is there, and is read
    return sync


def ids(cluster: Cluster) -> list[str]:
    found = cluster.members("g")
    return [] if found is None else found.client_ids()


def test_proxies_know_of_one_anothers_clients(stage: ClusterStage) -> None:
    synced(stage, "10.0.0.1%8081")
    first = stage.cluster
    stage.start_proxy()
    synced(stage, "10.0.0.2%8081")
    consumer(stage)
    stage.clock.run_soon()
    assert ids(stage.cluster) == ["client-1"]
    assert ids(first) == ["client-1"]
    stage.unary("NotifyClientTermination", pb.NotifyClientTerminationRequest(), pb.NotifyClientTerminationResponse)
    stage.clock.run_soon()
    assert ids(first) == []


def test_a_proxy_that_starts_hears_of_them_within_half_a_minute(stage: ClusterStage) -> None:
    synced(stage, "10.0.0.1%8081")
    consumer(stage)
    stage.start_proxy()
    late = stage.cluster
    synced(stage, "10.0.0.2%8081")
    assert ids(late) == ["client-1"]


def test_who_is_not_heard_of_any_more_is_gone(stage: ClusterStage) -> None:
    sync = synced(stage, "10.0.0.1%8081")
    first = stage.cluster
    consumer(stage)
    stage.start_proxy()
    synced(stage, "10.0.0.2%8081")
    late = stage.cluster
    sync.close()
    first.close()
    stage.clock.advance(140_000)
    assert ids(late) == []


def test_what_apaches_proxy_says_is_understood(stage: ClusterStage) -> None:
    synced(stage, "10.0.0.1%8081")
    for body in (b"no JSON", b"{}", APACHES.encode()):
        assert stage.brokers["broker-a"].send(TOPIC, body).code == 0
    found = stage.cluster.members("g")
    assert found is not None
    [member] = found.members
    assert (member.client_id, member.address, member.language, member.version) == (
        "theirs", "10.0.0.7:4711", "JAVA", 475,
    )  # fmt: skip
    assert found.subscriptions["t"].tags == {"a"}
    stage.brokers["broker-a"].send(TOPIC, APACHES.replace("REGISTER", "UNREGISTER").encode())
    assert stage.cluster.members("g") is None


def test_what_is_said_is_what_apaches_proxy_reads(stage: ClusterStage) -> None:
    synced(stage, "10.0.0.1%8081")
    consumer(stage)
    stage.clock.run_soon()
    said = json.parse(stage.brokers["broker-a"].stored(TOPIC)[-1].body)
    channel = json.parse(said.pop("channelData").encode())
    theirs = json.parse(APACHES.encode())
    assert said.keys() == theirs.keys() - {"channelData"}
    assert said["subscriptionDataSet"][0].keys() == theirs["subscriptionDataSet"][0].keys()
    assert channel.keys() == json.parse(theirs["channelData"].encode()).keys()
    assert json.parse(channel["extendAttribute"].encode()) == {
        "clientType": "PUSH_CONSUMER",
        "subscription": {
            "group": {"name": "g"},
            "subscriptions": [{"topic": {"name": "t"}, "expression": {"type": "TAG", "expression": "a"}}],
        },
    }


# ------------------------------------------------------------------------------------------- clients over Remoting


def test_what_a_broker_tells_and_asks_a_client_over_remoting(stage: ClusterStage) -> None:
    connection = OfflineConnection()
    channel = RemotingChannel(connection, "remote-1", LanguageCode.JAVA, 475)
    membership = ConsumerMembership(
        group="g", consume_type=ConsumeType.PASSIVELY, message_model=MessageModel.CLUSTERING
    )
    stage.cluster.consumer_joined(channel, membership)
    stage.clock.run_soon()
    assert connection.told == [(RequestCode.NOTIFY_CONSUMER_IDS_CHANGED, {"consumerGroup": "g"})]
    where = {"topic": "t", "group": "g", "timestamp": "5"}
    offsets = b'{"offsetTable":{{"brokerName":"broker-a","queueId":0,"topic":"t"}:7}}'
    relayed(stage, RequestCode.RESET_CONSUMER_CLIENT_OFFSET, where, offsets)
    code, fields = connection.told[-1]
    assert (code, fields["timestamp"]) == (RequestCode.RESET_CONSUMER_CLIENT_OFFSET, "5")
    assert json.parse(connection.bodies[-1])["offsetTable"] == {MessageQueue("t", "broker-a", 0): 7}
    asked = relayed(stage, RequestCode.GET_CONSUMER_STATUS_FROM_CLIENT, where)
    said = offsets.replace(b"offsetTable", b"messageQueueTable")
    connection.asked.pop()[3].resolve(Command(0, 1, body=said))
    assert json.parse(asked.body) == json.parse(said)
    message = {"consumerGroup": "g", "clientId": "remote-1", "msgId": "id", "brokerName": "broker-a", "topic": "t"}
    asked = relayed(stage, RequestCode.CONSUME_MESSAGE_DIRECTLY, message, b"record")
    code, fields, body, answer = connection.asked.pop()
    assert (code, fields, body) == (RequestCode.CONSUME_MESSAGE_DIRECTLY, message, b"record")
    answer.resolve(Command(0, 1, body=b'{"consumeResult":"CR_SUCCESS"}'))
    assert asked.body == b'{"consumeResult":"CR_SUCCESS"}'
    gone = {"consumerGroup": "g", "clientId": "nobody", "jstackEnable": "false"}
    with pytest.raises(SaturnError, match="not connected here"):
        relayed(stage, RequestCode.GET_CONSUMER_RUNNING_INFO, gone)
