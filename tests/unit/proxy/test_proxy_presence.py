"""Cluster mode: who is connected, what brokers hear of it, and how they reach a client through its Proxy."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from cluster_stage import ClusterStage, FakeCall
from proxy_fakes import message

from saturnmq.kernel.topic import GroupConfig
from saturnmq.proxy.heartbeats import CLIENT_ID
from saturnmq.testing.offline import Asked, OfflineConnection
from saturnmq.wire.proto import rocketmq_pb2 as pb
from saturnmq.wire.remoting import json
from saturnmq.wire.remoting.codes import RequestCode, ResponseCode
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
