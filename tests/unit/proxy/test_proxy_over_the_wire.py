"""Cluster mode: RPCs, receipt handles and clients of a Proxy that has a broker's answers over the wire alone."""

from __future__ import annotations

import pytest
from cluster_stage import ClusterStage, handle_of
from proxy_fakes import receive_request

from saturnmq.kernel.topic import GroupConfig
from saturnmq.wire.proto import rocketmq_pb2 as pb

TOPIC, GROUP = pb.Resource(name="t"), pb.Resource(name="g")
QUEUE = pb.MessageQueue(topic=TOPIC, broker=pb.Broker(name="broker-a"))


@pytest.fixture
def stage() -> ClusterStage:
    stage = ClusterStage()
    stage.add_topic("t")
    stage.brokers["broker-a"].broker.groups.put(GroupConfig(group_name="g"))
    stage.take()  # the group begins at the end
    return stage


def held(stage: ClusterStage, body: bytes = b"x") -> pb.Message:
    stage.send(body)
    [received] = stage.take()
    assert received.body == body
    return received


def waits(stage: ClusterStage) -> bool:
    """Whether there is nothing for the group."""
    call = stage.receive(receive_request())
    stage.clock.run_soon()
    call.cancel()
    return call.ended is None


def acknowledged(stage: ClusterStage, handle: str, group: str = "g") -> pb.Status:
    request = pb.AckMessageRequest(group=pb.Resource(name=group), topic=TOPIC)
    request.entries.add(message_id="id", receipt_handle=handle)
    [entry] = stage.unary("AckMessage", request, pb.AckMessageResponse).entries
    return entry.status


def hidden(stage: ClusterStage, handle: str, seconds: int) -> str:
    """The handle from then on."""
    request = pb.ChangeInvisibleDurationRequest(group=GROUP, topic=TOPIC, receipt_handle=handle)
    request.invisible_duration.FromSeconds(seconds)
    answer = stage.unary("ChangeInvisibleDuration", request, pb.ChangeInvisibleDurationResponse)
    assert answer.status.code == pb.OK
    return answer.receipt_handle


def buried(stage: ClusterStage, received: pb.Message) -> pb.Code:
    request = pb.ForwardMessageToDeadLetterQueueRequest(
        group=GROUP, topic=TOPIC, receipt_handle=handle_of(received), message_id=received.system_properties.message_id
    )
    answer = pb.ForwardMessageToDeadLetterQueueResponse
    return stage.unary("ForwardMessageToDeadLetterQueue", request, answer).status.code


# ----------------------------------------------------------------------------------------------------------- RPCs


def test_a_consumer_that_keeps_its_own_place(stage: ClusterStage) -> None:
    for body in (b"0", b"1", b"2"):
        stage.send(body)
    call = stage.start("PullMessage", pb.PullMessageRequest(group=GROUP, message_queue=QUEUE, offset=1, batch_size=32))
    stage.clock.run_soon()
    parts = [pb.PullMessageResponse.FromString(data) for data in call.out]
    assert [part.message.body for part in parts if part.HasField("message")] == [b"1", b"2"]
    assert parts[-1].next_offset == 3
    at = pb.QueryOffsetRequest(message_queue=QUEUE, query_offset_policy=pb.END)
    assert stage.unary("QueryOffset", at, pb.QueryOffsetResponse).offset == 3
    at.query_offset_policy = pb.TIMESTAMP
    at.timestamp.FromMilliseconds(0)
    assert stage.unary("QueryOffset", at, pb.QueryOffsetResponse).offset == 0
    told = pb.UpdateOffsetRequest(group=GROUP, message_queue=QUEUE, offset=2)
    assert stage.unary("UpdateOffset", told, pb.UpdateOffsetResponse).status.code == pb.OK
    asked = pb.GetOffsetRequest(group=GROUP, message_queue=QUEUE)
    assert stage.unary("GetOffset", asked, pb.GetOffsetResponse).offset == 2


def test_recall(stage: ClusterStage) -> None:
    stage.add_topic("later", kind="DELAY")
    due = {"seconds": stage.clock.now_ms() // 1000 + 60}
    [entry] = stage.send(topic="later", message_type=pb.DELAY, delivery_timestamp=due).entries
    request = pb.RecallMessageRequest(topic=pb.Resource(name="later"), recall_handle=entry.recall_handle)
    answer = stage.unary("RecallMessage", request, pb.RecallMessageResponse)
    assert (answer.status.code, answer.message_id) == (pb.OK, entry.message_id)
    stage.clock.advance(61_000)
    assert stage.stored("later") == []


def test_the_dead_letters_free_a_fifo_queue(stage: ClusterStage) -> None:
    stage.brokers["broker-a"].broker.groups.put(GroupConfig(group_name="g", consume_message_orderly=True))
    first = held(stage, b"first")
    stage.send(b"second")
    assert waits(stage)
    assert buried(stage, first) == pb.OK
    assert [received.body for received in stage.take()] == [b"second"]
    assert stage.stored("%DLQ%g") == [("broker-a", b"first")]


# ------------------------------------------------------------------------------------------------- receipt handles


def test_an_acknowledgement_is_repeated_within_the_lease(stage: ClusterStage) -> None:
    handle = handle_of(held(stage))
    for _ in range(2):
        assert acknowledged(stage, handle).code == pb.OK
    stage.start_proxy()
    assert acknowledged(stage, handle).code == pb.OK, "through whichever Proxy"
    stage.clock.advance(30_000)
    assert acknowledged(stage, handle).code == pb.INVALID_RECEIPT_HANDLE


def test_handles_say_what_they_are(stage: ClusterStage) -> None:
    handle = handle_of(held(stage))
    fields = handle.split(" ")

    def forged(field: int, text: str) -> str:
        return " ".join([*fields[:field], text, *fields[field + 1 :]])

    def refused(handle: str, group: str = "g") -> str:
        status = acknowledged(stage, handle, group)
        assert status.code == pb.INVALID_RECEIPT_HANDLE
        return status.message

    assert "8 or 9 fields" in refused("forged")
    assert "cannot be read" in refused(forged(1, "noon"))
    assert "not that of its current delivery" in refused(forged(1, "1"))
    assert "does not exist" in refused(forged(7, "99"))
    assert "never received by this group" in refused(handle, "strangers")
    second = hidden(stage, handle, 15)
    assert "its invisible time was changed" in refused(handle)
    stage.clock.advance(15_001)  # it began a millisecond after the first
    assert "expired" in refused(second)
    [again] = stage.take()
    assert "expired" in refused(second), "delivered again or not"
    assert acknowledged(stage, handle_of(again)).code == pb.OK


# ------------------------------------------------------------------------------------------------ a Proxy that is new


@pytest.mark.parametrize("orderly", [False, True])
def test_a_client_in_mid_stream_loses_nothing(stage: ClusterStage, orderly: bool) -> None:
    """It waits for messages and holds one; the Proxy is killed, and the next one has heard nothing of it."""
    broker = stage.brokers["broker-a"].broker
    broker.groups.put(GroupConfig(group_name="g", consume_message_orderly=orderly))
    first = held(stage, b"first")
    assert waits(stage)
    stage.start_proxy()
    stage.send(b"second")
    if orderly:
        assert waits(stage), "the first is in somebody's hands"
    assert acknowledged(stage, handle_of(first)).code == pb.OK
    [second] = stage.take()
    assert second.body == b"second"
    assert acknowledged(stage, handle_of(second)).code == pb.OK
    members = broker.members("g")
    assert members is not None
    assert members.client_ids() == ["client-1"], "known again, before its settings come"
