"""The brokers of a Proxy that is a process of its own, as NameServers know them.

Source: proxy/service/route/ClusterTopicRouteService.java, service/metadata/ClusterMetadataService.java.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from typing import TypeVar

from saturnmq.kernel.clock import Clock, Timer
from saturnmq.kernel.config import ClusterConfig
from saturnmq.kernel.errors import (
    ConnectionLost,
    GroupNotFound,
    RequestTimeout,
    SaturnError,
    SystemBusy,
    TopicNotFound,
    Unreachable,
)
from saturnmq.kernel.host import Address
from saturnmq.kernel.later import Later, Reply, chain, hear, rescue
from saturnmq.kernel.topic import BrokerData, GroupConfig, TopicConfig, TopicRoute
from saturnmq.net.lookups import Kept, Lookups
from saturnmq.net.nameservers import NameServers
from saturnmq.net.remoting_client import RemotingClient
from saturnmq.proxy.heartbeats import Heartbeats
from saturnmq.proxy.presence import Presence
from saturnmq.proxy.relay import Relay
from saturnmq.proxy.remotebroker import RemoteBroker
from saturnmq.wire.remoting.bodies import ClusterInfo

logger = logging.getLogger(__name__)

#: between questions which brokers there are, milliseconds; sooner while none is known
REFRESH_MS, RETRY_MS = 20_000, 1_000
#: a broker that no NameServer names for so long is gone, milliseconds; brokers register twice as often
GONE_MS = 60_000
#: a topic or a group that is not there may be made at any time, milliseconds
MISSING_MS = 1_000
#: brokers that are asked for a group before it counts as unknown
MOST_ASKED = 8

T = TypeVar("T")


class Brokers(Mapping[str, RemoteBroker]):
    """By name, those that NameServers know of. Owner of all that they ever knew of: one that is gone can be had, and is
    unreachable until it comes back."""

    def __init__(self, make: Callable[[str], RemoteBroker]) -> None:
        self._make = make
        #: before somebody hears that a name is nobody's. May raise Unreachable
        self.on_unknown: Callable[[], None] = lambda: None
        #: those that NameServers do not name any more, and since when, steady milliseconds
        self._missing: dict[str, int] = {}
        self._all: dict[str, RemoteBroker] = {}

    def __getitem__(self, name: str) -> RemoteBroker:
        if name not in self._all:
            self.on_unknown()
        return self._all[name]

    def __contains__(self, name: object) -> bool:
        return name in self._all and bool(self._all[name].link.addresses)

    def __iter__(self) -> Iterator[str]:
        return (name for name, broker in self._all.items() if broker.link.addresses)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def learn(self, datas: Iterable[BrokerData]) -> None:
        """Where these are now."""
        for data in datas:
            broker = self._all.get(data.broker_name)
            if broker is None:
                broker = self._all[data.broker_name] = self._make(data.broker_name)
            broker.cluster = data.cluster
            addresses = {}
            for broker_id, text in data.broker_addrs.items():
                try:
                    addresses[broker_id] = Address.parse(text)
                except ValueError as error:
                    logger.warning("the broker %s has an address that is none: %s", data.broker_name, error)
            if addresses != broker.link.addresses:
                logger.info("the broker %s is at %s", data.broker_name, data.broker_addrs or "no address")
                broker.link.addresses = addresses

    def name_at(self, address: Address) -> str:
        """Empty: none is there."""
        places = ((name, broker.link.addresses.values()) for name, broker in self._all.items())
        return next((name for name, addresses in places if address in addresses), "")

    def only(self, names: Set[str], steady_ms: int) -> None:
        """These are all that there are. Others are gone when they stay away; a NameServer that starts knows none."""
        self._missing = {name: self._missing.get(name, steady_ms) for name in self if name not in names}
        for name, since_ms in self._missing.items():
            if steady_ms - since_ms >= GONE_MS:
                logger.info("the broker %s is gone", name)
                self._all[name].link.addresses = {}


class Cluster:
    """A `kernel.ports.ClusterPort` and `RoutePort` over the wire. Owner of `brokers` and of what they and the
    NameServers said."""

    def __init__(
        self,
        names: NameServers,
        sends: RemotingClient,
        others: RemotingClient,
        config: ClusterConfig,
        clock: Clock,
        random: Callable[[int], int],
        expire_ms: int = 120_000,
    ) -> None:
        """`expire_ms`: without a heart-beat after which a client is gone."""
        self._names, self._clock, self._random = names, clock, random
        batch_acks = config.enable_batch_ack
        self.brokers = Brokers(lambda name: RemoteBroker(name, sends, others, clock, batch_acks=batch_acks))
        #: the next question which brokers there are; None: it is on its way
        self._refresh: Timer | None = None
        #: when the last one was answered, steady milliseconds
        self._looked_ms = 0
        self.presence = Presence(clock, expire_ms)
        self.consumer_joined, self.producer_joined = self.presence.consumer_joined, self.presence.producer_joined
        self.client_left, self.members = self.presence.client_left, self.presence.members
        self.heartbeats = Heartbeats(self.brokers, self.presence, clock)
        self.presence.listeners.append(self.heartbeats)
        self.relay = Relay(self.presence, lambda connection: self.brokers.name_at(connection.peer))
        self._routes: Lookups[TopicRoute] = Lookups(
            self._route,
            clock,
            _kept(
                config.topic_route_service_cache_refresh_seconds,
                config.topic_route_service_cache_expired_seconds,
                config.topic_route_service_cache_max_num,
            ),
        )
        self._topics: Lookups[TopicConfig] = Lookups(
            self._topic,
            clock,
            _kept(
                config.topic_config_cache_refresh_seconds,
                config.topic_config_cache_expired_seconds,
                config.topic_config_cache_max_num,
            ),
        )
        self._groups: Lookups[GroupConfig | None] = Lookups(
            self._group,
            clock,
            _kept(
                config.subscription_group_config_cache_refresh_seconds,
                config.subscription_group_config_cache_expired_seconds,
                config.subscription_group_config_cache_max_num,
            ),
        )

    def start(self) -> Reply[None]:
        """Get to know the brokers, and stay up to date. Answers after the first try, whatever came of it."""
        tried: Later[None] = Later()

        def look_again() -> None:
            """A handle may be of a broker that another Proxy came to know first."""
            if self._refresh is not None and self._clock.steady_ms() - self._looked_ms < RETRY_MS:
                return
            if self._refresh is not None:
                self._refresh.cancel()
                self._refresh = None
                ask()
            raise Unreachable(
                "this Proxy does not know that broker yet and asks its NameServers: try again in a moment"
            )

        def known(infos: list[ClusterInfo]) -> None:
            for info in infos:
                self.brokers.learn(info.broker_addr_table.values())
            self.brokers.only({name for info in infos for name in info.broker_addr_table}, self._clock.steady_ms())
            go_on(REFRESH_MS if self.brokers else RETRY_MS)

        def unknown(error: BaseException) -> None:
            logger.warning("%s", error)
            go_on(RETRY_MS)

        def go_on(wait_ms: int) -> None:
            self._looked_ms = self._clock.steady_ms()
            self._refresh = self._clock.call_at(self._clock.now_ms() + wait_ms, ask)
            if tried.pending:
                self.heartbeats.start()
                tried.resolve(None)

        def ask() -> None:
            hear(self._names.brokers(), known, unknown)

        self.brokers.on_unknown = look_again
        ask()
        return tried

    def drain(self) -> bool:
        """Who waits for messages of any broker hears now that there are none. Whether anybody waited."""
        waited = [broker.drain() for broker in self.brokers.values()]
        return any(waited)

    def close(self) -> None:
        self.heartbeats.close()
        self.presence.close()
        if self._refresh is not None:
            self._refresh.cancel()

    def trouble(self) -> str:
        """Why clients had better go elsewhere; empty: they are welcome."""
        if not self.brokers:
            return "no NameServer told of a broker yet"
        if not any(broker.link.reachable for broker in self.brokers.values()):
            return f"none of the brokers can be reached: {', '.join(self.brokers)}"
        return ""

    def broker(self, name: str) -> RemoteBroker:
        return self.brokers[name]

    def masters_of(self, cluster: str) -> list[RemoteBroker]:
        """Those that take messages."""
        return [broker for broker in self.brokers.values() if broker.cluster == cluster and broker.takes_sends]

    def route(self, topic: str) -> Reply[TopicRoute]:
        """While none of its brokers can be reached NameServers are asked every second: others may have come back."""

        def check(route: TopicRoute) -> Reply[TopicRoute]:
            return route if self._is_reachable(route) else self._routes.renewed(topic, RETRY_MS)

        return chain(self._routes.get(topic), check)

    def _is_reachable(self, route: TopicRoute) -> bool:
        return any(self.brokers[data.broker_name].link.reachable for data in route.broker_datas)

    def topic_config(self, topic: str) -> Reply[TopicConfig | None]:
        return rescue(lambda: self._topics.get(topic), TopicNotFound, lambda _: None)

    def group_config(self, group: str) -> Reply[GroupConfig | None]:
        """As the brokers would make it, where they have none: whoever consumes hears whether they do."""
        return rescue(lambda: self._groups.get(group), GroupNotFound, lambda _: GroupConfig(group_name=group))

    # ----------------------------------------------------------------------------------------------- looking up

    def _route(self, topic: str) -> Reply[TopicRoute]:
        def learn(route: TopicRoute) -> TopicRoute:
            self.brokers.learn(route.broker_datas)
            return route

        def missing(error: SaturnError) -> TopicRoute:
            """Brokers that start again are not named until they are there."""
            last = self._routes.last(topic)
            if last is None or self._is_reachable(last):
                raise error
            return last

        return rescue(lambda: self._names.route(topic).map(learn), TopicNotFound, missing)

    def _topic(self, topic: str) -> Reply[TopicConfig]:
        def ask(route: TopicRoute) -> Reply[TopicConfig]:
            names = {data.broker_name for data in route.broker_datas}
            brokers = [broker for name, broker in self.brokers.items() if name in names]
            return first_answer(self._shuffled(brokers), lambda broker: broker.topic_config(topic))

        return chain(self.route(topic), ask)

    def _group(self, group: str) -> Reply[GroupConfig | None]:
        brokers = self._shuffled(list(self.brokers.values()))[:MOST_ASKED]
        return first_answer(brokers, lambda broker: broker.group_config(group))

    def _shuffled(self, brokers: list[RemoteBroker]) -> list[RemoteBroker]:
        start = self._random(len(brokers)) if brokers else 0
        return brokers[start:] + brokers[:start]


def first_answer(brokers: Iterable[RemoteBroker], ask: Callable[[RemoteBroker], Later[T]]) -> Later[T]:
    """What the first of them says that can be reached and knows. Fails with TopicNotFound, GroupNotFound,
    Unreachable."""
    answer: Later[T] = Later()
    left = list(brokers)
    missing: list[SaturnError] = []

    def go_on(error: BaseException) -> None:
        if isinstance(error, TopicNotFound | GroupNotFound):
            missing.append(error)
        elif not isinstance(error, ConnectionLost | RequestTimeout | SystemBusy):
            answer.fail(error)
            return
        if not left:
            answer.fail(missing[0] if missing else error)
            return
        broker = left.pop(0)
        try:
            reply = ask(broker)
        except SaturnError as refused:
            go_on(refused)
        else:
            answer.on_cancel = reply.cancel
            reply.then(answer.resolve, go_on)

    go_on(Unreachable("no NameServer told of a broker that could be asked"))
    return answer


def _kept(fresh_s: int, usable_s: int, most: int) -> Kept:
    return Kept(fresh_ms=fresh_s * 1000, usable_ms=usable_s * 1000, missing_ms=MISSING_MS, most=most)
