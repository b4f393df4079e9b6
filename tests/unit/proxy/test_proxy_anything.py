"""Whatever a client says: no bug shows, no mistake of its own is called ours, and the broker stays as it was.

Random messages of every request type, over a real Broker on a disk in memory; some are near to what clients say, so
that they get past the first check.
"""

from __future__ import annotations

import logging
import random
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message as ProtoMessage
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from proxy_fakes import HOST, FakeCall, Grpc, found, message, receive_request, stream

from saturnmq.kernel import properties as props
from saturnmq.kernel.config import NameserverConfig, ProxyConfig
from saturnmq.kernel.handle import TopicKind
from saturnmq.kernel.host import Address
from saturnmq.kernel.message import Message
from saturnmq.kernel.ports import Popped
from saturnmq.kernel.topic import GroupConfig, TopicConfig
from saturnmq.nameserver.routes import RouteTable
from saturnmq.net.grpc_server import GrpcStatus, Kind
from saturnmq.proxy import grpc
from saturnmq.proxy.proxy import Proxy
from saturnmq.testing.offline import OfflineBroker
from saturnmq.wire import record
from saturnmq.wire.proto import rocketmq_pb2 as pb

REQUESTS: dict[str, tuple[type[ProtoMessage], type[ProtoMessage]]] = {
    "QueryRoute": (pb.QueryRouteRequest, pb.QueryRouteResponse),
    "Heartbeat": (pb.HeartbeatRequest, pb.HeartbeatResponse),
    "SendMessage": (pb.SendMessageRequest, pb.SendMessageResponse),
    "QueryAssignment": (pb.QueryAssignmentRequest, pb.QueryAssignmentResponse),
    "ReceiveMessage": (pb.ReceiveMessageRequest, pb.ReceiveMessageResponse),
    "AckMessage": (pb.AckMessageRequest, pb.AckMessageResponse),
    "ForwardMessageToDeadLetterQueue": (
        pb.ForwardMessageToDeadLetterQueueRequest,
        pb.ForwardMessageToDeadLetterQueueResponse,
    ),
    "ChangeInvisibleDuration": (pb.ChangeInvisibleDurationRequest, pb.ChangeInvisibleDurationResponse),
    "NotifyClientTermination": (pb.NotifyClientTerminationRequest, pb.NotifyClientTerminationResponse),
    "Telemetry": (pb.TelemetryCommand, pb.TelemetryCommand),
    "PullMessage": (pb.PullMessageRequest, pb.PullMessageResponse),
    "GetOffset": (pb.GetOffsetRequest, pb.GetOffsetResponse),
    "UpdateOffset": (pb.UpdateOffsetRequest, pb.UpdateOffsetResponse),
    "QueryOffset": (pb.QueryOffsetRequest, pb.QueryOffsetResponse),
}
TOPICS = {"t": "NORMAL", "fifo": "FIFO", "mixed": "MIXED", "delay": "DELAY"}
GROUPS = ["g", "fifo-group"]
#: how a call may end when it is the client's fault
ENDS = {GrpcStatus.OK, GrpcStatus.INVALID_ARGUMENT, GrpcStatus.UNIMPLEMENTED, GrpcStatus.RESOURCE_EXHAUSTED}
OURS = {pb.INTERNAL_ERROR, pb.INTERNAL_SERVER_ERROR, pb.CODE_UNSPECIFIED}

#: what a first version refuses: not too often
LATER = {"lite_topic", "priority", "delivery_timestamp", "message_group"}

NUMBERS = [0, 1, 2, 3, 5, 16, 999, -1, 60, 1_700_000_000, (1 << 31) - 1, -(1 << 31), (1 << 63) - 1, -(1 << 63)]
FLOATS = [0.0, 1.0, -1.0, float("nan"), float("inf"), 3e38]
TEXTS = ["", " ", "a", "a||b", "*", "||", "标签", "\0", "\x01\x02", "x" * 300, "%s{}", "1" * 5000, "𝄞", "TBW102"]


class Client(Grpc):
    """A client of a Proxy over a real Broker, and what it has received."""

    def __init__(self) -> None:
        self.offline = OfflineBroker()
        self.clock = self.offline.clock
        broker, routes = self.offline.broker, RouteTable(NameserverConfig(), self.clock)
        for topic, kind in TOPICS.items():
            config = TopicConfig(topic_name=topic, read_queue_nums=4, write_queue_nums=4)
            config.attributes["message.type"] = kind
            broker.topics.put(config)
        broker.groups.put(GroupConfig(group_name="fifo-group", consume_message_orderly=True))
        broker.register(routes, Address("127.0.0.1", 10911))
        self.proxy = Proxy({broker.name: broker}, broker, routes, ProxyConfig(), self.clock)
        self.table = grpc.methods(self.proxy)
        self.headers = {b"x-mq-client-id": b"client-1", b"x-mq-language": b"PYTHON", b"x-mq-client-version": b"5.1.2"}
        self.handles = ["", "x", "1 2 3 4 0 broker-a 0 0 0", "9 9 9 9 9 9 9 9 9"]

    def work(self) -> None:
        """What honest clients do beside it: so there are messages to take, and handles to forge."""
        for topic, group in (("t", "g"), ("fifo", "fifo-group")):
            sent = message(topic, message_group="m" if topic == "fifo" else "")
            self.ask("SendMessage", pb.SendMessageRequest(messages=[sent] * 3), pb.SendMessageResponse)
            self.clock.run_soon()
            request = receive_request(auto_renew=True)
            request.message_queue.topic.name, request.group.name = topic, group
            call = self.receive(request)
            if call.ended is None:  # others were faster
                call.cancel()
            else:
                _, messages = stream(call)
                self.handles += [one.system_properties.receipt_handle for one in messages]


class Chaos:
    """Makes messages. The same seed makes the same ones."""

    def __init__(self, seed: int, client: Client) -> None:
        self.random = random.Random(seed)
        self.client = client
        #: how far this one is from an honest client
        self.wildness = 0.0

    def message(self, kind: type[ProtoMessage]) -> ProtoMessage:
        made = kind()
        self.wildness = self.random.choice([0.0, 0.02, 0.1, 0.3])
        self.fill(made, "")
        return made

    def fill(self, made: ProtoMessage, within: str) -> None:
        """`within` is the field that the message stands in."""
        for field in made.DESCRIPTOR.fields:
            if self.random.random() < self.wildness or (field.name in LATER and self.random.random() > self.wildness):
                continue
            if field.message_type is not None and field.message_type.GetOptions().map_entry:
                for _ in range(self.random.choice([0, 1, 2, 40])):
                    getattr(made, field.name)[self.text("key")] = self.text("value")
            elif field.is_repeated:
                for _ in range(self.random.choice([0, 1, 1, 1, 2, 70])):
                    self.put_repeated(made, field)
            elif field.message_type is not None:
                part = getattr(made, field.name)
                part.SetInParent()
                self.fill(part, field.name)
            else:
                setattr(made, field.name, self.scalar(field, within))

    def put_repeated(self, made: ProtoMessage, field: Any) -> None:
        values = getattr(made, field.name)
        if field.message_type is not None:
            self.fill(values.add(), field.name)
        else:
            values.append(self.scalar(field, ""))

    def scalar(self, field: Any, within: str) -> Any:
        pick = self.random.choice
        if field.type == FieldDescriptor.TYPE_STRING:
            return self.text(field.name, within)
        if field.type == FieldDescriptor.TYPE_BYTES:
            return pick([b"", b"x", b"hello", bytes(2000)])
        if field.type == FieldDescriptor.TYPE_BOOL:
            return pick([True, False])
        if field.type == FieldDescriptor.TYPE_FLOAT:
            return pick(FLOATS)
        if field.type == FieldDescriptor.TYPE_ENUM:
            if self.random.random() >= self.wildness:
                return 1
            return pick([*(value.number for value in field.enum_type.values), 77])
        if self.random.random() >= self.wildness:
            return pick([10, 30, 60])
        bits = 31 if field.type == FieldDescriptor.TYPE_INT32 else 63
        return pick([number for number in NUMBERS if -(1 << bits) <= number < 1 << bits])

    def text(self, name: str, within: str = "") -> str:
        pick = self.random.choice
        if self.random.random() < self.wildness:
            return pick(TEXTS)
        if name == "receipt_handle":
            return self.handle()
        if name == "name":
            return pick({"group": GROUPS, "broker": ["broker-a"]}.get(within, ["t", "fifo", "mixed", "delay"]))
        return pick(["a", "*", "01" + "A" * 32, "key", "10.0.0.1"])

    def handle(self) -> str:
        """One that was given, or one that is like it but for a field or two."""
        fields = self.random.choice(self.client.handles).split(" ")
        for _ in range(self.random.choice([0, 0, 1, 1, 2])):
            fields[self.random.randrange(len(fields))] = self.random.choice(
                [str(self.random.choice(NUMBERS)), "9" * 400, "1" * 5000, "", "-", "1e3", "٣", "broker-b"]
            )
        return " ".join(fields)

    def step(self) -> None:
        client = self.client
        client.headers[b"x-mq-client-id"] = self.random.choice([b"client-1", b"client-2", b"\xff", b"x" * 600])
        rpc = self.random.choice(list(REQUESTS))
        kind, answer = REQUESTS[rpc]
        data = self.message(kind).SerializeToString()
        if self.random.random() < 0.05:
            data = data[: self.random.randrange(len(data) + 1)] + bytes(self.random.choices(range(256), k=5))
        call = client.call()
        if self.random.random() < 0.3:
            call.deadline_ms = client.clock.steady_ms() + self.random.choice([-5, 0, 10, 6000, 1 << 60])
        call.writable = self.random.random() < 0.8
        method = client.table[f"/{grpc.SERVICE}/{rpc}".encode()]
        if method.kind is Kind.BIDI:
            call.run(method)
            call.say(method, data)
        else:
            call.run(method, data)
        end = self.random.random()
        if end < 0.2 and call.open:
            call.cancel()
        elif end < 0.4:
            client.clock.advance(self.random.choice([1, 1000, 15_000, 70_000]))
        client.clock.run_soon()
        self.check(call, answer)

    def check(self, call: FakeCall, answer: type[ProtoMessage]) -> None:
        assert call.ended is None or call.ended[0] in ENDS, call.ended
        for data in call.out:
            said = answer.FromString(data)
            for status in statuses(said):
                assert status.code not in OURS, status
            if isinstance(said, pb.ReceiveMessageResponse) and said.HasField("message"):
                self.client.handles.append(said.message.system_properties.receipt_handle)


def statuses(said: Any) -> list[pb.Status]:
    found = [said.status] if said.HasField("status") else []
    return found + [entry.status for entry in getattr(said, "entries", ())]


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(st.integers(0, 1 << 32))
def test_whatever_a_client_says(caplog: pytest.LogCaptureFixture, seed: int) -> None:
    caplog.clear()
    client = Client()
    chaos = Chaos(seed, client)
    for round_ in range(20):
        if round_ % 5 == 0:
            client.headers[b"x-mq-client-id"] = b"honest"
            client.work()
        chaos.step()
    client.clock.advance(200_000)
    client.proxy.close()
    client.offline.stop()
    assert [entry for entry in caplog.records if entry.levelno >= logging.ERROR] == []
    assert not client.offline.store._failed


KEYS = sorted(value for name, value in vars(props).items() if name.isupper() and isinstance(value, str))
values = st.text(st.characters(exclude_characters="\x01\x02", codec="utf-8"), max_size=20) | st.integers().map(str)
times = st.integers(-(1 << 63), (1 << 63) - 1)


@given(
    st.dictionaries(st.sampled_from(KEYS) | values, values),
    st.binary(max_size=20),
    times,
    times,
    st.integers(0, (1 << 31) - 1),
    st.integers(0, 0xFFFF),
)
def test_whatever_stands_in_the_log_reaches_its_consumer(
    properties: dict[str, str], body: bytes, born_ms: int, stored_ms: int, reconsume_times: int, sys_flag: int
) -> None:
    """Others write into the log too: Remoting clients, Apache's broker. One message must not block those behind it."""
    stored = Message("t", 3, body, props.encode(properties), born_ms, HOST, 0, sys_flag, reconsume_times)
    data = record.encode(stored, queue_offset=7, commit_log_offset=8, stored_ms=stored_ms, store_host=HOST)
    client = Grpc()
    client.broker.add_topic("t")
    client.broker.groups["g"] = GroupConfig(group_name="g", retry_max_times=(1 << 31) - 1)
    popped = Popped(data, TopicKind.NORMAL, 3, 7, 8, 7, reconsume_times)
    client.broker.answers["pop"] = [found([popped])]
    _, (got,) = stream(client.receive(receive_request()))
    assert got.body == body
    system = got.system_properties
    for time in (system.born_timestamp, system.store_timestamp, system.delivery_timestamp):
        assert 1970 <= time.ToDatetime().year <= 9999
