"""`config/consumerOrderInfo.json`: the batches of FIFO groups as Apache's broker keeps them.

Ours keeps them in the log (`revivelog`). The file is written for Apache's to go on with, as often as that does it, and
read when Apache's has written it: then it lacks our mark. Source: broker/offset/ConsumerOrderInfoManager.java.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from saturnmq.broker.jsonfile import JsonFile
from saturnmq.broker.leases import Leases
from saturnmq.broker.order import Order
from saturnmq.broker.reviverecords import OrderInfo
from saturnmq.kernel.clock import Clock
from saturnmq.kernel.later import Reply
from saturnmq.store.store import Store

log = logging.getLogger(__name__)

#: between two writes (BrokerController: consumerOrderInfoManager.persist)
_INTERVAL_MS = 10_000


class _File(msgspec.Struct, omit_defaults=True):
    #: `topic@group` → queue id → batch
    table: dict[str, dict[int, OrderInfo]] = msgspec.field(default_factory=dict)
    #: ours, the mark
    saturnmq: bool = False


class Kept(NamedTuple):
    """What Apache's broker kept of a queue."""

    group: str
    topic: str
    queue_id: int
    info: OrderInfo

    def order(self, acknowledged: frozenset[int]) -> Order | None:
        """The batch, when more than these messages of it are acknowledged; None when it is done."""
        order = self.info.order()
        handles = {offset: end_ms - order.pop_ms for offset, end_ms in order.ends_ms.items() if end_ms > order.pop_ms}
        order = msgspec.structs.replace(
            order,
            acknowledged=order.acknowledged | acknowledged.intersection(order.offsets),
            handles_ms=order.handles_ms or handles,
        )
        return order.trimmed()


class OrderFile:
    """Owner: `broker.pop`."""

    def __init__(self, store: Store, clock: Clock, leases: Leases) -> None:
        self._leases = leases
        self._file = JsonFile(
            store.disk, clock, "consumerOrderInfo.json", self._encode, delay_ms=_INTERVAL_MS, before=store.flush,
            background=store.background,
        )  # fmt: skip
        self.changed = self._file.changed

    def read_foreign(self) -> Iterator[Kept]:
        """What another broker has written; nothing when that cannot be read."""
        try:
            file = self._file.read(_File)
        except ValueError as error:
            log.error("batches of FIFO groups that Apache's broker kept are not known: %s", error)
            return
        if file is not None and not file.saturnmq:
            for name, queues in file.table.items():
                topic, _, group = name.partition("@")
                for queue_id, info in queues.items():
                    if info.offsets:
                        yield Kept(group, topic, queue_id, info)

    def write(self) -> Reply[None]:
        return self._file.write()

    def _encode(self) -> bytes:
        file = _File(saturnmq=True)
        for queue in self._leases.queues():
            if queue.order is not None:
                queues = file.table.setdefault(f"{queue.topic}@{queue.group}", {})
                queues[queue.queue_id] = OrderInfo.of(queue.order)
        return msgspec.json.encode(file)
