"""Who is connected: consumers by group, producers by group."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from saturnmq.broker.groups import GroupTable
from saturnmq.broker.topics import TopicTable
from saturnmq.kernel.clock import Clock, Timer
from saturnmq.kernel.ports import (
    ClientChannel,
    ConsumerMembership,
    ConsumeType,
    GroupMember,
    GroupMembers,
    MessageModel,
)
from saturnmq.kernel.subscription import Subscription
from saturnmq.kernel.topic import UNIT_SUBSCRIPTION

log = logging.getLogger(__name__)

#: between looks for clients that went silent, milliseconds (BrokerController: ClientHousekeepingService)
SCAN_MS = 10_000


class ConsumerGroup:
    """The members of one group and what they want. Owner: the ClientTable."""

    __slots__ = ("consume_from", "consume_type", "fingerprint", "members", "message_model", "name", "subscriptions")

    def __init__(self, name: str) -> None:
        self.name = name
        self.consume_type = ConsumeType.PASSIVELY
        self.message_model = MessageModel.CLUSTERING
        self.consume_from = ""
        #: by topic; the members of a group must agree, the newest version wins
        self.subscriptions: dict[str, Subscription] = {}
        #: of the heart-beat that came last; the face compares it
        self.fingerprint = 0
        #: when each was last heard of, milliseconds
        self.members: dict[ClientChannel, int] = {}

    def client_ids(self) -> list[str]:
        # a client that came back may still have its old connection
        return list(dict.fromkeys(channel.client_id for channel in self.members))

    def subscribe(self, subscriptions: Iterable[Subscription]) -> bool:
        """Take what a member wants now; whether topics came or went (client/ConsumerGroupInfo.java)."""
        wanted = {subscription.topic: subscription for subscription in subscriptions}
        changed = wanted.keys() != self.subscriptions.keys()
        for topic, subscription in wanted.items():
            current = self.subscriptions.get(topic)
            if current is not None and current.version >= subscription.version:
                wanted[topic] = current
        self.subscriptions = wanted
        return changed


class ClientTable:
    """Owns who is connected (client/ConsumerManager.java, ProducerManager.java).

    A client leaves when it says so, when its connection is lost, or when its heart-beats stop for `expire_ms`. The
    members of a group are told at the end of the turn in which it changed, each once.
    """

    def __init__(self, groups: GroupTable, topics: TopicTable, clock: Clock, expire_ms: int) -> None:
        self._groups, self._topics, self._clock, self._expire_ms = groups, topics, clock, expire_ms
        self._consumers: dict[str, ConsumerGroup] = {}
        #: group → channel → when it was last heard of, milliseconds
        self._producers: dict[str, dict[ClientChannel, int]] = {}
        self._producers_by_id: dict[str, ClientChannel] = {}
        #: the groups of each channel, as consumer and as producer
        self._consumes: dict[ClientChannel, set[str]] = {}
        self._produces: dict[ClientChannel, set[str]] = {}
        self._changed: set[str] = set()
        self._scan: Timer | None = None

    def consumer_group(self, group: str) -> ConsumerGroup | None:
        """None: no member is connected."""
        return self._consumers.get(group)

    def members(self, group: str) -> GroupMembers | None:
        """As others are told of them."""
        found = self._consumers.get(group)
        if found is None:
            return None
        return GroupMembers(
            members=[
                GroupMember(
                    client_id=channel.client_id,
                    address=str(channel.peer),
                    language=channel.language,
                    version=channel.version,
                )
                for channel in found.members
            ],
            consume_type=found.consume_type,
            message_model=found.message_model,
            consume_from=found.consume_from,
            subscriptions=found.subscriptions,
        )

    def consumers_of(self, topic: str) -> set[str]:
        """The groups with members that take the topic."""
        return {group.name for group in self._consumers.values() if topic in group.subscriptions}

    def consumer(self, group: str, client_id: str) -> ClientChannel | None:
        """The way back to a connected member of the group; of a client that came back, by its new connection."""
        members = self._consumers[group].members if group in self._consumers else {}
        return next((channel for channel in reversed(members) if channel.client_id == client_id), None)

    def producers(self, group: str) -> list[ClientChannel]:
        """Who is connected as a producer of the group."""
        return list(self._producers.get(group, ()))

    def all_producers(self) -> dict[str, dict[ClientChannel, int]]:
        """By group, and when each was last heard of, milliseconds of the day."""
        now_ms, steady_ms = self._clock.now_ms(), self._clock.steady_ms()
        return {
            group: {channel: now_ms - (steady_ms - seen_ms) for channel, seen_ms in channels.items()}
            for group, channels in self._producers.items()
        }

    def producer(self, client_id: str) -> ClientChannel | None:
        """The way back to a connected producer."""
        return self._producers_by_id.get(client_id)

    def consumer_joined(
        self, channel: ClientChannel, membership: ConsumerMembership, *, keep_subscriptions: bool = False
    ) -> bool:
        """Register or keep alive. False when the group does not exist here and may not be created.

        `keep_subscriptions`: this heart-beat names none because they are what they were.
        """
        config = self._groups.get(membership.group)
        if config is None:
            return False
        self._topics.ensure_retry(
            membership.group, config.retry_queue_nums, UNIT_SUBSCRIPTION if membership.unit_mode else 0
        )
        group = self._consumers.get(membership.group)
        if group is None:
            group = self._consumers[membership.group] = ConsumerGroup(membership.group)
        group.consume_type, group.message_model = membership.consume_type, membership.message_model
        group.consume_from = membership.consume_from
        changed = channel not in group.members
        if changed:
            log.info("consumer %s (%s) joined %s", channel.client_id, channel.peer, membership.group)
        group.members[channel] = self._clock.steady_ms()
        self._consumes.setdefault(channel, set()).add(membership.group)
        if not keep_subscriptions:
            changed |= group.subscribe(membership.subscriptions)
        if changed:
            self._tell(group)
        self._watch()
        return True

    def producer_joined(self, channel: ClientChannel, group: str) -> None:
        """Register or keep alive."""
        self._producers.setdefault(group, {})[channel] = self._clock.steady_ms()
        self._producers_by_id[channel.client_id] = channel
        self._produces.setdefault(channel, set()).add(group)
        self._watch()

    def left(self, channel: ClientChannel, group: str | None = None) -> None:
        """From one group, as consumer and producer, or from all of them: its connection is lost."""
        for name in list(self._consumes.get(channel, ())) if group is None else [group]:
            self.consumer_left(channel, name)
        for name in list(self._produces.get(channel, ())) if group is None else [group]:
            self.producer_left(channel, name)

    def consumer_left(self, channel: ClientChannel, group: str) -> None:
        consumers = self._consumers.get(group)
        if consumers is None or consumers.members.pop(channel, None) is None:
            return
        log.info("consumer %s (%s) left %s", channel.client_id, channel.peer, group)
        _discard(self._consumes, channel, group)
        if not consumers.members:
            del self._consumers[group]
        self._tell(consumers)

    def producer_left(self, channel: ClientChannel, group: str) -> None:
        producers = self._producers.get(group)
        if producers is None or producers.pop(channel, None) is None:
            return
        if not producers:
            del self._producers[group]
        _discard(self._produces, channel, group)
        if channel not in self._produces and self._producers_by_id.get(channel.client_id) is channel:
            del self._producers_by_id[channel.client_id]

    def _tell(self, group: ConsumerGroup) -> None:
        config = self._groups.get(group.name)
        if group.message_model is MessageModel.BROADCASTING or (
            config is not None and not config.notify_consumer_ids_changed_enable
        ):
            return
        if not self._changed:
            self._clock.call_soon(self._notify)
        self._changed.add(group.name)

    def _notify(self) -> None:
        changed, self._changed = self._changed, set()
        for name in changed:
            group = self._consumers.get(name)
            for channel in list(group.members) if group is not None else ():
                channel.consumers_changed(name)

    def _watch(self) -> None:
        if self._scan is None:
            self._scan = self._clock.call_at(self._clock.now_ms() + SCAN_MS, self._expire)

    def _expire(self) -> None:
        self._scan = None
        oldest_ms = self._clock.steady_ms() - self._expire_ms
        for group in list(self._consumers.values()):
            for channel in [channel for channel, seen_ms in group.members.items() if seen_ms < oldest_ms]:
                log.warning("consumer %s (%s) of %s went silent", channel.client_id, channel.peer, group.name)
                self.consumer_left(channel, group.name)
        for name, producers in list(self._producers.items()):
            for channel in [channel for channel, seen_ms in producers.items() if seen_ms < oldest_ms]:
                log.warning("producer %s (%s) of %s went silent", channel.client_id, channel.peer, name)
                self.producer_left(channel, name)
        if self._consumers or self._producers:
            self._watch()

    def stop(self) -> None:
        if self._scan is not None:
            self._scan.cancel()
            self._scan = None


def _discard(groups_of: dict[ClientChannel, set[str]], channel: ClientChannel, group: str) -> None:
    groups = groups_of[channel]
    groups.discard(group)
    if not groups:
        del groups_of[channel]
