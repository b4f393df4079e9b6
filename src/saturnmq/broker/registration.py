"""How a broker becomes known: it tells every NameServer what it is and which topics it has."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Protocol

import msgspec

from saturnmq.broker.topics import TopicTable
from saturnmq.kernel.clock import Clock, Timer
from saturnmq.kernel.config import BrokerConfig
from saturnmq.kernel.host import Address
from saturnmq.kernel.topic import READ_WRITE, Registration, TopicConfig
from saturnmq.net.remoting_client import RemotingClient
from saturnmq.wire.remoting.bodies import RegisterBrokerBody, TopicConfigTable, encode, encode_registration
from saturnmq.wire.remoting.codes import RequestCode, ResponseCode
from saturnmq.wire.remoting.command import Command

log = logging.getLogger(__name__)

#: how long a NameServer may take (registerBrokerTimeoutMills)
TIMEOUT_MS = 24_000
#: the host of `kernel.topic.Registration` that is for others to fill in
ANY_HOST = "0.0.0.0"


class NameServers(Protocol):
    """Whom a broker registers with: over the wire, or a table in the same process."""

    def register(self, registration: Registration) -> object: ...

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
        self._names.register(self._registration(self._topics.configs))
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


class RemoteNameServers:
    """NameServers over the wire. One that cannot be reached is tried again with the next registration."""

    def __init__(self, client: RemotingClient, addresses: Sequence[Address], broker_id: int) -> None:
        self._client, self._addresses, self._broker_id = client, addresses, broker_id

    def register(self, registration: Registration) -> None:
        table = TopicConfigTable(dict(registration.topics), registration.version)
        body = encode_registration(RegisterBrokerBody(table), compressed=False)
        for names in self._addresses:
            if self._client.local_address(names) is None:
                # learn from the connection how this NameServer sees us; to this question any answer is good
                fields = self._fields(names, registration.cluster, registration.broker_name, registration.address)
                self._client.request(
                    names, RequestCode.QUERY_DATA_VERSION, fields, encode(registration.version), TIMEOUT_MS
                ).then(partial(self._connected, names, registration, body), partial(self._failed, names))
            else:
                self._register(names, registration, body)

    def unregister(self, cluster: str, broker_name: str, address: str) -> None:
        for names in self._addresses:
            fields = self._fields(names, cluster, broker_name, address)
            self._client.one_way(names, RequestCode.UNREGISTER_BROKER, fields)

    def _connected(self, names: Address, registration: Registration, body: bytes, _: Command) -> None:
        self._register(names, registration, body)

    def _register(self, names: Address, registration: Registration, body: bytes) -> None:
        fields = self._fields(names, registration.cluster, registration.broker_name, registration.address)
        fields |= {
            "haServerAddr": registration.ha_address or fields["brokerAddr"],
            "compressed": "false",
            "bodyCrc32": str(zlib.crc32(body) & 0x7FFFFFFF),
        }
        self._client.request(names, RequestCode.REGISTER_BROKER, fields, body, TIMEOUT_MS).then(
            partial(self._answered, names), partial(self._failed, names)
        )

    def _fields(self, names: Address, cluster: str, broker_name: str, address: str) -> dict[str, str]:
        return {
            "brokerName": broker_name,
            "brokerAddr": self._dialable(names, address),
            "clusterName": cluster,
            "brokerId": str(self._broker_id),
        }

    def _dialable(self, names: Address, address: str) -> str:
        """Our address as others reach it: unless it was set, the one that this NameServer sees us from."""
        local = self._client.local_address(names)
        ours = Address.parse(address)
        return address if ours.host != ANY_HOST or local is None else str(Address(local.host, ours.port))

    def _answered(self, names: Address, answer: Command) -> None:
        if answer.code != ResponseCode.SUCCESS:
            log.error("the NameServer %s refused the registration: %d %s", names, answer.code, answer.remark)

    def _failed(self, names: Address, error: BaseException) -> None:
        log.warning("the NameServer %s does not know this broker: %s", names, error)
