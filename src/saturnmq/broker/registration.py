"""How a broker becomes known: it tells every NameServer what it is and which topics it has."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import msgspec

from saturnmq.broker.topics import TopicTable
from saturnmq.kernel.clock import Clock, Timer
from saturnmq.kernel.config import BrokerConfig
from saturnmq.kernel.errors import SaturnError
from saturnmq.kernel.host import Address
from saturnmq.kernel.topic import READ_WRITE, Registration, TopicConfig
from saturnmq.net.remoting_client import RemotingClient
from saturnmq.wire.remoting.bodies import (
    KVTable,
    RegisterBrokerBody,
    TopicConfigTable,
    decode,
    encode,
    encode_registration,
)
from saturnmq.wire.remoting.codes import RequestCode, ResponseCode
from saturnmq.wire.remoting.command import Command

log = logging.getLogger(__name__)

#: how long a NameServer may take (registerBrokerTimeoutMills)
TIMEOUT_MS = 24_000
#: between attempts at a NameServer that does not know this broker, milliseconds: until it does, nobody finds the broker
#: there
RETRY_MS = 1_000
#: a registration longer than this is compressed: with 100,000 topics it comes near the most that a frame may have
LONG_BYTES = 4 << 20
#: the host of `kernel.topic.Registration` that is for others to fill in
ANY_HOST = "0.0.0.0"


class NameServers(Protocol):
    """Whom a broker registers with: over the wire, or a table in the same process."""

    def register(self, registration: Registration) -> object:
        """Tell them of topics that changed."""
        ...

    def renew(self, registration: Registration) -> object:
        """Say that the broker is alive. Whoever does not know all of its topics learns them."""
        ...

    def unregister(self, cluster: str, broker_name: str, address: str) -> None: ...


class Registrar:
    """Owns when a broker registers: at start, every registerNameServerPeriod, at once when topics change, and at stop.

    A change tells only the topic that changed (registerIncrementBrokerData).
    """

    def __init__(
        self, config: BrokerConfig, topics: TopicTable, clock: Clock, names: NameServers, address: Address
    ) -> None:
        self._config, self._topics, self._clock, self._names, self._address = config, topics, clock, names, address
        self._timer: Timer | None = None

    def start(self) -> None:
        self._topics.on_change = self._on_change
        self._register_all()

    def stop(self) -> None:
        self._topics.on_change = lambda topic: None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._names.unregister(self._config.broker_cluster_name, self._config.broker_name, str(self._address))

    def configure(self, config: BrokerConfig) -> None:
        """Say at once what the whole broker may do now, and how often from now on."""
        if self._timer is not None:
            self._timer.cancel()
        self._config = config
        self._register_all()

    def _register_all(self) -> None:
        self._names.renew(self._registration(self._topics.configs))
        self._timer = self._clock.call_at(
            self._clock.now_ms() + self._config.register_name_server_period, self._register_all
        )

    def _on_change(self, topic: TopicConfig) -> None:
        """Before whoever asked for the topic hears of it: the next question is for its route."""
        self._names.register(self._registration({topic.topic_name: topic}))

    def _registration(self, topics: Mapping[str, TopicConfig]) -> Registration:
        permission = self._config.broker_permission
        if permission & READ_WRITE != READ_WRITE:
            # what the whole broker may not do, none of its topics may
            topics = {
                name: msgspec.structs.replace(topic, perm=topic.perm & permission) for name, topic in topics.items()
            }
        return Registration(
            cluster=self._config.broker_cluster_name,
            broker_name=self._config.broker_name,
            broker_id=self._config.broker_id,
            address=str(self._address),
            topics=topics,
            version=self._topics.version,
        )


def keep_order(topics: TopicTable, names: Iterable[str]) -> None:
    """These topics keep an order, by the word of a NameServer (TopicConfigManager#updateOrderTopicConfig)."""
    for name in names:
        topic = topics.get(name)
        if topic is not None and not topic.order:
            topics.put(msgspec.structs.replace(topic, order=True))


class RemoteNameServers:
    """NameServers over the wire, each with a link of its own: what happens to one is nothing to the others."""

    def __init__(self, client: RemotingClient, addresses: Sequence[Address], broker_id: int, clock: Clock) -> None:
        #: told which topics keep an order, when a NameServer says so
        self.on_order_topics: Callable[[Iterable[str]], None] = lambda topics: None
        self._links = [_Link(client, address, broker_id, clock, self) for address in addresses]
        client.on_lost = self._lost

    def register(self, registration: Registration) -> None:
        for link in self._links:
            link.tell(registration)

    def renew(self, registration: Registration) -> None:
        for link in self._links:
            link.renew(registration)

    def unregister(self, cluster: str, broker_name: str, address: str) -> None:
        for link in self._links:
            link.leave(cluster, broker_name, address)

    def _lost(self, address: Address) -> None:
        for link in self._links:
            if link.address == address:
                link.lost("the connection was lost")


class _Link:
    """One NameServer, and whether it knows this broker. Until it does, it is asked every second."""

    def __init__(
        self, client: RemotingClient, address: Address, broker_id: int, clock: Clock, names: RemoteNameServers
    ) -> None:
        self.address = address
        self._client, self._broker_id, self._clock, self._names = client, broker_id, clock, names
        #: of all topics, the latest
        self._registration: Registration | None = None
        #: it has all of them, but for those of the changes that are on their way
        self._knows = False
        #: somebody heard that it does not
        self._is_said = False
        self._retry: Timer | None = None

    def renew(self, registration: Registration) -> None:
        """Ask what it knows: that it was asked tells it that we live. It is told all when that is out of date."""
        self._registration = registration
        fields = self._fields(registration)
        version = encode(registration.version)
        self._client.request(self.address, RequestCode.QUERY_DATA_VERSION, fields, version, TIMEOUT_MS).then(
            self._compared, self._failed
        )

    def tell(self, registration: Registration) -> None:
        """What changed; whoever does not know the rest will be told all of it."""
        if self._knows:
            self._register(registration)

    def leave(self, cluster: str, broker_name: str, address: str) -> None:
        """For good. A NameServer without a connection to us forgot us when it was lost."""
        registration, self._registration = self._registration, None
        self._knows = False
        if self._retry is not None:
            self._retry.cancel()
        if registration is not None and self._client.local_address(self.address) is not None:
            self._client.one_way(self.address, RequestCode.UNREGISTER_BROKER, self._fields(registration))

    def lost(self, reason: str) -> None:
        """It does not know this broker, or not all of it."""
        self._knows = False
        if self._registration is None:
            return
        if not self._is_said:
            self._is_said = True
            log.warning("the NameServer %s does not know this broker: %s", self.address, reason)
        if self._retry is None:
            self._retry = self._clock.call_at(self._clock.now_ms() + RETRY_MS, self._again)

    def _again(self) -> None:
        self._retry = None
        if self._registration is not None:
            self.renew(self._registration)

    def _failed(self, error: BaseException) -> None:
        self.lost(str(error))

    def _compared(self, answer: Command) -> None:
        if self._registration is None:
            return
        if self._knows and answer.fields.get("changed") == "false":
            return
        self._register(self._registration)

    def _register(self, registration: Registration) -> None:
        body = RegisterBrokerBody(TopicConfigTable(dict(registration.topics), registration.version))
        data, compressed = encode_registration(body, compressed=False), False
        if len(data) > LONG_BYTES:
            data, compressed = encode_registration(body, compressed=True), True
        fields = self._fields(registration)
        fields |= {
            "haServerAddr": registration.ha_address or fields["brokerAddr"],
            "compressed": str(compressed).lower(),
            "bodyCrc32": str(zlib.crc32(data) & 0x7FFFFFFF),
        }
        self._client.request(self.address, RequestCode.REGISTER_BROKER, fields, data, TIMEOUT_MS).then(
            self._answered, self._failed
        )

    def _answered(self, answer: Command) -> None:
        if answer.code != ResponseCode.SUCCESS:
            self.lost(f"it refused the registration: {answer.code} {answer.remark}")
            return
        self._knows = True
        if self._is_said:
            self._is_said = False
            log.info("the NameServer %s knows this broker", self.address)
        if answer.body:
            try:
                self._names.on_order_topics(decode(KVTable, answer.body).table)
            except SaturnError as error:
                log.warning("the NameServer %s sent order topics that cannot be read: %s", self.address, error)

    def _fields(self, registration: Registration) -> dict[str, str]:
        return {
            "brokerName": registration.broker_name,
            "brokerAddr": self._dialable(registration.address),
            "clusterName": registration.cluster,
            "brokerId": str(self._broker_id),
        }

    def _dialable(self, address: str) -> str:
        """Our address as others reach it: unless it was set, the one that this NameServer sees us from."""
        local = self._client.local_address(self.address)
        ours = Address.parse(address)
        return address if ours.host != ANY_HOST or local is None else str(Address(local.host, ours.port))
