"""What a NameServer answers over Remoting (namesrv/processor/DefaultRequestProcessor.java)."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable

import msgspec

from saturnmq.kernel import configfile
from saturnmq.kernel.errors import NotFound, SaturnError
from saturnmq.kernel.host import Address
from saturnmq.kernel.topic import BrokerData, DataVersion, QueueData, TopicRoute
from saturnmq.nameserver.kvconfig import ORDER_TOPICS
from saturnmq.nameserver.nameserver import NameServer
from saturnmq.nameserver.routes import MASTER, MinBrokerChange, Registration
from saturnmq.net.remoting_client import RemotingClient
from saturnmq.net.remoting_connection import Handler, RemotingConnection
from saturnmq.wire.remoting import bodies
from saturnmq.wire.remoting.codes import RequestCode, ResponseCode
from saturnmq.wire.remoting.command import Command, Response

log = logging.getLogger(__name__)

#: the hosts of a broker that listens on all of its addresses
_ANY_HOST = ("0.0.0.0:", "[::]:")
#: key in `RemotingConnection.channels`: brokers registered through this connection
_HAS_BROKER = "nameserver.has_broker"
#: sysFlag bits of a topic (common/sysflag/TopicSysFlag.java)
_UNIT, _UNIT_SUBSCRIPTION = 1, 2
#: brokers before this one sent their topics and nothing else (MQVersion.V3_0_11)
_V3_0_11 = 37


def table(server: NameServer, broker_at: Callable[[Address], Address] | None = None) -> dict[int, Handler]:
    """The handlers of a NameServer's port.

    A port that serves the broker too says with `broker_at` where clients find every broker: given the address that
    they dialled, as a rule the same.
    """
    brokers, topics, admin = BrokerHandlers(server), TopicHandlers(server, broker_at), AdminHandlers(server)
    return {
        RequestCode.REGISTER_BROKER: brokers.register,
        RequestCode.UNREGISTER_BROKER: brokers.unregister,
        RequestCode.QUERY_DATA_VERSION: brokers.data_version,
        RequestCode.BROKER_HEARTBEAT: brokers.heartbeat,
        RequestCode.GET_BROKER_MEMBER_GROUP: brokers.member_group,
        RequestCode.WIPE_WRITE_PERM_OF_BROKER: brokers.forbid_writes,
        RequestCode.ADD_WRITE_PERM_OF_BROKER: brokers.allow_writes,
        RequestCode.GET_ROUTEINFO_BY_TOPIC: topics.route,
        RequestCode.GET_BROKER_CLUSTER_INFO: topics.cluster_info,
        RequestCode.GET_ALL_TOPIC_LIST_FROM_NAMESERVER: topics.all,
        RequestCode.GET_TOPICS_BY_CLUSTER: topics.of_cluster,
        RequestCode.GET_SYSTEM_TOPIC_LIST_FROM_NS: topics.system,
        RequestCode.GET_UNIT_TOPIC_LIST: topics.unit,
        RequestCode.GET_HAS_UNIT_SUB_TOPIC_LIST: topics.unit_subscribed,
        RequestCode.GET_HAS_UNIT_SUB_UNUNIT_TOPIC_LIST: topics.unit_subscribed_only,
        RequestCode.REGISTER_TOPIC_IN_NAMESRV: topics.put,
        RequestCode.DELETE_TOPIC_IN_NAMESRV: topics.delete,
        RequestCode.PUT_KV_CONFIG: admin.put_pair,
        RequestCode.GET_KV_CONFIG: admin.pair,
        RequestCode.DELETE_KV_CONFIG: admin.delete_pair,
        RequestCode.GET_KVLIST_BY_NAMESPACE: admin.pairs,
        RequestCode.UPDATE_NAMESRV_CONFIG: admin.change_settings,
        RequestCode.GET_NAMESRV_CONFIG: admin.settings,
    }


def tell_replicas(client: RemotingClient, addresses: list[str], change: MinBrokerChange) -> None:
    """Which of them acts as master now. A replica that cannot be reached asks by itself before long."""
    fields = {
        "minBrokerId": str(change.min_broker_id),
        "minBrokerAddr": change.min_broker_address,
        "offlineBrokerAddr": change.offline_address,
        "haBrokerAddr": change.ha_address,
    }
    said = {key: value for key, value in fields.items() if value is not None}
    for text in addresses:
        try:
            address = Address.parse(text)
        except ValueError:
            log.warning("a broker registered with the address %s, which is none: it is not told of its master", text)
        else:
            client.one_way(address, RequestCode.NOTIFY_MIN_BROKER_ID_CHANGE, said)


class ListDisabled(SaturnError):
    """A setting forbids this question."""


class _BrokerHeader(msgspec.Struct, rename="camel", kw_only=True):
    cluster_name: str
    broker_name: str
    broker_addr: str


class _RegisterHeader(_BrokerHeader, rename="camel", kw_only=True):
    broker_id: int
    ha_server_addr: str = ""
    heartbeat_timeout_millis: int | None = None
    enable_acting_master: bool | None = None
    body_crc32: int = msgspec.field(name="bodyCrc32", default=0)
    zone_name: str | None = msgspec.field(name="__ZONE_NAME", default=None)


class _BrokerNameHeader(msgspec.Struct, rename="camel"):
    broker_name: str


class _MemberGroupHeader(_BrokerNameHeader, rename="camel"):
    cluster_name: str


class _RouteHeader(msgspec.Struct):
    topic: str
    zone_mode: str = msgspec.field(name="__ZONE_MODE", default="")
    zone_name: str = msgspec.field(name="__ZONE_NAME", default="")


class _TopicHeader(msgspec.Struct, rename="camel"):
    topic: str
    cluster_name: str = ""


class _ClusterHeader(msgspec.Struct):
    cluster: str


class _NamespaceHeader(msgspec.Struct):
    namespace: str


class _KeyHeader(_NamespaceHeader):
    key: str


class _PairHeader(_KeyHeader):
    value: str


class _TopicQueues(msgspec.Struct, rename="camel"):
    """As much of a TopicRouteData as REGISTER_TOPIC_IN_NAMESRV is about."""

    queue_datas: list[QueueData] = []


class BrokerHandlers:
    """Brokers that come, stay and go."""

    def __init__(self, server: NameServer) -> None:
        self._server, self._routes = server, server.routes

    def register(self, command: Command, connection: RemotingConnection) -> Response:
        header = msgspec.convert(command.fields, _RegisterHeader, strict=False)
        if header.body_crc32 and header.body_crc32 != zlib.crc32(command.body) & 0x7FFFFFFF:
            return Response(ResponseCode.SYSTEM_ERROR, "crc32 not match")
        body = bodies.decode_registration(command.body, topics_only=command.version < _V3_0_11)
        registered = self._routes.register(
            Registration(
                cluster=header.cluster_name,
                broker_name=header.broker_name,
                broker_id=header.broker_id,
                address=header.broker_addr,
                ha_address=header.ha_server_addr,
                topics=body.topic_config_serialize_wrapper.topic_config_table,
                version=body.topic_config_serialize_wrapper.data_version,
                heartbeat_timeout_ms=header.heartbeat_timeout_millis,
                enable_acting_master=header.enable_acting_master,
                zone_name=header.zone_name,
                filter_servers=body.filter_server_list,
            ),
            connection,
        )
        if _HAS_BROKER not in connection.channels:
            connection.channels[_HAS_BROKER] = True
            connection.on_close.append(lambda: self._routes.connection_lost(connection))
        fields = {"haServerAddr": registered.ha_address, "masterAddr": registered.master_address}
        return Response(
            fields={key: value for key, value in fields.items() if value is not None}, body=self._order_topics()
        )

    def _order_topics(self) -> bytes:
        if not self._server.config.return_order_topic_config_to_broker:
            return b""
        pairs = self._server.kv.namespace(ORDER_TOPICS)
        return b"" if pairs is None else bodies.encode(bodies.KVTable(dict(pairs)))

    def unregister(self, command: Command, connection: RemotingConnection) -> Response:
        header = msgspec.convert(command.fields, _BrokerHeader, strict=False)
        self._routes.unregister(header.cluster_name, header.broker_name, header.broker_addr)
        return Response()

    def data_version(self, command: Command, connection: RemotingConnection) -> Response:
        """Whether a broker's topics changed since it registered. The question itself says that it is alive."""
        header = msgspec.convert(command.fields, _BrokerHeader, strict=False)
        theirs = bodies.decode(DataVersion, command.body) if command.body else None
        self._routes.heard_from(header.cluster_name, header.broker_addr)
        ours = self._routes.version_of(header.cluster_name, header.broker_addr)
        return Response(
            fields={"changed": "true" if ours is None or ours != theirs else "false"},
            body=bodies.encode(ours) if ours else b"",
        )

    def heartbeat(self, command: Command, connection: RemotingConnection) -> Response:
        header = msgspec.convert(command.fields, _BrokerHeader, strict=False)
        self._routes.heard_from(header.cluster_name, header.broker_addr)
        return Response()

    def member_group(self, command: Command, connection: RemotingConnection) -> Response:
        header = msgspec.convert(command.fields, _MemberGroupHeader, strict=False)
        group = bodies.BrokerMemberGroup(header.cluster_name, header.broker_name)
        broker = self._routes.brokers.get(header.broker_name)
        if broker is not None:
            group.broker_addrs = broker.broker_addrs
        return Response(body=bodies.encode(bodies.BrokerMembers(group)))

    def forbid_writes(self, command: Command, connection: RemotingConnection) -> Response:
        header = msgspec.convert(command.fields, _BrokerNameHeader, strict=False)
        return Response(fields={"wipeTopicCount": str(self._routes.forbid_writes(header.broker_name))})

    def allow_writes(self, command: Command, connection: RemotingConnection) -> Response:
        header = msgspec.convert(command.fields, _BrokerNameHeader, strict=False)
        return Response(fields={"addTopicCount": str(self._routes.allow_reads_and_writes(header.broker_name))})


class TopicHandlers:
    """Where topics are, and which there are."""

    def __init__(self, server: NameServer, broker_at: Callable[[Address], Address] | None) -> None:
        self._server, self._routes, self._broker_at = server, server.routes, broker_at

    def route(self, command: Command, connection: RemotingConnection) -> Response:
        """Always in standard JSON: every client reads it, those that ask with acceptStandardJsonOnly nothing else."""
        header = msgspec.convert(command.fields, _RouteHeader, strict=False)
        self._server.check_ready()
        route = self._routes.route(header.topic)
        if self._server.config.order_message_enable:
            route.order_topic_conf = self._server.kv.get(ORDER_TOPICS, header.topic)
        if header.zone_mode.lower() == "true" and header.zone_name.strip():
            _keep_zone(route, header.zone_name)
        for broker in route.broker_datas:
            self._name_dialled_host(broker, connection.local)
        return Response(body=bodies.encode(route))

    def cluster_info(self, command: Command, connection: RemotingConnection) -> Response:
        brokers = self._routes.brokers
        clusters: dict[str, list[str]] = {}
        for name, broker in brokers.items():
            self._name_dialled_host(broker, connection.local)
            clusters.setdefault(broker.cluster, []).append(name)
        return Response(body=bodies.encode(bodies.ClusterInfo(brokers, clusters)))

    def all(self, command: Command, connection: RemotingConnection) -> Response:
        if not self._server.config.enable_all_topic_list:
            raise ListDisabled("disable: this NameServer does not list all topics (enableAllTopicList)")
        return _topics(self._routes.topics)

    def of_cluster(self, command: Command, connection: RemotingConnection) -> Response:
        header = msgspec.convert(command.fields, _ClusterHeader, strict=False)
        return self._listed(self._routes.topics_of(header.cluster))

    def unit(self, command: Command, connection: RemotingConnection) -> Response:
        return self._listed(self._routes.topics_with_flags(_UNIT, _UNIT))

    def unit_subscribed(self, command: Command, connection: RemotingConnection) -> Response:
        return self._listed(self._routes.topics_with_flags(_UNIT_SUBSCRIPTION, _UNIT_SUBSCRIPTION))

    def unit_subscribed_only(self, command: Command, connection: RemotingConnection) -> Response:
        return self._listed(self._routes.topics_with_flags(_UNIT | _UNIT_SUBSCRIPTION, _UNIT_SUBSCRIPTION))

    def _listed(self, topics: list[str]) -> Response:
        if not self._server.config.enable_topic_list:
            raise ListDisabled("disable: this NameServer does not list topics (enableTopicList)")
        return _topics(topics)

    def system(self, command: Command, connection: RemotingConnection) -> Response:
        """The names of clusters and brokers, which are topics, and one broker to ask for the others."""
        brokers = self._routes.brokers
        clusters = dict.fromkeys(broker.cluster for broker in brokers.values())
        answer = bodies.TopicList([*clusters, *brokers])
        for broker in brokers.values():
            self._name_dialled_host(broker, connection.local)
            answer.broker_addr = next(iter(broker.broker_addrs.values()))
            break
        return Response(body=bodies.encode(answer))

    def put(self, command: Command, connection: RemotingConnection) -> Response:
        header = msgspec.convert(command.fields, _TopicHeader, strict=False)
        if command.body:
            self._routes.put_topic(header.topic, bodies.decode(_TopicQueues, command.body).queue_datas)
        return Response()

    def delete(self, command: Command, connection: RemotingConnection) -> Response:
        header = msgspec.convert(command.fields, _TopicHeader, strict=False)
        self._routes.delete_topic(header.topic, header.cluster_name or None)
        return Response()

    def _name_dialled_host(self, broker: BrokerData, local: Address) -> None:
        """A broker without an address of its own is where the client found this NameServer."""
        for broker_id, address in broker.broker_addrs.items():
            if self._broker_at is not None:
                broker.broker_addrs[broker_id] = str(self._broker_at(local))
            elif address.startswith(_ANY_HOST) and (port := address.rpartition(":")[2]).isdecimal():
                broker.broker_addrs[broker_id] = str(Address(local.host, int(port)))


class AdminHandlers:
    """What tools keep here, and settings."""

    def __init__(self, server: NameServer) -> None:
        self._server, self._kv = server, server.kv

    def put_pair(self, command: Command, connection: RemotingConnection) -> Response:
        header = msgspec.convert(command.fields, _PairHeader)
        self._kv.put(header.namespace, header.key, header.value)
        return Response()

    def pair(self, command: Command, connection: RemotingConnection) -> Response:
        header = msgspec.convert(command.fields, _KeyHeader)
        value = self._kv.get(header.namespace, header.key)
        if value is None:
            raise NotFound(f"No config item, Namespace: {header.namespace} Key: {header.key}")
        return Response(fields={"value": value})

    def delete_pair(self, command: Command, connection: RemotingConnection) -> Response:
        header = msgspec.convert(command.fields, _KeyHeader)
        self._kv.delete(header.namespace, header.key)
        return Response()

    def pairs(self, command: Command, connection: RemotingConnection) -> Response:
        header = msgspec.convert(command.fields, _NamespaceHeader)
        pairs = self._kv.namespace(header.namespace)
        if pairs is None:
            raise NotFound(f"No config item, Namespace: {header.namespace}")
        return Response(body=bodies.encode(bodies.KVTable(dict(pairs))))

    def change_settings(self, command: Command, connection: RemotingConnection) -> Response:
        changes = configfile.parse_properties(command.body.decode("utf-8", "replace"))
        self._server.change_settings(changes)
        return Response()

    def settings(self, command: Command, connection: RemotingConnection) -> Response:
        return Response(body=self._server.settings().encode())


def _topics(names: list[str]) -> Response:
    return Response(body=bodies.encode(bodies.TopicList(names)))


def _keep_zone(route: TopicRoute, zone: str) -> None:
    """Leave the brokers of the client's zone, and those whose master is down (namesrv/route/ZoneRouteRPCHook.java)."""
    far = [
        broker
        for broker in route.broker_datas
        if MASTER in broker.broker_addrs and (broker.zone_name or "").lower() != zone.lower()
    ]
    names = {broker.broker_name for broker in far}
    for broker in far:
        for address in broker.broker_addrs.values():
            route.filter_server_table.pop(address, None)
    route.broker_datas = [broker for broker in route.broker_datas if broker.broker_name not in names]
    route.queue_datas = [queues for queues in route.queue_datas if queues.broker_name not in names]
