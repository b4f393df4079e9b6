"""The broker's Remoting face, about clients: heart-beats, members, locks."""

from __future__ import annotations

import logging

import msgspec

from saturnmq.broker.broker import Broker
from saturnmq.broker.filters import check_allowed
from saturnmq.kernel.ports import ClientChannel
from saturnmq.kernel.subscription import subscribe
from saturnmq.net.remoting_channel import RemotingChannel, channel_of
from saturnmq.net.remoting_connection import RemotingConnection
from saturnmq.wire.remoting.bodies import (
    Connection,
    ConsumerData,
    HeartbeatData,
    ProducerConnection,
    ProducerInfo,
    ProducerTable,
    decode,
    encode,
)
from saturnmq.wire.remoting.codes import ResponseCode
from saturnmq.wire.remoting.command import Command, Response
from saturnmq.wire.remoting.consumers import QuerySubscription, membership_of, subscription_data
from saturnmq.wire.remoting.extensions import MANY_CLIENTS, extensions
from saturnmq.wire.remoting.headers import (
    CheckClientBody,
    GroupTopicHeader,
    ProducerGroupHeader,
    UnregisterHeader,
)

log = logging.getLogger(__name__)

#: key of a connection's `channels` under which this face keeps its clients by client id
_CLIENTS = "broker.clients"


class ClientHandlers:
    """One method per request code (processor/ClientManageProcessor.java, ConsumerManageProcessor.java)."""

    def __init__(self, broker: Broker) -> None:
        self._broker, self._clients, self._locks = broker, broker.clients, broker.locks

    def heartbeat(self, command: Command, connection: RemotingConnection) -> Response:
        """A client that leaves its subscriptions out is asked for them when they are not known."""
        data = decode(HeartbeatData, command.body)
        channel = self._channel(command, connection, data.client_id)
        self._broker.keeping.heard(data.client_id)
        changed = data.heartbeat_fingerprint == 0
        for consumer in data.consumer_data_set:
            changed |= self._consumer_joined(channel, consumer, data)
        for producer in data.producer_data_set:
            self._clients.producer_joined(channel, producer.group_name)
        fields = {"IS_SUPPORT_HEART_BEAT_V2": "true", "IS_SUB_CHANGE": str(changed).lower()}
        return Response(fields=fields | extensions(command, MANY_CLIENTS))

    def unregister(self, command: Command, connection: RemotingConnection) -> Response:
        header = msgspec.convert(command.fields, UnregisterHeader, strict=False)
        channel = self._channel(command, connection, header.client_id)
        if header.producer_group is not None:
            self._clients.producer_left(channel, header.producer_group)
        if header.consumer_group is not None:
            self._clients.consumer_left(channel, header.consumer_group)
            if self._clients.consumer(header.consumer_group, header.client_id) is None:  # else through another Proxy
                self._broker.keeping.gone(header.client_id)
        return Response()

    def producers(self, command: Command, connection: RemotingConnection) -> Response:
        header = msgspec.convert(command.fields, ProducerGroupHeader, strict=False)
        channels = self._clients.producers(header.producer_group)
        if not channels:
            return Response(ResponseCode.SYSTEM_ERROR, f"the producer group[{header.producer_group}] not exist")
        return Response(body=encode(ProducerConnection([_connection(channel) for channel in channels])))

    def all_producers(self, command: Command, connection: RemotingConnection) -> Response:
        groups = {
            group: [
                ProducerInfo(
                    client_id=channel.client_id,
                    remote_ip=f"/{channel.peer}",
                    language=channel.language,
                    version=channel.version,
                    last_update_timestamp=seen_ms,
                )
                for channel, seen_ms in channels.items()
            ]
            for group, channels in self._clients.all_producers().items()
        }
        return Response(body=encode(ProducerTable(groups)))

    def subscription(self, command: Command, connection: RemotingConnection) -> Response:
        """What the members of a group want of a topic."""
        header = msgspec.convert(command.fields, GroupTopicHeader, strict=False)
        group = self._clients.consumer_group(header.group)
        wanted = None if group is None else group.subscriptions.get(header.topic)
        data = None if wanted is None else subscription_data(wanted)
        return Response(body=encode(QuerySubscription(header.group, header.topic, data)))

    def check_client(self, command: Command, connection: RemotingConnection) -> Response:
        """Would this filter be understood? Raises what is wrong with it."""
        data = decode(CheckClientBody, command.body).subscription_data
        if data is not None:
            subscription = subscribe(data.topic, data.sub_string, data.expression_type)
            check_allowed(self._broker.config, subscription)
        return Response()

    def _channel(self, command: Command, connection: RemotingConnection, client_id: str) -> RemotingChannel:
        return channel_of(command, connection, client_id, _CLIENTS, self._clients.left)

    def _consumer_joined(self, channel: RemotingChannel, consumer: ConsumerData, data: HeartbeatData) -> bool:
        """Whether the client should send its subscriptions with the next heart-beat."""
        without = data.without_sub and data.heartbeat_fingerprint != 0
        membership = membership_of(consumer)
        for subscription in membership.subscriptions:
            self._broker.topics.get_or_create(subscription.topic)
        known = self._clients.consumer_group(consumer.group_name)
        if not self._clients.consumer_joined(channel, membership, keep_subscriptions=without):
            log.warning("%s (%s) names the unknown group %s", channel.client_id, channel.peer, consumer.group_name)
            return False
        group = self._clients.consumer_group(consumer.group_name)
        assert group is not None, "a member has just joined it"
        differs = known is not None and group.fingerprint != data.heartbeat_fingerprint
        group.fingerprint = data.heartbeat_fingerprint
        return differs or (without and not group.subscriptions)


def _connection(channel: ClientChannel) -> Connection:
    return Connection(channel.client_id, str(channel.peer), channel.language, channel.version)
