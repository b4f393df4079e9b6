"""The batches of FIFO groups in the log: every change of one is a record, and only that makes it so."""

from __future__ import annotations

from saturnmq.broker.leases import GroupQueue, Leases
from saturnmq.broker.longpoll import LongPolls
from saturnmq.broker.offsets import OffsetTable
from saturnmq.broker.order import Order
from saturnmq.broker.revive import Revival
from saturnmq.broker.revivelog import ReviveLog, ReviveRecords
from saturnmq.kernel.message import Appended, Message


class Orders:
    """Writes batches down. The state itself is the Leases'."""

    def __init__(
        self,
        revive_queues: int,
        leases: Leases,
        offsets: OffsetTable,
        records: ReviveRecords,
        revive_log: ReviveLog,
        revival: Revival,
        polls: LongPolls,
    ) -> None:
        self._revive_queues = revive_queues
        self._leases, self._offsets, self._records = leases, offsets, records
        self._log, self._revival, self._polls = revive_log, revival, polls

    def record(self, queue: GroupQueue, order: Order | None, next_offset: int, now_ms: int) -> Message:
        """Of a batch that is going to be the queue's; `next_offset` is where it reads on."""
        committed = next_offset if order is None else order.offsets[0]
        revive_queue_id = queue.queue_id % self._revive_queues
        return self._records.order(queue, order, committed, next_offset, revive_queue_id, now_ms)

    def put(self, queue: GroupQueue, order: Order | None, next_offset: int, place: Appended) -> None:
        """The record is in the log, at `place`."""
        self._leases.put_order(queue, order, place.queue_id, place.queue_offset)
        queue.next_offset = queue.recorded = next_offset
        queue.committed = next_offset if order is None else order.offsets[0]
        self._offsets.commit(queue.group, queue.topic, queue.queue_id, queue.committed)

    def write(self, queue: GroupQueue, order: Order | None, now_ms: int) -> Appended:
        """The batch of the queue changed, or is done. Raises ServiceUnavailable, and leaves it as it was."""
        [place] = self._log.append([self.record(queue, order, queue.next_offset, now_ms)])
        self.put(queue, order, queue.next_offset, place)
        self._revival.watch()
        if order is None or order.free_at_ms <= now_ms:
            self._polls.wake(queue.topic, queue.group, queue.queue_id)
        return place
