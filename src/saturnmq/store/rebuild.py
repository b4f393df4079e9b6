"""Queues made anew from the log's records, one after the other as they stand there.

Between two records of a queue whose offsets do not follow each other messages were lost in damage, and a filler
(`repair`) stands between them: their offsets stay, with entries that lead to it. Without one, one of the two records
is not what it says, and no CRC covers what it says of its place: it must not push others out of theirs. So a record
whose offset is ahead of its queue waits until the next one says whether the queue has gone on there.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from saturnmq.kernel.errors import ProtocolError
from saturnmq.kernel.message import TRANSACTION_MASK, TRANSACTION_ROLLBACK
from saturnmq.store.commitlog import LogReader
from saturnmq.store.consumequeue import ENTRY, FILLER_SIZE, ConsumeQueue, ConsumeQueues, MissingEntries
from saturnmq.store.dispatch import TagsCode, is_queued
from saturnmq.store.walk import Row
from saturnmq.wire.record import MIN_SIZE, decode

log = logging.getLogger(__name__)

pack_entry = ENTRY.pack

#: entries that a rebuild holds before it writes them
_ENTRIES_IN_MEMORY = 1 << 20


class _Rebuilt:
    """One queue. `queue` is None while only a waiting record speaks for it; `log_end`: of its last message, in the
    log; `old_end`, `old_position`: the offset behind the last entry that was on disk, and where its message stood."""

    __slots__ = ("log_end", "old_end", "old_position", "queue", "waiting")

    def __init__(self, queue: ConsumeQueue | None, log_end: int, old_end: int, old_position: int) -> None:
        self.queue, self.log_end, self.old_end, self.old_position = queue, log_end, old_end, old_position
        self.waiting: Row | None = None


class Rebuild:
    """Owner: one walk of recovery. `whole`: it began at the log's first record, and nothing on disk counts."""

    def __init__(self, queues: ConsumeQueues, reader: LogReader, tags_code: TagsCode, whole: bool) -> None:
        self._queues, self._log, self._tags_code, self._whole = queues, reader, tags_code, whole
        self._rebuilt: dict[tuple[str, int], _Rebuilt] = {}
        #: log position and size of the last filler
        self._filler = (-1, 0)

    def take(self, rows: Sequence[Row]) -> None:
        """Raises MissingEntries and OSError."""
        rebuilt, tags_code, plain = self._rebuilt, self._tags_code, 0
        for row in rows:
            position, size, topic, queue_id, offset, sys_flag, stored_ms, properties = row
            known = rebuilt.get((topic, queue_id))
            if (
                known is not None
                and known.waiting is None
                and (queue := known.queue) is not None
                and queue.max_offset == offset
                and not sys_flag & TRANSACTION_MASK
            ):
                # `ConsumeQueues.add`, a million times a second
                queue.tail += pack_entry(position, size, tags_code(topic, properties, stored_ms))
                queue.max_offset = offset + 1
                known.log_end = position + size
                plain += 1
            elif is_queued(sys_flag):
                self._take(row)
            elif sys_flag & TRANSACTION_MASK == TRANSACTION_ROLLBACK:
                self._filler = (position, size)
        self._queues.unwritten += plain
        if self._queues.unwritten > _ENTRIES_IN_MEMORY:
            self._queues.write_now()

    def finish(self, log_end: int) -> None:
        """The log ends there. The queues hold what it holds, durably. Raises OSError."""
        for (topic, queue_id), known in self._rebuilt.items():
            if known.waiting is not None:
                self._accept(known, known.waiting)
            queue = known.queue
            assert queue is not None
            lost = known.old_end - queue.max_offset
            if 0 < lost * MIN_SIZE <= log_end - known.log_end and known.old_position < log_end:
                log.error(
                    "%s queue %d has lost its last messages, from offset %d on", topic, queue_id, queue.max_offset
                )
                self._fill(known, queue, known.old_end, known.old_position)
            queue.next_offset = queue.max_offset
            self._queues.cut(queue)
        self._queues.sync_now()

    def _take(self, row: Row) -> None:
        """A record that does not simply follow the last one of its queue."""
        position, _, topic, queue_id, offset, _, _, _ = row
        known = self._rebuilt.get((topic, queue_id)) or self._begin(row)
        if known is None:
            _leave_out(row, "another record has that offset")
            return
        waiting, known.waiting = known.waiting, None
        if waiting is not None and waiting[4] < offset:
            self._accept(known, waiting)
        elif waiting is not None:
            _leave_out(waiting, "its queue had not come so far")
        queue = known.queue
        if queue is None:
            known.waiting = row
            if offset == 0:
                known.waiting = None
                self._accept(known, row)
        elif offset < queue.max_offset:
            self._decide(queue, row)
        elif (offset - queue.max_offset) * MIN_SIZE > position - known.log_end:
            _leave_out(row, f"the log has no room for the messages since {queue.max_offset}")
        elif offset == queue.max_offset or self._filler[0] >= known.log_end:
            self._accept(known, row)
        else:
            known.waiting = row

    def _begin(self, row: Row) -> _Rebuilt | None:
        """The queue of a record that is its first one here; None when the queue on disk knows better."""
        position, _, topic, queue_id, offset, _, _, _ = row
        queues = self._queues
        old_end, old_position = queues.last_entry(topic, queue_id)
        known = _Rebuilt(None, 0, old_end, old_position)
        if not self._whole:
            at, size = queues.entry(topic, queue_id, offset)
            if size > 0 and at != position and self._holds(at, size, topic, queue_id, offset):
                return None
            at, size = queues.entry(topic, queue_id, offset - 1) if offset else (0, 0)
            known.log_end = at if size == FILLER_SIZE else at + size
            if not 0 <= at <= known.log_end <= position:
                raise MissingEntries(f"the entry {offset - 1} of {topic} queue {queue_id} is damaged")
            known.queue = queues.rewind(topic, queue_id, offset, whole=False)
        self._rebuilt[topic, queue_id] = known
        return known

    def _holds(self, position: int, size: int, topic: str, queue_id: int, offset: int) -> bool:
        """Whether a whole record of this offset stands there."""
        if position < self._queues.log_first or size == FILLER_SIZE:
            return False
        try:
            record = decode(self._log.read(position, size), check_crc=True)
        except (ProtocolError, FileNotFoundError):
            return False
        return (record.topic, record.queue_id, record.queue_offset, record.commit_log_offset) == (
            topic, queue_id, offset, position,
        )  # fmt: skip

    def _accept(self, known: _Rebuilt, row: Row) -> None:
        position, size, topic, queue_id, offset, _, stored_ms, properties = row
        queue = known.queue
        if queue is None:
            queue = known.queue = self._queues.rewind(topic, queue_id, offset, whole=True)
        if offset > queue.max_offset:
            log.error(
                "commit log %d: %s queue %d has no messages from offset %d to %d",
                position, topic, queue_id, queue.max_offset, offset,
            )  # fmt: skip
            self._fill(known, queue, offset, position)
        self._queues.add(queue, position, size, self._tags_code(topic, properties, stored_ms))
        known.log_end = position + size

    def _decide(self, queue: ConsumeQueue, row: Row) -> None:
        """Two records have one offset. The one that an entry on disk leads to is right, else the first."""
        position, size, topic, queue_id, offset, _, stored_ms, properties = row
        if offset < queue.tail_offset or self._queues.entry(topic, queue_id, offset) != (position, size):
            _leave_out(row, "another record has that offset")
            return
        log.error("commit log %d: this is message %d of %s queue %d, and no other", position, offset, topic, queue_id)
        self._queues.replace(queue, offset, position, size, self._tags_code(topic, properties, stored_ms))

    def _fill(self, known: _Rebuilt, queue: ConsumeQueue, offset: int, position: int) -> None:
        """Leave out the offsets before this one."""
        filler, size = self._filler
        if filler >= known.log_end:
            self._queues.fill(queue, offset, filler, size)
        else:
            self._queues.fill(queue, offset, position, FILLER_SIZE)


def _leave_out(row: Row, why: str) -> None:
    log.error(
        "commit log %d: the record there says that it is message %d of %s queue %d, but %s; it is in no queue",
        row[0], row[4], row[2], row[3], why,
    )  # fmt: skip
