"""ReceiveMessage: what is asked of the broker, what the stream carries, what happens to messages nobody gets."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from proxy_fakes import FakeCall, Grpc, found, popped, receive_request, stream

from saturnmq.kernel.config import ProxyConfig
from saturnmq.kernel.errors import SystemBusy
from saturnmq.kernel.handle import ReceiptHandle, TopicKind
from saturnmq.kernel.later import Later
from saturnmq.kernel.ports import ConsumeType, PopResult, PopStatus
from saturnmq.kernel.topic import GroupConfig
from saturnmq.net.grpc_server import GrpcStatus
from saturnmq.proxy import checks, receiving
from saturnmq.wire.proto import rocketmq_pb2 as pb


@pytest.fixture
def client() -> Grpc:
    client = Grpc()
    client.broker.add_topic("t")
    return client


def refused(client: Grpc, request: pb.ReceiveMessageRequest, call: FakeCall | None = None) -> pb.Status:
    status, messages = stream(client.receive(request, call))
    assert not messages
    return status


def test_what_a_consumer_gets(client: Grpc) -> None:
    properties = {
        "UNIQ_KEY": "id-1",
        "TAGS": "red",
        "KEYS": "k1 k2",
        "colour": "dark",
        "__SHARDINGKEY": "g1",
        "TRACE_CONTEXT": "00-1",
        "PGROUP": "t",
        "MSG_REGION": "r",
        "DLQ_ORIGIN_TOPIC": "old",
        "DLQ_ORIGIN_MESSAGE_ID": "old-id",
        "__BORNHOST": "laptop",
        "BORN_TIMESTAMP": "1",
    }
    one = popped(properties, reconsume_times=2)
    client.broker.answers["pop"] = [found([one])]
    status, (got,) = stream(client.receive(receive_request()))
    assert status == pb.Status(code=pb.OK, message="OK")
    assert got.topic == pb.Resource(name="t")
    assert got.body == b"hello"
    assert dict(got.user_properties) == {"colour": "dark"}
    handle = got.system_properties.receipt_handle
    assert got.system_properties == pb.SystemProperties(
        tag="red",
        keys=["k1", "k2"],
        message_id="id-1",
        body_digest=pb.Digest(type=pb.MD5, checksum="5D41402ABC4B2A76B9719D911017C592"),
        body_encoding=pb.IDENTITY,
        message_type=pb.FIFO,
        born_timestamp={"seconds": 1_600_000_000, "nanos": 123_000_000},
        born_host="laptop",
        store_timestamp={"seconds": 1_600_000_000, "nanos": 456_000_000},
        store_host="127.0.0.1:10911",
        receipt_handle=handle,
        queue_id=3,
        queue_offset=one.queue_offset,
        delivery_attempt=3,
        message_group="g1",
        trace_context="00-1",
        dead_letter_queue=pb.DeadLetterQueue(topic="old", message_id="old-id"),
    )
    assert ReceiptHandle.decode(handle) == ReceiptHandle(
        start_offset=one.start_offset,
        pop_ms=1_700_000_000_000,
        invisible_ms=60_000,
        revive_queue_id=2,
        topic_kind=TopicKind.NORMAL,
        broker_name="broker-a",
        queue_id=3,
        queue_offset=one.queue_offset,
        commit_log_offset=one.commit_log_offset,
    )


@pytest.mark.parametrize(
    ("properties", "kind"),
    [
        ({}, pb.NORMAL),
        ({"__SHARDINGKEY": "g"}, pb.FIFO),
        ({"TIMER_DELIVER_MS": "1600000000001"}, pb.DELAY),
        ({"DELAY": "3"}, pb.DELAY),
        ({"TRAN_MSG": "true"}, pb.TRANSACTION),
    ],
)
def test_message_types(client: Grpc, properties: dict[str, str], kind: pb.MessageType) -> None:
    client.broker.answers["pop"] = [found([popped(properties)])]
    _, (got,) = stream(client.receive(receive_request()))
    assert got.system_properties.message_type == kind
    due = got.system_properties.delivery_timestamp
    assert due.ToMilliseconds() == int(properties.get("TIMER_DELIVER_MS", 0))


def test_a_message_of_an_old_client_has_the_id_of_its_place(client: Grpc) -> None:
    one = popped({})
    client.broker.answers["pop"] = [found([one])]
    _, (got,) = stream(client.receive(receive_request()))
    assert got.system_properties.message_id == f"7F00000100002A9F{one.commit_log_offset:016X}"
    assert got.system_properties.born_host == "10.9.8.7"
    assert got.system_properties.body_encoding == pb.IDENTITY


def test_what_the_broker_is_asked(client: Grpc) -> None:
    client.broker.groups["g"] = GroupConfig(group_name="g", consume_message_orderly=True)
    request = receive_request(attempt_id="try-1")
    request.batch_size = 100
    request.filter_expression.expression = "a || b"
    client.receive(request)
    (asked,) = client.broker.popped
    assert (asked.group, asked.topic, asked.queue_id, asked.max_messages) == ("g", "t", -1, 32)
    assert (asked.invisible_ms, asked.from_latest, asked.fifo, asked.attempt_id) == (30_000, True, True, "try-1")
    assert asked.subscription.tags == {"a", "b"}
    assert asked.client_id == "client-1"


def test_nothing_there(client: Grpc) -> None:
    for status in (PopStatus.NOT_FOUND, PopStatus.POLLING_TIMEOUT):
        client.broker.answers["pop"] = [PopResult(status=status)]
        assert refused(client, receive_request()) == pb.Status(code=pb.MESSAGE_NOT_FOUND, message="no new message")


def test_too_many_wait(client: Grpc) -> None:
    client.broker.answers["pop"] = [PopResult(status=PopStatus.POLLING_FULL), SystemBusy("busy")]
    assert refused(client, receive_request()).code == pb.TOO_MANY_REQUESTS
    assert refused(client, receive_request()).code == pb.TOO_MANY_REQUESTS


def test_tags_with_one_hash(client: Grpc) -> None:
    # "Aa" and "BB" have the same Java hash: the broker lets both through
    one, other = popped({"TAGS": "Aa"}), popped({"TAGS": "BB"})
    client.broker.answers["pop"] = [found([one, other]), found([popped({})])]
    request = receive_request()
    request.filter_expression.expression = "Aa"
    _, (got,) = stream(client.receive(request))
    assert got.system_properties.tag == "Aa"
    assert client.broker.settled == [("ack", other.queue_offset)]
    assert refused(client, request) == pb.Status(code=pb.MESSAGE_NOT_FOUND, message="no match message")


def test_filters_by_properties_are_the_brokers_to_apply(client: Grpc) -> None:
    client.broker.answers["pop"] = [found([popped({"colour": "red"})])]
    request = receive_request()
    request.filter_expression.MergeFrom(pb.FilterExpression(type=pb.SQL, expression="colour = 'red'"))
    _, messages = stream(client.receive(request))
    assert len(messages) == 1
    wanted = client.broker.popped[0].subscription
    assert wanted.matches is not None
    assert [wanted.matches(properties) for properties in (b"colour\x01red\x02", b"colour\x01blue\x02")] == [True, False]


def test_tried_too_often(client: Grpc) -> None:
    client.broker.groups["g"] = GroupConfig(group_name="g", retry_max_times=2)
    last = popped(reconsume_times=2)
    over = popped({"UNIQ_KEY": "id-9"}, reconsume_times=3, kind=TopicKind.RETRY)
    client.broker.answers["pop"] = [found([last, over])]
    _, (got,) = stream(client.receive(receive_request()))
    assert got.system_properties.delivery_attempt == 3
    assert client.broker.settled == [
        ("bury", over.commit_log_offset, -1, "id-9", "%RETRY%g_t"),
        ("ack", over.queue_offset),
    ]


def test_what_cannot_be_settled_is_logged(client: Grpc, caplog: pytest.LogCaptureFixture) -> None:
    client.broker.answers["pop"] = [found([popped(reconsume_times=17)])]
    client.broker.answers["send_back"] = [SystemBusy("wait")]
    with caplog.at_level(logging.WARNING):
        assert refused(client, receive_request()).message == "no match message"
    assert "not settled" in caplog.text


def test_a_message_comes_later(client: Grpc) -> None:
    waiting: Later[PopResult] = Later()
    client.broker.answers["pop"] = [waiting]
    call = client.receive(receive_request())
    assert call.open
    assert not call.out
    waiting.resolve(found([popped()]))
    status, messages = stream(call)
    assert (status.code, len(messages)) == (pb.OK, 1)


def test_an_error_comes_later(client: Grpc) -> None:
    waiting: Later[PopResult] = Later()
    client.broker.answers["pop"] = [waiting]
    call = client.receive(receive_request())
    waiting.fail(SystemBusy("busy"))
    assert stream(call)[0].code == pb.TOO_MANY_REQUESTS


def test_a_bug_reaches_the_server(client: Grpc) -> None:
    waiting: Later[PopResult] = Later()
    client.broker.answers["pop"] = [waiting]
    client.receive(receive_request())
    with pytest.raises(ZeroDivisionError):
        waiting.fail(ZeroDivisionError())


def test_a_cancelled_call_cancels_the_pop(client: Grpc) -> None:
    cancelled: list[str] = []
    client.broker.answers["pop"] = [Later(lambda: cancelled.append("pop"))]
    client.receive(receive_request()).cancel()
    assert cancelled == ["pop"]


def test_a_proxy_that_stops_answers_who_waits(client: Grpc) -> None:
    """And takes no more messages for anybody."""
    cancelled: list[str] = []
    client.broker.answers["pop"] = [Later(lambda: cancelled.append("pop"))]
    call = client.receive(receive_request())
    assert client.proxy.drain()
    assert cancelled == ["pop"]
    for stopped in (call, client.receive(receive_request())):
        assert stream(stopped)[0].code == pb.MESSAGE_NOT_FOUND
    assert len(client.broker.popped) == 1
    assert not client.proxy.drain(), "nobody waits"


@pytest.mark.parametrize("auto_renew", [False, True])
def test_who_says_good_bye_takes_nothing_any_more(client: Grpc, auto_renew: bool) -> None:
    """What its long polls got would go back to the group, as one more attempt that nobody made."""
    cancelled: list[str] = []
    client.broker.answers["pop"] = [Later(lambda: cancelled.append("pop")), Later()]
    call = client.receive(receive_request(auto_renew=auto_renew))
    other = client.receive(receive_request(), FakeCall({**client.headers, b"x-mq-client-id": b"client-2"}))
    client.ask("NotifyClientTermination", pb.NotifyClientTerminationRequest(), pb.NotifyClientTerminationResponse)
    assert cancelled == ["pop"]
    assert stream(call)[0].code == pb.MESSAGE_NOT_FOUND
    assert other.open, "another client waits on"
    other.cancel()
    assert not client.proxy.drain(), "nobody waits"


def test_a_client_that_reads_slowly(client: Grpc) -> None:
    call = client.call()
    messages = [popped() for _ in range(3)]
    client.broker.answers["pop"] = [found(messages)]

    class Slow(FakeCall):
        def send(self, message: bytes) -> None:
            super().send(message)
            self.writable = len(self.out) == 1

    call = Slow(client.headers)
    client.receive(receive_request(), call)
    assert len(call.out) == 2, "the status and a message"
    assert call.on_writable is not None
    call.writable = True
    call.on_writable()
    assert len(call.out) == 3
    call.cancel()
    assert client.broker.settled == [("change", messages[2].queue_offset, 1000)]


def test_messages_that_wait_for_clients_to_read_are_bounded(client: Grpc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiving, "MAX_UNREAD_BYTES", 250)
    calls, messages = [], []
    for _ in range(3):
        messages.append(popped(body=bytes(100)))
        client.broker.answers["pop"] = [found([messages[-1]])]
        call = client.call()
        call.writable = False
        calls.append(client.receive(receive_request(), call))
    assert [call.ended is None for call in calls] == [True, True, False]
    assert calls[2].ended == (GrpcStatus.RESOURCE_EXHAUSTED, "too many messages wait for clients that do not read")
    assert client.broker.settled == [("change", messages[2].queue_offset, 1000)]
    calls[0].cancel()
    calls[1].writable = True
    assert calls[1].on_writable is not None
    calls[1].on_writable()
    assert stream(calls[1])[1][0].body == bytes(100)
    one = popped(body=bytes(200))
    client.broker.answers["pop"] = [found([one])]
    call = client.call()
    call.writable = False
    assert client.receive(receive_request(), call).ended is None, "there is room again"


def test_a_client_that_left_before_its_messages_came(client: Grpc) -> None:
    waiting: Later[PopResult] = Later()
    client.broker.answers["pop"] = [waiting]
    call = client.receive(receive_request())
    call.open = False  # without a word: on_cancel comes only afterwards
    messages = [popped(), popped()]
    waiting.resolve(found(messages))
    assert client.broker.settled == [("change", one.queue_offset, 1000) for one in messages]


# ---------------------------------------------------------------------------------------------- how long to wait

WAITS: list[tuple[dict[str, Any], int | None, int]] = [
    ({}, None, 20_000),  # no deadline: as long as may be
    ({}, 30_000, 20_000),
    ({}, 11_500, 10_000),  # half a request timeout is left for the way
    ({}, 6_000, 5_000),
    ({}, 5_100, 4_900),
    ({"long_polling_timeout": {"seconds": 15}}, 30_000, 15_000),
    ({"long_polling_timeout": {"seconds": 60}}, 90_000, 20_000),
    ({"long_polling_timeout": {"seconds": 1}}, 90_000, 5_000),
    ({"long_polling_timeout": {"seconds": 15}}, 8_000, 7_800),
    ({"long_polling_timeout": {"seconds": 15}}, None, 15_000),
]


@pytest.mark.parametrize(("fields", "left_ms", "wait_ms"), WAITS)
def test_how_long_it_waits(client: Grpc, fields: dict[str, Any], left_ms: int | None, wait_ms: int) -> None:
    call = client.call()
    call.deadline_ms = None if left_ms is None else client.clock.steady_ms() + left_ms
    client.receive(receive_request(**fields), call)
    assert client.broker.popped[0].wait_ms == wait_ms


@pytest.mark.parametrize(
    ("version", "code"),
    [(b"5.0.3", pb.ILLEGAL_POLLING_TIME), (b"5.0.2", pb.BAD_REQUEST), (b"", pb.BAD_REQUEST)],
)
def test_too_little_time(client: Grpc, version: bytes, code: pb.Code) -> None:
    client.headers = client.headers | {b"x-mq-client-version": version}
    call = client.call()
    call.deadline_ms = client.clock.steady_ms() + 4_999
    assert refused(client, receive_request(), call).code == code


@pytest.mark.parametrize(
    ("milliseconds", "accepted"), [(9_999, False), (10_000, True), (43_200_000, True), (43_200_001, False), (-1, False)]
)
def test_invisible_durations(client: Grpc, milliseconds: int, accepted: bool) -> None:
    request = receive_request()
    request.invisible_duration.FromMilliseconds(milliseconds)
    expected = pb.MESSAGE_NOT_FOUND if accepted else pb.ILLEGAL_INVISIBLE_TIME
    assert refused(client, request).code == expected


def test_what_is_wrong_is_said(client: Grpc) -> None:
    request = receive_request()
    request.message_queue.topic.name = "nowhere"
    assert refused(client, request).code == pb.TOPIC_NOT_FOUND
    request.message_queue.topic.name = "TBW102"
    assert refused(client, request).code == pb.ILLEGAL_TOPIC
    request = receive_request()
    request.group.name = "CID_RMQ_SYS_x"
    assert refused(client, request).code == pb.ILLEGAL_CONSUMER_GROUP
    request.group.name = ""
    assert refused(client, request).code == pb.ILLEGAL_CONSUMER_GROUP
    request = receive_request()
    request.filter_expression.expression = "||"
    assert refused(client, request).code == pb.ILLEGAL_FILTER_EXPRESSION
    request.filter_expression.type = pb.SQL
    status = refused(client, request)
    assert (status.code, "at character 1" in status.message) == (pb.ILLEGAL_FILTER_EXPRESSION, True)
    request.filter_expression.MergeFromString(b"\x08\x09")  # a type of the future
    assert refused(client, request).code == pb.ILLEGAL_FILTER_EXPRESSION
    request = receive_request(attempt_id="x" * 257)
    assert refused(client, request).code == pb.BAD_REQUEST
    client.broker.add_topic("t", perm=2)
    assert refused(client, receive_request()).code == pb.FORBIDDEN
    client.headers = {}
    assert refused(client, receive_request()).code == pb.CLIENT_ID_REQUIRED


@pytest.mark.parametrize(("tags", "code"), [(600, pb.MESSAGE_NOT_FOUND), (2000, pb.ILLEGAL_FILTER_EXPRESSION)])
def test_long_filters(client: Grpc, tags: int, code: pb.Code) -> None:
    request = receive_request()
    request.filter_expression.expression = "||".join(f"tag-{number:04}" for number in range(tags))
    known = checks._compiled.cache_info().currsize
    assert refused(client, request).code == code
    assert checks._compiled.cache_info().currsize == known, "are not kept"


def test_a_group_that_does_not_exist(client: Grpc) -> None:
    client.broker.auto_create_groups = False
    status = refused(client, receive_request())
    assert status.code == pb.CONSUMER_GROUP_NOT_FOUND
    assert "updateSubGroup" in status.message


def test_a_broker_that_is_not_here(client: Grpc) -> None:
    request = receive_request()
    request.message_queue.broker.name = "elsewhere"
    client.broker.answers["pop"] = [found([popped()])]
    assert stream(client.receive(request))[0].code == pb.OK


# ------------------------------------------------------------------------------------ a client that nobody knows


@pytest.mark.parametrize(("auto_renew", "consume_type"), [(False, ConsumeType.ACTIVELY), (True, ConsumeType.PASSIVELY)])
def test_settings_are_rebuilt_from_the_request(client: Grpc, auto_renew: bool, consume_type: ConsumeType) -> None:
    client.broker.answers["pop"] = [found([popped()])]
    assert stream(client.receive(receive_request(auto_renew=auto_renew)))[0].code == pb.OK
    ((client_id, membership),) = client.broker.consumers
    assert (client_id, membership.group, membership.consume_type) == ("client-1", "g", consume_type)
    assert [subscription.topic for subscription in membership.subscriptions] == ["t"]
    client.receive(receive_request(auto_renew=auto_renew))
    assert len(client.broker.consumers) == 1, "known now"


# ------------------------------------------------------------------------------------------------------ auto-renew


def test_auto_renew_has_a_time_of_its_own(client: Grpc) -> None:
    client.receive(receive_request(auto_renew=True))
    assert client.broker.popped[0].invisible_ms == 60_000


def test_auto_renew_switched_off() -> None:
    client = Grpc(ProxyConfig(enable_proxy_auto_renew=False))
    client.broker.add_topic("t")
    assert refused(client, receive_request(auto_renew=True)).code == pb.ILLEGAL_INVISIBLE_TIME


def test_a_push_consumer_that_ended_while_it_waited(client: Grpc) -> None:
    waiting: Later[PopResult] = Later()
    client.broker.answers["pop"] = [waiting]
    call = client.receive(receive_request(auto_renew=True))
    client.proxy.sessions.leave("client-1")
    one = popped()
    waiting.resolve(found([one]))
    status, messages = stream(call)
    assert (status.code, messages) == (pb.MESSAGE_NOT_FOUND, [])
    assert client.broker.settled == [("change", one.queue_offset, 1000)]
    assert len(client.proxy.receipts) == 0
