"""The clients of the gRPC face: who they are, and what they subscribed to."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from saturnmq.kernel.clock import Clock, Timer
from saturnmq.kernel.errors import ClientUnknown, ConnectionLost, NotSupported, SystemBusy
from saturnmq.kernel.host import Address
from saturnmq.kernel.later import Reply, after
from saturnmq.kernel.ports import ClusterPort, ConsumerMembership, DirectMessage, SendRequest, TransactionCheck
from saturnmq.kernel.topic import MessageQueue
from saturnmq.wire.remoting import json
from saturnmq.wire.remoting.bodies import encode
from saturnmq.wire.remoting.consumers import ConsumerRunningInfo, DirectResult, subscription_data

logger = logging.getLogger(__name__)

#: names of Apache's LanguageCode; what a client calls itself otherwise is OTHER
LANGUAGES = frozenset(
    "CPP DOTNET PYTHON DELPHI ERLANG RUBY OTHER HTTP GO PHP OMS RUST NODE_JS JAVA".split(),
)
#: what brokers are told of every gRPC client: ordinal of Apache's MQVersion V5_3_3 (the SDKs have numbers of their own)
CLIENT_VERSION = 479
#: what clients said of themselves, all together: who makes up ids and topics cannot fill the memory
MAX_SETTINGS_BYTES = 128 * 1024 * 1024
#: what a client costs that says nothing
CLIENT_BYTES = 512
#: milliseconds between looks for clients that went silent
EXPIRY_SCAN_MS = 5_000


class Stream(Protocol):
    """The telemetry stream of a client, as the way to ask it. Fails with RequestTimeout, ConnectionLost, or with what
    the client says."""

    @property
    def open(self) -> bool: ...

    @property
    def behind(self) -> bool:
        """The client is slow to read."""
        ...

    def stacks(self) -> Reply[str]:
        """Of all its threads."""
        ...

    def verify(self, record: bytes) -> Reply[str]:
        """Consume this message, past its queue: what came of it, a name of Apache's CMResult."""
        ...

    def recover(self, check: TransactionCheck) -> None:
        """Say what became of this transaction, by ending it."""
        ...


class Client:
    """One client id. A `kernel.ports.ClientChannel`. Owner: `Sessions`."""

    __slots__ = (
        "client_id",
        "language",
        "membership",
        "peer",
        "producer_groups",
        "seen_ms",
        "settings_bytes",
        "since_ms",
        "stream",
        "version",
    )

    def __init__(self, client_id: str, language: str, peer: Address, clock: Clock) -> None:
        self.client_id = client_id
        self.language = language if language in LANGUAGES else "OTHER"
        self.version = CLIENT_VERSION
        self.peer = peer
        #: the one that it opened last
        self.stream: Stream | None = None
        self.since_ms = clock.now_ms()
        self.seen_ms = clock.steady_ms()
        self.settings_bytes = 0
        #: of a producer: the topics that it said it would send to (a topic's name is its producer group over gRPC)
        self.producer_groups: Sequence[str] = ()
        #: of a consumer
        self.membership: ConsumerMembership | None = None

    def consumers_changed(self, group: str) -> None:
        """Nothing to tell: every consumer of a group has all of its queues (see QueryAssignment)."""

    def reply_message(self, request: SendRequest, received_ms: int) -> Reply[None]:
        raise NotSupported("request-reply needs a client that speaks the Remoting protocol")

    def reset_offsets(self, group: str, topic: str, timestamp_ms: int, offsets: Mapping[MessageQueue, int]) -> None:
        """Nothing to tell: the broker has the offsets of its groups."""

    def positions(self, group: str, topic: str) -> Reply[Mapping[MessageQueue, int]]:
        raise NotSupported("consumers over gRPC have no offsets of their own; the broker's consume stats have them")

    def running_info(self, group: str, *, with_stack: bool) -> Reply[bytes]:
        """What is known here of a consumer that Remoting clients say themselves; only its stacks have to be asked
        for."""
        if with_stack:
            return after(self._open_stream().stacks(), self._describe)
        return self._describe(None)

    def consume(self, message: DirectMessage) -> Reply[bytes]:
        result = self._open_stream().verify(message.record)
        return after(result, lambda result: json.write(DirectResult(consume_result=result, remark="from gRPC client")))

    def check_transaction(self, check: TransactionCheck) -> bool:
        if self.stream is None or not self.stream.open or self.stream.behind:
            return False
        self.stream.recover(check)
        return True

    def _open_stream(self) -> Stream:
        if self.stream is None or not self.stream.open:
            raise ConnectionLost(f"the client {self.client_id} has no telemetry stream open to be asked over")
        return self.stream

    def _describe(self, stacks: str | None) -> bytes:
        assert self.membership is not None, "only consumers are asked"
        properties = {
            "PROP_CONSUME_TYPE": self.membership.consume_type.value,
            "PROP_CONSUMEORDERLY": "false",
            "PROP_CONSUMER_START_TIMESTAMP": str(self.since_ms),
        }
        subscriptions = [subscription_data(one) for one in self.membership.subscriptions]
        return encode(ConsumerRunningInfo(properties=properties, subscription_set=subscriptions, jstack=stacks))


class Sessions:
    """Owner of the clients. One that sends no heart-beat for channelExpiredTimeout is gone, as at the broker."""

    def __init__(self, cluster: ClusterPort, clock: Clock, expire_ms: int) -> None:
        self._cluster = cluster
        self._clock = clock
        self._expire_ms = expire_ms
        self._clients: dict[str, Client] = {}
        self._settings_bytes = 0
        self._scan: Timer | None = None
        #: told of a client that left, by its own word or by silence
        self.on_gone: Callable[[Client], None] = lambda client: None

    def __len__(self) -> int:
        return len(self._clients)

    def get(self, client_id: str) -> Client | None:
        return self._clients.get(client_id)

    def join(
        self,
        client_id: str,
        language: str,
        peer: Address,
        settings_bytes: int,
        *,
        membership: ConsumerMembership | None = None,
        producer_groups: Sequence[str] = (),
    ) -> Client:
        """Take in a client, or what it says of itself anew. What it left out it is no longer. Raises SystemBusy."""
        client = self._clients.get(client_id)
        settings_bytes += CLIENT_BYTES
        more_bytes = settings_bytes - (0 if client is None else client.settings_bytes)
        if self._settings_bytes + more_bytes > MAX_SETTINGS_BYTES:
            raise SystemBusy(
                f"the settings of {len(self._clients)} clients have {self._settings_bytes} bytes together, the limit "
                f"is {MAX_SETTINGS_BYTES}: no more are taken in"
            )
        if client is None:
            client = self._clients[client_id] = Client(client_id, language, peer, self._clock)
            if self._scan is None:
                self._scan = self._clock.call_at(self._clock.now_ms() + EXPIRY_SCAN_MS, self._expire)
        self._settings_bytes += more_bytes
        client.settings_bytes = settings_bytes
        client.peer = peer
        left = set(client.producer_groups) - set(producer_groups)
        if client.membership is not None and (membership is None or membership.group != client.membership.group):
            left.add(client.membership.group)
        for group in left:
            self._cluster.client_left(client, group)
        client.membership = membership
        client.producer_groups = producer_groups
        self._keep_alive(client)
        return client

    def heartbeat(self, client_id: str) -> Client:
        """Raises ClientUnknown."""
        client = self._clients.get(client_id)
        if client is None:
            raise ClientUnknown(
                f"the client {client_id} sent no settings yet, or none since it was silent for "
                f"{self._expire_ms // 1000} s: open a Telemetry stream and send them first"
            )
        self._keep_alive(client)
        return client

    def leave(self, client_id: str) -> Client | None:
        """The client ends. None when it was not there."""
        client = self._clients.pop(client_id, None)
        if client is not None:
            self._settings_bytes -= client.settings_bytes
            self._cluster.client_left(client)
            self.on_gone(client)
        return client

    def close(self) -> None:
        if self._scan is not None:
            self._scan.cancel()

    def _keep_alive(self, client: Client) -> None:
        client.seen_ms = self._clock.steady_ms()
        if client.membership is not None:
            self._cluster.consumer_joined(client, client.membership)
        for group in client.producer_groups:
            self._cluster.producer_joined(client, group)

    def _expire(self) -> None:
        steady_ms = self._clock.steady_ms()
        silent = [client for client in self._clients.values() if steady_ms - client.seen_ms >= self._expire_ms]
        for client in silent:
            logger.info("client %s of %s sent no heart-beat for %d ms", client.client_id, client.peer, self._expire_ms)
            self.leave(client.client_id)
        # nothing to do while nobody is there
        later_ms = self._clock.now_ms() + EXPIRY_SCAN_MS
        self._scan = self._clock.call_at(later_ms, self._expire) if self._clients else None
