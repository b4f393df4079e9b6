"""Auto-renew: messages stay invisible while their push consumer lives, and come back when it does not."""

from __future__ import annotations

import logging

import pytest
from proxy_fakes import Grpc, found, popped, receive_request, stream

from saturnmq.kernel.config import ProxyConfig
from saturnmq.kernel.errors import InvalidReceiptHandle, NoSuchMessage, ServiceUnavailable
from saturnmq.kernel.later import Later
from saturnmq.kernel.ports import ConsumeType, GroupMember, GroupMembers, MessageModel
from saturnmq.kernel.topic import CustomizedRetry, ExponentialRetry, GroupRetryPolicy
from saturnmq.proxy import receipts
from saturnmq.wire.proto import rocketmq_pb2 as pb


class Push(Grpc):
    """A push consumer that holds one message."""

    def __init__(self, reconsume_times: int = 0, config: ProxyConfig | None = None) -> None:
        super().__init__(config)
        self.broker.add_topic("t")
        subscription = pb.Subscription(group=pb.Resource(name="g"))
        self.settings(pb.Settings(client_type=pb.PUSH_CONSUMER, subscription=subscription))
        self.popped = popped(reconsume_times=reconsume_times)
        self.offset = self.popped.queue_offset
        self.broker.answers["pop"] = [found([self.popped])]
        _, (message,) = stream(self.receive(receive_request(auto_renew=True)))
        self.handle = message.system_properties.receipt_handle

    def live(self, seconds: int) -> None:
        """Time passes, heart-beats come."""
        for _ in range(seconds // 10):
            self.clock.advance(10_000)
            self.ask("Heartbeat", pb.HeartbeatRequest(), pb.HeartbeatResponse)

    def acknowledge(self) -> pb.Code:
        entry = pb.AckMessageEntry(receipt_handle=self.handle)
        request = pb.AckMessageRequest(group=pb.Resource(name="g"), topic=pb.Resource(name="t"), entries=[entry])
        return self.ask("AckMessage", request, pb.AckMessageResponse).status.code


def test_renewed_before_it_ends_and_for_as_long_as_needed() -> None:
    push = Push()
    push.live(40)
    assert push.broker.settled == []
    push.live(10)
    assert push.broker.settled == [("renew", push.offset, 60_000)]
    push.live(3_550)
    renewals = list(push.broker.settled)
    assert set(renewals) == {("renew", push.offset, 60_000)}
    assert 3_600 / 60 <= len(renewals) <= 3_600 / 45
    assert push.acknowledge() == pb.OK, "with the handle that it was given first"
    push.live(120)
    assert push.broker.settled == [*renewals, ("ack", push.offset)]
    assert len(push.proxy.receipts) == 0
    assert push.proxy.receipts._scan is None


def test_a_simple_consumer_renews_itself() -> None:
    client = Grpc()
    client.broker.add_topic("t")
    client.broker.answers["pop"] = [found([popped()])]
    client.receive(receive_request())
    assert len(client.proxy.receipts) == 0


def test_given_back_when_the_client_ends() -> None:
    push = Push()
    push.ask("NotifyClientTermination", pb.NotifyClientTerminationRequest(), pb.NotifyClientTerminationResponse)
    assert push.broker.settled == [("change", push.offset, 1_000)]
    push.clock.advance(120_000)
    assert len(push.broker.settled) == 1


def test_given_back_when_the_client_is_silent() -> None:
    push = Push()
    push.clock.advance(125_000)
    assert push.broker.settled[-1] == ("change", push.offset, 1_000)
    assert {settled[0] for settled in push.broker.settled[:-1]} == {"renew"}
    assert len(push.proxy.receipts) == 0


def test_a_client_that_went_to_another_proxy_keeps_what_it_holds() -> None:
    push = Push()
    there = GroupMember(client_id="client-1", address="", language="", version=0)
    push.broker.answers["members"] = [
        GroupMembers(
            members=[there],
            consume_type=ConsumeType.PASSIVELY,
            message_model=MessageModel.CLUSTERING,
            consume_from="",
            subscriptions={},
        )
    ]
    push.clock.advance(125_000)
    assert {settled[0] for settled in push.broker.settled} == {"renew"}
    assert len(push.proxy.receipts) == 0


def test_a_broker_that_keeps_leases_hears_early_who_holds_what() -> None:
    """Once, and again with each renewal."""
    push = Push()
    push.broker.keeps_leases = True
    push.live(40)
    assert push.broker.kept == [(push.offset, "client-1")]
    push.live(60)
    assert push.broker.kept == [(push.offset, "client-1")] * 2


def test_a_proxy_that_stops_hands_over_what_its_clients_hold() -> None:
    push = Push()
    push.broker.keeps_leases = True
    push.proxy.drain()
    assert push.broker.kept == [(push.offset, "client-1")]


def test_of_several_clients_only_the_one_that_went() -> None:
    push = Push()
    other = popped()
    push.headers = push.headers | {b"x-mq-client-id": b"client-2"}
    push.broker.answers["pop"] = [found([other])]
    push.receive(receive_request(auto_renew=True))
    push.ask("NotifyClientTermination", pb.NotifyClientTerminationRequest(), pb.NotifyClientTerminationResponse)
    assert push.broker.settled == [("change", other.queue_offset, 1_000)]
    assert len(push.proxy.receipts) == 1


@pytest.mark.parametrize("error", [InvalidReceiptHandle("acknowledged elsewhere"), NoSuchMessage("gone")])
def test_no_lease_any_more(error: Exception) -> None:
    push = Push()
    push.broker.answers["renew"] = [error]
    push.live(120)
    assert push.broker.settled == [("renew", push.offset, 60_000)]
    assert len(push.proxy.receipts) == 0


def test_tried_again_when_the_broker_cannot(caplog: pytest.LogCaptureFixture) -> None:
    push = Push()
    push.broker.answers["renew"] = [ServiceUnavailable("stopping"), None]
    with caplog.at_level(logging.WARNING):
        push.live(60)
    assert push.broker.settled == [("renew", push.offset, 60_000)] * 2
    assert "stopping" in caplog.text
    assert len(push.proxy.receipts) == 1


def test_not_for_ever() -> None:
    push = Push()
    push.broker.answers["renew"] = [ServiceUnavailable("stopping")] * 100
    push.live(120)
    assert len(push.proxy.receipts) == 0
    assert 3 <= len(push.broker.settled) <= 4, "every five seconds, until the lease has ended"


def test_a_renewal_that_is_answered_later() -> None:
    push = Push()
    renewed: Later[None] = Later()
    push.broker.answers["renew"] = [renewed, None, None, None]
    push.live(50)
    assert len(push.broker.settled) == 1
    renewed.resolve(None)
    push.live(40)
    assert len(push.broker.settled) == 1


def test_held_for_too_long(caplog: pytest.LogCaptureFixture) -> None:
    push = Push(reconsume_times=1, config=ProxyConfig(renew_max_time_millis=300_000))
    with caplog.at_level(logging.WARNING):
        push.live(400)
    assert push.broker.settled[-1] == ("change", push.offset, 30_000), "as after a second failure"
    assert push.broker.settled.count(push.broker.settled[-1]) == 1
    assert len(push.proxy.receipts) == 0
    assert "without acknowledging" in caplog.text


def test_what_the_client_settles_itself_is_renewed_no_more() -> None:
    push = Push()
    change = pb.ChangeInvisibleDurationRequest(
        group=pb.Resource(name="g"), topic=pb.Resource(name="t"), receipt_handle=push.handle
    )
    push.ask("ChangeInvisibleDuration", change, pb.ChangeInvisibleDurationResponse)
    assert len(push.proxy.receipts) == 0
    push = Push()
    bury = pb.ForwardMessageToDeadLetterQueueRequest(
        group=pb.Resource(name="g"), topic=pb.Resource(name="t"), receipt_handle=push.handle
    )
    push.ask("ForwardMessageToDeadLetterQueue", bury, pb.ForwardMessageToDeadLetterQueueResponse)
    assert len(push.proxy.receipts) == 0


def test_an_acknowledgement_that_failed_leaves_the_lease() -> None:
    push = Push()
    push.broker.answers["ack"] = [ServiceUnavailable("stopping")]
    assert push.acknowledge() == pb.INTERNAL_SERVER_ERROR
    assert len(push.proxy.receipts) == 1
    assert push.acknowledge() == pb.OK
    assert len(push.proxy.receipts) == 0


def test_what_cannot_be_given_back_comes_back_by_itself(caplog: pytest.LogCaptureFixture) -> None:
    push = Push()
    push.broker.answers["change_invisible"] = [ServiceUnavailable("stopping")]
    with caplog.at_level(logging.WARNING):
        push.proxy.sessions.leave("client-1")
    assert "not given back: stopping" in caplog.text


def test_a_client_that_leaves_gives_back_what_it_holds() -> None:
    push = Push()
    own = [push.popped, *(popped() for _ in range(2))]
    push.broker.answers["pop"] = [found(own[1:])]
    push.receive(receive_request(auto_renew=True))
    push.headers = push.headers | {b"x-mq-client-id": b"client-2"}
    push.broker.answers["pop"] = [found([popped()])]
    push.receive(receive_request(auto_renew=True))
    push.proxy.sessions.leave("client-1")
    assert sorted(push.broker.settled) == sorted(("change", one.queue_offset, 1000) for one in own)
    assert len(push.proxy.receipts) == 1
    push.proxy.sessions.leave("client-2")
    assert len(push.proxy.receipts) == len(push.proxy.receipts._held) == 0


def test_there_is_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receipts, "MAX_LEASES", 1)
    push = Push()
    status, _ = stream(push.receive(receive_request(auto_renew=True)))
    assert status.code == pb.TOO_MANY_REQUESTS
    assert stream(push.receive(receive_request()))[0].code == pb.MESSAGE_NOT_FOUND, "others hold nothing here"
    assert push.acknowledge() == pb.OK
    assert stream(push.receive(receive_request(auto_renew=True)))[0].code == pb.MESSAGE_NOT_FOUND


@pytest.mark.parametrize(
    ("failed", "wait_ms"), [(-1, 10_000), (0, 10_000), (1, 30_000), (15, 7_200_000), (99, 7_200_000)]
)
def test_waits_of_a_list_begin_with_the_third(failed: int, wait_ms: int) -> None:
    assert GroupRetryPolicy().delay_ms(failed) == wait_ms


def test_waits_of_a_short_list() -> None:
    policy = GroupRetryPolicy(customized_retry_policy=CustomizedRetry([7]))
    assert policy.delay_ms(0) == 7


@pytest.mark.parametrize(("failed", "wait_ms"), [(-1, 5_000), (0, 5_000), (3, 40_000), (99, 7_200_000)])
def test_waits_that_grow(failed: int, wait_ms: int) -> None:
    policy = GroupRetryPolicy(type="EXPONENTIAL", exponential_retry_policy=ExponentialRetry())
    assert policy.delay_ms(failed) == wait_ms
