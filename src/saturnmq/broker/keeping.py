"""Leases that outlive the Proxy that renewed them, as long as the push consumer that holds them lives.

A Proxy renews what its push consumers hold, and says for whom. When nobody does in time, because that Proxy was
killed, the broker goes on by itself: the consumer has reconnected to another Proxy, whose heart-beats name it, and
acknowledges when it is done. When its heart-beats stop for as long as a client may be silent, its leases end as they
stand.

This is in memory alone: after a restart of the broker the next renewal of a Proxy tells of it again, and what nobody
renews comes back, as from any consumer that is gone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec

from saturnmq.kernel.clock import Clock, Timer
from saturnmq.kernel.errors import InvalidReceiptHandle, NoSuchMessage, SaturnError
from saturnmq.kernel.later import Reply, after, hear
from saturnmq.kernel.ports import Delivery, InvisibleChanged

log = logging.getLogger(__name__)

Renew = Callable[[Delivery, int], Reply[InvisibleChanged | None]]

#: between looks for leases that are nearly over, milliseconds
SCAN_MS = 2_000
#: with less than this left a lease is renewed: Proxies do so when 5 to 10 s are left
AHEAD_MS = 4_500
#: after the first renewal nobody may keep a message longer, milliseconds (renewMaxTimeMillis)
LONGEST_MS = 10_800_000
#: messages; what a Proxy renews beyond that is not kept when it is gone
MOST = 1_000_000


class Kept(msgspec.Struct, gc=False):
    """One message in a push consumer's hands. Times are the broker's milliseconds."""

    invisible_ms: int
    until_ms: int
    since_ms: int


class Keeping:
    """Owner of what is known of such leases, by client id. Looks at them only while there are any."""

    def __init__(self, renew: Renew, clock: Clock, expire_ms: int) -> None:
        self._renew, self._clock, self._expire_ms = renew, clock, expire_ms
        self._kept: dict[str, dict[Delivery, Kept]] = {}
        #: when each of these clients was last heard of, steady milliseconds
        self._heard_ms: dict[str, int] = {}
        self._count = 0
        self._timer: Timer | None = None

    def __len__(self) -> int:
        return self._count

    def renew(self, delivery: Delivery, invisible_ms: int, client_id: str = "") -> Reply[InvisibleChanged | None]:
        """`kernel.ports.BrokerPort.renew`"""

        def renewed(changed: InvisibleChanged | None) -> InvisibleChanged | None:
            if client_id:
                self._keep(client_id, delivery, invisible_ms)
                self._heard_ms[client_id] = self._clock.steady_ms()
            return changed

        return after(self._renew(delivery, invisible_ms), renewed)

    def heard(self, client_id: str) -> None:
        """It lives, and reaches us through some Proxy."""
        if client_id in self._heard_ms:
            self._heard_ms[client_id] = self._clock.steady_ms()

    def gone(self, client_id: str) -> None:
        """It has left. Its leases end as they stand."""
        self._count -= len(self._kept.pop(client_id, ()))
        self._heard_ms.pop(client_id, None)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _keep(self, client_id: str, delivery: Delivery, invisible_ms: int) -> None:
        kept, now_ms = self._kept.setdefault(client_id, {}), self._clock.now_ms()
        known = kept.get(delivery)
        if known is not None:
            known.until_ms = now_ms + invisible_ms
        elif self._count < MOST:
            self._count += 1
            kept[delivery] = Kept(invisible_ms, now_ms + invisible_ms, now_ms)
        if self._timer is None:
            self._timer = self._clock.call_at(now_ms + SCAN_MS, self._scan)

    def _scan(self) -> None:
        now_ms, oldest_ms = self._clock.now_ms(), self._clock.steady_ms() - self._expire_ms
        for client_id, heard_ms in list(self._heard_ms.items()):
            if heard_ms < oldest_ms:
                log.info("%s is silent: its leases end", client_id)
                self.gone(client_id)
                continue
            kept = self._kept[client_id]
            for delivery, one in [(d, one) for d, one in kept.items() if one.until_ms <= now_ms + AHEAD_MS]:
                if now_ms - one.since_ms >= LONGEST_MS:
                    self._drop(client_id, delivery)
                else:
                    self._go_on(client_id, delivery, one)
            if not kept:
                self.gone(client_id)
        self._timer = self._clock.call_at(now_ms + SCAN_MS, self._scan) if self._kept else None

    def _go_on(self, client_id: str, delivery: Delivery, one: Kept) -> None:
        """Nobody renewed it. When it is settled, or over, it is kept no longer; else the next look tries again."""
        until_ms = self._clock.now_ms() + one.invisible_ms

        def renewed(_: InvisibleChanged | None) -> None:
            one.until_ms = until_ms

        def failed(error: BaseException) -> None:
            if isinstance(error, InvalidReceiptHandle | NoSuchMessage):
                self._drop(client_id, delivery)
            else:
                log.warning("cannot renew %s of %s, will try again: %s", delivery, client_id, error)

        try:
            hear(self._renew(delivery, one.invisible_ms), renewed, failed)
        except SaturnError as error:
            failed(error)

    def _drop(self, client_id: str, delivery: Delivery) -> None:
        if self._kept.get(client_id, {}).pop(delivery, None) is not None:
            self._count -= 1
