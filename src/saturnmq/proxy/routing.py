"""Which queue a message goes to, and which address a client is told to dial."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from itertools import cycle

import msgspec

from saturnmq.kernel.clock import Clock
from saturnmq.kernel.errors import NoPermission, TopicNotFound
from saturnmq.kernel.hashing import jump_hash
from saturnmq.kernel.host import Address
from saturnmq.kernel.later import Reply, after, chain
from saturnmq.kernel.ports import BrokerPort, ClusterPort, RoutePort
from saturnmq.kernel.subscription import tag_hash
from saturnmq.kernel.topic import READ, WRITE, MessageQueue, MessageType, QueueData, TopicConfig, TopicRoute

#: milliseconds that a view is good for: a NameServer may take away permissions without a change of the topic
VIEW_MS = 1000
#: where the master of a broker stands in routes; replicas take no messages
MASTER = 0
#: views kept; the oldest go first
MAX_VIEWS = 10_000

#: what Java's gRPC says as :authority when it dials a list of IPs
UNDIALABLE = frozenset({"IPAuthority", ""})


class TopicView(msgspec.Struct, kw_only=True):
    """A topic as the Proxy sees it: what it takes, and its queues on the brokers that the Proxy reaches."""

    topic: str
    config: TopicConfig
    message_type: MessageType
    queue_datas: list[QueueData]
    #: masters and their replicas, by broker name
    broker_ids: dict[str, list[int]]
    #: in the order that message groups are hashed over: by broker name, then queue id
    writable: list[MessageQueue]
    #: names of the brokers with a queue to read
    readable: list[str]
    good_until_ms: int
    next_writable: cycle[MessageQueue]
    next_readable: cycle[str]

    def choose_queue(self, message_group: str) -> MessageQueue:
        """Messages of one group go to one queue, the others take turns. Raises NoPermission."""
        if not self.writable:
            raise NoPermission(
                f"the topic {self.topic} has no queue to write to: its perm is {self.config.perm}, its "
                f"writeQueueNums {self.config.write_queue_nums}; give it perm 6 and at least one write queue"
            )
        if message_group:
            return self.writable[jump_hash(tag_hash(message_group), len(self.writable))]
        return next(self.next_writable)

    @property
    def is_on_one_broker(self) -> bool:
        return self.writable[0].broker_name == self.writable[-1].broker_name

    def choose_other_queue(self, brokers: Mapping[str, BrokerPort], tried: MessageQueue) -> MessageQueue | None:
        """The next one in turn on another broker, which takes sends if one does; None: there is no other broker."""
        any_other = None
        for _ in self.writable:
            queue = next(self.next_writable)
            if queue.broker_name != tried.broker_name:
                if brokers[queue.broker_name].takes_sends:
                    return queue
                any_other = queue
        return any_other

    def choose_broker(self, wanted: str) -> str:
        """The broker to receive from: the one asked for, else in turn. Raises NoPermission."""
        if wanted in self.readable:
            return wanted
        if not self.readable:
            raise NoPermission(f"the topic {self.topic} has no queue to read from: give it perm 6 and a read queue")
        return next(self.next_readable)


class Routing:
    """Views of topics. Owner of the cache; a view is made anew when the topic's settings are another object."""

    def __init__(
        self, brokers: Mapping[str, BrokerPort], cluster: ClusterPort, routes: RoutePort, clock: Clock
    ) -> None:
        self._brokers = brokers
        self._cluster = cluster
        self._routes = routes
        self._clock = clock
        self._views: dict[str, TopicView] = {}

    def view(self, topic: str) -> Reply[TopicView]:
        """Raises TopicNotFound. With devAutoCreate the broker creates what it is asked for."""
        return chain(self._cluster.topic_config(topic), partial(self._of, topic))

    def anew(self, topic: str) -> Reply[TopicView]:
        """After brokers of the view could not be reached: others may have come. Raises TopicNotFound."""
        self._views.pop(topic, None)
        return self.view(topic)

    def _of(self, topic: str, config: TopicConfig | None) -> Reply[TopicView]:
        if config is None:
            self._views.pop(topic, None)
            raise TopicNotFound(
                f"the topic {topic} does not exist: create it (`mqadmin updateTopic -n NAMESRV -c CLUSTER -t {topic} "
                "-a +message.type=NORMAL`), or start SaturnMQ with --dev to have topics created on first use"
            )
        view = self._views.get(topic)
        if view is not None and view.config is config and self._clock.now_ms() < view.good_until_ms:
            return view
        return after(self._routes.route(topic), lambda route: self._keep(self._make(topic, config, route)))

    def _keep(self, view: TopicView) -> TopicView:
        old = self._views.pop(view.topic, None)
        if old is not None and old.writable == view.writable:
            view.next_writable = old.next_writable  # go on where the turn was
        while len(self._views) >= MAX_VIEWS:
            del self._views[next(iter(self._views))]
        self._views[view.topic] = view
        return view

    def _make(self, topic: str, config: TopicConfig, route: TopicRoute) -> TopicView:
        placed = {data.broker_name for data in route.broker_datas} & self._brokers.keys()
        masters = {data.broker_name for data in route.broker_datas if MASTER in data.broker_addrs}
        queue_datas = [data for data in route.queue_datas if data.broker_name in placed]
        writable = sorted(
            (
                MessageQueue(topic, data.broker_name, queue_id)
                for data in queue_datas
                if data.perm & WRITE and data.broker_name in masters
                for queue_id in range(data.write_queue_nums)
            ),
            key=lambda queue: (queue.broker_name, queue.queue_id),
        )
        readable = [data.broker_name for data in queue_datas if data.perm & READ and data.read_queue_nums > 0]
        return TopicView(
            topic=topic,
            config=config,
            message_type=config.message_type,
            queue_datas=queue_datas,
            broker_ids={data.broker_name: sorted(data.broker_addrs) for data in route.broker_datas},
            writable=writable,
            readable=readable,
            good_until_ms=self._clock.now_ms() + VIEW_MS,
            next_writable=cycle(writable),
            next_readable=cycle(readable),
        )


@lru_cache(maxsize=1024)
def is_ip(host: str) -> int:
    """4 or 6; 0 for a name."""
    try:
        return ipaddress.ip_address(host).version
    except ValueError:
        return 0


def parse_advertise(text: str) -> tuple[Address, ...]:
    """`host:port[,host:port]`; port 0 stands for the listener's own. Raises ValueError."""
    return tuple(Address.parse(part) for part in text.split(",") if part.strip())


def addresses_to_tell(
    advertise: Sequence[Address], requested: Sequence[Address], authority: str, local: Address
) -> Sequence[Address]:
    """What a route answers with: `advertise`, else what the client dialled, as far as can be known.

    A client knows best what it dialled and says so in the request; without that the `:authority` of the call, unless it
    is a placeholder, and at last the address that its connection arrived at.
    """
    if advertise:
        return [address if address.port else Address(address.host, local.port) for address in advertise]
    dialled = [address for address in requested if address.host and 0 < address.port < 65536]
    if dialled:
        return dialled
    if authority not in UNDIALABLE:
        try:
            return (Address.parse(authority),)
        except ValueError:
            pass  # no port in it: not an address to dial
    return (local,)
