"""Which brokers are alive, and which topics they have."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from saturnmq.kernel.config import NameserverConfig
from saturnmq.kernel.errors import InvalidParameter, SystemBusy, TopicNotFound
from saturnmq.kernel.topic import READ, READ_WRITE, DataVersion, TopicConfig
from saturnmq.nameserver.routes import Registered, Registration, RegistrationRefused, RouteTable
from saturnmq.testing.clock import VirtualClock


def topics(*names: str, **settings: Any) -> dict[str, TopicConfig]:
    return {name: TopicConfig(topic_name=name, **settings) for name in names}


def registration(**changes: Any) -> Registration:
    broker: dict[str, Any] = {
        "cluster": "c",
        "broker_name": "a",
        "broker_id": 0,
        "address": "10.0.0.1:10911",
        "ha_address": "10.0.0.1:10912",
        "topics": topics("t", "u"),
        "version": DataVersion(1, 0, 5),
    }
    return Registration(**broker | changes)


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def table(clock: VirtualClock) -> RouteTable:
    return RouteTable(NameserverConfig(), clock)


def addresses(table: RouteTable, broker: str = "a") -> dict[int, str]:
    return table.brokers[broker].broker_addrs


def test_a_registered_broker_has_routes(table: RouteTable) -> None:
    assert table.register(registration()) == Registered()
    route = table.route("t")
    assert [(data.cluster, data.broker_name, data.broker_addrs) for data in route.broker_datas] == [
        ("c", "a", {0: "10.0.0.1:10911"})
    ]
    assert [(data.broker_name, data.read_queue_nums, data.perm) for data in route.queue_datas] == [
        ("a", 16, READ_WRITE)
    ]
    assert table.topics == ["t", "u"]
    with pytest.raises(TopicNotFound, match=r"topic: x.*registered here: a"):
        table.route("x")


def test_two_brokers_share_a_topic(table: RouteTable) -> None:
    table.register(registration())
    table.register(registration(broker_name="b", address="10.0.0.2:10911", topics=topics("t", "v")))
    assert {data.broker_name for data in table.route("t").queue_datas} == {"a", "b"}
    assert {data.broker_name for data in table.route("v").broker_datas} == {"b"}


def test_what_the_caller_does_with_a_route_does_not_change_the_table(table: RouteTable) -> None:
    table.register(registration())
    route = table.route("t")
    route.broker_datas[0].broker_addrs[0] = "elsewhere"
    route.queue_datas[0].perm = 0
    assert table.route("t").broker_datas[0].broker_addrs == {0: "10.0.0.1:10911"}
    assert table.route("t").queue_datas[0].perm == READ_WRITE


def test_a_first_registration_with_one_topic_is_refused_and_leaves_nothing(table: RouteTable) -> None:
    with pytest.raises(RegistrationRefused):
        table.register(registration(topics=topics("t")))
    assert table.brokers == {}
    table.register(registration())
    table.register(registration(topics=topics("new"), version=DataVersion(2, 0, 6)))
    assert table.topics == ["t", "u", "new"]


def test_topics_change_only_with_the_version(table: RouteTable) -> None:
    version = DataVersion(1, 0, 5)
    table.register(registration(version=version))
    table.register(registration(topics=topics("t", "u", read_queue_nums=3), version=version))
    assert table.route("t").queue_datas[0].read_queue_nums == 16
    version.bump(6)  # the broker counts on in its own object
    table.register(registration(topics=topics("t", "u", read_queue_nums=3), version=version))
    assert table.route("t").queue_datas[0].read_queue_nums == 3
    assert table.version_of("c", "10.0.0.1:10911") == version
    assert table.version_of("c", "10.0.0.9:10911") is None


def test_a_replica_is_told_its_master_and_brings_no_topics(table: RouteTable) -> None:
    table.register(registration())
    replica = registration(broker_id=1, address="10.0.0.3:10911", topics=topics("x", "y"))
    assert table.register(replica) == Registered("10.0.0.1:10911", "10.0.0.1:10912")
    assert addresses(table) == {0: "10.0.0.1:10911", 1: "10.0.0.3:10911"}
    assert table.topics == ["t", "u"]


def test_a_replica_that_became_master_leaves_its_old_id(table: RouteTable) -> None:
    table.register(registration())
    table.register(registration(broker_id=1, address="10.0.0.3:10911"))
    table.unregister("c", "a", "10.0.0.1:10911")
    table.register(registration(address="10.0.0.3:10911"))
    assert addresses(table) == {0: "10.0.0.3:10911"}


def test_the_higher_state_version_keeps_the_broker_id(table: RouteTable) -> None:
    table.register(registration(version=DataVersion(1, 5, 5)))
    table.register(registration(address="10.0.0.3:10911", version=DataVersion(9, 4, 9)))
    assert addresses(table) == {0: "10.0.0.1:10911"}
    table.register(registration(address="10.0.0.3:10911", version=DataVersion(1, 6, 9)))
    assert addresses(table) == {0: "10.0.0.3:10911"}


def test_the_acting_master_may_only_be_read(table: RouteTable) -> None:
    table.register(registration(enable_acting_master=True))
    table.register(registration(enable_acting_master=True, broker_id=1, address="10.0.0.3:10911"))
    table.unregister("c", "a", "10.0.0.1:10911")
    assert addresses(table) == {1: "10.0.0.3:10911"}
    assert table.route("t").queue_datas[0].perm == READ
    table.register(
        registration(
            enable_acting_master=True,
            broker_id=1,
            address="10.0.0.3:10911",
            topics=topics("t", "w"),
            version=DataVersion(2, 0, 8),
        )
    )
    assert table.route("w").queue_datas[0].perm == READ


def test_the_last_replica_takes_the_topics_with_it(table: RouteTable) -> None:
    table.register(registration())
    table.register(registration(broker_id=1, address="10.0.0.3:10911"))
    table.unregister("c", "a", "10.0.0.1:10911")
    assert table.topics == ["t", "u"]
    table.unregister("c", "a", "10.0.0.3:10911")
    assert table.topics == []
    assert table.brokers == {}
    table.unregister("c", "a", "10.0.0.3:10911")


def test_a_broker_that_says_nothing_is_forgotten(table: RouteTable, clock: VirtualClock) -> None:
    table.register(registration())
    table.register(registration(broker_name="b", address="10.0.0.2:10911", heartbeat_timeout_ms=10_000))
    clock.jump(3_600_000)
    assert set(table.brokers) == {"a", "b"}, "no time has passed"
    clock.advance(16_000)
    assert set(table.brokers) == {"a"}
    clock.advance(100_000)
    table.heard_from("c", "10.0.0.1:10911")
    clock.advance(100_000)
    assert set(table.brokers) == {"a"}
    clock.advance(30_000)
    assert table.brokers == {}


def test_a_broker_is_gone_with_its_connection(table: RouteTable) -> None:
    table.register(registration(), "connection 1")
    table.register(registration(broker_name="b", address="10.0.0.2:10911"), "connection 2")
    table.connection_lost("connection 1")
    assert set(table.brokers) == {"b"}
    table.register(registration(broker_name="b", address="10.0.0.2:10911"), "connection 3")
    table.connection_lost("connection 2")  # it came back before its old connection was seen to be gone
    assert set(table.brokers) == {"b"}


def test_whoever_can_create_an_unknown_topic_is_asked_first(table: RouteTable) -> None:
    table.register(registration())
    table.on_unknown = lambda topic: table.register(registration(topics=topics(topic), version=DataVersion(2, 0, 5)))
    assert [data.broker_name for data in table.route("new").queue_datas] == ["a"]


def test_what_registered_through_one_connection_leaves_with_it(table: RouteTable) -> None:
    """A container's brokers share one."""
    for number in range(3):
        broker = registration(broker_name=f"b{number}", address=f"10.0.0.1:{number}", topics=topics("t", f"t{number}"))
        table.register(broker, "container" if number else "alone")
    table.connection_lost("container")
    assert set(table.brokers) == {"b0"}
    assert table.topics == ["t", "t0"]


def test_a_renewal_registers_only_what_is_not_known(table: RouteTable, clock: VirtualClock) -> None:
    table.renew(registration())
    table.delete_topic("u")
    clock.advance(100_000)
    table.renew(registration())
    assert table.topics == ["t"], "the version is the same"
    clock.advance(100_000)
    assert set(table.brokers) == {"a"}, "it was heard from"
    table.renew(registration(version=DataVersion(2, 0, 6)))
    assert table.topics == ["t", "u"]


def refused(table: RouteTable, reason: str, **changes: Any) -> None:
    before = table.brokers, table.topics
    with pytest.raises((InvalidParameter, SystemBusy), match=reason):
        table.register(registration(**changes))
    assert (table.brokers, table.topics) == before


def test_the_table_is_bounded(table: RouteTable, clock: VirtualClock) -> None:
    table.config = NameserverConfig(max_brokers=2, max_routes=5)
    table.register(registration())
    refused(table, "at most 255 characters", broker_name="x" * 256)
    refused(table, "256 characters, the limit is 255", broker_name="b", topics=topics("x" * 256, "y"))
    refused(table, r"2 routes .* 4 would be added, and there may be 5", broker_name="b", topics=topics(*"wxyz"))
    table.register(registration(topics=topics("t", "u", "v", "w", "x"), version=DataVersion(2)))
    table.register(registration(topics=topics("t", "u", "v", "w", "x"), version=DataVersion(3)))
    refused(table, "1 would be added", topics=topics("t", "y"))
    table.register(registration(broker_name="b", address="10.0.0.2:10911", topics={}))
    refused(table, r"2 brokers are registered.*maxBrokers = 2", broker_name="c", address="10.0.0.3:10911")
    table.unregister("c", "a", "10.0.0.1:10911")
    table.register(registration(broker_name="c", address="10.0.0.3:10911", topics=topics("t", "u", "v", "w", "x")))


def test_a_topic_is_made_only_where_its_brokers_are(table: RouteTable) -> None:
    table.register(registration())
    known = msgspec.structs.replace(table.route("t").queue_datas[0], write_queue_nums=1)
    table.put_topic("made", [known, msgspec.structs.replace(known, broker_name="nobody")])
    assert "made" not in table.topics
    table.put_topic("t", [known])
    assert table.route("t").queue_datas[0].write_queue_nums == 1
    table.delete_topic("t", "another cluster")
    assert "t" in table.topics
    table.delete_topic("t", "c")
    assert "t" not in table.topics
