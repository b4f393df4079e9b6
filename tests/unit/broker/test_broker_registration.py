"""Becoming known: when a broker registers, with what, under which address."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

from saturnmq.broker.registration import RemoteNameServers
from saturnmq.kernel.config import NameserverConfig
from saturnmq.kernel.errors import ConnectionLost
from saturnmq.kernel.host import Address
from saturnmq.kernel.later import Later
from saturnmq.kernel.topic import Registration, TopicConfig
from saturnmq.nameserver.routes import RouteTable
from saturnmq.net.remoting_client import RemotingClient
from saturnmq.testing.offline import OfflineBroker
from saturnmq.wire.remoting.bodies import decode_registration
from saturnmq.wire.remoting.codes import RequestCode
from saturnmq.wire.remoting.command import Command


class Recorder:
    """NameServers that only remember."""

    def __init__(self) -> None:
        self.registrations: list[Registration] = []
        self.left: list[tuple[str, str, str]] = []

    def register(self, registration: Registration) -> None:
        self.registrations.append(registration)

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
    """A connection to NameServers by hand."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, dict[str, str], bytes, Later[Command]]] = []
        self.told: list[tuple[int, dict[str, str]]] = []
        self.local: Address | None = None

    def request(
        self, address: Address, code: int, fields: Mapping[str, str], body: bytes, timeout_ms: int
    ) -> Later[Command]:
        answer: Later[Command] = Later()
        self.asked.append((code, dict(fields), body, answer))
        return answer

    def one_way(self, address: Address, code: int, fields: Mapping[str, str], body: bytes = b"") -> None:
        self.told.append((code, dict(fields)))

    def local_address(self, address: Address) -> Address | None:
        return self.local


def test_over_the_wire_the_broker_learns_how_it_is_seen_first() -> None:
    offline, client = OfflineBroker(), FakeClient()
    names = RemoteNameServers(client, [Address("127.0.0.1", 9876)], broker_id=0)
    offline.broker.register(names, Address("0.0.0.0", 10911))
    ((code, _, _, answer),) = client.asked
    assert code == RequestCode.QUERY_DATA_VERSION
    client.local = Address("192.0.2.5", 40000)
    answer.resolve(Command(0, 1))
    code, fields, body, answer = client.asked[1]
    assert code == RequestCode.REGISTER_BROKER
    assert fields == {
        "brokerName": "broker-a", "brokerAddr": "192.0.2.5:10911", "clusterName": "DefaultCluster", "brokerId": "0",
        "haServerAddr": "192.0.2.5:10911", "compressed": "false", "bodyCrc32": str(zlib.crc32(body) & 0x7FFFFFFF),
    }  # fmt: skip
    table = decode_registration(body).topic_config_serialize_wrapper.topic_config_table
    assert table["TBW102"] == offline.broker.topics.get("TBW102")
    answer.fail(ConnectionLost("127.0.0.1:9876 cannot be reached"))

    offline.clock.advance(30_000)
    assert client.asked[2][0] == RequestCode.REGISTER_BROKER, "it is tried again, and the address is known now"
    offline.stop()
    assert client.told == [
        (
            RequestCode.UNREGISTER_BROKER,
            {
                "brokerName": "broker-a", "brokerAddr": "192.0.2.5:10911", "clusterName": "DefaultCluster",
                "brokerId": "0",
            },
        )
    ]  # fmt: skip
