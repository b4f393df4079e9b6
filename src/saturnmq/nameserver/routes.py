"""Which brokers are alive, and which topics they have.

Nothing is kept on disk: brokers register again within half a minute. Source of the rules:
namesrv/routeinfo/RouteInfoManager.java.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable

import msgspec

from saturnmq.kernel.clock import Clock
from saturnmq.kernel.config import NameserverConfig
from saturnmq.kernel.errors import SaturnError, TopicNotFound
from saturnmq.kernel.topic import WRITE, BrokerData, DataVersion, QueueData, TopicRoute
from saturnmq.kernel.topic import Registration as Registration

log = logging.getLogger(__name__)

MASTER = 0


class RegistrationRefused(SaturnError):
    """The first registration of a broker must bring all of its topics."""


class Registered(msgspec.Struct):
    """What a replica is told: its master, if there is one."""

    master_address: str | None = None
    ha_address: str | None = None


class _Live(msgspec.Struct):
    """One registered process."""

    broker_name: str
    heard_ms: int
    timeout_ms: int
    version: DataVersion
    ha_address: str
    #: the connection it registered through; gone with it
    connection: Hashable | None


class RouteTable:
    """Owner of the routes; a `kernel.ports.RoutePort`. Looks for expired brokers by itself while there are any."""

    def __init__(self, config: NameserverConfig, clock: Clock) -> None:
        self._config = config
        self._clock = clock
        #: by topic and broker name
        self._topics: dict[str, dict[str, QueueData]] = {}
        self._brokers: dict[str, BrokerData] = {}
        #: by cluster and address
        self._live: dict[tuple[str, str], _Live] = {}
        self._scan_planned = False
        #: told of a topic that nobody has, before that is the answer: a broker in this process may create it
        self.on_unknown: Callable[[str], object] = lambda topic: None

    # ------------------------------------------------------------------------------------------------- brokers

    def register(self, registration: Registration, connection: Hashable | None = None) -> Registered:
        """Learn of a broker or hear from it again. Raises RegistrationRefused."""
        r = registration
        broker = self._brokers.get(r.broker_name)
        addresses = dict(broker.broker_addrs) if broker else {}
        for broker_id, address in list(addresses.items()):  # a replica that became master comes under another id
            if address == r.address and broker_id != r.broker_id:
                del addresses[broker_id]
        if self._is_outdated(r, addresses.get(r.broker_id)):
            self._live.pop((r.cluster, r.address), None)
            return Registered()
        is_first = r.broker_id not in addresses
        if is_first and len(r.topics) == 1:
            raise RegistrationRefused("register broker failed: the first registration must bring all topics, not one")
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
        return self._master_of(r, addresses)

    def unregister(self, cluster: str, broker_name: str, address: str) -> None:
        """Forget a broker and, with its last replica, its topics."""
        self._live.pop((cluster, address), None)
        broker = self._brokers.get(broker_name)
        if broker is None:
            return
        for broker_id in [broker_id for broker_id, known in broker.broker_addrs.items() if known == address]:
            del broker.broker_addrs[broker_id]
        if not broker.broker_addrs:
            del self._brokers[broker_name]
            self._remove_queues(broker_name)
        elif broker.enable_acting_master and MASTER not in broker.broker_addrs:
            self._forbid_writes(broker_name)
        log.info("the broker %s at %s of the cluster %s is unregistered", broker_name, address, cluster)

    def connection_lost(self, connection: Hashable) -> None:
        """Forget the brokers that registered through it."""
        for (cluster, address), live in list(self._live.items()):
            if live.connection == connection:
                self.unregister(cluster, live.broker_name, address)

    def heard_from(self, cluster: str, address: str) -> None:
        """The broker is alive, and has nothing new."""
        live = self._live.get((cluster, address))
        if live is not None:
            live.heard_ms = self._clock.steady_ms()

    def version_of(self, cluster: str, address: str) -> DataVersion | None:
        """Of the topics that the broker registered last."""
        live = self._live.get((cluster, address))
        return live.version if live else None

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
        return TopicRoute(broker_datas=brokers, queue_datas=[msgspec.structs.replace(data) for data in queues.values()])

    @property
    def topics(self) -> list[str]:
        return list(self._topics)

    @property
    def brokers(self) -> dict[str, BrokerData]:
        """By broker name."""
        return {name: self._copy(broker) for name, broker in self._brokers.items()}

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
        is_changed = is_first or self.version_of(r.cluster, r.address) != r.version
        mask = ~WRITE if is_prime_replica and r.enable_acting_master else ~0
        for topic in r.topics.values():
            queues = self._topics.setdefault(topic.topic_name, {})
            if is_changed or r.broker_name not in queues:
                queues[r.broker_name] = QueueData(
                    broker_name=r.broker_name,
                    read_queue_nums=topic.read_queue_nums,
                    write_queue_nums=topic.write_queue_nums,
                    perm=topic.perm & mask,
                    topic_sys_flag=topic.topic_sys_flag,
                )

    def _hear(self, r: Registration, connection: Hashable | None) -> None:
        timeout_ms = r.heartbeat_timeout_ms
        if timeout_ms is None:
            timeout_ms = self._config.broker_channel_expired_time
        if (r.cluster, r.address) not in self._live:
            log.info("the broker %s/%d at %s is registered", r.broker_name, r.broker_id, r.address)
        # a copy: a broker in this process goes on counting in its own
        version = msgspec.structs.replace(r.version)
        self._live[r.cluster, r.address] = _Live(
            r.broker_name, self._clock.steady_ms(), timeout_ms, version, r.ha_address, connection
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
            self._clock.call_at(self._clock.now_ms() + self._config.scan_not_active_broker_interval, self._scan)

    def _scan(self) -> None:
        self._scan_planned = False
        steady_ms = self._clock.steady_ms()
        for (cluster, address), live in list(self._live.items()):
            if live.heard_ms + live.timeout_ms < steady_ms:
                log.warning("no word from the broker %s for %d ms", address, live.timeout_ms)
                self.unregister(cluster, live.broker_name, address)
        if self._live:
            self._plan_scan()

    def _remove_queues(self, broker_name: str) -> None:
        for topic, queues in list(self._topics.items()):
            queues.pop(broker_name, None)
            if not queues:
                del self._topics[topic]

    def _forbid_writes(self, broker_name: str) -> None:
        for queues in self._topics.values():
            if broker_name in queues:
                queues[broker_name].perm &= ~WRITE

    @staticmethod
    def _copy(broker: BrokerData) -> BrokerData:
        return msgspec.structs.replace(broker, broker_addrs=dict(broker.broker_addrs))
