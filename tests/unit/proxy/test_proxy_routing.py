"""QueryRoute, QueryAssignment, addresses, and the hash that keeps a message group on its queue."""

from __future__ import annotations

import pytest
from proxy_fakes import Grpc

from saturnmq.kernel.config import ProxyConfig
from saturnmq.kernel.hashing import jump_hash
from saturnmq.kernel.host import Address
from saturnmq.kernel.later import Later
from saturnmq.kernel.subscription import tag_hash
from saturnmq.kernel.topic import GroupConfig, QueueData, TopicConfig
from saturnmq.proxy import routing
from saturnmq.proxy.routes import queue_permissions
from saturnmq.proxy.routing import addresses_to_tell, parse_advertise
from saturnmq.wire.proto import rocketmq_pb2 as pb

# (message group, queues, queue): computed with Guava 32.0.1, Hashing.consistentHash((long) group.hashCode(), queues)
JUMPS = [
    ("", 1, 0), ("", 2, 0), ("", 8, 0), ("", 1000, 0),
    ("a", 1, 0), ("a", 2, 0), ("a", 3, 0), ("a", 8, 0), ("a", 16, 0), ("a", 1000, 346),
    ("group-0", 1, 0), ("group-0", 2, 1), ("group-0", 3, 1), ("group-0", 8, 1), ("group-0", 16, 1),
    ("group-0", 1000, 168),
    ("group-1", 1, 0), ("group-1", 2, 1), ("group-1", 3, 1), ("group-1", 8, 7), ("group-1", 16, 15),
    ("group-1", 1000, 36),
    ("order-4711", 2, 0), ("order-4711", 3, 0), ("order-4711", 8, 3), ("order-4711", 16, 3), ("order-4711", 1000, 400),
    ("消息组", 2, 0), ("消息组", 3, 2), ("消息组", 8, 7), ("消息组", 16, 7), ("消息组", 1000, 494),
    ("FIFO", 8, 0), ("FIFO", 16, 12), ("FIFO", 1000, 277),
    ("z" * 33, 2, 1), ("z" * 33, 3, 2), ("z" * 33, 8, 2), ("z" * 33, 16, 2), ("z" * 33, 1000, 782),
    ("😀", 2, 1), ("😀", 3, 1), ("😀", 8, 4), ("😀", 16, 4), ("😀", 1000, 748),
]  # fmt: skip


@pytest.mark.parametrize(("group", "queues", "queue"), JUMPS)
def test_jump_hash_is_apaches(group: str, queues: int, queue: int) -> None:
    assert jump_hash(tag_hash(group), queues) == queue


def test_jump_hash_moves_few() -> None:
    before = [jump_hash(tag_hash(f"group-{index}"), 10) for index in range(10_000)]
    after = [jump_hash(tag_hash(f"group-{index}"), 11) for index in range(10_000)]
    moved = [new for old, new in zip(before, after, strict=True) if old != new]
    assert set(moved) == {10}, "to the new bucket only"
    assert 700 < len(moved) < 1_100
    assert all(800 < before.count(bucket) < 1_200 for bucket in range(10))


# -------------------------------------------------------------------------------------------------------- addresses

LOCAL = Address("172.17.0.2", 8081)
TOLD: list[tuple[str, str, str, str]] = [
    # advertise, the request's endpoints, :authority → what is told
    ("", "10.1.1.1:8081", "10.2.2.2:8081", "10.1.1.1:8081"),
    ("", "10.1.1.1:8081,10.1.1.2:9081", "10.2.2.2:8081", "10.1.1.1:8081,10.1.1.2:9081"),
    ("", "", "mq.example:30081", "mq.example:30081"),
    ("", "", "[::1]:8081", "[::1]:8081"),
    ("", "", "IPAuthority", "172.17.0.2:8081"),
    ("", "", "", "172.17.0.2:8081"),
    ("", "", "no-port.example", "172.17.0.2:8081"),
    ("", "", "mq.example:http", "172.17.0.2:8081"),
    ("", "", "mq.example:99999", "172.17.0.2:8081"),
    ("", ":8081", "mq.example:30081", "mq.example:30081"),
    ("", "10.1.1.1:0", "IPAuthority", "172.17.0.2:8081"),
    ("lb.example:443", "10.1.1.1:8081", "10.2.2.2:8081", "lb.example:443"),
    ("a:1, b:2", "10.1.1.1:8081", "IPAuthority", "a:1,b:2"),
    ("lb.example:0", "10.1.1.1:30081", "10.2.2.2:30081", "lb.example:8081"),
]


def addresses(text: str) -> list[Address]:
    return [Address(host, int(port)) for host, _, port in (part.rpartition(":") for part in text.split(",") if part)]


@pytest.mark.parametrize(("advertise", "requested", "authority", "told"), TOLD)
def test_addresses(advertise: str, requested: str, authority: str, told: str) -> None:
    answer = addresses_to_tell(parse_advertise(advertise), addresses(requested), authority, LOCAL)
    assert ",".join(map(str, answer)) == told


def test_an_advertised_address_that_cannot_be_read() -> None:
    with pytest.raises(ValueError, match="is not host:port"):
        Grpc(ProxyConfig(advertise="mq.example"))


def query(client: Grpc, topic: str = "t", endpoints: pb.Endpoints | None = None) -> pb.QueryRouteResponse:
    request = pb.QueryRouteRequest(topic=pb.Resource(name=topic, resource_namespace="ns"), endpoints=endpoints)
    return client.ask("QueryRoute", request, pb.QueryRouteResponse)


@pytest.mark.parametrize(
    ("host", "scheme"), [("10.1.1.1", pb.IPv4), ("fe80::1", pb.IPv6), ("mq.example", pb.DOMAIN_NAME)]
)
def test_the_scheme_is_that_of_the_host(host: str, scheme: pb.AddressScheme) -> None:
    client = Grpc()
    client.broker.add_topic("t")
    dialled = [pb.Address(host=host, port=8081), pb.Address(host=host, port=8082)]
    # what the client calls the scheme does not count: some call everything a name
    asked = pb.Endpoints(scheme=pb.DOMAIN_NAME, addresses=dialled)
    for queue in query(client, endpoints=asked).message_queues:
        assert queue.broker.endpoints == pb.Endpoints(scheme=scheme, addresses=dialled)


@pytest.mark.parametrize(("count", "host"), [(65, "a"), (1, "a" * 254)])
def test_addresses_that_nobody_dialled(count: int, host: str) -> None:
    client = Grpc()
    client.broker.add_topic("t")
    asked = pb.Endpoints(addresses=[pb.Address(host=host, port=1)] * count)
    assert query(client, endpoints=asked).status.code == pb.BAD_REQUEST


# ----------------------------------------------------------------------------------------------------------- routes


def test_a_route() -> None:
    client = Grpc()
    client.broker.add_topic("t", "FIFO", read_queue_nums=2, write_queue_nums=2)
    endpoints = pb.Endpoints(scheme=pb.DOMAIN_NAME, addresses=[pb.Address(host="mq.example", port=8081)])
    assert query(client) == pb.QueryRouteResponse(
        status=pb.Status(code=pb.OK, message="OK"),
        message_queues=[
            pb.MessageQueue(
                topic=pb.Resource(name="t", resource_namespace="ns"),
                id=queue_id,
                permission=pb.READ_WRITE,
                broker=pb.Broker(name="broker-a", id=0, endpoints=endpoints),
                accept_message_types=[pb.FIFO],
            )
            for queue_id in range(2)
        ],
    )


@pytest.mark.parametrize(
    ("kind", "accepted"),
    [
        ("NORMAL", [pb.NORMAL]),
        ("FIFO", [pb.FIFO]),
        ("DELAY", [pb.DELAY]),
        ("TRANSACTION", [pb.TRANSACTION]),
        ("MIXED", [pb.NORMAL, pb.FIFO, pb.DELAY, pb.TRANSACTION]),
        ("SOMETHING_NEW", [pb.MESSAGE_TYPE_UNSPECIFIED]),
    ],
)
def test_what_a_topic_takes(kind: str, accepted: list[pb.MessageType]) -> None:
    client = Grpc()
    client.broker.add_topic("t", kind, read_queue_nums=1, write_queue_nums=1)
    (queue,) = query(client).message_queues
    assert list(queue.accept_message_types) == accepted


R, W, RW, NONE = pb.READ, pb.WRITE, pb.READ_WRITE, pb.NONE


@pytest.mark.parametrize(
    ("perm", "reads", "writes", "permissions"),
    [
        (6, 2, 2, [RW, RW]),
        (6, 3, 2, [R, RW, RW]),
        (6, 1, 3, [W, W, RW]),
        (6, 0, 2, [W, W]),
        (6, 2, 0, [R, R]),
        (4, 2, 3, [R, R]),
        (2, 2, 3, [W, W, W]),
        (0, 2, 3, [NONE, NONE, NONE]),
        (0, 0, 0, [NONE]),
        (1, 1, 1, [NONE]),
    ],
)
def test_permissions(perm: int, reads: int, writes: int, permissions: list[pb.Permission]) -> None:
    data = QueueData(broker_name="b", read_queue_nums=reads, write_queue_nums=writes, perm=perm)
    assert queue_permissions(data) == permissions


def test_topics_that_cannot_be_asked_for() -> None:
    client = Grpc()
    assert query(client, "nowhere").status.code == pb.TOPIC_NOT_FOUND
    assert query(client, "SCHEDULE_TOPIC_XXXX").status.code == pb.ILLEGAL_TOPIC
    assert query(client, "").status.code == pb.ILLEGAL_TOPIC
    client.broker.dev_auto_create = True
    assert query(client, "nowhere").status.code == pb.OK


def test_a_changed_topic_shows_at_once() -> None:
    client = Grpc()
    client.broker.add_topic("t", read_queue_nums=1, write_queue_nums=1)
    assert len(query(client).message_queues) == 1
    assert len(query(client).message_queues) == 1
    assert client.broker.routed == 1, "looked at once"
    client.broker.add_topic("t", read_queue_nums=5, write_queue_nums=5)
    assert len(query(client).message_queues) == 5
    del client.broker.topics["t"]
    assert query(client).status.code == pb.TOPIC_NOT_FOUND


def test_a_changed_route_shows_soon() -> None:
    client = Grpc()
    client.broker.add_topic("t")
    query(client)
    client.clock.advance(routing.VIEW_MS - 1)
    query(client)
    assert client.broker.routed == 1
    client.clock.advance(1)
    query(client)
    assert client.broker.routed == 2


def test_views_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing, "MAX_VIEWS", 3)
    client = Grpc()
    for index in range(10):
        client.broker.add_topic(f"t{index}")
        query(client, f"t{index}")
    assert list(client.proxy.routing._views) == ["t7", "t8", "t9"]


def test_a_slow_route() -> None:
    client = Grpc()
    config = client.broker.add_topic("t")
    found: Later[TopicConfig] = Later()
    client.broker.answers["topic_config"] = [found]
    answers = client.ask_later("QueryRoute", pb.QueryRouteRequest(topic=pb.Resource(name="t")), pb.QueryRouteResponse)
    found.resolve(config)
    assert answers[0].status.code == pb.OK


# ------------------------------------------------------------------------------------------------------ assignments


def assigned(client: Grpc) -> pb.QueryAssignmentResponse:
    request = pb.QueryAssignmentRequest(
        topic=pb.Resource(name="t"),
        group=pb.Resource(name="g"),
        endpoints=pb.Endpoints(addresses=[pb.Address(host="1.2.3.4", port=5)]),
    )
    return client.ask("QueryAssignment", request, pb.QueryAssignmentResponse)


def test_any_queue_of_the_broker() -> None:
    client = Grpc()
    client.broker.add_topic("t")
    (one,) = assigned(client).assignments
    queue = one.message_queue
    assert (queue.id, queue.permission, queue.broker.name, queue.broker.id) == (-1, pb.READ_WRITE, "broker-a", 0)
    assert queue.broker.endpoints.addresses[0].host == "1.2.3.4"
    assert not queue.accept_message_types


def test_every_queue_for_an_orderly_group() -> None:
    client = Grpc()
    client.broker.add_topic("t", read_queue_nums=3, write_queue_nums=1, perm=4)
    client.broker.groups["g"] = GroupConfig(group_name="g", consume_message_orderly=True)
    queues = [one.message_queue for one in assigned(client).assignments]
    assert [(queue.id, queue.permission) for queue in queues] == [(0, pb.READ), (1, pb.READ), (2, pb.READ)]


def test_nothing_to_read() -> None:
    client = Grpc()
    client.broker.add_topic("t", perm=2)
    assert assigned(client).status.code == pb.FORBIDDEN
    client.broker.add_topic("t", read_queue_nums=0)
    assert assigned(client).status.code == pb.FORBIDDEN
    del client.broker.topics["t"]
    assert assigned(client).status.code == pb.TOPIC_NOT_FOUND
