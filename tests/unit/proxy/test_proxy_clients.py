"""Telemetry, Heartbeat, NotifyClientTermination: what clients are told, and who is known for how long."""

from __future__ import annotations

from typing import Any

import pytest
from proxy_fakes import Grpc, found, popped, receive_request, stream

from saturnmq.kernel.config import ProxyConfig
from saturnmq.kernel.errors import NoPermission, NotSupported, SaturnError, ServiceUnavailable, SystemBusy
from saturnmq.kernel.later import Later
from saturnmq.kernel.ports import ConsumeType, MessageModel, SendRequest
from saturnmq.kernel.topic import CustomizedRetry, ExponentialRetry, GroupConfig, GroupRetryPolicy
from saturnmq.net.grpc_server import GrpcStatus
from saturnmq.proxy import codes, grpc, sessions
from saturnmq.wire.proto import rocketmq_pb2 as pb


@pytest.fixture
def client() -> Grpc:
    client = Grpc()
    client.broker.add_topic("t")
    return client


def consumer(kind: pb.ClientType = pb.SIMPLE_CONSUMER, expression: str = "a || b", **fields: Any) -> pb.Settings:
    entry = pb.SubscriptionEntry(
        topic=pb.Resource(name="t"), expression=pb.FilterExpression(type=pb.TAG, expression=expression)
    )
    subscription = pb.Subscription(group=pb.Resource(name="g"), subscriptions=[entry])
    return pb.Settings(client_type=kind, subscription=subscription, **fields)


def producer(*topics: str, **fields: Any) -> pb.Settings:
    publishing = pb.Publishing(topics=[pb.Resource(name=topic) for topic in topics])
    return pb.Settings(client_type=pb.PRODUCER, publishing=publishing, **fields)


def beat(client: Grpc) -> pb.Code:
    request = pb.HeartbeatRequest(group=pb.Resource(name="g"), client_type=pb.SIMPLE_CONSUMER)
    return client.ask("Heartbeat", request, pb.HeartbeatResponse).status.code


def end(client: Grpc) -> pb.Code:
    request = pb.NotifyClientTerminationRequest(group=pb.Resource(name="g"))
    return client.ask("NotifyClientTermination", request, pb.NotifyClientTerminationResponse).status.code


# -------------------------------------------------------------------------------------------------------- settings


def test_a_producer(client: Grpc) -> None:
    sent = producer("t", "u", user_agent=pb.UA(language=pb.PYTHON, version="5.1.2"))
    sent.request_timeout.FromSeconds(3)
    sent.backoff_policy.max_attempts = 99
    sent.access_point.scheme = pb.IPv4
    told = client.settings(sent)
    assert told.publishing.max_body_size == 4 * 1024 * 1024
    assert told.publishing.validate_message_type
    assert [topic.name for topic in told.publishing.topics] == ["t", "u"]
    policy = told.backoff_policy
    assert policy.max_attempts == 3
    assert policy.exponential_backoff.initial.ToMilliseconds() == 10
    assert policy.exponential_backoff.max.ToMilliseconds() == 1000
    assert policy.exponential_backoff.multiplier == 2
    assert told.HasField("metric")
    assert not told.metric.on
    # what the client said of itself comes back
    assert told.request_timeout == sent.request_timeout
    assert told.user_agent == sent.user_agent
    assert told.access_point == sent.access_point
    assert client.broker.producers == [("client-1", "t"), ("client-1", "u")]


def test_a_producer_without_topics(client: Grpc) -> None:
    assert client.settings(producer()).HasField("metric")
    assert beat(client) == pb.OK


@pytest.mark.parametrize(
    ("kind", "consume_type"), [(pb.SIMPLE_CONSUMER, ConsumeType.ACTIVELY), (pb.PUSH_CONSUMER, ConsumeType.PASSIVELY)]
)
def test_a_consumer(client: Grpc, kind: pb.ClientType, consume_type: ConsumeType) -> None:
    told = client.settings(consumer(kind))
    assert told.subscription.receive_batch_size == 32
    assert told.subscription.long_polling_timeout.ToSeconds() == 20
    assert told.subscription.HasField("fifo")
    assert not told.subscription.fifo
    assert told.subscription.group.name == "g"
    assert (told.subscription.lite_subscription_quota, told.subscription.max_lite_topic_size) == (2000, 64)
    assert told.backoff_policy.max_attempts == 17
    waits = [wait.ToMilliseconds() for wait in told.backoff_policy.customized_backoff.next]
    assert (len(waits), waits[0], waits[-1]) == (18, 1_000, 7_200_000)
    assert told.HasField("metric")
    ((client_id, membership),) = client.broker.consumers
    assert (client_id, membership.group, membership.consume_type) == ("client-1", "g", consume_type)
    assert membership.message_model is MessageModel.CLUSTERING
    assert membership.subscriptions[0].tags == {"a", "b"}


@pytest.mark.parametrize(("expression", "is_right"), [("a > 1", True), ("a >", False)])
def test_a_consumer_with_a_filter_over_properties(client: Grpc, expression: str, is_right: bool) -> None:
    """A wrong one is taken: what is wrong is said to who receives, which clients understand better."""
    settings = consumer()
    settings.subscription.subscriptions[0].expression.CopyFrom(pb.FilterExpression(type=pb.SQL, expression=expression))
    client.settings(settings)
    ((_, membership),) = client.broker.consumers
    [subscription] = membership.subscriptions
    assert (subscription.expression, subscription.matches is not None) == (expression, is_right)


def test_a_group_with_settings_of_its_own(client: Grpc) -> None:
    policy = GroupRetryPolicy(type="EXPONENTIAL", exponential_retry_policy=ExponentialRetry(1_000, 60_000, 3))
    client.broker.groups["g"] = GroupConfig(
        group_name="g", consume_message_orderly=True, retry_max_times=4, group_retry_policy=policy
    )
    told = client.settings(consumer(pb.PUSH_CONSUMER))
    assert told.subscription.fifo
    assert told.backoff_policy.max_attempts == 5
    backoff = told.backoff_policy.exponential_backoff
    assert (backoff.initial.ToMilliseconds(), backoff.max.ToMilliseconds(), backoff.multiplier) == (1_000, 60_000, 3)
    client.broker.groups["g"].group_retry_policy = GroupRetryPolicy(
        type="CUSTOMIZED", customized_retry_policy=CustomizedRetry([1_500])
    )
    told = client.settings(consumer(pb.PUSH_CONSUMER))
    assert [wait.ToMilliseconds() for wait in told.backoff_policy.customized_backoff.next] == [1_500]


@pytest.mark.parametrize("kind", ["EXPONENTIAL", "CUSTOMIZED"])
def test_a_strategy_is_always_told(client: Grpc, kind: str) -> None:
    client.broker.groups["g"] = GroupConfig(group_name="g", group_retry_policy=GroupRetryPolicy(type=kind))
    told = client.settings(consumer())
    assert told.backoff_policy.WhichOneof("strategy") == f"{kind.lower()}_backoff"


@pytest.mark.parametrize("kind", ["EXPONENTIAL", "CUSTOMIZED"])
@pytest.mark.parametrize("number", [-(1 << 63), (1 << 63) - 1])
def test_a_group_whose_numbers_no_client_can_read(client: Grpc, kind: str, number: int) -> None:
    policy = GroupRetryPolicy(
        type=kind,
        exponential_retry_policy=ExponentialRetry(number, number, abs(number)),
        customized_retry_policy=CustomizedRetry([number]),
    )
    client.broker.groups["g"] = GroupConfig(group_name="g", retry_max_times=(1 << 31) - 1, group_retry_policy=policy)
    told = client.settings(consumer()).backoff_policy
    assert told.max_attempts == (1 << 31) - 1
    seconds = {told.exponential_backoff.max.seconds, *(wait.seconds for wait in told.customized_backoff.next)}
    assert (0 if number < 0 else 315_576_000_000) in seconds


def test_a_group_whose_list_of_waits_is_empty(client: Grpc) -> None:
    policy = GroupRetryPolicy(customized_retry_policy=CustomizedRetry([]))
    client.broker.groups["g"] = GroupConfig(group_name="g", group_retry_policy=policy)
    assert len(client.settings(consumer()).backoff_policy.customized_backoff.next) == 18


def test_a_group_that_does_not_exist(client: Grpc) -> None:
    client.broker.auto_create_groups = False
    status, text = refused(client, consumer())
    assert status == GrpcStatus.INVALID_ARGUMENT
    assert "the consumer group g does not exist: create it" in text
    assert len(client.proxy.sessions) == 0


def test_limits_of_the_server_are_told() -> None:
    client = Grpc(
        ProxyConfig(
            max_message_size=1000,
            enable_topic_message_type_check=False,
            grpc_client_producer_max_attempts=7,
            grpc_client_consumer_long_polling_batch_size=9,
        )
    )
    told = client.settings(producer())
    assert (told.publishing.max_body_size, told.publishing.validate_message_type) == (1000, False)
    assert told.backoff_policy.max_attempts == 7
    assert client.settings(consumer()).subscription.receive_batch_size == 9


def test_settings_that_have_to_wait(client: Grpc) -> None:
    config: Later[GroupConfig | None] = Later()
    client.broker.answers["group_config"] = [config]
    call = client.telemetry()
    client.tell(call, pb.TelemetryCommand(settings=consumer()))
    assert not call.out
    config.resolve(GroupConfig(group_name="g", retry_max_times=1))
    assert pb.TelemetryCommand.FromString(call.out[0]).settings.backoff_policy.max_attempts == 2


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (SystemBusy("why"), GrpcStatus.RESOURCE_EXHAUSTED),
        (NoPermission("why"), GrpcStatus.INVALID_ARGUMENT),
        (ServiceUnavailable("why"), GrpcStatus.INTERNAL),
    ],
)
def test_settings_that_fail_later(client: Grpc, error: SaturnError, status: GrpcStatus) -> None:
    config: Later[GroupConfig | None] = Later()
    client.broker.answers["group_config"] = [config]
    call = client.telemetry()
    client.tell(call, pb.TelemetryCommand(settings=consumer()))
    config.fail(error)
    assert call.ended == (status, "why")


def test_fields_of_the_future_come_back(client: Grpc) -> None:
    call = client.telemetry()
    unknown = b"\xa2\x06\x03new"  # field 100, a string
    settings = producer().SerializeToString() + unknown
    client.tell(call, b"\x12" + bytes([len(settings)]) + settings)
    assert unknown in call.out[0]


def with_properties(**properties: str) -> pb.Settings:
    settings = producer()
    settings.client_properties.update(properties)
    return settings


def refused(client: Grpc, settings: pb.Settings) -> tuple[GrpcStatus, str]:
    """How a telemetry stream ends that says these settings."""
    call = client.telemetry()
    client.tell(call, pb.TelemetryCommand(settings=settings))
    assert call.ended is not None
    assert not call.out
    return call.ended


BAD_SETTINGS = [
    pb.Settings(client_type=pb.PRODUCER),
    producer("TBW102"),
    producer("a b"),
    consumer(expression="||"),
    pb.Settings(client_type=pb.PUSH_CONSUMER, subscription=pb.Subscription(group=pb.Resource(name="a b"))),
    with_properties(**{f"k{index}": "" for index in range(33)}),
    with_properties(**{"1": "x"}),
    with_properties(**{"k" * 65: "x"}),
    with_properties(k="x" * 257),
    with_properties(**{f"k{index}": "x" * 200 for index in range(21)}),
]


@pytest.mark.parametrize("settings", BAD_SETTINGS)
def test_settings_that_are_wrong_end_the_stream(client: Grpc, settings: pb.Settings) -> None:
    assert refused(client, settings)[0] == GrpcStatus.INVALID_ARGUMENT
    assert len(client.proxy.sessions) == 0


def test_client_properties_within_their_limits(client: Grpc) -> None:
    sent = with_properties(**{f"k{index}": "x" * 100 for index in range(32)})
    assert client.settings(sent).client_properties == sent.client_properties


@pytest.mark.parametrize("kind", [pb.LITE_PUSH_CONSUMER, pb.LITE_SIMPLE_CONSUMER])
def test_clients_of_a_later_version(client: Grpc, kind: pb.ClientType) -> None:
    status, text = refused(client, consumer(kind))
    assert status == GrpcStatus.UNIMPLEMENTED
    assert "not supported by this version" in text


def test_a_stream_without_a_client_id(client: Grpc) -> None:
    for client_id in (b"", b"x" * 513):
        client.headers = {b"x-mq-client-id": client_id}
        status, text = refused(client, producer())
        assert status == GrpcStatus.INVALID_ARGUMENT
        assert "client" in text


def test_bytes_that_are_no_command(client: Grpc) -> None:
    call = client.telemetry()
    client.tell(call, b"\xff\xff\xff")
    assert call.ended is not None
    assert call.ended[0] == GrpcStatus.INVALID_ARGUMENT


def test_answers_that_nobody_waits_for(client: Grpc) -> None:
    call = client.telemetry()
    for command in (
        pb.TelemetryCommand(thread_stack_trace=pb.ThreadStackTrace(nonce="1")),
        pb.TelemetryCommand(verify_message_result=pb.VerifyMessageResult(nonce="1")),
        pb.TelemetryCommand(),
    ):
        client.tell(call, command)
    assert call.open
    assert not call.out


# ---------------------------------------------------------------------------------------------------------- lives


def test_a_heartbeat_keeps_alive(client: Grpc) -> None:
    client.settings(consumer())
    for _ in range(30):
        client.clock.advance(10_000)
        assert beat(client) == pb.OK
    assert len(client.broker.consumers) == 31, "and tells the broker so"
    assert not client.broker.left


def test_a_heartbeat_of_nobody(client: Grpc) -> None:
    assert beat(client) == pb.UNRECOGNIZED_CLIENT_TYPE


def test_silence_ends_a_client(client: Grpc) -> None:
    client.settings(consumer())
    client.clock.advance(119_000)
    assert not client.broker.left
    client.clock.advance(6_000)
    assert client.broker.left == [("client-1", None)]
    assert beat(client) == pb.UNRECOGNIZED_CLIENT_TYPE


def test_nothing_is_looked_at_while_nobody_is_there(client: Grpc) -> None:
    client.settings(consumer())
    end(client)
    client.clock.advance(10_000)
    fired: list[int] = []
    client.clock.call_at(client.clock.now_ms() + 3_600_000, lambda: fired.append(1))
    client.clock.advance(3_600_000)
    assert fired
    assert client.proxy.sessions._scan is None


def test_a_client_says_that_it_ends(client: Grpc) -> None:
    client.settings(consumer())
    assert end(client) == pb.OK
    assert client.broker.left == [("client-1", None)]
    assert end(client) == pb.OK, "whoever is gone may say so twice"


def test_settings_anew(client: Grpc) -> None:
    call = client.telemetry()
    client.settings(producer("t", "u"), call)
    client.settings(producer("u", "v"), call)
    assert client.broker.left == [("client-1", "t")]
    client.settings(consumer(), call)
    assert sorted(group or "" for _, group in client.broker.left[1:]) == ["u", "v"]
    changed = consumer()
    changed.subscription.group.name = "g2"
    client.settings(changed, call)
    assert client.broker.left[-1] == ("client-1", "g")


@pytest.mark.parametrize(("said", "known"), [(b"GO", "GO"), (b"HTTP", "HTTP"), (b"KLINGON", "OTHER"), (b"", "OTHER")])
def test_languages(client: Grpc, said: bytes, known: str) -> None:
    client.headers = client.headers | {b"x-mq-language": said}
    client.settings(consumer())
    session = client.proxy.sessions.get("client-1")
    assert session is not None
    assert session.language == known


def test_streams_come_and_go(client: Grpc) -> None:
    """A client reconnects, or two have one id: who they are does not hang on a stream."""
    first, second = client.telemetry(), client.telemetry()
    client.settings(consumer(), first)
    client.settings(consumer(), second)
    first.cancel()
    assert second.on_half_close is not None
    second.on_half_close()
    assert second.ended == (GrpcStatus.OK, "")
    assert beat(client) == pb.OK
    assert not client.broker.left


def test_the_proxy_stops(client: Grpc) -> None:
    """What push consumers hold stays theirs: they settle it when they are back, and nobody gets it twice."""
    client.settings(consumer(pb.PUSH_CONSUMER))
    client.broker.answers["pop"] = [found([popped()])]
    client.receive(receive_request(auto_renew=True))
    client.proxy.close()
    client.clock.advance(3_600_000)
    assert client.broker.settled == []
    assert client.broker.left == []


def test_what_clients_say_of_themselves_is_bounded(client: Grpc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "MAX_SETTINGS_BYTES", 2000)
    for name in (b"a", b"b"):
        client.headers = {b"x-mq-client-id": name}
        client.settings(producer())
    assert refused(client, producer("t" * 100, *("u" * 100,) * 10))[0] == GrpcStatus.RESOURCE_EXHAUSTED
    client.settings(producer("t"))  # those who are in may stay, and say it anew
    client.headers = {b"x-mq-client-id": b"c"}
    client.settings(producer())
    client.headers = {b"x-mq-client-id": b"d"}
    assert stream(client.receive(receive_request()))[0].code == pb.TOO_MANY_REQUESTS
    client.headers = {b"x-mq-client-id": b"a"}
    end(client)
    client.headers = {b"x-mq-client-id": b"d"}
    client.settings(producer())


def test_settings_are_not_endless(client: Grpc) -> None:
    assert refused(client, producer(*(f"topic-{index}" for index in range(100_000))))[0] == GrpcStatus.INVALID_ARGUMENT
    assert len(client.settings(producer(*(f"topic-{index}" for index in range(10_000)))).publishing.topics) == 10_000


def test_a_changed_filter_is_a_newer_one(client: Grpc) -> None:
    """Brokers keep the newest subscription of a group."""
    client.settings(consumer(expression="a"))
    client.clock.advance(1000)
    client.settings(consumer(expression="b"))
    first, second = (membership.subscriptions[0] for _, membership in client.broker.consumers)
    assert second.version == first.version + 1000 == client.clock.now_ms()


def endpoints(host: str, port: int) -> pb.Endpoints:
    return pb.Endpoints(scheme=pb.DOMAIN_NAME, addresses=[pb.Address(host=host, port=port)])


@pytest.mark.parametrize(
    ("config", "metric"),
    [
        (ProxyConfig(), pb.Metric(on=False)),
        (
            ProxyConfig(metric_collector_mode="on", metric_collector_address="collector:4317"),
            pb.Metric(on=True, endpoints=endpoints("collector", 4317)),
        ),
        (ProxyConfig(metric_collector_mode="proxy"), pb.Metric(on=True, endpoints=endpoints("mq.example", 8081))),
    ],
)
def test_where_clients_send_their_metrics(config: ProxyConfig, metric: pb.Metric) -> None:
    sent = consumer()
    sent.access_point.CopyFrom(endpoints("mq.example", 8081))
    assert Grpc(config).settings(sent).metric == metric


def test_request_reply_is_not_for_grpc(client: Grpc) -> None:
    client.settings(consumer())
    session = client.proxy.sessions.get("client-1")
    assert session is not None
    session.consumers_changed("g")  # nothing to tell
    with pytest.raises(NotSupported):
        session.reply_message(SendRequest(producer_group="p", messages=[], properties={}), 0)


# ------------------------------------------------------------------------------------------------------------ table


def test_lite_topics_are_of_a_later_version(client: Grpc) -> None:
    refused = client.ask("SyncLiteSubscription", pb.SyncLiteSubscriptionRequest(), pb.SyncLiteSubscriptionResponse)
    assert refused.status.code == pb.NOT_IMPLEMENTED
    assert refused.status.message.startswith("SyncLiteSubscription: lite topics")


def test_every_rpc_of_the_interface_has_an_answer(client: Grpc) -> None:
    from saturnmq.wire.proto import POOL

    service = POOL.FindServiceByName(grpc.SERVICE)
    assert {f"/{grpc.SERVICE}/{method.name}".encode() for method in service.methods} <= client.table.keys()
    assert len(service.methods) == 17


@pytest.mark.parametrize("rpc", ["QueryRoute", "Heartbeat", "SendMessage", "AckMessage", "ReceiveMessage"])
def test_bytes_that_are_no_request(client: Grpc, rpc: str) -> None:
    ended = client.start(rpc, b"\xff\xff\xff").ended
    assert ended is not None
    assert ended[0] == GrpcStatus.INVALID_ARGUMENT


def test_a_request_that_is_too_long_is_not_read(client: Grpc) -> None:
    response = client.ask("Heartbeat", pb.HeartbeatRequest(group=pb.Resource(name="g" * 300_000)), pb.HeartbeatResponse)
    assert response.status.code == pb.MESSAGE_BODY_TOO_LARGE


def test_every_error_has_a_code() -> None:
    from saturnmq.kernel import errors

    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.SaturnError)]
    assert set(kinds) == set(codes.CODES)

    class Stranger(errors.IllegalTag):
        """New."""

    assert codes.status_of(Stranger()) == pb.Status(code=pb.ILLEGAL_MESSAGE_TAG, message="New.")
