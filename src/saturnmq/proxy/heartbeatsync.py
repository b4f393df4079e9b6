"""Proxies tell each other of their clients, in a topic that Apache's Proxies read and write too.

Each tells what comes and goes at once, and who is there every half minute, so that one that starts knows soon. What a
message means to a Proxy depends on nothing before it: what is lost or skipped comes again.
Source: proxy/service/sysmessage/HeartbeatSyncer.java, HeartbeatSyncerData.java, processor/channel/RemoteChannel.java.
"""

from __future__ import annotations

import logging
from collections import deque
from functools import partial
from typing import Protocol

import msgspec

from saturnmq.kernel import properties as props
from saturnmq.kernel.clock import Clock, Timer
from saturnmq.kernel.errors import IllegalFilter, InvalidParameter, ProtocolError, TopicNotFound
from saturnmq.kernel.host import Address, pack
from saturnmq.kernel.later import Reply, after, chain, gather, rescue
from saturnmq.kernel.message import Message
from saturnmq.kernel.ports import (
    ClientChannel,
    ConsumerMembership,
    ConsumeType,
    GroupMember,
    MessageModel,
    PullRequest,
    PullResult,
    SendReceipt,
    SendRequest,
)
from saturnmq.kernel.subscription import SQL92, keep, subscribe
from saturnmq.kernel.topic import READ, WRITE, MessageQueue, TopicConfig, TopicRoute
from saturnmq.proxy.presence import Presence
from saturnmq.proxy.receipts import settle
from saturnmq.proxy.remotebroker import RemoteBroker
from saturnmq.proxy.sessions import Client
from saturnmq.wire import record as records
from saturnmq.wire.proto import rocketmq_pb2 as pb
from saturnmq.wire.remoting import json
from saturnmq.wire.remoting.bodies import SubscriptionData, decode, encode
from saturnmq.wire.remoting.consumers import subscription_data

logger = logging.getLogger(__name__)

#: between reports of who is here and looks for queues, milliseconds; others forget who is silent for 120 s
PERIOD_MS = 30_000
#: how long a read of the topic waits at its broker, milliseconds
POLL_MS = 15_000
#: before a read that failed is repeated, milliseconds
RETRY_MS = 5_000
#: messages of one read
BATCH = 32
BATCH_BYTES = 4 << 20
#: reports on their way to a broker; the others wait
MOST_SENDS = 100

REGISTER, UNREGISTER = "REGISTER", "UNREGISTER"
CLIENT_TYPES = {ConsumeType.PASSIVELY: pb.PUSH_CONSUMER, ConsumeType.ACTIVELY: pb.SIMPLE_CONSUMER}


class SyncedHeartbeat(msgspec.Struct, rename="camel", kw_only=True):
    """One message of the topic: a client is in a consumer group, or is no longer (HeartbeatSyncerData)."""

    heartbeat_type: str
    client_id: str
    language: str
    version: int
    last_update_timestamp: int
    group: str
    #: of the Proxy that it is connected to
    local_proxy_id: str
    #: JSON of ChannelData
    channel_data: str = ""
    subscription_data_set: list[SubscriptionData] | None = None
    consume_type: str | None = None
    message_model: str | None = None
    consume_from_where: str | None = None


class ChannelData(msgspec.Struct, rename="camel", kw_only=True):
    """How the client is connected (RemoteChannelSerializer)."""

    remote_proxy_ip: str = ""
    remote_address: str = ""
    local_address: str = ""
    type: str = "GRPC_V2"
    #: over gRPC its Settings as protobuf's JSON, over Remoting its subscriptions
    extend_attribute: str | None = None


class Directory(Protocol):
    """What this needs of `proxy.cluster`."""

    def route(self, topic: str) -> Reply[TopicRoute]: ...

    def broker(self, name: str) -> RemoteBroker: ...

    def masters_of(self, cluster: str) -> list[RemoteBroker]: ...


class HeartbeatSync:
    """Owner of how far this Proxy has read the topic. A `proxy.presence.Listener`."""

    def __init__(
        self, cluster: Directory, presence: Presence, topic: str, cluster_name: str, place: str, clock: Clock
    ) -> None:
        """`place`: what other Proxies know this one by."""
        self._cluster, self._presence, self._clock = cluster, presence, clock
        self._topic, self._cluster_name, self._place = topic, cluster_name, place
        #: queues that are read
        self._reading: set[MessageQueue] = set()
        #: REGISTER or UNREGISTER, who, and the group: what is not said yet
        self._unsaid: deque[tuple[str, ClientChannel, ConsumerMembership]] = deque()
        self._sends = 0
        self._saying = False
        self._open = True
        self._timer: Timer | None = None

    def start(self) -> None:
        self._presence.listeners.append(self)
        self._look()

    def close(self) -> None:
        self._open = False
        if self._timer is not None:
            self._timer.cancel()

    # ------------------------------------------------------------------------------------------------- telling

    def joined(self, channel: ClientChannel) -> None:
        self._unsaid.extend((REGISTER, channel, membership) for membership in self._presence.consumed_by(channel))
        self._say()

    def left(self, channel: ClientChannel, group: str, *, consumer: bool) -> None:
        if consumer:
            gone = ConsumerMembership(
                group=group, consume_type=ConsumeType.PASSIVELY, message_model=MessageModel.CLUSTERING
            )
            self._unsaid.append((UNREGISTER, channel, gone))
            self._say()

    def _heartbeat(self, kind: str, channel: ClientChannel, membership: ConsumerMembership) -> SyncedHeartbeat:
        subscriptions = [subscription_data(one) for one in membership.subscriptions]
        data = ChannelData(
            remote_proxy_ip=self._place.partition("%")[0], remote_address=str(channel.peer), local_address=self._place
        )
        if isinstance(channel, Client):
            data.extend_attribute = settings_of(membership)
        else:
            data.type, data.extend_attribute = "REMOTING", json.write(subscriptions).decode()
        return SyncedHeartbeat(
            heartbeat_type=kind,
            client_id=channel.client_id,
            language=channel.language,
            version=channel.version,
            last_update_timestamp=self._clock.now_ms(),
            group=membership.group,
            local_proxy_id=self._place,
            channel_data=json.write(data).decode(),
            subscription_data_set=subscriptions,
            consume_type=membership.consume_type.value,
            message_model=membership.message_model.value,
            consume_from_where=membership.consume_from,
        )

    def _say(self) -> None:
        if self._saying:
            return  # what was said at once is in the loop below
        self._saying = True
        while self._unsaid and self._sends < MOST_SENDS:
            self._sends += 1
            heartbeat = self._heartbeat(*self._unsaid.popleft())
            settle(partial(self._tell, heartbeat), self._told, self._told)
        self._saying = False

    def _tell(self, heartbeat: SyncedHeartbeat) -> Reply[SendReceipt]:
        return chain(self._cluster.route(self._topic), partial(self._send, heartbeat))

    def _send(self, heartbeat: SyncedHeartbeat, route: TopicRoute) -> Reply[SendReceipt]:
        names = [data.broker_name for data in route.queue_datas if data.perm & WRITE and data.write_queue_nums]
        brokers = [self._cluster.broker(name) for name in names]
        taking = [broker for broker in brokers if broker.takes_sends]
        if not taking:
            raise TopicNotFound(f"no broker takes messages of {self._topic}")
        message = Message(
            self._topic, 0, encode(heartbeat), props.encode({props.WAIT: "true"}), self._clock.now_ms(),
            pack(Address("0.0.0.0", 0)),
        )  # fmt: skip
        request = SendRequest(producer_group=f"PID_{self._topic}", messages=[message], properties={})
        return taking[0].send(request)

    def _told(self, outcome: object) -> None:
        """What is lost comes again."""
        self._sends -= 1
        if isinstance(outcome, BaseException):
            logger.debug("other Proxies do not hear of a client: %s", outcome)
        self._say()

    # ------------------------------------------------------------------------------------------------- reading

    def _look(self) -> None:
        """For queues; and say who is here."""
        route = partial(self._cluster.route, self._topic)
        settle(lambda: rescue(route, TopicNotFound, self._create), self._read_all, self._not_read)
        if not self._unsaid:  # else it has not come to its end yet
            for channel in self._presence.channels():
                self.joined(channel)
        self._timer = self._clock.call_at(self._clock.now_ms() + PERIOD_MS, self._look)

    def _create(self, error: TopicNotFound) -> Reply[None]:
        config = TopicConfig(topic_name=self._topic, read_queue_nums=1, write_queue_nums=1)
        made: list[Reply[None]] = [
            broker.create_topic(config) for broker in self._cluster.masters_of(self._cluster_name)
        ]
        return after(gather(made), lambda _: None)

    def _read_all(self, route: TopicRoute | None) -> None:
        """From the end, queues that are new."""
        for data in route.queue_datas if route is not None else ():
            if not data.perm & READ:
                continue
            for queue_id in range(data.read_queue_nums):
                queue = MessageQueue(self._topic, data.broker_name, queue_id)
                if queue not in self._reading:
                    self._reading.add(queue)
                    self._begin(queue)

    def _begin(self, queue: MessageQueue) -> None:
        broker = self._cluster.broker(queue.broker_name)
        settle(partial(broker.max_offset, queue), partial(self._read, queue), partial(self._stopped, queue))

    def _read(self, queue: MessageQueue, offset: int) -> None:
        if not self._open:
            return
        request = PullRequest(
            group=f"CID_{self._topic}",
            queue=queue,
            offset=offset,
            max_messages=BATCH,
            max_bytes=BATCH_BYTES,
            subscription=subscribe(self._topic, None),
            wait_ms=POLL_MS,
        )
        broker = self._cluster.broker(queue.broker_name)
        settle(partial(broker.pull, request), partial(self._found, queue), partial(self._stopped, queue))

    def _found(self, queue: MessageQueue, result: PullResult) -> None:
        for data in result.records:
            try:
                self._take(decode(SyncedHeartbeat, records.decode(data).body))
            except (ProtocolError, InvalidParameter, IllegalFilter, ValueError) as error:
                logger.warning("a message of %s cannot be read: %s", self._topic, error)
        self._read(queue, result.next_offset)

    def _take(self, heartbeat: SyncedHeartbeat) -> None:
        """Raises IllegalFilter, ValueError."""
        if heartbeat.local_proxy_id == self._place:
            return
        if heartbeat.heartbeat_type == UNREGISTER:
            self._presence.left(heartbeat.local_proxy_id, heartbeat.group, heartbeat.client_id)
            return
        channel = decode(ChannelData, heartbeat.channel_data.encode()) if heartbeat.channel_data else ChannelData()
        self._presence.joined(
            heartbeat.local_proxy_id,
            GroupMember(
                client_id=heartbeat.client_id,
                address=channel.remote_address,
                language=heartbeat.language,
                version=heartbeat.version,
            ),
            ConsumerMembership(
                group=heartbeat.group,
                consume_type=ConsumeType(heartbeat.consume_type),
                message_model=MessageModel(heartbeat.message_model),
                consume_from=heartbeat.consume_from_where or "",
                subscriptions=[
                    keep(one.topic, one.sub_string, one.expression_type, one.sub_version)
                    for one in heartbeat.subscription_data_set or ()
                ],
            ),
        )

    def _stopped(self, queue: MessageQueue, error: BaseException) -> None:
        """Where it goes on, only new messages count."""
        logger.debug("%s is not read: %s", queue, error)
        if self._open:
            self._clock.call_at(self._clock.now_ms() + RETRY_MS, partial(self._begin, queue))

    def _not_read(self, error: BaseException) -> None:
        logger.warning("Proxies do not hear of one another's clients: %s", error)


def settings_of(membership: ConsumerMembership) -> str:
    """What Apache's Proxy keeps of a client, so that it may go on there."""
    from google.protobuf.json_format import MessageToJson  # only this needs it

    settings = pb.Settings(client_type=CLIENT_TYPES.get(membership.consume_type, pb.PUSH_CONSUMER))
    settings.subscription.group.name = membership.group
    for one in membership.subscriptions:
        kind = pb.SQL if one.expression_type == SQL92 else pb.TAG
        settings.subscription.subscriptions.add(
            topic=pb.Resource(name=one.topic), expression=pb.FilterExpression(type=kind, expression=one.expression)
        )
    return MessageToJson(settings, indent=None)
