"""Which brokers are alive, and which topics they have.

Nothing is kept on disk: brokers register again within half a minute. Source of the rules:
namesrv/routeinfo/RouteInfoManager.java.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterable, Mapping

import msgspec

from saturnmq.kernel.clock import Clock
from saturnmq.kernel.config import NameserverConfig
from saturnmq.kernel.errors import InvalidParameter, SaturnError, SystemBusy, TopicNotFound
from saturnmq.kernel.topic import (
    READ_WRITE,
    WRITE,
    BrokerData,
    DataVersion,
    QueueData,
    TopicConfig,
    TopicRoute,
)
from saturnmq.kernel.topic import Registration as Registration

log = logging.getLogger(__name__)

MASTER = 0
#: replicas of one broker find one another by the route of this topic, where nobody acts as master
_MEMBERS_TOPIC = "rmq_sys_SYNC_BROKER_MEMBER_"
#: of cluster, broker, address and topic; no name that is longer is anybody's
_MOST_NAME_LENGTH = 255


class RegistrationRefused(SaturnError):
    """The first registration of a broker must bring all of its topics."""


class Registered(msgspec.Struct):
    """What a replica is told: its master, if there is one."""

    master_address: str | None = None
    ha_address: str | None = None


class MinBrokerChange(msgspec.Struct, kw_only=True):
    """The replica with the lowest id came or went: it acts as master (NOTIFY_MIN_BROKER_ID_CHANGE)."""

    min_broker_id: int
    min_broker_address: str
    #: who went, else None
    offline_address: str | None = None
    #: where who came sends its log, else None
    ha_address: str | None = None


class _Live(msgspec.Struct):
    """One registered process."""

    broker_name: str
    heard_ms: int
    timeout_ms: int
    version: DataVersion
    ha_address: str
    filter_servers: list[str]
    #: the connection it registered through; gone with it
    connection: Hashable | None


class RouteTable:
    """Owner of the routes; a `kernel.ports.RoutePort`. Looks for expired brokers by itself while there are any."""

    def __init__(self, config: NameserverConfig, clock: Clock) -> None:
        #: may be replaced at any time
        self.config = config
        self._clock = clock
        #: by topic and broker name
        self._topics: dict[str, dict[str, QueueData]] = {}
        self._brokers: dict[str, BrokerData] = {}
        #: by cluster and address
        self._live: dict[tuple[str, str], _Live] = {}
        #: queue data of all topics
        self._routes = 0
        self._scan_planned = False
        #: told of a topic that nobody has, before that is the answer: a broker in this process may create it
        self.on_unknown: Callable[[str], object] = lambda topic: None
        #: tells the replicas at these addresses, where notifyMinBrokerIdChanged is on
        self.on_min_broker_change: Callable[[list[str], MinBrokerChange], object] = lambda addresses, change: None

    # ------------------------------------------------------------------------------------------------- brokers

    def register(self, registration: Registration, connection: Hashable | None = None) -> Registered:
        """Learn of a broker or hear from it again. Raises RegistrationRefused, InvalidParameter, SystemBusy."""
        r = registration
        broker = self._brokers.get(r.broker_name)
        before = broker.broker_addrs if broker else {}
        # a replica that became master comes under another id
        addresses = {number: known for number, known in before.items() if known != r.address or number == r.broker_id}
        if self._is_outdated(r, addresses.get(r.broker_id)):
            self._live.pop((r.cluster, r.address), None)
            return Registered()
        is_first = r.broker_id not in addresses
        if is_first and len(r.topics) == 1:
            raise RegistrationRefused("register broker failed: the first registration must bring all topics, not one")
        self._check_room(r)
        addresses[r.broker_id] = r.address
        self._brokers[r.broker_name] = BrokerData(
            cluster=broker.cluster if broker else r.cluster,
            broker_name=r.broker_name,
            broker_addrs=addresses,
            enable_acting_master=bool(r.enable_acting_master),
            zone_name=r.zone_name,
        )
        self._update_topics(r, addresses, is_first)
        self._hear(r, connection)
        if before and r.broker_id < min(before):
            others = [known for known in addresses.values() if known != r.address] or [r.address]
            self._tell_min_broker(others, addresses, ha_address=r.ha_address)
        return self._master_of(r, addresses)

    def renew(self, registration: Registration) -> None:
        """Hear from a broker, which registers anew if that is needed."""
        if self.version_of(registration.cluster, registration.address) == registration.version:
            self.heard_from(registration.cluster, registration.address)
        else:
            self.register(registration)

    def unregister(self, cluster: str, broker_name: str, address: str) -> None:
        """Forget a broker and, with its last replica, its topics."""
        self._unregister([(cluster, broker_name, address)])

    def connection_lost(self, connection: Hashable) -> None:
        """Forget the brokers that registered through it."""
        self._unregister(
            [
                (cluster, live.broker_name, address)
                for (cluster, address), live in self._live.items()
                if live.connection == connection
            ]
        )

    def heard_from(self, cluster: str, address: str) -> None:
        """The broker is alive, and has nothing new."""
        live = self._live.get((cluster, address))
        if live is not None:
            live.heard_ms = self._clock.steady_ms()

    def version_of(self, cluster: str, address: str) -> DataVersion | None:
        """Of the topics that the broker registered last."""
        live = self._live.get((cluster, address))
        return live.version if live else None

    # -------------------------------------------------------------------------------------------------- operators

    def forbid_writes(self, broker_name: str) -> int:
        """Take the permission to write from all topics of a broker; how many it has."""
        return self._change_perm(broker_name, lambda perm: perm & ~WRITE)

    def allow_reads_and_writes(self, broker_name: str) -> int:
        """Give all topics of a broker these permissions; how many it has."""
        return self._change_perm(broker_name, lambda perm: READ_WRITE)

    def put_topic(self, topic: str, queues: Iterable[QueueData]) -> None:
        """Add a topic, or change it at these brokers. Nothing happens unless all of them are registered."""
        queues = list(queues)
        if any(data.broker_name not in self._brokers for data in queues):
            log.warning("ignored the queues of the topic %s: one of their brokers is not registered", topic)
            return
        self._check_routes(len(queues))
        for data in queues:
            self._put(topic, data)

    def delete_topic(self, topic: str, cluster: str | None = None) -> None:
        """Forget a topic, or its queues at the brokers of one cluster."""
        for name in list(self._topics.get(topic, ())):
            broker = self._brokers.get(name)
            if cluster is None or (broker is not None and broker.cluster == cluster):
                self._remove(topic, name)

    # ------------------------------------------------------------------------------------------------ questions

    def route(self, topic: str) -> TopicRoute:
        """Raises TopicNotFound."""
        if topic not in self._topics:
            self.on_unknown(topic)
        queues = self._topics.get(topic)
        brokers = [self._copy(self._brokers[name]) for name in queues or () if name in self._brokers]
        if not queues or not brokers:
            raise TopicNotFound(
                f"No topic route info in name server for the topic: {topic}. Create it (mqadmin updateTopic), or check "
                f"that its brokers are registered here: {', '.join(sorted(self._brokers)) or 'none is'}"
            )
        if self.config.support_acting_master and not topic.startswith(_MEMBERS_TOPIC):
            for broker in brokers:
                _appoint_acting_master(broker, queues[broker.broker_name])
        return TopicRoute(
            broker_datas=brokers,
            queue_datas=[msgspec.structs.replace(data) for data in queues.values()],
            filter_server_table=self._filter_servers(brokers),
        )

    @property
    def topics(self) -> list[str]:
        return list(self._topics)

    @property
    def brokers(self) -> dict[str, BrokerData]:
        """By broker name."""
        return {name: self._copy(broker) for name, broker in self._brokers.items()}

    def topics_of(self, cluster: str) -> list[str]:
        names = {name for name, broker in self._brokers.items() if broker.cluster == cluster}
        return [topic for topic, queues in self._topics.items() if not names.isdisjoint(queues)]

    def topics_with_flags(self, mask: int, flags: int) -> list[str]:
        """The topics whose sysFlag has `flags` and no others of `mask`, as their first broker says."""
        return [
            topic
            for topic, queues in self._topics.items()
            if next(iter(queues.values())).topic_sys_flag & mask == flags
        ]

    # ------------------------------------------------------------------------------------------------ registering

    def _is_outdated(self, r: Registration, address: str | None) -> bool:
        """Another process has this broker id and a higher state version: it was elected later."""
        if address is None or address == r.address:
            return False
        holder = self._live.get((r.cluster, address))
        if holder is None or holder.version.state_version <= r.version.state_version:
            return False
        log.warning(
            "ignored the registration of %s as %s/%d: %s holds it with the newer state version %d",
            r.address, r.broker_name, r.broker_id, address, holder.version.state_version,
        )  # fmt: skip
        return True

    def _update_topics(self, r: Registration, addresses: dict[int, str], is_first: bool) -> None:
        """The master's word counts; of 5.0 brokers also that of the replica with the lowest id."""
        is_prime_replica = (
            r.enable_acting_master is not None and r.broker_id != MASTER and r.broker_id == min(addresses)
        )
        if r.broker_id != MASTER and not is_prime_replica:
            return
        if self.config.delete_topic_with_broker_registration and len(r.topics) > 1:  # one: that has changed
            for name in [name for name, queues in self._topics.items() if r.broker_name in queues]:
                if name not in r.topics:
                    self._remove(name, r.broker_name)
        is_changed = is_first or self.version_of(r.cluster, r.address) != r.version
        mask = ~WRITE if is_prime_replica and r.enable_acting_master else ~0
        for topic in r.topics.values():
            if is_changed or r.broker_name not in self._topics.get(topic.topic_name, ()):
                self._put(topic.topic_name, _queue_data(r.broker_name, topic, mask))

    def _check_room(self, r: Registration) -> None:
        """Raises InvalidParameter for what cannot be a broker, SystemBusy when there are too many of them."""
        if max(len(r.cluster), len(r.broker_name), len(r.address)) > _MOST_NAME_LENGTH:
            raise InvalidParameter(
                f"the names of a cluster and a broker and its address have at most {_MOST_NAME_LENGTH} characters each"
            )
        most = self.config.max_brokers
        if len(self._live) >= most and (r.cluster, r.address) not in self._live:
            raise SystemBusy(f"{len(self._live)} brokers are registered here, and no more may be (maxBrokers = {most})")
        names = (topic.topic_name for topic in r.topics.values())
        if too_long := next((name for name in names if len(name) > _MOST_NAME_LENGTH), None):
            raise InvalidParameter(
                f"a topic has {len(too_long)} characters, the limit is {_MOST_NAME_LENGTH}: {too_long[:40]!r}…"
            )
        self._check_routes(len(r.topics), r)

    def _check_routes(self, more: int, r: Registration | None = None) -> None:
        """Raises SystemBusy when so many more queue data would be too many; a broker may have some of them already."""
        most = self.config.max_routes
        if r is not None and self._routes + more > most:
            more = sum(1 for name in r.topics if r.broker_name not in self._topics.get(name, ()))
        if self._routes + more > most:
            raise SystemBusy(
                f"{self._routes} routes (topics times their brokers) are registered here, {more} would be added, and "
                f"there may be {most} (maxRoutes)"
            )

    def _put(self, topic: str, data: QueueData) -> None:
        queues = self._topics.setdefault(topic, {})
        self._routes += data.broker_name not in queues
        queues[data.broker_name] = data

    def _hear(self, r: Registration, connection: Hashable | None) -> None:
        timeout_ms = r.heartbeat_timeout_ms
        if timeout_ms is None:
            timeout_ms = self.config.broker_channel_expired_time
        if (r.cluster, r.address) not in self._live:
            log.info("the broker %s/%d at %s is registered", r.broker_name, r.broker_id, r.address)
        # a copy: a broker in this process goes on counting in its own
        version = msgspec.structs.replace(r.version)
        self._live[r.cluster, r.address] = _Live(
            r.broker_name,
            self._clock.steady_ms(),
            timeout_ms,
            version,
            r.ha_address,
            r.filter_servers,
            connection,
        )
        self._plan_scan()

    def _master_of(self, r: Registration, addresses: dict[int, str]) -> Registered:
        master = addresses.get(MASTER)
        live = self._live.get((r.cluster, master)) if master is not None else None
        if r.broker_id == MASTER or live is None:
            return Registered()
        return Registered(master, live.ha_address)

    # -------------------------------------------------------------------------------------------------- leaving

    def _plan_scan(self) -> None:
        if not self._scan_planned:
            self._scan_planned = True
            self._clock.call_at(self._clock.now_ms() + self.config.scan_not_active_broker_interval, self._scan)

    def _scan(self) -> None:
        self._scan_planned = False
        steady_ms = self._clock.steady_ms()
        silent = []
        for (cluster, address), live in self._live.items():
            if live.heard_ms + live.timeout_ms < steady_ms:
                log.warning("no word from the broker %s for %d ms", address, live.timeout_ms)
                silent.append((cluster, live.broker_name, address))
        self._unregister(silent)
        if self._live:
            self._plan_scan()

    def _unregister(self, leaving: Iterable[tuple[str, str, str]]) -> None:
        """Forget these brokers, by cluster, name and address: many at once for the price of one."""
        gone, without_master = set(), set()
        for cluster, name, address in leaving:
            self._live.pop((cluster, address), None)
            broker = self._brokers.get(name)
            if broker is None:
                continue
            left = {number: known for number, known in broker.broker_addrs.items() if known != address}
            went = broker.broker_addrs.keys() - left.keys()
            had_min = bool(went) and min(broker.broker_addrs) in went
            broker.broker_addrs = left
            if not left:
                del self._brokers[name]
                gone.add(name)
            elif broker.enable_acting_master:
                if MASTER not in left:
                    without_master.add(name)
                if had_min:
                    self._tell_min_broker(list(left.values()), left, offline_address=address)
            log.info("the broker %s at %s of the cluster %s is unregistered", name, address, cluster)
        if gone or without_master:
            self._forget_queues(gone, without_master)

    def _forget_queues(self, gone: set[str], without_master: set[str]) -> None:
        for topic, queues in list(self._topics.items()):
            for name in gone & queues.keys():
                self._remove(topic, name)
            for name in without_master & queues.keys():
                queues[name].perm &= ~WRITE

    def _remove(self, topic: str, broker_name: str) -> None:
        queues = self._topics[topic]
        del queues[broker_name]
        self._routes -= 1
        if not queues:
            del self._topics[topic]

    # ------------------------------------------------------------------------------------------------- the rest

    def _tell_min_broker(
        self,
        whom: list[str],
        addresses: Mapping[int, str],
        offline_address: str | None = None,
        ha_address: str | None = None,
    ) -> None:
        if not self.config.notify_min_broker_id_changed:
            return
        number = min(addresses)
        change = MinBrokerChange(
            min_broker_id=number,
            min_broker_address=addresses[number],
            offline_address=offline_address,
            ha_address=ha_address,
        )
        self.on_min_broker_change(whom, change)

    def _change_perm(self, broker_name: str, change: Callable[[int], int]) -> int:
        found = [queues[broker_name] for queues in self._topics.values() if broker_name in queues]
        for data in found:
            data.perm = change(data.perm)
        return len(found)

    def _filter_servers(self, brokers: Iterable[BrokerData]) -> dict[str, list[str]]:
        """By the addresses of their brokers. Nobody has had any since 4.9."""
        found = {}
        for broker in brokers:
            for address in broker.broker_addrs.values():
                live = self._live.get((broker.cluster, address))
                if live is not None and live.filter_servers:
                    found[address] = live.filter_servers
        return found

    @staticmethod
    def _copy(broker: BrokerData) -> BrokerData:
        return msgspec.structs.replace(broker, broker_addrs=dict(broker.broker_addrs))


def _queue_data(broker_name: str, topic: TopicConfig, mask: int) -> QueueData:
    return QueueData(
        broker_name=broker_name,
        read_queue_nums=topic.read_queue_nums,
        write_queue_nums=topic.write_queue_nums,
        perm=topic.perm & mask,
        topic_sys_flag=topic.topic_sys_flag,
    )


def _appoint_acting_master(broker: BrokerData, queues: QueueData) -> None:
    """Where the master is gone and nothing may be written, the replica with the lowest id stands in for it."""
    addresses = broker.broker_addrs
    if addresses and MASTER not in addresses and broker.enable_acting_master and not queues.perm & WRITE:
        addresses[MASTER] = addresses.pop(min(addresses))
