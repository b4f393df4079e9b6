"""Who is connected to this Proxy and who to others, in Cluster mode. In Local mode the Broker knows.

Source: proxy/service/client/ClusterConsumerManager.java.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from saturnmq.kernel.clock import Clock, Timer
from saturnmq.kernel.ports import ClientChannel, ConsumerMembership, GroupMember, GroupMembers
from saturnmq.kernel.subscription import Subscription

#: between looks for members that went silent, milliseconds
SCAN_MS = 10_000
#: the place of those that are connected here, where others have the id of their Proxy
HERE = ""


class Member(msgspec.Struct, kw_only=True):
    """One client in one consumer group."""

    member: GroupMember
    membership: ConsumerMembership
    #: None: it is connected to another Proxy
    channel: ClientChannel | None
    #: steady milliseconds
    seen_ms: int


class Listener(Protocol):
    """Who wants to know of the clients that are connected here."""

    def joined(self, channel: ClientChannel) -> None:
        """It is new, or is in other groups than before, or wants other topics."""
        ...

    def left(self, channel: ClientChannel, group: str, *, consumer: bool) -> None:
        """It is no longer in this group, as a consumer or as a producer."""
        ...


class Presence:
    """Owner of the members of groups, as consumers and as producers.

    Members of a consumer group that are connected here hear at the end of the turn that it has changed.
    """

    def __init__(self, clock: Clock, expire_ms: int) -> None:
        self._clock, self._expire_ms = clock, expire_ms
        self.listeners: list[Listener] = []
        #: group → (place, client id) → who that is
        self._consumers: dict[str, dict[tuple[str, str], Member]] = {}
        #: of those that are connected here: the groups that they consume
        self._consumes: dict[ClientChannel, dict[str, ConsumerMembership]] = {}
        #: and those that they produce for, and when they last said so, steady milliseconds
        self._produces: dict[ClientChannel, dict[str, int]] = {}
        self._changed: set[str] = set()
        self._scan: Timer | None = None

    def close(self) -> None:
        if self._scan is not None:
            self._scan.cancel()

    # --------------------------------------------------------------------------------------------- who is there

    def members(self, group: str) -> GroupMembers | None:
        """Wherever they are connected; None: nobody is."""
        found = self._consumers.get(group)
        if not found:
            return None
        subscriptions: dict[str, Subscription] = {}
        for member in found.values():
            for one in member.membership.subscriptions:
                if one.topic not in subscriptions or subscriptions[one.topic].version <= one.version:
                    subscriptions[one.topic] = one
        newest = next(reversed(found.values())).membership
        return GroupMembers(
            members=[member.member for member in found.values()],
            consume_type=newest.consume_type,
            message_model=newest.message_model,
            consume_from=newest.consume_from,
            subscriptions=subscriptions,
        )

    def channels(self) -> list[ClientChannel]:
        """All that are connected here."""
        return [*self._consumes, *(channel for channel in self._produces if channel not in self._consumes)]

    def consumed_by(self, channel: ClientChannel) -> list[ConsumerMembership]:
        return list(self._consumes.get(channel, {}).values())

    def produced_by(self, channel: ClientChannel) -> list[str]:
        return list(self._produces.get(channel, ()))

    def consumers_here(self, group: str) -> list[ClientChannel]:
        return [member.channel for member in self._consumers.get(group, {}).values() if member.channel is not None]

    def producers_here(self, group: str) -> list[ClientChannel]:
        return [channel for channel, groups in self._produces.items() if group in groups]

    def consumer(self, group: str, client_id: str) -> ClientChannel | None:
        """The way back to one that is connected here."""
        member = self._consumers.get(group, {}).get((HERE, client_id))
        return None if member is None else member.channel

    # --------------------------------------------------------------------------------------- who comes and goes

    def consumer_joined(self, channel: ClientChannel, membership: ConsumerMembership) -> None:
        """Register or keep alive one that is connected here."""
        member = GroupMember(
            client_id=channel.client_id,
            address=str(channel.peer),
            language=channel.language,
            version=channel.version,
        )
        before = self._consumers.get(membership.group, {}).get((HERE, channel.client_id))
        if before is not None and before.channel is not None and before.channel is not channel:
            self._forget(before.channel, membership.group)  # it came back, and its old connection is not lost yet
        self._consumes.setdefault(channel, {})[membership.group] = membership
        if self.joined(HERE, member, membership, channel):
            for listener in self.listeners:
                listener.joined(channel)

    def producer_joined(self, channel: ClientChannel, group: str) -> None:
        groups = self._produces.setdefault(channel, {})
        is_new = group not in groups
        groups[group] = self._clock.steady_ms()
        self._watch()
        if is_new:
            for listener in self.listeners:
                listener.joined(channel)

    def client_left(self, channel: ClientChannel, group: str | None = None) -> None:
        for name in list(self._consumes.get(channel, ())) if group is None else [group]:
            if self._forget(channel, name):
                self.left(HERE, name, channel.client_id)
                for listener in self.listeners:
                    listener.left(channel, name, consumer=True)
        produces = self._produces.get(channel, {})
        for name in list(produces) if group is None else [group]:
            if produces.pop(name, None) is not None:
                for listener in self.listeners:
                    listener.left(channel, name, consumer=False)
        if not produces:
            self._produces.pop(channel, None)

    def _forget(self, channel: ClientChannel, group: str) -> bool:
        consumes = self._consumes.get(channel, {})
        known = consumes.pop(group, None) is not None
        if not consumes:
            self._consumes.pop(channel, None)
        return known

    def joined(
        self, place: str, member: GroupMember, membership: ConsumerMembership, channel: ClientChannel | None = None
    ) -> bool:
        """Register or keep alive one that is connected here or elsewhere. Whether anything is new of it."""
        key, members = (place, member.client_id), self._consumers.setdefault(membership.group, {})
        before = members.pop(key, None)
        members[key] = Member(member=member, membership=membership, channel=channel, seen_ms=self._clock.steady_ms())
        self._watch()
        if before is not None and before.channel is channel and before.membership == membership:
            return False
        self._tell(membership.group)
        return True

    def left(self, place: str, group: str, client_id: str) -> None:
        members = self._consumers.get(group, {})
        if members.pop((place, client_id), None) is not None:
            if not members:
                del self._consumers[group]
            self._tell(group)

    def _tell(self, group: str) -> None:
        if not self._changed:
            self._clock.call_soon(self._notify)
        self._changed.add(group)

    def _notify(self) -> None:
        changed, self._changed = self._changed, set()
        for group in changed:
            for channel in self.consumers_here(group):
                channel.consumers_changed(group)

    def _watch(self) -> None:
        if self._scan is None:
            self._scan = self._clock.call_at(self._clock.now_ms() + SCAN_MS, self._expire)

    def _expire(self) -> None:
        self._scan = None
        oldest_ms = self._clock.steady_ms() - self._expire_ms
        for group, members in list(self._consumers.items()):
            for (place, client_id), member in list(members.items()):
                if member.seen_ms < oldest_ms:
                    if member.channel is None:
                        self.left(place, group, client_id)
                    else:
                        self.client_left(member.channel, group)
        for channel, groups in list(self._produces.items()):
            for group, seen_ms in list(groups.items()):
                if seen_ms < oldest_ms:
                    self.client_left(channel, group)
        if self._consumers or self._produces:
            self._watch()
