"""What operators ask of a gRPC consumer, over its telemetry stream."""

from __future__ import annotations

import msgspec
import pytest
from proxy_fakes import FakeCall, Grpc

from saturnmq.kernel import properties as props
from saturnmq.kernel.errors import ConnectionLost, NotSupported, RequestTimeout, SaturnError
from saturnmq.kernel.host import Address, pack
from saturnmq.kernel.later import Later, Reply, hear
from saturnmq.kernel.message import Message
from saturnmq.kernel.ports import DirectMessage
from saturnmq.proxy.sessions import Client
from saturnmq.wire import record
from saturnmq.wire.proto import rocketmq_pb2 as pb

HOST = pack(Address("10.0.0.1", 10911))


class Asking:
    """A push consumer of `orders` and its telemetry stream; what it was asked last, and its answer."""

    def __init__(self) -> None:
        self.grpc = Grpc()
        self.call: FakeCall = self.grpc.call()
        self.method = self.grpc.table[b"/apache.rocketmq.v2.MessagingService/Telemetry"]
        self.call.run(self.method)
        settings = pb.Settings(client_type=pb.PUSH_CONSUMER)
        settings.subscription.group.name = "group"
        entry = settings.subscription.subscriptions.add()
        entry.topic.name = "orders"
        entry.expression.expression = "a"
        self.say(pb.TelemetryCommand(settings=settings))
        client = self.grpc.proxy.sessions.get("client-1")
        assert client is not None
        self.client: Client = client

    def say(self, command: pb.TelemetryCommand) -> None:
        self.call.say(self.method, command.SerializeToString())

    def asked(self) -> pb.TelemetryCommand:
        return pb.TelemetryCommand.FromString(self.call.out[-1])


@pytest.fixture
def asking() -> Asking:
    return Asking()


def answer(reply: Reply[bytes]) -> dict[str, object] | BaseException | None:
    """What came; None: it waits."""
    heard: list[dict[str, object] | BaseException] = []
    hear(reply, lambda body: heard.append(msgspec.json.decode(body)), heard.append)
    return heard[0] if heard else None


def stack_of(asking: Asking) -> Later[bytes]:
    reply = asking.client.running_info("group", with_stack=True)
    assert isinstance(reply, Later), "it is asked"
    return reply


def test_what_is_known_of_a_consumer_without_asking(asking: Asking) -> None:
    said = len(asking.call.out)
    info = answer(asking.client.running_info("group", with_stack=False))
    assert isinstance(info, dict)
    assert info["properties"] == {
        "PROP_CONSUME_TYPE": "CONSUME_PASSIVELY",
        "PROP_CONSUMEORDERLY": "false",
        "PROP_CONSUMER_START_TIMESTAMP": str(asking.grpc.clock.now_ms()),
    }
    [subscription] = info["subscriptionSet"]  # type: ignore[misc]
    assert (subscription["topic"], subscription["subString"]) == ("orders", "a")  # type: ignore[has-type]
    assert (info["mqTable"], "jstack" in info) == ({}, False)
    assert len(asking.call.out) == said


def test_the_stacks_of_its_threads(asking: Asking) -> None:
    reply = stack_of(asking)
    nonce = asking.asked().print_thread_stack_trace_command.nonce
    other = pb.TelemetryCommand(thread_stack_trace=pb.ThreadStackTrace(nonce="other", thread_stack_trace="no"))
    asking.say(other)
    assert reply.pending
    asking.say(
        pb.TelemetryCommand(
            status=pb.Status(code=pb.OK),
            thread_stack_trace=pb.ThreadStackTrace(nonce=nonce, thread_stack_trace="main\n  at …"),
        )
    )
    info = answer(reply)
    assert isinstance(info, dict)
    assert info["jstack"] == "main\n  at …"


def test_a_client_that_has_no_stacks(asking: Asking) -> None:
    reply = stack_of(asking)
    nonce = asking.asked().print_thread_stack_trace_command.nonce
    status = pb.Status(code=pb.UNSUPPORTED, message="not here")
    asking.say(pb.TelemetryCommand(status=status, thread_stack_trace=pb.ThreadStackTrace(nonce=nonce)))
    error = answer(reply)
    assert isinstance(error, SaturnError)
    assert "not here" in str(error)


def test_a_client_that_does_not_answer(asking: Asking) -> None:
    reply = stack_of(asking)
    nonce = asking.asked().print_thread_stack_trace_command.nonce
    asking.grpc.clock.advance(5_000)
    assert isinstance(answer(reply), RequestTimeout)
    late = pb.TelemetryCommand(thread_stack_trace=pb.ThreadStackTrace(nonce=nonce, thread_stack_trace="late"))
    asking.say(late)


def test_who_does_not_want_the_answer_any_more(asking: Asking) -> None:
    reply = stack_of(asking)
    reply.cancel()
    nonce = asking.asked().print_thread_stack_trace_command.nonce
    asking.say(pb.TelemetryCommand(thread_stack_trace=pb.ThreadStackTrace(nonce=nonce, thread_stack_trace="late")))
    asking.grpc.clock.advance(5_000)


def test_a_stream_that_ends(asking: Asking) -> None:
    reply = stack_of(asking)
    asking.call.cancel()
    assert isinstance(answer(reply), ConnectionLost)
    with pytest.raises(ConnectionLost, match="client-1 has no telemetry stream"):
        asking.client.running_info("group", with_stack=True)
    again = asking.grpc.call()
    asking.call = again
    again.run(asking.method)
    settings = pb.Settings(client_type=pb.PUSH_CONSUMER)
    settings.subscription.group.name = "group"
    asking.say(pb.TelemetryCommand(settings=settings))
    assert stack_of(asking).pending, "over the new one"
    assert again.on_half_close is not None
    again.on_half_close()
    assert again.ended is not None


def direct(body: bytes = b"body") -> DirectMessage:
    message = Message("orders", 3, body, props.encode({"UNIQ_KEY": "ID", "TAGS": "a", "color": "red"}), 7, HOST)
    encoded = record.encode(message, queue_offset=5, commit_log_offset=9, stored_ms=8, store_host=HOST)
    return DirectMessage(group="group", record=encoded, message_id="ID", broker_name="broker-a", topic="orders")


@pytest.mark.parametrize(
    ("code", "result"),
    [(pb.OK, "CR_SUCCESS"), (pb.FAILED_TO_CONSUME_MESSAGE, "CR_LATER"), (pb.MESSAGE_CORRUPTED, "CR_RETURN_NULL")],
)
def test_a_message_is_handed_to_it(asking: Asking, code: pb.Code, result: str) -> None:
    reply = asking.client.consume(direct())
    command = asking.asked().verify_message_command
    message = command.message
    assert (message.topic.name, message.body, dict(message.user_properties)) == ("orders", b"body", {"color": "red"})
    system = message.system_properties
    assert (system.message_id, system.tag, system.queue_id, system.queue_offset) == ("ID", "a", 3, 5)
    asking.say(
        pb.TelemetryCommand(
            status=pb.Status(code=code), verify_message_result=pb.VerifyMessageResult(nonce=command.nonce)
        )
    )
    assert answer(reply) == {
        "consumeResult": result, "remark": "from gRPC client", "order": False, "autoCommit": True,
        "spentTimeMills": 0,
    }  # fmt: skip


def test_a_client_that_cannot_be_handed_messages(asking: Asking) -> None:
    """Node's sends the command back, with a status."""
    reply = asking.client.consume(direct())
    nonce = asking.asked().verify_message_command.nonce
    asking.say(
        pb.TelemetryCommand(
            status=pb.Status(code=pb.NOT_IMPLEMENTED), verify_message_command=pb.VerifyMessageCommand(nonce=nonce)
        )
    )
    error = answer(reply)
    assert isinstance(error, SaturnError)
    assert "NOT_IMPLEMENTED" in str(error)


def test_what_only_remoting_clients_have(asking: Asking) -> None:
    said = len(asking.call.out)
    asking.client.reset_offsets("group", "orders", 0, {})
    with pytest.raises(NotSupported):
        asking.client.positions("group", "orders")
    assert len(asking.call.out) == said
