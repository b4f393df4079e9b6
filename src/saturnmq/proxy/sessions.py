"""The clients of the gRPC face: who they are, what they subscribed to, and the stream that leads back to them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from saturnmq.kernel.clock import Clock, Timer
from saturnmq.kernel.errors import ClientUnknown, NotSupported, SystemBusy
from saturnmq.kernel.host import Address
from saturnmq.kernel.later import Reply
from saturnmq.kernel.ports import BrokerPort, ConsumerMembership, SendRequest

logger = logging.getLogger(__name__)

#: names of Apache's LanguageCode; what a client calls itself otherwise is OTHER
LANGUAGES = frozenset(
    "CPP DOTNET PYTHON DELPHI ERLANG RUBY OTHER HTTP GO PHP OMS RUST NODE_JS JAVA".split(),
)
#: what brokers are told of every gRPC client: ordinal of Apache's MQVersion V5_3_3 (the SDKs have numbers of their own)
CLIENT_VERSION = 479
#: beyond this no new client is taken in: a client that makes up ids cannot fill the memory
MAX_CLIENTS = 100_000
#: milliseconds between looks for clients that went silent
EXPIRY_SCAN_MS = 5_000


class Stream(Protocol):
    """The server's half of a telemetry stream (`net.grpc_server.Call`)."""

    def finish(self) -> None: ...


class Client:
    """One client id. A `kernel.ports.ClientChannel`. Owner: `Sessions`."""

    __slots__ = ("client_id", "language", "membership", "peer", "producer_groups", "seen_ms", "stream", "version")

    def __init__(self, client_id: str, language: str, peer: Address, now_ms: int) -> None:
        self.client_id = client_id
        self.language = language if language in LANGUAGES else "OTHER"
        self.version = CLIENT_VERSION
        self.peer = peer
        self.seen_ms = now_ms
        #: of a producer: the topics that it said it would send to (a topic's name is its producer group over gRPC)
        self.producer_groups: Sequence[str] = ()
        #: of a consumer
        self.membership: ConsumerMembership | None = None
        self.stream: Stream | None = None

    def consumers_changed(self, group: str) -> None:
        """Nothing to tell: every consumer of a group has all of its queues (see QueryAssignment)."""

    def reply_message(self, request: SendRequest, received_ms: int) -> Reply[None]:
        raise NotSupported("request-reply needs a client that speaks the Remoting protocol")


class Sessions:
    """Owner of the clients. One that sends no heart-beat for channelExpiredTimeout is gone, as at the broker."""

    def __init__(self, brokers: Iterable[BrokerPort], clock: Clock, expire_ms: int) -> None:
        self._brokers = list(brokers)
        self._clock = clock
        self._expire_ms = expire_ms
        self._clients: dict[str, Client] = {}
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
        *,
        membership: ConsumerMembership | None = None,
        producer_groups: Sequence[str] = (),
    ) -> Client:
        """Take in a client, or what it says of itself anew. What it left out it is no longer."""
        client = self._clients.get(client_id)
        if client is None:
            if len(self._clients) >= MAX_CLIENTS:
                raise SystemBusy(f"{MAX_CLIENTS} clients are connected, no more are taken in")
            client = self._clients[client_id] = Client(client_id, language, peer, self._clock.now_ms())
            if self._scan is None:
                self._scan = self._clock.call_at(self._clock.now_ms() + EXPIRY_SCAN_MS, self._expire)
        client.peer = peer
        left = set(client.producer_groups) - set(producer_groups)
        if client.membership is not None and (membership is None or membership.group != client.membership.group):
            left.add(client.membership.group)
        for group in left:
            for broker in self._brokers:
                broker.client_left(client, group)
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
            for broker in self._brokers:
                broker.client_left(client)
            self.on_gone(client)
        return client

    def close(self) -> None:
        """End every telemetry stream: the clients reconnect, here or elsewhere."""
        if self._scan is not None:
            self._scan.cancel()
        for client in self._clients.values():
            if client.stream is not None:
                client.stream.finish()

    def _keep_alive(self, client: Client) -> None:
        client.seen_ms = self._clock.now_ms()
        for broker in self._brokers:
            if client.membership is not None:
                broker.consumer_joined(client, client.membership)
            for group in client.producer_groups:
                broker.producer_joined(client, group)

    def _expire(self) -> None:
        now_ms = self._clock.now_ms()
        silent = [client for client in self._clients.values() if now_ms - client.seen_ms >= self._expire_ms]
        for client in silent:
            logger.info("client %s of %s sent no heart-beat for %d ms", client.client_id, client.peer, self._expire_ms)
            self.leave(client.client_id)
        # nothing to do while nobody is there
        self._scan = self._clock.call_at(now_ms + EXPIRY_SCAN_MS, self._expire) if self._clients else None
