"""The broker: its parts, and how they are put together."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from saturnmq.broker.assignment import Assignments, RequestModes
from saturnmq.broker.clients import ClientTable
from saturnmq.broker.dedup import DedupWindows
from saturnmq.broker.groups import GroupTable
from saturnmq.broker.keeping import Keeping
from saturnmq.broker.locks import QueueLocks
from saturnmq.broker.longpoll import LongPolls
from saturnmq.broker.offsets import OffsetTable
from saturnmq.broker.peeks import Peeks
from saturnmq.broker.pop import Pops
from saturnmq.broker.positions import Positions
from saturnmq.broker.pull import Pulls
from saturnmq.broker.recall import Recalls
from saturnmq.broker.registration import NameServers, Registrar
from saturnmq.broker.reply import Replies
from saturnmq.broker.resets import Resets
from saturnmq.broker.retry import SendBacks
from saturnmq.broker.schedule import DelayLevels
from saturnmq.broker.send import Sends
from saturnmq.broker.settings import Settings
from saturnmq.broker.stats import Stats
from saturnmq.broker.timers import Timers
from saturnmq.broker.topics import TopicTable
from saturnmq.broker.transactions import Transactions
from saturnmq.kernel.clock import Clock
from saturnmq.kernel.config import BrokerConfig, StoreConfig
from saturnmq.kernel.errors import IllegalTopic, InvalidParameter
from saturnmq.kernel.host import Address
from saturnmq.kernel.later import Reply, after, chain, gather
from saturnmq.kernel.metrics import Metrics
from saturnmq.kernel.ports import ClientChannel, ConsumerMembership
from saturnmq.kernel.topic import HALF_TOPIC, SCHEDULE_TOPIC, TIMER_TOPIC, GroupConfig, TopicConfig, pop_retry_topic
from saturnmq.store.results import Arrival
from saturnmq.store.store import Store


class Broker:
    """Owns the parts below and implements `kernel.ports.BrokerPort` and `ClusterPort`: each verb is the method of the
    part that does it.

    A Proxy of its own process lives as long as it does: no leases are kept for that (`keeps_leases`).
    Every part owns its state and was told the others that it needs. `random(n)` draws from 0 to n-1.
    """

    #: whatever there is to say against a send, it says at once
    takes_sends = True

    keeps_leases = False

    def __init__(
        self,
        config: BrokerConfig,
        store: Store,
        clock: Clock,
        *,
        random: Callable[[int], int],
        metrics: Metrics,
    ) -> None:
        """The store is open. Raises ValueError when a config file and its .bak are broken."""
        self.name = config.broker_name
        self.config, self.store, self.clock = config, store, clock

        self.topics = TopicTable(config, store.disk, clock, store.background)
        self.groups = GroupTable(config, store.disk, clock, store.background)
        self.offsets = OffsetTable(store.disk, clock, store.flush, store.config.flush_interval_config, store.background)
        self.delays = DelayLevels(store, clock, store.config.message_delay_level)
        self.timers = Timers(store, clock, random=random, metrics=metrics)
        for table in (self.topics, self.groups, self.offsets, self.delays, self.timers):
            table.load()
        for topic in store.topics():
            if self.topics.get(topic) is None and (queues := store.queues(topic)):
                self.topics.restore(topic, queues[-1] + 1)

        self.clients = ClientTable(self.groups, self.topics, clock, config.channel_expired_timeout)
        self.transactions = Transactions(config, store, clock, self.topics, self.clients, self.offsets, metrics)
        self.transactions.load()
        self.locks = QueueLocks(clock, config.lock_max_live_time)
        self.polls = LongPolls(clock, per_group=config.pop_polling_size, in_all=config.max_pop_polling_size)
        self.windows = DedupWindows(config, store, clock, self.topics, metrics)
        self.sends = Sends(
            config,
            store,
            clock,
            self.topics,
            self.groups,
            self.locks,
            self.delays,
            self.timers,
            self.windows,
            random,
            metrics,
        )
        self.recalls = Recalls(config, store, clock, self.topics, self.timers, self.windows)
        self.replies = Replies(store, clock, self.clients, self.sends, stores=config.store_reply_message_enable)
        self.send_backs = SendBacks(config, store, self.topics, self.groups, self.delays, random, metrics)
        self.pulls = Pulls(
            config, store, clock, self.topics, self.groups, self.clients, self.offsets, self.polls, metrics
        )
        self.positions = Positions(config, store, self.topics, self.groups, self.offsets)
        self.pops = Pops(
            config, store, clock, self.topics, self.groups, self.offsets, self.polls, self.timers, random, metrics
        )

        self.peeks = Peeks(store, clock, self.topics, self.offsets, self.polls, self.pops, random)
        self.modes = RequestModes(store.disk, clock, store.background)
        self.modes.load()
        self.assignments = Assignments(config, self.topics, self.groups, self.clients, self.modes)
        self.resets = Resets(
            config.broker_name, store, self.topics, self.groups, self.offsets, self.clients, self.polls, self.pops
        )

        self.send = self.sends.send
        self.recall = self.recalls.recall
        self.end_transaction = self.transactions.end
        self.pull = self.pulls.pull
        self.pop = self.pops.pop
        self.ack = self.pops.ack
        self.change_invisible = self.pops.change_invisible
        self.keeping = Keeping(self.pops.renew, clock, config.channel_expired_timeout)
        self.renew = self.keeping.renew
        metrics.gauge(
            "saturnmq_kept_leases", "Messages that push consumers keep while they live", lambda: len(self.keeping)
        )
        self.send_back = self.send_backs.send_back
        self.notify = self.peeks.notify
        self.committed = self.positions.committed
        self.commit = self.positions.commit
        self.min_offset = self.positions.min_offset
        self.max_offset = self.positions.max_offset
        self.offset_by_time = self.positions.offset_by_time
        self.lock = self.locks.lock
        self.unlock = self.locks.unlock
        self.members = self.clients.members
        self.producer_joined = self.clients.producer_joined
        self.client_left = self.clients.left
        self._registrar: Registrar | None = None
        self.settings = Settings(config, store.config, clock, self._configure)
        self.stats = Stats(config.broker_cluster_name, store, self.pulls, clock, metrics)
        store.on_arrival = self._arrived
        store.lodgers["delayed messages"] = self.delays.pending_from
        store.lodgers["messages for a time"] = self.timers.pending_from
        store.lodgers["half messages"] = self.transactions.pending_from
        store.lodgers["messages in flight"] = self.pops.pending_from
        store.measure(metrics)

    def start(self) -> Reply[None]:
        """Begin with what happens by itself: delayed messages, leases that end. Answers when all is rebuilt."""
        self.stats.start()
        self.delays.start()
        opened = gather([self.timers.open(), self.windows.start()])
        leases_known = chain(opened, lambda _: self.pops.start())
        return chain(after(leases_known, lambda _: self.timers.begin()), lambda _: self.transactions.start())

    def register(self, names: NameServers, address: Address) -> None:
        """Become known under this address, and stay so. `brokerIP1` wins over its host."""
        if self.config.broker_ip1:
            address = Address(self.config.broker_ip1, address.port)
        self._registrar = Registrar(self.config, self.topics, self.clock, names, address)
        self._registrar.start()

    def leave(self) -> None:
        """No NameServer sends anybody here any more. Who is here may finish."""
        if self._registrar is not None:
            self._registrar.stop()
            self._registrar = None

    def stop(self) -> Reply[None]:
        """Leave the NameServers, stop what happens by itself, and write what changed. The store closes after it."""
        self.leave()
        self.stats.stop()
        self.clients.stop()
        self.keeping.stop()
        self.delays.stop()
        written = chain(gather([self.pops.stop(), self.transactions.stop()]), lambda _: self._write())
        return chain(chain(written, lambda _: self.delays.write()), lambda _: self.timers.stop())

    def _write(self) -> Reply[list[None]]:
        return gather([self.topics.write(), self.groups.write(), self.offsets.write(), self.modes.write()])

    def _configure(self, config: BrokerConfig, store_config: StoreConfig) -> None:
        """Other settings are in force from now on. Raises ValueError before any of them is."""
        self.store.configure(store_config)
        self.config = config
        self.timers.configure(store_config)
        parts = (self.topics, self.groups, self.sends, self.recalls, self.send_backs, self.pulls, self.pops)
        for part in (*parts, self.positions, self.assignments, self.transactions, self.windows):
            part.configure(config)
        if self._registrar is not None:
            self._registrar.configure(config)

    def delete_topics(self, topics: list[str]) -> Reply[None]:
        """Delete them, all or none, with what stands in them and what groups know of them, and where pop keeps what
        groups did not acknowledge. One that is not there is deleted already. Raises IllegalTopic, InvalidParameter,
        ServiceUnavailable."""
        for topic in topics:
            if not topic.strip():
                raise InvalidParameter("The specified topic is blank.")
            if self.topics.is_system(topic):
                raise IllegalTopic(f"The topic[{topic}] is conflict with system topic.")
        groups = [(group, topic) for topic in topics for group in self.offsets.groups_of(topic)]
        return self._delete_topics([*topics, *_pop_retries(groups)])

    def _delete_topics(self, topics: list[str]) -> Reply[None]:
        # of one that nothing was stored in yet there may be delayed messages
        there = [name for name in topics if self.topics.get(name) is not None or self.store.queues(name)]
        self.pops.forget_topics(topics)
        for name in topics:
            self.topics.delete(name)
            self.offsets.forget_topic(name)
            self.stats.forget_topic(name)
            self.timers.metrics.forget(name)
            self.windows.forget_topic(name)
            self.transactions.metrics.forget(name)
        deleted = self.store.delete(there) if there else None
        return after(gather([deleted, self.topics.write(), self.offsets.write()]), lambda _: None)

    def delete_unused_topics(self) -> Reply[None]:
        """Delete the messages of topics that this broker does not have."""
        unused = [name for name in self.store.topics() if self.topics.get(name) is None and self.store.queues(name)]
        return self.store.delete(unused) if unused else None

    def delete_group(self, group: str, *, offsets_too: bool) -> Reply[None]:
        """With its offsets go its leases and batches, and the topics where pop keeps what it did not acknowledge.
        `%RETRY%` and `%DLQ%` stay; whoever deletes the group deletes those too. Raises ServiceUnavailable."""
        retries: list[str] = []
        if offsets_too:
            retries = _pop_retries((group, topic) for topic in self.offsets.topics_of(group))
            self.pops.forget_group(group)
            self.offsets.forget_group(group)
        self.groups.delete(group)
        self.locks.forget_group(group)
        self.stats.forget_group(group)
        return after(gather([self._delete_topics(retries), self.groups.write()]), lambda _: None)

    def topic_config(self, topic: str) -> TopicConfig | None:
        return self.topics.get_or_create(topic)

    def group_config(self, group: str) -> GroupConfig | None:
        return self.groups.get(group)

    def consumer_joined(self, channel: ClientChannel, membership: ConsumerMembership) -> None:
        self.clients.consumer_joined(channel, membership)

    def _arrived(self, arrival: Arrival) -> None:
        """A message can be read now: wake who waits for it."""
        self.polls.arrived(arrival)
        if arrival.topic == SCHEDULE_TOPIC:
            self.delays.arrived(arrival.queue_id)
        elif arrival.topic == TIMER_TOPIC:
            self.timers.arrived(arrival.queue_offset)
        elif arrival.topic == HALF_TOPIC:
            self.transactions.arrived(arrival)


def _pop_retries(places: Iterable[tuple[str, str]]) -> list[str]:
    """Where pop keeps, or would keep, what these groups did not acknowledge of these topics."""
    return [pop_retry_topic(group, topic, v2=v2) for group, topic in places for v2 in (False, True)]
