"""What gRPC libraries do that official clients do not: gzip, deadlines, cancels, long conversations, 130 MiB.

Java's, Python's, Go's, Node's and Rust's, each on a connection of its own.
"""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import grpc
import pytest
from harness.admin import Admin
from harness.grpc_variants import GRPC_DEFAULTS, GRPC_RUST
from harness.programs import GO, JAVA, ProgramSource, built_or_skipped
from harness.servers import Server

from saturnmq.wire.grpc import GrpcStatus
from saturnmq.wire.proto import rocketmq_pb2 as pb

SERVICE = "/apache.rocketmq.v2.MessagingService"
MIB = 1 << 20
GRPC_GO = ProgramSource("grpc_go", GO)
GRPC_JAVA = ProgramSource("grpc_java", JAVA)
#: an unknown field of this size, whose content follows
UNKNOWN_FIELD = b"\xfa\x7d"


@dataclass(frozen=True)
class Call:
    path: str
    request: str
    #: zeros behind the request
    padding: int = 0
    gzip: bool = False
    #: more than once is a conversation: each message waits for an answer
    times: int = 1
    deadline_ms: int = 60_000
    cancel_ms: int = 0


@dataclass(frozen=True)
class Result:
    code: GrpcStatus
    answers: list[bytes]


Caller = Callable[[str, list[Call]], list[Result]]


def call(method: str, message: bytes, **more: Any) -> Call:
    return Call(f"{SERVICE}/{method}", base64.b64encode(message).decode(), **more)


def padded(method: str, message: bytes, size: int, *, gzip: bool = False) -> Call:
    """With an unknown field that makes the message about as large."""
    length, left = b"", size
    while left >= 0x80:
        length += bytes([left & 0x7F | 0x80])
        left >>= 7
    message += UNKNOWN_FIELD + length + bytes([left])
    return call(method, message, padding=size, gzip=gzip)


def by_python(address: str, calls: list[Call]) -> list[Result]:
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(address, options=options) as channel:
        return [_in_python(channel, call) for call in calls]


def _in_python(channel: grpc.Channel, call: Call) -> Result:
    request = base64.b64decode(call.request) + bytes(call.padding)
    stream = channel.stream_stream(call.path)(
        iter([request] * call.times),
        timeout=call.deadline_ms / 1000,
        metadata=[("x-mq-client-id", "grpcio")],
        compression=grpc.Compression.Gzip if call.gzip else None,
    )
    if call.cancel_ms:
        stream.initial_metadata  # noqa: B018 - it is under way
        stream.cancel()
    answers = []
    try:
        for answer in stream:
            answers.append(answer)
    except (grpc.RpcError, grpc.FutureCancelledError):
        pass
    return Result(GrpcStatus(stream.code().value[0]), answers)


def by_program(source: ProgramSource, *command: str) -> Caller:
    def run(address: str, calls: list[Call]) -> list[Result]:
        said = json.dumps([asdict(call) for call in calls])
        done = subprocess.run(
            [*command, address], cwd=built_or_skipped(source), input=said, capture_output=True, text=True, timeout=120,
            check=True,
        )  # fmt: skip
        return [
            Result(GrpcStatus(found["code"]), [base64.b64decode(answer) for answer in found["answers"]])
            for found in json.loads(done.stdout)
        ]

    return run


CALLERS: dict[str, Caller] = {
    "java": by_program(
        GRPC_JAVA, "java", "-Xmx1g", "-XX:+UseSerialGC", "-cp", "target/classes:target/dependency/*", "Client"
    ),
    "python": by_python,
    "go": by_program(GRPC_GO, "./client"),
    "node": by_program(GRPC_DEFAULTS["node"].source, "node", "calls.js"),
    "rust": by_program(GRPC_RUST["rust"].source, "./target/debug/calls"),
}


@pytest.fixture(params=CALLERS)
def caller(request: pytest.FixtureRequest, server: Server) -> Callable[..., list[Result]]:
    return lambda *calls: CALLERS[request.param](server.grpc, list(calls))


@pytest.fixture
def route(admin: Admin) -> bytes:
    """Asks for the route of a topic that is there."""
    return pb.QueryRouteRequest(topic=pb.Resource(name=admin.create_topic())).SerializeToString()


def assert_route(result: Result) -> None:
    assert result.code == GrpcStatus.OK
    (answer,) = result.answers
    assert pb.QueryRouteResponse.FromString(answer).status.code == pb.OK


def test_gzip(caller: Callable[..., list[Result]], route: bytes) -> None:
    small, large = caller(call("QueryRoute", route, gzip=True), padded("QueryRoute", route, 200_000, gzip=True))
    assert_route(small)
    assert_route(large)


def test_messages_of_130_mib(caller: Callable[..., list[Result]], route: bytes) -> None:
    """They are read, and refused for what they are; longer ones are not read."""
    most, too_many, after = caller(
        padded("SendMessage", b"", 129 * MIB), padded("SendMessage", b"", 131 * MIB), call("QueryRoute", route)
    )
    (answer,) = most.answers
    assert pb.SendMessageResponse.FromString(answer).status.code == pb.MESSAGE_BODY_TOO_LARGE
    assert (too_many.code, too_many.answers) == (GrpcStatus.RESOURCE_EXHAUSTED, [])
    assert_route(after)


def test_deadlines_and_cancels(caller: Callable[..., list[Result]], admin: Admin, route: bytes) -> None:
    """A long poll is answered before the deadline of its call. One that is cancelled harms no other call."""
    receive = pb.ReceiveMessageRequest(
        group=pb.Resource(name=admin.create_group()),
        message_queue=pb.MessageQueue(topic=pb.Resource(name=admin.create_topic()), id=-1),
        filter_expression=pb.FilterExpression(type=pb.TAG, expression="*"),
        batch_size=1,
        auto_renew=True,
    )
    receive.long_polling_timeout.seconds = 20
    poll = receive.SerializeToString()
    in_time, cancelled, after = caller(
        call("ReceiveMessage", poll, deadline_ms=10_000),
        call("ReceiveMessage", poll, cancel_ms=300),
        call("QueryRoute", route),
    )
    assert in_time.code == GrpcStatus.OK
    assert pb.ReceiveMessageResponse.FromString(in_time.answers[0]).status.code == pb.MESSAGE_NOT_FOUND
    assert (cancelled.code, cancelled.answers) == (GrpcStatus.CANCELLED, [])
    assert_route(after)


def test_a_long_conversation(caller: Callable[..., list[Result]], admin: Admin) -> None:
    """Each of a thousand settings is answered, in order."""
    settings = pb.TelemetryCommand()
    settings.settings.client_type = pb.PRODUCER
    settings.settings.publishing.topics.add(name=admin.create_topic())
    settings.settings.user_agent.version = "5.0.0"
    (result,) = caller(call("Telemetry", settings.SerializeToString(), times=1000))
    assert result.code == GrpcStatus.OK
    assert len(result.answers) == 1000
    assert {pb.TelemetryCommand.FromString(answer).WhichOneof("command") for answer in result.answers} == {"settings"}
