"""Opening: where does the log end, and do the queues hold what it holds?

Closed cleanly (no `abort`): the checkpoint's confirmed position is the end, or Apache's is a record not far from it;
the queues are right. Otherwise: start at the last log file whose first record is so old (checkpoint) that everything
before it is durable in log and queues, take every record from there, give its entry to its queue anew, and cut what
stands behind the last one, in the log and in the queues.

What is no record has one of two meanings. Behind the confirmed position it is the torn end of a crash, sectors in any
order, none of it acknowledged: it is cut. Before it (or, of a log that another server wrote and therefore confirmed
nothing, when whole records follow) it is damage to what had been durable, and cutting there would drop messages:
refused.
"""

from __future__ import annotations

import logging

import msgspec

from saturnmq.disk.port import Disk
from saturnmq.kernel.message import StoredMessage
from saturnmq.store.checkpoint import Abort, Checkpoint
from saturnmq.store.commitlog import LogReader, zero_tail
from saturnmq.store.consumequeue import DIRECTORY, ConsumeQueue, ConsumeQueues, MissingEntries
from saturnmq.store.dispatch import TagsCode, is_queued
from saturnmq.store.results import StoreRefused
from saturnmq.store.walk import Walk, find_record

log = logging.getLogger(__name__)

#: entries that a rebuild holds before it writes them
_ENTRIES_IN_MEMORY = 1 << 20


class Recovered(msgspec.Struct, frozen=True):
    """Where the log begins and ends, and when its last message was stored (0: unknown)."""

    first: int
    end: int
    stored_ms: int


class Recovery:
    """Lives as long as `Store.open`; has the store to itself."""

    def __init__(
        self, disk: Disk, log_reader: LogReader, queues: ConsumeQueues, checkpoint: Checkpoint, abort: Abort,
        tags_code: TagsCode,
    ) -> None:  # fmt: skip
        self._disk, self._log, self._queues = disk, log_reader, queues
        self._checkpoint, self._abort, self._tags_code = checkpoint, abort, tags_code
        self._files = log_reader.find_files()
        self._stored_ms = 0

    def run(self) -> Recovered:
        """Raises StoreRefused and OSError."""
        self._check_sizes()
        first = self._files[0] if self._files else 0
        if not self._files:  # a store without messages must not look like one that lost its queues
            self._disk.mkdir(DIRECTORY)
        rebuild = self._abort.present or (bool(self._files) and not self._disk.exists(DIRECTORY))
        try:
            end = self._recover(self._rebuild_start() if rebuild else self._clean_start(), rebuild)
        except MissingEntries as missing:
            log.warning("%s: the queues are rebuilt from the whole commit log", missing)
            # should we crash in the middle, the queues that are done must not look complete
            self._checkpoint.save(0, 0)
            end = self._recover(first, rebuild, whole=True)
        stored_ms = max(self._stored_ms, self._checkpoint.log_ms)
        if rebuild:
            self._checkpoint.save(stored_ms, stored_ms)
        return Recovered(first, end, stored_ms)

    # ---------------------------------------------------------------------------------------- where to start

    def _check_sizes(self) -> None:
        for position in self._files:
            file = self._disk.open(self._log.path(position))
            size = file.size()
            file.close()
            # the last one may be short: a crash while it was made, or cut
            if size > self._log.file_size or (size < self._log.file_size and position != self._files[-1]):
                raise StoreRefused(
                    f"{self._log.path(position)} has {size} bytes, not {self._log.file_size}; "
                    "set mappedFileSizeCommitLog to the size that this store was made with"
                )

    def _clean_start(self) -> int:
        """The confirmed position when a record or nothing begins there, else the last file in use."""
        confirmed, limit = self._checkpoint.confirmed, self._limit
        for position in reversed(self._files):
            if position <= confirmed < position + self._log.file_size:
                walk = Walk(self._log, confirmed, limit, limit)
                next(iter(walk), None)
                return position if walk.reason else confirmed
            if any(self._log.read(position, 8)):
                return position
        return self._files[0] if self._files else 0

    def _rebuild_start(self) -> int:
        """The last file whose first record is old enough to be durable in the queues, with all before it."""
        first = self._files[0] if self._files else 0
        if not self._disk.exists(DIRECTORY):
            return first
        for position in reversed(self._files):
            record = next(iter(Walk(self._log, position, position + 1, position + 1)), None)
            if record is not None and 0 < record.stored_ms <= self._checkpoint.safe_ms:
                return position
        return first

    # ---------------------------------------------------------------------------------------------- the walk

    @property
    def _limit(self) -> int:
        return self._files[-1] + self._log.file_size if self._files else 0

    def _recover(self, start: int, rebuild: bool, *, whole: bool = False) -> int:
        queues, limit = self._queues, self._limit
        walk = Walk(self._log, start, limit, self._checkpoint.confirmed if self._abort.ours else limit)
        queues.forget()
        queues.log_first = self._files[0] if self._files else 0
        rebuilt: dict[tuple[str, int], ConsumeQueue] = {}
        for record in walk:
            self._stored_ms = record.stored_ms
            if rebuild and is_queued(record.sys_flag):
                self._requeue(rebuilt, record, whole)
        queues.log_end = end = walk.end
        if self._files and (rebuild or end != self._checkpoint.confirmed):
            self._settle_end(walk, limit)
            self._sync_log(start, end)
        if rebuild:
            for queue in rebuilt.values():
                queues.cut(queue)
            queues.sync_now()
        if not self._files or (rebuild and not self._abort.ours):
            queues.open_all()  # a queue of Apache's may be ahead of its log, and is cut when it is opened
        self._checkpoint.confirm(end)
        return end

    def _requeue(self, rebuilt: dict[tuple[str, int], ConsumeQueue], record: StoredMessage, whole: bool) -> None:
        key = (record.topic, record.queue_id)
        queue = rebuilt.get(key)
        if queue is None:
            queue = rebuilt[key] = self._queues.rewind(*key, record.queue_offset, whole=whole)
        if record.queue_offset < queue.next_offset:
            log.error(
                "commit log %d: %s queue %d has the offset %d twice; the first one stays",
                record.commit_log_offset, record.topic, record.queue_id, record.queue_offset,
            )  # fmt: skip
            return
        if record.queue_offset > queue.next_offset:
            log.error(
                "commit log %d: %s queue %d has no messages from offset %d to %d",
                record.commit_log_offset, record.topic, record.queue_id, queue.next_offset, record.queue_offset,
            )  # fmt: skip
            self._queues.fill(queue, record.queue_offset, record.commit_log_offset)
        code = self._tags_code(record.topic, record.properties, record.stored_ms)
        self._queues.add(queue, record.commit_log_offset, record.size, code)
        queue.next_offset = queue.max_offset
        if self._queues.unwritten > _ENTRIES_IN_MEMORY:
            self._queues.write_now()

    # ----------------------------------------------------------------------------------------------- the end

    def _settle_end(self, walk: Walk, limit: int) -> None:
        """Decide what stands behind the last record; cut it, or refuse."""
        end, confirmed = walk.end, self._checkpoint.confirmed
        where = f"{self._log.path(end)} at {end % self._log.file_size} (log position {end})"
        if end < confirmed and (self._abort.ours or not self._abort.present):
            raise StoreRefused(self._damage(where, walk, f"it was durable up to {confirmed}"))
        if not self._abort.ours:
            later = find_record(self._log, end + 1, limit, self._stored_ms)
            if later is not None:
                raise StoreRefused(self._damage(where, walk, f"another message stands behind it, at {later}"))
        if end == limit:
            return
        if walk.reason:
            log.warning("%s: %s; the log is cut there, as a crash left it", where, walk.reason)
        for position in reversed(self._files):
            if position > end:
                self._disk.unlink(self._log.path(position))
        for directory in self._log.directories:
            if self._disk.exists(directory):
                self._disk.sync_directory(directory)
        self._files = [position for position in self._files if position <= end]
        zero_tail(self._disk, self._log.path(end), end % self._log.file_size, self._log.file_size)

    def _damage(self, where: str, walk: Walk, proof: str) -> str:
        return (
            f"the commit log is damaged in {where}: {walk.reason or 'nothing stands there'}, but {proof}. "
            "Opening it would lose messages, so it is left as it is. Restore the file from a replica or a copy"
        )

    def _sync_log(self, start: int, end: int) -> None:
        """What was found may stand only in the page cache; readers must not see it before it is durable."""
        for position in self._files:
            if start - self._log.file_size < position <= end:
                file = self._disk.open(self._log.path(position))
                file.fdatasync()
                file.close()
