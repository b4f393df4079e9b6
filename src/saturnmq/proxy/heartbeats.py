"""Brokers hear from a Proxy that it lives, and for whom it speaks.

Apache's broker takes one client a connection. It hears of producer groups only, under one client id for all of them, so
that it asks this Proxy about their transactions (proxy/service/transaction/ClusterTransactionService.java). A broker of
ours takes any number; it hears of every client, so that operators find them there and reach them through it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

from saturnmq.kernel.clock import Clock, Timer
from saturnmq.kernel.ports import ClientChannel, ConsumerMembership
from saturnmq.proxy.presence import Presence
from saturnmq.proxy.receipts import settle
from saturnmq.proxy.remotebroker import RemoteBroker
from saturnmq.wire.remoting.bodies import ConsumerData, HeartbeatData, ProducerData
from saturnmq.wire.remoting.consumers import subscription_data

#: between heart-beats, milliseconds (transactionHeartbeatPeriodSecond)
PERIOD_MS = 20_000
#: between looks which broker has to hear something, milliseconds; one that could not be reached is tried each time
LOOK_MS = 2_000
#: that all producers share at Apache's broker (ClusterTransactionService: TRANS_HEARTBEAT_CLIENT_ID)
CLIENT_ID = "rmq-proxy-producer-client"
#: producer groups in one heart-beat (transactionHeartbeatBatchNum)
GROUPS_AT_ONCE = 100
#: clients that a broker hears of at once, and the pause before the next ones, milliseconds: 80,000 in a period
CLIENTS_AT_ONCE, CLIENTS_PAUSE_MS = 200, 50


class Heartbeats:
    """Owner of what each broker has heard."""

    def __init__(self, brokers: Mapping[str, RemoteBroker], presence: Presence, clock: Clock) -> None:
        self._brokers, self._presence, self._clock = brokers, presence, clock
        #: when each broker was last told all, steady milliseconds
        self._told_ms: dict[str, int] = {}
        #: those that take any number of clients
        self._ours: set[str] = set()
        self._timer: Timer | None = None
        self._open = True

    def start(self) -> None:
        self._look()

    def close(self) -> None:
        self._open = False
        if self._timer is not None:
            self._timer.cancel()

    def again(self) -> None:
        """A connection was lost, and with it what a broker knew."""
        self._told_ms.clear()

    def joined(self, channel: ClientChannel) -> None:
        """Tell at once of a client that is new, or consumes something else than before; Apache's brokers soon."""
        for name, broker in self._brokers.items():
            if name in self._ours:
                self._tell_of(broker, channel)
            elif self._presence.produced_by(channel):
                self._told_ms.pop(name, None)

    def left(self, channel: ClientChannel, group: str, *, consumer: bool) -> None:
        role = "consumerGroup" if consumer else "producerGroup"
        for name in self._ours & self._brokers.keys():
            settle(partial(self._brokers[name].unregister, channel.client_id, {role: group}), _heard, _heard)

    def _look(self) -> None:
        steady_ms = self._clock.steady_ms()
        for name, broker in self._brokers.items():
            told_ms = self._told_ms.get(name)
            if told_ms is None or steady_ms - told_ms >= PERIOD_MS:
                self._told_ms[name] = steady_ms
                beat = partial(broker.heartbeat, HeartbeatData(client_id=CLIENT_ID))
                settle(beat, partial(self._tell_all, broker), partial(self._not_heard, name))
        self._timer = self._clock.call_at(self._clock.now_ms() + LOOK_MS, self._look)

    def _not_heard(self, name: str, error: BaseException) -> None:
        self._told_ms.pop(name, None)

    def _tell_all(self, broker: RemoteBroker, takes_clients: bool) -> None:
        broker.keeps_leases = takes_clients
        if takes_clients:
            self._ours.add(broker.name)
            self._tell_some(broker, self._presence.channels())
            return
        self._ours.discard(broker.name)
        groups = list(
            dict.fromkeys(group for channel in self._presence.channels() for group in self._produced(channel))
        )
        for first in range(0, len(groups), GROUPS_AT_ONCE):
            self._beat(broker, CLIENT_ID, (), groups[first : first + GROUPS_AT_ONCE])

    def _tell_some(self, broker: RemoteBroker, channels: Sequence[ClientChannel], first: int = 0) -> None:
        """Of some now and of the others in a moment: requests of clients do not stand behind thousands of these."""
        if not self._open:
            return
        for channel in channels[first : first + CLIENTS_AT_ONCE]:
            self._tell_of(broker, channel)
        if first + CLIENTS_AT_ONCE < len(channels):
            later = partial(self._tell_some, broker, channels, first + CLIENTS_AT_ONCE)
            self._clock.call_at(self._clock.now_ms() + CLIENTS_PAUSE_MS, later)

    def _tell_of(self, broker: RemoteBroker, channel: ClientChannel) -> None:
        self._beat(broker, channel.client_id, self._presence.consumed_by(channel), self._produced(channel))

    def _produced(self, channel: ClientChannel) -> list[str]:
        return self._presence.produced_by(channel)

    def _beat(
        self, broker: RemoteBroker, client_id: str, consumes: Iterable[ConsumerMembership], produces: Iterable[str]
    ) -> None:
        data = HeartbeatData(
            client_id=client_id,
            consumer_data_set=[
                ConsumerData(
                    group_name=one.group,
                    consume_type=one.consume_type,
                    message_model=one.message_model,
                    consume_from_where=one.consume_from,
                    subscription_data_set=[subscription_data(subscription) for subscription in one.subscriptions],
                    unit_mode=one.unit_mode,
                )
                for one in consumes
            ],
            producer_data_set=[ProducerData(group) for group in produces],
        )
        settle(partial(broker.heartbeat, data), _heard, partial(self._not_heard, broker.name))


def _heard(_: object) -> None:
    """What is lost comes again with the next heart-beat."""
