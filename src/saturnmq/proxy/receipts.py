"""Keeps messages invisible while the push consumers that hold them are alive (auto-renew).

A push consumer names no invisible time and acknowledges with the handle that it was given, hours later if need be. So
the Proxy renews the lease at the broker, which keeps the first handle good (`BrokerPort.renew`): nothing that a client
needs is in this table, and an acknowledgement through another Proxy works as well. Apache's broker makes another handle
with each renewal: then the table knows which one stands for the client's.
Source of the periods: proxy/service/receipt/DefaultReceiptHandleManager.java.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec

from saturnmq.kernel.clock import Clock, Timer
from saturnmq.kernel.config import ProxyConfig
from saturnmq.kernel.errors import InvalidReceiptHandle, NoSuchMessage, SaturnError, SystemBusy
from saturnmq.kernel.later import Later, Reply, hear
from saturnmq.kernel.ports import BrokerPort, ClusterPort, Delivery, GroupMembers, InvisibleChanged
from saturnmq.kernel.topic import GroupConfig, GroupRetryPolicy

logger = logging.getLogger(__name__)

#: so old, a message that is still held is renewed for the first time at a broker that goes on when this Proxy is gone
HAND_OVER_MS = 5_000
#: how long an acknowledgement may take, milliseconds
SETTLING_MS = 5_000
#: messages in the hands of push consumers, some hundred bytes each; a client holds about a thousand by default
MAX_LEASES = 500_000


class Lease(msgspec.Struct, kw_only=True):
    """One message in a push consumer's hands."""

    client_id: str
    broker: BrokerPort
    #: as the broker knows it after the last renewal
    delivery: Delivery
    #: when the broker would show it again, as far as this Proxy knows
    ends_ms: int
    received_ms: int
    reconsume_times: int
    #: the broker knows who holds it
    handed_over: bool = False
    #: somebody settles it: no renewal until then, which would bring back what is acknowledged
    settling_until_ms: int = 0
    #: who wants to settle it when the renewal that is on its way has come to its end
    waiting: list[Later[Delivery]] | None = None


class Receipts:
    """Owner of the leases, by receipt handle. Looks at them only while there are any."""

    def __init__(self, cluster: ClusterPort, config: ProxyConfig, clock: Clock) -> None:
        self._cluster = cluster
        self._config = config
        self._clock = clock
        self._leases: dict[str, Lease] = {}
        #: which of them a client holds: one that leaves costs no look at all of them
        self._held: defaultdict[str, set[str]] = defaultdict(set)
        self._scan: Timer | None = None

    def __len__(self) -> int:
        return len(self._leases)

    def check_room(self) -> None:
        """Raises SystemBusy when push consumers hold too many messages."""
        if len(self._leases) >= MAX_LEASES:
            raise SystemBusy(f"push consumers hold {len(self._leases)} messages, which is as many as this Proxy renews")

    def hold(self, handle: str, client_id: str, broker: BrokerPort, delivery: Delivery, reconsume_times: int) -> None:
        """Renew this from now on."""
        now_ms = self._clock.now_ms()
        self._leases[handle] = Lease(
            client_id=client_id,
            broker=broker,
            delivery=delivery,
            ends_ms=now_ms + delivery.invisible_ms,
            received_ms=now_ms,
            reconsume_times=reconsume_times,
        )
        self._held[client_id].add(handle)
        if self._scan is None:
            self._scan = self._clock.call_at(now_ms + self._config.renew_schedule_period_millis, self._renew_due)

    def drop(self, handle: str) -> None:
        """The client has settled it."""
        lease = self._leases.pop(handle, None)
        if lease is not None:
            held = self._held[lease.client_id]
            held.discard(handle)
            if not held:
                del self._held[lease.client_id]

    def settling(self, handle: str, delivery: Delivery) -> Reply[Delivery]:
        """What to settle when a client names this handle, which says `delivery`; it is not renewed meanwhile."""
        lease = self._leases.get(handle)
        if lease is None:
            return delivery
        lease.settling_until_ms = self._clock.now_ms() + SETTLING_MS
        if lease.waiting is None:
            return lease.delivery
        later: Later[Delivery] = Later()
        lease.waiting.append(later)
        return later

    def client_gone(self, client_id: str) -> None:
        """Give back what the client held: others of its group get it soon. Unless it went to another Proxy."""
        leases = [self._leases.pop(handle) for handle in self._held.pop(client_id, ())]

        def back(members: GroupMembers | None) -> None:
            if members is None or all(one.client_id != client_id for one in members.members):
                for lease in leases:
                    give_back(lease.broker, lease.delivery, self._config.invisible_time_millis_when_clear)

        if leases:
            hear(self._cluster.members(leases[0].delivery.group), back, lambda _: back(None))

    def close(self) -> None:
        """Renew no more."""
        if self._scan is not None:
            self._scan.cancel()
            self._scan = None

    def _renew_due(self) -> None:
        now_ms = self._clock.now_ms()
        for handle, lease in [(handle, lease) for handle, lease in self._leases.items() if self._is_due(lease, now_ms)]:
            if lease.waiting is not None or lease.settling_until_ms > now_ms:
                continue
            if now_ms - lease.received_ms >= self._config.renew_max_time_millis:
                self.drop(handle)
                self._give_up(lease)
            else:
                self._renew(handle, lease, now_ms)
        self._scan = None
        if self._leases:
            self._scan = self._clock.call_at(now_ms + self._config.renew_schedule_period_millis, self._renew_due)

    def _is_due(self, lease: Lease, now_ms: int) -> bool:
        if lease.broker.keeps_leases and not lease.handed_over and now_ms - lease.received_ms >= HAND_OVER_MS:
            return True
        return lease.ends_ms <= now_ms + self._config.renew_ahead_time_millis

    def hand_over(self) -> None:
        """This Proxy stops: brokers that can do so keep what clients hold, who go on elsewhere."""
        for handle, lease in list(self._leases.items()):
            if lease.broker.keeps_leases and not lease.handed_over and lease.waiting is None:
                self._renew(handle, lease, self._clock.now_ms())

    def _renew(self, handle: str, lease: Lease, now_ms: int) -> None:
        invisible_ms = self._config.default_invisible_time_mills
        client_id = lease.client_id if lease.broker.keeps_leases else ""
        lease.waiting = []

        def renewed(changed: InvisibleChanged | None) -> None:
            lease.ends_ms = now_ms + invisible_ms
            lease.handed_over = bool(client_id)
            if changed is not None:
                lease.delivery = after_change(lease.delivery, changed)
            settle_now()

        def settle_now() -> None:
            waiting, lease.waiting = lease.waiting, None
            for later in waiting or ():
                later.resolve(lease.delivery)

        def failed(error: BaseException) -> None:
            settle_now()
            if isinstance(error, InvalidReceiptHandle | NoSuchMessage) or lease.ends_ms <= self._clock.now_ms():
                logger.info("lease %s of %s ends: %s", handle, lease.client_id, error)
                self.drop(handle)
            else:
                logger.warning("cannot renew lease %s, will try again: %s", handle, error)

        settle(lambda: lease.broker.renew(lease.delivery, invisible_ms, client_id), renewed, failed)

    def _give_up(self, lease: Lease) -> None:
        """Held for too long: it comes back as if consuming it had failed."""
        broker, delivery = lease.broker, lease.delivery
        logger.warning(
            "%s holds message %s/%s/%s for over %d ms without acknowledging it: it goes back",
            *(lease.client_id, delivery.topic, delivery.queue_id, delivery.queue_offset),
            self._config.renew_max_time_millis,
        )

        def back(group: GroupConfig | None) -> None:
            policy = GroupRetryPolicy() if group is None else group.group_retry_policy
            give_back(broker, delivery, policy.delay_ms(lease.reconsume_times))

        settle(lambda: self._cluster.group_config(delivery.group), back, partial(_not_given_back, delivery))


def after_change(delivery: Delivery, changed: InvisibleChanged) -> Delivery:
    """The next delivery of the message, which is one of its own (client/impl/MQClientAPIImpl.java:
    changeInvisibleTimeAsync)."""
    return msgspec.structs.replace(
        delivery,
        start_offset=delivery.queue_offset,
        pop_ms=changed.pop_ms,
        invisible_ms=changed.invisible_ms,
        revive_queue_id=changed.revive_queue_id,
    )


def give_back(broker: BrokerPort, delivery: Delivery, visible_in_ms: int) -> None:
    """Let others of the group have the message. What goes wrong is logged: it comes back when its lease ends."""
    settle(
        lambda: broker.change_invisible(delivery, visible_in_ms),
        lambda _: None,
        partial(_not_given_back, delivery),
    )


def settle(act: Callable[[], Reply[Any]], done: Callable[[Any], None], failed: Callable[[BaseException], None]) -> None:
    """Do what no request waits for; `failed` hears the errors that may happen, now or later."""
    try:
        reply = act()
    except SaturnError as error:
        failed(error)
        return
    hear(reply, done, failed)


def _not_given_back(delivery: Delivery, error: BaseException) -> None:
    logger.warning(
        "message %s/%s/%s of %s is not given back: %s",
        *(delivery.topic, delivery.queue_id, delivery.queue_offset, delivery.group, error),
    )
