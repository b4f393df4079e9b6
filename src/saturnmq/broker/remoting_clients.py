"""The broker's Remoting face, about clients: heart-beats, members, locks, and the way back to a client."""

from __future__ import annotations

import logging

import msgspec

from saturnmq.broker.broker import Broker
from saturnmq.broker.headers import CheckClientBody, ConsumerGroupHeader, ProducerGroupHeader, UnregisterHeader
from saturnmq.kernel import properties as names
from saturnmq.kernel.errors import IllegalFilter, NotSupported, ServiceUnavailable
from saturnmq.kernel.later import Later
from saturnmq.kernel.ports import ConsumerMembership, SendRequest
from saturnmq.kernel.subscription import Subscription, subscribe
from saturnmq.net.remoting_connection import RemotingConnection
from saturnmq.wire.remoting.bodies import (
    Connection,
    ConsumerData,
    ConsumerIds,
    HeartbeatData,
    LockBatchRequest,
    LockBatchResponse,
    ProducerConnection,
    SubscriptionData,
    decode,
    encode,
)
from saturnmq.wire.remoting.codes import LanguageCode, RequestCode, ResponseCode
from saturnmq.wire.remoting.command import Command, Response

log = logging.getLogger(__name__)

#: how long a requester may take to say that it has the answer (Broker2Client#callClient)
REPLY_TIMEOUT_MS = 10_000
#: key of a connection's `channels` under which this face keeps its clients by client id
_CLIENTS = "broker.clients"


class RemotingChannel:
    """A `kernel.ports.ClientChannel` over one connection."""

    def __init__(self, connection: RemotingConnection, client_id: str, language: str, version: int) -> None:
        self._connection = connection
        self.client_id, self.language, self.version = client_id, language, version
        self.peer = connection.peer

    def consumers_changed(self, group: str) -> None:
        self._connection.send_one_way(RequestCode.NOTIFY_CONSUMER_IDS_CHANGED, {"consumerGroup": group})

    def reply_message(self, request: SendRequest, received_ms: int) -> Later[None]:
        message = request.messages[0]
        fields = {
            "producerGroup": request.producer_group,
            "topic": message.topic,
            "defaultTopic": request.default_topic,
            "defaultTopicQueueNums": str(request.default_queue_nums),
            "queueId": str(message.queue_id),
            "sysFlag": str(message.sys_flag),
            "bornTimestamp": str(message.born_ms),
            "flag": str(message.flag),
            "properties": names.encode(request.properties).decode(),
            "reconsumeTimes": str(message.reconsume_times),
            "unitMode": "false",
            "bornHost": str(self.peer),
            "storeHost": str(self._connection.local),
            "storeTimestamp": str(received_ms),
        }
        return self._connection.request(
            RequestCode.PUSH_REPLY_MESSAGE_TO_CLIENT, fields, message.body, REPLY_TIMEOUT_MS
        ).map(self._taken)

    def _taken(self, answer: Command) -> None:
        if answer.code != ResponseCode.SUCCESS:
            raise ServiceUnavailable(f"push reply message to {self.client_id} fail: {answer.remark}")


class ClientHandlers:
    """One method per request code (processor/ClientManageProcessor.java, ConsumerManageProcessor.java)."""

    def __init__(self, broker: Broker) -> None:
        self._broker, self._clients, self._locks = broker, broker.clients, broker.locks

    def heartbeat(self, command: Command, connection: RemotingConnection) -> Response:
        """A client that leaves its subscriptions out is asked for them when they are not known."""
        data = decode(HeartbeatData, command.body)
        channel = self._channel(command, connection, data.client_id)
        changed = data.heartbeat_fingerprint == 0
        for consumer in data.consumer_data_set:
            changed |= self._consumer_joined(channel, consumer, data)
        for producer in data.producer_data_set:
            self._clients.producer_joined(channel, producer.group_name)
        return Response(fields={"IS_SUPPORT_HEART_BEAT_V2": "true", "IS_SUB_CHANGE": str(changed).lower()})

    def unregister(self, command: Command, connection: RemotingConnection) -> Response:
        header = msgspec.convert(command.fields, UnregisterHeader, strict=False)
        channel = self._channel(command, connection, header.client_id)
        if header.producer_group is not None:
            self._clients.producer_left(channel, header.producer_group)
        if header.consumer_group is not None:
            self._clients.consumer_left(channel, header.consumer_group)
        return Response()

    def consumer_ids(self, command: Command, connection: RemotingConnection) -> Response:
        header = msgspec.convert(command.fields, ConsumerGroupHeader, strict=False)
        group = self._clients.consumer_group(header.consumer_group)
        if group is None:
            return Response(ResponseCode.SYSTEM_ERROR, f"no consumer for this group, {header.consumer_group}")
        return Response(body=encode(ConsumerIds(group.client_ids())))

    def producers(self, command: Command, connection: RemotingConnection) -> Response:
        header = msgspec.convert(command.fields, ProducerGroupHeader, strict=False)
        channels = self._clients.producers(header.producer_group)
        if not channels:
            return Response(ResponseCode.SYSTEM_ERROR, f"no producer of the group {header.producer_group} is connected")
        connections = [
            Connection(channel.client_id, str(channel.peer), channel.language, channel.version) for channel in channels
        ]
        return Response(body=encode(ProducerConnection(connections)))

    def check_client(self, command: Command, connection: RemotingConnection) -> Response:
        """Would this filter be understood? Raises what is wrong with it."""
        data = decode(CheckClientBody, command.body).subscription_data
        if data is not None:
            subscribe(data.topic, data.sub_string, data.expression_type)
        return Response()

    def lock(self, command: Command, connection: RemotingConnection) -> Response:
        body = decode(LockBatchRequest, command.body)
        return Response(
            body=encode(LockBatchResponse(self._locks.lock(body.consumer_group, body.mq_set, body.client_id)))
        )

    def unlock(self, command: Command, connection: RemotingConnection) -> Response:
        body = decode(LockBatchRequest, command.body)
        self._locks.unlock(body.consumer_group, body.mq_set, body.client_id)
        return Response()

    def _channel(self, command: Command, connection: RemotingConnection, client_id: str) -> RemotingChannel:
        """The client of this connection; several may share one."""
        channels: dict[str, RemotingChannel] | None = connection.channels.get(_CLIENTS)
        if channels is None:
            channels = connection.channels[_CLIENTS] = {}
            connection.on_close.append(lambda: self._lost(channels))
        channel = channels.get(client_id)
        if channel is None:
            language = LanguageCode(command.language).name
            channel = channels[client_id] = RemotingChannel(connection, client_id, language, command.version)
        return channel

    def _lost(self, channels: dict[str, RemotingChannel]) -> None:
        for channel in channels.values():
            self._clients.left(channel)

    def _consumer_joined(self, channel: RemotingChannel, consumer: ConsumerData, data: HeartbeatData) -> bool:
        """Whether the client should send its subscriptions with the next heart-beat."""
        without = data.without_sub and data.heartbeat_fingerprint != 0
        membership = ConsumerMembership(
            group=consumer.group_name,
            consume_type=consumer.consume_type,
            message_model=consumer.message_model,
            consume_from=consumer.consume_from_where,
            subscriptions=[] if without else self._subscriptions(consumer),
            unit_mode=consumer.unit_mode,
        )
        known = self._clients.consumer_group(consumer.group_name)
        if not self._clients.consumer_joined(channel, membership, keep_subscriptions=without):
            log.warning("%s (%s) names the unknown group %s", channel.client_id, channel.peer, consumer.group_name)
            return False
        group = self._clients.consumer_group(consumer.group_name)
        assert group is not None, "a member has just joined it"
        differs = known is not None and group.fingerprint != data.heartbeat_fingerprint
        group.fingerprint = data.heartbeat_fingerprint
        return differs or (without and not group.subscriptions)

    def _subscriptions(self, consumer: ConsumerData) -> list[Subscription]:
        subscriptions = []
        for data in consumer.subscription_data_set:
            self._broker.topics.get_or_create(data.topic)
            try:
                subscriptions.append(_subscription(data))
            except IllegalFilter as error:
                log.warning("group %s cannot have %s: %s", consumer.group_name, data.topic, error)
        return subscriptions


def _subscription(data: SubscriptionData) -> Subscription:
    """A filter of a kind that is not supported is kept as it is: a heart-beat is never refused, pulls are."""
    try:
        return subscribe(data.topic, data.sub_string, data.expression_type, data.sub_version)
    except NotSupported:
        return Subscription(
            topic=data.topic,
            expression=data.sub_string,
            expression_type=data.expression_type,
            version=data.sub_version,
        )
