"""The Remoting face of the Proxy: request code → method.

All brokers are at the Proxy's address, so clients name the broker in each request (Java's). Others are told to ask a
NameServer where brokers are. Source: proxy/remoting/RemotingProtocolServer.java, proxy/remoting/activity/.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from saturnmq.kernel import properties as names
from saturnmq.kernel.errors import SaturnError, SubscriptionOutdated, SubscriptionUnknown, VersionNotSupported
from saturnmq.kernel.host import Address
from saturnmq.kernel.later import Reply, after
from saturnmq.kernel.ports import BrokerPort, GroupMembers, SendRequest
from saturnmq.kernel.subscription import Subscription, subscribe
from saturnmq.kernel.topic import TopicRoute
from saturnmq.net.remoting_channel import RemotingChannel, channel_of
from saturnmq.net.remoting_connection import Handler, RemotingConnection
from saturnmq.proxy.proxy import Proxy, type_of
from saturnmq.wire.remoting.bodies import HeartbeatData, decode, encode
from saturnmq.wire.remoting.codes import RequestCode
from saturnmq.wire.remoting.command import Command, Response
from saturnmq.wire.remoting.consumers import membership_of
from saturnmq.wire.remoting.headers import CheckClientBody, PullHeader, TopicHeader, UnregisterHeader
from saturnmq.wire.remoting.poprequests import PopRequests
from saturnmq.wire.remoting.requests import MemberRequests, PullRequests, QueueRequests, SendRequests

#: roles of a client on its connection
_PRODUCER, _CONSUMER = "proxy.producer", "proxy.consumer"


def table(proxy: Proxy, told: Callable[[Address], Address], unnamed: BrokerPort | None = None) -> dict[int, Handler]:
    """`told` is where a route says that brokers are, for a client that dialled this address. `unnamed` serves clients
    that name no broker, where there is but one."""
    brokers, clients = _Named(proxy, unnamed), Clients(proxy)
    config = proxy.config
    fields = {names.MESSAGE_REGION: config.region_id, names.TRACE_ON: str(config.trace_on).lower()}
    sends, queues = SendRequests(brokers, fields, clients.check_sent), QueueRequests(brokers)
    pulls, pops, members = PullRequests(brokers, clients.wanted), PopRequests(brokers), MemberRequests(proxy.cluster)
    return {
        RequestCode.SEND_MESSAGE: sends.send,
        RequestCode.SEND_MESSAGE_V2: sends.send_v2,
        RequestCode.SEND_BATCH_MESSAGE: sends.send_v2,
        RequestCode.CONSUMER_SEND_MSG_BACK: sends.send_back,
        RequestCode.RECALL_MESSAGE: sends.recall,
        RequestCode.END_TRANSACTION: sends.end_transaction,
        RequestCode.PULL_MESSAGE: pulls.pull,
        RequestCode.LITE_PULL_MESSAGE: pulls.pull,
        RequestCode.POP_MESSAGE: pops.pop,
        RequestCode.ACK_MESSAGE: pops.ack,
        RequestCode.BATCH_ACK_MESSAGE: pops.batch_ack,
        RequestCode.CHANGE_MESSAGE_INVISIBLETIME: pops.change_invisible,
        RequestCode.NOTIFICATION: pops.notification,
        RequestCode.QUERY_CONSUMER_OFFSET: queues.committed,
        RequestCode.UPDATE_CONSUMER_OFFSET: queues.commit,
        RequestCode.SEARCH_OFFSET_BY_TIMESTAMP: queues.by_time,
        RequestCode.GET_MAX_OFFSET: queues.largest,
        RequestCode.GET_MIN_OFFSET: queues.smallest,
        RequestCode.LOCK_BATCH_MQ: queues.lock,
        RequestCode.UNLOCK_BATCH_MQ: queues.unlock,
        RequestCode.GET_CONSUMER_LIST_BY_GROUP: members.ids,
        RequestCode.GET_CONSUMER_CONNECTION_LIST: members.connections,
        RequestCode.HEART_BEAT: clients.heartbeat,
        RequestCode.UNREGISTER_CLIENT: clients.unregister,
        RequestCode.CHECK_CLIENT_CONFIG: clients.check_client,
        RequestCode.GET_ROUTEINFO_BY_TOPIC: Routes(proxy, told).route,
    }


class _Named:
    """The brokers of this Proxy by name."""

    def __init__(self, proxy: Proxy, unnamed: BrokerPort | None) -> None:
        self._brokers, self._unnamed = proxy.brokers, unnamed

    def named(self, name: str | None) -> BrokerPort:
        if name is None:
            if self._unnamed is None:
                raise VersionNotSupported(
                    "Request doesn't have field bname: this is a Proxy, which serves clients that name the broker "
                    "in their requests; others find brokers at a NameServer, name its address as theirs"
                )
            return self._unnamed
        broker = self._brokers.get(name)
        if broker is None:
            raise SaturnError(f"the broker {name[:80]!r} is not known to this Proxy")
        return broker


class Clients:
    """Who is there, what they want, and what they may send."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy, self._cluster = proxy, proxy.cluster

    def heartbeat(self, command: Command, connection: RemotingConnection) -> Response:
        """Every one has all subscriptions: none is told that it may leave them out."""
        data = decode(HeartbeatData, command.body)
        if data.consumer_data_set:
            consumer = self._channel(command, connection, data.client_id, _CONSUMER)
            for one in data.consumer_data_set:
                self._cluster.consumer_joined(consumer, membership_of(one))
        if data.producer_data_set:
            producer = self._channel(command, connection, data.client_id, _PRODUCER)
            for group in data.producer_data_set:
                self._cluster.producer_joined(producer, group.group_name)
        return Response()

    def unregister(self, command: Command, connection: RemotingConnection) -> Response:
        header = msgspec.convert(command.fields, UnregisterHeader, strict=False)
        for role, group in ((_PRODUCER, header.producer_group), (_CONSUMER, header.consumer_group)):
            if group is not None:
                self._cluster.client_left(self._channel(command, connection, header.client_id, role), group)
        return Response()

    def check_client(self, command: Command, connection: RemotingConnection) -> Response:
        """Would this filter be understood? Raises what is wrong with it."""
        data = decode(CheckClientBody, command.body).subscription_data
        if data is not None:
            subscribe(data.topic, data.sub_string, data.expression_type)
        return Response()

    def wanted(self, header: PullHeader) -> Reply[Subscription]:
        """As the heart-beats of the consumer's group said."""

        def of_topic(group: GroupMembers | None) -> Subscription:
            if group is None:
                raise SubscriptionOutdated("the consumer's subscription not latest")
            subscription = group.subscriptions.get(header.topic)
            if subscription is None:
                raise SubscriptionUnknown("the consumer's subscription not exist")
            return subscription

        return after(self._cluster.members(header.consumer_group), of_topic)

    def check_sent(self, broker: BrokerPort, request: SendRequest) -> Reply[None]:
        """Raises MessageTypeMismatch."""
        if names.TRANSFER_FLAG in request.properties:
            return None
        return self._proxy.check_type(request.messages[0].topic, type_of(request.properties))

    def _channel(self, command: Command, connection: RemotingConnection, client_id: str, role: str) -> RemotingChannel:
        return channel_of(command, connection, client_id, role, self._cluster.client_left)


class Routes:
    """Where topics are: here."""

    def __init__(self, proxy: Proxy, told: Callable[[Address], Address]) -> None:
        self._routes, self._told = proxy.routes, told

    def route(self, command: Command, connection: RemotingConnection) -> Reply[Response | None]:
        topic = msgspec.convert(command.fields, TopicHeader, strict=False).topic
        address = str(self._told(connection.local))

        def answer(route: TopicRoute) -> Response:
            brokers = [
                msgspec.structs.replace(broker, broker_addrs=dict.fromkeys(broker.broker_addrs, address))
                for broker in route.broker_datas
            ]
            return Response(body=encode(msgspec.structs.replace(route, broker_datas=brokers)))

        return after(self._routes.route(topic), answer)
