"""Faults that somebody might make, or a refactoring: each taken into the server as it runs, to see that the judge hears
of it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch

import msgspec
from campaign.planted import FAULTS as STORE_FAULTS

from consumption.lives import Consumers, ConsumersWithoutSync, live
from saturnmq.broker import broker, pop, timermessages
from saturnmq.broker.acks import Acks
from saturnmq.broker.leasereplay import LeaseReplay
from saturnmq.broker.leases import Leases
from saturnmq.broker.order import Order
from saturnmq.broker.resets import Resets
from saturnmq.broker.retry import SendBacks
from saturnmq.broker.revive import Revival
from saturnmq.broker.reviverecords import FifoBody
from saturnmq.kernel.ports import InvisibleChanged
from saturnmq.proxy.proxy import Proxy
from saturnmq.proxy.receipts import Receipts
from saturnmq.store.deleted import DeletedTopics

Plant = AbstractContextManager[Any]


def _nothing(*args: Any, **options: Any) -> None:
    """Left out."""


_take_due, _next_expiry_ms = Leases.take_due, Leases.next_expiry_ms
_order, _reset, _change_invisible = LeaseReplay._order, Resets._reset, Acks.change_invisible
_close, _copy_of, _pop, _due_ms, _free = Revival._close, Revival._copy_of, Proxy._pop, timermessages.due_ms, pop._free


def _uncounted(self: Revival, *args: Any) -> Any:
    copy = _copy_of(self, *args)
    copy.reconsume_times = 0
    return copy


def _one_less(*args: Any) -> Any:
    take = _free(*args)
    if take is not None and len(take.offsets) > 1:
        for each in (take.offsets, take.records, take.positions):
            each.pop()
    return take


def _tried_without_end(self: Proxy, broker: Any, group: Any, request: Any) -> Any:
    return _pop(self, broker, msgspec.structs.replace(group, retry_max_times=99), request)


def _no_order(self: LeaseReplay, body: FifoBody) -> None:
    if body.order is not None:
        _order(self, body)


def _leases_end_early() -> Plant:
    return patch.multiple(
        Leases,
        take_due=lambda self, now_ms: _take_due(self, now_ms + 900),
        next_expiry_ms=lambda self: (_next_expiry_ms(self) or 1 << 50) - 900,
    )


def _reset_in_memory(self: Resets, group: str, offsets: Any) -> Any:
    _reset(self, group, offsets)
    return offsets


def _changed_by_nothing(self: Acks, delivery: Any, invisible_ms: int) -> Any:
    """A change to 0 is taken for a question."""
    if invisible_ms:
        return _change_invisible(self, delivery, invisible_ms)
    return InvisibleChanged(delivery.pop_ms, delivery.invisible_ms, delivery.revive_queue_id)


#: by name: what is wrong, and the lives that show it
FAULTS: dict[str, tuple[Callable[[], Plant], type[Consumers]]] = {
    "an offset is on the disk before its check point": (
        STORE_FAULTS["offsets are written before what they point to"], ConsumersWithoutSync),
    "acknowledged before the flush": (STORE_FAULTS["acknowledged before the flush"], Consumers),
    "leases are lost by a restart": (lambda: patch.object(LeaseReplay, "_check_point", _nothing), Consumers),
    "acknowledgements are lost by a restart": (
        STORE_FAULTS["acknowledgements are forgotten by a restart"], Consumers),
    "batches in order are lost by a restart": (lambda: patch.object(LeaseReplay, "_order", _nothing), Consumers),
    "what comes back comes twice": (
        lambda: patch.object(Revival, "_close", lambda self, p, o, copies: _close(self, p, o, 2 * copies)), Consumers),
    "nothing comes back": (lambda: patch.object(Revival, "watch", _nothing), Consumers),
    "leases end early": (_leases_end_early, Consumers),
    "leases are not renewed": (lambda: patch.object(Receipts, "_renew", _nothing), Consumers),
    "a delayed message comes early": (
        lambda: patch.object(timermessages, "due_ms", lambda *args: _due_ms(*args) - 3_000), Consumers),
    "any handle is good": (
        lambda: patch.object(Acks, "_held", lambda self, queue, d, now: queue.leases.get(d.queue_offset)), Consumers),
    "any handle is good in order": (
        lambda: patch.object(Acks, "_held_in_order", lambda self, queue, d, now: queue.order), Consumers),
    "a batch in order does not block": (lambda: patch.object(Order, "free_at_ms", 0), Consumers),
    "attempts are not counted": (lambda: patch.object(Revival, "_copy_of", _uncounted), Consumers),
    "tried without end": (lambda: patch.object(Proxy, "_pop", _tried_without_end), Consumers),
    "dead letters are lost": (lambda: patch.object(SendBacks, "_copy", _nothing), Consumers),
    "dead letters come again": (
        lambda: patch.object(Proxy, "_bury", _nothing), Consumers),
    "a message is skipped": (lambda: patch.object(pop, "_free", _one_less), Consumers),
    "what is held is deleted for its age": (STORE_FAULTS["lodgers are not asked"], Consumers),
    "a reset is not in the log": (lambda: patch.object(LeaseReplay, "_order", _no_order), Consumers),
    "a reset is answered before it is written": (lambda: patch.object(Resets, "_reset", _reset_in_memory), Consumers),
    "what a deleted group did not acknowledge comes back": (
        lambda: patch.object(broker, "_pop_retries", lambda places: []), Consumers),
    "a deleted topic comes back from the log": (
        lambda: patch.object(DeletedTopics, "write", _nothing), Consumers),
    "a change to no time at all does nothing": (
        lambda: patch.object(Acks, "change_invisible", _changed_by_nothing), Consumers),
}  # fmt: skip

#: lives until a fault must be found
MOST_LIVES = 2_000


def found(name: str) -> tuple[int, str] | None:
    """How many lives it takes, and what is wrong with the last one; None: MOST_LIVES do not find it."""
    plant, kind = FAULTS[name]
    with plant():
        return live(kind, seed=1, lives=MOST_LIVES)
