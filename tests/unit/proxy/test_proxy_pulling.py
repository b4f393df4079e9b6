"""Consumers that keep their own place, over gRPC and a broker on a disk in memory."""

from __future__ import annotations

from typing import Any

import pytest
from proxy_fakes import FakeCall, Grpc

from saturnmq.kernel.config import NameserverConfig, ProxyConfig
from saturnmq.kernel.host import Address
from saturnmq.kernel.topic import GroupConfig, TopicConfig
from saturnmq.nameserver.routes import RouteTable
from saturnmq.net.grpc_server import GrpcStatus
from saturnmq.proxy import grpc
from saturnmq.proxy.proxy import Proxy
from saturnmq.proxy.pulling import Pulling
from saturnmq.proxy.receiving import MAX_UNREAD_BYTES
from saturnmq.testing.offline import OfflineBroker
from saturnmq.wire.proto import rocketmq_pb2 as pb

GROUP = pb.Resource(name="g")


def queue(queue_id: int = 0, broker: str = "broker-a", topic: str = "orders") -> pb.MessageQueue:
    return pb.MessageQueue(topic=pb.Resource(name=topic), id=queue_id, broker=pb.Broker(name=broker))


class Client(Grpc):
    def __init__(self) -> None:
        self.offline = OfflineBroker()
        self.clock = self.offline.clock
        broker, routes = self.offline.broker, RouteTable(NameserverConfig(), self.clock)
        broker.topics.put(TopicConfig(topic_name="orders", read_queue_nums=1, write_queue_nums=1))
        broker.groups.put(GroupConfig(group_name="g"))
        broker.register(routes, Address("127.0.0.1", 10911))
        self.proxy = Proxy({broker.name: broker}, broker, routes, ProxyConfig(), self.clock)
        self.table = grpc.methods(self.proxy)
        self.headers = {b"x-mq-client-id": b"client-1"}

    def pull(self, call: FakeCall | None = None, **fields: Any) -> FakeCall:
        request = pb.PullMessageRequest(group=GROUP, message_queue=queue(), batch_size=32)
        request.MergeFrom(pb.PullMessageRequest(**fields))
        return self.start("PullMessage", request, call)

    def offset(self) -> pb.GetOffsetResponse:
        return self.ask("GetOffset", pb.GetOffsetRequest(group=GROUP, message_queue=queue()), pb.GetOffsetResponse)


@pytest.fixture
def client() -> Client:
    return Client()


def parts(call: FakeCall) -> tuple[pb.Status, list[pb.Message], int]:
    """Status, messages, next offset."""
    assert call.ended == (GrpcStatus.OK, "")
    found = [pb.PullMessageResponse.FromString(data) for data in call.out]
    assert [part.WhichOneof("content") for part in found] == ["status", *["message"] * (len(found) - 2), "next_offset"]
    return found[0].status, [part.message for part in found[1:-1]], found[-1].next_offset


def test_from_an_offset(client: Client) -> None:
    for number in range(3):
        client.offline.send("orders", b"%d" % number, TAGS="red" if number else "blue")
    status, messages, next_offset = parts(client.pull(offset=1))
    assert (status.code, [message.body for message in messages], next_offset) == (pb.OK, [b"1", b"2"], 3)
    assert [message.system_properties.queue_offset for message in messages] == [1, 2]
    assert messages[0].system_properties.receipt_handle == "", "there is nothing to acknowledge"
    red = pb.FilterExpression(type=pb.TAG, expression="red")
    status, messages, next_offset = parts(client.pull(filter_expression=red, batch_size=1))
    assert (status.code, len(messages)) == (pb.OK, 1)


def test_a_filter_that_takes_nothing_goes_on(client: Client) -> None:
    client.offline.send("orders", TAGS="blue")
    sql = pb.FilterExpression(type=pb.SQL, expression="TAGS = 'red'")
    status, _, next_offset = parts(client.pull(filter_expression=sql))
    assert (status.code, status.message, next_offset) == (pb.MESSAGE_NOT_FOUND, "no match message", 1)


def test_it_waits_for_a_message(client: Client) -> None:
    call = client.pull(long_polling_timeout={"seconds": 10})
    assert call.later is not None
    client.offline.send("orders")
    assert parts(call)[0].code == pb.OK
    waiting = client.pull(offset=1, long_polling_timeout={"seconds": 10})
    client.clock.advance(10_000)
    assert parts(waiting)[0].code == pb.MESSAGE_NOT_FOUND
    hasty = client.call()
    hasty.deadline_ms = client.clock.steady_ms() + 1_000
    client.pull(hasty, offset=1, long_polling_timeout={"seconds": 10})
    client.clock.advance(801)
    assert parts(hasty)[0].code == pb.MESSAGE_NOT_FOUND, "before its deadline"


def test_an_offset_outside_of_the_queue(client: Client) -> None:
    client.offline.send("orders")
    status, _, next_offset = parts(client.pull(offset=7))
    assert (status.code, next_offset) == (pb.ILLEGAL_OFFSET, 1)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"message_queue": queue(broker="broker-z")}, pb.BAD_REQUEST),
        ({"message_queue": queue(topic="TBW102")}, pb.ILLEGAL_TOPIC),
        ({"message_queue": queue(topic="nope")}, pb.TOPIC_NOT_FOUND),
        ({"message_queue": queue(9)}, pb.BAD_REQUEST),
        ({"group": pb.Resource(name="CID_RMQ_SYS_x")}, pb.ILLEGAL_CONSUMER_GROUP),
        ({"filter_expression": pb.FilterExpression(type=pb.SQL, expression="a >")}, pb.ILLEGAL_FILTER_EXPRESSION),
    ],
)
def test_refused(client: Client, fields: dict[str, Any], code: pb.Code) -> None:
    [answer] = client.pull(**fields).out
    assert pb.PullMessageResponse.FromString(answer).status.code == code


def test_who_does_not_read_holds_no_more_than_that(client: Client) -> None:
    client.offline.send("orders", b"x" * 1000)
    slow = client.call()
    slow.writable = False
    client.pull(slow)
    assert slow.out == []
    slow.writable = True
    assert slow.on_writable is not None
    slow.on_writable()
    assert parts(slow)[2] == 1

    pulling = client.table[f"/{grpc.SERVICE}/PullMessage".encode()].handler.__self__  # type: ignore[attr-defined]
    assert isinstance(pulling, Pulling)
    assert pulling.unread_bytes == 0
    pulling.unread_bytes = MAX_UNREAD_BYTES
    refused = client.call()
    refused.writable = False
    client.pull(refused)
    assert refused.ended is not None
    assert refused.ended[0] == GrpcStatus.RESOURCE_EXHAUSTED


def test_where_a_group_is(client: Client) -> None:
    assert client.offset().status.code == pb.OFFSET_NOT_FOUND
    update = pb.UpdateOffsetRequest(group=GROUP, message_queue=queue(), offset=5)
    assert client.ask("UpdateOffset", update, pb.UpdateOffsetResponse).status.code == pb.OK
    assert (client.offset().status.code, client.offset().offset) == (pb.OK, 5)
    update.offset = -1
    assert client.ask("UpdateOffset", update, pb.UpdateOffsetResponse).status.code == pb.ILLEGAL_OFFSET
    update.offset, update.group.name = 1, "nope"
    client.offline.broker.groups.get("nope")  # it is created, as for every consumer
    assert client.ask("UpdateOffset", update, pb.UpdateOffsetResponse).status.code == pb.OK


def test_where_a_queue_begins_and_ends(client: Client) -> None:
    client.offline.send("orders")
    client.clock.advance(60_000)
    client.offline.send("orders")
    stored_ms = client.offline.stored("orders")[1].stored_ms

    def query(policy: pb.QueryOffsetPolicy, **fields: Any) -> pb.QueryOffsetResponse:
        request = pb.QueryOffsetRequest(message_queue=queue(), query_offset_policy=policy, **fields)
        return client.ask("QueryOffset", request, pb.QueryOffsetResponse)

    assert [query(policy).offset for policy in (pb.BEGINNING, pb.END)] == [0, 2]
    assert (
        query(pb.TIMESTAMP, timestamp={"seconds": stored_ms // 1000, "nanos": stored_ms % 1000 * 1_000_000}).offset == 1
    )
    assert query(pb.TIMESTAMP).status.code == pb.BAD_REQUEST


def test_a_pull_consumer_says_who_it_is(client: Client) -> None:
    settings = pb.Settings(client_type=pb.PULL_CONSUMER, subscription=pb.Subscription(group=GROUP))
    assert client.settings(settings).subscription.receive_batch_size == 32
    members = client.offline.broker.members("g")
    assert members is not None
    assert members.client_ids() == ["client-1"]
