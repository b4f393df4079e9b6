"""Becoming known: when a broker registers, with what, under which address."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Mapping
from functools import partial

import msgspec
import pytest

from saturnmq.broker.registration import LONG_BYTES, RemoteNameServers, keep_order
from saturnmq.kernel.config import NameserverConfig
from saturnmq.kernel.errors import ConnectionLost
from saturnmq.kernel.host import Address
from saturnmq.kernel.later import Later
from saturnmq.kernel.topic import DataVersion, Registration, TopicConfig
from saturnmq.nameserver.routes import RouteTable
from saturnmq.net.remoting_client import RemotingClient
from saturnmq.testing.offline import OfflineBroker
from saturnmq.wire.remoting.bodies import decode_registration
from saturnmq.wire.remoting.codes import RequestCode, ResponseCode
from saturnmq.wire.remoting.command import Command


class Recorder:
    """NameServers that only remember."""

    def __init__(self) -> None:
        #: renewals and changes
        self.registrations: list[Registration] = []
        self.left: list[tuple[str, str, str]] = []

    def register(self, registration: Registration) -> None:
        self.registrations.append(registration)

    renew = register

    def unregister(self, cluster: str, broker_name: str, address: str) -> None:
        self.left.append((cluster, broker_name, address))


def test_all_topics_at_first_and_every_half_minute_and_what_changed_at_once() -> None:
    offline, names = OfflineBroker(), Recorder()
    offline.broker.register(names, Address("0.0.0.0", 10911))
    (first,) = names.registrations
    assert (first.cluster, first.broker_name, first.broker_id) == ("DefaultCluster", "broker-a", 0)
    assert first.address == "0.0.0.0:10911"
    assert {"TBW102", "broker-a", "DefaultCluster"} <= first.topics.keys()
    offline.broker.topics.put(TopicConfig(topic_name="a"))
    offline.broker.topics.put(TopicConfig(topic_name="b"))
    assert [list(one.topics) for one in names.registrations[1:]] == [["a"], ["b"]]
    offline.clock.advance(29_999)
    assert len(names.registrations) == 3
    offline.clock.advance(1)
    assert names.registrations[3].topics.keys() >= {"a", "b", "TBW102"}
    offline.stop()
    assert names.left == [("DefaultCluster", "broker-a", "0.0.0.0:10911")]
    offline.clock.advance(60_000)
    assert len(names.registrations) == 4


def test_the_address_that_was_set_wins() -> None:
    offline, names = OfflineBroker(settings={"broker_ip1": "192.0.2.7"}), Recorder()
    offline.broker.register(names, Address("0.0.0.0", 10911))
    assert names.registrations[0].address == "192.0.2.7:10911"


def test_what_the_broker_may_not_do_its_topics_may_not() -> None:
    offline, names = OfflineBroker(settings={"broker_permission": 4}), Recorder()
    offline.broker.register(names, Address("0.0.0.0", 10911))
    assert names.registrations[0].topics["TBW102"].perm == 4
    template = offline.broker.topics.get("TBW102")
    assert template is not None
    assert template.perm == 7


def test_a_table_in_the_same_process_is_registered_with_directly() -> None:
    offline = OfflineBroker()
    routes = RouteTable(NameserverConfig(), offline.clock)
    offline.broker.register(routes, Address("0.0.0.0", 10911))
    offline.send("orders", header={"d": 2})
    route = routes.route("orders")
    assert route.broker_datas[0].broker_addrs == {0: "0.0.0.0:10911"}
    assert route.queue_datas[0].write_queue_nums == 2
    offline.stop()
    assert routes.brokers == {}


class FakeClient(RemotingClient):
    """Connections to NameServers by hand: what is asked waits in `asked` for its answer."""

    def __init__(self) -> None:
        self.asked: list[tuple[Address, int, dict[str, str], bytes, Later[Command]]] = []
        self.told: list[tuple[Address, int, dict[str, str]]] = []
        self.local: dict[Address, Address] = {}

    def request(
        self, address: Address, code: int, fields: Mapping[str, str], body: bytes, timeout_ms: int
    ) -> Later[Command]:
        answer: Later[Command] = Later()
        self.asked.append((address, code, dict(fields), body, answer))
        return answer

    def one_way(self, address: Address, code: int, fields: Mapping[str, str], body: bytes = b"") -> None:
        self.told.append((address, code, dict(fields)))

    def local_address(self, address: Address) -> Address | None:
        return self.local.get(address)


ONE, TWO = Address("127.0.0.1", 9876), Address("127.0.0.2", 9876)
CHANGED, SAME = {"changed": "true"}, {"changed": "false"}


class Stage:
    """A broker that registers with NameServers by hand."""

    def __init__(self, *addresses: Address) -> None:
        self.offline, self.client = OfflineBroker(), FakeClient()
        self.names = RemoteNameServers(self.client, addresses, 0, self.offline.clock)
        self.offline.broker.register(self.names, Address("0.0.0.0", 10911))

    def next(self, code: RequestCode, address: Address = ONE) -> tuple[dict[str, str], bytes, Later[Command]]:
        """Of the request that this NameServer got next."""
        at = next(at for at, request in enumerate(self.client.asked) if request[0] == address)
        _, asked, fields, body, answer = self.client.asked.pop(at)
        assert asked == code
        return fields, body, answer

    def know(self, address: Address = ONE) -> None:
        """The NameServer asks for all topics, and takes them."""
        self.next(RequestCode.QUERY_DATA_VERSION, address)[2].resolve(Command(0, 1, fields=CHANGED))
        self.next(RequestCode.REGISTER_BROKER, address)[2].resolve(Command(0, 1))
        assert not [request for request in self.client.asked if request[0] == address]


def topics_of(body: bytes) -> dict[str, TopicConfig]:
    return decode_registration(body).topic_config_serialize_wrapper.topic_config_table


def test_over_the_wire_the_broker_learns_how_it_is_seen_first() -> None:
    stage = Stage(ONE)
    _, body, answer = stage.next(RequestCode.QUERY_DATA_VERSION)
    assert msgspec.json.decode(body, type=DataVersion) == stage.offline.broker.topics.version
    stage.client.local[ONE] = Address("192.0.2.5", 40000)
    answer.resolve(Command(0, 1, fields=CHANGED))
    fields, body, answer = stage.next(RequestCode.REGISTER_BROKER)
    who = {
        "brokerName": "broker-a", "brokerAddr": "192.0.2.5:10911", "clusterName": "DefaultCluster", "brokerId": "0",
    }  # fmt: skip
    crc = str(zlib.crc32(body) & 0x7FFFFFFF)
    assert fields == {**who, "haServerAddr": "192.0.2.5:10911", "compressed": "false", "bodyCrc32": crc}
    assert topics_of(body)["TBW102"] == stage.offline.broker.topics.get("TBW102")
    answer.resolve(Command(0, 1))
    stage.offline.stop()
    assert stage.client.told == [(ONE, RequestCode.UNREGISTER_BROKER, who)]


def test_every_half_minute_it_says_that_it_lives_and_all_only_when_that_is_needed() -> None:
    stage = Stage(ONE)
    stage.know()
    for answer, news in ((SAME, []), (CHANGED, [RequestCode.REGISTER_BROKER])):
        stage.offline.clock.advance(30_000)
        stage.next(RequestCode.QUERY_DATA_VERSION)[2].resolve(Command(0, 1, fields=answer))
        assert [request[1] for request in stage.client.asked] == news


def test_a_change_is_told_at_once_to_those_who_know_the_rest() -> None:
    stage = Stage(ONE, TWO)
    stage.know()
    stage.offline.broker.topics.put(TopicConfig(topic_name="new"))
    _, body, _ = stage.next(RequestCode.REGISTER_BROKER)
    assert topics_of(body).keys() == {"new"}
    stage.next(RequestCode.QUERY_DATA_VERSION, TWO)[2].resolve(Command(0, 1, fields=CHANGED))
    assert topics_of(stage.next(RequestCode.REGISTER_BROKER, TWO)[1]).keys() > {"new", "TBW102"}


@pytest.mark.parametrize("how", ["unreachable", "refused", "lost"])
def test_a_nameserver_that_does_not_know_it_is_asked_every_second(how: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="saturnmq.broker.registration")
    stage = Stage(ONE, TWO)
    stage.know(TWO)
    if how == "unreachable":
        stage.next(RequestCode.QUERY_DATA_VERSION)[2].fail(ConnectionLost("refused"))
    elif how == "refused":
        stage.next(RequestCode.QUERY_DATA_VERSION)[2].resolve(Command(0, 1, fields=CHANGED))
        stage.next(RequestCode.REGISTER_BROKER)[2].resolve(Command(ResponseCode.SYSTEM_ERROR, 1, remark="no"))
    else:
        stage.know()
        stage.client.on_lost(ONE)
    stage.offline.broker.topics.put(TopicConfig(topic_name="meanwhile"))
    assert [request[0] for request in stage.client.asked] == [TWO], "it would be refused there"
    stage.client.asked.clear()
    for _ in range(3):
        stage.offline.clock.advance(999)
        assert stage.client.asked == []
        stage.offline.clock.advance(1)
        stage.next(RequestCode.QUERY_DATA_VERSION)[2].fail(ConnectionLost("refused"))
    stage.offline.clock.advance(1000)
    # it may have the same version, and not all topics: what it was told last may have got lost
    stage.next(RequestCode.QUERY_DATA_VERSION)[2].resolve(Command(0, 1, fields=SAME))
    _, body, answer = stage.next(RequestCode.REGISTER_BROKER)
    assert "meanwhile" in topics_of(body)
    answer.resolve(Command(0, 1))
    said = [record.message for record in caplog.records]
    assert len(said) == 2, "and not once a second"
    assert said[0].startswith(f"the NameServer {ONE} does not know this broker: ")
    assert said[1] == f"the NameServer {ONE} knows this broker"


def test_who_left_asks_no_more() -> None:
    stage = Stage(ONE, TWO)
    stage.know()
    stage.next(RequestCode.QUERY_DATA_VERSION, TWO)[2].fail(ConnectionLost("refused"))
    stage.client.local[ONE] = Address("192.0.2.5", 40000)
    stage.offline.stop()
    stage.client.on_lost(ONE)
    stage.offline.clock.advance(60_000)
    assert stage.client.asked == []
    assert [told[:2] for told in stage.client.told] == [(ONE, RequestCode.UNREGISTER_BROKER)]


def test_a_long_registration_is_compressed() -> None:
    stage = Stage(ONE)
    for number in range(1000):
        name = f"{number:0200}"
        stage.offline.broker.topics.put(TopicConfig(topic_name=name, attributes={"x": "y" * 4000}))
    stage.next(RequestCode.QUERY_DATA_VERSION)[2].resolve(Command(0, 1, fields=CHANGED))
    fields, body, _ = stage.next(RequestCode.REGISTER_BROKER)
    assert fields["compressed"] == "true"
    assert len(body) < LONG_BYTES
    assert topics_of(body) == stage.offline.broker.topics.configs


def test_a_nameserver_says_which_topics_keep_an_order() -> None:
    stage = Stage(ONE)
    topics = stage.offline.broker.topics
    topics.put(TopicConfig(topic_name="t"))
    stage.names.on_order_topics = partial(keep_order, topics)
    stage.next(RequestCode.QUERY_DATA_VERSION)[2].resolve(Command(0, 1, fields=CHANGED))
    stage.next(RequestCode.REGISTER_BROKER)[2].resolve(Command(0, 1, body=b'{"table":{"t":"broker-a:4","u":"x"}}'))
    changed = topics.get("t")
    assert changed is not None
    assert changed.order
    _, body, answer = stage.next(RequestCode.REGISTER_BROKER)
    assert list(topics_of(body)) == ["t"]
    answer.resolve(Command(0, 1, body=b"{"))
    assert stage.client.asked == []
