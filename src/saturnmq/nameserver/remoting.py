"""What a NameServer answers over Remoting (namesrv/processor/DefaultRequestProcessor.java)."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import msgspec

from saturnmq.kernel.host import Address
from saturnmq.kernel.topic import BrokerData, DataVersion
from saturnmq.nameserver.routes import Registration, RouteTable
from saturnmq.net.remoting_connection import Handler, RemotingConnection
from saturnmq.wire.remoting import bodies
from saturnmq.wire.remoting.codes import RequestCode, ResponseCode
from saturnmq.wire.remoting.command import Command, Response

#: the hosts of a broker that listens on all of its addresses
_ANY_HOST = ("0.0.0.0:", "[::]:")
#: key in `RemotingConnection.channels`: brokers registered through this connection
_HAS_BROKER = "nameserver.has_broker"


def table(routes: RouteTable, broker_at: Callable[[Address], Address] | None = None) -> dict[int, Handler]:
    """The handlers of a NameServer's port.

    A port that serves the broker too says with `broker_at` where clients find every broker: given the address that
    they dialled, as a rule the same.
    """
    face = _Face(routes, broker_at)
    return {
        RequestCode.REGISTER_BROKER: face.register_broker,
        RequestCode.UNREGISTER_BROKER: face.unregister_broker,
        RequestCode.GET_ROUTEINFO_BY_TOPIC: face.route,
        RequestCode.GET_BROKER_CLUSTER_INFO: face.cluster_info,
        RequestCode.GET_ALL_TOPIC_LIST_FROM_NAMESERVER: face.topic_list,
        RequestCode.QUERY_DATA_VERSION: face.data_version,
        RequestCode.GET_BROKER_MEMBER_GROUP: face.member_group,
        RequestCode.BROKER_HEARTBEAT: face.heartbeat,
    }


class _BrokerHeader(msgspec.Struct, rename="camel", kw_only=True):
    cluster_name: str
    broker_name: str
    broker_addr: str


class _RegisterHeader(_BrokerHeader, rename="camel", kw_only=True):
    broker_id: int
    ha_server_addr: str
    heartbeat_timeout_millis: int | None = None
    enable_acting_master: bool | None = None
    body_crc32: int = msgspec.field(name="bodyCrc32", default=0)
    zone_name: str | None = msgspec.field(name="__ZONE_NAME", default=None)


class _MemberGroupHeader(msgspec.Struct, rename="camel"):
    cluster_name: str
    broker_name: str


class _RouteHeader(msgspec.Struct):
    topic: str


class _Face:
    """Headers and bodies in, answers out; the state is the table's."""

    def __init__(self, routes: RouteTable, broker_at: Callable[[Address], Address] | None) -> None:
        self._routes = routes
        self._broker_at = broker_at

    def register_broker(self, command: Command, connection: RemotingConnection) -> Response:
        header = msgspec.convert(command.fields, _RegisterHeader, strict=False)
        if header.body_crc32 and header.body_crc32 != zlib.crc32(command.body) & 0x7FFFFFFF:
            return Response(ResponseCode.SYSTEM_ERROR, "crc32 not match")
        body = bodies.decode_registration(command.body)
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
            ),
            connection,
        )
        if _HAS_BROKER not in connection.channels:
            connection.channels[_HAS_BROKER] = True
            connection.on_close.append(lambda: self._routes.connection_lost(connection))
        fields = {"haServerAddr": registered.ha_address, "masterAddr": registered.master_address}
        return Response(fields={key: value for key, value in fields.items() if value is not None})

    def unregister_broker(self, command: Command, connection: RemotingConnection) -> Response:
        header = msgspec.convert(command.fields, _BrokerHeader, strict=False)
        self._routes.unregister(header.cluster_name, header.broker_name, header.broker_addr)
        return Response()

    def route(self, command: Command, connection: RemotingConnection) -> Response:
        """Always in standard JSON: every client reads it, those that ask with acceptStandardJsonOnly nothing else."""
        header = msgspec.convert(command.fields, _RouteHeader, strict=False)
        route = self._routes.route(header.topic)
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

    def topic_list(self, command: Command, connection: RemotingConnection) -> Response:
        return Response(body=bodies.encode(bodies.TopicList(self._routes.topics)))

    def data_version(self, command: Command, connection: RemotingConnection) -> Response:
        """Whether a broker's topics changed since it registered. The question itself says that it is alive."""
        header = msgspec.convert(command.fields, _BrokerHeader, strict=False)
        theirs = bodies.decode(DataVersion, command.body)
        self._routes.heard_from(header.cluster_name, header.broker_addr)
        ours = self._routes.version_of(header.cluster_name, header.broker_addr)
        return Response(
            fields={"changed": "false" if ours == theirs else "true"}, body=bodies.encode(ours) if ours else b""
        )

    def member_group(self, command: Command, connection: RemotingConnection) -> Response:
        header = msgspec.convert(command.fields, _MemberGroupHeader, strict=False)
        group = bodies.BrokerMemberGroup(header.cluster_name, header.broker_name)
        broker = self._routes.brokers.get(header.broker_name)
        if broker is not None:
            group.broker_addrs = broker.broker_addrs
        return Response(body=bodies.encode(bodies.BrokerMembers(group)))

    def heartbeat(self, command: Command, connection: RemotingConnection) -> Response:
        header = msgspec.convert(command.fields, _BrokerHeader, strict=False)
        self._routes.heard_from(header.cluster_name, header.broker_addr)
        return Response()

    def _name_dialled_host(self, broker: BrokerData, local: Address) -> None:
        """A broker without an address of its own is where the client found this NameServer."""
        for broker_id, address in broker.broker_addrs.items():
            if self._broker_at is not None:
                broker.broker_addrs[broker_id] = str(self._broker_at(local))
            elif address.startswith(_ANY_HOST):
                port = int(address.rpartition(":")[2])
                broker.broker_addrs[broker_id] = str(Address(local.host, port))
