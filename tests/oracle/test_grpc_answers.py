"""What both Proxies answer to the same gRPC requests: right ones field by field, wrong ones by their code."""

from __future__ import annotations

import queue
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from harness.admin import Admin
from harness.servers import Server, start_apache, start_saturn

from saturnmq.wire.proto import rocketmq_pb2 as pb

SERVICE = "/apache.rocketmq.v2.MessagingService/"
METADATA = (("x-mq-client-id", "client@1"), ("x-mq-language", "JAVA"), ("x-mq-client-version", "5.2.0"))
TOPIC, GROUP = "TOPIC", "GROUP"
HERE = pb.Endpoints(scheme=pb.IPv4, addresses=[pb.Address(host="127.0.0.1", port=8081)])
EXPIRED = "0 1700000000000 1000 0 0 broker-a 0 0 0"


def of(name: str) -> pb.Resource:
    return pb.Resource(name=name)


def send(*bodies: bytes, topic: str = TOPIC, user: Mapping[str, str] | None = None, **system: Any) -> Message:
    fields = {"message_id": "01" + "A" * 32, "message_type": pb.NORMAL, "body_encoding": pb.IDENTITY, "born_host": "h"}
    return pb.SendMessageRequest(
        messages=[
            pb.Message(
                topic=of(topic),
                body=body,
                user_properties=user or {},
                system_properties=pb.SystemProperties(**{**fields, **system}),
            )
            for body in bodies
        ]
    )


def ack(*handles: str) -> Message:
    entries = [pb.AckMessageEntry(message_id="m", receipt_handle=handle) for handle in handles]
    return pb.AckMessageRequest(group=of(GROUP), topic=of(TOPIC), entries=entries)


def change(handle: str, seconds: int = 10, group: str = GROUP) -> Message:
    return pb.ChangeInvisibleDurationRequest(
        group=of(group), topic=of(TOPIC), receipt_handle=handle, message_id="m", invisible_duration={"seconds": seconds}
    )


def producer(*topics: str) -> pb.Settings:
    return pb.Settings(client_type=pb.PRODUCER, publishing=pb.Publishing(topics=[of(topic) for topic in topics]))


def consumer(group: str = GROUP, expression: str = "*", kind: pb.ClientType = pb.SIMPLE_CONSUMER) -> pb.Settings:
    entry = pb.SubscriptionEntry(topic=of(TOPIC), expression=pb.FilterExpression(type=pb.TAG, expression=expression))
    subscription = pb.Subscription(group=of(group), subscriptions=[entry])
    return pb.Settings(client_type=kind, request_timeout={"seconds": 3}, subscription=subscription)


#: what is right: every field is the same
SAME: Mapping[str, Message] = {
    "QueryRoute": pb.QueryRouteRequest(topic=of(TOPIC), endpoints=HERE),
    "QueryAssignment": pb.QueryAssignmentRequest(topic=of(TOPIC), group=of(GROUP), endpoints=HERE),
    "QueryAssignment, unknown group": pb.QueryAssignmentRequest(topic=of(TOPIC), group=of("nobody"), endpoints=HERE),
    "SendMessage": send(b"x"),
    "Telemetry of a producer": producer(TOPIC),
    "Telemetry of a producer without topics": pb.Settings(client_type=pb.PRODUCER, publishing=pb.Publishing()),
    "Telemetry of a producer of an unknown topic": producer("nope"),
    "Telemetry of a consumer": consumer(),
    "Heartbeat": pb.HeartbeatRequest(group=of(GROUP), client_type=pb.SIMPLE_CONSUMER),
}
#: what is wrong: the code is the same, or (Apache's, ours)
WRONG: Mapping[str, tuple[Message, str | tuple[str, str]]] = {
    "QueryRoute, no topic": (pb.QueryRouteRequest(topic=of(""), endpoints=HERE), "ILLEGAL_TOPIC"),
    "QueryRoute, illegal": (pb.QueryRouteRequest(topic=of("a b"), endpoints=HERE), "ILLEGAL_TOPIC"),
    "QueryRoute, system": (pb.QueryRouteRequest(topic=of("TBW102"), endpoints=HERE), "ILLEGAL_TOPIC"),
    "QueryRoute, unknown": (pb.QueryRouteRequest(topic=of("nope"), endpoints=HERE), "TOPIC_NOT_FOUND"),
    "QueryAssignment, unknown": (
        pb.QueryAssignmentRequest(topic=of("nope"), group=of(GROUP), endpoints=HERE), "TOPIC_NOT_FOUND",
    ),
    "SendMessage, unknown": (send(b"x", topic="nope"), ("MESSAGE_PROPERTY_CONFLICT_WITH_TYPE", "TOPIC_NOT_FOUND")),
    "SendMessage, nothing": (send(), "MESSAGE_CORRUPTED"),
    "SendMessage, no id": (send(b"x", message_id=" "), "ILLEGAL_MESSAGE_ID"),
    "SendMessage, empty": (send(b""), "MESSAGE_BODY_EMPTY"),
    "SendMessage, large": (send(b"x" * (4 * 1024 * 1024 + 1)), "MESSAGE_BODY_TOO_LARGE"),
    "SendMessage, reserved key": (send(b"x", user={"KEYS": "x"}), "ILLEGAL_MESSAGE_PROPERTY_KEY"),
    "SendMessage, control character": (send(b"x", user={"a\x01": "x"}), "ILLEGAL_MESSAGE_PROPERTY_KEY"),
    "SendMessage, properties": (send(b"x", user={"a": "x" * 17_000}), "MESSAGE_PROPERTIES_TOO_LARGE"),
    "SendMessage, tag": (send(b"x", tag="a|b"), "ILLEGAL_MESSAGE_TAG"),
    "SendMessage, key": (send(b"x", keys=[" "]), "ILLEGAL_MESSAGE_KEY"),
    "SendMessage, group": (send(b"x", message_group="g" * 70), "ILLEGAL_MESSAGE_GROUP"),
    "SendMessage, FIFO": (send(b"x", message_group="g"), "MESSAGE_PROPERTY_CONFLICT_WITH_TYPE"),
    "SendMessage, far away": (
        send(b"x", delivery_timestamp={"seconds": int(time.time()) + 10_000_000}), "ILLEGAL_DELIVERY_TIME",
    ),
    "SendMessage, lite": (
        send(b"x", lite_topic="l", message_type=pb.LITE), ("MESSAGE_PROPERTY_CONFLICT_WITH_TYPE", "NOT_IMPLEMENTED"),
    ),
    "AckMessage, nothing": (ack(), ("INTERNAL_SERVER_ERROR", "BAD_REQUEST")),
    "AckMessage, rubbish": (ack("rubbish"), ("INTERNAL_SERVER_ERROR", "INVALID_RECEIPT_HANDLE")),
    "AckMessage, expired": (ack(EXPIRED), "INVALID_RECEIPT_HANDLE"),
    "ChangeInvisibleDuration, rubbish": (change("rubbish"), ("INTERNAL_SERVER_ERROR", "INVALID_RECEIPT_HANDLE")),
    "ChangeInvisibleDuration, too long": (change(EXPIRED, 50_000), "ILLEGAL_INVISIBLE_TIME"),
    "ChangeInvisibleDuration, group": (change(EXPIRED, group="CID_RMQ_SYS_x"), "ILLEGAL_CONSUMER_GROUP"),
    "RecallMessage, no handle": (
        pb.RecallMessageRequest(topic=of(TOPIC), recall_handle="x"), "MESSAGE_PROPERTY_CONFLICT_WITH_TYPE",
    ),
    "EndTransaction, no id": (
        pb.EndTransactionRequest(topic=of(TOPIC), message_id="m", transaction_id=" "), "INVALID_TRANSACTION_ID",
    ),
    "EndTransaction, unknown": (
        pb.EndTransactionRequest(topic=of(TOPIC), message_id="m", transaction_id="x", resolution=pb.COMMIT),
        ("INTERNAL_SERVER_ERROR", "INVALID_TRANSACTION_ID"),
    ),
    "SyncLiteSubscription": (
        pb.SyncLiteSubscriptionRequest(topic=of(TOPIC), group=of(GROUP)), ("ILLEGAL_TOPIC", "NOT_IMPLEMENTED"),
    ),
    "GetOffset": (pb.GetOffsetRequest(group=of(GROUP)), ("UNIMPLEMENTED", "ILLEGAL_TOPIC")),
    "Telemetry of nobody": (pb.Settings(client_type=pb.PRODUCER), "INVALID_ARGUMENT"),
    "Telemetry, topic": (producer("a b"), "INVALID_ARGUMENT"),
    "Telemetry, group": (consumer("CID_RMQ_SYS_x"), "INVALID_ARGUMENT"),
    "Telemetry, filter": (consumer(expression="||"), "INVALID_ARGUMENT"),
    "Telemetry of a pull consumer": (consumer(kind=pb.PULL_CONSUMER), ("INTERNAL", "OK")),
}  # fmt: skip


class Caller:
    """A client of one server. What it says of TOPIC and GROUP is about a topic and a group of its own there."""

    def __init__(self, server: Server) -> None:
        admin = Admin(server.namesrv, server.broker)
        self._names = {TOPIC: admin.create_topic(queues=1), GROUP: admin.create_group()}
        admin.close()
        self._channel = grpc.insecure_channel(server.grpc, options=[("grpc.max_send_message_length", -1)])
        self._streams: list[queue.Queue[Message | None]] = []

    def close(self) -> None:
        for stream in self._streams:
            stream.put(None)
        self._channel.close()

    def ask(self, name: str, request: Message) -> str:
        """The answer as text, or the gRPC status."""
        rpc = re.split(r"[ ,]", name)[0]
        ask = self._telemetry if rpc == "Telemetry" else self._unary(rpc)
        try:
            text = str(ask(self._renamed(request)))
        except grpc.RpcError as error:
            return error.code().name  # type: ignore[no-any-return]
        for known, own in self._names.items():
            text = text.replace(own, known)
        return text

    def _unary(self, rpc: str) -> Callable[[Message], Message]:
        call = self._channel.unary_unary(
            SERVICE + rpc,
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=getattr(pb, f"{rpc}Response").FromString,
        )
        return lambda request: call(request, timeout=20, metadata=METADATA)

    def _telemetry(self, settings: Message) -> Message:
        assert isinstance(settings, pb.Settings)
        commands: queue.Queue[Message | None] = queue.Queue()
        commands.put(pb.TelemetryCommand(settings=settings))
        self._streams.append(commands)
        call = self._channel.stream_stream(
            f"{SERVICE}Telemetry",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=pb.TelemetryCommand.FromString,
        )
        return next(call(iter(commands.get, None), metadata=METADATA))  # type: ignore[no-any-return]

    def _renamed(self, request: Message) -> Message:
        data = type(request)()
        data.CopyFrom(request)
        for field, value in data.ListFields():
            if field.message_type is not None:
                self._rename(value)
        return data

    def _rename(self, value: Any) -> None:
        if isinstance(value, pb.Resource):
            value.name = self._names.get(value.name, value.name)
        elif isinstance(value, Message):
            for _, inner in value.ListFields():
                self._rename(inner)
        elif not isinstance(value, str | bytes | int | float):
            for inner in value:
                self._rename(inner)


@pytest.fixture(scope="module")
def callers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Caller, Caller]]:
    """Apache's and ours."""
    servers = [start(tmp_path_factory.mktemp("grpc")) for start in (start_apache, start_saturn)]
    apache, saturn = map(Caller, servers)
    yield apache, saturn
    for caller, server in zip((apache, saturn), servers, strict=True):
        caller.close()
        server.stop()


@pytest.mark.parametrize("name", SAME)
def test_every_field(callers: tuple[Caller, Caller], name: str) -> None:
    theirs, ours = (re.sub(r"port: \d+", "port", caller.ask(name, SAME[name])) for caller in callers)
    assert ours == theirs
    assert "code: OK" in ours


@pytest.mark.parametrize("name", WRONG)
def test_the_code(callers: tuple[Caller, Caller], name: str) -> None:
    request, codes = WRONG[name]
    answers = [caller.ask(name, request) for caller in callers]
    found = [code[1] if (code := re.search(r"code: (\w+)", answer)) else answer for answer in answers]
    assert tuple(found) == (codes if isinstance(codes, tuple) else (codes, codes))
