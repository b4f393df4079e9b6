"""Opening: where does the log end, and do the queues hold what it holds?

Closed cleanly (no `abort`): the checkpoint's confirmed position is the end, or Apache's is a record not far from it;
the queues are right. Otherwise: start where our checkpoint says that all entries before are durable, or, of a log that
another server wrote or whose checkpoint is lost, at the last log file whose first record is old enough for that; take
every record from there, give its entry to its queue anew, and cut what stands behind the last one, in the log and in
the queues. So what is read after a crash of ours is what was stored since the last checkpoint (`Store`: CHECKPOINT_MS,
CHECKPOINT_BYTES), however long the log is and its files are.

What is no record has one of two meanings. Behind the confirmed position it is the torn end of a crash, sectors in any
order, none of it acknowledged: it is cut, with whole records that may follow, because no record may be there without
those that were appended before it. Before that position (or, of a log that another server wrote or whose checkpoint is
lost, and which therefore confirmed nothing, when whole records follow) it is damage to what had been durable: it is
taken out of the log (`repair`), and what follows stays (decision 5).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import msgspec

from saturnmq.disk.port import Disk
from saturnmq.store.checkpoint import Abort, Checkpoint
from saturnmq.store.commitlog import LogReader, zero_tail
from saturnmq.store.consumequeue import DIRECTORY, ConsumeQueues, MissingEntries
from saturnmq.store.dispatch import TagsCode
from saturnmq.store.rebuild import Rebuild
from saturnmq.store.repair import repair
from saturnmq.store.results import StoreRefused
from saturnmq.store.walk import Row, Walk, find_next

log = logging.getLogger(__name__)


class Recovered(msgspec.Struct, frozen=True):
    """Where the log begins and ends, and when its last message was stored (0: unknown)."""

    first: int
    end: int
    stored_ms: int


class Recovery:
    """Lives as long as `Store.open`; has the store to itself."""

    def __init__(
        self, disk: Disk, log_reader: LogReader, queues: ConsumeQueues, checkpoint: Checkpoint, abort: Abort,
        deleted: Mapping[str, int], tags_code: TagsCode,
    ) -> None:  # fmt: skip
        """`deleted`: topic → log position before which its messages have no places in queues."""
        self._disk, self._log, self._queues = disk, log_reader, queues
        self._checkpoint, self._abort, self._deleted, self._tags_code = checkpoint, abort, deleted, tags_code
        self._files = log_reader.find_files()
        self._stored_ms = 0
        #: the log had been durable up to here, as far as is known
        self._durable = -1
        if checkpoint.is_confirmed or not abort.present:
            self._durable = checkpoint.confirmed

    def run(self) -> Recovered:
        """Raises StoreRefused and OSError."""
        self._check_sizes()
        self._check_end()
        first = self._files[0] if self._files else 0
        if not self._files:  # a store without messages must not look like one that lost its queues
            self._disk.mkdir(DIRECTORY)
        rebuild = self._abort.present or (bool(self._files) and not self._disk.exists(DIRECTORY))
        try:
            end = self._recover(self._rebuild_start() if rebuild else self._clean_start(), rebuild)
        except MissingEntries as missing:
            log.warning("%s: the queues are rebuilt from the whole commit log", missing)
            # should we crash in the middle, the queues that are done must not look complete
            self._checkpoint.save(0, 0, 0)
            end = self._recover(first, rebuild, whole=True)
        stored_ms = max(self._stored_ms, self._checkpoint.log_ms)
        self._checkpoint.confirm(end)
        if rebuild or not self._checkpoint.is_confirmed or self._checkpoint.queued != end:
            self._checkpoint.save(stored_ms, stored_ms, end)
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

    def _check_end(self) -> None:
        """A file that is gone can be brought back; it is no damage to give up."""
        if self._durable <= self._limit:
            return
        if self._files and self._checkpoint.is_confirmed:
            raise StoreRefused(
                f"{self._log.path(self._durable)} is missing: the commit log was durable up to position "
                f"{self._durable}, its files end at {self._limit}; bring the file back from a replica or a copy"
            )
        self._durable = -1

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
        """Where, or before where, the first record stands that may lack its queue entry."""
        first = self._files[0] if self._files else 0
        if not self._disk.exists(DIRECTORY):
            return first
        if self._abort.ours and first <= self._checkpoint.queued <= self._durable:
            return self._checkpoint.queued
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
        """Give the log's end."""
        queues, limit = self._queues, self._limit
        is_torn_there = self._abort.ours and self._checkpoint.is_confirmed
        walk = Walk(self._log, start, limit, self._durable if is_torn_there else limit)
        queues.forget()
        queues.log_first = self._files[0] if self._files else 0
        self._stored_ms = 0
        anew = Rebuild(queues, self._log, self._tags_code, whole) if rebuild else None
        while True:
            for rows in walk.rows():
                if rows:
                    self._stored_ms = rows[-1][6]
                    if anew is not None:
                        anew.take(self._kept(rows))
            damage_end = self._damage_end(walk.end)
            if damage_end is None:
                break
            stored_ms = self._stored_ms or self._checkpoint.log_ms or 1
            repair(self._log, walk.end, damage_end, stored_ms, walk.reason or "nothing stands there")
            walk.resume(walk.end)
        queues.log_end = end = walk.end
        if self._files and (rebuild or end != self._checkpoint.confirmed):
            self._cut(walk, limit)
            self._sync_log(start, end)
        if anew is not None:
            anew.finish(end)
        if walk.fillers:
            queues.repoint(walk.fillers)
        was_apaches = not self._abort.ours if rebuild else walk.reason and not self._checkpoint.is_confirmed
        if not self._files or was_apaches:
            queues.open_all()
        return end

    def _kept(self, rows: Sequence[Row]) -> Sequence[Row]:
        """Without the messages of deleted topics."""
        deleted = self._deleted
        return [row for row in rows if row[0] >= deleted.get(row[2], 0)] if deleted else rows

    # ------------------------------------------------------------------------------------------ damage, and the end

    def _damage_end(self, position: int) -> int | None:
        """Where the log goes on behind this position, at which no record stands; None when it ends here."""
        confirmed = self._checkpoint.is_confirmed
        if position < self._durable:
            # our own log has no remains of an older one, and one wrong time must not hide all that follows
            found = find_next(self._log, position, self._durable, 0 if confirmed else self._stored_ms)
            return self._durable if found is None else found
        if position == self._limit or (confirmed and (self._abort.ours or self._is_end_of_ours(position))):
            return None
        return find_next(self._log, position, self._limit, self._stored_ms)

    def _is_end_of_ours(self, position: int) -> bool:
        """We closed it there, and no other server has gone on."""
        return not self._abort.present and position == self._checkpoint.confirmed

    def _cut(self, walk: Walk, limit: int) -> None:
        """Let nothing stand behind the last record."""
        end = walk.end
        if end == limit:
            return
        if walk.reason:
            log.warning(
                "%s at %d (log position %d): %s; the log is cut there, as a crash left it",
                self._log.path(end), end % self._log.file_size, end, walk.reason,
            )  # fmt: skip
        for position in reversed(self._files):
            if position > end:
                self._disk.unlink(self._log.path(position))
                self._disk.sync_directory(self._log.path(position).rpartition("/")[0])
        self._files = [position for position in self._files if position <= end]
        zero_tail(self._disk, self._log.path(end), end % self._log.file_size, self._log.file_size)

    def _sync_log(self, start: int, end: int) -> None:
        """What was found may stand only in the page cache; readers must not see it before it is durable."""
        for position in self._files:
            if start - self._log.file_size < position <= end:
                file = self._disk.open(self._log.path(position))
                file.fdatasync()
                file.close()
