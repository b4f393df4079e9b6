"""The batches of FIFO groups in the log: every change of one is a record, and only that makes it so."""

from __future__ import annotations

from saturnmq.broker.leases import GroupQueue, Leases
from saturnmq.broker.longpoll import LongPolls
from saturnmq.broker.offsets import OffsetTable
from saturnmq.broker.order import Order
from saturnmq.broker.orderfile import OrderFile
from saturnmq.broker.revive import Revival
from saturnmq.broker.revivelog import ReviveLog
from saturnmq.broker.reviverecords import ReviveRecords
from saturnmq.kernel.message import Appended, Message


class Orders:
    """Writes batches down. The state itself is the Leases'."""

    def __init__(
        self,
        leases: Leases,
        offsets: OffsetTable,
        records: ReviveRecords,
        revive_log: ReviveLog,
        revival: Revival,
        polls: LongPolls,
        file: OrderFile,
    ) -> None:
        self._leases, self._offsets, self._records = leases, offsets, records
        self._log, self._revival, self._polls, self._file = revive_log, revival, polls, file

    def record(self, queue: GroupQueue, order: Order | None, next_offset: int, now_ms: int) -> Message:
        """Of a batch that is going to be the queue's; `next_offset` is where it reads on."""
        committed = next_offset if order is None else order.offsets[0]
        return self._records.order(queue, order, committed, next_offset, now_ms)

    def put(self, queue: GroupQueue, order: Order | None, next_offset: int) -> None:
        """The record is in the log."""
        self._leases.put_order(queue, order)
        self._file.changed()
        queue.next_offset = queue.recorded = next_offset
        queue.committed = next_offset if order is None else order.offsets[0]
        self._offsets.commit(queue.group, queue.topic, queue.queue_id, queue.committed)

    def write(self, queue: GroupQueue, order: Order | None, now_ms: int) -> Appended:
        """The batch of the queue changed, or is done. Raises ServiceUnavailable, and leaves it as it was."""
        [place] = self._log.append([self.record(queue, order, queue.next_offset, now_ms)], [None])
        self.put(queue, order, queue.next_offset)
        self._revival.watch()
        if order is None or order.free_at_ms <= now_ms:
            self._polls.wake(queue.topic, queue.group, queue.queue_id)
        return place
