"""A broker that remembers what it was asked, and calls without a network."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

from google.protobuf.message import Message as ProtoMessage

from saturnmq.kernel import properties as props
from saturnmq.kernel.config import ProxyConfig
from saturnmq.kernel.errors import SaturnError, TopicNotFound
from saturnmq.kernel.handle import TopicKind
from saturnmq.kernel.host import Address, pack
from saturnmq.kernel.later import Later, Reply, hear
from saturnmq.kernel.message import Message
from saturnmq.kernel.ports import (
    Boundary,
    ClientChannel,
    ConsumerMembership,
    Delivery,
    EndTransactionRequest,
    GroupMembers,
    InvisibleChanged,
    Notice,
    Popped,
    PopRequest,
    PopResult,
    PopStatus,
    PullRequest,
    PullResult,
    RecallRequest,
    SendBackRequest,
    SendReceipt,
    SendRequest,
)
from saturnmq.kernel.topic import BrokerData, GroupConfig, MessageQueue, QueueData, TopicConfig, TopicRoute
from saturnmq.net.grpc_server import Call, GrpcError, GrpcStatus, Kind, Method
from saturnmq.proxy import grpc
from saturnmq.proxy.proxy import Proxy
from saturnmq.testing.clock import VirtualClock
from saturnmq.wire import record
from saturnmq.wire.proto import rocketmq_pb2 as pb

TELEMETRY = f"/{grpc.SERVICE}/Telemetry".encode()
HOST = pack(Address("127.0.0.1", 10911))
T = TypeVar("T")
R = TypeVar("R", bound=ProtoMessage)


class FakeBroker:
    """A `kernel.ports.BrokerPort`, `ClusterPort` and `RoutePort`. Answers come from `answers`, or are the obvious
    ones."""

    name = "broker-a"
    keeps_leases = False
    takes_sends = True

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self.topics: dict[str, TopicConfig] = {}
        self.groups: dict[str, GroupConfig] = {}
        self.auto_create_groups = True
        self.dev_auto_create = False
        #: method name → what it answers next: a value, a Later, or an error to raise
        self.answers: dict[str, list[Any]] = {}
        self.sent: list[SendRequest] = []
        self.recalled: list[RecallRequest] = []
        self.ended: list[EndTransactionRequest] = []
        self.popped: list[PopRequest] = []
        #: (method, arguments…) in the order of arrival, of everything that settles a message
        self.settled: list[tuple[Any, ...]] = []
        #: (queue offset, client id) of renewals that say for whom
        self.kept: list[tuple[int, str]] = []
        self.consumers: list[tuple[str, ConsumerMembership]] = []
        self.producers: list[tuple[str, str]] = []
        self.left: list[tuple[str, str | None]] = []
        self.commits: dict[tuple[str, MessageQueue], int] = {}
        self.offset = 0
        self.routed = 0

    def add_topic(self, topic: str, kind: str = "NORMAL", **fields: Any) -> TopicConfig:
        config = TopicConfig(topic_name=topic, attributes={"message.type": kind}, **fields)
        self.topics[topic] = config
        return config

    def next_answer(self, method: str, default: T) -> Reply[T]:
        waiting = self.answers.get(method)
        if not waiting:
            return default
        answer = waiting.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return cast("Reply[T]", answer)

    def route(self, topic: str) -> Reply[TopicRoute]:
        self.routed += 1
        config = self.topics.get(topic)
        if config is None:
            raise TopicNotFound(topic)
        queues = QueueData(
            broker_name=self.name,
            read_queue_nums=config.read_queue_nums,
            write_queue_nums=config.write_queue_nums,
            perm=config.perm,
        )
        broker = BrokerData(cluster="c", broker_name=self.name, broker_addrs={0: "127.0.0.1:10911"})
        return TopicRoute(broker_datas=[broker], queue_datas=[queues])

    def topic_config(self, topic: str) -> Reply[TopicConfig | None]:
        if topic not in self.topics and self.dev_auto_create:
            self.add_topic(topic, "MIXED")
        return self.next_answer("topic_config", self.topics.get(topic))

    def group_config(self, group: str) -> Reply[GroupConfig | None]:
        if group not in self.groups and self.auto_create_groups:
            self.groups[group] = GroupConfig(group_name=group)
        return self.next_answer("group_config", self.groups.get(group))

    def send(self, request: SendRequest) -> Reply[SendReceipt]:
        self.sent.append(request)
        self.offset += 1
        receipt = SendReceipt(
            queue_id=request.messages[0].queue_id, queue_offset=self.offset, message_id="", commit_log_offset=0
        )
        return self.next_answer("send", receipt)

    def recall(self, request: RecallRequest) -> Reply[str]:
        self.recalled.append(request)
        return self.next_answer("recall", "the id")

    def end_transaction(self, request: EndTransactionRequest) -> Reply[None]:
        self.ended.append(request)
        return self.next_answer("end_transaction", None)

    def pull(self, request: PullRequest) -> Reply[PullResult]:
        raise AssertionError("gRPC does not pull in this version")

    def pop(self, request: PopRequest) -> Reply[PopResult]:
        self.popped.append(request)
        return self.next_answer("pop", PopResult(status=PopStatus.POLLING_TIMEOUT))

    def ack(self, delivery: Delivery) -> Reply[None]:
        self.settled.append(("ack", delivery.queue_offset))
        return self.next_answer("ack", None)

    def change_invisible(self, delivery: Delivery, invisible_ms: int) -> Reply[InvisibleChanged]:
        self.settled.append(("change", delivery.queue_offset, invisible_ms))
        changed = InvisibleChanged(pop_ms=self.clock.now_ms(), invisible_ms=invisible_ms, revive_queue_id=5)
        return self.next_answer("change_invisible", changed)

    def renew(self, delivery: Delivery, invisible_ms: int, client_id: str = "") -> Reply[InvisibleChanged | None]:
        if client_id:
            self.kept.append((delivery.queue_offset, client_id))
        self.settled.append(("renew", delivery.queue_offset, invisible_ms))
        return self.next_answer("renew", cast("InvisibleChanged | None", None))

    def send_back(self, request: SendBackRequest) -> Reply[None]:
        self.settled.append(
            ("bury", request.commit_log_offset, request.delay_level, request.origin_message_id, request.origin_topic)
        )
        return self.next_answer("send_back", None)

    def notify(self, request: PopRequest) -> Reply[Notice]:
        return self.next_answer("notify", Notice(False))

    def committed(self, group: str, queue: MessageQueue, *, zero_if_new: bool = True) -> Reply[int]:
        return self.next_answer("committed", self.commits.get((group, queue), 0))

    def commit(self, group: str, queue: MessageQueue, offset: int) -> Reply[bool]:
        self.commits[group, queue] = offset
        return self.next_answer("commit", True)

    def min_offset(self, queue: MessageQueue) -> Reply[int]:
        return self.next_answer("min_offset", 0)

    def max_offset(self, queue: MessageQueue) -> Reply[int]:
        return self.next_answer("max_offset", 0)

    def offset_by_time(self, queue: MessageQueue, timestamp_ms: int, boundary: Boundary) -> Reply[int]:
        return self.next_answer("offset_by_time", 0)

    def lock(self, group: str, queues: Sequence[MessageQueue], client_id: str) -> Reply[list[MessageQueue]]:
        return self.next_answer("lock", list(queues))

    def unlock(self, group: str, queues: Sequence[MessageQueue], client_id: str) -> Reply[None]:
        return self.next_answer("unlock", None)

    def members(self, group: str) -> Reply[GroupMembers | None]:
        return self.next_answer("members", None)

    def consumer_joined(self, channel: ClientChannel, membership: ConsumerMembership) -> None:
        self.consumers.append((channel.client_id, membership))

    def producer_joined(self, channel: ClientChannel, group: str) -> None:
        self.producers.append((channel.client_id, group))

    def client_left(self, channel: ClientChannel, group: str | None = None) -> None:
        self.left.append((channel.client_id, group))


class FakeCall:
    """A `net.grpc_server.Call` whose client reads all it is sent, unless told otherwise."""

    def __init__(self, headers: Mapping[bytes, bytes]) -> None:
        self.headers = headers
        self.authority = "mq.example:8081"
        self.peer = Address("10.0.0.9", 5000)
        self.local = Address("10.0.0.1", 8081)
        self.deadline_ms: int | None = None
        self.open = True
        self.writable = True
        self.on_cancel: Callable[[], None] | None = None
        self.on_message: Callable[[bytes], Reply[None]] | None = None
        self.on_half_close: Callable[[], None] | None = None
        self.on_writable: Callable[[], None] | None = None
        self.on_send: Callable[[bytes], None] = lambda message: None
        self.later: Later[Any] | None = None
        self.out: list[bytes] = []
        self.ended: tuple[GrpcStatus, str] | None = None

    def run(self, method: Method, *request: bytes) -> None:
        """As the connection does: the handler, and what its errors become."""

        def deliver(reply: Any) -> None:
            self.later = None
            if method.kind is Kind.UNARY:
                self.send(reply)
                self.finish()

        def fail(error: BaseException) -> None:
            if isinstance(error, GrpcError):
                self.finish(error.status, error.message)
            elif isinstance(error, SaturnError) and method.refuse is not None:
                method.refuse(cast("Call", self), error)
            else:
                raise error

        try:
            reply = method.handler(self, *request)
            self.later = reply if isinstance(reply, Later) else None
            hear(reply, deliver, fail)
        except (GrpcError, SaturnError) as error:
            fail(error)

    def send(self, message: bytes) -> None:
        if self.open:
            self.out.append(message)
            self.on_send(message)

    def finish(self, status: GrpcStatus = GrpcStatus.OK, message: str = "") -> None:
        if self.open:
            self.open = False
            self.ended = (status, message)

    def say(self, method: Method, message: bytes) -> None:
        """A message of the client on a stream both ways."""
        assert self.on_message is not None
        hear = self.on_message
        self.run(Method(method.kind, lambda call, data: hear(data), method.refuse), message)

    def cancel(self) -> None:
        """The client goes away."""
        self.open = False
        if self.later is not None:
            self.later.cancel()
        if self.on_cancel is not None:
            self.on_cancel()


class Grpc:
    """A client at the Proxy's gRPC face."""

    def __init__(self, config: ProxyConfig | None = None) -> None:
        self.clock = VirtualClock()
        self.broker = FakeBroker(self.clock)
        self.proxy = Proxy({"broker-a": self.broker}, self.broker, self.broker, config or ProxyConfig(), self.clock)
        self.table = grpc.methods(self.proxy)
        self.headers = {b"x-mq-client-id": b"client-1", b"x-mq-language": b"PYTHON", b"x-mq-client-version": b"5.1.2"}

    def call(self) -> FakeCall:
        return FakeCall(self.headers)

    def start(self, rpc: str, request: ProtoMessage | bytes, call: FakeCall | None = None) -> FakeCall:
        """A call with one request. Its answer is in `out`, now or later."""
        call = call or self.call()
        method = self.table[f"/{grpc.SERVICE}/{rpc}".encode()]
        call.run(method, request if isinstance(request, bytes) else request.SerializeToString())
        return call

    def ask(self, rpc: str, request: ProtoMessage, answer: type[R], call: FakeCall | None = None) -> R:
        """A unary call that is answered at once."""
        call = self.start(rpc, request, call)
        assert call.ended == (GrpcStatus.OK, ""), f"{rpc} waits, or failed"
        return answer.FromString(call.out[-1])

    def ask_later(self, rpc: str, request: ProtoMessage, answer: type[R]) -> list[R]:
        """A unary call that has to wait; the answer appears in the list."""
        answers: list[R] = []
        call = self.call()
        call.on_send = lambda data: answers.append(answer.FromString(data))
        self.start(rpc, request, call)
        assert call.later is not None, f"{rpc} does not wait"
        return answers

    def receive(self, request: pb.ReceiveMessageRequest, call: FakeCall | None = None) -> FakeCall:
        call = call or self.call()
        self.start("ReceiveMessage", request, call)
        return call

    def telemetry(self) -> FakeCall:
        call = self.call()
        call.run(self.table[TELEMETRY])
        return call

    def tell(self, call: FakeCall, command: pb.TelemetryCommand | bytes) -> None:
        """Say something on a telemetry stream."""
        call.say(self.table[TELEMETRY], command if isinstance(command, bytes) else command.SerializeToString())

    def settings(self, settings: pb.Settings, call: FakeCall | None = None) -> pb.Settings:
        """Send settings over a telemetry stream; answer what comes back."""
        call = call or self.telemetry()
        self.tell(call, pb.TelemetryCommand(settings=settings))
        command = pb.TelemetryCommand.FromString(call.out[-1])
        assert command.status.code == pb.OK
        return command.settings


def stream(call: FakeCall) -> tuple[pb.Status, list[pb.Message]]:
    """A finished ReceiveMessage: its status and messages. The order of the parts is checked."""
    parts = [pb.ReceiveMessageResponse.FromString(data) for data in call.out]
    assert call.ended == (GrpcStatus.OK, "")
    assert parts[0].WhichOneof("content") == "status"
    assert parts[-1].WhichOneof("content") == "delivery_timestamp"
    assert all(part.WhichOneof("content") == "message" for part in parts[1:-1])
    return parts[0].status, [part.message for part in parts[1:-1]]


def message(topic: str = "t", body: bytes = b"hello", **system: Any) -> pb.Message:
    fields: dict[str, Any] = {
        "message_id": "01" + "A" * 32,
        "born_host": "laptop",
        "body_encoding": pb.IDENTITY,
    } | system
    return pb.Message(
        topic=pb.Resource(name=topic),
        body=body,
        system_properties=pb.SystemProperties(**({"message_type": pb.NORMAL} | fields)),
    )


_offsets = itertools.count(100)


def popped(
    properties: Mapping[str, str] | None = None,
    *,
    body: bytes = b"hello",
    reconsume_times: int = 0,
    kind: TopicKind = TopicKind.NORMAL,
    sys_flag: int = 0,
) -> Popped:
    """A stored message as a pop answers it."""
    offset = next(_offsets)
    packed = props.encode({props.UNIQUE_KEY: f"id-{offset}"} if properties is None else properties)
    stored = Message("t", 3, body, packed, 1_600_000_000_123, pack(Address("10.9.8.7", 4321)), 0, sys_flag)
    return Popped(
        record=record.encode(
            stored, queue_offset=offset, commit_log_offset=offset * 1000, stored_ms=1_600_000_000_456, store_host=HOST
        ),
        topic_kind=kind,
        queue_id=3,
        queue_offset=offset,
        commit_log_offset=offset * 1000,
        start_offset=offset,
        reconsume_times=reconsume_times,
    )


def found(messages: Sequence[Popped], pop_ms: int = 1_700_000_000_000, invisible_ms: int = 60_000) -> PopResult:
    return PopResult(
        status=PopStatus.FOUND, pop_ms=pop_ms, invisible_ms=invisible_ms, revive_queue_id=2, messages=list(messages)
    )


def receive_request(**fields: Any) -> pb.ReceiveMessageRequest:
    request = pb.ReceiveMessageRequest(
        group=pb.Resource(name="g"),
        message_queue=pb.MessageQueue(topic=pb.Resource(name="t"), broker=pb.Broker(name="broker-a")),
        filter_expression=pb.FilterExpression(type=pb.TAG, expression="*"),
        batch_size=16,
        **fields,
    )
    if not request.auto_renew and not request.HasField("invisible_duration"):
        request.invisible_duration.FromSeconds(30)
    return request


def error_of(act: Callable[[], Any]) -> SaturnError:
    try:
        act()
    except SaturnError as error:
        return error
    raise AssertionError("nothing was raised")
